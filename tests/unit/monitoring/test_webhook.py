"""Posts to a webhook: redirects, deadlines, bounds, signatures, and no secret in any message."""

import base64
import contextlib
import hashlib
import hmac
import http.server
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.monitoring import alerts as alerting
from ae_pipeline.monitoring.alerts import (
    MAX_FAILURES,
    Alert,
    AlertEvent,
    alerts_of,
    post_due_alerts,
    raise_alert,
)
from ae_pipeline.monitoring.webhook import PostResult, is_http_url, post_json, sign
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.jsonl import add_line
from ae_pipeline.storage.paths import DatasetPaths
from tests.support.sockets import read_request

BODY = b'{"text": "hello"}'


@dataclass
class Received:
    """What a server received, and how it answers.

    Attributes:
        requests: Method, path, headers and body of each request.
        answers: Status and location by path.
        port: Port of the server.
    """

    requests: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    answers: dict[str, tuple[int, str]] = field(default_factory=dict)
    port: int = 0

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def arrived(self) -> list[tuple[str, str, bytes]]:
        """Return method, path and body of the requests that were not redirected."""
        final = [request for request in self.requests if request[1] not in self.answers]
        return [(method, path, body) for method, path, _, body in final]


@pytest.fixture
def server() -> Iterator[Received]:
    received = Received()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            received.requests.append((self.command, self.path, dict(self.headers), body))
            status, location = received.answers.get(self.path, (204, ""))
            self.send_response(status)
            if location:
                self.send_header("Location", location)
            self.end_headers()

        do_GET = do_POST

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        received.port = running.server_port
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield received
        running.shutdown()


@contextlib.contextmanager
def raw_server(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """Run a server that answers each connection with a function, and yield its address."""

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=handle, args=(connection,), daemon=True).start()

    def handle(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            answer(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/hook?token=secret"


class TestRedirects:
    @pytest.mark.parametrize("status", [307, 308])
    def test_method_and_body_are_kept(self, server: Received, status: int) -> None:
        server.answers = {"/old": (status, "/new?x=1"), "/new?x=1": (status, server.url("/last"))}
        assert post_json(server.url("/old"), BODY, "m") == PostResult(True)
        assert server.arrived() == [("POST", "/last", BODY)]
        assert server.requests[-1][2]["Content-Type"] == "application/json"

    @pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 305])
    def test_a_redirect_that_loses_the_body_is_a_failure(self, server: Received, status: int) -> None:
        server.answers = {"/old?token=secret": (status, "/new?token=secret")}
        result = post_json(server.url("/old?token=secret"), BODY, "m")
        reason = f"HTTP status {status}; set the variable to the address that it redirects to"
        assert result == PostResult(False, reason)
        assert server.arrived() == []

    def test_a_loop_ends(self, server: Received) -> None:
        server.answers = {"/loop": (307, "/loop")}
        assert post_json(server.url("/loop"), BODY, "m") == PostResult(False, "more than 3 redirects")
        assert len(server.requests) == 4

    @pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/", "javascript:alert(1)", "data:,x"])
    def test_other_schemes_are_refused(self, server: Received, location: str) -> None:
        server.answers = {"/old": (307, location)}
        assert not post_json(server.url("/old"), BODY, "m").accepted

    @pytest.mark.parametrize("location", ["", "http://[", "http://:99999999/", "//", "\x7f"])
    def test_an_invalid_address_is_a_failure(self, server: Received, location: str) -> None:
        server.answers = {"/old": (308, location)}
        assert not post_json(server.url("/old"), BODY, "m").accepted
        assert server.arrived() == []

    @pytest.mark.parametrize("status", [100, 199, 400, 401, 404, 410, 413, 429, 500, 503, 599])
    def test_other_statuses_are_failures(self, server: Received, status: int) -> None:
        server.answers = {"/": (status, "")}
        assert not post_json(server.url("/"), BODY, "m", deadline=2).accepted


