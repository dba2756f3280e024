"""Defects in images: planted into patches of brick, and on photographs of five materials, beside PCA and PyOD.

Planted defects are those of `benchmarks.defects`. They measure the scores of patches, and the heat of pixels inside the
box of a defect.

Materials measure verdicts on images, and heat maps against masks. Each material gives training images from the upper
rows of its photograph, and test images from the rows below, which no method has seen. Each test image has one defect of
one kind, or none. All methods cut the same patches. A baseline scores an image by its highest patch, and a pixel by the
stitched error or score of the patches around it.

Evidence is the choice of what scores rest on; see `benchmarks.image_evidence`.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import skimage
import torch
from PIL import Image
from pyod.models.iforest import IForest
from pyod.models.knn import KNN
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from ae_pipeline.config.columns import ColumnType, FeatureColumn, ImageShape
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.detector.heat_maps import each_image, heat_map
from ae_pipeline.scoring.pixels import PixelMeter
from benchmarks import defects, image_evidence, textures
from benchmarks.explanations import boxes
from benchmarks.frames import IMAGE, fit_frame, fit_images, image_frame
from benchmarks.measures import Measure, to_rows, to_tables
from benchmarks.report import write_report

Pixels = npt.NDArray[np.uint8]
Values = npt.NDArray[np.float64]
Scored = tuple[Values, list[Values]]
"""Score of each image, and its heat map."""

PARTS = ("planted", "evidence", "materials")
MATERIALS = ("brick.png", "grass.png", "gravel.png", "ihc.png", "hubble_deep_field.jpg")
DEFECTS = ("foreign material", "scratch", "blur", "stain", "dead block")
SIZE, PATCH, STRIDE = 192, 32, 16
TRAINING_ROWS, TRAINING_IMAGES, GOOD, BAD = 320, 24, 10, 4
"""Rows of a photograph for training; training images, normal test images, and test images of each kind of defect.

The rows for training are those on which `benchmarks.image_evidence` chose the evidence.
"""

MODEL: dict[str, Any] = {
    "architecture": "conv",
    "channels": [16],
    "up": "upsample",
    "activation": "gelu",
    "scaling": "standard",
    "latent_dim": 256,
}
TRAINING: dict[str, Any] = {"epochs": 15, "batch_size": 64, "learning_rate": 4e-3}
COMPONENTS = 256
OURS = "ae_pipeline"


@dataclass(frozen=True)
class Sheet:
    """Images of a material: for training, and for the test with their masks and kinds of defects."""

    training: list[Pixels]
    test: list[Pixels]
    masks: list[npt.NDArray[np.bool_]]
    kinds: list[str]


def photograph(name: str) -> Pixels:
    """Return the middle of a photograph that scikit-image includes, in gray, (512, 512)."""
    with Image.open(Path(skimage.__file__).parent / "data" / name) as image:
        gray = np.asarray(image.convert("L"), dtype=np.uint8)
    top, left = ((side - 512) // 2 for side in gray.shape)
    return gray[top : top + 512, left : left + 512]


def crop(region: Pixels, rng: np.random.Generator) -> Pixels:
    """Return a random square of a region."""
    top, left = (int(rng.integers(side - SIZE + 1)) for side in region.shape)
    return region[top : top + SIZE, left : left + SIZE].copy()


def plant(image: Pixels, kind: str, foreign: Pixels, rng: np.random.Generator) -> tuple[Pixels, npt.NDArray[np.bool_]]:
    """Return an image with a defect of 12 to 24 pixels, and its mask."""
    side = int(rng.integers(12, 25))
    top, left = rng.integers(0, SIZE - side, 2)
    mask = np.zeros(image.shape, np.bool_)
    if kind == "scratch":
        steps = np.arange(2 * side) / 2
        slope = rng.uniform(-1, 1)
        rows = np.clip(np.rint(top + slope * steps), 0, SIZE - 2).astype(int)
        columns = np.clip(np.rint(left + steps), 0, SIZE - 1).astype(int)
        mask[rows, columns] = mask[rows + 1, columns] = True
    else:
        y, x = np.ogrid[:SIZE, :SIZE]
        middle_y, middle_x, radius = top + side / 2, left + side / 2, side / 2
        mask = (y - middle_y) ** 2 + (x - middle_x) ** 2 <= radius**2
    values, std = image.astype(np.float64), max(float(image.std()), 5.0)
    if kind == "foreign material":
        other = foreign.astype(np.float64)
        changed = (other - other.mean()) / max(other.std(), 1e-9) * std + values.mean()
    elif kind == "blur":
        window = np.lib.stride_tricks.sliding_window_view(np.pad(values, 3, mode="edge"), (7, 7))
        changed = window.mean((2, 3))
    else:
        shift = {"scratch": rng.choice([-2.5, 2.5]) * std, "stain": -1.0 * std, "dead block": 0.0}[kind]
        changed = np.full_like(values, values[mask].mean()) if kind == "dead block" else values + shift
    result = np.where(mask, changed, values)
    return np.clip(np.rint(result), 0, 255).astype(np.uint8), mask


def prepare(material: str, seed: int) -> Sheet:
    """Return the images of a material."""
    rng = np.random.default_rng([seed, MATERIALS.index(material)])
    picture = photograph(material)
    other = photograph(MATERIALS[(MATERIALS.index(material) + 1) % len(MATERIALS)])
    upper, lower = picture[:TRAINING_ROWS], picture[TRAINING_ROWS:]
    test, masks, kinds = [], [], []
    for kind in ("good",) * GOOD + tuple(kind for kind in DEFECTS for _ in range(BAD)):
        image = crop(lower, rng)
        mask = np.zeros(image.shape, np.bool_)
        if kind != "good":
            image, mask = plant(image, kind, crop(other, rng), rng)
        test.append(image)
        masks.append(mask)
        kinds.append(kind)
    return Sheet([crop(upper, rng) for _ in range(TRAINING_IMAGES)], test, masks, kinds)


def cut(images: Sequence[Pixels]) -> tuple[pl.DataFrame, Pixels]:
    """Return the patches of images as features, and as an array, (n, patch, patch)."""
    starts = range(0, SIZE - PATCH + 1, STRIDE)
    places = [(index, top, left) for index in range(len(images)) for top in starts for left in starts]
    patches = np.stack([images[index][top : top + PATCH, left : left + PATCH] for index, top, left in places])
    files = [f"{index:04d}" for index, _, _ in places]
    row_ids = [f"{index:04d}|{top}|{left}" for index, top, left in places]
    return pl.DataFrame({"row_id": row_ids, "file": files, IMAGE: [patch.tobytes() for patch in patches]}), patches


def score_ours(sheet: Sheet, seed: int) -> Scored:
    """Score the test images with the pipeline's model, verdicts and heat maps."""
    config = PipelineConfig.model_validate(
        {
            "dataset": "images",
            "identity": ("file", "top", "left"),
            "images": {"column": IMAGE, "patch": PATCH, "stride": STRIDE},
            "model": MODEL,
            "training": {**TRAINING, "seed": seed, "device": "cpu"},
            "alerts": {"evidence": ["columns", "row"]},
        }
    )
    shape = ImageShape(height=PATCH, width=PATCH, channels=1, dtype="uint8")
    bundle = fit_frame(config, cut(sheet.training)[0], [FeatureColumn(IMAGE, ColumnType.IMAGE, shape)])
    rows, _ = cut(sheet.test)
    judge = bundle.judge_images
    assert judge is not None
    verdicts = judge(rows.select("row_id").with_columns(score=pl.Series(bundle.score(rows).score)))
    maps = [heat_map(bundle.network, part, config) for _, part in each_image([rows], config)]
    return verdicts["score"].to_numpy(), maps


