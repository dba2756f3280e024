"""Speed of training and extraction, as ratios to alternatives measured in the same run.

**Training**: rows per second through a network of the same widths, with the same batch size and number of epochs, on
the same encoded matrix in memory. The ceiling is a bare loop over batches of `torch.randperm`. It does not evaluate
validation rows and does not keep the best weights. A loop over PyTorch's DataLoader is the usual tutorial code. PyOD
and scikit-learn are called through their public functions. A second table shows the time to the validation loss that
PyOD's defaults reach.

**Extraction**: from daily feature files on disk to the published table. The steps are read, encode, score, write, read
back, validate against the table's contract, and commit. The alternatives are (a) pyarrow, which reads the same files
and writes them again without any model, and (b) PyOD's `decision_function` on rows in memory. The benchmark measures
plain scoring (columns, latent and row) and all evidence, and then the parts of the latter. The rows are numbers, so
they have no combinations of categories to look up.

**Growth, wide rows, `make run`, pages and one day**: see `growth.py` and `overhead.py`.

The figures are medians over rounds. Each round runs every method once. Measurements that take minutes run once: ten
million rows, growth and wide rows.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow.parquet as pq
import torch
from pyod.models.auto_encoder import AutoEncoder
from sklearn.neural_network import MLPRegressor
from torch import nn

from ae_pipeline.common.parallel import parallel_map
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.config.service import Evidence
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.detector.facts import Epoch
from ae_pipeline.encoding.encoder import fit_encoder
from ae_pipeline.latents.files import TableFiles
from ae_pipeline.latents.layout import read_features, score_batch, write_file
from ae_pipeline.latents.publish import publish
from ae_pipeline.models.factory import build_loss, build_model
from ae_pipeline.scoring.ecod import ecod_score
from ae_pipeline.scoring.scalings import normal_scores
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.training.loop import train
from benchmarks import generated
from benchmarks.figures import Measured, as_table
from benchmarks.growth import measure_growth, measure_wide
from benchmarks.overhead import measure_day, measure_pages, measure_run
from benchmarks.report import Row, write_report

OURS = "ae_pipeline"
PLAIN, ALL = ("columns", "latent", "row"), tuple(Evidence)

_BATCH, _EPOCHS, _HIDDEN, _LATENTS = 1024, 3, 128, 8
_TABLES = ("training", "extraction", "growth", "wide", "run", "pages", "day")
_GROWTH = [300_000, 1_000_000, 3_000_000, 10_000_000]
_MANY = 5_000_000
_TRAINED_ROWS, _VALIDATION_ROWS, _COLUMNS = 100_000, 10_000, 32


def main() -> int:
    """Measure, print the tables and write all figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds for the medians")
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[1_000_000, 10_000_000], help="numbers of rows of the extraction"
    )
    parser.add_argument("--growth", type=int, nargs="+", default=_GROWTH, help="numbers of rows for the growth")
    parser.add_argument("--tables", nargs="+", choices=_TABLES, default=_TABLES, help="tables to measure")
    chosen = parser.parse_args()
    figures: list[Measured] = []
    for table in chosen.tables:
        figures += _measure_table(table, chosen)
        _write(chosen.out, figures)
    for title in dict.fromkeys(each.table for each in figures):
        print(f"\n{title}\n\n{as_table([each for each in figures if each.table == title])}", flush=True)
    return 0


def _measure_table(table: str, chosen: argparse.Namespace) -> list[Measured]:
    match table:
        case "training":
            return measure_training(chosen.rounds)
        case "extraction":
            return [each for rows in chosen.rows for each in measure_extraction(rows, chosen.rounds)]
        case "run":
            return measure_run(chosen.rounds)
        case "pages":
            return measure_pages(chosen.rounds)
        case "day":
            return measure_day(chosen.rounds)
        case "wide":
            return measure_wide()
    return measure_growth(chosen.growth, 1, _COLUMNS)


def _write(path: Path, figures: Sequence[Measured]) -> None:
    """Write the figures so far, and keep the tables of an existing file that are not measured again."""
    previous = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    measured = {each.table for each in figures}
    kept: list[Row] = [row for row in previous if row["table"] not in measured]
    facts: list[Row] = [{**vars(each), "value": round(each.value, 6)} for each in figures]
    packages = ("dagster", "deltalake", "mlflow", "pyarrow", "pyod", "scikit-learn")
    write_report(path, "speed", [*kept, *facts], packages)


