"""The retraining loop: new and late data, rebuilds after a promotion, rollbacks, and recovery after failures."""

import datetime as dt
import json
import os
import shutil
import time
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest
from deltalake import DeltaTable

from ae_pipeline.common.errors import PublicationError, StorageError
from ae_pipeline.latents.read import model_version_of, published_days
from ae_pipeline.lifecycle.comparison import compare_versions
from ae_pipeline.lifecycle.plan import days_to_publish
from ae_pipeline.lifecycle.promote import DECIDED
from ae_pipeline.lifecycle.versions import list_versions
from ae_pipeline.orchestration.resources import RunLock
from ae_pipeline.orchestration.sensors import landing_requests, rebuild_requests
from ae_pipeline.orchestration.tags import DATASET_TAG
from ae_pipeline.registry.history import Change, HistoryEntry, history, record
from ae_pipeline.registry.names import CHALLENGER, CHAMPION
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.jsonl import add_line, lines_of
from ae_pipeline.storage.parquet import read_facts
from tests.support.datasets import leftovers
from tests.support.shop import DAYS, ROWS, Shop, orders_csv, reject_every_version

ALL = f"{DAYS[0]} to {DAYS[-1]}"


def stale(shop: Shop, stage: str) -> list[str]:
    """Return the days of an asset that Dagster shows as stale."""
    graph = shop.defs.resolve_asset_graph()
    resolver = CachingStaleStatusResolver(shop.instance, graph, LoadingContextForTest(shop.instance))
    key = dg.AssetKey(["orders", stage])
    days = shop.instance.get_materialized_partitions(key)
    return sorted(day for day in days if resolver.get_status(key, day) == StaleStatus.STALE)


def space_folders(shop: Shop) -> set[str]:
    """Return the folders of the latent spaces that the table refers to."""
    return {published.path.split("/")[0] for published in published_days(shop.paths).values()}


def full_disk(*_: object) -> None:
    raise StorageError("the disk is full; free some space")


