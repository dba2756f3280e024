"""Daily drift: compare each published day with the training window of the serving model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow.parquet as pq

from ae_pipeline.common.parallel import parallel_map
from ae_pipeline.config.display import PLAIN, ColumnNames
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.latents.read import PublishedDay, published_day
from ae_pipeline.scoring.drift import Effect, Part, measure_columns, measure_numbers
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.hashing import hash_json
from ae_pipeline.storage.parquet import read_facts, whole, write_parquet
from ae_pipeline.storage.paths import DatasetPaths

if TYPE_CHECKING:
    from ae_pipeline.detector.bundle import ModelBundle

_VERSION = "2"
"""Increased whenever the same rows would give other effects or other words."""

_SCHEMA: dict[str, type[pl.DataType]] = {
    "day": pl.String,
    "identity": pl.String,
    "is_after": pl.Boolean,
    "rows": pl.Int64,
    "part": pl.String,
    "name": pl.String,
    "psi": pl.Float64,
    "wasserstein": pl.Float64,
    "new_categories": pl.Float64,
    "missing": pl.Float64,
    "is_drift": pl.Boolean,
    "words": pl.String,
}


@dataclass(frozen=True, kw_only=True)
class DayDrift:
    """Drift of one day.

    Attributes:
        day: ISO date.
        is_after: Whether the day comes after the training window. Only the columns of other days are measured: the
            model has learned from their rows and scores them lower.
        rows: Number of rows.
        effects: Drifted columns, latents and scores, the largest stability index first; empty without drift.
        is_judged: Whether the day has enough rows for a comparison.
    """

    day: str
    is_after: bool
    rows: int
    effects: tuple[Effect, ...]
    is_judged: bool

    def message(self, names: ColumnNames = PLAIN) -> str:
        """Return the first three effects as text; empty without drift.

        Args:
            names: How the text names columns; by default as in the data, for programs.
        """
        parts = [f"{_subject(effect, names)}: {effect.message}" for effect in self.effects[:3]]
        more = len(self.effects) - len(parts)
        return " · ".join(parts) + (f" · and {more} more" if more > 0 else "")


def _subject(effect: Effect, names: ColumnNames) -> str:
    if effect.part == Part.SCORE:
        return effect.name
    return f"{effect.part.value} {names.title(effect.name) if effect.part == Part.COLUMN else effect.name}"


def measure_drift(files: Mapping[str, PublishedDay], dataset: Dataset, bundle: "ModelBundle") -> tuple[DayDrift, ...]:
    """Measure the drift of every published day and write it to `drift.parquet`.

    A day is measured again only if its rows, the model or the thresholds have changed.

    Args:
        files: Published days.
        dataset: Configuration and paths of the dataset.
        bundle: Model that scored the published table.

    Returns:
        All days, the oldest first; empty without event time.
    """
    if not bundle.reference:
        return ()
    rule = drift_rule(dataset.config, bundle.fingerprint)
    identities = {day: f"{file.identity} {rule}" for day, file in files.items()}
    path = dataset.paths.reports / "drift.parquet"
    empty = pl.DataFrame(schema=_SCHEMA)
    previous = pl.read_parquet(path, glob=False) if read_facts(path) else empty
    previous = previous if previous.schema == empty.schema else empty
    unchanged = previous.filter(pl.col("identity").is_in(list(identities.values())))
    measured_days = set(unchanged["day"])

    def measured(day: str) -> pl.DataFrame:
        return _measured(day, identities[day], files[day], dataset, bundle)

    parts = [unchanged, *parallel_map(measured, [day for day in sorted(identities) if day not in measured_days])]
    effects = pl.concat(parts).sort("day", maintain_order=True)
    if not effects.equals(previous) or not read_facts(path):
        write_parquet(path, effects.to_arrow())
    return day_drifts(effects, dataset.config.drift.min_rows)


def drift_rule(config: PipelineConfig, fingerprint: str) -> str:
    """Return a hash of what a day is measured with beside its rows: the thresholds and the model.

    Args:
        config: Configuration of the dataset.
        fingerprint: Fingerprint of the model.
    """
    return hash_json([_VERSION, config.drift.model_dump(), fingerprint])


def day_drifts(effects: pl.DataFrame, min_rows: int) -> tuple[DayDrift, ...]:
    """Return the days of the rows of `drift.parquet`.

    Args:
        effects: Rows of `drift.parquet`.
        min_rows: Rows from which a day is compared.
    """
    significant: dict[str, list[Effect]] = {}
    for row in effects.filter("is_drift").sort("psi", descending=True, maintain_order=True).to_dicts():
        significant.setdefault(row["day"], []).append(_effect(row))
    days = effects.select("day", "is_after", "rows").unique("day", keep="first", maintain_order=True)
    return tuple(
        DayDrift(
            day=day,
            is_after=is_after,
            rows=rows,
            effects=tuple(significant.get(day, ())),
            is_judged=rows >= min_rows,
        )
        for day, is_after, rows in days.iter_rows()
    )


def read_all_days(paths: DatasetPaths, min_rows: int) -> tuple[DayDrift, ...]:
    """Read the drift of all days from `drift.parquet`, the oldest first.

    Args:
        paths: Paths of the dataset.
        min_rows: Rows from which a day is compared.
    """
    path = paths.reports / "drift.parquet"
    effects = pl.read_parquet(path, glob=False) if read_facts(path) else pl.DataFrame(schema=_SCHEMA)
    # Files of earlier versions contain only days after the window.
    effects = effects if "is_after" in effects.columns else effects.with_columns(is_after=pl.lit(value=True))
    return day_drifts(effects, min_rows)


def read_drift(paths: DatasetPaths, min_rows: int) -> tuple[DayDrift, ...]:
    """Read the drift of the days after the training window from `drift.parquet`, the oldest first.

    Args:
        paths: Paths of the dataset.
        min_rows: Rows from which a day is compared.
    """
    return tuple(day for day in read_all_days(paths, min_rows) if day.is_after)


def drifting_days(paths: DatasetPaths, min_rows: int, filling: str = "") -> list[str]:
    """Return the newest consecutive days with drift, the newest last; days with too few rows are skipped.

    Args:
        paths: Paths of the dataset.
        min_rows: Rows from which a day is compared.
        filling: Day that is still filling, which is skipped as well.
    """
    days: list[str] = []
    for day in reversed([day for day in read_drift(paths, min_rows) if day.is_judged and day.day != filling]):
        if not day.effects:
            break
        days.insert(0, day.day)
    return days


def _measured(day: str, identity: str, file: PublishedDay, dataset: Dataset, bundle: "ModelBundle") -> pl.DataFrame:
    config, paths = dataset.config, dataset.paths
    columns = pq.read_schema(whole(paths.features(day))).names  # read once: slow for wide tables
    names = [name for name in bundle.columns if name in columns]
    rows = pl.read_parquet(paths.features(day), columns=names, glob=False)
    is_after = day > bundle.window.days[-1]
    effects: list[Effect] = []
    if rows.height >= config.drift.min_rows:
        effects += measure_columns(rows, bundle.reference, config.drift)
    if rows.height >= config.drift.min_rows and is_after:
        scored, numbers = published_day(file, paths), (Part.SCORE, Part.LATENT)
        effects += [
            measure_numbers(known, scored[known.name].cast(pl.Float64).to_numpy(), scored.height, config.drift)
            for known in bundle.reference
            if known.part in numbers
        ]
    # A day with too few rows gets a row too, so that it is not measured again.
    effects = effects or [Effect(part=Part.SCORE, name="score", psi=0.0)]
    records = [
        {"day": day, "identity": identity, "is_after": is_after, "rows": rows.height, **_record(effect)}
        for effect in effects
    ]
    return pl.DataFrame(records, schema=_SCHEMA)


def _record(effect: Effect) -> dict[str, Any]:
    """Return an effect as `drift.parquet` stores it: the message is in the column `words`."""
    return {**effect.model_dump(mode="json", exclude={"message"}), "words": effect.message}


def _effect(row: Mapping[str, Any]) -> Effect:
    """Return the effect of a row of `drift.parquet`."""
    values = {name: row[name] for name in Effect.model_fields if name != "message"}
    return Effect.model_validate({**values, "message": row["words"]})
