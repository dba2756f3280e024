"""Trainings by one process and by workers of Ray Train, each on its part of every batch.

- small: a dense network with the default widths, on rows of 32 numbers.
- wide: a convolutional network with many channels, on grey images of 64 × 64 pixels.

Time is that of the fastest epoch after the first, so that neither the start nor other programs count. The start of the
workers is measured apart: from the call to the end of the first epoch, less one epoch. Weights are compared with those
of one process with one thread.
"""

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from ae_pipeline.common.cores import cores
from ae_pipeline.config.columns import ColumnType, FeatureColumn, ImageShape
from ae_pipeline.config.model import TrainingConfig
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.facts import Epoch
from ae_pipeline.encoding.encoder import fit_encoder
from ae_pipeline.engine.mapping import VARIABLE, Engine
from ae_pipeline.engine.ray_train import require_capacity
from ae_pipeline.models.base import AutoEncoder
from ae_pipeline.models.factory import build_loss, build_model
from ae_pipeline.training.data_parallel import train_on_workers
from ae_pipeline.training.loop import train
from benchmarks.generated import features_of, numbers
from benchmarks.report import Row, format_table, write_report

EPOCHS, NUMBERS, SIZE = 5, 32, 64
_VALIDATION = 64

NETWORKS: dict[str, dict[str, Any]] = {
    "small": {"architecture": "dense"},
    "wide": {"architecture": "conv", "channels": (64, 128, 256), "latent_dim": 32},
}
ROWS = {"small": 50_000, "wide": 512}
BATCHES = {"small": 512, "wide": 128}


@dataclass
class Clock:
    """The times at which epochs ended."""

    began: float = field(default_factory=time.perf_counter)
    ends: list[float] = field(default_factory=list)

    def __call__(self, _: Epoch) -> None:
        """Note the time."""
        self.ends.append(time.perf_counter())

    @property
    def epoch(self) -> float:
        """Time of the fastest epoch after the first, s."""
        return min(stop - start for start, stop in zip(self.ends, self.ends[1:], strict=False))

    @property
    def start(self) -> float:
        """Time before the first epoch, s."""
        return self.ends[0] - self.began - self.epoch


def settings(network: str, threads: int, workers: int) -> PipelineConfig:
    """Return the settings of a training that does not stop early."""
    return PipelineConfig.model_validate(
        {
            "dataset": "workers",
            "identity": ["row_id"],
            "model": NETWORKS[network],
            "training": {
                "epochs": EPOCHS,
                "patience": EPOCHS,
                "batch_size": BATCHES[network],
                "learning_rate": 1e-3,
                "threads": threads,
                "workers": workers,
                "device": "cpu",
            },
            **({"images": {}} if network == "wide" else {}),
        }
    )


def frame_of(network: str) -> tuple[pl.DataFrame, list[FeatureColumn]]:
    """Return rows of a network, and their columns."""
    rows = ROWS[network] + _VALIDATION
    if network == "small":
        values = numbers(rows, NUMBERS, 0)
        return pl.DataFrame({f"c{index:03d}": values[:, index] for index in range(NUMBERS)}), features_of(NUMBERS)
    pixels = ((numbers(rows, SIZE * SIZE, 0) + 1.5) * 80).clip(0, 255).astype("uint8")
    shape = ImageShape(height=SIZE, width=SIZE, channels=1, dtype="uint8")
    images = pl.Series([image.tobytes() for image in pixels], dtype=pl.Binary)
    return pl.DataFrame({"image": images}), [FeatureColumn("image", ColumnType.IMAGE, shape)]


def measure(network: str, threads: int, workers: int) -> tuple[dict[str, float], Tensor]:
    """Train a network, and return seconds of an epoch and of the start, and the weights."""
    config = settings(network, threads, workers)
    frame, columns = frame_of(network)
    encoder = fit_encoder(config, frame, columns)
    generator = torch.Generator().manual_seed(0)
    model, loss = build_model(config, encoder.shape, generator), build_loss(config, encoder)
    encoded = torch.from_numpy(encoder.encode(frame))
    rows, validation = encoded[: ROWS[network]], encoded[ROWS[network] :]
    training: TrainingConfig = config.training
    torch.set_num_threads(threads)
    clock = Clock()
    if workers > 1:
        train_on_workers(model, loss, rows.numpy(), validation, training, generator, clock, None, None)
    else:
        train(model, loss, rows, validation, training, generator, clock)
    start = {"start, s": clock.start} if workers > 1 else {}
    return {"epoch, s": clock.epoch, **start}, _weights(model)


def _weights(model: AutoEncoder) -> Tensor:
    return torch.cat([each.detach().reshape(-1) for each in model.parameters()])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.workers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="trainings of each kind; the fastest counts")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    count = cores()
    os.environ[VARIABLE] = Engine.RAY
    # That of this process; by default, other programs come first. The name is Ray's.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    require_capacity(count, 1, use_gpu=False)
    ways = {"one process, one thread": (1, 1), f"one process, {count} threads": (count, 1)}
    ways[f"{count} workers, one thread each"] = (1, count)
    rows: list[Row] = []
    for network in NETWORKS:
        best: dict[str, dict[str, float]] = {way: {} for way in ways}
        weights: dict[str, Tensor] = {}
        for _ in range(options.rounds):
            for way, (threads, workers) in ways.items():
                figures, weights[way] = measure(network, threads, workers)
                best[way] = {name: min(value, best[way].get(name, value)) for name, value in figures.items()}
        alone = next(iter(ways))
        for way, figures in best.items():
            if way != alone:
                figures["largest difference of a weight"] = float((weights[way] - weights[alone]).abs().max())
            rows += [
                {"network": network, "way": way, "figure": name, "value": float(f"{value:.4g}")}
                for name, value in figures.items()
            ]
    cells = [[str(row["network"]), str(row["way"]), str(row["figure"]), f"{row['value']:g}"] for row in rows]
    print(format_table(["network", "way", "figure", "value"], cells))
    if options.out:
        write_report(options.out, "workers", rows, ["ray"])


if __name__ == "__main__":
    main()
