"""The MLflow store: opened by many at once, one run for a training, one version for a run, and no pickle."""

import contextlib
import dataclasses
import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import mlflow
import numpy as np
import polars as pl
import pytest
from PIL import Image

from ae_pipeline.common.errors import BundleError, StorageError
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.detector.facts import Epoch
from ae_pipeline.registry.names import CHALLENGER, CHAMPION
from ae_pipeline.registry.store import TrackedVersion, Tracker
from tests.support.sensors import Fitted

# The interpreter forks after the imports, which take seconds; the store is opened by four processes at one moment.
_OPEN_BY_FOUR = """
import os, sys
from pathlib import Path
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
def opened(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A fresh store that four processes open at once; all tests of this module go on with it."""
    root = tmp_path_factory.mktemp("ml runs")  # with a blank, as a person's folder may have
    command = [sys.executable, "-c", _OPEN_BY_FOUR, str(root)]
    return root, subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def tracker(opened) -> Tracker:
    return Tracker(opened[0])


@pytest.fixture(scope="module")
def champion(tracker, fitted: Fitted) -> TrackedVersion:
    """A finished training of model 'served', whose version serves."""
    with tracker.training("served", "first", {"dagster_run": "a"}) as run:
        version = run.register(fitted.bundle)
    tracker.set_alias("served", CHAMPION, version.version)
    return version


def runs_of(tracker: Tracker, dataset: str) -> list[mlflow.entities.Run]:
    return list(tracker.client.search_runs([tracker.experiment(dataset)]))


