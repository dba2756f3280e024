"""A tracking server or an object store that does not answer."""

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from ae_pipeline.common.errors import PublicationError, StorageError, UnavailableError
from ae_pipeline.latents.files import TableFiles
from ae_pipeline.registry.answer import require_answer
from ae_pipeline.registry.store import Tracker
from ae_pipeline.storage.object_store import ObjectStore


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr("ae_pipeline.registry.answer._ANSWER_SECONDS", 0.3)


@pytest.fixture
def silent() -> Iterator[int]:
    """Port of a server that accepts connections and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield int(listener.getsockname()[1])


@pytest.fixture
def closed() -> int:
    """Port without a server."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.parametrize("server", ["silent", "closed"])
def test_a_model_store_that_does_not_answer_is_one_line(
    server: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"http://127.0.0.1:{request.getfixturevalue(server)}"
    began = time.monotonic()
    with pytest.raises(StorageError) as failed:
        _ = Tracker(tmp_path, url.replace("http://", "http://ana:secret@")).client
    assert str(failed.value).startswith(f"the MLflow server {url} does not answer (")
    assert str(failed.value).endswith("; start it, or correct MLFLOW_TRACKING_URI, and run again")
    assert "\n" not in str(failed.value)
    assert time.monotonic() - began < 5


class _Refusing(BaseHTTPRequestHandler):
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_error(401)

    def log_message(self, *_: object) -> None:
        pass


def test_a_server_that_refuses_has_answered() -> None:
    with HTTPServer(("127.0.0.1", 0), _Refusing) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        require_answer(f"http://127.0.0.1:{server.server_port}")
        thread.join()
    assert len(_Refusing.asked) == 1


@pytest.mark.parametrize("server", ["silent", "closed"])
def test_an_object_store_that_does_not_answer_is_one_line(
    server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    values = {"ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "y", "REGION": "us-east-1", "ALLOW_HTTP": "true"}
    values["ENDPOINT_URL"] = f"http://127.0.0.1:{request.getfixturevalue(server)}"
    for name, value in values.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setattr("ae_pipeline.latents.files._FIRST_REQUEST", {"timeout": "1s", "max_retries": "0"})
    began = time.monotonic()
    with pytest.raises(PublicationError) as failed:
        TableFiles("s3://latents/orders").open()
    message = str(failed.value)
    assert message.startswith("the object store of s3://latents/orders does not answer (")
    assert message.endswith("correct AE_PIPELINE_TABLES, AWS_ENDPOINT_URL or the credentials, and run again")
    assert "\n" not in message
    assert time.monotonic() - began < 5


def test_plain_http_that_is_not_allowed_has_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "y", "REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("AWS_ALLOW_HTTP", raising=False)
    remedy = "AWS_ENDPOINT_URL or the credentials, set AWS_ALLOW_HTTP=true for that plain HTTP, and run again"
    with pytest.raises(PublicationError, match=f"correct AE_PIPELINE_TABLES, {remedy}$"):
        TableFiles("s3://latents/orders").open()
    remedy = remedy.replace(" or ", " and ")
    with pytest.raises(UnavailableError, match=f"check AE_PIPELINE_DATA, {remedy}$"):
        ObjectStore("s3://latents/plain-http").read("head.json")
