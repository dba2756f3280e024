"""The planner on a real project: its callers agree, and no work is lost."""

import datetime as dt
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg
import polars as pl
import pytest

from ae_pipeline.cli.project import Project
from ae_pipeline.cli.run import run
from ae_pipeline.common.errors import PipelineError, StorageError, TrainingError
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.lifecycle.before_training import plan_before_training, waits_for_publication
from ae_pipeline.lifecycle.plan import Plan, Step, plan_landing, plan_serving, plan_training
from ae_pipeline.orchestration.failures import first_reason
from ae_pipeline.orchestration.resources import Workspace
from ae_pipeline.orchestration.sensors import landing_requests, rebuild_requests
from ae_pipeline.orchestration.tags import READ_TAG, REPOSITORY_TAG
from ae_pipeline.registry.names import CHAMPION
from ae_pipeline.storage.parquet import write_parquet
from tests.support.shop import ATTRIBUTES, DAYS, ROWS, Shop, orders_csv

REJECTED_DAYS = DAYS[:-2]
"""Days that the rejected version was trained on and tested with."""

NO_CHAMPION = (
    "version 1 was rejected: loss_fell: it rose, and no other version can serve; change the data or the settings, or "
    "let it serve: `ae-pipeline rollback orders 1 --why … --even-if-rejected`"
)


def landing_plan(shop: Shop) -> Plan:
    """Return the plan of the command line, which does not wait until a file has settled."""
    return plan_landing(shop.dataset, dt.datetime.now(dt.UTC).date())


def training_plan(shop: Shop, **settings: object) -> Plan:
    """Return the plan for a training, with other settings than those of the YAML if given."""
    config = PipelineConfig.model_validate({**ATTRIBUTES, **settings})
    return plan_training(shop.workspace.dataset(config), shop.workspace.tracker())


def serving_plan(shop: Shop) -> Plan:
    """Return the plan for the decision and the publication."""
    return plan_serving(shop.dataset, shop.workspace.tracker())


def project_of(shop: Shop) -> Project:
    """Return the project as the command line sees it."""
    return Project(shop.defs, shop.workspace, {"orders": shop.dataset}, shop.instance)


class TestRejectedFirstVersion:
    def test_all_callers_agree_that_no_work_is_due(self, rejected_shop: Shop) -> None:
        assert rejected_shop.workspace.tracker().version("orders", CHAMPION) is None
        days = len(REJECTED_DAYS)
        reason = f"nothing new: all {days} days are the same as in the last training; {NO_CHAMPION}"
        assert training_plan(rejected_shop) == Plan((), reason)
        assert rejected_shop.schedule_answer() == reason
        idle = f"no version serves so far; {NO_CHAMPION}"
        assert serving_plan(rejected_shop) == Plan((), idle)
        assert rejected_shop.requested(rebuild_requests) == idle
        assert landing_plan(rejected_shop).work == ()

    def test_the_command_line_fails_without_training(
        self, rejected_shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Project, "load", lambda: project_of(rejected_shop))
        runs = len(rejected_shop.instance.get_runs())
        with pytest.raises(
            TrainingError, match=r"no version serves so far; version 1 was rejected: .*even-if-rejected"
        ):
            run("orders")
        assert len(rejected_shop.instance.get_runs()) == runs

    def test_too_few_new_rows_are_no_reason_to_train(self, rejected_shop: Shop) -> None:
        rejected_shop.land(DAYS[-2])
        assert rejected_shop.run("ingest", DAYS[-2]).success
        reason = f"{ROWS} rows on 1 new or changed day since the last training, fewer than min_new_rows=50"
        assert training_plan(rejected_shop) == Plan((), f"{reason}; {NO_CHAMPION}")
        assert rejected_shop.schedule_answer() == f"{reason}; {NO_CHAMPION}"

    def test_new_rows_make_a_training_due(self, rejected_shop: Shop) -> None:
        for day in DAYS[-2:]:
            rejected_shop.land(day)
        assert rejected_shop.run("ingest", DAYS[-2], DAYS[-1]).success
        reason = f"{2 * ROWS} rows on 2 new or changed days since the last training"
        (work,) = training_plan(rejected_shop).work
        assert (work.step, work.days, work.reason) == (Step.TRAIN, (), reason)
        assert rejected_shop.schedule_answer() == reason
        assert serving_plan(rejected_shop).work == ()

    def test_changed_settings_make_a_training_due(self, rejected_shop: Shop) -> None:
        settings = {"training": {**ATTRIBUTES["training"], "epochs": 4}}
        (work,) = training_plan(rejected_shop, **settings).work
        keys = "model, training, alert budget, time zone, or columns"
        expected = f"the settings of {keys} changed since the last training"
        assert (work.step, work.reason) == (Step.TRAIN, expected)


