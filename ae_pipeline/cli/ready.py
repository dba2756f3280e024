"""`ae-pipeline ready`: whether a code server has loaded the definitions, for a readiness probe."""

from ae_pipeline.common.errors import PipelineError
from ae_pipeline.common.text import first_line


def ready(host: str, port: int, socket: str | None = None) -> int:
    """Ask a code server for its definitions, and return the exit status.

    Dagster's own health check says only that the server answers, also if it has nothing to show.

    Args:
        host: Host of the server.
        port: Port of the server.
        socket: Unix socket of the server, instead of host and port.

    Raises:
        PipelineError: No server answers, or it could not load the definitions.
    """
    import dagster as dg
    from dagster._api.list_repositories import sync_list_repositories_grpc
    from dagster._core.errors import DagsterUserCodeProcessError, DagsterUserCodeUnreachableError
    from dagster._grpc.client import DagsterGrpcClient

    address = socket or f"{host}:{port}"
    client = DagsterGrpcClient(socket=socket) if socket else DagsterGrpcClient(host=host, port=port)
    try:
        loaded = sync_list_repositories_grpc(client)
    except DagsterUserCodeUnreachableError as error:
        raise PipelineError(f"no code server answers at {address}; start it, or correct the address") from error
    except DagsterUserCodeProcessError as error:
        infos = error.user_code_process_error_infos
        cause = infos[0]
        while cause.cause:
            cause = cause.cause
        raise PipelineError(
            f"the code server at {address} could not load the definitions: {cause.message.strip()}; correct it, "
            "`dg check defs` shows more"
        ) from error
    except dg.DagsterError as error:
        raise PipelineError(
            f"the code server at {address} does not answer as it should: {first_line(error)}"
        ) from error
    print(f"Ready: {address} has loaded {len(loaded.repository_symbols)} repository.")
    return 0
