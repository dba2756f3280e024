"""Whether a tracking server answers, before MLflow asks it."""

import os
import ssl
from http.client import HTTPException
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from ae_pipeline.common.errors import StorageError

_ANSWER_SECONDS = 5.0
"""Time within which a server must answer a request that asks for nothing."""

_LIMITS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
"""Limits of MLflow's requests, unless the environment sets others. MLflow tries for several minutes by default."""


def require_answer(url: str) -> None:
    """Return if a tracking server answers, whatever it says, and limit how long MLflow waits for it later.

    Args:
        url: Address of the server, http or https.

    Raises:
        StorageError: The server does not answer within seconds.
    """
    for name, value in _LIMITS.items():
        os.environ.setdefault(name, value)
    try:
        with urlopen(f"{url}/health", timeout=_ANSWER_SECONDS):  # noqa: S310 -- of the administrator
            return
    except HTTPError:
        return
    except (OSError, HTTPException) as error:
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(reason, ssl.SSLError):  # MLflow has settings for certificates
            return
        raise StorageError(
            f"the MLflow server {url} does not answer ({reason}); start it, or correct MLFLOW_TRACKING_URI, and run "
            "again"
        ) from error