def score_pca(sheet: Sheet, seed: int) -> Scored:
    """Score the test images by the squared reconstruction errors of principal components."""
    flat = _flat(cut(sheet.training)[1])
    fitted = PCA(COMPONENTS, random_state=seed).fit(flat)
    rows = _flat(cut(sheet.test)[1])
    errors = np.square(rows - fitted.inverse_transform(fitted.transform(rows)))
    return _by_image(errors.mean(1), len(sheet.test)), _stitch(errors.reshape(-1, PATCH, PATCH), len(sheet.test))


def score_pyod(detector: Any, sheet: Sheet) -> Scored:
    """Score the test images by a detector of PyOD with its defaults, on patches."""
    detector.fit(_flat(cut(sheet.training)[1]))
    scores = np.asarray(detector.decision_function(_flat(cut(sheet.test)[1])), dtype=np.float64)
    scores -= scores.min() - 1e-3  # heat is positive
    patches = np.broadcast_to(scores[:, np.newaxis, np.newaxis], (len(scores), PATCH, PATCH))
    return _by_image(scores, len(sheet.test)), _stitch(patches, len(sheet.test))


def _flat(patches: Pixels) -> Values:
    rows: Values = patches.reshape(len(patches), -1) / 255
    return rows


def _by_image(scores: Values, images: int) -> Values:
    highest: Values = scores.reshape(images, -1).max(axis=1)
    return highest


def _stitch(patches: Values, images: int) -> list[Values]:
    starts = range(0, SIZE - PATCH + 1, STRIDE)
    maps = []
    for of_image in patches.reshape(images, len(starts) ** 2, PATCH, PATCH):
        total, count = np.zeros((SIZE, SIZE)), np.zeros((SIZE, SIZE))
        for index, patch in enumerate(of_image):
            top, left = (STRIDE * step for step in divmod(index, len(starts)))
            total[top : top + PATCH, left : left + PATCH] += patch
            count[top : top + PATCH, left : left + PATCH] += 1
        maps.append(total / count)
    return maps


