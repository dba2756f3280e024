"""A page of another site, in the browser of a user who has the cookie of all three servers, against each of them."""

import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from benchmarks import hostile
from benchmarks.hostile import LAUNCH, state
from benchmarks.servers import Servers, running_servers
from tests.support.missing import CHROMIUM, needs_chromium

playwright = pytest.importorskip("playwright.sync_api", reason="pages in a browser: pip install '.[dev]'")
pytestmark = [pytest.mark.slow, needs_chromium]

# Each attempt ends with what it could read, or null. Changes are counted on the servers afterwards.
ATTACK = """
async ([target, path, launch]) => {
  const url = target + path, won = [], body = JSON.stringify({query: launch, name: "stolen"});
  const within = (promise) => Promise.race([promise, new Promise((stop) => setTimeout(() => stop(null), 2000))]);
  const read = async (name, options, address = url) => {
    try {
      const response = await within(fetch(address, {credentials: "include", ...options}));
      if (response && response.type !== "opaque" && response.ok) {
        won.push(`${name} read ${(await response.text()).length}`);
      }
    } catch {}
  };
  const query = url + "?query=" + encodeURIComponent(launch);
  await read("get", {});
  await read("get query", {}, query);
  await read("get no-cors", {mode: "no-cors"}, query);
  await read("no referrer", {referrerPolicy: "no-referrer", mode: "no-cors"}, query);
  for (const method of ["POST", "PUT", "PATCH", "DELETE"]) {
    await read(method + " json", {method, body, headers: {"Content-Type": "application/json"}});
  }
  for (const kind of ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]) {
    await read("post " + kind, {method: "POST", body, mode: "no-cors", headers: {"Content-Type": kind}});
    await read("post query " + kind, {method: "POST", body, mode: "no-cors", headers: {"Content-Type": kind}}, query);
  }
  await read("blob", {method: "POST", mode: "no-cors", body: new Blob([body], {type: "text/plain"})});
  await read("form data", {method: "POST", mode: "no-cors", body: new FormData()}, query);
  await read("token", {headers: {Authorization: "Bearer guessed"}});
  navigator.sendBeacon(query, body);
  const element = (name, attributes) => within(new Promise((done) => {
    const made = Object.assign(document.createElement(name), attributes);
    made.onload = () => { done(made); };
    made.onerror = () => done(null);
    document.body.append(made);
  }));
  if (await element("img", {src: query})) won.push("img");
  if (await element("script", {src: query})) won.push("script");
  if (await element("link", {rel: "stylesheet", href: query})) won.push("stylesheet");
  const frame = await element("iframe", {src: url});
  try { if (frame && frame.contentDocument && frame.contentDocument.body.textContent) won.push("frame"); } catch {}
  for (const enctype of ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]) {
    const inner = document.createElement("iframe");
    inner.name = enctype;
    document.body.append(inner);
    const form = document.createElement("form");
    Object.assign(form, {method: "post", enctype, action: query, target: enctype});
    form.append(Object.assign(document.createElement("input"), {name: body, value: ""}));
    document.body.append(form);
    form.submit();
  }
  const opened = await within(new Promise((done) => {
    const socket = new WebSocket(url.replace("http", "ws"), "graphql-ws");
    socket.onopen = () => done(true);
    socket.onerror = socket.onclose = () => done(false);
  }));
  if (opened) won.push("websocket");
  const events = await within(new Promise((done) => {
    const source = new EventSource(url, {withCredentials: true});
    source.onopen = () => done(true);
    source.onerror = () => { source.close(); done(false); };
  }));
  if (events) won.push("event source");
  await new Promise((done) => setTimeout(done, 500));
  return won;
}
"""

PATHS = {
    "dagster": ["/graphql", "/server_info", "/"],
    "mlflow": ["/ajax-api/2.0/mlflow/experiments/create", "/ajax-api/2.0/mlflow/experiments/search?max_results=9", "/"],
    "data": ["/reports/flights/report.html", "/"],
}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    root = tmp_path_factory.mktemp("ui")
    hostile.prepare(root)
    report = root / "data" / "reports" / "flights" / "report.html"
    report.write_text("<!doctype html><title>Report</title><p id=p>secret rows<script>p.dataset.ran = 1</script>")
    (report.parent / "days").mkdir()
    (report.parent / "days" / "2013-01-01.html").write_text("<title>Day</title>")
    with running_servers(root) as running:
        yield running