def medians(rounds: int, trials: Mapping[str, Callable[[], float]], warm_up: int = 1) -> dict[str, float]:
    """Return the median of each trial. Each round runs all trials once, in the same order.

    Warm-up rounds are not counted, because lazy imports belong to no method.
    """
    taken: dict[str, list[float]] = {name: [] for name in trials}
    for _ in range(warm_up + rounds):
        for name, trial in trials.items():
            taken[name].append(trial())
    return {name: statistics.median(values[warm_up:]) for name, values in taken.items()}


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


# Training


def measure_training(rounds: int) -> list[Measured]:
    """Measure training and its alternatives."""
    rows = generated.numbers(_TRAINED_ROWS + _VALIDATION_ROWS, _COLUMNS, seed=0)
    frame = pl.DataFrame({column.name: rows[:, at] for at, column in enumerate(generated.features_of(_COLUMNS))})
    settings = _settings(_BATCH, _EPOCHS, (_HIDDEN,), _LATENTS)
    encoder = fit_encoder(settings, frame.head(_TRAINED_ROWS), generated.features_of(_COLUMNS))
    matrix = encoder.encode(frame)
    train_rows, validation = torch.from_numpy(matrix[:_TRAINED_ROWS]), torch.from_numpy(matrix[_TRAINED_ROWS:])
    width = matrix.shape[1]
    torch.set_num_threads(settings.training.threads)  # all methods use one thread, which is fastest for small networks

    def ours() -> object:
        generator = torch.Generator().manual_seed(0)
        model, loss = build_model(settings, encoder.shape, generator), build_loss(settings, encoder)
        return train(model, loss, train_rows, validation, settings.training, generator)

    trials: dict[str, Callable[[], object]] = {
        OURS: ours,
        "bare loop in memory (ceiling)": lambda: _bare_loop(train_rows),
        "loop over a DataLoader": lambda: _loader_loop(train_rows),
        "PyOD AutoEncoder": lambda: _pyod(batch_size=_BATCH, epoch_num=_EPOCHS).fit(train_rows.numpy()),
        "scikit-learn MLPRegressor": lambda: _regressor().fit(train_rows.numpy(), train_rows.numpy()),
    }
    taken = medians(rounds, {name: lambda work=work: _seconds(work) for name, work in trials.items()})  # type: ignore[misc]
    layers = f"{width}–{_HIDDEN}–{_LATENTS}–{_HIDDEN}–{width}"
    table = f"training: {_TRAINED_ROWS:,} rows, layers {layers}, batch {_BATCH}, {_EPOCHS} epochs"
    figures = []
    for name, seconds in taken.items():
        given = (table, name, _TRAINED_ROWS, width)
        figures.append(_measured(*given, metric="rows/s", value=_TRAINED_ROWS * _EPOCHS / seconds))
        figures.append(_measured(*given, metric="ours / theirs", value=seconds / taken[OURS]))
    return figures + _to_equal_loss(rounds, train_rows.numpy(), validation.numpy())


def _measured(table: str, method: str, rows: int, columns: int, metric: str, value: float) -> Measured:
    return Measured(table, method, metric, value, rows, columns)


def _settings(batch: int, epochs: int, hidden: Sequence[int], latents: int) -> PipelineConfig:
    given = generated.config(PLAIN).model_dump(mode="json")
    given["model"] |= {"hidden": list(hidden), "latent_dim": latents, "loss": {"mse": 1.0}, "scaling": "standard"}
    given["training"] |= {"batch_size": batch, "epochs": epochs, "patience": epochs, "optimizer": "adam"}
    return PipelineConfig.model_validate(given)


def _network(width: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Linear(width, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, _LATENTS)),
        *(nn.Linear(_LATENTS, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, width)),
    )


def _bare_loop(rows: torch.Tensor) -> None:
    model = _network(rows.shape[1])
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    for _ in range(_EPOCHS):
        for chosen in torch.randperm(len(rows)).split(_BATCH):
            batch = rows[chosen]
            optimizer.zero_grad(set_to_none=True)
            nn.functional.mse_loss(model(batch), batch).backward()
            optimizer.step()


def _loader_loop(rows: torch.Tensor) -> None:
    model = _network(rows.shape[1])
    optimizer = torch.optim.Adam(model.parameters())
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(rows), batch_size=_BATCH, shuffle=True)
    for _ in range(_EPOCHS):
        for (batch,) in loader:
            optimizer.zero_grad()
            nn.functional.mse_loss(model(batch), batch).backward()
            optimizer.step()


