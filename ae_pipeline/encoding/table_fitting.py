"""Fit a TableEncoder on the rows of a training window."""

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from ae_pipeline.common.errors import TrainingError
from ae_pipeline.config.columns import ColumnType, FeatureColumn
from ae_pipeline.config.model import EventTime, Scaling
from ae_pipeline.encoding.blocks import Block, BlockKind
from ae_pipeline.encoding.event_time import EVENT_TIME, fit_context
from ae_pipeline.encoding.restatement import EventTimeParts
from ae_pipeline.encoding.table_encoder import ColumnEncoding, LeftOut, TableEncoder
from ae_pipeline.encoding.values import column_numbers

MAX_CATEGORIES = 1024
MIN_CATEGORY_ROWS = 5
MIN_CATEGORY_COVER = 0.9

_LARGEST = 1e100
"""Numbers are clipped to ± this value for their statistics, so that squares and differences stay finite."""

_BlockSpec = tuple[ColumnEncoding, str, int]
"""Column, part and width of a block."""


def fit_table_encoder(
    features: pl.DataFrame,
    columns: Sequence[FeatureColumn],
    scaling: Scaling = Scaling.ROBUST,
    timezone: str = "UTC",
    *,
    event_time: EventTime = EventTime.CONTEXT,
    declared: Collection[str] = (),
) -> TableEncoder:
    """Fit a TableEncoder on the rows of the training window.

    It leaves out constant columns, copies of other columns, and identifiers, and records the reason. An identifier has
    only distinct values, or so many categories that the most frequent ones do not cover the rows. Unless the event time
    is a target, it also leaves out columns that restate a part of the event time.

    Args:
        features: Training rows.
        columns: Features and their types.
        scaling: Scaling of the numbers.
        timezone: IANA name of the zone whose time of day and weekday the model sees.
        event_time: How the model uses the event time.
        declared: Columns that the configuration declares. They are never taken for a part of the event time.

    Raises:
        TrainingError: No usable column is left.
    """
    kept: list[ColumnEncoding] = []
    left_out: list[LeftOut] = []
    seen: dict[tuple[str, ...], str] = {}
    context, context_parts, why_not = _fit_context(features, columns, event_time, timezone)
    times = EventTimeParts(features[EVENT_TIME], timezone) if EVENT_TIME in features.columns else None
    for column in columns:
        if column.name == EVENT_TIME and event_time != EventTime.TARGET:
            left_out += [LeftOut(column=EVENT_TIME, reason=why_not)] if context is None else []
            continue
        values = features[column.name]
        encoding, reason = _fit_column(column, values, scaling)
        if encoding is not None and times and event_time != EventTime.TARGET and column.name not in declared:
            part = times.restated_by(values)
            encoding, reason = (None, f"it restates the event time: {part}") if part else (encoding, reason)
        if encoding is not None:
            digest = (str(values.dtype), str(values.hash(seed=0).sum()), str(values.null_count()))
            original = seen.setdefault(digest, column.name)
            if original != column.name and values.equals(features[original], check_names=False):
                encoding, reason = None, f"a copy of {original!r}"
        if encoding is None:
            left_out.append(LeftOut(column=column.name, reason=reason))
        else:
            kept.append(encoding)
    if not kept:
        raise TrainingError(
            "no column is left to learn from: "
            + "; ".join(f"{entry.column}: {entry.reason}" for entry in left_out)
            + "; add other columns, or use a longer training window"
        )
    blocks = _lay_out(kept)
    return TableEncoder(
        scaling=scaling,
        timezone=timezone,
        columns=tuple(kept),
        left_out=tuple(left_out),
        blocks=blocks,
        context=(context,) if context else (),
        context_blocks=tuple(
            Block(column=EVENT_TIME, part=part, kind=BlockKind.CYCLIC, start=blocks[-1].stop + 2 * index, width=2)
            for index, part in enumerate(context_parts)
        ),
    )


def _fit_context(
    features: pl.DataFrame, columns: Sequence[FeatureColumn], event_time: EventTime, timezone: str
) -> tuple[ColumnEncoding | None, tuple[str, ...], str]:
    """Return the encoding of the event time as context and its parts; or None, no parts, and the reason."""
    if event_time != EventTime.CONTEXT or all(column.name != EVENT_TIME for column in columns):
        return None, (), "model.event_time is ignore"
    return fit_context(column_numbers(features[EVENT_TIME], timezone))