@pytest.fixture(scope="module")
def evil() -> Iterator[int]:
    """The port of a server with an empty page that lets every origin read it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Access-Control-Allow-Origin", self.headers.get("Origin", "*"))
            self.send_header("Access-Control-Allow-Credentials", "true")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>Kittens</title>")

        do_POST = do_PUT = do_GET

        def do_OPTIONS(self) -> None:
            self.send_response(204)
            self.send_header("Access-Control-Allow-Origin", self.headers["Origin"])
            self.send_header("Access-Control-Allow-Credentials", "true")
            self.send_header("Access-Control-Allow-Headers", "content-type")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    names = "MAP evil.test 127.0.0.1, MAP rebound.test 127.0.0.1"
    with playwright.sync_playwright() as driver:
        options = ["--no-sandbox", f"--host-resolver-rules={names}", "--disable-features=LocalNetworkAccessChecks"]
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def context(browser: Any, servers: Servers) -> Iterator[Any]:
    """The windows of a user who opened all printed addresses."""
    context = browser.new_context()
    page = context.new_page()
    for name in ("Dagster", "MLflow", "Report"):
        page.goto(servers.printed[name])
        assert "token" not in page.url
    assert {cookie["sameSite"] for cookie in context.cookies()} == {"Strict"}
    page.close()
    yield context
    context.close()


def test_no_attack_over_http_succeeds(servers: Servers) -> None:
    rows = hostile.attack(servers)
    assert len(rows) == len(hostile.ATTACKS) + 1 >= 31
    assert [row for row in rows if not row["right"]] == []


@pytest.mark.parametrize("name", ["dagster", "mlflow", "data"])
@pytest.mark.parametrize("host", ["evil.test", "127.0.0.1", "localhost"])
def test_a_page_of_another_origin_reads_and_changes_nothing(
    servers: Servers, context: Any, evil: int, host: str, name: str
) -> None:
    before = state(servers)
    page = context.new_page()
    page.goto(f"http://{host}:{evil}/")
    won = [hit for path in PATHS[name] for hit in page.evaluate(ATTACK, [servers.origin(name), path, LAUNCH])]
    page.close()
    assert won == []
    assert state(servers) == before


@pytest.mark.parametrize("name", ["dagster", "mlflow", "data"])
@pytest.mark.parametrize("host", ["rebound.test", "localhost"])
def test_a_page_under_a_rebound_name_reads_and_changes_nothing(
    servers: Servers, context: Any, host: str, name: str
) -> None:
    """The name belonged to another server when the page came, so the page has the same origin as the server."""
    before = state(servers)
    page = context.new_page()
    origin = f"http://{host}:{servers.ports[name]}"
    page.route(f"{origin}/trap", lambda route: route.fulfill(body="<!doctype html>", content_type="text/html"))
    page.goto(f"{origin}/trap")
    won = [hit for path in PATHS[name] for hit in page.evaluate(ATTACK, [origin, path, LAUNCH])]
    page.close()
    assert won == []
    assert state(servers) == before


@pytest.mark.parametrize("name", ["dagster", "mlflow", "data"])
def test_a_page_in_a_sandbox_reads_and_changes_nothing(servers: Servers, context: Any, evil: int, name: str) -> None:
    before = state(servers)
    page = context.new_page()
    page.goto(f"http://evil.test:{evil}/")
    page.set_content('<iframe sandbox="allow-scripts allow-forms" srcdoc="<body></body>"></iframe>')
    frame = page.frames[-1]
    frame.wait_for_load_state()
    won = [hit for path in PATHS[name] for hit in frame.evaluate(ATTACK, [servers.origin(name), path, LAUNCH])]
    page.close()
    assert won == []
    assert state(servers) == before


def test_opening_an_address_with_a_mutation_launches_nothing(servers: Servers, context: Any, evil: int) -> None:
    before = state(servers)
    page = context.new_page()
    page.goto(f"http://evil.test:{evil}/")
    address = f"{servers.origin('dagster')}/graphql?query={quote(LAUNCH)}"
    page.set_content(f'<a id=link href="{address}">Kittens</a>')
    page.click("#link")
    page.wait_for_load_state()
    page.wait_for_timeout(1_000)
    assert "POST only" in page.content()
    page.goto(address)
    assert "POST only" in page.content()
    page.close()
    assert state(servers) == before


def test_the_attempts_succeed_on_a_server_without_a_guard(context: Any, evil: int) -> None:
    page = context.new_page()
    page.goto(f"http://evil.test:{evil}/")
    won = page.evaluate(ATTACK, [f"http://localhost:{evil}", "/graphql", LAUNCH])
    page.close()
    assert {"get read 37", "get query read 37", "POST json read 37"} <= set(won)


class TestOwnPages:
    """The servers' own pages work, without an error on the console."""

    @pytest.fixture
    def page(self, context: Any) -> Iterator[Any]:
        page = context.new_page()
        page.problems = []
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
        yield page
        page.close()

    def test_dagster_shows_the_graph_and_listens_to_events(self, servers: Servers, page: Any) -> None:
        with page.expect_websocket() as opened:
            page.goto(f"{servers.origin('dagster')}/locations/ae_pipeline/asset-groups/flights/lineage")
        socket = opened.value
        page.wait_for_selector("text=latent_features")
        page.wait_for_timeout(2_000)
        assert not socket.is_closed()
        assert page.problems == []

    def test_dagster_launches_a_run_from_its_own_page(self, servers: Servers, page: Any) -> None:
        runs, _ = state(servers)
        page.goto(f"{servers.origin('dagster')}/runs")
        answer = page.evaluate(
            """async (query) => (await fetch("/graphql", {method: "POST", body: JSON.stringify({query}),
            headers: {"Content-Type": "application/json"}})).json()""",
            LAUNCH.replace("flights_rollback", "flights_mark").replace('"{}"', json.dumps(_marked_day())),
        )
        assert answer["data"]["launchRun"]["__typename"] == "LaunchRunSuccess", answer
        assert state(servers)[0] == runs + 1
        page.wait_for_selector("text=flights_mark")
        assert page.problems == []

    def test_the_launchpad_refuses_a_rollback_without_version_and_reason(self, servers: Servers, page: Any) -> None:
        """What the launchpad shows first cannot be launched, and it says what to set."""
        runs, _ = state(servers)
        page.goto(f"{servers.origin('dagster')}/locations/ae_pipeline/jobs/flights_rollback/playground/setup")
        page.click("button:has-text('Launch run'):not([disabled])")
        page.wait_for_selector("text=there is no version 0; choose a registered version. a rollback needs a reason")
        assert state(servers)[0] == runs

    def test_mlflow_lists_runs(self, servers: Servers, page: Any) -> None:
        page.goto(f"{servers.origin('mlflow')}/#/experiments/0/runs")
        page.wait_for_selector("text=Default")
        page.wait_for_timeout(2_000)
        # MLflow asks for a user, which it has only with accounts, and watches its own size.
        own = ("status of 404", "ResizeObserver")
        assert [problem for problem in page.problems if not any(each in problem for each in own)] == []

    def test_a_report_runs_its_scripts_and_links_to_its_days(self, servers: Servers, page: Any) -> None:
        page.goto(f"{servers.origin('data')}/reports/flights/report.html")
        assert page.get_attribute("#p", "data-ran") == "1"
        assert page.problems == []
        page.evaluate("document.body.innerHTML += '<a id=day href=days/2013-01-01.html>day</a>'")
        page.click("#day")
        page.wait_for_function("document.title === 'Day'")


def _marked_day() -> str:
    """Return the run config of a mark of a day, which nothing refuses before the run starts."""
    mark = {"kind": "day", "subject": "2013-02-08", "state": "known", "who": "Ada"}
    return json.dumps({"ops": {"flights__mark": {"config": mark}}})