def test_a_fresh_store_is_opened_by_four_processes_at_once(opened, tracker):
    assert opened[1].returncode == 0, opened[1].stderr[-3000:]
    runs = runs_of(tracker, "opened")
    assert sorted(run.data.tags["number"] for run in runs) == ["0", "1", "2", "3"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {run.data.params["experiment"] for run in runs} == {tracker.experiment("opened")}


class TestRuns:
    def test_a_training_leaves_a_finished_run_with_parameters_metrics_and_artifacts(self, tracker):
        with tracker.training("whole", "training of May", {"dagster_run": "r"}) as run:
            run.log_params({"model.latent_dim": 8, "alerts.budget": 0.001}, tags={"window.first_day": "2024-01-01"})
            for number in (1, 2, 3):
                run.log_epoch(Epoch(number, 9.0 / number, 10.0 / number, 0.01))
            run.log_json({"days": ["2024-01-01"]}, "window.json")
            run.log_picture(Image.new("RGB", (4, 3)), "loss.png")
            run.log_metrics({"best_epoch": 3})
        (found,) = runs_of(tracker, "whole")
        assert (found.info.run_id, found.info.run_name, found.info.status) == (
            run.run_id,
            "training of May",
            "FINISHED",
        )
        assert found.info.end_time >= found.info.start_time
        assert found.data.params == {"model.latent_dim": "8", "alerts.budget": "0.001"}
        assert found.data.tags["window.first_day"] == "2024-01-01"
        assert "error" not in found.data.tags
        history = tracker.client.get_metric_history(run.run_id, "validation_loss")
        assert sorted((metric.step, metric.value) for metric in history) == [(1, 10.0), (2, 5.0), (3, 10.0 / 3)]
        assert found.data.metrics["best_epoch"] == 3
        assert sorted(entry.path for entry in tracker.client.list_artifacts(run.run_id)) == ["loss.png", "window.json"]

    def test_a_run_takes_more_metrics_than_the_store_takes_at_a_time(self, tracker):
        with tracker.training("many", "m", {}) as run:
            for step in range(1100):
                run.log_metrics({"loss": float(step)}, step)
            run.flush()
        history = tracker.client.get_metric_history(run.run_id, "loss")
        assert sorted(metric.value for metric in history) == list(range(1100))

    @pytest.mark.parametrize("error", [ValueError("no rows"), KeyboardInterrupt()], ids=["error", "interruption"])
    def test_a_failing_training_leaves_a_failed_run_with_its_error_and_the_epochs_until_then(self, tracker, error):
        dataset = f"failing {type(error).__name__}"

        def fail() -> None:
            with tracker.training(dataset, "f", {"dagster_run": "x"}) as run:
                run.log_epoch(Epoch(1, 3.0, 4.0, 0.01))
                raise error

        with pytest.raises(type(error)):
            fail()
        (found,) = runs_of(tracker, dataset)
        assert found.info.status == "FAILED"
        assert found.data.tags["error"] == f"{type(error).__name__}: {error}"
        assert found.data.metrics["validation_loss"] == 4.0

    def test_another_training_makes_another_run(self, tracker):
        for name in ("a", "b"):
            with tracker.training("two", name, {"dagster_run": name}):
                pass
        with tracker.training("two", "untold", {}), tracker.training("two", "untold", {}):
            pass
        assert len(runs_of(tracker, "two")) == 4


class TestDescription:
    def test_run_and_version_are_described_and_the_run_names_what_it_learnt_from(self, tracker, fitted):
        bundle, rows = fitted.bundle, fitted.bundle.facts.rows
        with tracker.training("described", "d", {"dagster_run": "e"}) as run:
            run.log_data("sensors", fitted.window.fingerprint, "file:///features", rows, bundle)
            version = run.register(bundle)
            run.describe(version, "# in short" + "x" * 6000, "# in full")
        (found,) = runs_of(tracker, "described")
        (used,) = found.inputs.dataset_inputs
        assert used.dataset.name == "sensors"
        assert used.dataset.digest == fitted.window.fingerprint[:36]
        assert json.loads(used.dataset.source) == {"uri": "file:///features"}
        assert json.loads(used.dataset.profile)["num_rows"] == sum(rows.values())
        columns = json.loads(used.dataset.schema)["mlflow_colspec"]
        assert [column["name"] for column in columns] == bundle.columns
        assert {tag.key: tag.value for tag in used.tags} == {"mlflow.data.context": "training"}
        note = found.data.tags["mlflow.note.content"]
        assert note.startswith("# in short")
        assert tracker.client.get_model_version("described", str(version.version)).description == note
        assert mlflow.artifacts.load_text(f"{found.info.artifact_uri}/model_card.md") == "# in full"


class TestRetry:
    def test_a_retry_goes_on_with_its_run_and_leaves_one_version(self, tracker, fitted, other_bundle):
        tags = {"dagster_run": "z", "dataset": "retried"}
        previous = []

        def fail() -> None:
            with tracker.training("retried", "r", tags) as run:
                previous.append(run.register(fitted.bundle))
                raise OSError("lost the machine")

        with pytest.raises(OSError, match="lost"):
            fail()
        with tracker.training("retried", "r", tags) as second:
            after = second.register(other_bundle)
            assert tracker.client.get_run(second.run_id).info.status == "RUNNING"
        (found,) = runs_of(tracker, "retried")
        assert found.info.run_id == previous[0].run_id == second.run_id
        assert found.info.status == "FINISHED"
        assert "error" not in found.data.tags
        versions = tracker.client.search_model_versions("name = 'retried'")
        assert [int(version.version) for version in versions] == [after.version]
        assert after.version != previous[0].version
        assert tracker.version("retried", CHALLENGER) == after == tracker.version_of_run("retried", second.run_id)
        assert ModelBundle.load(tracker.bundle_folder(after)).fingerprint == other_bundle.fingerprint

    def test_doing_a_finished_training_again_is_a_run_of_its_own_and_leaves_the_champion(
        self, tracker, fitted, other_bundle
    ):
        tags = {"dagster_run": "again", "dataset": "repeated"}
        with tracker.training("repeated", "r", tags) as first:
            champion = first.register(fitted.bundle)
        tracker.set_alias("repeated", CHAMPION, champion.version)
        with tracker.training("repeated", "r", tags) as second:
            challenger = second.register(other_bundle)
        assert first.run_id != second.run_id
        assert tracker.version("repeated", CHAMPION) == champion
        assert tracker.version("repeated", CHALLENGER) == challenger

    def test_a_retry_never_withdraws_the_version_that_serves(self, tracker, fitted, other_bundle):
        with tracker.training("kept", "r", {"dagster_run": "k"}) as run:
            champion = run.register(fitted.bundle)
            tracker.set_alias("kept", CHAMPION, champion.version)
            run.register(other_bundle)
        assert tracker.version("kept", CHAMPION) == champion


class TestKilled:
    """Trainings whose process was killed: nothing of them could say so, and their MLflow runs still seem to run."""

    @pytest.fixture(scope="class")
    def dead(self):
        """Contexts of trainings that do not end while these tests last, as those of killed processes."""
        contexts = []
        yield contexts
        for context in contexts:
            with contextlib.suppress(KeyboardInterrupt):
                context.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)

    @pytest.fixture
    def kill(self, dead):
        return partial(self._kill, dead)

    @staticmethod
    def _kill(dead, tracker, dataset, location, bundle=None, tags=()):
        context = tracker.training(dataset, "killed", {"dagster_run": "dead"}, location)
        run = context.__enter__()
        dead.append(context)
        if bundle is not None:
            version = run.register(bundle)
            tracker.tag_version(dataset, version.version, dict(tags))
        return run.run_id

    def test_the_next_training_marks_it_as_killed_and_withdraws_what_was_half_registered(
        self, tracker, fitted, other_bundle, kill
    ):
        dead = kill(tracker, "killed", "here", fitted.bundle)
        with tracker.training("killed", "next", {"dagster_run": "dead"}, "here") as run:
            version = run.register(other_bundle)
        status = {found.info.run_id: found.info.status for found in runs_of(tracker, "killed")}
        assert status == {dead: "KILLED", run.run_id: "FINISHED"}
        assert [found.version for found in tracker.versions("killed")] == [version.version]
        assert tracker.client.get_run(dead).data.tags["error"] == "its process was killed"

    @pytest.mark.parametrize("status", ["FINISHED", "FAILED"])
    def test_so_it_does_where_the_process_ended_between_registering_and_the_verdict(
        self, tracker, fitted, other_bundle, status, kill
    ):
        dataset = f"cut short {status}"
        dead = kill(tracker, dataset, "here", fitted.bundle, {"latents": "compatible"}.items())
        tracker.client.set_terminated(dead, status)
        with tracker.training(dataset, "next", {"dagster_run": "another"}, "here") as run:
            version = run.register(other_bundle)
        told = {found.info.run_id: found.info.status for found in runs_of(tracker, dataset)}
        assert told == {dead: "KILLED" if status == "FINISHED" else "FAILED", run.run_id: "FINISHED"}
        assert [found.version for found in tracker.versions(dataset)] == [version.version]

    def test_a_training_in_another_place_is_left_alone(self, tracker, kill):
        elsewhere = kill(tracker, "shared", "there")
        with tracker.training("shared", "next", {"dagster_run": "b"}, "here"):
            pass
        assert tracker.client.get_run(elsewhere).info.status == "RUNNING"

    def test_a_version_that_was_judged_is_kept(self, tracker, fitted, kill):
        kill(tracker, "judged", "here", fitted.bundle, {"gate": "passed"}.items())
        with tracker.training("judged", "next", {"dagster_run": "b"}, "here"):
            pass
        assert [found.tags["gate"] for found in tracker.versions("judged")] == ["passed"]


