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

from ae_pipeline.common.errors import BundleError
from ae_pipeline.config.columns import MINUTES_PER_DAY, ColumnType
from ae_pipeline.config.model import Scaling, Section

Matrix = npt.NDArray[np.float32]

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

    @property
    def is_clock(self) -> bool:
        """Whether its values are minutes after midnight."""
        return self.type == ColumnType.CLOCK_HHMM


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

    @property
    def asinh_mask(self) -> npt.NDArray[np.bool_]:
        """Which matrix columns are asinh of a number, (width,)."""
        asinh_mask = np.zeros(self.width, dtype=np.bool_)
        for block in self.blocks:
            asinh_mask[block.start : block.stop] = block.kind == BlockKind.NUMERIC and self.scaling == Scaling.ROBUST
        return asinh_mask

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
        if not values.dtype.is_integer():
            return result.cast(values.dtype)
        whole = result.round()
        fits = whole.cast(values.dtype, strict=False)
        return fits if fits.null_count() == whole.null_count() else whole

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
        encoding = self._encoding(column)
        expected, is_lost = [], False
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
                    is_lost = bool(part[0] > 0.5)
                case BlockKind.CATEGORICAL:
                    names = (*encoding.vocabulary, OTHER, MISSING)
                    best = np.argsort(-part)[: 2 if part.max() < 0.8 else 1]
                    expected.append(" or ".join(f"{names[i]} ({part[i]:.0%})" for i in best))
        message = " ".join(expected)
        return _spoken_value(encoding, row[column]), f"missing (else {message})" if is_lost else message

    def speak(self, column: str, value: Any) -> str:
        """Puts a value of a column that the model sees in the column's own terms."""
        return _spoken_value(self._encoding(column), value)

    def _encoding(self, column: str) -> ColumnEncoding:
        return next(entry for entry in self.columns if entry.name == column)


def _fill(matrix: Matrix, block: Block, encoding: ColumnEncoding, numbers: npt.NDArray[Any], scaling: Scaling) -> None:
    middle = 0.5 if scaling == Scaling.UNIT else 0.0
    match block.kind:
        case BlockKind.NUMERIC:
            with np.errstate(over="ignore"):
                scaled = (numbers - encoding.center) / encoding.scale
            scaled = np.nan_to_num(scaled, nan=middle)  # what is infinite: the largest float
            asinh_mask = np.arcsinh(scaled) if scaling == Scaling.ROBUST else np.clip(scaled, -_FARTHEST, _FARTHEST)
            matrix[:, block.start] = asinh_mask
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
