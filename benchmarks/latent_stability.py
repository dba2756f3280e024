"""What a retraining does to a model downstream: a ridge regression on published latents, month by month.

The task is the arrival delay of a flight from the latents of the shipped pipeline, which sees neither `arr_delay` nor
`arr_time`. The first champion learns from the days before March; the downstream model is fitted once, on its latents of
these days. From March to December, a model is retrained on the days before each month, with a seed of its own, and
predicts that month. It is trained in three ways, each of which goes on from what it gave the month before:

- as shipped: from the weights of the model before, its latents pulled to those of that model;
- fresh weights: `warm_start: false`, and the same pull;
- on its own: `warm_start: false` and `anchor: 0`.

Five readings of its latents are compared:

- unaligned: the downstream model of the first day reads the retrained latents as they come;
- orthogonal: these turned to the latents in use by the best orthogonal map, for contrast;
- aligned: these aligned as the pipeline does, to the axes of the first champion;
- refitted: the downstream model is fitted anew on the unaligned latents of the days that the first was fitted on;
- refitted on newer days: likewise, on the last sixty days before the month.

Maps are fitted on the validation days of the retraining, without the delay. The difference of aligned and refitted is
what alignment loses; that of the last two is what time does to the task itself. R² is over the rows of the month.
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
from ae_pipeline.training.fit import fit_bundle
from benchmarks.planted_faults import Prepared, prepare
from benchmarks.report import Row, format_table, write_report

TARGET, UNSEEN = "arr_delay", ("arr_delay", "arr_time")
FIRST = "2013-03"
MONTHS = tuple(f"2013-{month:02}" for month in range(3, 13))
MOST_LOST = 0.02
"""R² that aligned may lose against refitted."""

NEWER_DAYS = 60
WAYS: dict[str, dict[str, object]] = {
    "as shipped": {},
    "fresh weights": {"warm_start": False},
    "on its own": {"warm_start": False, "anchor": 0.0},
}
"""Ways to retrain, as settings of the section `training`."""

PARTS = {"validation_days": 10, "calibration_days": 14}
"""The first window is of two months, which the shipped parts would leave nothing of to train on."""


@dataclasses.dataclass(frozen=True)
class Month:
    """R² of the downstream model in one month.

    Attributes:
        way: Of the retraining.
        month: As 2013-03.
        seed: Of the first champion; those of the retrainings follow from it.
        values: By way to read the latents.
        explained: Share of the variance of the latents in use that the affine map explains.
        condition: Of that map.
        loss: Validation loss of the retrained model, nats a row.
        is_compatible: Whether the pipeline calls the spaces compatible.
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
        """What aligned loses against refitted."""
        return self.values["refitted"] - self.values["aligned"]

    def row(self) -> Row:
        """Gives the row of the JSON."""
        named = {name.replace(" ", "_"): round(value, 6) for name, value in self.values.items()}
        figures = {name: round(getattr(self, name), 6) for name in ("lost", "explained", "condition", "loss")}
        told = {"way": self.way, "month": self.month, "seed": self.seed}
        return {**told, **named, **figures, "is_compatible": self.is_compatible}


class Flights:
    """Flights by day, and models of the days before one of them."""

    def __init__(self, prepared: Prepared) -> None:
        training = prepared.config.training.model_copy(update=PARTS)
        self.config: PipelineConfig = prepared.config.model_copy(update={"training": training})
        self.prepared = prepared
        content = features_content(self.config, prepared.paths)
        self.content = {day: digest for day, (digest, rows) in content.items() if rows}

    def fit(
        self, month: str, seed: int, previous: ModelBundle | None = None, way: Mapping[str, object] | None = None
    ) -> ModelBundle:
        """Trains on the window of the days before a month."""
        training = self.config.training.model_copy(update={"seed": seed, **(way or {})})
        config = self.config.model_copy(update={"training": training})
        columns = [column for column in feature_columns(config, self.prepared.contract) if column.name not in UNSEEN]
        window = cut_window({day: text for day, text in self.content.items() if day < month}, config)
        return fit_bundle(config, columns, window, self.prepared.paths, previous=previous)[0]

    def rows(self, days: Sequence[str]) -> pl.DataFrame:
        """Features of some days whose flights arrived."""
        read = [pl.read_parquet(self.prepared.paths.features(day)) for day in days]
        return pl.concat(read).drop_nulls(TARGET)

    def days_before(self, month: str) -> list[str]:
        """Days with flights before a month, in their order."""
        return sorted(day for day in self.content if day < month)

    def days_of(self, month: str) -> list[str]:
        """Days with flights of a month."""
        return [day for day in self.content if day.startswith(month)]


