"""How far each published day is from the training window of the model that serves: a table, a row for each effect."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from ae_pipeline.common.parallel import parallel_map
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.latents.read import PublishedDay, published_day
from ae_pipeline.scoring.drift import Effect, Part, measure_columns, measure_numbers
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.hashing import hash_json
from ae_pipeline.storage.parquet import write_parquet
from ae_pipeline.storage.paths import DatasetPaths

_VERSION = "1"
"""Raised when the same rows would give other effects."""

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


@dataclass(frozen=True)
class DayDrift:
    """A day beside the training window.

    Attributes:
        day: ISO date.
        is_after: Whether it comes after the window. Of others the columns alone are looked at: the model has learnt
            from them, and scores them lower than what comes.
        rows: On it.
        effects: What has drifted, the farthest first; none where the day is like the window.
        is_judged: Whether it has rows enough to be judged.
    """

    day: str
    is_after: bool
    rows: int
    effects: tuple[Effect, ...]
    is_judged: bool

    @property
    def message(self) -> str:
        """What has drifted, for a person."""
        told = [
            f"{effect.name if effect.part == Part.SCORE else f'{effect.part.value} {effect.name}'}: {effect.message}"
            for effect in self.effects[:3]
        ]
        more = len(self.effects) - len(told)
        return " · ".join(told) + (f" · and {more} more" if more > 0 else "")


def measure_drift(files: Mapping[str, PublishedDay], dataset: Dataset, bundle: ModelBundle) -> tuple[DayDrift, ...]:
    """Holds every published day against the training window, and keeps what came of it in `drift.parquet`.

    Days measured before stay as they are while their rows, the model and the thresholds do.

    Args:
        files: The published days.
        dataset: Configuration and paths of the dataset.
        bundle: The model that the table was scored with.

    Returns:
        All days, the oldest first; none without event time.
    """
    config, paths = dataset.config, dataset.paths
    if not bundle.reference:
        return ()
    rule = hash_json([_VERSION, config.drift.model_dump(), bundle.fingerprint])
    wanted = {day: f"{found.identity} {rule}" for day, found in files.items()}
    path = paths.reports / "drift.parquet"
    empty = pl.DataFrame(schema=_SCHEMA)
    previous = pl.read_parquet(path) if path.exists() else empty
    previous = previous if previous.schema == empty.schema else empty
    known = previous.filter(pl.col("identity").is_in(list(wanted.values())))
    there = set(known["day"])

    def measured(day: str) -> pl.DataFrame:
        return _measured(day, wanted[day], files[day], dataset, bundle)

    parts = [known, *parallel_map(measured, [day for day in sorted(wanted) if day not in there])]
    everything = pl.concat(parts).sort("day", maintain_order=True)
    if not everything.equals(previous) or not path.exists():
        write_parquet(path, everything.to_arrow())
    return day_drifts(everything, config.drift.min_rows)


def day_drifts(effects: pl.DataFrame, min_rows: int) -> tuple[DayDrift, ...]:
    """Makes days of the rows of `drift.parquet`."""
    days = []
    for (day,), part in effects.group_by("day", maintain_order=True):
        rows = int(part["rows"][0])
        drifted = part.filter("is_drift").sort("psi", descending=True)
        found = [_effect(row) for row in drifted.to_dicts()]
        days.append(DayDrift(str(day), bool(part["is_after"][0]), rows, tuple(found), rows >= min_rows))
    return tuple(days)


def read_all_days(paths: DatasetPaths, min_rows: int) -> tuple[DayDrift, ...]:
    """Reads all days as they were measured last, the oldest first."""
    path = paths.reports / "drift.parquet"
    effects = pl.read_parquet(path) if path.exists() else pl.DataFrame(schema=_SCHEMA)
    # A table of before knows the days after the window alone.
    effects = effects if "is_after" in effects.columns else effects.with_columns(is_after=pl.lit(value=True))
    return day_drifts(effects, min_rows)


def read_drift(paths: DatasetPaths, min_rows: int) -> tuple[DayDrift, ...]:
    """Reads the days after the training window as they were measured last, the oldest first."""
    return tuple(day for day in read_all_days(paths, min_rows) if day.is_after)


def drifting_days(paths: DatasetPaths, min_rows: int) -> list[str]:
    """Lists the newest days that have drifted without one between them that has not, the newest last."""
    found: list[str] = []
    for day in reversed([day for day in read_drift(paths, min_rows) if day.is_judged]):
        if not day.effects:
            break
        found.insert(0, day.day)
    return found


def _measured(day: str, identity: str, found: PublishedDay, dataset: Dataset, bundle: ModelBundle) -> pl.DataFrame:
    config, paths = dataset.config, dataset.paths
    there = pl.read_parquet_schema(paths.features(day)).keys()  # once: of wide rows it takes long to read
    rows = pl.read_parquet(paths.features(day), columns=[name for name in bundle.columns if name in there])
    is_after = day > bundle.window.days[-1]
    effects: list[Effect] = []
    if rows.height >= config.drift.min_rows:
        effects += measure_columns(rows, bundle.reference, config.drift)
    if rows.height >= config.drift.min_rows and is_after:
        scored, numbers = published_day(found, paths), (Part.SCORE, Part.LATENT)
        effects += [
            measure_numbers(known, scored[known.name].cast(pl.Float64).to_numpy(), scored.height, config.drift)
            for known in bundle.reference
            if known.part in numbers
        ]
    # A day that is not judged has a row too, so that it is known to have been looked at.
    effects = effects or [Effect(part=Part.SCORE, name="score", psi=0.0)]
    told = [
        {"day": day, "identity": identity, "is_after": is_after, "rows": rows.height, **_record(effect)}
        for effect in effects
    ]
    return pl.DataFrame(told, schema=_SCHEMA)


def _record(effect: Effect) -> dict[str, Any]:
    """Return an effect as `drift.parquet` stores it: the message is in the column `words`."""
    return {**effect.model_dump(mode="json", exclude={"message"}), "words": effect.message}


def _effect(row: Mapping[str, Any]) -> Effect:
    """Return the effect of a row of `drift.parquet`."""
    values = {name: row[name] for name in Effect.model_fields if name != "message"}
    return Effect.model_validate({**values, "message": row["words"]})