def _pyod(**settings: Any) -> AutoEncoder:
    given = {"hidden_neuron_list": [_HIDDEN, _LATENTS], "batch_norm": False, "dropout_rate": 0.0, "verbose": 0}
    return AutoEncoder(**{**given, **settings})


def _regressor() -> MLPRegressor:
    layers = (_HIDDEN, _LATENTS, _HIDDEN)
    return MLPRegressor(hidden_layer_sizes=layers, batch_size=_BATCH, max_iter=_EPOCHS, random_state=0, tol=0.0)


def _to_equal_loss(rounds: int, rows: npt.NDArray[np.float32], validation: npt.NDArray[np.float32]) -> list[Measured]:
    """Measure the time until ae_pipeline reaches the validation loss of PyOD's defaults, on fewer rows."""
    rows, validation = rows[:20_000], validation[:5_000]
    varying = rows.std(axis=0) > 0
    std = np.where(varying, rows.std(axis=0), 1.0)
    rows, validation = ((part - rows.mean(axis=0)) / std for part in (rows, validation))
    table = f"time to the validation loss of PyOD's defaults: {len(rows):,} rows × {rows.shape[1]}"
    reached: dict[str, list[float]] = {OURS: [], "PyOD AutoEncoder, defaults": []}
    for seed in range(rounds):
        peer = AutoEncoder(verbose=0, preprocessing=False, random_state=seed)
        theirs = _seconds(lambda peer=peer: peer.fit(rows))  # type: ignore[misc]
        wanted = float(np.square(peer.decision_function(validation)).mean() / rows.shape[1])
        reached["PyOD AutoEncoder, defaults"].append(theirs)
        reached[OURS].append(_until(wanted, rows, validation, seed))
    taken = {name: statistics.median(values) for name, values in reached.items()}
    figures = []
    for name, seconds in taken.items():
        given = (table, name, len(rows), rows.shape[1])
        figures.append(_measured(*given, metric="seconds", value=seconds))
        figures.append(_measured(*given, metric="theirs / ours", value=seconds / taken[OURS]))
    return figures


class _ReachedError(Exception):
    """The validation loss has reached its target."""


def _until(wanted: float, rows: npt.NDArray[np.float32], validation: npt.NDArray[np.float32], seed: int) -> float:
    """Train a network of PyOD's default widths until a validation loss, and return the seconds."""
    frame = pl.DataFrame({column.name: rows[:, at] for at, column in enumerate(generated.features_of(_COLUMNS))})
    settings = _settings(128, 30, (64,), 32)
    encoder = fit_encoder(settings, frame, generated.features_of(_COLUMNS))

    def report(epoch: Epoch) -> None:
        if epoch.validation_loss <= wanted:
            raise _ReachedError

    began = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    model, loss = build_model(settings, encoder.shape, generator), build_loss(settings, encoder)
    try:
        train(model, loss, torch.from_numpy(rows), torch.from_numpy(validation), settings.training, generator, report)
    except _ReachedError:
        return time.perf_counter() - began
    return float("inf")


# Extraction


