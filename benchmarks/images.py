"""Defects in images: planted into patches of brick, and on photographs of five materials, beside other methods.

They are PCA, PyOD and, where it is installed, anomalib.

Planted defects are those of `benchmarks.defects`. They measure the scores of patches, and the heat of pixels inside the
box of a defect.

Materials measure verdicts on images, and heat maps against masks; see `benchmarks.materials` and
`benchmarks.image_methods`.

Evidence is the choice of what scores rest on; see `benchmarks.image_evidence`.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from ae_pipeline.detector.bundle import ModelBundle
from benchmarks import defects, image_evidence, textures
from benchmarks.anomalib_methods import NAMES, missing_reason
from benchmarks.explanations import boxes
from benchmarks.frames import fit_images, image_frame
from benchmarks.image_methods import METHODS, flatten, methods
from benchmarks.materials import MATERIALS, SIZE, TRAINING_IMAGES, Pixels, Values, measure, prepare, task_name
from benchmarks.measures import Measure, to_rows, to_tables
from benchmarks.report import write_report

PARTS = ("planted", "evidence", "materials")
OURS = "ae_pipeline"


def measure_planted(seed: int) -> Iterator[Measure]:
    """Measure scores of patches with planted defects, and heat maps against the boxes of the defects."""
    setting = defects.prepare(seed)
    bundle = fit_images(setting.training, seed, defects.MODEL, defects.TRAIN, setting.tiles, defects.ALERTS)
    pca = PCA(_best_pca_width(), random_state=seed).fit(flatten(setting.training))
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
    rows = flatten(patches)
    errors: Values = np.square(rows - pca.inverse_transform(pca.transform(rows))).reshape(patches.shape)
    return errors.mean((1, 2)), errors


def _pixel_auroc(setting: defects.Setting, kind: str, measured: Callable[[Pixels], tuple[Values, Values]]) -> float:
    """Return the mean AUROC of the pixels inside the box of a defect over all patches that it changed."""
    planted = setting.anomalous[kind]
    pairs = zip(boxes(planted, setting.clean), measured(planted)[1], strict=True)
    return float(np.mean([roc_auc_score(box.ravel(), pixels.ravel()) for box, pixels in pairs if box.any()]))


@dataclass(frozen=True)
class Material:
    """A material with the number and the side of its training images, and the names of the methods to measure."""

    photograph: str
    images: int
    size: int
    methods: tuple[str, ...] = METHODS

    def __str__(self) -> str:
        return task_name(self.photograph, self.images, self.size)


def measure_material(material: Material, seed: int) -> Iterator[Measure]:
    """Score a material with its methods."""
    sheet = prepare(material.photograph, seed, material.images, material.size)
    chosen = {name: score for name, score in methods(seed).items() if name in material.methods}
    for method, score in chosen.items():
        started = time.process_time()
        yield from measure(sheet, score(sheet), str(material), method, seed)
        print(f"{material}, {method}: {time.process_time() - started:.0f} s of CPU time", flush=True)


def measure_step(step: tuple[str | Material, int]) -> list[Measure]:
    """Measure a part, or a material, with one seed, and print the table."""
    name, seed = step
    torch.set_num_threads(1)  # two threads are slower for networks of this size
    measuring = {"planted": measure_planted, "evidence": image_evidence.measure}
    started = time.perf_counter()
    measures = list(measure_material(name, seed) if isinstance(name, Material) else measuring[name](seed))
    print(f"{name}, seed {seed}: {time.perf_counter() - started:.0f} s\n\n{to_tables(measures)}\n", flush=True)
    return measures


def run(parts: Sequence[str], materials: Sequence[Material], seeds: int, jobs: int, out: Path) -> None:
    """Measure some parts seed by seed. Print tables, and write the JSON after each part or material.

    Args:
        parts: Names of `PARTS`.
        materials: Materials, each with a number and a side of images.
        seeds: Number of seeds.
        jobs: Number of processes.
        out: JSON file to write.
    """
    names = [name for part in parts for name in (materials if part == "materials" else [part])]
    peers = ["pyod", "scikit-learn", "scikit-image"]
    if "materials" in parts and any(set(NAMES) & set(material.methods) for material in materials):
        peers.append("anomalib")
    measures: list[Measure] = []
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for of_step in pool.map(measure_step, product(names, range(seeds))):
            measures += of_step
            write_report(out, "images", to_rows(measures), peers)
    print(to_tables(measures))


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.images", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--materials", nargs="+", choices=MATERIALS, default=MATERIALS)
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=METHODS, help="methods to measure on materials"
    )
    parser.add_argument(
        "--images",
        nargs="+",
        type=int,
        default=[TRAINING_IMAGES],
        help="numbers of training images of a material (default: %(default)s)",
    )
    parser.add_argument(
        "--sides",
        nargs="+",
        type=int,
        choices=[SIZE * factor for factor in (1, 2, 4)],
        default=[SIZE],
        help="sides of the images of a material, in pixels (default: %(default)s)",
    )
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="number of processes (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    chosen = tuple(arguments.methods)
    of_anomalib = [name for name in chosen if name in NAMES]
    if "materials" in arguments.parts and of_anomalib and (reason := missing_reason()):
        chosen = tuple(name for name in chosen if name not in NAMES)
        if not chosen:
            parser.error(reason)
        print(f"skipped {' and '.join(of_anomalib)}: {reason}", flush=True)
    sets = product(arguments.images, arguments.sides, arguments.materials)
    materials = [Material(photograph, images, size, chosen) for images, size, photograph in sets]
    run(arguments.parts, materials, arguments.seeds, arguments.jobs, arguments.out)


if __name__ == "__main__":
    main()
