"""Images per second beside bare loops: reading PNG files, training, and scoring.

Reading is compared with Pillow alone, which decodes the same files on as many threads as there are cores. Training is
compared with a bare loop over the same network, batches and optimizer, and scoring with the encoding, the network in
float32 and the squared error of each image. Each round runs all methods once.
"""

import argparse
import datetime as dt
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
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
from ae_pipeline.ingestion.landing import ingest
from ae_pipeline.models.factory import build_loss, build_model
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.paths import DatasetPaths
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
TRAINING: Mapping[str, Any] = {"epochs": EPOCHS, "patience": EPOCHS, "batch_size": BATCH, "optimizer": "adam"}


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure_reading(count: int, side: int, rounds: int) -> dict[str, float]:
    """Return seconds from PNG files to staged rows, and those of Pillow alone."""
    rng = np.random.default_rng(0)
    picture = np.asarray(Image.fromarray(photograph("brick.png")).resize((2048, 2048)))
    config = PipelineConfig.model_validate({"dataset": "images", "identity": ["file"], "images": {}})

    def decode(path: Path) -> int:
        with Image.open(path) as image:
            return np.asarray(image).size

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source")
        source.mkdir()
        for index in range(count):
            top, left = rng.integers(0, 2048 - side, 2)
            path = source / f"{index:05d}.png"
            Image.fromarray(picture[top : top + side, left : left + side]).save(path)
            os.utime(path, (1, 1))
        files = sorted(source.iterdir())

        def ours() -> float:
            with tempfile.TemporaryDirectory() as root:
                paths = DatasetPaths(Path(root), "images")
                paths.landing.parent.mkdir(parents=True)
                source.rename(paths.landing)
                try:
                    return _timed(lambda: ingest(Dataset(config, paths), dt.date(2024, 12, 31)))
                finally:
                    paths.landing.rename(source)

        def pillow() -> float:
            with ThreadPoolExecutor(cores()) as pool:
                return _timed(lambda: list(pool.map(decode, files)))

        return medians(rounds, {OURS: ours, PILLOW: pillow})


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
            for part in frame.iter_slices(1024):
                rows = torch.from_numpy(encoder.encode(part))
                (model(rows).output - rows).square().mean((1, 2, 3))

    return medians(rounds, {OURS: lambda: _timed(lambda: bundle.score(frame)), BARE: lambda: _timed(bare)})


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.images_speed", description=__doc__)
    parser.add_argument("--images", type=int, default=1000, help="files to read (default: %(default)s)")
    parser.add_argument("--patches", type=int, default=8192, help="to train on and to score (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds that count (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    chosen = parser.parse_args()
    tables: dict[tuple[str, int, int], Callable[[], dict[str, float]]] = {
        (f"training: patches of {PATCH}×{PATCH}, {EPOCHS} epochs", chosen.patches * EPOCHS, PATCH**2): lambda: (
            measure_training(chosen.patches, chosen.rounds)
        ),
        (f"scoring: patches of {PATCH}×{PATCH}", chosen.patches, PATCH**2): lambda: measure_scoring(
            chosen.patches, chosen.rounds
        ),
        ("reading: PNG files of 256×256", chosen.images, 256**2): lambda: measure_reading(
            chosen.images, 256, chosen.rounds
        ),
        ("reading: PNG files of 1,024×1,024", chosen.images // 5, 1024**2): lambda: measure_reading(
            chosen.images // 5, 1024, chosen.rounds
        ),
    }
    figures: list[Measured] = []
    for (table, images, pixels), measured in tables.items():
        taken = measured()
        for method, seconds in taken.items():
            given = {"rows": images, "columns": pixels}
            figures.append(Measured(table, method, "images/s", images / seconds, **given))
            figures.append(Measured(table, method, "ours / theirs", seconds / taken[OURS], **given))
        rows = [{**vars(each), "value": round(each.value, 6)} for each in figures]
        write_report(chosen.out, "images_speed", rows, ("pillow",))
        print(as_table([each for each in figures if each.table == table]), flush=True)


if __name__ == "__main__":
    main()