def _never(connection: socket.socket) -> None:
    read_request(connection)
    time.sleep(30)


def _trickle_head(connection: socket.socket) -> None:
    read_request(connection)
    for byte in b"HTTP/1.1 200 OK\r\nX-Long: " + b"a" * 10_000:
        connection.sendall(bytes([byte]))
        time.sleep(0.05)


def _endless_head(connection: socket.socket) -> None:
    read_request(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        connection.sendall(b"X-Header: " + b"a" * 1_000 + b"\r\n")


def _does_not_read(connection: socket.socket) -> None:
    time.sleep(30)


def _many_interim(connection: socket.socket) -> None:
    read_request(connection)
    while True:
        connection.sendall(b"HTTP/1.1 102 Processing\r\n\r\n")
        time.sleep(0.01)


class TestBounds:
    @pytest.mark.parametrize("answer", [_never, _trickle_head, _does_not_read, _many_interim])
    def test_the_whole_post_has_a_deadline(self, answer: Callable[[socket.socket], None]) -> None:
        with raw_server(answer) as url:
            start = time.monotonic()
            result = post_json(url, BODY * 500_000, "m", deadline=0.5)
        assert time.monotonic() - start < 3
        assert result == PostResult(False, "no answer in 0 s")

    def test_a_head_without_end_is_refused(self) -> None:
        with raw_server(_endless_head) as url:
            result = post_json(url, BODY, "m", deadline=5)
        assert result == PostResult(False, "RemoteProtocolError")

    def test_a_body_without_end_is_not_read(self) -> None:
        sent = 0

        def endless(connection: socket.socket) -> None:
            nonlocal sent
            read_request(connection)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n")
            while True:
                sent += connection.send(b"a" * 65_536)

        with raw_server(endless) as url:
            assert post_json(url, BODY, "m") == PostResult(True)
        assert sent < 50_000_000

    @pytest.mark.parametrize("text", [b"hello\n", b"", b"\x00\xff", b"HTTP/1.1 2OO OK\r\n\r\n"])
    def test_an_answer_without_http_is_a_failure(self, text: bytes) -> None:
        def answer(connection: socket.socket) -> None:
            read_request(connection)
            connection.sendall(text)

        with raw_server(answer) as url:
            assert post_json(url, BODY, "m", deadline=5).reason == "RemoteProtocolError"


class TestSecrets:
    def test_no_message_contains_the_address(self, server: Received, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        server.answers = {"/a?token=secret": (302, "http://secret.example"), "/b?token=secret": (307, "http://[secret")}
        urls = [server.url(path) for path in ("/ok?token=secret", "/a?token=secret", "/b?token=secret")]
        urls += ["http://secret.invalid/x", "http://127.0.0.1:9/secret", "https://127.0.0.1:9/secret", "http://[secret"]
        results = [post_json(url, BODY, "m") for url in [*urls, f"https://127.0.0.1:{server.port}/secret"]]
        assert [result.accepted for result in results] == [True] + [False] * 7
        text = caplog.text + "".join(result.reason for result in results)
        for part in ("secret", "127.0.0.1", str(server.port)):
            assert part not in text

    @pytest.mark.parametrize(
        ("text", "is_valid"),
        [
            ("https://host/x", True),
            ("http://[::1]:8/x", True),
            ("", False),
            ("host/x", False),
            ("file:///x", False),
            ("http://", False),
            ("http://host:x/", False),
            ("http://host:99999/", False),
            ("http://host/\nx", False),
            ("http://[", False),
        ],
    )
    def test_what_an_address_is(self, text: str, is_valid: bool) -> None:
        assert is_http_url(text) == is_valid


class TestSignature:
    def test_a_published_example_verifies(self) -> None:
        """The example of the specification Standard Webhooks."""
        headers = sign(
            b'{"test": 2432232314}',
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1614265330,
        )
        assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        assert headers["webhook-timestamp"] == "1614265330"

    def test_a_receiver_can_verify_a_post(self, server: Received) -> None:
        assert post_json(server.url("/"), BODY, "msg_1", "a shared secret").accepted
        ((_, _, headers, body),) = server.requests
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        expected = base64.b64encode(hmac.new(b"a shared secret", signed, hashlib.sha256).digest()).decode()
        assert headers["webhook-signature"] == f"v1,{expected}"
        assert abs(int(headers["webhook-timestamp"]) - time.time()) < 30
        assert headers["webhook-id"] == "msg_1"

    def test_without_a_secret_there_is_no_signature(self, server: Received) -> None:
        assert post_json(server.url("/"), BODY, "m").accepted
        assert not [name for name in server.requests[0][2] if name.startswith("webhook")]

    def test_an_unusable_secret_sends_nothing(self, server: Received) -> None:
        result = post_json(server.url("/"), BODY, "m", "whsec_not base64!")
        assert result == PostResult(False, "the secret after whsec_ is not base64")
        assert server.requests == []


class TestQueue:
    @pytest.fixture
    def dataset(self, tmp_path: Path, server: Received, monkeypatch: pytest.MonkeyPatch) -> Dataset:
        monkeypatch.setenv("HOOK", server.url("/hook"))
        monkeypatch.setattr(alerting, "_PAUSE_SECONDS", 0.0)
        alerts = {"webhook": "HOOK"}
        config = PipelineConfig.model_validate({"dataset": "orders", "identity": ("id",), "alerts": alerts})
        return Dataset(config, DatasetPaths(tmp_path, "orders"))

    def _alert(self, key: str = "a", **values: object) -> Alert:
        return replace(Alert(event=AlertEvent.RUN_FAILED, key=key, message=f"message {key}"), **values)  # type: ignore[arg-type]

    def _stored(self, dataset: Dataset) -> list[tuple[str, bool | None, int]]:
        return [(alert.key, alert.delivered, alert.failures) for alert in alerts_of(dataset.paths)]

    def test_a_failed_alert_waits_longer_each_time(self, dataset: Dataset, server: Received) -> None:
        server.answers = {"/hook": (503, "")}
        assert raise_alert(self._alert(), dataset)
        assert (len(server.requests), self._stored(dataset)) == (3, [("a", False, 1)])
        assert not post_due_alerts(dataset)  # a minute has not passed
        for failures, minutes in ((1, 1), (2, 2), (5, 16), (9, 256), (12, 360)):
            waited = self._alert(delivered=False, failures=failures, tried_at=_ago(minutes=minutes - 0.5))
            assert not waited.is_due
            assert replace(waited, tried_at=_ago(minutes=minutes + 0.5)).is_due

    def test_a_later_run_delivers_it(self, dataset: Dataset, server: Received) -> None:
        queued = self._alert(delivered=False, failures=3, reason="HTTP status 503", tried_at=_ago(minutes=5))
        add_line(dataset.paths.alerts, queued.record())
        assert post_due_alerts(dataset)
        (stored,) = alerts_of(dataset.paths)
        assert (stored.delivered, stored.reason) == (True, "")
        assert not post_due_alerts(dataset)
        body = json.loads(server.requests[0][3])
        assert body["text"] == "orders: message a"
        assert not {"failures", "reason", "tried_at", "delivered", "subjects"} & body.keys()

    def test_after_too_many_failures_it_is_a_dead_letter(self, dataset: Dataset, server: Received) -> None:
        server.answers = {"/hook": (500, "")}
        add_line(dataset.paths.alerts, self._alert(delivered=False, failures=MAX_FAILURES - 1).record())
        assert post_due_alerts(dataset)
        (dead,) = alerts_of(dataset.paths)
        assert (dead.is_dead, dead.is_queued, dead.failures, dead.reason) == (True, False, 15, "HTTP status 500")
        server.answers = {}
        assert not post_due_alerts(dataset)
        assert raise_alert(self._alert("b"), dataset)
        assert [alert.delivered for alert in alerts_of(dataset.paths)] == [False, True]

    def test_one_alert_that_is_refused_blocks_no_other(
        self, dataset: Dataset, server: Received, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for key in "abc":
            add_line(dataset.paths.alerts, self._alert(key, delivered=False).record())
        results = iter([PostResult(False, "HTTP status 413"), PostResult(True), PostResult(True)])
        monkeypatch.setattr(alerting, "post", lambda *_, **__: next(results))
        assert post_due_alerts(dataset)
        assert [alert.delivered for alert in alerts_of(dataset.paths)] == [False, True, True]

    def test_a_server_that_is_down_is_asked_once_in_a_run(self, dataset: Dataset, server: Received) -> None:
        server.answers = {"/hook": (503, "")}
        for key in "abc":
            add_line(dataset.paths.alerts, self._alert(key, delivered=False).record())
        assert post_due_alerts(dataset)
        assert len(server.requests) == 1

    def test_a_redirect_is_not_taken_for_delivery(self, dataset: Dataset, server: Received) -> None:
        server.answers = {"/hook": (302, "/login")}
        assert raise_alert(self._alert(), dataset)
        assert self._stored(dataset) == [("a", False, 1)]
        assert server.arrived() == []

    def test_without_its_secret_nothing_is_sent(
        self, dataset: Dataset, server: Received, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        signed = dataset.config.alerts.model_copy(update={"webhook_secret": "HOOK_SECRET"})
        dataset = replace(dataset, config=dataset.config.model_copy(update={"alerts": signed}))
        assert raise_alert(self._alert("a"), dataset)
        assert server.requests == []
        assert "HOOK_SECRET of alerts.webhook_secret is empty" in caplog.text
        monkeypatch.setenv("HOOK_SECRET", "a shared secret")
        assert raise_alert(self._alert("b"), dataset)
        signatures = [headers["webhook-signature"] for _, _, headers, _ in server.requests]
        assert len(set(signatures)) == len(signatures) == 2
        assert "a shared secret" not in dataset.paths.alerts.read_text() + caplog.text

    def test_infinite_figures_are_valid_json(self, dataset: Dataset, server: Received) -> None:
        assert raise_alert(self._alert(figures={"a": float("nan"), "b": float("inf"), "c": 1.0}), dataset)
        text = server.requests[0][3].decode()
        assert json.loads(text, parse_constant=pytest.fail)["figures"] == {"a": None, "b": None, "c": 1.0}


def _ago(minutes: float) -> str:
    import datetime as dt

    return (dt.datetime.now(dt.UTC) - dt.timedelta(minutes=minutes)).isoformat()


def test_the_report_counts_dead_letters_and_says_why() -> None:
    from ae_pipeline.reports.page import page_environment

    def alert(key: str, failures: int) -> Alert:
        event = AlertEvent.RUN_FAILED
        reason = "HTTP status <b>500</b>" if failures else ""
        return Alert(event=event, key=key, message=f"message {key}", delivered=False, failures=failures, reason=reason)

    alerts = [alert("a", MAX_FAILURES), alert("b", 2), *(alert(str(index), 0) for index in range(10))]
    page = page_environment().get_template("operations.html.j2").render(drift=[], marks=[], alerts=alerts)
    assert "<b>1</b> of 12 alerts did not reach the webhook and is not posted again" in page
    assert "Last reason: HTTP status &lt;b&gt;500&lt;/b&gt;. The first of them:" in page
    assert ", message a</p>" in page
    recent = page_environment().get_template("operations.html.j2").render(drift=[], marks=[], alerts=alerts[:2])
    assert f"not delivered, given up after {MAX_FAILURES} runs: HTTP status" in recent
    assert "not delivered: HTTP status" in recent
