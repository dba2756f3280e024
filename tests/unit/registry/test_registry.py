"""The MLflow store: concurrent access, one run for each training, one version for each run, and no pickle."""

import contextlib
import dataclasses
import json
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import polars as pl
import pytest
import sqlalchemy
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.scoring_server import infer_and_parse_data
from mlflow.store.db import utils
from mlflow.store.tracking.dbmodels.initial_models import Base as InitialBase
from PIL import Image

from ae_pipeline.common.errors import BundleError, StorageError
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.detector.facts import Epoch
from ae_pipeline.registry.names import CHALLENGER, CHAMPION
from ae_pipeline.registry.store import Tracker
from ae_pipeline.registry.training_run import TrainingRun
from ae_pipeline.registry.versions import TrackedVersion
from ae_pipeline.registry.window import WINDOW_FILE, window_content
from tests.support.model_store import make_model_store
from tests.support.sensors import Fitted

pytestmark = pytest.mark.slow

Contexts = list[AbstractContextManager[TrainingRun]]
Kill = Callable[..., str]

# The script forks after its imports, which take seconds, so that four processes open the store at the same time.
_OPEN_IN_FOUR_PROCESSES = """
import os, sys
from pathlib import Path
from typing import Any
from ae_pipeline.registry.store import Tracker

start_read, start_write = os.pipe()
children = []
for number in range(4):
    if not (child := os.fork()):
        os.close(start_write)
        os.read(start_read, 1)  # returns for all at once, when the parent closes its end
        tracker = Tracker(Path(sys.argv[1]))
        with tracker.training("opened", f"run {number}", {"number": str(number)}) as run:
            run.log_params({"experiment": tracker.experiment("opened")})
        os._exit(0)
    children.append(child)
os.close(start_write)
sys.exit(sum(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children))
"""


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder of a new store that four processes open at once, and the result. All tests of the module use it."""
    root = tmp_path_factory.mktemp("ml runs")  # folder names of users may have a space
    command = [sys.executable, "-c", _OPEN_IN_FOUR_PROCESSES, str(root)]
    return root, subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def tracker(opened: tuple[Path, subprocess.CompletedProcess[str]]) -> Tracker:
    return Tracker(opened[0])


@pytest.fixture(scope="module")
def champion(tracker: Tracker, fitted: Fitted) -> TrackedVersion:
    """The champion of model `served`, registered by a finished training."""
    with tracker.training("served", "first", {"dagster_run": "a"}) as run:
        version = run.register(fitted.bundle)
    tracker.set_alias("served", CHAMPION, version.version)
    return version


def runs_of(tracker: Tracker, dataset: str) -> list[mlflow.entities.Run]:
    return list(tracker.client.search_runs([tracker.experiment(dataset)]))


def test_the_window_of_a_training_is_read_without_leaving_a_temporary_folder(
    tracker: Tracker, champion: TrackedVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert window_content(tracker, champion) is None
    tracker.client.log_dict(champion.run_id, {"content": {"2024-01-01": ["f00", 3]}}, WINDOW_FILE)
    assert window_content(tracker, champion) == {"2024-01-01": ("f00", 3)}
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_database_is_raised_and_not_logged(
    tracker: Tracker, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert tracker.database is not None
    shutil.copy(tracker.database, tmp_path)
    broken = Tracker(tmp_path)
    client = broken.client
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
        connection.execute("DROP TABLE experiments")
    with pytest.raises(MlflowException, match="no such table"):
        client.search_experiments()
    assert capfd.readouterr() == ("", "")
    mlflow.set_tracking_uri(tracker.uri)  # a client of another store has changed both
    mlflow.set_registry_uri(tracker.uri)


def test_four_processes_can_open_a_new_store_at_once(
    opened: tuple[Path, subprocess.CompletedProcess[str]], tracker: Tracker
) -> None:
    assert opened[1].returncode == 0, opened[1].stderr[-3000:]
    runs = runs_of(tracker, "opened")
    assert sorted(run.data.tags["number"] for run in runs) == ["0", "1", "2", "3"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {run.data.params["experiment"] for run in runs} == {tracker.experiment("opened")}


def test_all_runs_of_a_dataset_are_read_by_queries_of_whole_pages(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = tracker.experiment("asked")
    runs = [tracker.client.create_run(experiment, tags={"number": str(number)}) for number in range(5)]
    tracker.client.log_metric(runs[0].info.run_id, "unseen/auroc", 0.9)
    tracker.client.delete_run(runs[1].info.run_id)
    search, pages = tracker.client.search_runs, []

    def by_two(experiments: list[str], **options: Any) -> Any:
        pages.append(options["page_token"])
        return search(experiments, max_results=2, **options)

    monkeypatch.setattr(tracker.client, "search_runs", by_two)
    facts = tracker.facts_of_runs("asked")
    assert {facts[run.info.run_id][0]["number"] for run in runs} == {"0", "1", "2", "3", "4"}
    assert facts[runs[0].info.run_id][1] == {"unseen/auroc": 0.9}
    assert len(pages) == 3


def test_a_look_at_the_runs_of_a_dataset_without_any_writes_nothing(tracker: Tracker) -> None:
    assert tracker.facts_of_runs("never_trained") == {}
    assert tracker.client.get_experiment_by_name("never_trained") is None
    assert not (tracker.root / "artifacts" / "never_trained").exists()


class TestRuns:
    def test_a_training_logs_parameters_metrics_and_artifacts(self, tracker: Tracker) -> None:
        with tracker.training("whole", "training of May", {"dagster_run": "r"}) as run:
            run.log_params({"model.latent_dim": 8, "alerts.budget": 0.001}, tags={"window.first_day": "2024-01-01"})
            for number in (1, 2, 3):
                run.log_epoch(Epoch(number, 9.0 / number, 10.0 / number, 0.01))
            run.log_json({"days": ["2024-01-01"]}, "window.json")
            run.log_picture(Image.new("RGB", (4, 3)), "loss.png")
            run.log_metrics({"best_epoch": 3})
        (logged,) = runs_of(tracker, "whole")
        assert (logged.info.run_id, logged.info.run_name, logged.info.status) == (
            run.run_id,
            "training of May",
            "FINISHED",
        )
        assert logged.info.end_time >= logged.info.start_time
        assert logged.data.params == {"model.latent_dim": "8", "alerts.budget": "0.001"}
        assert logged.data.tags["window.first_day"] == "2024-01-01"
        assert "error" not in logged.data.tags
        history = tracker.client.get_metric_history(run.run_id, "validation_loss")
        assert sorted((metric.step, metric.value) for metric in history) == [(1, 10.0), (2, 5.0), (3, 10.0 / 3)]
        assert logged.data.metrics["best_epoch"] == 3
        assert sorted(entry.path for entry in tracker.client.list_artifacts(run.run_id)) == ["loss.png", "window.json"]

    def test_a_run_logs_more_metrics_than_one_call_accepts(self, tracker: Tracker) -> None:
        with tracker.training("many", "m", {}) as run:
            for step in range(1100):
                run.log_metrics({"loss": float(step)}, step)
            run.flush()
        history = tracker.client.get_metric_history(run.run_id, "loss")
        assert sorted(metric.value for metric in history) == list(range(1100))

    @pytest.mark.parametrize(
        ("error", "status", "message"),
        [(ValueError("no rows"), "FAILED", "ValueError: no rows"), (KeyboardInterrupt(), "KILLED", "it was stopped")],
        ids=["error", "interruption"],
    )
    def test_a_failed_training_keeps_its_error_and_its_epochs(
        self, tracker: Tracker, error: BaseException, status: str, message: str
    ) -> None:
        dataset = f"failing {type(error).__name__}"

        def fail() -> None:
            with tracker.training(dataset, "f", {"dagster_run": "x"}) as run:
                run.log_epoch(Epoch(1, 3.0, 4.0, 0.01))
                raise error

        with pytest.raises(type(error)):
            fail()
        (logged,) = runs_of(tracker, dataset)
        assert logged.info.status == status
        assert logged.data.tags["error"] == message
        assert logged.data.metrics["validation_loss"] == 4.0

    def test_each_training_creates_a_run(self, tracker: Tracker) -> None:
        for name in ("a", "b"):
            with tracker.training("two", name, {"dagster_run": name}):
                pass
        with tracker.training("two", "untagged", {}), tracker.training("two", "untagged", {}):
            pass
        assert len(runs_of(tracker, "two")) == 4


class TestDescription:
    def test_run_and_version_have_a_description_and_the_input_data(self, tracker: Tracker, fitted: Fitted) -> None:
        bundle, rows = fitted.bundle, fitted.bundle.facts.rows
        with tracker.training("described", "d", {"dagster_run": "e"}) as run:
            run.log_data("sensors", fitted.window.fingerprint, "file:///features", rows, bundle)
            version = run.register(bundle)
            run.describe(version, "# in short" + "x" * 6000, "# in full")
        (logged,) = runs_of(tracker, "described")
        assert logged.inputs is not None
        (used,) = logged.inputs.dataset_inputs
        assert used.dataset.name == "sensors"
        assert used.dataset.digest == fitted.window.fingerprint[:36]
        assert json.loads(used.dataset.source) == {"uri": "file:///features"}
        assert json.loads(str(used.dataset.profile))["num_rows"] == sum(rows.values())
        columns = json.loads(str(used.dataset.schema))["mlflow_colspec"]
        assert [column["name"] for column in columns] == bundle.columns
        assert {tag.key: tag.value for tag in used.tags} == {"mlflow.data.context": "training"}
        note = logged.data.tags["mlflow.note.content"]
        assert note.startswith("# in short")
        assert tracker.client.get_model_version("described", str(version.version)).description == note
        assert mlflow.artifacts.load_text(f"{logged.info.artifact_uri}/model_card.md") == "# in full"

    def test_an_experiment_keeps_what_a_person_wrote_about_it(self, tracker: Tracker) -> None:
        def note() -> str:
            experiment = tracker.client.get_experiment(tracker.experiment("noted"))
            return str(experiment.tags["mlflow.note.content"])

        for text in ("first", "second"):  # the configuration has changed
            tracker.describe_experiment("noted", text)
            assert note() == text
        tracker.client.set_experiment_tag(tracker.experiment("noted"), "mlflow.note.content", "ask Ada first. second")
        tracker.describe_experiment("noted", "third")
        assert note() == "ask Ada first. second"

    def test_a_description_of_a_run_starts_with_the_newest_paragraph(self, tracker: Tracker) -> None:
        run = tracker.client.create_run(tracker.experiment("led"), tags={"mlflow.note.content": "# the card"})

        def note() -> str:
            return str(tracker.client.get_run(run.info.run_id).data.tags["mlflow.note.content"])

        for lead in ("calm", "wrong"):
            tracker.lead_description(run.info.run_id, lead)
            assert note().splitlines() == [lead, "", "<!-- end of the verdict -->", "", "# the card"]
        tracker.client.set_tag(run.info.run_id, "mlflow.note.content", f"{note()} and a note of Ada")
        tracker.lead_description(run.info.run_id, "calm")
        assert note().splitlines()[0] == "calm"
        assert note().endswith("# the card and a note of Ada")
        tracker.client.set_tag(run.info.run_id, "mlflow.note.content", "card " * 1000)
        for _ in range(2):
            tracker.lead_description(run.info.run_id, "x" * 5000)
            assert note().endswith("\n\n" + "card " * 1000)


class TestRetry:
    def test_a_retry_continues_its_run_and_leaves_one_version(
        self, tracker: Tracker, fitted: Fitted, other_bundle: ModelBundle
    ) -> None:
        tags = {"dagster_run": "z", "dataset": "retried"}
        previous = []

        def fail() -> None:
            with tracker.training("retried", "r", tags) as run:
                run.log_params({"model.latent_dim": 3, "alerts.budget": 0.01}, {"score_threshold": "7.5"})
                previous.append(run.register(fitted.bundle))
                raise OSError("lost the machine")

        with pytest.raises(OSError, match="lost"):
            fail()
        with tracker.training("retried", "r", tags) as second:
            second.log_params({"model.latent_dim": 4, "alerts.budget": 0.01}, {"score_threshold": "8.5"})
            after = second.register(other_bundle)
            assert tracker.client.get_run(second.run_id).info.status == "RUNNING"
        (logged,) = runs_of(tracker, "retried")
        assert logged.info.run_id == previous[0].run_id == second.run_id
        assert logged.info.status == "FINISHED"
        assert "error" not in logged.data.tags
        assert logged.data.params == {"model.latent_dim": "3", "alerts.budget": "0.01"}  # MLflow never changes one
        assert (logged.data.tags["model.latent_dim"], logged.data.tags["score_threshold"]) == ("4", "8.5")
        assert "alerts.budget" not in logged.data.tags
        versions = tracker.client.search_model_versions("name = 'retried'")
        assert [int(version.version) for version in versions] == [after.version]
        assert after.version != previous[0].version
        assert tracker.version("retried", CHALLENGER) == after == tracker.version_of_run("retried", second.run_id)
        assert ModelBundle.load(tracker.bundle_folder(after)).fingerprint == other_bundle.fingerprint

    def test_repeating_a_finished_training_keeps_the_champion(
        self, tracker: Tracker, fitted: Fitted, other_bundle: ModelBundle
    ) -> None:
        tags = {"dagster_run": "again", "dataset": "repeated"}
        with tracker.training("repeated", "r", tags) as first:
            champion = first.register(fitted.bundle)
        tracker.set_alias("repeated", CHAMPION, champion.version)
        with tracker.training("repeated", "r", tags) as second:
            challenger = second.register(other_bundle)
        assert first.run_id != second.run_id
        assert tracker.version("repeated", CHAMPION) == champion
        assert tracker.version("repeated", CHALLENGER) == challenger

    def test_a_retry_never_deletes_the_champion(
        self, tracker: Tracker, fitted: Fitted, other_bundle: ModelBundle
    ) -> None:
        with tracker.training("kept", "r", {"dagster_run": "k"}) as run:
            champion = run.register(fitted.bundle)
            tracker.set_alias("kept", CHAMPION, champion.version)
            run.register(other_bundle)
        assert tracker.version("kept", CHAMPION) == champion


class TestKilled:
    """Trainings whose process was killed, so that their MLflow runs are still marked as running."""

    @pytest.fixture(scope="class")
    def open_contexts(self) -> Iterator[Contexts]:
        """Contexts of trainings that stay open until these tests end, like those of killed processes."""
        contexts: Contexts = []
        yield contexts
        for context in contexts:
            with contextlib.suppress(KeyboardInterrupt):
                context.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)

    @pytest.fixture
    def kill(self, open_contexts: Contexts) -> Kill:
        """Start a training, register a bundle with some tags, and leave it as a killed process does."""

        def kill(
            tracker: Tracker,
            dataset: str,
            location: str,
            bundle: ModelBundle | None = None,
            tags: Mapping[str, str] | None = None,
        ) -> str:
            context = tracker.training(dataset, "killed", {"dagster_run": "killed"}, location)
            run = context.__enter__()
            open_contexts.append(context)
            if bundle is not None:
                version = run.register(bundle)
                tracker.tag_version(dataset, version.version, tags or {})
            return run.run_id

        return kill

    def test_the_next_training_marks_it_and_deletes_its_version(
        self, tracker: Tracker, fitted: Fitted, other_bundle: ModelBundle, kill: Kill
    ) -> None:
        killed = kill(tracker, "killed", "here", fitted.bundle)
        with tracker.training("killed", "next", {"dagster_run": "killed"}, "here") as run:
            version = run.register(other_bundle)
        status = {logged.info.run_id: logged.info.status for logged in runs_of(tracker, "killed")}
        assert status == {killed: "KILLED", run.run_id: "FINISHED"}
        assert [entry.version for entry in tracker.versions("killed")] == [version.version]
        assert tracker.client.get_run(killed).data.tags["error"] == "its process was killed"

    @pytest.mark.parametrize("status", ["FINISHED", "FAILED"])
    def test_a_version_without_a_gate_result_is_deleted(
        self, tracker: Tracker, fitted: Fitted, other_bundle: ModelBundle, status: str, kill: Kill
    ) -> None:
        dataset = f"cut short {status}"
        killed = kill(tracker, dataset, "here", fitted.bundle, {"latents": "compatible"})
        tracker.client.set_terminated(killed, status)
        with tracker.training(dataset, "next", {"dagster_run": "another"}, "here") as run:
            version = run.register(other_bundle)
        statuses = {logged.info.run_id: logged.info.status for logged in runs_of(tracker, dataset)}
        assert statuses == {killed: "KILLED" if status == "FINISHED" else "FAILED", run.run_id: "FINISHED"}
        assert [entry.version for entry in tracker.versions(dataset)] == [version.version]

    def test_a_training_in_another_data_folder_is_untouched(self, tracker: Tracker, kill: Kill) -> None:
        elsewhere = kill(tracker, "shared", "there")
        with tracker.training("shared", "next", {"dagster_run": "b"}, "here"):
            pass
        assert tracker.client.get_run(elsewhere).info.status == "RUNNING"

    def test_a_version_with_a_gate_result_is_kept(self, tracker: Tracker, fitted: Fitted, kill: Kill) -> None:
        kill(tracker, "evaluated", "here", fitted.bundle, {"gate": "passed"})
        with tracker.training("evaluated", "next", {"dagster_run": "b"}, "here"):
            pass
        assert [entry.tags["gate"] for entry in tracker.versions("evaluated")] == ["passed"]


class TestVersions:
    def test_aliases_return_the_challenger_and_the_champion(self, tracker: Tracker, champion: TrackedVersion) -> None:
        for alias in (CHALLENGER, CHAMPION):
            version = tracker.version("served", alias)
            assert version is not None
            assert (version.version, version.run_id) == (1, champion.run_id)
        assert champion.version == 1
        assert tracker.version("served", "retired") is None
        assert tracker.version("never trained", CHAMPION) is None
        assert tracker.version_of_run("served", "no such run") is None

    def test_a_version_has_the_tags_that_were_set(self, tracker: Tracker, champion: TrackedVersion) -> None:
        tracker.tag_version("served", champion.version, {"gate": "passed"})
        assert tracker.version_number("served", champion.version).tags["gate"] == "passed"

    def test_a_missing_version_is_an_error_with_a_remedy(self, tracker: Tracker, champion: TrackedVersion) -> None:
        with pytest.raises(
            StorageError, match=r"no version 77 of model 'served', .*; restore the MLflow store, or train"
        ):
            tracker.version_number("served", 77)

    def test_a_registered_bundle_gives_the_same_bytes(
        self, tracker: Tracker, champion: TrackedVersion, fitted: Fitted
    ) -> None:
        folder = tracker.bundle_folder(champion)
        loaded, rows = ModelBundle.load(folder), fitted.features(fitted.days[0])
        assert loaded.fingerprint == fitted.bundle.fingerprint
        assert loaded.score(rows).score.tobytes() == fitted.bundle.score(rows).score.tobytes()

    def test_a_missing_bundle_is_an_error_with_its_path(self, tracker: Tracker, champion: TrackedVersion) -> None:
        folder = tracker.bundle_folder(champion)
        elsewhere = folder.rename(folder.with_name("elsewhere"))
        with pytest.raises(
            StorageError, match=r"version 1 of model 'served' has no bundle at .*; the folder of MLflow's"
        ):
            tracker.bundle_folder(champion)
        elsewhere.rename(folder)
        assert tracker.bundle_folder(champion) == folder

    @pytest.mark.parametrize("root", ["mlflow-artifacts:/1/models/m-1", "s3://models/1/models/m-1"])
    def test_the_address_of_a_bundle_is_that_of_the_server(
        self, root: str, tracker: Tracker, champion: TrackedVersion, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert tracker.bundle_uri(champion) == tracker.bundle_folder(champion).as_uri()
        monkeypatch.setattr(tracker.client, "get_model_version_download_uri", lambda *_: root)
        assert tracker.bundle_uri(champion) == f"{root}/artifacts/bundle"

    def test_a_remote_bundle_is_downloaded_once(
        self, tracker: Tracker, champion: TrackedVersion, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        local = tracker.bundle_folder(champion)
        downloads: list[str] = []

        def download(uri: str, dst_path: str) -> str:
            downloads.append(uri)
            return str(shutil.copytree(local, Path(dst_path) / "bundle"))

        elsewhere = "mlflow-artifacts:/1/models/m-1/artifacts"
        monkeypatch.setattr(tracker.client, "get_model_version_download_uri", lambda *_: elsewhere)
        monkeypatch.setattr(mlflow.artifacts, "download_artifacts", download)
        folders = {tracker.bundle_folder(champion) for _ in range(3)}
        assert downloads == [f"{elsewhere}/artifacts/bundle"]
        assert ModelBundle.load(folders.pop()).fingerprint == ModelBundle.load(local).fingerprint
        for number in range(2, 9):
            tracker.bundle_folder(dataclasses.replace(champion, version=number))
        assert len(list((tracker.root / "downloaded" / "served").iterdir())) == 4


class TestServing:
    @pytest.fixture(scope="class")
    def model(self, tracker: Tracker, champion: TrackedVersion) -> Any:
        tracker.client  # noqa: B018 - sets the URI of mlflow
        return mlflow.pyfunc.load_model(f"models:/served@{CHAMPION}")

    @pytest.mark.parametrize("rows", [1, 60])
    @pytest.mark.parametrize("zone", ["UTC", None])
    def test_the_registered_model_returns_the_scores_of_the_bundle(
        self, model: Any, fitted: Fitted, rows: int, zone: str | None
    ) -> None:
        features = fitted.features(fitted.days[-1]).head(rows)
        scored = fitted.bundle.score(features)
        predicted = model.predict(features.with_columns(pl.col("event_time").dt.replace_time_zone(zone)).to_pandas())
        assert list(predicted.columns) == ["z_000", "z_001", "z_002", "score", "p_value", "is_anomaly"]
        np.testing.assert_allclose(predicted[["z_000", "z_001", "z_002"]], scored.latents, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(predicted["score"], scored.score, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(predicted["p_value"], scored.p_value, rtol=1e-5)
        np.testing.assert_array_equal(predicted["is_anomaly"], scored.is_anomaly)

    def test_its_bundle_can_be_taken_out_to_score_raw_rows(self, model: Any, fitted: Fitted) -> None:
        assert model.unwrap_python_model().bundle.fingerprint == fitted.bundle.fingerprint

    def test_every_column_may_have_missing_values(self, model: Any, fitted: Fitted) -> None:
        features = fitted.features(fitted.days[-1]).head(8)
        names = ["load", "temperature", "mode", "is_open", "scheduled"]
        row = pl.int_range(pl.len())
        gappy = features.with_columns(pl.when(row != index).then(name) for index, name in enumerate(names))
        assert [gappy[name].null_count() >= 1 for name in names] == [True] * 5
        predicted = model.predict(gappy.to_pandas())
        np.testing.assert_allclose(predicted["score"], fitted.bundle.score(gappy).score, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("dtype", ["object", "boolean", "float64", "request"])
    def test_a_missing_boolean_is_not_false(self, model: Any, fitted: Fitted, dtype: str) -> None:
        features = fitted.features(fitted.days[-1]).head(3)
        gappy = features.with_columns(is_open=pl.Series([True, None, False]))
        expected = fitted.bundle.score(gappy).score
        assert not np.allclose(
            expected, fitted.bundle.score(gappy.with_columns(pl.col("is_open").fill_null(False))).score
        )
        rows = gappy.to_pandas()
        if dtype == "request":
            body = {"dataframe_split": json.loads(rows.to_json(orient="split", date_format="iso"))}
            rows = infer_and_parse_data(body, model.metadata.get_input_schema())
        else:
            rows = rows.assign(
                is_open=pd.Series([True, None, False], dtype="object").astype(pd.api.types.pandas_dtype(dtype))
            )
        np.testing.assert_allclose(model.predict(rows)["score"], expected, rtol=1e-5, atol=1e-5)

    def test_a_text_in_a_boolean_column_is_an_error(self, model: Any, fitted: Fitted) -> None:
        rows = fitted.features(fitted.days[-1]).head(2).to_pandas().assign(is_open="ja")
        with pytest.raises(BundleError, match="column 'is_open' holds 'ja', which is no boolean; give true, false or"):
            model.predict(rows)

    def test_the_index_of_the_input_is_kept(self, model: Any, fitted: Fitted) -> None:
        features = fitted.features(fitted.days[-1]).head(3).to_pandas().set_axis([7, 5, 9])
        assert model.predict(features).index.tolist() == [7, 5, 9]

    def test_no_artifact_is_pickled(self, tracker: Tracker, champion: TrackedVersion, model: Any) -> None:
        folder = tracker.bundle_folder(champion).parents[1]
        names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert {"MLmodel", "artifacts/bundle/bundle.json", "artifacts/bundle/weights.safetensors"} <= names
        assert not {Path(name).suffix for name in names} & {".pkl", ".pickle", ".pt", ".pth", ".joblib", ".bin"}
        for name in names:
            assert (folder / name).read_bytes()[:1] != b"\x80", name

    def test_the_signature_lists_inputs_and_outputs(self, model: Any, fitted: Fitted) -> None:
        signature = model.metadata.signature
        assert signature.inputs.input_names() == fitted.bundle.columns
        assert signature.outputs.input_names() == ["z_000", "z_001", "z_002", "score", "p_value", "is_anomaly"]

    def test_the_registered_model_denoises_like_the_bundle(self, model: Any, fitted: Fitted) -> None:
        features = fitted.features(fitted.days[0])
        predicted = model.predict(features.to_pandas(), params={"use": "denoise"})
        expected = fitted.bundle.denoise(features.select(fitted.bundle.columns))
        assert predicted.columns.tolist() == expected.columns
        for name in ("load", "power"):
            assert predicted[name].to_numpy() == pytest.approx(expected[name].to_numpy(), rel=1e-9)
        assert predicted["mode"].tolist() == expected["mode"].to_list()
        assert not np.allclose(predicted["load"], features["load"])

    def test_an_unknown_use_is_an_error_with_the_known_ones(self, model: Any, fitted: Fitted) -> None:
        with pytest.raises(BundleError, match="use='sing' is not a use of this model; choose score or denoise"):
            model.predict(fitted.features(fitted.days[0]).to_pandas(), params={"use": "sing"})


def test_a_creation_that_is_killed_leaves_no_half_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(engine: sqlalchemy.Engine) -> None:
        InitialBase.metadata.create_all(engine)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(utils, "_initialize_tables", killed)
        with pytest.raises(KeyboardInterrupt):
            Tracker(tmp_path).open()
    assert [path.name for path in tmp_path.iterdir()] == [".mlflow.lock"]
    Tracker(tmp_path).open()
    assert Tracker(tmp_path).versions("sensors") == []


def test_a_full_disk_is_named_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = Tracker(make_model_store(tmp_path))

    def fail(*_: object, **__: object) -> None:
        raise MlflowException("(sqlite3.OperationalError) database or disk is full")

    monkeypatch.setattr(type(tracker.client), "search_model_versions", fail)
    with pytest.raises(StorageError, match=r"^no space left on the disk of .* MB are free, and more are needed; free"):
        tracker.versions("sensors")
