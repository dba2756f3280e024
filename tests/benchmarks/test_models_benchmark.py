"""The benchmark of the models: planted defects, splits, and the results file."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyod")
pytest.importorskip("sklearn")
pytest.importorskip("skimage")

from ae_pipeline.features.split import LABEL
from benchmarks import defects, denoising, digits, models, shuttle
from benchmarks.frames import image_frame, images_of
from benchmarks.measures import Measure, means, to_rows, to_tables
from benchmarks.textures import (
    DEFECT_SIZE,
    DEFECTS,
    LEARNING,
    TEST,
    TRAINING,
    TUNING,
    cut,
    cut_tiles,
    photograph,
    plant,
)


@pytest.fixture(scope="module")
def clean() -> np.ndarray:
    """Test patches of a brick wall."""
    return cut(photograph("brick")[TEST], 32)


@pytest.fixture(scope="module")
def material() -> np.ndarray:
    """A photograph of grass."""
    return photograph("grass")[TEST]


@pytest.mark.parametrize("kind", DEFECTS)
def test_planting_is_deterministic_and_local(kind: str, clean: np.ndarray, material: np.ndarray) -> None:
    previous = clean.copy()
    planted = plant(clean, kind, material, seed=3)
    np.testing.assert_array_equal(planted, plant(clean, kind, material, seed=3))
    assert (planted != plant(clean, kind, material, seed=4)).any()
    np.testing.assert_array_equal(clean, previous)
    assert len(planted) == len(clean) > 10
    for patch, original in zip(planted, clean, strict=True):
        rows, columns = np.nonzero(patch != original)
        assert np.ptp(rows) < DEFECT_SIZE
        assert np.ptp(columns) < DEFECT_SIZE


def test_a_planted_square_has_mean_and_std_of_its_patch(clean: np.ndarray, material: np.ndarray) -> None:
    # The patch has two values. The square is matched with all of the original patch.
    dull = np.full((20, 32, 32), 120, np.uint8)
    dull[:, ::2] = 136
    planted = plant(dull, "grass square", material, seed=0)
    generator = np.random.default_rng([0, DEFECTS.index("grass square")])
    assert len(planted) == len(dull)
    for patch in planted:
        top, left = (int(generator.integers(32 - DEFECT_SIZE + 1)) for _ in range(2))
        [generator.integers(size - DEFECT_SIZE + 1) for size in material.shape]
        square = patch[top : top + DEFECT_SIZE, left : left + DEFECT_SIZE]
        assert square.mean() == pytest.approx(128, abs=0.5)  # rounded to whole gray levels
        assert square.std() == pytest.approx(8, abs=0.3)


def test_a_scratch_is_two_stds_off_and_a_dead_block_the_mean(clean: np.ndarray) -> None:
    assert len(clean) > 10
    for patch, original in zip(plant(clean, "scratch", None, 0), clean, strict=True):
        change = patch.astype(float) - original
        assert (change != 0).sum() <= DEFECT_SIZE
        expected = 2 * original.std()
        uncut = (patch > 0) & (patch < 255) & (change != 0)
        np.testing.assert_allclose(np.abs(change[uncut]), expected, atol=0.51)
    for patch, original in zip(plant(clean, "dead block", None, 0), clean, strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(patch, (DEFECT_SIZE, DEFECT_SIZE))
        mean = np.rint(original.astype(float).mean())
        assert (windows == mean).all((2, 3)).any()


def test_training_tuning_and_test_rows_share_no_pixel() -> None:
    def rows(region: slice) -> set[int]:
        return set(range(*region.indices(512)))

    assert not rows(TRAINING) & rows(TEST)
    assert not rows(LEARNING) & rows(TUNING)
    assert rows(LEARNING) | rows(TUNING) == rows(TRAINING)


def test_patches_of_two_tiles_share_no_pixel() -> None:
    numbered = np.arange(128 * 192).reshape(128, 192)
    patches, tiles = cut_tiles(numbered, 16)
    seen = {name: set(patches[np.array(tiles) == name].ravel().tolist()) for name in set(tiles)}
    assert len(seen) == 6
    assert sum(map(len, seen.values())) == len(set.union(*seen.values())) == 128 * 192
    setting = defects.prepare(0, stride=32)
    upper, lower = (cut(photograph("brick")[region], stride) for region, stride in ((TRAINING, 32), (TEST, 16)))
    assert {patch.tobytes() for patch in setting.training} <= {patch.tobytes() for patch in upper}
    np.testing.assert_array_equal(setting.clean, lower)


def test_a_frame_returns_its_images() -> None:
    images = np.random.default_rng(0).random((3, 4, 5)).astype(np.float32)
    np.testing.assert_array_equal(images_of(image_frame(images), "float32", (4, 5)), images)


def test_psnr_and_overlapping_patches_are_exact() -> None:
    clean = np.full((64, 64), 0.5, np.float32)
    assert denoising.psnr(clean + 0.1, clean) == pytest.approx(20, abs=1e-4)

    class Unchanged:
        def denoise(self, frame: object) -> object:
            return frame

    strip = np.random.default_rng(0).random((20, 27)).astype(np.float32)
    for stride in (1, 3, 8):
        restored = denoising.denoise(Unchanged(), strip, 8, stride)  # type: ignore[arg-type]
        np.testing.assert_allclose(restored, strip, rtol=1e-6)


def test_rows_have_each_value_and_the_mean_over_seeds() -> None:
    measures = [Measure("t", "m", "AUROC", value, seed) for seed, value in enumerate((0.5, 0.7, 0.9))]
    rows = to_rows(measures)
    assert [set(row) for row in rows[:3]] == [{"task", "method", "metric", "value", "seed"}] * 3
    assert rows[3] == {**rows[0], "value": 0.7, "seed": "mean", "deviation": 0.2, "seeds": 3}
    assert means(measures)["t", "m", "AUROC"].deviation == pytest.approx(0.2)
    assert "| m     | 0.700 ± 0.200 |" in to_tables(measures)


def test_a_tiny_run_fits_our_method_on_each_kind_of_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def textures(seeds: list[int]) -> Iterator[Measure]:
        setting = defects.prepare(seeds[0], stride=32)
        few = {task: patches[:20] for task, patches in setting.anomalous.items()}
        setting = replace(setting, clean=setting.clean[:20], anomalous=few)
        for form in defects.FORMS:
            auroc = setting.auroc(defects.fit_ours(form, setting, seeds[0], epochs=1))
            assert auroc.keys() == {"all defects", *DEFECTS, "whole grass", "whole gravel"}
            yield Measure("textures", form, "AUROC", auroc["all defects"], seeds[0])

    def latents(seeds: list[int]) -> Iterator[Measure]:
        train, test = digits.split(seeds[0])
        for form in digits.FORMS:
            figures = digits.evaluate(digits.fit_ours(form, train[0], 8, seeds[0], epochs=1), train, test)
            yield Measure("digits", form, "probe accuracy", figures["probe accuracy"], seeds[0])

    monkeypatch.setattr(defects, "MODEL", {**defects.MODEL, "channels": [4], "latent_dim": 8})
    monkeypatch.setattr(models, "TASKS", {"textures": textures, "digits": latents})
    models.run(["textures", "digits"], [0], tmp_path / "models.json")
    report = json.loads((tmp_path / "models.json").read_text())
    assert report["name"] == "models"
    assert {"pyod", "scikit-image"} <= report["environment"]["versions"].keys()
    values = [row for row in report["rows"] if row["seed"] == 0]
    assert [row["method"] for row in values] == [*defects.FORMS, *digits.FORMS]
    assert all(0 <= row["value"] <= 1 and row["method"].startswith("ae_pipeline") for row in values)
    assert len(report["rows"]) == 2 * len(values)


def test_a_denoising_network_of_one_epoch_removes_noise() -> None:
    level = denoising.Level(patch=8, stride=4, channels=4, hidden=64, latent_dim=64, epochs=1)
    bundle = denoising.fit_ours(0.2, level, 0)
    clean = denoising.brick(TUNING)
    noisy = denoising.add_noise(clean, 0.2, 1)
    gained = denoising.psnr(denoising.denoise(bundle, noisy, 8, 4), clean) - denoising.psnr(noisy, clean)
    assert gained > 3


def test_the_shuttle_model_does_not_see_the_label() -> None:
    config, columns, features = shuttle.prepare()
    assert not config.training.only_normal
    assert [column.name for column in columns] == [f"f{number}" for number in range(1, 10)]
    assert features.height == 49_097
    assert features[LABEL].sum() == 3_511