class TestVersions:
    def test_aliases_name_the_newest_version_and_the_one_that_serves(self, tracker, champion):
        assert tracker.version("served", CHALLENGER).version == champion.version == 1
        assert tracker.version("served", CHAMPION).run_id == champion.run_id
        assert tracker.version("served", "retired") is None
        assert tracker.version("never trained", CHAMPION) is None
        assert tracker.version_of_run("served", "no such run") is None

    def test_a_tag_of_a_version_is_read_back(self, tracker, champion):
        tracker.tag_version("served", champion.version, {"gate": "passed"})
        assert tracker.version_number("served", champion.version).tags["gate"] == "passed"

    def test_a_version_that_the_registry_does_not_have_is_named(self, tracker, champion):
        with pytest.raises(StorageError, match="the registry has no version 77 of model 'served'"):
            tracker.version_number("served", 77)

    def test_a_moved_bundle_is_the_same_bit_for_bit(self, tracker, champion, fitted):
        folder = tracker.bundle_folder(champion)
        loaded, rows = ModelBundle.load(folder), fitted.features(fitted.days[0])
        assert loaded.fingerprint == fitted.bundle.fingerprint
        assert loaded.score(rows).score.tobytes() == fitted.bundle.score(rows).score.tobytes()

    def test_a_bundle_whose_artifacts_were_moved_is_an_error_that_says_where_they_should_be(self, tracker, champion):
        folder = tracker.bundle_folder(champion)
        elsewhere = folder.rename(folder.with_name("elsewhere"))
        with pytest.raises(
            StorageError, match=r"version 1 of model 'served' has no bundle at .*; the folder of MLflow's"
        ):
            tracker.bundle_folder(champion)
        elsewhere.rename(folder)
        assert tracker.bundle_folder(champion) == folder

    def test_a_bundle_elsewhere_is_fetched_once(self, tracker, champion, monkeypatch):
        here, fetched = tracker.bundle_folder(champion), []

        def fetch(uri: str, dst_path: str) -> str:
            fetched.append(uri)
            return shutil.copytree(here, Path(dst_path) / "bundle")

        elsewhere = "mlflow-artifacts:/1/models/m-1/artifacts"
        monkeypatch.setattr(tracker.client, "get_model_version_download_uri", lambda *_: elsewhere)
        monkeypatch.setattr(mlflow.artifacts, "download_artifacts", fetch)
        folders = {tracker.bundle_folder(champion) for _ in range(3)}
        assert fetched == [f"{elsewhere}/artifacts/bundle"]
        assert ModelBundle.load(folders.pop()).fingerprint == ModelBundle.load(here).fingerprint
        for number in range(2, 9):
            tracker.bundle_folder(dataclasses.replace(champion, version=number))
        assert len(list((tracker.root / "downloaded" / "served").iterdir())) == 4