def measure_extraction(rows: int, rounds: int) -> list[Measured]:
    """Measure the extraction from features on disk to the published table, and its alternatives."""
    with tempfile.TemporaryDirectory() as folder:
        paths = DatasetPaths(Path(folder), generated.DATASET)
        count = max(3, rows // generated.DAY_ROWS)
        days = [generated.write_day(paths, index, _COLUMNS) for index in range(count)]
        rows = count * generated.DAY_ROWS
        bundles = {PLAIN: generated.fitted(paths, _COLUMNS, PLAIN), ALL: generated.fitted(paths, _COLUMNS, ALL)}
        peer = AutoEncoder(verbose=0, batch_size=1024, epoch_num=2).fit(generated.numbers(20_000, _COLUMNS, 1))
        # The peer scores a part of its rows in memory. Its time is scaled to the number of rows.
        part = generated.numbers(min(rows, 1_000_000), _COLUMNS, 2)
        trials = {
            f"{OURS}, plain scoring": lambda: _published(days, paths, bundles[PLAIN]),
            f"{OURS}, all evidence": lambda: _published(days, paths, bundles[ALL]),
            "(a) pyarrow, read and written again": lambda: _copied(days, paths),
            "(b) PyOD decision_function, in its default batches of 32": lambda: (
                _seconds(lambda: peer.decision_function(part[:50_000], batch_size=32)) * (rows / 50_000)
            ),
            "(b) the same, in batches of 1,024": lambda: (
                _seconds(lambda: peer.decision_function(part)) * (rows / len(part))
            ),
            "(b) the same, in batches of 8,192": lambda: (
                _seconds(lambda: peer.decision_function(part, batch_size=8192)) * (rows / len(part))
            ),
        }
        # Large numbers of rows, whose round takes minutes, are measured once.
        taken = medians(rounds, trials) if rows < _MANY else medians(1, trials, warm_up=0)
        table = f"extraction: {rows:,} rows × {_COLUMNS}, from features on disk to the published table"
        copied = taken["(a) pyarrow, read and written again"]
        figures = []
        for name, seconds in taken.items():
            given = (table, name, rows, _COLUMNS)
            figures.append(_measured(*given, metric="s", value=seconds))
            figures.append(_measured(*given, metric="rows/s", value=rows / seconds))
            figures.append(_measured(*given, metric="× (a)", value=seconds / copied))
        return figures + (_parts(days, paths, bundles[ALL], rounds) if rows < _MANY else [])


def _published(days: Sequence[str], paths: DatasetPaths, bundle: ModelBundle) -> float:
    shutil.rmtree(paths.latents, ignore_errors=True)
    return _seconds(lambda: publish(days, Dataset(bundle.config, paths), bundle, 1, {}))


def _copied(days: Sequence[str], paths: DatasetPaths) -> float:
    def copy() -> None:
        for day in days:
            table = pq.read_table(paths.features(day))
            pq.write_table(table, paths.root / "copy.parquet", compression="zstd", row_group_size=122_880)

    return _seconds(copy)


def _parts(days: Sequence[str], paths: DatasetPaths, bundle: ModelBundle, rounds: int) -> list[Measured]:
    """Measure the parts of an extraction of one day, each alone. Parallel parts use all cores."""
    day = paths.features(days[0])
    rows = pl.read_parquet(day)
    detector, network = bundle.detector, bundle.network
    slices = list(network.batches(rows))
    encoded = [network.encode_batch(part) for part in slices]
    passed = [network.forward(batch) for batch in encoded]
    pairs = list(zip(passed, encoded, strict=True))
    losses = detector.latents_and_losses(rows)[1]
    tables = [score_batch(bundle, 1, batch, days[0]) for batch in read_features(day)]
    ensemble = detector.ensemble
    assert ensemble is not None
    wide = [batch[:, torch.from_numpy(ensemble.varying)].double() for batch in encoded]
    standard, ranks = list(map(ensemble.scalings.standard, wide)), list(map(ensemble.scalings.ranks, wide))
    normal, tensors = list(map(normal_scores, ranks)), ensemble.tensors(wide[0].device)
    surprisal = list(map(ensemble.tails, map(ensemble.measures, encoded)))
    files = TableFiles(str(paths.root / "parts"))
    path = f"v1_parts/{days[0]}/part-0.parquet"

    def over(work: Callable[[Any], object], items: Sequence[Any]) -> Callable[[], object]:
        return lambda: list(parallel_map(work, items))

    loss = network.double_loss
    trials = {
        "reading": lambda: pl.read_parquet(day),
        "encoding": over(network.encode_batch, slices),
        "network": over(network.forward, encoded),
        "losses by column": over(lambda pair: loss.parts(*pair), pairs),
        "place of the latent": over(lambda one: detector.mahalanobis(one.latents), passed),
        "ensemble: ranks and normal scores": over(ensemble.scalings.normal, wide),
        "ensemble: nearest as encoded": over(tensors.as_encoded, wide),
        "ensemble: nearest by ranks, of all and of the core": over(tensors.by_ranks, normal),
        "ensemble: mixture": over(ensemble.mixture, standard),
        "ensemble: denoising autoencoders": over(ensemble.denoising_ensemble, standard),
        "ensemble: ECOD": over(lambda part: ecod_score(part, tensors.upwards), ranks),
        "ensemble: isolation forest": over(ensemble.forest or len, wide),
        "ensemble: combination": over(ensemble.combination, surprisal),
        "tails to surprisal": over(lambda part: detector.tails(torch.from_numpy(part)), [losses]),
        "writing": lambda: write_file(tables, {days[0]: "0"}, bundle.model.latent_dim, path, files),
    }
    taken = medians(rounds, {name: lambda work=work: _seconds(work) for name, work in trials.items()})  # type: ignore[misc]
    table = f"parts of an extraction with all evidence, {rows.height:,} rows, each on its own"
    figures = []
    for name, seconds in taken.items():
        given = (table, name, rows.height, _COLUMNS)
        figures.append(_measured(*given, metric="s per million rows", value=seconds * 1e6 / rows.height))
    return figures


if __name__ == "__main__":
    sys.exit(main())
