"""The fitted Encoder: typed features to the float32 matrix that a network sees, and back to the columns' own terms."""

import math
from collections.abc import Sequence
from enum import StrEnum
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from ae_pipeline.config import ColumnType, Section
from ae_pipeline.errors import BundleError, TrainingError
from ae_pipeline.preprocessing.features import MINUTES_PER_DAY, FeatureColumn

Matrix = npt.NDArray[np.float32]

MAX_CATEGORIES = 1024
MIN_CATEGORY_ROWS = 5
MIN_CATEGORY_COVER = 0.9
OTHER, MISSING = "<other>", "<missing>"

_WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


class BlockKind(StrEnum):
    """How a block of matrix columns is to be read, and so which loss fits its reconstruction."""

    NUMERIC = "numeric"
    CYCLIC = "cyclic"
    BINARY = "binary"
    CATEGORICAL = "categorical"


class Block(Section):
    """Neighbouring columns of the matrix that stand for one thing.

    A numeric block is one standardised value; a cyclic one sine and cosine; a binary one 0 or 1, here a missing value;
    a categorical one a one-hot code with a place for rare or unseen values and one for missing ones.
    """

    column: str
    part: str
    kind: BlockKind
    start: int
    width: int
    present: int | None = Field(default=None, description="Matrix column that is 1 where the value is missing.")

    @property
    def stop(self) -> int:
        """One past the last matrix column."""
        return self.start + self.width


class LeftOut(Section):
    """A feature that the model does not see, and why."""

    column: str
    reason: str


class ColumnEncoding(Section):
    """What was fitted on one column."""

    name: str
    type: ColumnType
    center: float = 0.0
    scale: float = 1.0
    vocabulary: tuple[str, ...] = ()

    @property
    def is_category(self) -> bool:
        """Whether it is encoded one-hot."""
        return self.type in {ColumnType.CATEGORY, ColumnType.BOOLEAN}


class Encoder(Section):
    """Maps features to a matrix with statistics of the training window; `fit_encoder` makes one.

    Numbers become asinh((x − median) / (IQR / 1.349)), which is linear near the middle and logarithmic in the tails, so
    that one heavy tail does not drown the rest. Clocks and the parts of timestamps become sine and cosine of their
    cycle.
    """

    columns: tuple[ColumnEncoding, ...]
    left_out: tuple[LeftOut, ...]
    blocks: tuple[Block, ...]

    @property
    def width(self) -> int:
        """Columns of the matrix."""
        return self.blocks[-1].stop

    @cached_property
    def _blocks_of(self) -> dict[str, list[Block]]:
        found: dict[str, list[Block]] = {column.name: [] for column in self.columns}
        for block in self.blocks:
            found[block.column].append(block)
        return found

    def encode(self, features: pl.DataFrame) -> Matrix:
        """Encodes features.

        Args:
            features: The fitted columns, n rows; further columns are not looked at.

        Returns:
            Matrix of shape (n, width).

        Raises:
            BundleError: A fitted column is not there or cannot be read as its type.
        """
        there = set(features.columns)
        if missing := [column.name for column in self.columns if column.name not in there]:
            raise BundleError(
                f"features lack column {missing[0]!r}, on which this model was fitted; it needs "
                f"{', '.join(column.name for column in self.columns)}"
            )
        matrix = np.zeros((features.height, self.width), dtype=np.float32)
        for column in self.columns:
            values = features[column.name]
            try:
                numbers = category_codes(values, column.vocabulary) if column.is_category else _numbers(values)
            except (pl.exceptions.PolarsError, pa.ArrowException) as error:
                raise BundleError(
                    f"column {column.name!r} holds {values.dtype}, which cannot be read as {column.type.value}: "
                    f"{str(error).splitlines()[0]}"
                ) from error
            for block in self._blocks_of[column.name]:
                _fill(matrix, block, column, numbers)
        return matrix

    def describe(self, row: dict[str, Any], output: npt.NDArray[Any], column: str) -> tuple[str, str]:
        """Puts a column's actual and expected value in its own terms.

        Args:
            row: One row of features.
            output: What the network gave for it, shape (width,), after `to_scale`.
            column: Which column.

        Returns:
            Actual and expected, as text.
        """
        encoding = next(entry for entry in self.columns if entry.name == column)
        expected = []
        for block in self.blocks:
            if block.column != column:
                continue
            part = output[block.start : block.stop]
            match block.kind:
                case BlockKind.NUMERIC:
                    expected.append(
                        _spoken_number(encoding.center + math.sinh(float(np.clip(part[0], -20, 20))) * encoding.scale)
                    )
                case BlockKind.CYCLIC:
                    expected.append(_spoken_cycle(block.part, part))
                case BlockKind.BINARY:
                    if part[0] > 0.5:
                        expected.insert(0, "missing;")
                case BlockKind.CATEGORICAL:
                    names = (*encoding.vocabulary, OTHER, MISSING)
                    best = np.argsort(-part)[: 2 if part.max() < 0.8 else 1]
                    expected.append(" or ".join(f"{names[i]} ({part[i]:.0%})" for i in best))
        return _spoken_value(encoding, row[column]), " ".join(expected)