def _fit_column(column: FeatureColumn, values: pl.Series, scaling: Scaling) -> tuple[ColumnEncoding | None, str]:
    present = values.drop_nulls().drop_nans() if values.dtype.is_float() else values.drop_nulls()
    distinct = present.n_unique()
    if present.is_empty():
        return None, "all its values are missing in the training window"
    if distinct == 1 and present.len() == values.len():
        return None, f"its only value in the training window is {present[0]}"
    if column.is_identity and _is_identifier(column, present, distinct == values.len()):
        return None, f"an identifier: its {distinct:,} values identify the rows"
    plain = ColumnEncoding(name=column.name, type=column.type)
    match column.type:
        case ColumnType.INTEGER | ColumnType.NUMBER:
            if column.type == ColumnType.INTEGER and distinct == values.len() >= 100:
                return None, f"an identifier: its {distinct:,} values are all distinct"
            return plain.model_copy(update=_fit_scale(present.cast(pl.Float64).to_numpy(), scaling)), ""
        case ColumnType.CATEGORY | ColumnType.BOOLEAN:
            texts = present.cast(pl.String)
            counts = texts.rename("text").value_counts().sort("count", "text", descending=[True, False])
            common = counts.filter(pl.col("count") >= min(MIN_CATEGORY_ROWS, 1 + values.len() // 100)).head(
                MAX_CATEGORIES
            )
            cover = common["count"].sum() / present.len()
            if cover < MIN_CATEGORY_COVER:
                frequent = f"of which the {common.height:,} commonest cover {cover:.0%} of the rows"
                return None, f"an identifier: {distinct:,} values, {frequent if cover else 'all of them rare'}"
            return plain.model_copy(update={"vocabulary": tuple(common["text"].to_list())}), ""
        case _:
            return plain, ""


def _is_identifier(column: FeatureColumn, present: pl.Series, is_distinct: bool) -> bool:
    """Return whether a column of the identity is unique. Different integers above 2⁵³ can be equal as float64."""
    largest = present.abs().max() if present.dtype.is_float() else None
    is_large = isinstance(largest, float) and largest > 2**53 and column.type == ColumnType.INTEGER
    return column.is_unique or is_distinct or is_large


def _fit_scale(values: npt.NDArray[np.float64], scaling: Scaling) -> dict[str, float]:
    values = np.clip(values, -_LARGEST, _LARGEST)
    match scaling:
        case Scaling.ROBUST:
            low, center, high = np.quantile(values, [0.25, 0.5, 0.75])
            scale = (high - low) / 1.349  # the standard deviation, for a normal distribution
            scale = scale if scale > 0 else values.std()
        case Scaling.STANDARD:
            center, scale = values.mean(), values.std()
        case Scaling.UNIT:
            center, scale = values.min(), values.max() - values.min()
        case Scaling.SYMMETRIC:
            center, scale = (values.min() + values.max()) / 2, (values.max() - values.min()) / 2
    return {
        "center": float(center),
        "scale": float(scale) if scale > 0 else 1.0,
        "lowest": float(values.min()),
        "highest": float(values.max()),
    }


def _lay_out(columns: Sequence[ColumnEncoding]) -> tuple[Block, ...]:
    """Return the blocks of columns, ordered by kind, so that each loss reads one slice of the matrix."""
    specs: dict[BlockKind, list[_BlockSpec]] = {kind: [] for kind in BlockKind}
    for column in columns:
        match column.type:
            case ColumnType.CATEGORY | ColumnType.BOOLEAN:
                specs[BlockKind.CATEGORICAL].append((column, "value", len(column.vocabulary) + 2))
            case ColumnType.INTEGER | ColumnType.NUMBER:
                specs[BlockKind.NUMERIC].append((column, "value", 1))
            case ColumnType.DATE:
                specs[BlockKind.CYCLIC].append((column, "weekday", 2))
            case ColumnType.TIMESTAMP:
                specs[BlockKind.CYCLIC] += [(column, "time_of_day", 2), (column, "weekday", 2)]
            case _:
                specs[BlockKind.CYCLIC].append((column, "time_of_day", 2))
        # The event time is never missing, and a category has a code for missing values.
        if not column.is_category and column.name != "event_time":
            specs[BlockKind.BINARY].append((column, "missing", 1))
    starts: dict[tuple[str, str], int] = {}
    start = 0
    for entries in specs.values():
        for column, part, width in entries:
            starts[column.name, part] = start
            start += width
    return tuple(
        Block(
            column=column.name,
            part=part,
            kind=kind,
            start=starts[column.name, part],
            width=width,
            present=starts.get((column.name, "missing")) if kind in {BlockKind.NUMERIC, BlockKind.CYCLIC} else None,
        )
        for kind, entries in specs.items()
        for column, part, width in entries
    )