class TestLanding:
    @pytest.fixture
    def shop_with_a_refused_file(self, shop: Shop) -> Shop:
        """A project that has read two days, and refused a third file."""
        shop.land(DAYS[0])
        assert shop.run("intake").success
        shop.land(DAYS[1])
        shop.land("bad", "order_id,created_at\n1,2024-02-10T00:00:00Z\n")
        return shop

    def test_a_refused_file_is_logged_and_does_not_fail_the_run(
        self, shop_with_a_refused_file: Shop, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert shop_with_a_refused_file.run("intake").success
        assert "1 file read, with rows on 1 day; 1 file refused" in caplog.text
        assert "orders_bad.csv is refused: the columns of 'orders' have changed" in caplog.text

    def test_days_are_ingested_although_a_file_was_refused(self, shop_with_a_refused_file: Shop) -> None:
        read, ingest = landing_plan(shop_with_a_refused_file).work
        assert (read.step, read.days) == (Step.READ, ())
        assert read.reason == f"2 new or changed files: orders_{DAYS[1]}.csv, orders_bad.csv"
        assert (ingest.step, ingest.days) == (Step.INGEST, (DAYS[0],))
        assert shop_with_a_refused_file.run("intake").success
        (ingest,) = landing_plan(shop_with_a_refused_file).work
        assert (ingest.step, ingest.days) == (Step.INGEST, tuple(DAYS[:2]))
        assert ingest.ranges == ((DAYS[0], DAYS[1]),)
        assert ingest.reason == f"{DAYS[0]} to {DAYS[1]}"

    def test_after_ingestion_the_refused_file_waits_until_it_changes(self, shop_with_a_refused_file: Shop) -> None:
        shop = shop_with_a_refused_file
        assert shop.run("intake").success
        project_of(shop).run_job(shop.dataset, Step.INGEST, (DAYS[0], DAYS[1]), tags={READ_TAG: "by an earlier run"})
        assert landing_plan(shop).work == ()
        features = shop.instance.get_materialized_partitions(dg.AssetKey(["orders", "features"]))
        assert features == set(DAYS[:2])
        shop.land("bad", orders_csv(DAYS[2]))
        (read,) = landing_plan(shop).work
        assert (read.step, read.reason) == (Step.READ, "1 new or changed file: orders_bad.csv")

    def test_the_sensor_requests_what_the_planner_plans(self, shop_with_a_refused_file: Shop) -> None:
        # The run did not come from the sensor, so the sensor does not delay the next attempt.
        planned = landing_plan(shop_with_a_refused_file).work
        assert shop_with_a_refused_file.requested(landing_requests) == [f"orders_intake {planned[0].reason}"]


class TestGaps:
    def test_a_run_spans_days_without_rows_and_leaves_them_out(self, shop: Shop) -> None:
        for day in (DAYS[0], DAYS[1], DAYS[4], DAYS[5]):
            shop.land(day)
        assert shop.run("intake").success
        (ingest,) = landing_plan(shop).work
        assert ingest.ranges == ((DAYS[0], DAYS[5]),)
        assert ingest.reason == f"{DAYS[0]} to {DAYS[5]}"
        project_of(shop).run_job(shop.dataset, Step.INGEST, ingest.ranges[0], tags={READ_TAG: "by an earlier run"})
        built = [path.stem for path in sorted(shop.paths.features("_").parent.glob("*.parquet"))]
        assert built == [DAYS[0], DAYS[1], DAYS[4], DAYS[5]]
        assert landing_plan(shop).work == ()

    def test_a_run_does_not_span_days_that_need_no_work(self, shop: Shop) -> None:
        for day in DAYS[:3]:
            shop.land(day)
        assert shop.run("ingest", DAYS[0], DAYS[2]).success
        for day in (DAYS[0], DAYS[2]):
            shop.land(day, orders_csv(day, rows=ROWS + 1))
        assert shop.run("intake").success
        (ingest,) = landing_plan(shop).work
        assert ingest.ranges == ((DAYS[0], DAYS[0]), (DAYS[2], DAYS[2]))


class TestRunsOfTheCommandLine:
    def test_a_run_belongs_to_the_code_location(self, shop: Shop) -> None:
        shop.land(DAYS[0])
        project_of(shop).run_job(shop.dataset, Step.READ)
        (run,) = shop.instance.get_runs()
        assert run.is_success
        assert run.job_name == "orders_intake"
        assert run.remote_job_origin is not None
        assert run.remote_job_origin.repository_origin.get_label() == run.tags[REPOSITORY_TAG]
        assert run.tags[REPOSITORY_TAG] == run.tags[".dagster/repository"] == "__repository__@ae_pipeline"

    def test_a_failed_run_belongs_to_it_too(self, shop: Shop) -> None:
        shop.land(DAYS[0], "order_id\n1\n")
        with pytest.raises(PipelineError, match="orders_intake failed"):
            project_of(shop).run_job(shop.dataset, Step.READ)
        (run,) = shop.instance.get_runs()
        assert run.is_failure_or_canceled
        assert run.tags[".dagster/repository"] == "__repository__@ae_pipeline"
        assert run.remote_job_origin is not None

    def test_the_event_log_contains_messages_of_the_package(self, shop: Shop) -> None:
        shop.land(DAYS[0])
        project_of(shop).run_job(shop.dataset, Step.READ)
        (run,) = shop.instance.get_runs()
        messages = [entry.user_message for entry in shop.instance.all_logs(run.run_id) if not entry.is_dagster_event]
        assert messages.count("1 file read, with rows on 1 day") == 1


def _fail(*_: object, **__: object) -> None:
    raise StorageError("the disk is full")


class TestOrderOfWork:
    @pytest.fixture
    def late_shop(self, serving_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Shop:
        """A project in which the last two days have changed or landed since the last publication."""
        monkeypatch.setattr(Project, "load", lambda: project_of(serving_shop))
        for day in DAYS[-2:]:
            serving_shop.land(day, orders_csv(day, rows=ROWS + 1))
        return serving_shop

    def test_new_days_are_published_before_a_training(self, late_shop: Shop) -> None:
        assert run("orders") == 0
        runs = [run.job_name.removeprefix("orders_") for run in reversed(late_shop.instance.get_runs())]
        assert runs[3:7] == ["intake", "ingest", "publish", "train"]

    def test_a_failed_publication_does_not_stop_the_training(
        self, late_shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as broken:
            broken.setattr("ae_pipeline.lifecycle.publish.publish", _fail)
            with pytest.raises(PipelineError, match="orders_publish failed"):
                run("orders")
        runs = [run.job_name for run in late_shop.instance.get_runs()]
        assert runs.count("orders_train") == 2

    def test_nothing_waits_for_a_model_that_cannot_score(
        self, late_shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for step in (late_shop.run("intake"), late_shop.run("ingest", DAYS[-2], DAYS[-1])):
            assert step.success
        tracker = late_shop.workspace.tracker()
        assert plan_before_training(late_shop.dataset, tracker) == serving_plan(late_shop)
        assert waits_for_publication(late_shop.dataset, tracker).endswith(f": {DAYS[-2]} to {DAYS[-1]}")
        path = late_shop.paths.features(DAYS[-1])
        write_parquet(path, pl.read_parquet(path).drop("items").to_arrow())
        plan = plan_before_training(late_shop.dataset, tracker)
        assert plan.work == ()
        assert plan.idle.startswith("version 1, which serves, cannot score the present features: ")
        assert waits_for_publication(late_shop.dataset, tracker) == ""


class TestRobustness:
    def test_an_unreadable_bundle_makes_a_training_due(self, serving_shop: Shop) -> None:
        from ae_pipeline.lifecycle import plan

        shutil.rmtree(serving_shop.workspace.tracker().bundle_folder(serving_shop.champion))
        plan._fingerprint_and_settings.cache_clear()
        (training,) = training_plan(serving_shop).work
        assert re.match(
            r"version 1, which serves, cannot be loaded \(version 1 of model 'orders' has no bundle at .*/bundle; .*: "
            r"restore it, or train again",
            training.reason,
        )

    def test_a_report_of_an_earlier_version_is_built_again(self, serving_shop: Shop) -> None:
        assert serving_plan(serving_shop).work == ()
        (serving_shop.paths.reports / "report.context.json").unlink()
        (publication,) = serving_plan(serving_shop).work
        assert publication.days == (DAYS[-2],)
        assert serving_shop.run_requests(rebuild_requests) == [f"orders_publish {DAYS[-2]}"]
        assert serving_plan(serving_shop).work == ()

    def test_a_job_without_our_tags_holds_the_lock(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        locked = []

        @contextmanager
        def record(_: Workspace, dataset: str, *, is_shared: bool) -> Iterator[None]:
            locked.append((dataset, is_shared))
            yield

        monkeypatch.setattr(Workspace, "locked", record)
        shop.land(DAYS[0])
        job = dg.define_asset_job("nightly", selection=dg.AssetSelection.keys(["orders", "raw_data"]))
        definitions = dg.Definitions.merge(shop.defs, dg.Definitions(jobs=[job]))
        tags = {"dagster/partition": DAYS[0]}
        assert definitions.resolve_job_def("nightly").execute_in_process(instance=shop.instance, tags=tags).success
        assert locked == [("orders", False)]


def test_features_without_raw_data_say_what_comes_first(shop: Shop) -> None:
    reason = first_reason(shop.run_stage("features", DAYS[0]).all_events)
    assert reason == (
        f"raw_data of 'orders' has no partition {DAYS[0]}, because no landed file was read so far; materialize "
        "raw_data first"
    )


def test_runs_outside_the_days_are_refused_and_write_nothing(shop: Shop) -> None:
    shop.land(DAYS[0])
    assert shop.run("ingest", DAYS[0]).success
    files = sorted(path for path in (shop.root / "data").rglob("*") if path.is_file())
    reasons = {
        "future": shop.run_stage("raw_data", "2124-01-01"),
        "before": shop.run_stage("features", "2024-01-20"),
        "range": shop.run("ingest", DAYS[1], "2024-03-20"),
        "none": shop.run("ingest"),
        "publish": shop.run("publish"),
        "day": shop.run("day"),
    }
    messages = {name: first_reason(done.all_events) for name, done in reasons.items()}
    assert messages["future"].startswith("2124-01-01 is not a day of 'orders': it is outside 2024-02-10 to 2024-03-04;")
    assert messages["before"] == (
        "2024-01-20 is before the days of the dataset; choose other days, or change start or end"
    )
    assert messages["range"].startswith("2024-03-20 is not a day of 'orders'")
    assert all("this run names no day; choose days" in messages[name] for name in ("none", "publish", "day"))
    assert all("\n" not in message for message in messages.values())
    # What the UI shows: our message, and not what Dagster fails with in a step.
    shown = [str(event) for name in ("none", "publish", "day") for event in reasons[name].all_events]
    assert not any("non-partitioned run" in event for event in shown)
    assert sorted(path for path in (shop.root / "data").rglob("*") if path.is_file()) == files


def test_wiping_in_the_ui_changes_no_data_and_requests_no_work(serving_shop: Shop) -> None:
    shop = serving_shop
    files = {path: path.read_bytes() for path in (shop.root / "data").rglob("*.parquet")}
    shop.instance.wipe_assets([key for key in shop.instance.get_asset_keys() if key.path[0] == "orders"])
    assert shop.instance.get_asset_keys() == []
    assert shop.requested(landing_requests) == "every landed file is read, and every day has its features"
    assert shop.requested(rebuild_requests) == "every day is published and reported on under version 1"
    assert shop.run("ingest", DAYS[0], DAYS[1]).success
    assert shop.instance.get_materialized_partitions(dg.AssetKey(["orders", "raw_data"])) == set(DAYS[:2])
    assert {path: path.read_bytes() for path in (shop.root / "data").rglob("*.parquet")} == files
    assert len(files) > len(DAYS)