def _fill(matrix: Matrix, block: Block, encoding: ColumnEncoding, numbers: npt.NDArray[Any]) -> None:
    match block.kind:
        case BlockKind.NUMERIC:
            with np.errstate(over="ignore"):
                scaled = (numbers - encoding.center) / encoding.scale
            matrix[:, block.start] = np.arcsinh(np.nan_to_num(scaled, nan=0.0))  # what is infinite: the largest float
        case BlockKind.CYCLIC:
            days, minutes = np.divmod(numbers, MINUTES_PER_DAY)
            # The first of January 1970, day 0, was a Thursday.
            turns = (days + 3) % 7 / 7 if block.part == "weekday" else minutes / MINUTES_PER_DAY
            here = ~np.isnan(turns)
            matrix[here, block.start] = np.sin(2 * np.pi * turns[here])
            matrix[here, block.start + 1] = np.cos(2 * np.pi * turns[here])
        case BlockKind.BINARY:
            matrix[:, block.start] = np.isnan(numbers)
        case BlockKind.CATEGORICAL:
            matrix[np.arange(len(numbers)), block.start + numbers] = 1.0


def _numbers(values: pl.Series) -> npt.NDArray[np.float64]:
    """Values as float64, times as minutes since 1970 and clocks as minutes after midnight; NaN where missing."""
    if values.dtype.is_temporal():
        return values.cast(pl.Datetime("us")).cast(pl.Int64).cast(pl.Float64).to_numpy() / 60e6
    return values.cast(pl.Float64).to_numpy()


def category_codes(values: pl.Series, vocabulary: Sequence[str]) -> npt.NDArray[np.int64]:
    """Places of values in a vocabulary; rare and unseen ones stand behind it, then missing ones."""
    texts = values.cast(pl.String).to_arrow(compat_level=pl.CompatLevel.oldest())
    places = pc.index_in(texts, value_set=pa.array(vocabulary, texts.type), skip_nulls=True)
    codes: npt.NDArray[np.int64] = pc.fill_null(places, len(vocabulary)).to_numpy(zero_copy_only=False).astype(np.int64)
    codes[values.is_null().to_numpy()] = len(vocabulary) + 1
    return codes


def _spoken_number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _spoken_cycle(part: str, sine_cosine: npt.NDArray[Any]) -> str:
    turn = math.atan2(float(sine_cosine[0]), float(sine_cosine[1])) / (2 * math.pi) % 1
    if part == "weekday":
        return _WEEKDAYS[round(turn * 7) % 7]
    minutes = round(turn * MINUTES_PER_DAY) % MINUTES_PER_DAY
    return f"{minutes // 60:02d}:{minutes % 60:02d}"