def fit_downstream(bundle: ModelBundle, rows: pl.DataFrame) -> Pipeline:
    """Fits what a team downstream has: a ridge regression on standardised latents."""
    return make_pipeline(StandardScaler(), Ridge()).fit(bundle.encode(rows), rows[TARGET].to_numpy())


def r_squared(model: Pipeline, bundle: ModelBundle, rows: pl.DataFrame) -> float:
    """Gives the share of the variance of the delay that a downstream model explains."""
    return float(r2_score(rows[TARGET].to_numpy(), model.predict(bundle.encode(rows))))


def follow(flights: Flights, champion: ModelBundle, way: str, seed: int, months: Sequence[str]) -> list[Month]:
    """Retrains month by month after a first champion, and prints a line for each."""
    first_rows = flights.rows(flights.days_before(FIRST))
    downstream = fit_downstream(champion, first_rows)
    found: list[Month] = []
    first = previous = Served(0, champion)
    for index, month in enumerate(months, 1):
        started = time.perf_counter()
        retrained = flights.fit(month, seed * 100 + index, previous.bundle, WAYS[way])
        reference = retrained.window.rows("validation", flights.prepared.paths)
        aligned, alignment = align(retrained, previous, first, reference, flights.config.latents)
        new, old = (model.encode(reference).astype(np.float64) for model in (retrained, champion))
        orthogonal = transform_latents(retrained, fit_orthogonal(new, old))
        newer = flights.rows(flights.days_before(month)[-NEWER_DAYS:])
        asked = flights.rows(flights.days_of(month))
        values = {
            "unaligned": r_squared(downstream, retrained, asked),
            "orthogonal": r_squared(downstream, orthogonal, asked),
            "aligned": r_squared(downstream, aligned, asked),
            "refitted": r_squared(fit_downstream(retrained, first_rows), retrained, asked),
            "refitted on newer days": r_squared(fit_downstream(retrained, newer), retrained, asked),
        }
        condition = alignment.compatibility.condition
        loss = retrained.facts["validation_loss"]
        found.append(
            Month(way, month, seed, values, alignment.explained_variance, condition, loss, alignment.is_compatible)
        )
        said = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
        print(f"{way}, {month}, seed {seed}, {time.perf_counter() - started:.0f} s: {said}", flush=True)
        previous = Served(index, aligned)
    return found


def describe(found: Sequence[Month]) -> str:
    """Lays out R² by way and month, with what alignment loses."""
    readings = list(found[0].values)
    lines = [
        [
            *(month.way, month.month, str(month.seed)),
            *(f"{month.values[reading]:.3f}" for reading in readings),
            *(f"{month.lost:+.3f}", f"{month.explained_variance:.1%}", f"{month.condition:.0f}", f"{month.loss:.2f}"),
            "compatible" if month.is_compatible else "not",
        ]
        for month in found
    ]
    heads = ["retrained", "month", "seed", *readings, "lost", "explained", "condition", "loss", "verdict"]
    message = [format_table(heads, lines), ""]
    for way in dict.fromkeys(month.way for month in found):
        lost = [month.lost for month in found if month.way == way]
        kept = sum(value <= MOST_LOST for value in lost)
        message.append(
            f"{way}: aligned loses at most {MOST_LOST} in {kept} of {len(lost)} months, and {max(lost):.3f} at worst"
        )
    return "\n".join(message)


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latent_stability", description=__doc__)
    parser.add_argument("--data", type=Path, help="data folder to keep the prepared flights in")
    parser.add_argument("--seeds", default="0", help="of the first champion, parted by commas (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # of networks this small, two threads wait for one another
    with tempfile.TemporaryDirectory() as root:
        flights = Flights(prepare(arguments.data or Path(root)))
        found: list[Month] = []
        for seed, way in itertools.product(map(int, arguments.seeds.split(",")), WAYS):
            found += follow(flights, flights.fit(FIRST, seed), way, seed, MONTHS)
            write_report(arguments.out, "latent_stability", [month.row() for month in found], ("scikit-learn",))
    print(f"\n{describe(found)}")


if __name__ == "__main__":
    main()
