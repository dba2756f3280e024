"""Effect of a retraining on a downstream model: a ridge regression on published latents, month by month.

The task is to predict the arrival delay of a flight from the latents of the shipped pipeline. The pipeline receives
neither `arr_delay` nor `arr_time`. The first champion learns from the days before March. The downstream model is fitted
once, on its latents of these days. From March to December, a model is retrained on the days before each month, with
another seed, and predicts that month. It is trained in three ways. Each way continues from its result of the previous
month:

- as shipped: start from the weights of the previous model and penalize the distance from its latents;
- fresh weights: `warm_start: false`, with the same penalty;
- on its own: `warm_start: false` and `anchor: 0`.

Five readings of its latents are compared:

- unaligned: the first downstream model reads the retrained latents unchanged;
- orthogonal: the best orthogonal map takes them to the latents in use, for contrast;
- aligned: the pipeline aligns them to the axes of the first champion;
- refitted: the downstream model is refitted on the unaligned latents of the days of the first fit;
- refitted on newer days: the downstream model is refitted on the last sixty days before the month.

Maps are fitted on the validation days of the retraining, without the delay. The difference between refitted and aligned
is the loss of the alignment. The difference between the last two is the effect of time on the task itself. R² is
measured on the rows of the month.
"""

import argparse
import dataclasses
import itertools
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.features.build import feature_columns, features_content
from ae_pipeline.features.split import cut_window
from ae_pipeline.latent_space.alignment import Served, align, transform_latents
from ae_pipeline.latent_space.compatibility import fit_orthogonal
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.training.fit import fit_bundle
from benchmarks.planted_faults import Prepared, prepare
from benchmarks.report import Row, format_table, write_report

TARGET, UNSEEN = "arr_delay", ("arr_delay", "arr_time")
FIRST = "2013-03"
MONTHS = tuple(f"2013-{month:02}" for month in range(3, 13))
MAX_LOST = 0.02
"""Tolerated difference in R² between refitted and aligned."""

NEWER_DAYS = 60
WAYS: dict[str, dict[str, object]] = {
    "as shipped": {},
    "fresh weights": {"warm_start": False},
    "on its own": {"warm_start": False, "anchor": 0.0},
}
"""Settings of the section `training` for each way to retrain."""

PARTS = {"validation_days": 10, "calibration_days": 14}
"""Shorter parts: the first window has two months, and the shipped parts would leave no training days."""


@dataclasses.dataclass(frozen=True)
class Month:
    """R² of the downstream model in one month.

    Attributes:
        way: Way of the retraining.
        month: Month, such as 2013-03.
        seed: Seed of the first champion. The seeds of the retrainings follow from it.
        values: R² by reading of the latents.
        explained_variance: Share of the variance of the latents in use that the affine map explains.
        condition: Condition number of that map.
        loss: Validation loss of the retrained model, nats per row.
        is_compatible: Whether the pipeline classifies the spaces as compatible.
    """

    way: str
    month: str
    seed: int
    values: dict[str, float]
    explained_variance: float
    condition: float
    loss: float
    is_compatible: bool

    @property
    def lost(self) -> float:
        """Return the difference in R² between refitted and aligned."""
        return self.values["refitted"] - self.values["aligned"]

    def row(self) -> Row:
        """Return the row of the JSON."""
        named = {name.replace(" ", "_"): round(value, 6) for name, value in self.values.items()}
        figures = {
            "lost": self.lost,
            "explained": self.explained_variance,
            "condition": self.condition,
            "loss": self.loss,
        }
        rounded = {name: round(value, 6) for name, value in figures.items()}
        return {
            "way": self.way,
            "month": self.month,
            "seed": self.seed,
            **named,
            **rounded,
            "is_compatible": self.is_compatible,
        }


class Flights:
    """Flights by day, and models of the days before a month."""

    def __init__(self, prepared: Prepared) -> None:
        training = prepared.config.training.model_copy(update=PARTS)
        self.config: PipelineConfig = prepared.config.model_copy(update={"training": training})
        self.prepared = prepared
        content = features_content(Dataset(self.config, prepared.paths))
        self.content = {day: digest for day, (digest, rows) in content.items() if rows}

    def fit(
        self, month: str, seed: int, previous: ModelBundle | None = None, way: Mapping[str, object] | None = None
    ) -> ModelBundle:
        """Train on the window of the days before a month."""
        training = self.config.training.model_copy(update={"seed": seed, **(way or {})})
        config = self.config.model_copy(update={"training": training})
        columns = [column for column in feature_columns(config, self.prepared.contract) if column.name not in UNSEEN]
        window = cut_window({day: text for day, text in self.content.items() if day < month}, config)
        return fit_bundle(Dataset(config, self.prepared.paths), columns, window, previous=previous)[0]

    def rows(self, days: Sequence[str]) -> pl.DataFrame:
        """Return the features of some days, without flights that did not arrive."""
        read = [pl.read_parquet(self.prepared.paths.features(day)) for day in days]
        return pl.concat(read).drop_nulls(TARGET)

    def days_before(self, month: str) -> list[str]:
        """Return the days with flights before a month, in order."""
        return sorted(day for day in self.content if day < month)

    def days_of(self, month: str) -> list[str]:
        """Return the days of a month with flights."""
        return [day for day in self.content if day.startswith(month)]


