"""One guarded web UI in a process of its own: `python -m ae_pipeline.cli.web dagster PORT WORKSPACE`, or `mlflow PORT`.

The environment holds the token, the addresses and the database, because every user of a machine can read arguments.
"""

import asyncio
import os
import sys
import warnings
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from ae_pipeline.cli.guard import Access, Guard, access, token_of_environment

if TYPE_CHECKING:
    from starlette.types import ASGIApp
    from uvicorn import Server

_MLFLOW_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "frame-src 'self' blob: data:; media-src 'self' blob: data:"
)
"""What MLflow's pages need. They may load and send nothing elsewhere."""

_DAGSTER_POLICY = "img-src 'self' data: blob:; font-src 'self' data:; frame-src 'self'; worker-src 'self' blob:"
"""Dagster's own policy says which scripts may run. Pictures of other sites could tell them who looks at what."""

_MAX_CONNECTIONS = 500
"""Connections at the same time; more are answered with status 503."""


def main(arguments: Sequence[str]) -> None:
    """Serve a web UI until the process is interrupted."""
    with suppress(KeyboardInterrupt):
        match arguments:
            case ["dagster", port, workspace]:
                with _dagster_app(workspace) as app:
                    _serve(app, int(port), _access("dagster", int(port), _DAGSTER_POLICY))
            case ["mlflow", port]:
                from ae_pipeline.registry.web import mlflow_app

                allowed = _access("mlflow", int(port), _MLFLOW_POLICY)
                _serve(mlflow_app(os.environ["MLFLOW_BACKEND_STORE_URI"], list(allowed.schemes)), int(port), allowed)


def server(app: "ASGIApp", port: int, allowed: Access) -> "Server":
    """Return a server of a guarded app on 127.0.0.1.

    Args:
        app: App to serve.
        port: Port of the server.
        allowed: Who may use it.
    """
    import uvicorn

    config = uvicorn.Config(
        Guard(app, allowed),
        host="127.0.0.1",
        port=port,
        log_level="warning",  # otherwise one line for each request of a page
        limit_concurrency=_MAX_CONNECTIONS,
        proxy_headers=False,  # the addresses in the environment say how users reach the server
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    return uvicorn.Server(config)


def _access(name: str, port: int, policy: str) -> Access:
    address = os.environ[f"AE_PIPELINE_{name.upper()}_URL"]
    return access(token_of_environment(), port, address, policy, may_frame_itself=name == "mlflow")


def _serve(app: "ASGIApp", port: int, allowed: Access) -> None:
    server(app, port, allowed).run()


@contextmanager
def _dagster_app(workspace: str) -> "Iterator[ASGIApp]":
    """Build the app of Dagster's webserver, as its command `dagster-webserver` does."""
    import dagster as dg
    from dagster._core.workspace.context import WorkspaceProcessContext
    from dagster._core.workspace.load_target import WorkspaceFileTarget
    from dagster_webserver.app import create_app_from_workspace_process_context
    from dagster_webserver.version import __version__

    with (
        dg.DagsterInstance.get() as instance,
        WorkspaceProcessContext(instance, WorkspaceFileTarget([workspace]), version=__version__) as context,
    ):
        instance.optimize_for_webserver(statement_timeout=15_000, pool_recycle=3600, max_overflow=20)
        yield create_app_from_workspace_process_context(context, live_data_poll_rate=2000, lifespan=_lifespan)


@asynccontextmanager
async def _lifespan(_: Any) -> AsyncIterator[None]:
    with suppress(asyncio.CancelledError):  # of open websockets, when the server stops
        yield


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message="starlette.middleware.wsgi")  # of a library of MLflow's server
    main(sys.argv[1:])
