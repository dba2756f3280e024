"""Values of secrets in the environment are in no file that a project writes, whatever happens to it."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from ae_pipeline.definitions import defs
from ae_pipeline.lifecycle.alerts import raise_without_lock
from ae_pipeline.orchestration.assets.champion import ChampionConfig
from ae_pipeline.orchestration.failures import failure_alert
from ae_pipeline.orchestration.jobs import rollback_run_config
from ae_pipeline.orchestration.plain_config import plain_schema
from ae_pipeline.orchestration.resources import Workspace
from ae_pipeline.registry.names import GATE_TAG
from ae_pipeline.registry.versions import TrackedVersion
from tests.support.served import Versions
from tests.support.shop import ATTRIBUTES, DAYS, Shop, orders_csv, published_shop

pytestmark = pytest.mark.slow

SECRETS = {
    "ORDERS_WEBHOOK": "token-8c1f0e6d2b",
    "ORDERS_SIGNING": "signing-5d07a91c3e",
    "ORDERS_DATABASE": "postgresql://reader:password-77b2e0@db.internal/orders",
    "AE_PIPELINE_UI_TOKEN": "ui-token-41c9d2e8b7f0",
}
GATES = {1: "rejected: loss_fell", 2: "passed"}
"""Versions of a model store, and what the gate said."""

MARK = {"kind": "day", "subject": "2013-02-08", "state": "known", "who": "Ada"}
PARTS = ("token-8c1f0e6d2b", "signing-5d07a91c3e", "password-77b2e0", "ui-token-41c9d2e8b7f0")


class _Handler(http.server.BaseHTTPRequestHandler):
    """Refuses every second post, so that alerts are queued too."""

    count = 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        _Handler.count += 1
        self.send_response(302 if _Handler.count % 2 else 204)
        self.send_header("Location", self.path)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def shop(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/orders/{SECRETS['ORDERS_WEBHOOK']}"
        for name, value in {**SECRETS, "ORDERS_WEBHOOK": address}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("ae_pipeline.monitoring.alerts._PAUSE_SECONDS", 0.0)
        alerts = {**ATTRIBUTES["alerts"], "webhook": "ORDERS_WEBHOOK", "webhook_secret": "ORDERS_SIGNING"}
        yield from published_shop(tmp_path_factory, {**ATTRIBUTES, "alerts": alerts}, DAYS[:-1])
        server.shutdown()


def written(*folders: Path) -> Iterator[tuple[Path, bytes]]:
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                yield path, path.read_bytes()


def _rollback(shop: Shop, **settings: object) -> dg.ExecuteInProcessResult:
    config = rollback_run_config(shop.config, ChampionConfig(version=1, why="x"))
    config["ops"]["orders__champion"]["config"] |= settings
    job = shop.defs.resolve_job_def("orders_rollback")
    return job.execute_in_process(run_config=config, instance=shop.instance, raise_on_error=False)


def test_no_secret_is_written_by_any_run(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    shop.land(DAYS[-1], orders_csv(DAYS[-1]).replace(",DE,", ",DE,9999"))
    assert shop.run("day", DAYS[-1]).success  # a day over its budget: an alert
    shop.land(DAYS[-2], orders_csv(DAYS[-2]).replace(",DE,", ",DE,many"))
    assert shop.run("ingest", DAYS[-2]).success  # rows in quarantine: another one
    assert shop.run("train").success
    for name in SECRETS:
        for field in ("why", "who", "version", "even_if_rejected"):
            with pytest.raises(dg.DagsterInvalidConfigError):
                _rollback(shop, **{field: {"env": name}})
    failed = _rollback(shop, version=99, why="${ORDERS_WEBHOOK} {env: ORDERS_DATABASE}")
    assert not failed.success
    alert = failure_alert(failed.dagster_run, "no version 99", shop.paths)
    assert alert is not None
    raise_without_lock(alert, shop.dataset)
    assert _Handler.count >= 4
    home = Path(shop.instance.root_directory)
    files = dict(written(shop.root, home))
    names = {path.name for path in files}
    assert {"report.html", "summary.json", "orders.jsonl", "orders.alerts.jsonl", "mlflow.db", "bundle.json"} <= names
    assert any(name.endswith(".db") for name in names)
    leaks = [(path.name, part) for path, content in files.items() for part in PARTS if part.encode() in content]
    assert leaks == []
    assert not [part for part in PARTS if part in caplog.text]
    for run in shop.instance.get_runs():
        for entry in shop.instance.all_logs(run.run_id):
            assert not [part for part in PARTS if part in str(entry)]


def test_the_job_of_a_rollback_links_to_the_versions() -> None:
    description = defs().resolve_job_def("flights_rollback").description or ""
    assert "[Versions](http://127.0.0.1:3001/versions/flights)" in description


def test_no_field_of_our_run_config_resolves_the_environment() -> None:
    definitions = defs()
    found = []
    for job in ("flights_rollback", "flights_mark", "flights_train", "flights_intake", "flights_day"):
        schema = definitions.resolve_job_def(job).run_config_schema.run_config_schema_type
        found += [path for path in _sources(schema, ()) if "io_manager" not in path]  # nothing is stored with it
    assert found == []


def test_a_schema_has_all_fields_of_its_model() -> None:
    schema = plain_schema(ChampionConfig)
    assert {name: field.is_required for name, field in schema.items()} == dict.fromkeys(
        ChampionConfig.model_fields, False
    )
    assert schema["why"].description == ChampionConfig.model_fields["why"].description


@pytest.mark.parametrize(
    ("job", "op", "config", "message"),
    [
        ("rollback", "champion", {"version": 0}, "choose a registered version. a rollback needs a reason"),
        ("rollback", "champion", {"version": 1, "why": " "}, "a rollback needs a reason"),
        ("rollback", "champion", {"version": 1}, "a rollback needs a reason.*Versions of 'flights': 2 .serves, passed"),
        (
            "rollback",
            "champion",
            {"version": 9, "why": "a typing error"},
            "'flights' has no version 9 that can serve; choose among 1, 2. Versions of 'flights': "
            r"2 \(serves, passed\), 1 \(rejected: loss_fell\)",
        ),
        ("rollback", "champion", {"version": 1, "why": "a test"}, "version 1 of 'flights' was rejected: loss_fell"),
        ("mark", "mark", {**MARK, "who": ""}, "who: String should have at least 1 character"),
        ("mark", "mark", {**MARK, "state": "fine"}, "state not in enum type MarkState got fine"),
        (
            "mark",
            "mark",
            {**MARK, "note": {"env": "HOME"}},
            "Invalid scalar at path root:ops:flights__mark:config:note",
        ),
    ],
)
def test_a_launch_without_what_it_needs_is_refused(
    job: str, op: str, config: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing runs: Dagster checks the config when it makes the plan of the run."""
    versions = [TrackedVersion("flights", number, "run", {GATE_TAG: gate}) for number, gate in GATES.items()]
    monkeypatch.setattr(Workspace, "tracker", lambda _: Versions(versions, serving=2))
    resolved = defs().resolve_job_def(f"flights_{job}")
    with pytest.raises(dg.DagsterInvalidConfigError, match=message):
        resolved.execute_in_process(run_config={"ops": {f"flights__{op}": {"config": config}}})


