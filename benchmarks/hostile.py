"""Hostile files, and attacks on the running servers and on webhooks, with the expected answer of each.

Each hostile file of `benchmarks.hostile_inputs` is read in a process of its own, whose time and memory are measured.

`ae-pipeline ui` runs as a process with a report, an internal file, a link and a FIFO in its data folder. Each case
sends one hostile request or starts one hostile server. It names the right answers; all others count as wrong.
"""

import argparse
import http.client
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

from ae_pipeline.monitoring.webhook import post_json
from benchmarks.hostile_inputs import run_inputs
from benchmarks.report import Row, format_table, write_report
from benchmarks.servers import Servers, running_servers

MAX_SECONDS = 10.0
"""Time after which a case counts as wrong."""

_RUN_CONFIG = {"ops": {"flights__champion": {"config": {"version": 1, "why": {"env": "HOME"}}}}}

_MUTATION = """mutation { launchRun(executionParams: {selector: {repositoryLocationName: "ae_pipeline", \
repositoryName: "__repository__", pipelineName: "flights_rollback"}, runConfigData: %s, mode: "default"}) \
{ __typename } }"""

LAUNCH = _MUTATION % json.dumps("{}")
_GET = f"/graphql?query={quote(LAUNCH)}"
_POST = json.dumps({"query": LAUNCH})
_EXPERIMENT = "/ajax-api/2.0/mlflow/experiments/create"
_PAGE = "/reports/flights/report.html"
_JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Case:
    """A hostile input or request.

    Attributes:
        name: What is tried.
        action: Tries it, and returns the answer.
        expected: Answers that are right.
    """

    name: str
    action: Callable[[Servers], str]
    expected: tuple[str, ...]


def run_cases(cases: Sequence[Case], servers: Servers) -> list[Row]:
    """Run cases and return one row for each, with the answer, whether it is right, and the time."""
    rows: list[Row] = []
    for case in cases:
        start = time.monotonic()
        try:
            answer = case.action(servers)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is not the expected answer
            answer = f"{type(error).__name__}: {error}"
        seconds = time.monotonic() - start
        is_right = answer in case.expected and seconds <= MAX_SECONDS
        rows.append({"case": case.name, "answer": answer, "right": int(is_right), "seconds": round(seconds, 2)})
    return rows


def request(
    server: str,
    path: str,
    method: str = "GET",
    body: str | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    use: str = "cookie",
    own_origin: bool = False,
) -> Callable[[Servers], str]:
    """Return an action that sends a request and returns the status.

    Args:
        server: `dagster`, `mlflow` or `data`.
        path: Path and query.
        method: HTTP method.
        body: Body of the request.
        headers: Headers; Host is the server's own by default.
        use: `cookie` sends the cookie of the user's browser, `token` the token, `nothing` neither.
        own_origin: Whether the request says that it comes from the server's own page.
    """

    def send(servers: Servers) -> str:
        all_headers = dict(headers or {})
        if use == "token":
            all_headers["Authorization"] = f"Bearer {servers.token}"
        elif use == "cookie":
            all_headers["Cookie"] = cookie(servers)
        if own_origin:
            all_headers["Origin"] = servers.origin(server)
        connection = http.client.HTTPConnection("127.0.0.1", servers.ports[server], timeout=MAX_SECONDS)
        connection.request(method, path, body, all_headers)
        response = connection.getresponse()
        response.read()
        return str(response.status)

    return send


def cookie(servers: Servers) -> str:
    """Return the cookie of a browser that opened a printed address."""
    connection = http.client.HTTPConnection("127.0.0.1", servers.ports["data"], timeout=MAX_SECONDS)
    connection.request("GET", f"/?token={servers.token}", headers={"Accept": "text/html"})
    return (connection.getresponse().headers["Set-Cookie"] or "").partition(";")[0]


def _raw(server: str, text: str) -> Callable[[Servers], str]:
    """Return an action that sends bytes and returns the status of the answer; empty if the connection is closed."""

    def send(servers: Servers) -> str:
        filled = text.format(port=servers.ports[server], token=servers.token, cookie=cookie(servers))
        with socket.create_connection(("127.0.0.1", servers.ports[server]), timeout=MAX_SECONDS) as connection:
            connection.sendall(filled.encode("latin-1"))
            return connection.recv(4096).decode("latin-1").partition("\r\n")[0][9:12]

    return send


def _websocket(origin: str, use: str) -> Callable[[Servers], str]:
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec-WebSocket-Protocol": "graphql-ws",
        **({"Origin": origin} if origin else {}),
    }
    return request("dagster", "/graphql", headers=headers, use=use)