class TestLanding:
    def test_only_days_of_landed_files_are_ingested(self, shop: Shop) -> None:
        assert shop.requested(landing_requests) == "nothing has landed so far"
        for day in (*DAYS[:3], DAYS[5]):
            os.utime(shop.land(day))
        assert shop.requested(landing_requests) == "4 new or changed files, still being written"
        for path in shop.landing.iterdir():
            os.utime(path, (1_700_000_000, 1_700_000_000))
        assert shop.run_requests(landing_requests) == [
            f"orders_intake 4 new or changed files: {', '.join(f'orders_{day}.csv' for day in (*DAYS[:3], DAYS[5]))}",
            f"orders_ingest {DAYS[0]} to {DAYS[5]}",
        ]
        assert shop.requested(landing_requests) == "every landed file is read, and every day has its features"
        features = {path.stem for path in shop.paths.features("_").parent.glob("*.parquet")}
        assert features == {*DAYS[:3], DAYS[5]}

    def test_late_data_rebuilds_only_the_affected_day(self, serving_shop: Shop) -> None:
        previous = published_days(serving_shop.paths)
        serving_shop.land("late", orders_csv(DAYS[4], 3, first_id=7))
        assert serving_shop.run_requests(landing_requests)[1:] == [f"orders_ingest {DAYS[4]}"]
        assert serving_shop.run_requests(rebuild_requests) == [f"orders_publish {DAYS[4]}"]
        after = published_days(serving_shop.paths)
        assert [day for day in after if after[day].identity != previous[day].identity] == [DAYS[4]]
        assert read_facts(serving_shop.paths.features(DAYS[4]))["rows"] == str(ROWS + 3)

    def test_a_failed_reading_is_retried_with_growing_delays(
        self, serving_shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        serving_shop.land("broken", orders_csv(DAYS[-1]))
        request = serving_shop.request(landing_requests)
        job = serving_shop.defs.resolve_job_def("orders_intake")
        keys = [request.run_key]
        for pause in (60, 120, 240):
            with monkeypatch.context() as patch:
                patch.setattr("ae_pipeline.ingestion.stage_files.StagingBatch.stage", full_disk)
                done = job.execute_in_process(
                    instance=serving_shop.instance, tags=dict(request.tags), raise_on_error=False
                )
            assert "the disk is full" in serving_shop.failure_message(done)
            answer = serving_shop.requested(landing_requests)
            assert f"run {done.run_id} ended (failure) and did not finish it; next attempt at" in answer
            now = time.time()
            monkeypatch.setattr("ae_pipeline.orchestration.runs.time.time", lambda late=now + pause - 5: late)
            assert "did not finish it" in serving_shop.requested(landing_requests)
            monkeypatch.setattr("ae_pipeline.orchestration.runs.time.time", lambda late=now + pause + 5: late)
            request = serving_shop.request(landing_requests)
            keys.append(request.run_key)
            monkeypatch.undo()
        assert len(set(keys)) == 4  # Dagster ignores a key that it has seen
        serving_shop.land("broken", orders_csv(DAYS[-1], 3))  # another file is not delayed
        assert serving_shop.run_requests(landing_requests)[1:] == [f"orders_ingest {DAYS[-1]}"]

    def test_there_is_no_limit_on_retries(self, serving_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        serving_shop.land("broken", "order_id,created_at\n1,2024-02-10T00:00:00Z\n")
        job, keys, now = serving_shop.defs.resolve_job_def("orders_intake"), [], time.time()
        for attempt in range(25):
            monkeypatch.setattr("ae_pipeline.orchestration.runs.time.time", lambda late=now + 7200 * attempt: late)
            request = serving_shop.request(landing_requests)
            keys.append(request.run_key)
            serving_shop.instance.create_run_for_job(job, tags=dict(request.tags), status=dg.DagsterRunStatus.FAILURE)
        assert len(set(keys)) == 25

    def test_a_removed_landing_folder_blocks_no_work(self, serving_shop: Shop) -> None:
        path = serving_shop.land(DAYS[-1])
        request = serving_shop.request(landing_requests)
        job = serving_shop.defs.resolve_job_def("orders_intake")
        assert job.execute_in_process(instance=serving_shop.instance, tags=dict(request.tags)).success
        shutil.rmtree(path.parent)
        assert serving_shop.run_requests(landing_requests) == [f"orders_ingest {DAYS[-1]}"]
        assert serving_shop.run_requests(rebuild_requests) == [f"orders_publish {DAYS[-1]}"]

    def test_nothing_is_requested_while_a_run_is_active(self, serving_shop: Shop) -> None:
        serving_shop.land(DAYS[-1])
        run = serving_shop.instance.create_run_for_job(
            serving_shop.defs.resolve_job_def("orders_train"),
            tags={DATASET_TAG: "orders"},
            status=dg.DagsterRunStatus.STARTED,
        )
        message = f"run {run.run_id} of orders_train is active (started)"
        assert serving_shop.requested(landing_requests) == serving_shop.requested(rebuild_requests) == message
        assert serving_shop.schedule_answer() == f"a training is active: run {run.run_id}"

    def test_a_dead_run_is_ended_and_blocks_no_work(self, serving_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        job = serving_shop.defs.resolve_job_def("orders_train")
        run = serving_shop.instance.create_run_for_job(
            job, tags={DATASET_TAG: "orders"}, status=dg.DagsterRunStatus.STARTED
        )
        now = time.time()
        monkeypatch.setattr("ae_pipeline.orchestration.runs.time.time", lambda: now + 600)
        with serving_shop.workspace.locked("orders"):  # the process is alive
            assert "is active" in serving_shop.requested(rebuild_requests)
        assert serving_shop.requested(rebuild_requests) == "every day is published and reported on under version 1"
        (ended,) = serving_shop.instance.get_runs(dg.RunsFilter(run_ids=[run.run_id]))
        assert ended.status == dg.DagsterRunStatus.FAILURE


class TestCancelled:
    """Nothing of a run that somebody has cancelled serves."""

    @pytest.mark.parametrize("has_moved", [False, True], ids=["before the promotion", "within the promotion"])
    def test_a_version_of_a_cancelled_run_is_withdrawn(self, serving_shop: Shop, *, has_moved: bool) -> None:
        trained = serving_shop.run_stage("autoencoder")
        assert serving_shop.requested(rebuild_requests) == [
            "orders_decide version 2 was evaluated by the gate and waits for the decision"
        ]
        tracker = serving_shop.workspace.tracker()
        if has_moved:  # the process of the promotion was killed after it had moved the alias
            tracker.set_alias("orders", CHAMPION, 2)
        serving_shop.instance.report_run_canceled(trained.dagster_run)
        idle = "every day is published and reported on under version 1"
        assert serving_shop.requested(rebuild_requests) == idle
        assert [version.version for version in tracker.versions("orders")] == [1]
        assert serving_shop.champion.version == 1

    def test_a_run_that_is_cancelled_during_the_promotion_takes_it_back(
        self, serving_shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def cancelled(_: RunLock) -> None:
            assert serving_shop.champion.version == 2
            raise dg.DagsterExecutionInterruptedError

        monkeypatch.setattr(RunLock, "require_active", cancelled)
        assert not serving_shop.run("train").success
        assert serving_shop.champion.version == 1
        assert [entry.version for entry in history(serving_shop.paths)] == [1]

    def test_a_run_that_is_cancelled_before_its_commit_publishes_nothing(
        self, serving_shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def cancelled(_: RunLock) -> None:
            raise dg.DagsterExecutionInterruptedError

        serving_shop.land(DAYS[-1])
        assert serving_shop.run("ingest", DAYS[-1]).success
        monkeypatch.setattr(RunLock, "require_active", cancelled)
        assert not serving_shop.run("publish", DAYS[-1]).success
        assert DAYS[-1] not in published_days(serving_shop.paths)


class TestRebuild:
    def test_nothing_is_rebuilt_without_a_model(self, shop: Shop) -> None:
        shop.land(DAYS[0])
        assert shop.run("ingest", DAYS[0]).success
        assert shop.requested(rebuild_requests) == "no version serves so far"

    def test_a_promotion_makes_exactly_the_latents_stale(self, serving_shop: Shop) -> None:
        assert stale(serving_shop, "latent_features") == stale(serving_shop, "anomaly_report") == []
        assert serving_shop.run("train").success
        assert stale(serving_shop, "latent_features") == list(DAYS[:-1])
        assert stale(serving_shop, "anomaly_report") == []
        assert space_folders(serving_shop) == {published_days(serving_shop.paths)[DAYS[0]].path.split("/")[0]}
        assert model_version_of(serving_shop.paths) == 1  # the old table stays until the new one is complete
        assert serving_shop.run_requests(rebuild_requests) == [f"orders_publish {DAYS[0]} to {DAYS[-2]}"]
        assert model_version_of(serving_shop.paths) == 2
        assert len(space_folders(serving_shop)) == 1
        assert stale(serving_shop, "latent_features") == stale(serving_shop, "anomaly_report") == []

    def test_after_a_rejection_nothing_is_rebuilt(self, serving_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        reject_every_version(monkeypatch)
        assert serving_shop.run("train").success
        for stage in ("latent_features", "anomaly_report"):
            assert stale(serving_shop, stage) == []
        assert serving_shop.requested(rebuild_requests) == "every day is published and reported on under version 1"
        (first, second) = history(serving_shop.paths)
        assert (first.change, first.version, first.previous) == (Change.PROMOTED, 1, None)
        assert (second.change, second.version, second.previous) == (Change.REJECTED, 2, 1)
        assert second.why == "loss_fell: it rose"
        assert second.figures["loss_fell.figure"] == 2.0
        page = (serving_shop.paths.reports / "report.html").read_text()
        assert "challenger 2 rejected: loss_fell: it rose" in page  # without a new report
        assert serving_shop.run("train").success  # evaluated as version 3, and recorded once
        assert [entry.version for entry in history(serving_shop.paths)] == [1, 2, 3]

    def test_a_failed_rebuild_is_requested_again(self, serving_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        from ae_pipeline.latents import publish

        assert serving_shop.run("train").success
        request = serving_shop.request(rebuild_requests)

        def fail(*_: object) -> None:
            raise PublicationError("the commit failed")

        monkeypatch.setattr(publish, "commit_files", fail)
        job = serving_shop.defs.resolve_job_def("orders_publish")
        tags = dict(request.tags)
        assert not job.execute_in_process(instance=serving_shop.instance, tags=tags, raise_on_error=False).success
        monkeypatch.undo()
        assert "(failure) and did not finish it; next attempt at" in serving_shop.requested(rebuild_requests)
        now = time.time()
        monkeypatch.setattr("ae_pipeline.orchestration.runs.time.time", lambda: now + 61)
        assert serving_shop.requested(rebuild_requests) == [f"orders_publish {DAYS[0]} to {DAYS[-2]}"]

    def test_a_promotion_before_the_report_loses_no_day(self, serving_shop: Shop) -> None:
        serving_shop.land(DAYS[-1])
        assert serving_shop.run("ingest", DAYS[-1]).success
        assert serving_shop.run_stage("latent_features", DAYS[-1]).success
        assert serving_shop.run("train").success
        assert serving_shop.run_requests(rebuild_requests) == [f"orders_publish {ALL}"]
        assert days_to_publish(Dataset(serving_shop.config, serving_shop.paths), serving_shop.workspace.tracker()) == []
        assert model_version_of(serving_shop.paths) == 2

    def test_an_interrupted_report_is_built_again(self, serving_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        from ae_pipeline.reports import build

        def fail(*_: object) -> None:
            raise OSError("power failure")

        serving_shop.land(DAYS[-1])
        assert serving_shop.run("ingest", DAYS[-1]).success
        monkeypatch.setattr(build, "measure_labels", fail)
        assert not serving_shop.run("publish", DAYS[-1]).success
        monkeypatch.undo()
        assert serving_shop.run_requests(rebuild_requests) == [f"orders_publish {DAYS[-1]}"]
        summary = json.loads((serving_shop.paths.reports / "summary.json").read_text())
        newest = summary["days"][-1]
        assert (newest["day"], newest["rows"], newest["state"]) == (DAYS[-1], ROWS, "calm")
        assert serving_shop.requested(rebuild_requests) == "every day is published and reported on under version 1"

    def test_an_interrupted_training_is_decided_later(self, serving_shop: Shop) -> None:
        assert serving_shop.run_stage("autoencoder").success
        assert serving_shop.champion.version == 1
        assert serving_shop.run_requests(rebuild_requests) == [
            "orders_decide version 2 was evaluated by the gate and waits for the decision",
            f"orders_publish {DAYS[0]} to {DAYS[-2]}",
        ]
        assert [(entry.version, entry.change) for entry in history(serving_shop.paths)] == [
            (1, Change.PROMOTED),
            (2, Change.PROMOTED),
        ]

    def test_a_failed_decision_blocks_no_day(self, serving_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        from ae_pipeline.lifecycle import promote

        def fail(*_: object) -> None:
            raise StorageError("no space left")

        assert serving_shop.run_stage("autoencoder").success
        request = serving_shop.request(rebuild_requests)
        monkeypatch.setattr(promote, "record", fail)
        job, tags = serving_shop.defs.resolve_job_def("orders_decide"), dict(request.tags)
        monkeypatch.setattr("ae_pipeline.registry.store.Tracker.set_alias", fail)
        assert not job.execute_in_process(instance=serving_shop.instance, tags=tags, raise_on_error=False).success
        monkeypatch.undo()
        serving_shop.land(DAYS[-1])
        serving_shop.run_requests(landing_requests)
        assert serving_shop.run_requests(rebuild_requests) == [f"orders_publish {DAYS[-1]}"]
        assert model_version_of(serving_shop.paths) == 1

    def test_each_contiguous_range_is_one_run(self, serving_shop: Shop) -> None:
        for day in (DAYS[1], DAYS[2], DAYS[9]):
            serving_shop.land(day, orders_csv(day, ROWS + 1))
        serving_shop.run_requests(landing_requests)
        assert serving_shop.run_requests(rebuild_requests) == [
            f"orders_publish {DAYS[1]} to {DAYS[2]}",
            f"orders_publish {DAYS[9]}",
        ]


class TestRollback:
    def test_it_moves_the_alias_the_table_and_the_reports(self, twice_trained_shop: Shop) -> None:
        twice_trained_shop.land(DAYS[-1])
        assert twice_trained_shop.run("ingest", DAYS[-1]).success
        done = twice_trained_shop.roll_back(1, who="Ada", why="version 2 flags too much")
        assert done.success
        assert twice_trained_shop.champion.version == model_version_of(twice_trained_shop.paths) == 1
        assert sorted(published_days(twice_trained_shop.paths)) == DAYS
        assert len(space_folders(twice_trained_shop)) == 1
        rows = pl.read_parquet(DeltaTable(twice_trained_shop.paths.latents).file_uris())
        assert (rows.height, set(rows["model_version"])) == (len(DAYS) * ROWS, {1})
        newest, first = list_versions(twice_trained_shop.dataset, twice_trained_shop.workspace.tracker())
        assert (newest.version, newest.serves, newest.passed) == (2, False, True)
        assert (first.version, first.serves, first.last_day) == (1, True, DAYS[-4])  # before the days of the gate
        assert 0 <= newest.metrics["calibration_error_percent"] <= newest.metrics["flagged_percent"] + 1
        compared = compare_versions(twice_trained_shop.dataset, twice_trained_shop.workspace.tracker(), 2)
        assert (compared.new, compared.old, compared.rows) == (2, 1, 7 * ROWS)
        published = rows.filter(pl.col("date").cast(pl.String).is_in(compared.days))
        assert compared.flagged[1] == published["is_anomaly"].sum()
        assert (compared.gained, compared.lost) == (len(compared.only_new), len(compared.only_old))
        entry = history(twice_trained_shop.paths)[-1]
        assert (entry.change, entry.version, entry.previous) == (Change.ROLLED_BACK, 1, 2)
        assert (entry.who, entry.why) == ("Ada", "version 2 flags too much")
        assert entry.runs["dagster_run_id"] == done.run_id
        # The table is already that of version 1. Dagster shows latents as stale until a run materializes them.
        assert twice_trained_shop.metadata("champion")["model_version"] == 1
        assert stale(twice_trained_shop, "latent_features") == list(DAYS[:-1])
        assert twice_trained_shop.run_requests(rebuild_requests) == [f"orders_publish {ALL}"]
        assert stale(twice_trained_shop, "latent_features") == stale(twice_trained_shop, "anomaly_report") == []
        assert twice_trained_shop.metadata("latent_features", DAYS[3])["model_version"] == 1
        newest, first = list_versions(twice_trained_shop.dataset, twice_trained_shop.workspace.tracker())
        assert newest.published is not None
        assert newest.published.rows == (len(DAYS) - 1) * ROWS  # its last report was before the last day landed
        assert first.published is not None
        assert (first.published.rows, first.published.flagged) == (rows.height, rows["is_anomaly"].sum())
        assert "version 2 flags too much" in (twice_trained_shop.paths.reports / "report.html").read_text()

    def test_it_lasts_until_another_version_is_trained(self, twice_trained_shop: Shop) -> None:
        assert twice_trained_shop.roll_back(1).success
        assert twice_trained_shop.run_stage("champion").success
        assert twice_trained_shop.metadata("champion")["model_version"] == 1
        message = "challenger 2 was promoted before; version 1 keeps serving until another is trained"
        assert twice_trained_shop.metadata("champion")["decision"] == message
        assert twice_trained_shop.run("train").success
        assert twice_trained_shop.metadata("champion")["model_version"] == 3

    def test_a_version_without_latents_is_scored_again(self, twice_trained_shop: Shop) -> None:
        (old,) = {path.name for path in Path(twice_trained_shop.paths.latents).glob("v1_*")}
        shutil.rmtree(Path(twice_trained_shop.paths.latents) / old)
        assert twice_trained_shop.roll_back(1).success
        assert model_version_of(twice_trained_shop.paths) == 1
        assert (
            pl.read_parquet(DeltaTable(twice_trained_shop.paths.latents).file_uris()).height == (len(DAYS) - 1) * ROWS
        )
        assert {"v1"} == {name.split("_")[0] for name in space_folders(twice_trained_shop)}

    def test_an_unknown_version_is_refused_with_the_known_ones(self, twice_trained_shop: Shop) -> None:
        message = "'orders' has no version 9 that can serve; choose among 1, 2"
        assert twice_trained_shop.failure_message(twice_trained_shop.roll_back(9)) == message
        assert twice_trained_shop.champion.version == 2

    def test_without_a_reason_nothing_is_rolled_back(self, twice_trained_shop: Shop) -> None:
        with pytest.raises(dg.DagsterInvalidConfigError, match="a rollback needs a reason"):
            twice_trained_shop.roll_back(1, why=" ")
        assert twice_trained_shop.champion.version == 2

    def test_a_rejected_version_needs_even_if_rejected(
        self, serving_shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reject_every_version(monkeypatch)
        assert serving_shop.run("train").success
        message = "version 2 of 'orders' was rejected: loss_fell: it rose; choose another, or set even_if_rejected"
        message += " (`--even-if-rejected` on the command line)"
        assert serving_shop.failure_message(serving_shop.roll_back(2)) == message
        assert serving_shop.roll_back(2, even_if_rejected=True).success
        assert model_version_of(serving_shop.paths) == 2

    def test_a_waiting_challenger_does_not_undo_it(self, twice_trained_shop: Shop) -> None:
        assert twice_trained_shop.run_stage("autoencoder").success
        assert twice_trained_shop.roll_back(1).success
        waiting = twice_trained_shop.workspace.tracker().version("orders", CHALLENGER)
        assert waiting is not None
        assert (waiting.version, waiting.tags[DECIDED]) == (3, "passed over by a rollback")
        assert twice_trained_shop.run_stage("champion").success
        assert twice_trained_shop.metadata("champion")["model_version"] == 1

    def test_a_failed_commit_is_followed_by_a_rebuild(
        self, twice_trained_shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from ae_pipeline.latents import publish

        def fail(*_: object) -> None:
            raise PublicationError("the commit failed")

        monkeypatch.setattr(publish, "commit_files", fail)
        assert twice_trained_shop.failure_message(twice_trained_shop.roll_back(1)) == "the commit failed"
        monkeypatch.undo()
        assert model_version_of(twice_trained_shop.paths) == 2  # readers still see the complete old table
        assert twice_trained_shop.run_requests(rebuild_requests) == [f"orders_publish {DAYS[0]} to {DAYS[-2]}"]
        assert model_version_of(twice_trained_shop.paths) == twice_trained_shop.champion.version == 1

    def test_failed_scoring_changes_nothing(self, twice_trained_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        from ae_pipeline.latents import table_update

        twice_trained_shop.land(DAYS[-1])
        assert twice_trained_shop.run("ingest", DAYS[-1]).success

        def fail(*_: object) -> None:
            raise PublicationError("the disk is full")

        monkeypatch.setattr(table_update, "write_file", fail)
        assert twice_trained_shop.failure_message(twice_trained_shop.roll_back(1)) == "the disk is full"
        assert twice_trained_shop.champion.version == model_version_of(twice_trained_shop.paths) == 2
        assert [entry.version for entry in history(twice_trained_shop.paths)] == [1, 2]

    def test_the_next_rollback_records_an_interrupted_one(
        self, twice_trained_shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from ae_pipeline.lifecycle import promote

        def fail(*_: object) -> None:
            raise OSError("power failure")

        monkeypatch.setattr(promote, "record", fail)
        assert not twice_trained_shop.roll_back(1, who="Ada").success
        monkeypatch.undo()
        assert twice_trained_shop.champion.version == 1
        assert twice_trained_shop.roll_back(1, who="Ada", why="floods of alerts").success
        entries = history(twice_trained_shop.paths)
        assert [(entry.version, entry.previous) for entry in entries] == [(1, None), (2, 1), (1, 2)]
        assert (entries[-1].who, entries[-1].why) == ("Ada", "floods of alerts")
        assert "planted_faults_found.figure" in entries[1].figures
        assert twice_trained_shop.roll_back(1).success  # version 1 serves already, and the history contains it
        assert len(history(twice_trained_shop.paths)) == 3

    def test_a_rollback_to_the_challenger_decides_it(self, twice_trained_shop: Shop) -> None:
        assert twice_trained_shop.run_stage("autoencoder").success
        assert twice_trained_shop.roll_back(3).success
        champion = twice_trained_shop.champion
        assert (champion.version, champion.tags[DECIDED]) == (3, "chosen by a rollback")


class TestHistory:
    def test_an_incomplete_line_is_skipped(self, tmp_path: Path) -> None:
        from ae_pipeline.storage.paths import DatasetPaths

        paths = DatasetPaths(tmp_path, "d")
        assert history(paths) == []
        first = HistoryEntry(
            at="2024-01-01T00:00:00+00:00",
            change=Change.PROMOTED,
            version=1,
            previous=None,
            who="a test",
            why="it passed",
            figures={"a.figure": 1.5},
        )
        record(paths, first)
        with paths.history.open("a") as file:
            file.write('{"at": "2024-01-0')
        second = HistoryEntry(
            at="2024-01-02T00:00:00+00:00",
            change=Change.ROLLED_BACK,
            version=1,
            previous=2,
            who="a test",
            why="it must",
        )
        record(paths, second)
        assert history(paths) == [first, second]

    def test_lines_are_only_appended(self, tmp_path: Path) -> None:
        path = tmp_path / "folder" / "lines.jsonl"
        previous = b""
        for number in range(3):
            add_line(path, {"number": number, "word": "Ærø\nline"})
            assert path.read_bytes().startswith(previous)
            previous = path.read_bytes()
        assert [line["number"] for line in lines_of(path)] == [0, 1, 2]

    def test_the_next_run_records_an_interrupted_promotion(
        self, serving_shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from ae_pipeline.lifecycle import promote

        def fail(*_: object) -> None:
            raise OSError("power failure")

        monkeypatch.setattr(promote, "record", fail)
        assert not serving_shop.run("train").success
        assert serving_shop.champion.version == 2
        monkeypatch.undo()
        assert serving_shop.run_stage("champion").success
        assert [(entry.version, entry.previous) for entry in history(serving_shop.paths)] == [(1, None), (2, 1)]

    def test_the_next_training_records_an_interrupted_promotion(
        self, serving_shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from ae_pipeline.lifecycle import promote

        def fail(*_: object) -> None:
            raise OSError("power failure")

        monkeypatch.setattr(promote, "record", fail)
        assert not serving_shop.run("train").success
        monkeypatch.undo()
        assert serving_shop.run("train").success
        assert [(entry.version, entry.previous) for entry in history(serving_shop.paths)] == [(1, None), (2, 1), (3, 2)]

    def test_a_new_model_store_starts_again_at_version_1(self, serving_shop: Shop) -> None:
        serving_shop.workspace.tracker().client.delete_registered_model("orders")
        assert serving_shop.schedule_answer() == "no model was trained so far"
        assert serving_shop.run("train").success
        assert [(entry.version, entry.previous) for entry in history(serving_shop.paths)] == [(1, None), (1, 1)]


class TestDays:
    """Unusual days: time zones, leap days, and days with few or no rows."""

    def test_days_are_days_in_utc(self, shop: Shop) -> None:
        # Offsets differ between places and seasons. The day in UTC counts.
        rows = [
            (1, "2024-03-01T19:30:00-05:00"),  # the next day in UTC
            (2, "2024-03-02T18:59:59-05:00"),
            (3, "2024-03-02T00:30:00+01:00"),  # the day before
        ]
        text = "".join(f"{number},{time},1,DE,10\n" for number, time in rows)
        shop.land("clocks", "order_id,created_at,items,country,price\n" + text)
        assert shop.run_requests(landing_requests)[1:] == ["orders_ingest 2024-03-01 to 2024-03-02"]
        days = {day: pl.read_parquet(shop.paths.features(day)) for day in ("2024-03-01", "2024-03-02")}
        assert {day: sorted(rows["row_id"]) for day, rows in days.items()} == {
            "2024-03-01": ["3"],
            "2024-03-02": ["1", "2"],
        }
        assert {rows.schema["event_time"] for rows in days.values()} == {pl.Datetime("us", "UTC")}

    def test_every_day_has_24_hours_also_a_leap_day(self, shop: Shop) -> None:
        partitions = shop.defs.resolve_asset_graph().get(dg.AssetKey(["orders", "raw_data"])).partitions_def
        assert isinstance(partitions, dg.DailyPartitionsDefinition)
        spans = [partitions.time_window_for_partition_key(day) for day in partitions.get_partition_keys()]
        assert {span.end - span.start for span in spans} == {dt.timedelta(days=1)}
        assert "2024-02-29" in partitions.get_partition_keys()

    def test_an_empty_day_and_a_day_of_one_row_are_published(self, serving_shop: Shop) -> None:
        only = orders_csv(DAYS[-1], 1)
        serving_shop.land(DAYS[-1], only)
        serving_shop.land("empty", only.splitlines()[0] + "\n")
        serving_shop.run_requests(landing_requests)
        assert serving_shop.run_requests(rebuild_requests) == [f"orders_publish {DAYS[-1]}"]
        assert serving_shop.metadata("latent_features", DAYS[-1])["dagster/partition_row_count"] == 1
        # The file lands again without its only row, so the day becomes empty.
        serving_shop.land(DAYS[-1], only.splitlines()[0] + "\n")
        assert serving_shop.run_requests(landing_requests)[1:] == [f"orders_ingest {DAYS[-1]}"]
        assert serving_shop.run_requests(rebuild_requests) == [f"orders_publish {DAYS[-1]}"]
        assert DAYS[-1] not in published_days(serving_shop.paths)
        assessment = json.loads((serving_shop.paths.reports / "summary.json").read_text())["verdict"]
        assert (assessment["day"], assessment["aside"]) == (DAYS[-2], f"There are no rows of {DAYS[-1]}.")
        assert not assessment["is_wrong"]
        assert serving_shop.requested(rebuild_requests) == "every day is published and reported on under version 1"

    def test_too_few_rows_fail_the_training_with_a_remedy(self, serving_shop: Shop) -> None:
        for day in DAYS[-9:-2]:  # too few rows to calibrate a budget of 1%, without asking whether to remove so many
            serving_shop.land(day, orders_csv(day, 14))
        serving_shop.run_requests(landing_requests)
        done = serving_shop.run("train")
        assert "rows" in serving_shop.failure_message(done)
        assert "; " in serving_shop.failure_message(done)
        assert serving_shop.champion.version == 1
        assert len(serving_shop.workspace.tracker().versions("orders")) == 1
        assert leftovers(Path(serving_shop.workspace.data_folder)) == []

    def test_no_lock_and_no_temporary_file_remain(self, twice_trained_shop: Shop) -> None:
        with twice_trained_shop.workspace.locked("orders"):
            pass
        assert leftovers(Path(twice_trained_shop.workspace.data_folder)) == []
        locks = {path.name for path in twice_trained_shop.paths.lock.parent.iterdir()}
        assert locks == {"orders.lock", "orders.publication.lock"}
