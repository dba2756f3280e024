"""Sets of images of the benchmark: their sizes, their test images, and the optional models of anomalib."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import anomalib_methods, images
from benchmarks.image_methods import PATCH, STRIDE, cut, score_pca
from benchmarks.images import Material, measure_material
from benchmarks.materials import BAD, DEFECTS, GOOD, SIZE, prepare


def test_the_test_images_do_not_depend_on_the_number_of_training_images() -> None:
    few, many = (prepare("brick.png", 1, images) for images in (3, 5))
    assert (len(few.training), len(many.training)) == (3, 5)
    np.testing.assert_array_equal(few.training, many.training[:3])
    np.testing.assert_array_equal(few.test, many.test)
    np.testing.assert_array_equal(few.masks, many.masks)
    assert len(few.test) == GOOD + BAD * len(DEFECTS)


@pytest.mark.parametrize("size", [SIZE, 2 * SIZE])
def test_images_have_the_side_and_defects_grow_with_it(size: int) -> None:
    sheet = prepare("gravel.png", 0, 1, size)
    assert {image.shape for image in (*sheet.training, *sheet.test, *sheet.masks)} == {(size, size)}
    for kind, mask in zip(sheet.kinds, sheet.masks, strict=True):
        rows, columns = np.nonzero(mask)
        assert (len(rows) == 0) == (kind == "good")
        if len(rows) and kind != "scratch":
            widths = np.ptp(rows) + 1, np.ptp(columns) + 1
            assert size // 16 <= max(widths) <= size // 8 + 1
    places = (size - PATCH) // STRIDE + 1
    assert cut(sheet.training)[1].shape == (places**2, PATCH, PATCH)


@pytest.mark.slow
def test_heat_maps_have_the_size_of_the_images() -> None:
    sheet = prepare("brick.png", 0, 1, 2 * SIZE)
    scores, maps = score_pca(sheet, 0)
    assert maps is not None
    assert (len(scores), {heat.shape for heat in maps}) == (len(sheet.test), {(2 * SIZE, 2 * SIZE)})


def test_tables_name_unusual_sets() -> None:
    assert [str(Material("grass.png", 24, 256)), str(Material("grass.png", 50, 512))] == [
        "grass",
        "grass, 50 images of 512×512",
    ]


@pytest.mark.parametrize("chosen", [["anomalib GANomaly"], ["PCA", "anomalib GANomaly"]])
def test_methods_that_are_not_installed_leave_the_results_alone(
    chosen: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = list[tuple[str, ...]]()
    monkeypatch.setattr(images, "missing_reason", lambda: "anomalib is not installed")
    monkeypatch.setattr(images, "run", lambda _, materials, *__: calls.append(materials[0].methods))
    options = ["--parts", "materials", "--materials", "grass.png", "--out", str(tmp_path / "out.json")]
    monkeypatch.setattr(sys, "argv", ["images", *options, "--methods", *chosen])
    if "PCA" in chosen:
        images.main()
        assert calls == [("PCA",)]
        assert capsys.readouterr().out == "skipped anomalib GANomaly: anomalib is not installed\n"
        return
    with pytest.raises(SystemExit) as ended:
        images.main()
    assert (ended.value.code, calls) == (2, [])
    assert capsys.readouterr().err.endswith("error: anomalib is not installed\n")


@pytest.mark.slow
def test_only_the_named_methods_are_measured() -> None:
    measured = measure_material(Material("gravel.png", 2, SIZE, ("PCA",)), 0)
    assert {(each.method, each.metric) for each in measured} == {
        ("PCA", "image AUROC"),
        ("PCA", "pixel AUROC"),
        ("PCA", "AUPRO"),
    }


def test_models_of_anomalib_are_skipped_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(anomalib_methods, "find_spec", lambda name: None if name == "anomalib" else found(name))
    assert anomalib_methods.anomalib_methods(0) == {}
    reason = anomalib_methods.missing_reason()
    assert reason is not None
    assert "pip install 'anomalib[cpu]'" in reason


def test_an_anomalib_that_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(anomalib_methods, "find_spec", lambda name: name)
    monkeypatch.setattr(anomalib_methods, "_library", fail)
    assert anomalib_methods.anomalib_methods(0) == {}
    reason = anomalib_methods.missing_reason()
    assert reason is not None
    assert "(operator torchvision::nms does not exist); install a torchvision that was built for this" in reason