def fit_downstream(bundle: ModelBundle, rows: pl.DataFrame) -> Pipeline:
    """Fit the downstream model: a ridge regression on standardized latents."""
    return make_pipeline(StandardScaler(), Ridge()).fit(bundle.encode(rows), rows[TARGET].to_numpy())


def r_squared(model: Pipeline, bundle: ModelBundle, rows: pl.DataFrame) -> float:
    """Return R²: the share of the variance of the delay that a downstream model explains."""
    return float(r2_score(rows[TARGET].to_numpy(), model.predict(bundle.encode(rows))))


def follow(flights: Flights, champion: ModelBundle, way: str, seed: int, months: Sequence[str]) -> list[Month]:
    """Retrain month by month after a first champion, and print a line for each month."""
    first_rows = flights.rows(flights.days_before(FIRST))
    downstream = fit_downstream(champion, first_rows)
    results: list[Month] = []
    first = previous = Served(0, champion)
    for number, month in enumerate(months, 1):
        started = time.perf_counter()
        retrained = flights.fit(month, seed * 100 + number, previous.bundle, WAYS[way])
        reference = retrained.window.rows("validation", flights.prepared.paths)
        aligned, alignment = align(retrained, previous, first, reference, flights.config.latents)
        new, old = (model.encode(reference).astype(np.float64) for model in (retrained, champion))
        orthogonal = transform_latents(retrained, fit_orthogonal(new, old))
        newer = flights.rows(flights.days_before(month)[-NEWER_DAYS:])
        month_rows = flights.rows(flights.days_of(month))
        values = {
            "unaligned": r_squared(downstream, retrained, month_rows),
            "orthogonal": r_squared(downstream, orthogonal, month_rows),
            "aligned": r_squared(downstream, aligned, month_rows),
            "refitted": r_squared(fit_downstream(retrained, first_rows), retrained, month_rows),
            "refitted on newer days": r_squared(fit_downstream(retrained, newer), retrained, month_rows),
        }
        condition = alignment.compatibility.condition
        loss = retrained.facts.validation_loss
        results.append(
            Month(way, month, seed, values, alignment.explained_variance, condition, loss, alignment.is_compatible)
        )
        summary = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
        print(f"{way}, {month}, seed {seed}, {time.perf_counter() - started:.0f} s: {summary}", flush=True)
        previous = Served(number, aligned)
    return results


def describe(results: Sequence[Month]) -> str:
    """Return a table of R² by way and month, and the loss of the alignment."""
    readings = list(results[0].values)
    lines = [
        [
            *(month.way, month.month, str(month.seed)),
            *(f"{month.values[reading]:.3f}" for reading in readings),
            *(f"{month.lost:+.3f}", f"{month.explained_variance:.1%}", f"{month.condition:.0f}", f"{month.loss:.2f}"),
            "compatible" if month.is_compatible else "not",
        ]
        for month in results
    ]
    measures = ["lost", "explained variance", "condition number", "loss", "compatible"]
    parts = [format_table(["retrained", "month", "seed", *readings, *measures], lines), ""]
    for way in dict.fromkeys(month.way for month in results):
        lost = [month.lost for month in results if month.way == way]
        kept = sum(value <= MAX_LOST for value in lost)
        parts.append(
            f"{way}: aligned loses at most {MAX_LOST} in {kept} of {len(lost)} months, and {max(lost):.3f} at worst"
        )
    return "\n".join(parts)


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latent_stability", description=__doc__)
    parser.add_argument("--data", type=Path, help="data folder that keeps the prepared flights")
    parser.add_argument(
        "--seeds", default="0", help="comma-separated seeds of the first champion (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # two threads are slower for networks of this size
    with tempfile.TemporaryDirectory() as root:
        flights = Flights(prepare(arguments.data or Path(root)))
        results: list[Month] = []
        for seed, way in itertools.product(map(int, arguments.seeds.split(",")), WAYS):
            results += follow(flights, flights.fit(FIRST, seed), way, seed, MONTHS)
            write_report(arguments.out, "latent_stability", [month.row() for month in results], ("scikit-learn",))
    print(f"\n{describe(results)}")


if __name__ == "__main__":
    main()
