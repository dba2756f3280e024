"""Training and scoring on a CUDA device, beside bare loops, copies and the CPU.

It needs only torch, numpy, polars, pydantic, scikit-learn and safetensors, and takes less than four minutes on an H100.
Without a CUDA device it says so and exits with 0. `--cpu` runs everything on the CPU with few rows, to try it out.

- **Training**: rows per second by batch size, with validation after each epoch. The ceiling is a bare loop that replays
  a CUDA graph of the same network, loss and optimizer. It evaluates nothing and keeps no weights. PyOD's autoencoder is
  measured where it is installed.
- **Scoring**: rows per second of encoded rows on the device, beside a copy of them, and of Parquet to Parquet by part.
- **Images**: images per second of a convolutional network.
- **Agreement**: whether the same work gives the same bytes twice, and how far the scores are from those of the CPU.
- **Contracts**: the contract suite of the architectures on the device, if pytest is installed.
"""

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from ae_pipeline.common.device import device_turn, own_stream
from ae_pipeline.common.parallel import parallel_map
from ae_pipeline.config.model import LossTerm
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.config.service import Evidence
from ae_pipeline.detector.detector import Detector
from ae_pipeline.encoding.encoder import Encoder, fit_encoder
from ae_pipeline.models.base import AutoEncoder, rows_at_once
from ae_pipeline.models.factory import build_loss, build_model
from ae_pipeline.models.image_loss import ImageLoss
from ae_pipeline.training.fit import fit_detector
from ae_pipeline.training.loop import train
from ae_pipeline.training.step import WARM_UP, build_optimizer, cuda_graph
from benchmarks import generated
from benchmarks.figures import Measured, as_table
from benchmarks.gpu_checks import agreement, compare_with_cpu, counts_of_tests, run_contracts
from benchmarks.report import write_report

OURS, BARE = "ae_pipeline", "bare loop of a graph (ceiling)"
EVIDENCE = {"plain": ("columns", "latent", "row"), "all evidence": tuple(Evidence)}
COLUMNS, IMAGE = 32, (1, 32, 32)
BLOCKS = 8_192, 65_536, 262_144
BATCHES = {1_024: 6, 8_192: 20, 65_536: 60}
"""Epochs of a million rows by batch size: about two seconds each on an H100."""

_TIME = 235
"""Seconds that the whole benchmark may take. The contract suite gets what is left."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is measured on a device.

    Attributes:
        device: Device.
        rows: Rows of the training and of the scoring.
        fitted: Rows that a detector is fitted on.
        images: Images of the training.
        rounds: Repetitions, of which the fastest counts.
    """

    device: torch.device
    rows: int
    fitted: int
    images: int
    rounds: int

    def epochs(self, batch: int) -> int:
        """Return the epochs of a training."""
        return BATCHES[batch] if self.device.type == "cuda" else 2

    def seconds(self, work: Callable[[], object]) -> float:
        """Return the time of the fastest round. The first call is not counted: it loads libraries and kernels."""
        work()
        taken = []
        for _ in range(self.rounds):
            self.wait()
            began = time.perf_counter()
            work()
            self.wait()
            taken.append(time.perf_counter() - began)
        return min(taken)

    def wait(self) -> None:
        """Wait until the device has done all its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def main() -> int:
    """Measure, print the tables and write all figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--cpu", action="store_true", help="run everything on the CPU, with few rows")
    parser.add_argument("--no-contracts", action="store_true", help="leave out the contract suite")
    chosen = parser.parse_args()
    began = time.perf_counter()
    if not chosen.cpu and not torch.cuda.is_available():
        print("no CUDA device")
        return 0
    sizes = (
        Sizes(torch.device("cpu"), rows=4_000, fitted=2_000, images=64, rounds=1)
        if chosen.cpu
        else Sizes(torch.device("cuda"), rows=1_000_000, fitted=100_000, images=20_000, rounds=2)
    )
    name = "CPU" if chosen.cpu else torch.cuda.get_device_name()
    figures: list[Measured] = []
    for measure in (measure_training, measure_pyod, measure_scoring, measure_images):
        measured = measure(sizes)
        figures += measured
        for title in dict.fromkeys(each.table for each in measured):
            print(f"\n{title} ({name})\n\n{as_table([each for each in measured if each.table == title])}", flush=True)
        _write(chosen.out, figures, name)
    if not chosen.no_contracts:
        outcome = run_contracts(sizes.device, _TIME - (time.perf_counter() - began))
        print(f"\ncontract suite: {outcome}")
        figures += counts_of_tests(outcome)
    seconds = time.perf_counter() - began
    figures.append(Measured("the whole benchmark", "all tables", "s", seconds, 0, 0))
    _write(chosen.out, figures, name)
    print(f"\n{seconds:.0f} s in all")
    return 0


def _write(path: Path, figures: Sequence[Measured], name: str) -> None:
    rows = [{"device": name, **vars(each), "value": float(f"{each.value:.6g}")} for each in figures]
    write_report(path, "gpu", rows, ("scikit-learn", "safetensors", "pydantic"))


