"""Alerts: posted to an HTTP server on loopback, stored beside the data, and shown in the report."""

import contextlib
import html
import http.server
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from ae_pipeline.common.errors import StorageError
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.ingestion.ledger import LandedFile
from ae_pipeline.lifecycle.alerts import _quarantine_message
from ae_pipeline.monitoring import alerts as alerting
from ae_pipeline.monitoring.alerts import Alert, AlertEvent, alerts_of, raise_alert
from ae_pipeline.orchestration.failures import belongs_to, failure_alert, failure_reason
from ae_pipeline.orchestration.tags import DATASET_TAG
from ae_pipeline.registry.history import history
from ae_pipeline.reports.page import refresh_operations
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.paths import DatasetPaths
from tests.support.sensors import LOSS_ROSE
from tests.support.shop import ATTRIBUTES, DAYS, Shop, orders_csv, published_shop
from tests.support.sockets import read_request

pytestmark = pytest.mark.slow

VARIABLE = "ORDERS_WEBHOOK"


@dataclass
class Hook:
    """A webhook that records posted alerts, or answers with an error status."""

    address: str = ""
    status: int = 204
    posted: list[dict[str, Any]] = field(default_factory=list)


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    hook = Hook()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.headers["Content-Type"] == "application/json"
            if hook.status < 300:
                hook.posted.append(body)
            self.send_response(hook.status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hook.address = f"http://127.0.0.1:{server.server_port}/orders?token=secret"
    monkeypatch.setenv(VARIABLE, hook.address)
    monkeypatch.setattr(alerting, "_PAUSE_SECONDS", 0.01)
    yield hook
    server.shutdown()


@pytest.fixture
def config() -> PipelineConfig:
    return PipelineConfig.model_validate({"dataset": "orders", "identity": ("id",), "alerts": {"webhook": VARIABLE}})


@pytest.fixture
def paths(tmp_path: Path) -> DatasetPaths:
    return DatasetPaths(tmp_path, "orders")


def _answer_without_http(server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = server.accept()
            read_request(connection)
            connection.sendall(b"hello\n")
            connection.close()


def alert(key: str = "budget 2024-02-10", message: str = "9 of 40 rows of 2024-02-10 are flagged") -> Alert:
    return Alert(event=AlertEvent.OVER_BUDGET, key=key, message=message, run_id="run-1", figures={"rows": 40.0})


def delivered(paths: DatasetPaths) -> list[tuple[str, bool | None]]:
    return [(stored.key, stored.delivered) for stored in alerts_of(paths)]


@pytest.fixture
def dataset(config: PipelineConfig, paths: DatasetPaths) -> Dataset:
    return Dataset(config, paths)


class TestWebhook:
    def test_an_alert_is_posted_as_json_for_chat_programs(
        self, hook: Hook, dataset: Dataset, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert raise_alert(alert(), dataset)
        (posted,) = hook.posted
        assert posted["text"] == "orders: 9 of 40 rows of 2024-02-10 are flagged"
        assert {name: posted[name] for name in ("dataset", "event", "key", "run_id", "figures")} == {
            "dataset": "orders",
            "event": "over_budget",
            "key": "budget 2024-02-10",
            "run_id": "run-1",
            "figures": {"rows": 40.0},
        }
        assert delivered(dataset.paths) == [(alert().key, True)]
        assert caplog.messages == []

    def test_an_alert_with_a_known_key_is_not_raised(self, hook: Hook, dataset: Dataset) -> None:
        assert raise_alert(alert(), dataset)
        assert not raise_alert(alert(message="the same in other words"), dataset)
        assert len(hook.posted) == len(alerts_of(dataset.paths)) == 1

    def test_an_undelivered_alert_is_posted_after_the_next_one(
        self, hook: Hook, dataset: Dataset, caplog: pytest.LogCaptureFixture
    ) -> None:
        hook.status = 500
        assert raise_alert(alert("a"), dataset)
        assert caplog.messages == [
            "the webhook in ORDERS_WEBHOOK did not accept an alert (HTTP status 500); later runs post it again"
        ]
        assert delivered(dataset.paths) == [("a", False)]
        caplog.clear()
        hook.status = 200
        assert raise_alert(alert("b"), dataset)
        assert caplog.messages == []
        assert [posted["key"] for posted in hook.posted] == ["b", "a"]
        assert delivered(dataset.paths) == [("a", True), ("b", True)]
        assert raise_alert(alert("c"), dataset)
        assert len(hook.posted) == 3

    @pytest.mark.parametrize("url", ["", "file:///etc/passwd", "not an address"])
    def test_an_invalid_url_is_reported_without_its_text(
        self, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv(VARIABLE, url)
        assert raise_alert(alert(), dataset)
        assert caplog.messages == [
            "the webhook in ORDERS_WEBHOOK did not accept an alert (the environment variable ORDERS_WEBHOOK of "
            "alerts.webhook contains no URL; set it to a URL that starts with http:// or https://); later runs post it "
            "again"
        ]

    @pytest.mark.parametrize("path", ["[", "[::1/hook", "/to ken=secret", ":port/secret", "/secret\n"])
    def test_an_unusable_url_raises_no_error_and_is_not_logged(
        self, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, path: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(alerting, "_PAUSE_SECONDS", 0.01)
        monkeypatch.setenv(VARIABLE, f"http://127.0.0.1:9{path}".replace(":9[", "["))
        assert raise_alert(alert(), dataset)
        assert len(caplog.messages) == 1
        assert "secret" not in caplog.text + dataset.paths.alerts.read_text()
        assert delivered(dataset.paths) == [(alert().key, False)]

    def test_a_server_without_http_raises_no_error(
        self, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(alerting, "_PAUSE_SECONDS", 0.01)
        with socket.create_server(("127.0.0.1", 0)) as server:
            threading.Thread(target=_answer_without_http, args=(server,), daemon=True).start()
            monkeypatch.setenv(VARIABLE, f"http://127.0.0.1:{server.getsockname()[1]}/hook")
            assert raise_alert(alert(), dataset)
        assert len(caplog.messages) == len(alerts_of(dataset.paths)) == 1

    def test_an_alert_is_stored_before_it_is_posted(
        self, dataset: Dataset, hook: Hook, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def die(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(alerting, "post", die)
        with pytest.raises(KeyboardInterrupt):
            raise_alert(alert("a"), dataset)
        assert delivered(dataset.paths) == [("a", False)]
        monkeypatch.undo()
        monkeypatch.setenv(VARIABLE, hook.address)
        assert raise_alert(alert("b"), dataset)
        assert [posted["key"] for posted in hook.posted] == ["b", "a"]

    def test_an_alert_is_new_if_one_of_its_subjects_is(self, dataset: Dataset, hook: Hook) -> None:
        for key, subjects, is_new in (("1", ("a", "b"), True), ("2", ("b",), False), ("3", ("b", "c"), True)):
            broken = Alert(event=AlertEvent.CONTRACT_BROKEN, key=key, message="files are broken", subjects=subjects)
            assert raise_alert(broken, dataset) == is_new
        assert len(hook.posted) == 2

    def test_an_unreachable_server_raises_no_error(
        self, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(alerting, "_PAUSE_SECONDS", 0.01)
        monkeypatch.setenv(VARIABLE, "http://127.0.0.1:9/secret")
        assert raise_alert(alert(), dataset)
        assert "Connection refused" in caplog.text
        assert "secret" not in caplog.text + dataset.paths.alerts.read_text()

    def test_alerts_are_stored_without_a_webhook(self, paths: DatasetPaths, caplog: pytest.LogCaptureFixture) -> None:
        bare = PipelineConfig(dataset="orders", identity=("id",))
        assert raise_alert(alert(), Dataset(bare, paths))
        assert delivered(paths) == [(alert().key, None)]
        assert caplog.messages == []

    def test_a_url_in_the_configuration_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="webhook"):
            PipelineConfig.model_validate(
                {"dataset": "orders", "identity": ("id",), "alerts": {"webhook": "https://chat.example/secret"}}
            )


@pytest.fixture
def shop(tmp_path_factory: pytest.TempPathFactory, hook: Hook) -> Iterator[Shop]:
    alerts = {**ATTRIBUTES["alerts"], "webhook": VARIABLE}
    yield from published_shop(tmp_path_factory, {**ATTRIBUTES, "alerts": alerts}, DAYS[:-1])


def page_of(shop: Shop) -> str:
    return (shop.paths.reports / "report.html").read_text()


def run_failure_sensor(shop: Shop, done: dg.ExecuteInProcessResult) -> None:
    """Run the failure sensor for a failed run, as the daemon does."""
    (sensor,) = [sensor for sensor in shop.defs.sensors or [] if sensor.name == "orders_failure"]
    context = dg.build_run_status_sensor_context(
        "orders_failure",
        dagster_event=done.get_run_failure_event(),
        dagster_instance=shop.instance,
        dagster_run=done.dagster_run,
        resources={"workspace": shop.workspace},
    ).for_run_failure()
    sensor(context)


class TestEvents:
    def test_a_first_run_without_problems_raises_no_alert(self, shop: Shop, hook: Hook) -> None:
        assert hook.posted == []
        assert '<h2 id="alerts">' not in page_of(shop)

    def test_a_new_day_over_its_budget_raises_an_alert(self, shop: Shop, hook: Hook) -> None:
        shop.land(DAYS[-1], orders_csv(DAYS[-1]).replace(",DE,", ",DE,9999"))
        assert shop.run("day", DAYS[-1]).success
        (posted,) = hook.posted
        assert (posted["event"], posted["run_id"]) == ("over_budget", shop.metadata_run("anomaly_report", DAYS[-1]))
        assert posted["figures"]["flagged"] > 3
        assert posted["figures"]["rows"] == 40
        assert posted["text"].split("orders: ")[1] in page_of(shop)
        assert ">delivered<" in page_of(shop)
        assert shop.run("publish", DAYS[-1]).success  # reported again, without a new alert
        assert len(hook.posted) == 1

    def test_days_of_the_training_window_raise_no_alert(self, shop: Shop, hook: Hook) -> None:
        shop.land(DAYS[3], orders_csv(DAYS[3]).replace(",DE,", ",DE,9999"))
        assert shop.run("day", DAYS[3]).success
        assert hook.posted == []

    def test_an_interrupted_report_raises_its_alert_later(
        self, shop: Shop, hook: Hook, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from ae_pipeline.orchestration.sensors import rebuild_requests
        from ae_pipeline.reports import build

        def fail(*_: object) -> None:
            raise OSError("the power went")

        shop.land(DAYS[-1], orders_csv(DAYS[-1]).replace(",DE,", ",DE,9999"))
        assert shop.run("ingest", DAYS[-1]).success
        monkeypatch.setattr(build, "all_ranked", fail)
        monkeypatch.setattr("ae_pipeline.lifecycle.report.alert_wrong_days", fail)
        assert not shop.run("publish", DAYS[-1]).success
        monkeypatch.undo()
        monkeypatch.setenv(VARIABLE, hook.address)
        assert hook.posted == []
        assert shop.run_requests(rebuild_requests) == [f"orders_publish {DAYS[-1]}"]
        assert [posted["event"] for posted in hook.posted] == ["over_budget"]
        summary = json.loads((shop.paths.reports / "summary.json").read_text())
        assert summary["days"][-1]["day"] == DAYS[-1]
        assert not list(shop.paths.reports.glob("unfinished*"))

    def test_a_broken_contract_raises_one_alert(self, shop: Shop, hook: Hook) -> None:
        broken = orders_csv(DAYS[-1]).replace(",DE,", ",DE,many")
        shop.land(DAYS[-1], broken)
        assert shop.run("ingest", DAYS[-1]).success
        (posted,) = hook.posted
        assert posted["event"] == "contract_broken"
        assert "rows of 1 file are in quarantine, at most 1.0% may be" in posted["text"]
        for part in (f"orders_{DAYS[-1]}.csv", "by the rule 'price: ", "data/quarantine/orders/", "land it again"):
            assert part in posted["text"]
        assert html.unescape(page_of(shop)).count(posted["text"].split("orders: ")[1]) == 1
        assert shop.run("ingest", DAYS[-1]).success
        assert len(hook.posted) == 1
        shop.land(DAYS[-2], orders_csv(DAYS[-2]).replace(",FR,", ",FR,few"))  # the same number of other rows
        assert shop.run("ingest", DAYS[-2]).success
        assert f"orders_{DAYS[-2]}.csv" in hook.posted[1]["text"]

    def test_a_file_without_a_valid_row_raises_an_alert(self, shop: Shop, hook: Hook) -> None:
        from ae_pipeline.orchestration.sensors import landing_requests

        shop.land(DAYS[-1], orders_csv(DAYS[-1]).replace(f"{DAYS[-1]}T", "someday "))
        assert [asked.split()[0] for asked in shop.run_requests(landing_requests)] == ["orders_intake"]
        (posted,) = hook.posted
        assert posted["event"] == "contract_broken"
        assert f"orders_{DAYS[-1]}.csv is refused: none of its 40 rows satisfies the schema contract" in posted["text"]

    def test_changed_columns_raise_an_alert_and_block_no_other_day(self, shop: Shop, hook: Hook) -> None:
        from ae_pipeline.orchestration.sensors import landing_requests, rebuild_requests

        shop.land("bad", "order_id,created_at\n1,2024-02-10T00:00:00Z\n")
        shop.land(DAYS[-1])
        job = shop.defs.resolve_job_def("orders_intake")
        (request,) = landing_requests(shop.dataset, shop.workspace, shop.instance)
        assert isinstance(request, dg.RunRequest)
        done = job.execute_in_process(instance=shop.instance, tags=dict(request.tags), raise_on_error=False)
        assert done.success
        (posted,) = hook.posted
        assert posted["event"] == "contract_broken"
        assert "orders_bad.csv" in posted["text"]
        assert shop.run_requests(landing_requests) == [f"orders_ingest {DAYS[-1]}"]
        assert shop.run_requests(rebuild_requests) == [f"orders_publish {DAYS[-1]}"]
        assert len(hook.posted) == 1

    def test_a_rejected_challenger_raises_an_alert(
        self, shop: Shop, hook: Hook, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from ae_pipeline.lifecycle import train as model_steps

        monkeypatch.setattr(model_steps, "loss_fell", lambda _: LOSS_ROSE)
        assert shop.run("train").success
        (posted,) = hook.posted
        assert posted["event"] == "challenger_rejected"
        assert "challenger 2 rejected: loss_fell: it rose; version 1 keeps serving" in posted["text"]
        assert "challenger 2 rejected" in page_of(shop)

    def test_an_interrupted_rejection_raises_its_alert_later(
        self, shop: Shop, hook: Hook, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from ae_pipeline.lifecycle import alerts
        from ae_pipeline.lifecycle import train as model_steps
        from ae_pipeline.orchestration.sensors import rebuild_requests

        def fail(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(model_steps, "loss_fell", lambda _: LOSS_ROSE)
        monkeypatch.setattr(alerts, "raise_alert", fail)
        assert not shop.run("train").success
        monkeypatch.undo()
        monkeypatch.setenv(VARIABLE, hook.address)
        for run in shop.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])):
            shop.instance.report_run_canceled(run)
        assert shop.run_requests(rebuild_requests) == [
            "orders_decide version 2 was evaluated by the gate and waits for the decision"
        ]
        assert [posted["event"] for posted in hook.posted] == ["challenger_rejected"]
        assert [entry.version for entry in history(shop.paths)] == [1, 2]

    def test_all_attempts_of_a_failed_run_raise_one_alert(
        self, shop: Shop, hook: Hook, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object, **__: object) -> None:
            raise StorageError("no space left while writing orders.parquet; free some space and run again")

        monkeypatch.setattr("ae_pipeline.lifecycle.ingest.ingest", fail)
        for _ in range(2):
            job = shop.defs.resolve_job_def("orders_intake")
            tags = {"ae_pipeline/request": "intake x", DATASET_TAG: "orders"}
            done = job.execute_in_process(instance=shop.instance, tags=tags, raise_on_error=False)
            run_failure_sensor(shop, done)
        (posted,) = hook.posted
        assert posted["event"] == "run_failed"
        assert posted["text"].startswith("orders: orders_intake failed: ")
        assert "free some space" in posted["text"]
        assert "orders_intake failed" in page_of(shop)

    def test_only_runs_of_the_dataset_raise_its_alerts(self, shop: Shop) -> None:
        job = shop.defs.resolve_job_def("orders_train")
        chosen = frozenset({dg.AssetKey(["orders", "champion"])})  # selected by a person, without a tag
        run = shop.instance.create_run_for_job(job, asset_selection=chosen)
        assert belongs_to(run, shop.config)
        other = shop.instance.create_run_for_job(job, tags={DATASET_TAG: "flights"})
        assert not belongs_to(other, shop.config)
        failure = dg.DagsterEvent(dg.DagsterEventType.RUN_FAILURE.value, "orders_train", message="killed")
        raised = failure_alert(run, failure_reason(run, failure, shop.instance), shop.paths)
        assert raised is not None
        assert raised.message == "orders_train failed: killed"

    def test_the_failure_sensor_runs_from_the_start(self, shop: Shop) -> None:
        status = {sensor.name: sensor.default_status for sensor in shop.defs.sensors or []}
        assert status["orders_failure"] == dg.DefaultSensorStatus.RUNNING
        assert status["orders_landing"] == status["orders_rebuild"] == dg.DefaultSensorStatus.STOPPED


def test_a_page_without_stored_variables_is_not_changed(dataset: Dataset) -> None:
    refresh_operations(dataset)
    page = dataset.paths.reports / "report.html"
    assert not page.exists()
    page.parent.mkdir(parents=True)
    page.write_text("<h1>another version</h1>")
    refresh_operations(dataset)
    assert page.read_text() == "<h1>another version</h1>"


@pytest.mark.parametrize(("rows", "text"), [(1, "1 of 1 row of 1 file is in"), (20, "1 of 20 rows of 1 file are in")])
def test_a_broken_contract_agrees_with_the_number_of_rows(rows: int, text: str, tmp_path: Path) -> None:
    dataset = Dataset(PipelineConfig.model_validate(ATTRIBUTES), DatasetPaths(tmp_path, "orders"))
    landed = LandedFile(
        size=1, modified_ns=1, sha256="a", landed_ns=1, contract="c", staged="s", quarantined={"type": 1}
    )
    assert _quarantine_message(dataset, {"a.csv": landed}, {"a.csv": 1}, rows, ["a.csv"]).startswith(f"{text} quaran")