class TestServing:
    @pytest.fixture(scope="class")
    def model(self, tracker, champion) -> mlflow.pyfunc.PyFuncModel:
        tracker.client  # noqa: B018 - names the store to mlflow
        return mlflow.pyfunc.load_model(f"models:/served@{CHAMPION}")

    @pytest.mark.parametrize("rows", [1, 60])
    @pytest.mark.parametrize("zone", ["UTC", None])
    def test_the_registered_model_predicts_what_the_bundle_scores(self, model, fitted, rows, zone):
        features = fitted.features(fitted.days[-1]).head(rows)
        scored = fitted.bundle.score(features)
        found = model.predict(features.with_columns(pl.col("event_time").dt.replace_time_zone(zone)).to_pandas())
        assert list(found.columns) == ["z_000", "z_001", "z_002", "score", "p_value", "is_anomaly"]
        np.testing.assert_allclose(found[["z_000", "z_001", "z_002"]], scored.latents, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found["score"], scored.score, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found["p_value"], scored.p_value, rtol=1e-5)
        np.testing.assert_array_equal(found["is_anomaly"], scored.is_anomaly)

    def test_missing_values_of_every_column_are_served(self, model, fitted):
        features = fitted.features(fitted.days[-1]).head(8)
        names = ["load", "temperature", "mode", "is_open", "scheduled"]
        row = pl.int_range(pl.len())
        gappy = features.with_columns(pl.when(row != location).then(name) for location, name in enumerate(names))
        assert [gappy[name].null_count() >= 1 for name in names] == [True] * 5
        found = model.predict(gappy.to_pandas())
        np.testing.assert_allclose(found["score"], fitted.bundle.score(gappy).score, rtol=1e-5, atol=1e-5)

    def test_the_index_of_the_input_is_kept(self, model, fitted):
        features = fitted.features(fitted.days[-1]).head(3).to_pandas().set_axis([7, 5, 9])
        assert model.predict(features).index.tolist() == [7, 5, 9]

    def test_nothing_among_the_artifacts_is_pickled(self, tracker, champion, model):
        folder = tracker.bundle_folder(champion).parents[1]
        names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert {"MLmodel", "artifacts/bundle/bundle.json", "artifacts/bundle/weights.safetensors"} <= names
        assert not {Path(name).suffix for name in names} & {".pkl", ".pickle", ".pt", ".pth", ".joblib", ".bin"}
        for name in names:
            assert (folder / name).read_bytes()[:1] != b"\x80", name

    def test_the_signature_lists_the_columns_and_what_comes_back(self, model, fitted):
        signature = model.metadata.signature
        assert signature.inputs.input_names() == fitted.bundle.columns
        assert signature.outputs.input_names() == ["z_000", "z_001", "z_002", "score", "p_value", "is_anomaly"]

    def test_the_registered_model_removes_noise_as_the_bundle_does(self, model, fitted):
        features = fitted.features(fitted.days[0])
        found = model.predict(features.to_pandas(), params={"use": "denoise"})
        expected = fitted.bundle.denoise(features.select(fitted.bundle.columns))
        assert found.columns.tolist() == expected.columns
        for name in ("load", "power"):
            assert found[name].to_numpy() == pytest.approx(expected[name].to_numpy(), rel=1e-9)
        assert found["mode"].tolist() == expected["mode"].to_list()
        assert not np.allclose(found["load"], features["load"])

    def test_a_use_that_there_is_not_is_explained(self, model, fitted):
        with pytest.raises(BundleError, match="use='sing' is not a use of this model; choose score or denoise"):
            model.predict(fitted.features(fitted.days[0]).to_pandas(), params={"use": "sing"})
