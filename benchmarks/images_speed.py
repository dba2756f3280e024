"""Images per second beside bare loops: reading PNG files, training, and scoring.

Reading is compared with Pillow alone, which decodes the same files on as many threads as there are cores, in seconds
and in seconds of the processor, which other work on the machine changes less. The memory of reading is the peak of a
process that ingests image files and builds raw rows and features. Training is
compared with a bare loop over the same network, batches and optimizer, and scoring with the encoding, the network in
float32 and the squared error of each image. Each round runs all methods once.
"""

import argparse
import datetime as dt
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from ae_pipeline.common.cores import cores
from ae_pipeline.config.columns import ColumnType, FeatureColumn, ImageShape
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.encoding.encoder import fit_encoder
from ae_pipeline.features.build import build_features_day
from ae_pipeline.ingestion.landing import ingest
from ae_pipeline.ingestion.raw import build_raw_day
from ae_pipeline.models.factory import build_loss, build_model
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.paths import ALL_ROWS, DatasetPaths
from ae_pipeline.training.loop import train
from benchmarks import defects
from benchmarks.figures import Measured, as_table
from benchmarks.frames import IMAGE, fit_images, image_config, image_frame
from benchmarks.materials import photograph
from benchmarks.report import write_report
from benchmarks.speed import medians

OURS = "ae_pipeline"
PILLOW, BARE = "Pillow alone, on all cores", "bare loop"
EPOCHS, BATCH, PATCH = 2, 256, 32
MODEL: Mapping[str, Any] = {**defects.MODEL, "latent_dim": 64}
MEMORY: Mapping[int, tuple[int, ...]] = {64: (200, 2000, 20_000, 80_000), 256: (200, 2000, 20_000)}
"""Numbers of images whose memory is measured, by their side."""

_CONFIG = PipelineConfig.model_validate({"dataset": "images", "identity": ["file"], "images": {}})
_TODAY = dt.date(2024, 12, 31)
TRAINING: Mapping[str, Any] = {"epochs": EPOCHS, "patience": EPOCHS, "batch_size": BATCH, "optimizer": "adam"}


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _land(folder: Path, count: int, side: int) -> None:
    """Write square parts of a photograph as PNG files."""
    rng = np.random.default_rng(0)
    picture = np.asarray(Image.fromarray(photograph("brick.png")).resize((2048, 2048)))
    folder.mkdir(parents=True)
    for index in range(count):
        top, left = rng.integers(0, 2048 - side, 2)
        path = folder / f"{index:05d}.png"
        Image.fromarray(picture[top : top + side, left : left + side]).save(path)
        os.utime(path, (1, 1))


