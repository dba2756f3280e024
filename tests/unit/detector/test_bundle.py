"""Bundles on disk: their content, reproducible bytes, and the errors for damaged files."""

import copy
import dataclasses
import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import safetensors.torch
import torch

from ae_pipeline.common.errors import BundleError, DeviceError, TrainingError
from ae_pipeline.detector import tensors
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.detector.bundle_files import MANIFEST, NOT_COUNTED, WEIGHTS
from ae_pipeline.detector.facts import AlignmentFacts, TrainingFacts
from ae_pipeline.features.split import PARTS
from ae_pipeline.models.losses import LikelihoodLoss
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.hashing import hash_json
from ae_pipeline.training import fit, tails
from ae_pipeline.training.fit import fit_bundle, fit_detector
from tests.support.sensors import NO_ENSEMBLE, Fitted, sensor_config, with_encoder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def saved(fitted: Fitted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the tiny dataset, saved. Tests must not change it."""
    folder = tmp_path_factory.mktemp("bundle")
    fitted.bundle.save(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of the saved bundle that the test may damage."""
    return shutil.copytree(saved, tmp_path / "bundle")


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_keys_of_a_later_version_do_not_change_the_fingerprint(fitted: Fitted, folder: Path) -> None:
    """A bundle of before time zones keeps its fingerprint, on which the names of the table's files depend."""

    def forget(manifest: dict[str, Any]) -> None:
        del manifest["config"]["timezone"], manifest["encoder"]["timezone"], manifest["digests"], manifest[NOT_COUNTED]

    edit_manifest(folder, forget)
    bundle = ModelBundle.load(folder)
    assert bundle.config.timezone == "UTC"
    assert bundle.fingerprint != fitted.bundle.fingerprint
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    digests = {name: hashlib.sha256(value.numpy().tobytes()).hexdigest() for name, value in tensors.items()}
    assert bundle.fingerprint == hash_json([json.loads((folder / MANIFEST).read_text()), digests])
    rows = fitted.features(fitted.days[0])
    np.testing.assert_array_equal(bundle.score(rows).score, fitted.bundle.score(rows).score)


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    change(tensors)
    safetensors.torch.save_file(tensors, folder / WEIGHTS)


def tensor_digests(folder: Path) -> dict[str, str]:
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    return {name: hashlib.sha256(value.numpy().tobytes()).hexdigest() for name, value in tensors.items()}


def truncate(path: Path, keep: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


class TestFiles:
    def test_it_is_a_json_file_and_a_safetensors_file(self, saved: Path) -> None:
        assert sorted(path.name for path in saved.iterdir()) == [MANIFEST, WEIGHTS]
        for path in saved.iterdir():
            assert path.read_bytes()[:2] not in {b"\x80\x02", b"\x80\x04", b"\x80\x05", b"PK"}
        json.loads((saved / MANIFEST).read_text())
        length = int.from_bytes((saved / WEIGHTS).read_bytes()[:8], "little")  # the header of safetensors is JSON
        assert "calibration.scores" in json.loads((saved / WEIGHTS).read_bytes()[8 : 8 + length])

    def test_the_same_data_and_configuration_give_the_same_bytes(
        self, fitted: Fitted, saved: Path, tmp_path: Path
    ) -> None:
        again, _ = fit_bundle(fitted, fitted.columns, fitted.window)
        again.save(tmp_path)
        for name in (MANIFEST, WEIGHTS):
            assert (tmp_path / name).read_bytes() == (saved / name).read_bytes(), name

    def test_a_budget_too_small_for_the_days_fails_before_training(
        self, fitted: Fitted, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(fit, "fit_detector", lambda *_: pytest.fail("a training started"))
        alerts = fitted.config.alerts.model_copy(update={"budget": 0.001})
        config = fitted.config.model_copy(update={"alerts": alerts})
        expected = "needs 999 calibration rows, and the 8 calibration days hold 480; set calibration_days to about 17"
        with pytest.raises(TrainingError, match=expected):
            fit_bundle(Dataset(config, fitted.paths), fitted.columns, fitted.window)

    def test_saving_a_loaded_bundle_gives_the_same_bytes(self, saved: Path, tmp_path: Path) -> None:
        ModelBundle.load(saved).save(tmp_path)
        for name in (MANIFEST, WEIGHTS):
            assert (tmp_path / name).read_bytes() == (saved / name).read_bytes(), name

    def test_a_loaded_bundle_scores_and_explains_bit_for_bit(self, fitted: Fitted, saved: Path) -> None:
        loaded, rows = ModelBundle.load(saved), fitted.features(fitted.days[-1])
        assert loaded.fingerprint == fitted.bundle.fingerprint
        pairs = zip(
            loaded.detector.latents_and_losses(rows), fitted.bundle.detector.latents_and_losses(rows), strict=True
        )
        for actual, expected in pairs:
            assert actual.tobytes() == expected.tobytes()
        assert loaded.score(rows).score.tobytes() == fitted.bundle.score(rows).score.tobytes()
        assert loaded.explain(rows.head(5)) == fitted.bundle.explain(rows.head(5))

    def test_the_manifest_names_the_training_rows(self, fitted: Fitted, saved: Path) -> None:
        manifest = json.loads((saved / MANIFEST).read_text())
        rows = {part: fitted.window.rows(part, fitted.paths).height for part in PARTS}
        assert manifest["facts"]["rows"] == rows == {"train": 1560, "validation": 360, "calibration": 480}
        assert manifest["window"]["train"] == list(fitted.days[:26])
        calibration = {"rows": 480, "threshold": fitted.bundle.calibration.threshold, "budget": 0.01}
        assert manifest["calibration"] == calibration
        assert manifest["facts"]["validation_loss"] == fitted.result.best_loss


class TestFacts:
    def test_each_key_of_the_file_becomes_an_attribute(self, fitted: Fitted, saved: Path) -> None:
        facts, stored = ModelBundle.load(saved).facts, json.loads((saved / MANIFEST).read_text())["facts"]
        assert facts.to_json() == stored
        assert facts.epochs == fitted.result.epochs
        assert (facts.best_epoch, facts.untrained_loss) == (fitted.result.best_epoch, fitted.result.first_loss)
        assert (facts.is_warm, facts.is_anchored, facts.is_streamed, facts.alignment) == (False, False, False, None)
        assert facts.versions["numpy"] == np.__version__

    def test_keys_that_old_files_lack_get_defaults_and_stay_absent(self, saved: Path) -> None:
        stored = json.loads((saved / MANIFEST).read_text())["facts"]
        for key in ("rows_looked_at", "epochs", "untrained_loss", "is_streamed"):
            del stored[key]
        facts = TrainingFacts.model_validate(stored)
        assert (facts.rows_looked_at, facts.epochs, facts.untrained_loss, facts.is_streamed) == ({}, (), 0.0, False)
        assert facts.to_json() == stored

    def test_an_alignment_keeps_its_keys_and_values_that_are_not_finite(self, fitted: Fitted, tmp_path: Path) -> None:
        stored = {
            "before": 3,
            "axes_of": None,
            "axes": None,
            "is_aligned": False,
            "is_compatible": False,
            "explained": -0.5,
            "affine": -0.5,
            "condition": math.inf,
            "neighbours": 0.25,
            "score_shift": 0.125,
        }
        alignment = AlignmentFacts.model_validate(stored)
        facts = fitted.bundle.facts.model_copy(update={"alignment": alignment})
        dataclasses.replace(fitted.bundle, facts=facts).save(tmp_path)
        assert json.loads((tmp_path / MANIFEST).read_text())["facts"]["alignment"] == stored
        loaded = ModelBundle.load(tmp_path).facts.alignment
        assert loaded == alignment
        assert (loaded.previous, loaded.explained_variance, loaded.neighbors, loaded.as_is) == (3, -0.5, 0.25, None)


class TestFingerprint:
    def test_it_changes_with_every_single_tensor(self, fitted: Fitted, saved: Path, tmp_path: Path) -> None:
        names = list(safetensors.torch.load_file(saved / WEIGHTS))
        fingerprints = {fitted.bundle.fingerprint: ""}
        for index, name in enumerate(names):
            folder = shutil.copytree(saved, tmp_path / str(index))

            def nudge(tensors: dict[str, torch.Tensor], name: str = name) -> None:
                flat = tensors[name].view(-1)
                if flat.is_floating_point():
                    # Some are infinite. Next to zero are subnormal numbers, which a library may flush to zero.
                    lower = torch.nextafter(flat[-1], torch.tensor(-np.inf, dtype=flat.dtype))
                    flat[-1] = lower if flat[-1] != 0 else 1.0
                else:
                    flat[-1] = ~flat[-1] if flat.dtype == torch.bool else flat[-1] + 1

            edit_tensors(folder, nudge)
            manifest = json.loads((folder / MANIFEST).read_text())
            del manifest["digests"]  # with them, `load` refuses the bundle
            (folder / MANIFEST).write_text(json.dumps(manifest))
            fingerprints[ModelBundle.load(folder).fingerprint] = name
        assert list(fingerprints.values()) == ["", *names]
        assert sum(name.startswith("ensemble.denoising_ensemble.") for name in names) == 10

    def test_it_changes_with_the_encoder_and_the_window(self, fitted: Fitted) -> None:
        bundle = fitted.bundle
        encoder = bundle.encoder.model_copy(update={"left_out": ()})
        other_days = dataclasses.replace(bundle.window, fingerprint="other")
        changed = [with_encoder(bundle, encoder), dataclasses.replace(bundle, window=other_days)]
        assert len({bundle.fingerprint, *(other.fingerprint for other in changed)}) == 3

    def test_it_changes_with_the_seed(self, fitted: Fitted, other_bundle: ModelBundle) -> None:
        assert other_bundle.fingerprint != fitted.bundle.fingerprint


class TestFittedParts:
    def test_p_values_use_the_calibration_days_alone(self, fitted: Fitted) -> None:
        bundle, rows = fitted.bundle, fitted.window.rows("calibration", fitted.paths)
        detector = bundle.detector
        scores = np.sort(detector.combine(detector.surprisal_of(detector.latents_and_losses(rows)[1])))
        np.testing.assert_allclose(scores, bundle.calibration.scores, rtol=1e-12)

    @pytest.mark.parametrize(("enough", "parts"), [(360, ["validation"]), (361, ["train", "validation"])])
    def test_tails_use_the_validation_days_alone_if_they_have_enough_rows(
        self, fitted: Fitted, monkeypatch: pytest.MonkeyPatch, enough: int, parts: list[str]
    ) -> None:
        monkeypatch.setattr(tails, "MIN_TAIL_ROWS", enough)
        rows = {part: fitted.window.rows(part, fitted.paths) for part in PARTS}
        assert rows["validation"].height == 360
        config = sensor_config(
            training={**fitted.config.training.model_dump(), "epochs": 1},
            alerts={"budget": 0.01, "evidence": NO_ENSEMBLE},
        )
        detector, _ = fit_detector(config, fitted.columns, rows["train"], rows["validation"])
        losses = detector.latents_and_losses(pl.concat([rows[part] for part in parts], how="diagonal"))[1]
        np.testing.assert_allclose(detector.tails.quantiles[:, -1], np.quantile(losses, 0.99, axis=0), rtol=1e-12)

    def test_tails_need_five_hundred_validation_rows(self, fitted: Fitted) -> None:
        assert tails.MIN_TAIL_ROWS == 500
        rows = [fitted.window.rows(part, fitted.paths) for part in ("train", "validation")]
        detector = fitted.bundle.detector
        losses = detector.latents_and_losses(pl.concat(rows, how="diagonal"))[1]
        np.testing.assert_allclose(detector.tails.quantiles[:, -1], np.quantile(losses, 0.99, axis=0), rtol=1e-12)

    def test_the_loss_of_a_column_is_the_sum_of_its_blocks(self, fitted: Fitted) -> None:
        bundle, rows = fitted.bundle, fitted.features(fitted.days[0])
        assert isinstance(bundle.loss, LikelihoodLoss)
        x = torch.from_numpy(bundle.encoder.encode(rows)).double()
        model, loss = copy.deepcopy(bundle.model).double(), copy.deepcopy(bundle.loss).double()
        with torch.no_grad():
            by_block = loss(model(x)[1], x).numpy()
        losses = bundle.detector.latents_and_losses(rows)[1]
        columns = bundle.loss.columns
        by_column, of_row = losses[:, : len(columns)], losses[:, len(columns) + 1]
        for index, name in enumerate(columns):
            blocks = [i for i, block in enumerate(bundle.loss.blocks) if block.column == name]
            np.testing.assert_allclose(by_column[:, index], by_block[:, blocks].sum(1), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(by_column.sum(1), by_block.sum(1), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(of_row, by_block.sum(1), rtol=1e-9, atol=1e-9)

    def test_the_score_is_the_ensemble_or_another_part_minus_ln_100(self, fitted: Fitted) -> None:
        rows, count = fitted.features(fitted.days[-1]), len(fitted.bundle.loss.columns)
        odd = rows.with_columns(load=pl.when(pl.int_range(pl.len()) < 30).then(pl.col("load") + 1).otherwise("load"))
        detector = fitted.bundle.detector
        surprisal = detector.surprisal_of(detector.latents_and_losses(odd)[1])
        highest_column = surprisal[:, :count].max(1) - np.log(count)
        others = np.column_stack([highest_column, surprisal[:, count : count + 2]]).max(1) - np.log(100)
        highest = np.maximum(np.maximum(others, surprisal[:, count + 2]), 0)
        assert surprisal.shape == (60, count + 3)
        assert 0 < (others > surprisal[:, -1]).sum() < 60
        assert fitted.bundle.score(odd).score == pytest.approx(highest, rel=1e-12)

    @pytest.mark.parametrize("value", [float("inf"), -float("inf"), 1.7e308])
    def test_an_infinite_number_is_flagged_with_a_finite_score(self, fitted: Fitted, value: float) -> None:
        rows = fitted.features(fitted.days[-1]).head(2).with_columns(load=pl.Series([value, 3.0]))
        scored = fitted.bundle.score(rows)
        assert np.isfinite(scored.score).all()
        assert np.isfinite(scored.latents).all()
        assert scored.is_anomaly[0]


class TestFormat7:
    def test_it_scores_as_before_under_its_own_fingerprint(self, fitted: Fitted, folder: Path) -> None:
        def downgrade(manifest: dict[str, Any]) -> None:
            del manifest["contract"], manifest["digests"], manifest[NOT_COUNTED]
            manifest["format"] = 7

        edit_manifest(folder, downgrade)
        loaded = ModelBundle.load(folder)
        content = [json.loads((folder / MANIFEST).read_text()), tensor_digests(folder)]
        assert loaded.fingerprint == hash_json(content) != fitted.bundle.fingerprint
        assert loaded.contract is None
        rows = fitted.features(fitted.days[-1])
        assert loaded.score(rows).score.tobytes() == fitted.bundle.score(rows).score.tobytes()


class TestErrors:
    @pytest.mark.parametrize("name", [MANIFEST, WEIGHTS])
    def test_a_missing_file_is_named(self, folder: Path, name: str) -> None:
        (folder / name).unlink()
        with pytest.raises(BundleError, match=f"{folder} is not a model bundle: it has no {name}; train a new model"):
            ModelBundle.load(folder)

    def test_a_missing_folder_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match=f"{tmp_path / 'nowhere'} is not a model bundle"):
            ModelBundle.load(tmp_path / "nowhere")

    @pytest.mark.parametrize("other", [4, "5", None])
    def test_another_format_is_named_with_the_supported_ones(self, folder: Path, other: object) -> None:
        edit_manifest(folder, lambda manifest: manifest.update(format=other))
        message = f"has format {other!r}, but this version of ae_pipeline reads only formats 6 to 12; train a new model"
        with pytest.raises(BundleError, match=message):
            ModelBundle.load(folder)

    @pytest.mark.parametrize("keep", [0, 0.001, 0.5, 0.999])
    def test_truncated_weights_are_rejected(self, folder: Path, keep: float) -> None:
        truncate(folder / WEIGHTS, keep)
        with pytest.raises(BundleError, match=r"cannot read the bundle in .* \(.+\); train a new model"):
            ModelBundle.load(folder)

    @pytest.mark.parametrize(
        "text", ["", "{", '{"format": 1} and more', "\udcff", "[]", "null", "7", '"text"'], ids=repr
    )
    def test_a_manifest_that_is_not_a_json_object_is_rejected(self, folder: Path, text: str) -> None:
        (folder / MANIFEST).write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(BundleError, match=r"the bundle in .* train a new model"):
            ModelBundle.load(folder)

    @pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: busy")])
    def test_an_error_of_the_device_is_no_damage(
        self, folder: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(_: str) -> torch.device:
            raise error

        monkeypatch.setattr(tensors, "device_to_serve", fail)
        with pytest.raises(DeviceError, match=r"CUDA .*training\.device: cpu"):
            ModelBundle.load(folder)
        assert ModelBundle.load(folder, "cpu").columns

    @pytest.mark.parametrize("key", ["config", "contract", "encoder", "window", "facts"])
    def test_a_missing_part_of_the_manifest_is_named(self, folder: Path, key: str) -> None:
        edit_manifest(folder, lambda manifest: manifest.pop(key))
        with pytest.raises(BundleError, match=f"do not match: .*{key}"):
            ModelBundle.load(folder)

    @pytest.mark.parametrize("value", [None, [], "text", {"junk": 1}])
    @pytest.mark.parametrize("key", ["config", "encoder", "window", "facts"])
    def test_a_part_of_another_type_is_rejected(self, folder: Path, key: str, value: object) -> None:
        edit_manifest(folder, lambda manifest: manifest.update({key: value}))
        with pytest.raises(BundleError, match="do not match"):
            ModelBundle.load(folder)

    @pytest.mark.parametrize("key", ["config", "encoder", "facts"])
    def test_an_unknown_key_in_a_part_is_named(self, folder: Path, key: str) -> None:
        edit_manifest(folder, lambda manifest: manifest[key].update(surplus=1))
        with pytest.raises(BundleError, match=r"(?s)do not match: .*surplus"):
            ModelBundle.load(folder)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("model.encoder.0.weight", r"encoder\.0\.weight"),
            ("loss.log_scale", "log_scale"),
            ("mahalanobis.mean", r"mahalanobis\.mean"),
            ("tails.quantiles", "TailCalibrator.*'quantiles'"),
            ("tails.excess", "TailCalibrator.*'excess'"),
            ("calibration.scores", r"calibration\.scores"),
            ("ensemble.varying", "varying"),
            ("ensemble.upwards", "upwards"),
            ("ensemble.references", "references"),
            ("ensemble.scalings.std", "Scalings.*'std'"),
            ("ensemble.mixture.means", "Mixture.*'means'"),
            ("ensemble.denoising_ensemble.weight_0", "weight_0"),
            ("ensemble.denoising_ensemble.whitening", "whitening"),
            ("ensemble.tails.levels", "TailCalibrator.*'levels'"),
            ("ensemble.core_count", "core_count"),
            ("ensemble.combination.core_tails.excess", "TailCalibrator.*'excess'"),
            ("ensemble.combination.weights", "weights"),
            ("ensemble.forest.lengths", "IsolationForest.*'lengths'"),
        ],
    )
    def test_a_missing_tensor_is_named(self, folder: Path, name: str, message: str) -> None:
        edit_tensors(folder, lambda tensors: tensors.pop(name))
        with pytest.raises(BundleError, match=f"(?s)do not match: .*{message}"):
            ModelBundle.load(folder)

    @pytest.mark.parametrize("name", ["ensemble.bogus", "tails.bogus", "model.bogus", "bogus"])
    def test_a_surplus_tensor_is_named(self, folder: Path, name: str) -> None:
        edit_tensors(folder, lambda tensors: tensors.update({name: torch.zeros(2)}))
        with pytest.raises(BundleError, match=f"(?s)do not match: .*{name.rsplit('.', maxsplit=1)[-1]}"):
            ModelBundle.load(folder)

    @pytest.mark.parametrize(
        "name",
        [
            "mean_input",
            "mahalanobis.whitening",
            "tails.quantiles",
            "tails.excess",
            "ensemble.first",
            "ensemble.upwards",
            "ensemble.references",
            "ensemble.ends",
            "ensemble.scalings.std",
            "ensemble.mixture.means",
            "ensemble.denoising_ensemble.means",
            "ensemble.tails.quantiles",
            "ensemble.combination.weights",
            "ensemble.forest.lengths",
        ],
    )
    def test_a_tensor_that_is_too_short_is_rejected(self, folder: Path, name: str) -> None:
        edit_tensors(folder, lambda tensors: tensors.update({name: tensors[name][..., :-1].contiguous()}))
        with pytest.raises(BundleError, match="do not match: "):
            ModelBundle.load(folder)

    def test_tails_of_fewer_columns_are_rejected_with_both_counts(self, folder: Path) -> None:
        count = len(safetensors.torch.load_file(folder / WEIGHTS)["tails.excess"])

        def cut(tensors: dict[str, torch.Tensor]) -> None:
            for name in ("tails.quantiles", "tails.excess"):
                tensors[name] = tensors[name][:3].contiguous()

        edit_tensors(folder, cut)
        with pytest.raises(BundleError, match=rf"tails .*\b3 columns.* losses .*\b{count}\b.*; train a new model"):
            ModelBundle.load(folder)

    def test_a_bundle_without_its_ensemble_is_rejected(self, folder: Path) -> None:
        def strip(tensors: dict[str, torch.Tensor]) -> None:
            for name in [name for name in tensors if name.startswith("ensemble.")]:
                del tensors[name]

        edit_tensors(folder, strip)
        with pytest.raises(BundleError, match="scores with an ensemble, but the bundle has none; train a new model"):
            ModelBundle.load(folder)

    def test_weights_of_another_shape_are_rejected(self, folder: Path) -> None:
        edit_manifest(folder, lambda manifest: manifest["config"]["model"].update(latent_dim=2))
        with pytest.raises(BundleError, match=r"(?s)do not match: .*size mismatch"):
            ModelBundle.load(folder)

    def test_a_latent_space_wider_than_the_input_is_rejected(self, folder: Path) -> None:
        edit_manifest(folder, lambda manifest: manifest["config"]["model"].update(latent_dim=500))
        with pytest.raises(BundleError, match="do not match: latent_dim=500"):
            ModelBundle.load(folder)

    def test_rows_without_a_column_are_rejected_with_its_name(self, fitted: Fitted) -> None:
        with pytest.raises(BundleError, match="features lack column 'mode'"):
            fitted.bundle.score(fitted.features(fitted.days[0]).drop("mode"))