# Training


def measure_training(sizes: Sizes) -> list[Measured]:
    """Measure trainings of a table at three batch sizes, and the bare loop."""
    frame, figures = _frame(sizes.rows + sizes.rows // 50), []
    encoder = fit_encoder(_settings(sizes, 1_024), frame.head(sizes.fitted), generated.features_of(COLUMNS))
    encoded = torch.from_numpy(encoder.encode(frame)).to(sizes.device)
    rows, validation = encoded[: sizes.rows], encoded[sizes.rows :]
    for batch in BATCHES:
        settings = _settings(sizes, batch)
        trials: dict[str, Callable[[], object]] = {
            OURS: lambda settings=settings: _train(settings, encoder, rows, validation),  # type: ignore[misc]
            BARE: lambda settings=settings: _bare_loop(settings, encoder, rows),  # type: ignore[misc]
        }
        rates = {name: len(rows) * settings.training.epochs / sizes.seconds(trial) for name, trial in trials.items()}
        table = f"training, batches of {batch:,}: {len(rows):,} rows × {COLUMNS}, {settings.training.epochs} epochs"
        for name, rate in rates.items():
            figures.append(Measured(table, name, "rows/s", rate, len(rows), COLUMNS))
            figures.append(Measured(table, name, "share of the bare loop", rate / rates[BARE], len(rows), COLUMNS))
    same = [_weights(_train(_settings(sizes, 8_192), encoder, rows, validation)) for _ in range(2)]
    return [*figures, agreement("trainings that give the same bytes twice", float(torch.equal(*same)))]


def _train(settings: PipelineConfig, encoder: Encoder, rows: torch.Tensor, validation: torch.Tensor) -> AutoEncoder:
    generator = torch.Generator().manual_seed(0)
    model = build_model(settings, encoder.shape, generator).to(rows.device)
    loss = build_loss(settings, encoder).to(rows.device)
    train(model, loss, rows, validation, settings.training, generator)
    return model


def _weights(model: AutoEncoder) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in model.parameters()])