def _spoken_value(encoding: ColumnEncoding, value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "missing"
    if encoding.type == ColumnType.CLOCK_HHMM:
        return f"{int(value) // 60:02d}:{int(value) % 60:02d}"
    if encoding.type == ColumnType.BOOLEAN:
        return str(value).lower()
    if encoding.type == ColumnType.TIMESTAMP:
        return f"{value:%H:%M} {_WEEKDAYS[value.weekday()]}"
    return _spoken_number(float(value)) if encoding.type in {ColumnType.NUMBER, ColumnType.INTEGER} else str(value)


def fit_encoder(features: pl.DataFrame, columns: Sequence[FeatureColumn]) -> Encoder:
    """Fits an Encoder on the rows of the training window, and on no others.

    Left out, with a reason: columns of one value, copies of another column, and identifiers, whose values name a row
    and say nothing of its kind (all distinct, or so many categories that the commonest do not cover the rows).

    Args:
        features: Training rows.
        columns: Features and their types.

    Raises:
        TrainingError: No column is left to learn from.
    """
    kept: list[ColumnEncoding] = []
    left_out: list[LeftOut] = []
    seen: dict[tuple[str, ...], str] = {}
    for column in columns:
        values = features[column.name]
        encoding, reason = _fit_column(column, values)
        if encoding is not None:
            digest = (str(values.dtype), str(values.hash(seed=0).sum()), str(values.null_count()))
            twin = seen.setdefault(digest, column.name)
            if twin != column.name and values.equals(features[twin], check_names=False):
                encoding, reason = None, f"a copy of {twin!r}"
        if encoding is None:
            left_out.append(LeftOut(column=column.name, reason=reason))
        else:
            kept.append(encoding)
    if not kept:
        raise TrainingError(
            "no column is left to learn from: "
            + "; ".join(f"{entry.column}: {entry.reason}" for entry in left_out)
            + "; offer other columns, or give training a longer window"
        )
    return Encoder(columns=tuple(kept), left_out=tuple(left_out), blocks=_lay_out(kept))


def _fit_column(column: FeatureColumn, values: pl.Series) -> tuple[ColumnEncoding | None, str]:
    there = values.drop_nulls().drop_nans() if values.dtype.is_float() else values.drop_nulls()
    distinct = there.n_unique()
    if there.is_empty():
        return None, "all its values are missing in the training window"
    if distinct == 1 and there.len() == values.len():
        return None, f"its only value in the training window is {there[0]}"
    plain = ColumnEncoding(name=column.name, type=column.type)
    match column.type:
        case ColumnType.INTEGER | ColumnType.NUMBER:
            if column.type == ColumnType.INTEGER and distinct == values.len() >= 100:
                return None, f"an identifier: its {distinct:,} values are all distinct"
            return plain.model_copy(update=_robust_scale(there.cast(pl.Float64).to_numpy())), ""
        case ColumnType.CATEGORY | ColumnType.BOOLEAN:
            texts = there.cast(pl.String)
            counts = texts.rename("text").value_counts().sort("count", "text", descending=[True, False])
            common = counts.filter(pl.col("count") >= min(MIN_CATEGORY_ROWS, 1 + values.len() // 100)).head(
                MAX_CATEGORIES
            )
            cover = common["count"].sum() / there.len()
            if cover < MIN_CATEGORY_COVER:
                return None, (
                    f"an identifier: {distinct:,} values, of which the {common.height:,} commonest cover "
                    f"{cover:.0%} of the rows"
                )
            return plain.model_copy(update={"vocabulary": tuple(common["text"].to_list())}), ""
        case _:
            return plain, ""


def _robust_scale(values: npt.NDArray[np.float64]) -> dict[str, float]:
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    scale = (high - low) / 1.349  # of a normal distribution this is its standard deviation
    if scale <= 0:
        scale = float(values.std()) or 1.0
    return {"center": float(median), "scale": float(scale)}


def _lay_out(columns: Sequence[ColumnEncoding]) -> tuple[Block, ...]:
    """Places blocks kind by kind, so that each loss reads one slice of the matrix."""
    wanted: dict[BlockKind, list[tuple[ColumnEncoding, str, int]]] = {kind: [] for kind in BlockKind}
    for column in columns:
        match column.type:
            case ColumnType.CATEGORY | ColumnType.BOOLEAN:
                wanted[BlockKind.CATEGORICAL].append((column, "value", len(column.vocabulary) + 2))
            case ColumnType.INTEGER | ColumnType.NUMBER:
                wanted[BlockKind.NUMERIC].append((column, "value", 1))
            case ColumnType.DATE:
                wanted[BlockKind.CYCLIC].append((column, "weekday", 2))
            case ColumnType.TIMESTAMP:
                wanted[BlockKind.CYCLIC] += [(column, "time_of_day", 2), (column, "weekday", 2)]
            case _:
                wanted[BlockKind.CYCLIC].append((column, "time_of_day", 2))
        if (
            column.type not in {ColumnType.CATEGORY, ColumnType.BOOLEAN} and column.name != "event_time"
        ):  # it is never missing
            wanted[BlockKind.BINARY].append((column, "missing", 1))
    places: dict[tuple[str, str], int] = {}
    start = 0
    for entries in wanted.values():
        for column, part, width in entries:
            places[column.name, part] = start
            start += width
    return tuple(
        Block(
            column=column.name,
            part=part,
            kind=kind,
            start=places[column.name, part],
            width=width,
            present=places.get((column.name, "missing")) if kind in {BlockKind.NUMERIC, BlockKind.CYCLIC} else None,
        )
        for kind, entries in wanted.items()
        for column, part, width in entries
    )