def measure_planted(seed: int) -> Iterator[Measure]:
    """Measure scores of patches with planted defects, and heat maps against the boxes of the defects."""
    setting = defects.prepare(seed)
    bundle = fit_images(setting.training, seed, defects.MODEL, defects.TRAIN, setting.tiles, defects.ALERTS)
    pca = PCA(_best_pca_width(), random_state=seed).fit(_flat(setting.training))
    methods = {OURS: partial(_ours, bundle), "PCA": partial(_pca, pca)}
    for method, measured in methods.items():
        for task, value in setting.auroc(partial(_first, measured)).items():
            yield Measure(f"brick, {task}", method, "patch AUROC", value, seed)
        by_kind = {kind: _pixel_auroc(setting, kind, measured) for kind in textures.DEFECTS}
        for task, value in {"all defects": float(np.mean(list(by_kind.values()))), **by_kind}.items():
            yield Measure(f"brick, {task}", method, "pixel AUROC", value, seed)


@cache
def _best_pca_width() -> int:
    return defects.best_pca_width()


def _first(measured: Callable[[Pixels], tuple[Values, Values]], patches: Pixels) -> Values:
    return measured(patches)[0]


def _ours(bundle: ModelBundle, patches: Pixels) -> tuple[Values, Values]:
    """Return the score of each patch and of each pixel."""
    frame = image_frame(patches)
    return bundle.score(frame).score, bundle.network.residual_maps(frame)


def _pca(pca: PCA, patches: Pixels) -> tuple[Values, Values]:
    rows = _flat(patches)
    errors: Values = np.square(rows - pca.inverse_transform(pca.transform(rows))).reshape(patches.shape)
    return errors.mean((1, 2)), errors


def _pixel_auroc(setting: defects.Setting, kind: str, measured: Callable[[Pixels], tuple[Values, Values]]) -> float:
    """Return the mean AUROC of the pixels inside the box of a defect over all patches that it changed."""
    planted = setting.anomalous[kind]
    pairs = zip(boxes(planted, setting.clean), measured(planted)[1], strict=True)
    return float(np.mean([roc_auc_score(box.ravel(), pixels.ravel()) for box, pixels in pairs if box.any()]))


def measure_materials(materials: Sequence[str], seed: int) -> Iterator[Measure]:
    """Score every material with every method."""
    methods: dict[str, Callable[[Sheet], Scored]] = {
        OURS: partial(score_ours, seed=seed),
        "PCA": partial(score_pca, seed=seed),
        "PyOD KNN": partial(score_pyod, KNN()),
        "PyOD IForest": partial(score_pyod, IForest(random_state=seed)),
    }
    for material in materials:
        sheet = prepare(material, seed)
        for method, score in methods.items():
            yield from _measures(sheet, score(sheet), material.partition(".")[0], method, seed)


def _measures(sheet: Sheet, scored: Scored, material: str, method: str, seed: int) -> Iterator[Measure]:
    scores, maps = scored
    kinds = np.array(sheet.kinds)
    yield Measure(material, method, "image AUROC", float(roc_auc_score(kinds != "good", scores)), seed)
    for kind in DEFECTS:
        chosen = (kinds == "good") | (kinds == kind)
        value = float(roc_auc_score(kinds[chosen] == kind, scores[chosen]))
        yield Measure(kind, method, "image AUROC", value, seed)
    meter = PixelMeter()
    for heat, mask in zip(maps, sheet.masks, strict=True):
        meter.add(heat * 1e3, mask)  # the bins of the meter begin at 0.0001
    if pixels := meter.measure():
        yield Measure(material, method, "pixel AUROC", pixels.auroc, seed)
        yield Measure(material, method, "AUPRO", pixels.aupro, seed)


def run(parts: Sequence[str], materials: Sequence[str], seeds: Sequence[int], out: Path) -> None:
    """Measure some parts seed by seed. Print the tables, and write the JSON after each part of each seed."""
    measures: list[Measure] = []
    measuring: dict[str, Callable[[int], Iterator[Measure]]] = {
        "planted": measure_planted,
        "evidence": image_evidence.measure,
        "materials": partial(measure_materials, materials),
    }
    for seed in seeds:
        for part in parts:
            started = time.perf_counter()
            of_part = list(measuring[part](seed))
            print(f"{part}, seed {seed}: {time.perf_counter() - started:.0f} s\n\n{to_tables(of_part)}\n", flush=True)
            measures += of_part
            write_report(out, "images", to_rows(measures), ("pyod", "scikit-learn", "scikit-image"))
    print(to_tables(measures))


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.images", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--materials", nargs="+", choices=MATERIALS, default=MATERIALS)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # two threads are slower for networks of this size
    run(arguments.parts, arguments.materials, range(arguments.seeds), arguments.out)


if __name__ == "__main__":
    main()
