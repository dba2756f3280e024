"""Bundles on disk: what they hold, that they are the same for the same data, and what is refused with which words."""

import copy
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import safetensors.torch
import torch

from ae_pipeline.common.errors import BundleError, TrainingError
from ae_pipeline.detector.bundle import MANIFEST, WEIGHTS, ModelBundle
from ae_pipeline.features.split import PARTS
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.training import fit as fitting
from ae_pipeline.training.fit import fit_bundle, fit_detector
from tests.support.sensors import NO_ENSEMBLE, Fitted, sensor_config


@pytest.fixture(scope="module")
def saved(fitted: Fitted, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    fitted.bundle.save(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """A saved bundle that the test may spoil."""
    return shutil.copytree(saved, tmp_path / "bundle")


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    change(tensors)
    safetensors.torch.save_file(tensors, folder / WEIGHTS)


def truncate(path: Path, keep: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


class TestFiles:
    def test_a_bundle_is_one_json_and_one_safetensors_file_and_nothing_is_pickled(self, saved):
        assert sorted(path.name for path in saved.iterdir()) == [MANIFEST, WEIGHTS]
        for path in saved.iterdir():
            assert path.read_bytes()[:2] not in {b"\x80\x02", b"\x80\x04", b"\x80\x05", b"PK"}
        json.loads((saved / MANIFEST).read_text())
        length = int.from_bytes((saved / WEIGHTS).read_bytes()[:8], "little")  # the header of safetensors is JSON
        assert "calibration.scores" in json.loads((saved / WEIGHTS).read_bytes()[8 : 8 + length])

    def test_the_same_data_and_configuration_give_the_same_bytes(self, fitted, saved, tmp_path):
        again, _ = fit_bundle(Dataset(fitted.config, fitted.paths), fitted.columns, fitted.window)
        again.save(tmp_path)
        for name in (MANIFEST, WEIGHTS):
            assert (tmp_path / name).read_bytes() == (saved / name).read_bytes(), name

    def test_a_budget_that_the_calibration_days_cannot_tell_is_refused_before_anything_is_fitted(
        self, fitted, monkeypatch
    ):
        monkeypatch.setattr(fitting, "fit_detector", lambda *_: pytest.fail("a training began"))
        alerts = fitted.config.alerts.model_copy(update={"budget": 0.001})
        config = fitted.config.model_copy(update={"alerts": alerts})
        expected = "needs 999 calibration rows, and the 8 calibration days hold 480; set calibration_days to about 17"
        with pytest.raises(TrainingError, match=expected):
            fit_bundle(Dataset(config, fitted.paths), fitted.columns, fitted.window)

    def test_saving_what_was_loaded_gives_the_same_bytes(self, saved, tmp_path):
        ModelBundle.load(saved).save(tmp_path)
        for name in (MANIFEST, WEIGHTS):
            assert (tmp_path / name).read_bytes() == (saved / name).read_bytes(), name

    def test_a_loaded_bundle_scores_and_explains_the_same_bit_for_bit(self, fitted, saved):
        loaded, rows = ModelBundle.load(saved), fitted.features(fitted.days[-1])
        assert loaded.fingerprint == fitted.bundle.fingerprint
        for found, expected in zip(
            loaded.latents_and_losses(rows), fitted.bundle.latents_and_losses(rows), strict=True
        ):
            assert found.tobytes() == expected.tobytes()
        assert loaded.score(rows).score.tobytes() == fitted.bundle.score(rows).score.tobytes()
        assert loaded.explain(rows.head(5)) == fitted.bundle.explain(rows.head(5))

    def test_the_manifest_says_what_the_bundle_was_fitted_on(self, fitted, saved):
        manifest = json.loads((saved / MANIFEST).read_text())
        rows = {part: fitted.window.rows(part, fitted.paths).height for part in PARTS}
        assert manifest["facts"]["rows"] == rows == {"train": 1560, "validation": 360, "calibration": 480}
        assert manifest["window"]["train"] == list(fitted.days[:26])
        assert manifest["calibration"] == {"rows": 480, "threshold": fitted.bundle.calibration.threshold}
        assert manifest["facts"]["validation_loss"] == fitted.result.best_loss


class TestFingerprint:
    def test_it_changes_with_every_single_tensor(self, fitted, saved, tmp_path):
        previous = fitted.bundle.fingerprint
        names = list(safetensors.torch.load_file(saved / WEIGHTS))
        found = {previous}
        for index, name in enumerate(names):
            folder = shutil.copytree(saved, tmp_path / str(index))

            def nudge(tensors: dict[str, torch.Tensor], name: str = name) -> None:
                flat = tensors[name].view(-1)
                if flat.is_floating_point():
                    flat[-1] = torch.nextafter(flat[-1], torch.tensor(np.inf, dtype=flat.dtype))
                else:
                    flat[-1] = ~flat[-1] if flat.dtype == torch.bool else flat[-1] + 1

            edit_tensors(folder, nudge)
            found.add(ModelBundle.load(folder).fingerprint)
        assert len(found) == 1 + len(names)
        assert sum(name.startswith("ensemble.denoising_ensemble.") for name in names) == 10

    def test_it_changes_with_the_configuration_and_the_statistics(self, fitted):
        bundle = fitted.bundle
        encoder = bundle.encoder.model_copy(update={"left_out": ()})
        other_days = dataclasses.replace(bundle.window, fingerprint="other")
        changed = [dataclasses.replace(bundle, encoder=encoder), dataclasses.replace(bundle, window=other_days)]
        assert len({bundle.fingerprint, *(other.fingerprint for other in changed)}) == 3

    def test_another_seed_has_another(self, fitted, other_bundle):
        assert other_bundle.fingerprint != fitted.bundle.fingerprint


class TestFittedParts:
    def test_p_values_rest_on_the_calibration_days_alone(self, fitted):
        bundle, rows = fitted.bundle, fitted.window.rows("calibration", fitted.paths)
        scores = np.sort(bundle.combine(bundle.tails(bundle.latents_and_losses(rows)[1])))
        np.testing.assert_array_equal(scores, bundle.calibration.scores)

    @pytest.mark.parametrize(("enough", "parts"), [(360, ["validation"]), (361, ["train", "validation"])])
    def test_tails_rest_on_the_validation_days_alone_where_these_have_rows_enough(
        self, fitted, monkeypatch, enough, parts
    ):
        monkeypatch.setattr(fitting, "LEAST_TAIL_ROWS", enough)
        rows = {part: fitted.window.rows(part, fitted.paths) for part in PARTS}
        assert rows["validation"].height == 360
        config = sensor_config(
            training={**fitted.config.training.model_dump(), "epochs": 1},
            alerts={"budget": 0.01, "evidence": NO_ENSEMBLE},
        )
        detector, _ = fit_detector(config, fitted.columns, rows["train"], rows["validation"])
        losses = detector.latents_and_losses(pl.concat([rows[part] for part in parts], how="diagonal"))[1]
        np.testing.assert_allclose(detector.tails.quantiles[:, -1], np.quantile(losses, 0.99, axis=0), rtol=1e-12)

    def test_five_hundred_validation_rows_are_enough_for_tails(self, fitted):
        assert fitting.LEAST_TAIL_ROWS == 500
        rows = [fitted.window.rows(part, fitted.paths) for part in ("train", "validation")]
        losses = fitted.bundle.latents_and_losses(pl.concat(rows, how="diagonal"))[1]
        np.testing.assert_allclose(fitted.bundle.tails.quantiles[:, -1], np.quantile(losses, 0.99, axis=0), rtol=1e-12)

    def test_a_columns_loss_is_the_sum_of_its_blocks(self, fitted):
        bundle, rows = fitted.bundle, fitted.features(fitted.days[0])
        x = torch.from_numpy(bundle.encoder.encode(rows)).double()
        model, loss = copy.deepcopy(bundle.model).double(), copy.deepcopy(bundle.loss).double()
        with torch.no_grad():
            by_block = loss(model(x)[1], x).numpy()
        losses = bundle.latents_and_losses(rows)[1]
        by_column, of_row = losses[:, : len(bundle.columns)], losses[:, len(bundle.columns) + 1]
        for index, name in enumerate(bundle.columns):
            blocks = [i for i, block in enumerate(bundle.loss.blocks) if block.column == name]
            np.testing.assert_allclose(by_column[:, index], by_block[:, blocks].sum(1), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(by_column.sum(1), by_block.sum(1), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(of_row, by_block.sum(1), rtol=1e-9, atol=1e-9)

    def test_the_score_is_that_of_the_ensemble_or_of_another_part_for_one_in_a_hundred(self, fitted):
        rows, count = fitted.features(fitted.days[-1]), len(fitted.bundle.columns)
        odd = rows.with_columns(load=pl.when(pl.int_range(pl.len()) < 30).then(pl.col("load") + 1).otherwise("load"))
        surprisal = fitted.bundle.tails(fitted.bundle.latents_and_losses(odd)[1])
        strangest = surprisal[:, :count].max(1) - np.log(count)
        others = np.column_stack([strangest, surprisal[:, count : count + 2]]).max(1) - np.log(100)
        highest = np.maximum(np.maximum(others, surprisal[:, count + 2]), 0)
        assert surprisal.shape == (60, count + 3)
        assert 0 < (others > surprisal[:, -1]).sum() < 60
        assert fitted.bundle.score(odd).score == pytest.approx(highest, rel=1e-12)

    @pytest.mark.parametrize("value", [float("inf"), -float("inf"), 1.7e308])
    def test_a_number_beyond_all_bounds_is_flagged_with_a_finite_score(self, fitted, value):
        rows = fitted.features(fitted.days[-1]).head(2).with_columns(load=pl.Series([value, 3.0]))
        scored = fitted.bundle.score(rows)
        assert np.isfinite(scored.score).all()
        assert np.isfinite(scored.latents).all()
        assert scored.is_anomaly[0]


class TestRefusals:
    @pytest.mark.parametrize("name", [MANIFEST, WEIGHTS])
    def test_a_missing_file_is_named(self, folder, name):
        (folder / name).unlink()
        with pytest.raises(BundleError, match=f"{folder} is not a model bundle: it has no {name}; train anew"):
            ModelBundle.load(folder)

    def test_a_folder_that_is_not_there_is_named(self, tmp_path):
        with pytest.raises(BundleError, match=f"{tmp_path / 'nowhere'} is not a model bundle"):
            ModelBundle.load(tmp_path / "nowhere")

    @pytest.mark.parametrize("found", [4, "5", None])
    def test_another_format_is_named_beside_the_one_that_is_read(self, folder, found):
        edit_manifest(folder, lambda manifest: manifest.update(format=found))
        with pytest.raises(
            BundleError, match=f"has format {found!r}, and this version of ae_pipeline reads formats 6 and 7"
        ):
            ModelBundle.load(folder)

    @pytest.mark.parametrize("keep", [0, 0.001, 0.5, 0.999])
    def test_weights_that_were_cut_off_are_refused(self, folder, keep):
        truncate(folder / WEIGHTS, keep)
        with pytest.raises(BundleError, match=r"the bundle in .* cannot be read \(.+\); train anew"):
            ModelBundle.load(folder)

    @pytest.mark.parametrize(
        "text", ["", "{", '{"format": 1} and more', "\udcff", "[]", "null", "7", '"text"'], ids=repr
    )
    def test_a_manifest_that_is_no_json_object_is_refused(self, folder, text):
        (folder / MANIFEST).write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(BundleError, match=r"the bundle in .* train anew"):
            ModelBundle.load(folder)

    @pytest.mark.parametrize("key", ["config", "encoder", "window", "facts"])
    def test_a_manifest_that_lacks_a_part_is_refused_with_its_name(self, folder, key):
        edit_manifest(folder, lambda manifest: manifest.pop(key))
        with pytest.raises(BundleError, match=f"does not fit together: .*{key}"):
            ModelBundle.load(folder)

    @pytest.mark.parametrize("value", [None, [], "text", {"junk": 1}])
    @pytest.mark.parametrize("key", ["config", "encoder", "window"])
    def test_a_part_that_holds_junk_is_refused(self, folder, key, value):
        edit_manifest(folder, lambda manifest: manifest.update({key: value}))
        with pytest.raises(BundleError, match="does not fit together"):
            ModelBundle.load(folder)

    @pytest.mark.parametrize("key", ["config", "encoder"])
    def test_a_further_key_in_a_part_is_refused_with_its_name(self, folder, key):
        edit_manifest(folder, lambda manifest: manifest[key].update(surplus=1))
        with pytest.raises(BundleError, match=r"(?s)does not fit together: .*surplus"):
            ModelBundle.load(folder)

    @pytest.mark.parametrize(
        ("name", "said"),
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
        ],
    )
    def test_a_missing_tensor_is_named(self, folder, name, said):
        edit_tensors(folder, lambda tensors: tensors.pop(name))
        with pytest.raises(BundleError, match=f"(?s)does not fit together: .*{said}"):
            ModelBundle.load(folder)

    @pytest.mark.parametrize("name", ["ensemble.bogus", "tails.bogus", "model.bogus", "bogus"])
    def test_a_surplus_tensor_is_named(self, folder, name):
        edit_tensors(folder, lambda tensors: tensors.update({name: torch.zeros(2)}))
        with pytest.raises(BundleError, match=f"(?s)does not fit together: .*{name.split('.')[-1]}"):
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
        ],
    )
    def test_a_tensor_that_is_too_short_is_refused_and_never_scored_with(self, folder, name):
        edit_tensors(folder, lambda tensors: tensors.update({name: tensors[name][..., :-1].contiguous()}))
        with pytest.raises(BundleError, match="does not fit together: "):
            ModelBundle.load(folder)

    def test_tails_of_fewer_columns_are_refused_with_both_numbers(self, folder):
        def cut(tensors: dict[str, torch.Tensor]) -> None:
            for name in ("tails.quantiles", "tails.excess"):
                tensors[name] = tensors[name][:3].contiguous()

        edit_tensors(folder, cut)
        with pytest.raises(BundleError, match=r"tails are of 3 columns, and losses of \d+; train anew"):
            ModelBundle.load(folder)

    def test_a_bundle_without_the_ensemble_that_its_score_rests_on_is_refused(self, folder):
        def strip(tensors: dict[str, torch.Tensor]) -> None:
            for name in [name for name in tensors if name.startswith("ensemble.")]:
                del tensors[name]

        edit_tensors(folder, strip)
        with pytest.raises(BundleError, match="its score rests on an ensemble, and it has none; train anew"):
            ModelBundle.load(folder)

    def test_weights_of_another_shape_are_refused(self, folder):
        edit_manifest(folder, lambda manifest: manifest["config"]["model"].update(latent_dim=2))
        with pytest.raises(BundleError, match=r"(?s)does not fit together: .*size mismatch"):
            ModelBundle.load(folder)

    def test_a_latent_space_too_wide_for_the_encoder_is_refused(self, folder):
        edit_manifest(folder, lambda manifest: manifest["config"]["model"].update(latent_dim=500))
        with pytest.raises(BundleError, match="does not fit together: latent_dim=500"):
            ModelBundle.load(folder)

    def test_rows_that_lack_a_column_are_refused_with_its_name(self, fitted):
        with pytest.raises(BundleError, match="features lack column 'mode'"):
            fitted.bundle.score(fitted.features(fitted.days[0]).drop("mode"))