def test_a_launch_is_checked_against_its_own_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Versions([TrackedVersion("flights", 1, "run", {GATE_TAG: GATES[1]})], serving=1)
    monkeypatch.setattr(Workspace, "tracker", lambda _: store)
    job, config = defs().resolve_job_def("shuttle_rollback"), {"version": 9, "why": "a typing error"}
    with pytest.raises(dg.DagsterInvalidConfigError, match="'shuttle' has no version 9"):
        job.execute_in_process(run_config={"ops": {"shuttle__champion": {"config": config}}})


def test_a_launch_does_not_wait_for_a_slow_model_store(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr("ae_pipeline.orchestration.assets.champion._LAUNCH_SECONDS", 0.05)
    monkeypatch.setattr(Workspace, "tracker", lambda _: (released.wait(30), Versions([], serving=1))[1])
    job, config = defs().resolve_job_def("flights_rollback"), {"version": 9}
    try:
        with pytest.raises(dg.DagsterInvalidConfigError, match="a rollback needs a reason, which the history keeps"):
            job.execute_in_process(run_config={"ops": {"flights__champion": {"config": config}}})
    finally:
        released.set()


def _sources(kind: object, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the paths of the fields whose `{env: NAME}` Dagster resolves."""
    if "Source" in str(getattr(kind, "key", "")):
        yield path
        return
    for name, field in (getattr(kind, "fields", None) or {}).items():
        yield from _sources(field.config_type, (*path, name))
    for part in ("inner_type", "scalar_type", "non_scalar_type"):
        if (inner := getattr(kind, part, None)) is not None:
            yield from _sources(inner, path)
