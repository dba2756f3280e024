"""The fitted TableEncoder: typed features to the float32 matrix that a network sees, and back to their own terms."""

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from ae_pipeline.config import ColumnType, Scaling, Section
from ae_pipeline.errors import BundleError, TrainingError
from ae_pipeline.preprocessing.features import MINUTES_PER_DAY, FeatureColumn

Matrix = npt.NDArray[np.float32]

MAX_CATEGORIES = 1024
MIN_CATEGORY_ROWS = 5
MIN_CATEGORY_COVER = 0.9
OTHER, MISSING = "<other>", "<missing>"

_FARTHEST = 1e6
"""Scaled numbers are held within ± this, so that squares of them stay numbers."""

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


class TableEncoder(Section):
    """Maps features to a matrix with statistics of the training window; `fit_table_encoder` makes one.

    Numbers become (x − center) / scale. Under robust scaling these are the median and IQR / 1.349, and of the quotient
    asinh is taken, which is linear near the middle and logarithmic in the tails, so that one heavy tail does not drown
    the rest. Clocks and the parts of timestamps become sine and cosine of their cycle, which under unit scaling are
    moved to 0 to 1.
    """

    kind: Literal["table"] = "table"
    scaling: Scaling = Scaling.ROBUST
    columns: tuple[ColumnEncoding, ...]
    left_out: tuple[LeftOut, ...]
    blocks: tuple[Block, ...]

    @property
    def width(self) -> int:
        """Columns of the matrix."""
        return self.blocks[-1].stop

    @property
    def shape(self) -> tuple[int]:
        """Of an encoded row: its width."""
        return (self.width,)

    @property
    def ends(self) -> tuple[float, float]:
        """The ends of the scale, where the scaling has any."""
        return (0.0, 1.0) if self.scaling == Scaling.UNIT else (-1.0, 1.0)

    @property
    def groups(self) -> npt.NDArray[np.int64]:
        """For each matrix column the number of the column that it is a part of, (width,)."""
        names = [column.name for column in self.columns]
        groups = np.zeros(self.width, dtype=np.int64)
        for block in self.blocks:
            groups[block.start : block.stop] = names.index(block.column)
        return groups

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
                _fill(matrix, block, column, numbers, self.scaling)
        return matrix

    def decode(self, expected: npt.NDArray[np.floating], features: pl.DataFrame) -> pl.DataFrame:
        """Puts what the network expects into the features' own terms.

        Categories become the likeliest one, numbers and clocks their value, and what is likelier missing than there
        becomes null. What no code can name stays as it is: dates, event times, and categories rare in training.

        Args:
            expected: Outputs after `to_scale`, (n, width).
            features: The rows that they were made of.

        Returns:
            The fitted columns, row for row, in the types that they have in the features.
        """
        decoded = [
            self._decode_column(column, expected.astype(np.float64), features[column.name]) for column in self.columns
        ]
        return pl.DataFrame(decoded)

    def _decode_column(self, column: ColumnEncoding, expected: npt.NDArray[np.float64], values: pl.Series) -> pl.Series:
        blocks = {block.part: block for block in self._blocks_of[column.name]}
        if column.is_category:
            block = blocks["value"]
            best = pl.Series(expected[:, block.start : block.stop].argmax(1))
            names = pl.Series([*column.vocabulary, None, None], dtype=pl.String)
            likeliest = names.gather(best)
            if values.dtype == pl.Boolean:
                likeliest = likeliest == "true"
            other = best == len(column.vocabulary)
            return likeliest.cast(values.dtype).zip_with(~other, values).alias(column.name)
        if values.dtype.is_temporal():
            return values
        if "value" in blocks:
            numbers = self._number(column, expected[:, blocks["value"].start])
        else:
            numbers = np.round(self._turn(blocks["time_of_day"], expected) * MINUTES_PER_DAY) % MINUTES_PER_DAY
        result = pl.Series(column.name, numbers)
        if "missing" in blocks:
            result = result.set(pl.Series(expected[:, blocks["missing"].start] > 0.5), None)
        return result.cast(values.dtype)

    def _number(self, column: ColumnEncoding, scaled: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        if self.scaling == Scaling.ROBUST:
            scaled = np.sinh(np.clip(scaled, -20, 20))
        numbers: npt.NDArray[np.float64] = column.center + scaled * column.scale
        return numbers

    def _turn(self, block: Block, expected: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Gives the place in a cycle, 0 to 1, (n,)."""
        sine, cosine = expected[:, block.start], expected[:, block.start + 1]
        if self.scaling == Scaling.UNIT:
            sine, cosine = 2 * sine - 1, 2 * cosine - 1
        turn: npt.NDArray[np.float64] = np.arctan2(sine, cosine) / (2 * np.pi) % 1
        return turn

    def describe(self, row: Mapping[str, Any], output: npt.NDArray[Any], column: str) -> tuple[str, str]:
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
                    expected.append(_spoken_number(float(self._number(encoding, part)[0])))
                case BlockKind.CYCLIC:
                    expected.append(_spoken_cycle(block.part, float(self._turn(block, output[np.newaxis])[0])))
                case BlockKind.BINARY:
                    if part[0] > 0.5:
                        expected.insert(0, "missing;")
                case BlockKind.CATEGORICAL:
                    names = (*encoding.vocabulary, OTHER, MISSING)
                    best = np.argsort(-part)[: 2 if part.max() < 0.8 else 1]
                    expected.append(" or ".join(f"{names[i]} ({part[i]:.0%})" for i in best))
        return _spoken_value(encoding, row[column]), " ".join(expected)


def _fill(matrix: Matrix, block: Block, encoding: ColumnEncoding, numbers: npt.NDArray[Any], scaling: Scaling) -> None:
    middle = 0.5 if scaling == Scaling.UNIT else 0.0
    match block.kind:
        case BlockKind.NUMERIC:
            with np.errstate(over="ignore"):
                scaled = (numbers - encoding.center) / encoding.scale
            scaled = np.nan_to_num(scaled, nan=middle)  # what is infinite: the largest float
            bent = np.arcsinh(scaled) if scaling == Scaling.ROBUST else np.clip(scaled, -_FARTHEST, _FARTHEST)
            matrix[:, block.start] = bent
        case BlockKind.CYCLIC:
            days, minutes = np.divmod(numbers, MINUTES_PER_DAY)
            # The first of January 1970, day 0, was a Thursday.
            turns = (days + 3) % 7 / 7 if block.part == "weekday" else minutes / MINUTES_PER_DAY
            here, reach = ~np.isnan(turns), 1.0 - middle
            matrix[:, block.start : block.stop] = middle
            matrix[here, block.start] = middle + reach * np.sin(2 * np.pi * turns[here])
            matrix[here, block.start + 1] = middle + reach * np.cos(2 * np.pi * turns[here])
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


def _spoken_cycle(part: str, turn: float) -> str:
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


def fit_table_encoder(
    features: pl.DataFrame, columns: Sequence[FeatureColumn], scaling: Scaling = Scaling.ROBUST
) -> TableEncoder:
    """Fits a TableEncoder on the rows of the training window, and on no others.

    Left out, with a reason: columns of one value, copies of another column, and identifiers, whose values name a row
    and say nothing of its kind (all distinct, or so many categories that the commonest do not cover the rows).

    Args:
        features: Training rows.
        columns: Features and their types.
        scaling: Of the numbers.

    Raises:
        TrainingError: No column is left to learn from.
    """
    kept: list[ColumnEncoding] = []
    left_out: list[LeftOut] = []
    seen: dict[tuple[str, ...], str] = {}
    for column in columns:
        values = features[column.name]
        encoding, reason = _fit_column(column, values, scaling)
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
    return TableEncoder(scaling=scaling, columns=tuple(kept), left_out=tuple(left_out), blocks=_lay_out(kept))


def _fit_column(column: FeatureColumn, values: pl.Series, scaling: Scaling) -> tuple[ColumnEncoding | None, str]:
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
            return plain.model_copy(update=_fit_scale(there.cast(pl.Float64).to_numpy(), scaling)), ""
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


def _fit_scale(values: npt.NDArray[np.float64], scaling: Scaling) -> dict[str, float]:
    match scaling:
        case Scaling.ROBUST:
            low, center, high = np.quantile(values, [0.25, 0.5, 0.75])
            scale = (high - low) / 1.349  # of a normal distribution this is its standard deviation
            scale = scale if scale > 0 else values.std()
        case Scaling.STANDARD:
            center, scale = values.mean(), values.std()
        case Scaling.UNIT:
            center, scale = values.min(), values.max() - values.min()
        case Scaling.SYMMETRIC:
            center, scale = (values.min() + values.max()) / 2, (values.max() - values.min()) / 2
    return {"center": float(center), "scale": float(scale) if scale > 0 else 1.0}


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