def measure_reading(count: int, side: int, rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """Return seconds from PNG files to staged rows, and those of Pillow alone; and seconds of the processor."""
    processor: dict[str, list[float]] = {OURS: [], PILLOW: []}

    def decode(path: Path) -> int:
        with Image.open(path) as image:
            return np.asarray(image).size

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source")
        _land(source, count, side)
        files = sorted(source.iterdir())

        def timed(method: str, work: Callable[[], object]) -> float:
            began = time.process_time()
            seconds = _timed(work)
            processor[method].append(time.process_time() - began)
            return seconds

        def ours() -> float:
            with tempfile.TemporaryDirectory() as root:
                paths = DatasetPaths(Path(root), "images")
                paths.landing.parent.mkdir(parents=True)
                source.rename(paths.landing)
                try:
                    return timed(OURS, lambda: ingest(Dataset(_CONFIG, paths), _TODAY))
                finally:
                    paths.landing.rename(source)

        def pillow() -> float:
            with ThreadPoolExecutor(cores()) as pool:
                return timed(PILLOW, lambda: list(pool.map(decode, files)))

        seconds = medians(rounds, {OURS: ours, PILLOW: pillow})
        return seconds, {name: statistics.median(values[1:]) for name, values in processor.items()}


def measure_memory(count: int, side: int) -> float:
    """Return the peak memory in MB of a new process that reads PNG files and builds raw rows and features."""
    with tempfile.TemporaryDirectory() as root:
        paths = DatasetPaths(Path(root), "images")
        _land(paths.landing, count, side)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(_peak, paths).result()


def _peak(paths: DatasetPaths) -> float:
    dataset = Dataset(_CONFIG, paths)
    ingested = ingest(dataset, _TODAY)
    build_raw_day(ALL_ROWS, ingested, paths)
    build_features_day(ALL_ROWS, dataset, ingested.contract)
    # The figure of `resource` includes that of the process that started this one.
    (peak,) = (line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    return int(peak) / 1024


def _patches(count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    rng, picture = np.random.default_rng(0), photograph("brick.png")
    places = rng.integers(0, 512 - PATCH, (count, 2))
    return np.stack([picture[top : top + PATCH, left : left + PATCH] for top, left in places])


def measure_training(count: int, rounds: int) -> dict[str, float]:
    """Return seconds of a training, and those of a bare loop over the same network."""
    config = image_config(0, MODEL, TRAINING, {})
    shape = ImageShape(height=PATCH, width=PATCH, channels=1, dtype="uint8")
    frame = image_frame(_patches(count + 256))
    encoder = fit_encoder(config, frame, [FeatureColumn(IMAGE, ColumnType.IMAGE, shape)])
    encoded = torch.from_numpy(encoder.encode(frame))
    rows, validation = encoded[:count], encoded[count:]
    torch.set_num_threads(config.training.threads)

    def ours() -> object:
        generator = torch.Generator().manual_seed(0)
        model, loss = build_model(config, encoder.shape, generator), build_loss(config, encoder)
        return train(model, loss, rows, validation, config.training, generator)

    def bare() -> None:
        model = build_model(config, encoder.shape, torch.Generator().manual_seed(0))
        optimizer = torch.optim.Adam(model.parameters(), fused=True)
        for _ in range(EPOCHS):
            for chosen in torch.randperm(len(rows)).split(BATCH):
                optimizer.zero_grad(set_to_none=True)
                nn.functional.mse_loss(model(rows[chosen]).output, rows[chosen]).backward()
                optimizer.step()

    return medians(rounds, {OURS: lambda: _timed(ours), BARE: lambda: _timed(bare)})


def measure_scoring(count: int, rounds: int) -> dict[str, float]:
    """Return seconds of the scores of images, and those of a bare loop with the squared errors."""
    bundle = fit_images(_patches(2048), 0, MODEL, {**TRAINING, "epochs": 1})
    frame = image_frame(_patches(count))
    encoder, model = bundle.network.encoder, bundle.network.model

    def bare() -> None:
        torch.set_num_threads(cores())
        with torch.inference_mode():
            for part in frame.iter_slices(BATCH):  # faster than with 64, 128 or 1,024 images
                rows = torch.from_numpy(encoder.encode(part))
                (model(rows).output - rows).square().mean((1, 2, 3))

    return medians(rounds, {OURS: lambda: _timed(lambda: bundle.score(frame)), BARE: lambda: _timed(bare)})


def _speed(table: str, taken: Mapping[str, float], images: int, pixels: int, unit: str = "images/s") -> list[Measured]:
    """Return the rate of each method, and its share in that of the other one."""
    given = {"rows": images, "columns": pixels}
    share = "ours / theirs" + unit.removeprefix("images/s")
    return [
        each
        for method, seconds in taken.items()
        for each in (
            Measured(table, method, unit, images / seconds, **given),
            Measured(table, method, share, seconds / taken[OURS], **given),
        )
    ]


def _training(chosen: argparse.Namespace) -> list[Measured]:
    table = f"training: patches of {PATCH}×{PATCH}, {EPOCHS} epochs"
    return _speed(table, measure_training(chosen.patches, chosen.rounds), chosen.patches * EPOCHS, PATCH**2)


def _scoring(chosen: argparse.Namespace) -> list[Measured]:
    taken = measure_scoring(chosen.patches, chosen.rounds)
    return _speed(f"scoring: patches of {PATCH}×{PATCH}", taken, chosen.patches, PATCH**2)


def _reading(chosen: argparse.Namespace) -> list[Measured]:
    figures = []
    for side, count in ((64, chosen.images), (256, chosen.images), (1024, max(1, chosen.images // 20))):
        table = f"reading: PNG files of {side:,}×{side:,}"
        seconds, processor = measure_reading(count, side, chosen.rounds)
        figures += _speed(table, seconds, count, side**2)
        figures += _speed(table, processor, count, side**2, "images/s of one core")
    return figures


def _memory(_: argparse.Namespace) -> list[Measured]:
    return [
        Measured(
            f"memory: PNG files of {side:,}×{side:,}",
            f"{count:,} images",
            "peak MB",
            measure_memory(count, side),
            count,
            side**2,
        )
        for side, counts in MEMORY.items()
        for count in counts
    ]


PARTS: Mapping[str, Callable[[argparse.Namespace], list[Measured]]] = {
    "training": _training,
    "scoring": _scoring,
    "reading": _reading,
    "memory": _memory,
}


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.images_speed", description=__doc__)
    parser.add_argument("--images", type=int, default=1000, help="files to read (default: %(default)s)")
    parser.add_argument("--patches", type=int, default=8192, help="to train on and to score (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds that count (default: %(default)s)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="the file keeps other tables")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    chosen = parser.parse_args()
    rows = json.loads(chosen.out.read_text(encoding="utf-8"))["rows"] if chosen.out.exists() else []
    for part in chosen.parts:
        figures = PARTS[part](chosen)
        rows = [row for row in rows if not row["table"].startswith(part)]
        rows += [{**vars(each), "value": round(each.value, 6)} for each in figures]
        write_report(chosen.out, "images_speed", rows, ("pillow",))
        for table in dict.fromkeys(each.table for each in figures):
            print(table, as_table([each for each in figures if each.table == table]), sep="\n", flush=True)


if __name__ == "__main__":
    main()