def _bare_loop(settings: PipelineConfig, encoder: Encoder, rows: torch.Tensor) -> None:
    """Train on shuffled batches and nothing else: as a graph on a CUDA device, step by step on the CPU."""
    device, size = rows.device, settings.training.batch_size
    assert size is not None
    model = build_model(settings, encoder.shape, torch.Generator().manual_seed(0)).to(device)
    loss = build_loss(settings, encoder).to(device)
    optimizer = build_optimizer(model, loss, settings.training, torch.tensor(1e-3, device=device))

    def step(batch: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.objective(model(batch), batch, 0.0).mean().backward()
        optimizer.step()

    with own_stream(device):
        static = rows[:size].clone()
        if device.type == "cuda":
            for _ in range(WARM_UP):
                step(static)
            replay = cuda_graph(lambda: step(static), torch.Generator(device), optimizer)
        else:
            replay = lambda: step(static)  # noqa: E731
        for _ in range(settings.training.epochs):
            for indices in torch.randperm(len(rows), device=device).split(size):
                if len(indices) == len(static):
                    torch.index_select(rows, 0, indices, out=static)
                    replay()
                else:
                    step(rows[indices])


def measure_pyod(sizes: Sizes) -> list[Measured]:
    """Measure PyOD's autoencoder on the same rows, where it is installed."""
    try:
        from pyod.models.auto_encoder import AutoEncoder as Peer
    except ImportError as error:
        print(f"\nPyOD is not measured: {error}")
        return []

    count = min(sizes.rows, 100_000)
    rows, figures = _frame(count).to_numpy().astype(np.float32), []
    for batch in (size for size in (1_024, 8_192) if size <= count):
        peer = Peer(epoch_num=2, batch_size=batch, hidden_neuron_list=[128, 8], verbose=0, device=str(sizes.device))
        began = time.perf_counter()
        peer.fit(rows)
        table = f"PyOD AutoEncoder: {count:,} rows × {COLUMNS}, 2 epochs, which include the scores of its rows"
        rate = 2 * count / (time.perf_counter() - began)
        figures.append(Measured(table, f"batches of {batch:,}", "rows/s", rate, count, COLUMNS))
    return figures


# Scoring


def measure_scoring(sizes: Sizes) -> list[Measured]:
    """Measure encoded rows on the device, and the way from Parquet to scores in Parquet."""
    figures = []
    for name, evidence in EVIDENCE.items():
        frame = _frame(sizes.rows)
        settings = _settings(sizes, 8_192, evidence=list(evidence), epochs=3)
        columns, fitted = generated.features_of(COLUMNS), sizes.fitted
        detector, _ = fit_detector(
            settings, columns, frame.head(fitted), _frame(fitted // 5, seed=1).with_row_index("row_id")
        )
        table = f"scoring, {name}: {len(frame):,} rows × {COLUMNS}"
        figures += [
            Measured(table, method, metric, value, len(frame), COLUMNS)
            for method, metric, value in (*_encoded_rates(detector, frame, sizes), *_parts(detector, frame, sizes))
        ]
        figures += compare_with_cpu(detector, frame.head(20_000), name)
    return figures


def _encoded_rates(detector: Detector, frame: pl.DataFrame, sizes: Sizes) -> list[tuple[str, str, float]]:
    host = torch.from_numpy(detector.encoder.encode(frame))
    host = host.pin_memory() if sizes.device.type == "cuda" else host
    matrix, target = host.to(sizes.device), torch.empty_like(host, device=sizes.device)

    def score(block: int) -> None:
        for part in matrix.split(block):
            detector.score_encoded(part.double())

    def score_on_threads() -> None:
        def work(part: torch.Tensor) -> torch.Tensor:
            with device_turn(part.device):
                return detector.score_encoded(part.double())[1].cpu()

        for _ in parallel_map(work, matrix.split(rows_at_once(detector.encoder.shape, sizes.device))):
            pass

    blocks = {f"encoded rows, blocks of {block:,}": lambda block=block: score(block) for block in BLOCKS}
    trials: dict[str, Callable[[], object]] = {
        **blocks,
        "encoded rows, on threads as in the pipeline": score_on_threads,
        "copy on the device": lambda: target.copy_(matrix),
        "copy to the device": lambda: target.copy_(host, non_blocking=True),
    }
    return [(name, "rows/s", len(frame) / sizes.seconds(trial)) for name, trial in trials.items()]


def _parts(detector: Detector, frame: pl.DataFrame, sizes: Sizes) -> list[tuple[str, str, float]]:
    """Return the rates from file to file: of all parts together, and of each alone."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "rows.parquet", Path(folder) / "scores.parquet"
        frame.write_parquet(source)
        latents, scores = detector.latents_and_scores(frame)

        def write() -> None:
            columns = {f"z_{index:03d}": column for index, column in enumerate(latents.T)}
            pl.DataFrame({"score": scores, **columns}).write_parquet(target)

        def whole() -> None:
            detector.latents_and_scores(pl.read_parquet(source))
            write()

        parts: dict[str, Callable[[], object]] = {
            "Parquet to Parquet": whole,
            "· read": lambda: pl.read_parquet(source),
            "· encode on one core": lambda: detector.encoder.encode(frame),
            "· encode and score": lambda: detector.latents_and_scores(frame),
            "· write": write,
        }
        return [(name, "rows/s", len(frame) / sizes.seconds(trial)) for name, trial in parts.items()]


# Images


def measure_images(sizes: Sizes) -> list[Measured]:
    """Measure the training and the network of a convolutional model."""
    given = {"dataset": "images", "identity": ["id"], "images": {}, "model": {"architecture": "conv", "latent_dim": 16}}
    training = {"epochs": 3, "batch_size": 128, "patience": 3, "device": str(sizes.device)}
    settings = PipelineConfig.model_validate({**given, "training": training})
    rows = torch.rand(sizes.images, *IMAGE, generator=torch.Generator().manual_seed(0)).to(sizes.device)

    def fit() -> AutoEncoder:
        generator = torch.Generator().manual_seed(0)
        model = build_model(settings, IMAGE, generator).to(sizes.device)
        loss = ImageLoss(IMAGE, 1.0, {LossTerm.MSE: 1.0}, 1.0).to(sizes.device)
        train(model, loss, rows, rows[:512], settings.training, generator)
        return model

    model = fit().double().eval().requires_grad_(False)

    def encode() -> None:
        for part in rows.split(1024):
            model(part.double())

    table = f"images of {IMAGE[1]} × {IMAGE[2]}: {sizes.images:,}, batches of 128, {settings.training.epochs} epochs"
    images = sizes.images
    rates = {"training": 3 * images / sizes.seconds(fit), "network in float64": images / sizes.seconds(encode)}
    same = [_weights(fit()) for _ in range(2)]
    return [
        *(Measured(table, name, "images/s", rate, images, 0) for name, rate in rates.items()),
        agreement("convolutional trainings that give the same bytes twice", float(torch.equal(*same))),
    ]


def _frame(rows: int, seed: int = 0) -> pl.DataFrame:
    values = generated.numbers(rows, COLUMNS, seed)
    return pl.DataFrame({column.name: values[:, at] for at, column in enumerate(generated.features_of(COLUMNS))})


def _settings(
    sizes: Sizes, batch: int, evidence: Sequence[str] = EVIDENCE["plain"], epochs: int | None = None
) -> PipelineConfig:
    given: dict[str, Any] = generated.config(evidence).model_dump(mode="json")
    epochs = epochs or sizes.epochs(batch)
    given["model"] |= {"hidden": [128], "latent_dim": 8}
    given["training"] |= {"batch_size": batch, "epochs": epochs, "patience": epochs, "device": str(sizes.device)}
    return PipelineConfig.model_validate(given)


if __name__ == "__main__":
    sys.exit(main())