def _launch_with_env(servers: Servers) -> str:
    data = servers.graphql(_MUTATION % json.dumps(json.dumps(_RUN_CONFIG)))
    return str(data["launchRun"]["__typename"])


@contextmanager
def _listening(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=_handle, args=(connection, answer), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/hook"


def _handle(connection: socket.socket, answer: Callable[[socket.socket], None]) -> None:
    with connection, suppress(OSError):
        connection.recv(65_536)
        answer(connection)


def _webhook(answer: Callable[[socket.socket], None]) -> Callable[[Servers], str]:
    def post(_: Servers) -> str:
        with _listening(answer) as url:
            result = post_json(url, b'{"text": "alert"}', "msg", deadline=3)
        return "delivered" if result.accepted else result.reason

    return post


def _say(text: str) -> Callable[[socket.socket], None]:
    return lambda connection: connection.sendall(text.encode())


def _trickle(connection: socket.socket) -> None:
    for byte in b"HTTP/1.1 200 OK\r\nX-Long: " + b"a" * 10_000:
        connection.sendall(bytes([byte]))
        time.sleep(0.1)


def _flood(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        connection.sendall(b"X-Header: " + b"a" * 10_000 + b"\r\n")


_SITE = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
_EVIL = {"Origin": "http://evil.example"}
_TEXT = {"Content-Type": "text/plain"}

ATTACKS = (
    Case("mutation by GET, no token", request("dagster", _GET, use="nothing"), ("401",)),
    Case("mutation by GET, cookie", request("dagster", _GET), ("405",)),
    Case("mutation by GET, token", request("dagster", _GET, use="token"), ("405",)),
    Case("mutation by GET, address with token", _raw("dagster", f"GET {_GET}&token={{token}} HTTP/1.1\r\n"
         "Host: 127.0.0.1:{port}\r\n\r\n"), ("405",)),
    Case("mutation by text/plain", request("dagster", "/graphql", "POST", _POST, _TEXT, own_origin=True), ("415",)),
    Case("mutation by a form's query", request("dagster", _GET, "POST", "", own_origin=True), ("415",)),
    Case("mutation from another site", request("dagster", "/graphql", "POST", _POST, {**_JSON, **_EVIL}), ("403",)),
    Case("mutation from another port", request("dagster", "/graphql", "POST", _POST,
         {**_JSON, "Origin": "http://127.0.0.1:1"}), ("403",)),
    Case("mutation from a sandbox", request("dagster", "/graphql", "POST", _POST,
         {**_JSON, "Origin": "null"}), ("403",)),
    Case("mutation without origin", request("dagster", "/graphql", "POST", _POST, _JSON), ("403",)),
    Case("mutation with a guessed token", request("dagster", "/graphql", "POST", _POST,
         {**_JSON, "Authorization": "Bearer 0123456789abcdef"}, use="nothing"), ("401",)),
    Case("secret in the run config", _launch_with_env, ("RunConfigValidationInvalid",)),
    Case("rebound name, Dagster", request("dagster", "/", headers={"Host": "evil.example:3000"}), ("421",)),
    Case("rebound name, MLflow", request("mlflow", "/", headers={"Host": "evil.example"}), ("421",)),
    Case("rebound name, data", request("data", _PAGE, headers={"Host": "127.0.0.1.evil.example"}), ("421",)),
    Case("two names", _raw("dagster", "GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nHost: evil.example\r\n"
         "Cookie: {cookie}\r\n\r\n"), ("400", "421")),
    Case("another name in the request line", _raw("dagster", "GET http://evil.example/ HTTP/1.1\r\n"
         "Host: evil.example\r\nCookie: {cookie}\r\n\r\n"), ("400", "421")),
    Case("preflight", request("dagster", "/graphql", "OPTIONS", headers={**_EVIL,
         "Access-Control-Request-Method": "POST"}), ("403", "405")),
    Case("websocket from another site", _websocket("http://evil.example", "cookie"), ("403",)),
    Case("websocket without origin", _websocket("", "cookie"), ("403",)),
    Case("websocket without token", _websocket("", "nothing"), ("403",)),
    Case("frame on another site", request("dagster", "/", headers={**_SITE, "Sec-Fetch-Dest": "iframe"}), ("403",)),
    Case("MLflow: create from another site", request("mlflow", _EXPERIMENT, "POST", '{"name": "x"}',
         {**_JSON, **_EVIL}), ("403",)),
    Case("MLflow: create by text/plain", request("mlflow", _EXPERIMENT, "POST", '{"name": "x"}', _TEXT,
         own_origin=True), ("415",)),
    Case("MLflow: read without token", request("mlflow", "/ajax-api/2.0/mlflow/experiments/search?max_results=1",
         use="nothing"), ("401",)),
    Case("data: read without token", request("data", _PAGE, use="nothing"), ("401",)),
    Case("data: picture on another site", request("data", _PAGE,
         headers={**_SITE, "Sec-Fetch-Dest": "image"}), ("403",)),
    Case("data: parent folder", request("data", "/reports/%2e%2e/%2e%2e/mlruns/mlflow.db"), ("400",)),
    Case("data: null byte", request("data", f"{_PAGE}%00.png"), ("400",)),
    Case("data: link", request("data", "/reports/flights/link.json"), ("404",)),
    Case("data: FIFO", request("data", "/reports/flights/fifo.json"), ("404",)),
    Case("data: internal file", request("data", "/staging/flights/ledger.json"), ("404",)),
    Case("data: hidden file", request("data", "/reports/flights/.hidden.json"), ("404",)),
    Case("data: long path", request("data", "/reports/" + "a" * 20_000), ("400", "404", "414")),
    Case("data: thousands of ranges", request("data", _PAGE, headers={"Range": "bytes=" + ",".join(["0-"] * 9_000)}),
         ("200", "206", "400", "416", "431")),
    Case("data: no HTTP", _raw("data", "\x00\x01\x02 hello\r\n\r\n"), ("400",)),
    Case("webhook: redirect that loses the body", _webhook(_say("HTTP/1.1 302 Found\r\nLocation: /x\r\n\r\n")),
         ("HTTP status 302; set the variable to the address that it redirects to",)),
    Case("webhook: redirect to a file", _webhook(_say("HTTP/1.1 307 X\r\nLocation: file:///etc/passwd\r\n\r\n")),
         ("HTTP status 307; it redirects to an address without https",)),
    Case("webhook: one byte at a time", _webhook(_trickle), ("no answer in 3 s",)),
    Case("webhook: headers without end", _webhook(_flood), ("RemoteProtocolError",)),
)  # fmt: skip
"""Attacks; none may change or read anything."""


def prepare(root: Path) -> None:
    """Write the files that the attacks on the data folder ask for."""
    reports = root / "data" / "reports" / "flights"
    ledger = root / "data" / "staging" / "flights" / "ledger.json"
    for folder in (reports, ledger.parent):
        folder.mkdir(parents=True)
    (reports / "report.html").write_text("<!doctype html><title>Report</title>")
    for path in (ledger, reports / ".hidden.json", root / "secret.json"):
        path.write_text("{}")
    (reports / "link.json").symlink_to(root / "secret.json")
    os.mkfifo(reports / "fifo.json")


def state(servers: Servers) -> tuple[int, int]:
    """Return how many runs Dagster has, and how many experiments MLflow."""
    runs = servers.graphql("{ runsOrError { ... on Runs { results { runId } } } }")["runsOrError"]["results"]
    search = f"{servers.origin('mlflow')}/ajax-api/2.0/mlflow/experiments/search?max_results=100"
    return len(runs), len(servers.ask(search)["experiments"])


def attack(servers: Servers) -> list[Row]:
    """Run all attacks, then check that none changed anything."""
    initial = str(state(servers))
    unchanged = Case("runs and experiments are unchanged", lambda servers: str(state(servers)), (initial,))
    return run_cases([*ATTACKS, unchanged], servers)


def main() -> int:
    """Run the attacks, print and write the results; return 1 if an answer is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the results")
    parser.add_argument("--only", choices=("files", "attacks"), help="run only the hostile files, or only the attacks")
    chosen = parser.parse_args()
    rows = run_inputs() if chosen.only != "attacks" else []
    if chosen.only != "files":
        with TemporaryDirectory() as folder:
            prepare(Path(folder))
            with running_servers(Path(folder)) as servers:
                rows += attack(servers)
    header = ("case", "answer", "right", "seconds", "megabytes")
    print(format_table(header, [[str(row.get(name, ""))[:100] for name in header] for row in rows]))
    wrong = [row for row in rows if not row["right"]]
    print(f"{len(wrong)} of {len(rows)} wrong")
    write_report(chosen.out, "hostile", rows, ("dagster", "mlflow", "polars", "pyarrow", "starlette", "uvicorn"))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
