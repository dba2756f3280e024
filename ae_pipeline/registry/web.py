"""MLflow's web app, for a server of ours."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp


def mlflow_app(uri: str, hosts: "list[str]") -> "ASGIApp":
    """Return MLflow's web app over a database, as `mlflow server` runs it.

    Args:
        uri: Address of the database.
        hosts: Names under which the server is reached.
    """
    os.environ["MLFLOW_SERVER_ALLOWED_HOSTS"] = ",".join(hosts)
    os.environ["_MLFLOW_SGI_NAME"] = "uvicorn"
    from mlflow.server import constants

    # What `mlflow server` hands to its workers. The app reads it when it is imported.
    os.environ[constants.BACKEND_STORE_URI_ENV_VAR] = uri
    os.environ[constants.REGISTRY_STORE_URI_ENV_VAR] = uri
    os.environ[constants.ARTIFACT_ROOT_ENV_VAR] = "mlflow-artifacts:/"
    os.environ[constants.SERVE_ARTIFACTS_ENV_VAR] = "true"
    os.environ[constants.ARTIFACTS_DESTINATION_ENV_VAR] = "./mlartifacts"
    from mlflow.server.fastapi_app import app
    from mlflow.server.handlers import initialize_backend_stores

    initialize_backend_stores(uri, uri, "mlflow-artifacts:/")
    served: ASGIApp = app
    return served
