"""Reference distributions that drift is measured against: columns, latents and scores of the training window."""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from ae_pipeline.config.columns import ColumnType, FeatureColumn
from ae_pipeline.config.service import DriftConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.features.split import PARTS, sample_rows
from ae_pipeline.scoring.drift import (
    Distribution,
    Effect,
    Part,
    describe_columns,
    describe_numbers,
    measure_columns,
    measure_numbers,
    with_usual,
)
from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.training import memory_budget

_LATENT_ROWS = 20_000
"""Calibration rows whose latents the reference describes."""

_MIN_DAY_ROWS = 20
"""Rows that a day needs to count for the normal day-to-day variation."""


def with_reference(bundle: ModelBundle, columns: Sequence[FeatureColumn], paths: DatasetPaths) -> ModelBundle:
    """Return a bundle with the reference distributions that drift is measured against.

    Columns are described over the whole window. Scores and latents are described over the calibration days only,
    because a model scores the rows that it was trained on too low. Latents are described in the present axes of the
    bundle, so call this after an alignment.

    Args:
        bundle: Fitted model. A model without event time is returned unchanged, because no later days exist.
        columns: Feature columns with their types.
        paths: Paths of the dataset.
    """
    if not bundle.config.is_daily:
        return bundle
    reference = _describe_window(bundle, columns, paths)
    held_out = sample_rows(bundle.window.rows("calibration", paths, most=2 * _LATENT_ROWS), _LATENT_ROWS, seed=0)
    latents = bundle.encode(held_out).astype(np.float64)
    reference += [describe_numbers(Part.LATENT, f"z_{index:03d}", values) for index, values in enumerate(latents.T)]
    effects: dict[tuple[Part, str], list[Effect]] = {}
    for effect in _effects_of_days(reference, held_out, latents, bundle.config.drift, bundle.config.timezone):
        effects.setdefault((effect.part, effect.name), []).append(effect)
    reference = [with_usual(known, effects.get((known.part, known.name), [])) for known in reference]
    scores = describe_numbers(Part.SCORE, "score", bundle.calibration.scores)
    return dataclasses.replace(bundle, reference=(*reference, scores))


def _describe_window(bundle: ModelBundle, columns: Sequence[FeatureColumn], paths: DatasetPaths) -> list[Distribution]:
    """Return the distribution of each column that is not an image over the window."""
    used = [column for column in columns if column.name in bundle.columns and column.type != ColumnType.IMAGE]
    if not used:
        return []
    names = [column.name for column in used]
    limit = memory_budget.max_rows(bundle.window, paths, memory_budget.share_of(bundle.config))
    counts = {part: bundle.window.count(part, paths) for part in PARTS}
    # All parts are sampled at the same rate. Equal row counts would weigh the few newest days as much as all others.
    share = min(limit / max(sum(counts.values()), 1), 1.0)
    parts = [bundle.window.rows(part, paths, names, math.ceil(share * count)) for part, count in counts.items()]
    return list(describe_columns(pl.concat(parts, how="diagonal"), used, newest=parts[-1].height))


def _effects_of_days(
    reference: Sequence[Distribution],
    rows: pl.DataFrame,
    latents: npt.NDArray[np.float64],
    config: DriftConfig,
    timezone: str,
) -> Iterator[Effect]:
    """Yield the drift of each day against the reference of the window; skip days of few rows."""
    days = rows["event_time"].dt.convert_time_zone(timezone).dt.date()
    for day in days.unique().sort():
        is_of_day = days == day
        if is_of_day.sum() < _MIN_DAY_ROWS:
            continue
        yield from measure_columns(rows.filter(is_of_day), reference, config)
        latents_of_day = latents[is_of_day.to_numpy()]
        for distribution in reference:
            if distribution.part == Part.LATENT:
                values = latents_of_day[:, int(distribution.name.removeprefix("z_"))]
                yield measure_numbers(distribution, values, len(values), config)
