"""Encode typed features as a float32 matrix, and decode it to values of the features."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field

from ae_pipeline.common.errors import BundleError
from ae_pipeline.common.text import first_line
from ae_pipeline.config.columns import MINUTES_PER_DAY, ColumnType
from ae_pipeline.config.model import Scaling
from ae_pipeline.config.section import Section
from ae_pipeline.encoding.blocks import Block, BlockKind, Matrix, as_slice, fill, positions
from ae_pipeline.encoding.values import (
    category_codes,
    column_numbers,
    format_cycle,
    format_number,
    format_value,
    scaled_numbers,
    to_known_hours,
)

OTHER, MISSING = "<other>", "<missing>"

_CACHED_CELLS, _MIN_ROWS = 2**19, 1024
"""Cells of the matrix that are encoded at once, and the minimum of their rows."""


class LeftOut(Section):
    """A feature that the model does not use, with the reason."""

    column: str
    reason: str


class ColumnEncoding(Section):
    """The fitted statistics of one column."""

    name: str
    type: ColumnType
    center: float = 0.0
    scale: float = 1.0
    lowest: float | None = Field(default=None, description="Lowest number of the training rows; null if unknown.")
    highest: float | None = Field(default=None, description="Highest number of the training rows; null if unknown.")
    vocabulary: tuple[str, ...] = ()
    hours: tuple[int, ...] = Field(
        default=(), description="For each hour of the day, the nearest one that training rows have; empty if not used."
    )

    def within_range(self, number: float) -> float:
        """Return the number of the training range that is nearest to a number, so that nobody expects −50 minutes."""
        low = number if self.lowest is None else max(number, self.lowest)
        return low if self.highest is None else min(low, self.highest)

    @property
    def is_number(self) -> bool:
        """Whether the encoding is one scaled value."""
        return self.type in {ColumnType.INTEGER, ColumnType.NUMBER}

    @property
    def is_category(self) -> bool:
        """Whether the encoding is one-hot."""
        return self.type in {ColumnType.CATEGORY, ColumnType.BOOLEAN}

    @property
    def is_clock(self) -> bool:
        """Whether the values are minutes after midnight."""
        return self.type == ColumnType.CLOCK_HHMM


class TableEncoder(Section):
    """Encode features with statistics of the training window. `fit_table_encoder` creates it.

    Numbers become (x − center) / scale. Robust scaling uses the median and IQR / 1.349, and then takes the asinh. It is
    linear near the median and logarithmic in the tails, so a heavy tail does not dominate. Clocks, and the parts of
    timestamps in the time zone, become sine and cosine of their cycle. Unit scaling moves these to 0 to 1.

    The network reconstructs `columns`. The blocks of `context` are the last matrix columns: inputs only.
    """

    kind: Literal["table"] = "table"
    scaling: Scaling = Scaling.ROBUST
    timezone: str = "UTC"
    columns: tuple[ColumnEncoding, ...]
    left_out: tuple[LeftOut, ...]
    blocks: tuple[Block, ...]
    context: tuple[ColumnEncoding, ...] = ()
    context_blocks: tuple[Block, ...] = ()

    @property
    def inputs(self) -> tuple[ColumnEncoding, ...]:
        """All columns that the encoding needs: those that the network reconstructs, then the context."""
        return (*self.columns, *self.context)

    @property
    def target_width(self) -> int:
        """Number of matrix columns that the network reconstructs."""
        return self.blocks[-1].stop

    @property
    def width(self) -> int:
        """Number of matrix columns."""
        return self.context_blocks[-1].stop if self.context_blocks else self.target_width

    @property
    def shape(self) -> tuple[int]:
        """Shape of an encoded row."""
        return (self.width,)

    @property
    def ends(self) -> tuple[float, float]:
        """Lowest and highest encoded value, under scalings that have a range."""
        return (0.0, 1.0) if self.scaling == Scaling.UNIT else (-1.0, 1.0)

    @property
    def groups(self) -> npt.NDArray[np.int64]:
        """Index of the feature that each matrix column belongs to, shape (width,); −1 for the context."""
        names = [column.name for column in self.columns]
        groups = np.full(self.width, -1, dtype=np.int64)
        for block in self.blocks:
            groups[block.start : block.stop] = names.index(block.column)
        return groups

    @property
    def asinh_mask(self) -> npt.NDArray[np.bool_]:
        """Matrix columns that are asinh values, shape (width,)."""
        asinh_mask = np.zeros(self.width, dtype=np.bool_)
        for block in self.blocks:
            asinh_mask[block.start : block.stop] = block.kind == BlockKind.NUMERIC and self.scaling == Scaling.ROBUST
        return asinh_mask

    @cached_property
    def _blocks_of(self) -> dict[str, list[Block]]:
        blocks: dict[str, list[Block]] = {column.name: [] for column in self.inputs}
        for block in (*self.blocks, *self.context_blocks):
            blocks[block.column].append(block)
        return blocks

    def encode(self, features: pl.DataFrame, into: Matrix | None = None) -> Matrix:
        """Encode features.

        Args:
            features: n rows with the fitted columns. Other columns are ignored.
            into: Zeros to write to, shape (n, width). None for a new matrix.

        Returns:
            Matrix of shape (n, width).

        Raises:
            BundleError: A fitted column is missing or cannot be read as its type.
        """
        available = set(features.columns)
        if missing := [column.name for column in self.inputs if column.name not in available]:
            raise BundleError(
                f"features lack column {missing[0]!r}, on which this model was fitted; it needs "
                f"{', '.join(column.name for column in self.inputs)}"
            )
        matrix = np.zeros((features.height, self.width), dtype=np.float32) if into is None else into
        # Columns are written into rows, which is fast as long as the rows stay in the cache.
        step = max(_MIN_ROWS, _CACHED_CELLS // self.width)
        for first in range(0, max(features.height, 1), step):
            self._encode_into(matrix[first : first + step], features[first : first + step])
        return matrix

    def _encode_into(self, matrix: Matrix, features: pl.DataFrame) -> None:
        numbers = [column for column in self.inputs if column.is_number]
        if numbers:
            self._fill_numbers(matrix, numbers, features)
        for column in self.inputs:
            if not column.is_number:
                values = self._values(column, features)
                for block in self._blocks_of[column.name]:
                    fill(matrix, block, values, self.scaling)

    def _fill_numbers(self, matrix: Matrix, columns: Sequence[ColumnEncoding], features: pl.DataFrame) -> None:
        """Encode columns of numbers at once, because threads wait for one another at each call."""
        names = [column.name for column in columns]
        given = features.select(names)
        for column, stored in zip(columns, given.dtypes, strict=True):
            if stored.is_temporal():
                raise _unreadable(column, stored, "it holds times")
        try:
            numbers = given.cast(pl.Float64).to_numpy(order="fortran").T
        except pl.exceptions.PolarsError:
            numbers = np.stack([self._values(column, features) for column in columns])  # names the column that fails
        blocks = [(row, block) for row, name in enumerate(names) for block in self._blocks_of[name]]
        rows, starts = positions(blocks, BlockKind.NUMERIC)
        centers, scales = (np.array([[getattr(columns[row], name)] for row in rows]) for name in ("center", "scale"))
        matrix[:, as_slice(starts)] = scaled_numbers(numbers[as_slice(rows)], centers, scales, self.scaling).T
        rows, starts = positions(blocks, BlockKind.BINARY)
        matrix[:, as_slice(starts)] = np.isnan(numbers[as_slice(rows)]).T

    def _values(self, column: ColumnEncoding, features: pl.DataFrame) -> npt.NDArray[Any]:
        """Return a column as numbers: codes of categories, and minutes of times."""
        values = features[column.name]
        zone = self.timezone if column.type == ColumnType.TIMESTAMP else "UTC"  # dates can be midnights in UTC
        try:
            is_code = column.is_category
            numbers = category_codes(values, column.vocabulary) if is_code else column_numbers(values, zone)
        except pl.exceptions.PolarsError as error:
            raise _unreadable(column, values.dtype, first_line(error)) from error
        return to_known_hours(numbers.astype(np.float64), column.hours) if column.hours else numbers

    def decode(self, expected: npt.NDArray[np.floating], features: pl.DataFrame) -> pl.DataFrame:
        """Decode expected values of the network to values of the features.

        Categories become the most likely one, and numbers and clocks their value. Values that are more likely missing
        than present become null. Values that the encoding cannot represent are copied from the features: dates, event
        times, and categories that are rare in training.

        Args:
            expected: Outputs after `to_scale`, shape (n, width).
            features: The encoded rows.

        Returns:
            The fitted columns, in the same row order and with the types of the features.
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
            most_likely = names.gather(best)
            if values.dtype == pl.Boolean:
                most_likely = most_likely == "true"
            other = best == len(column.vocabulary)
            return most_likely.cast(values.dtype).zip_with(~other, values).alias(column.name)
        if values.dtype.is_temporal():
            return values
        if "value" in blocks:
            numbers = self._number(column, expected[:, blocks["value"].start])
        else:
            numbers = (
                np.round(self._cycle_position(blocks["time_of_day"], expected) * MINUTES_PER_DAY) % MINUTES_PER_DAY
            )
        result = pl.Series(column.name, numbers)
        if "missing" in blocks:
            result = result.set(pl.Series(expected[:, blocks["missing"].start] > 0.5), None)
        if not values.dtype.is_integer():
            return result.cast(values.dtype)
        rounded = result.round()
        integers = rounded.cast(values.dtype, strict=False)
        # A value outside the integer type would become null. Keep floats in that case.
        return integers if integers.null_count() == rounded.null_count() else rounded

    def _number(self, column: ColumnEncoding, scaled: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        if self.scaling == Scaling.ROBUST:
            scaled = np.sinh(np.clip(scaled, -20, 20))
        numbers: npt.NDArray[np.float64] = column.center + scaled * column.scale
        return numbers

    def _cycle_position(self, block: Block, expected: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the position in a cycle, 0 to 1, shape (n,)."""
        sine, cosine = expected[:, block.start], expected[:, block.start + 1]
        if self.scaling == Scaling.UNIT:
            sine, cosine = 2 * sine - 1, 2 * cosine - 1
        position: npt.NDArray[np.float64] = np.arctan2(sine, cosine) / (2 * np.pi) % 1
        return position

    def describe(self, row: Mapping[str, Any], output: npt.NDArray[Any], column: str) -> tuple[str, str]:
        """Format the actual and the expected value of a column as text. A number is within those of the training.

        Args:
            row: One row of features.
            output: Output of the network for this row after `to_scale`, shape (width,).
            column: Name of the column.

        Returns:
            Actual and expected value.
        """
        encoding = self._encoding(column)
        expected, is_missing = [], False
        for block in self.blocks:
            if block.column != column:
                continue
            part = output[block.start : block.stop]
            match block.kind:
                case BlockKind.NUMERIC:
                    expected.append(format_number(encoding.within_range(float(self._number(encoding, part)[0]))))
                case BlockKind.CYCLIC:
                    expected.append(format_cycle(block.part, float(self._cycle_position(block, output[np.newaxis])[0])))
                case BlockKind.BINARY:
                    is_missing = bool(part[0] > 0.5)
                case BlockKind.CATEGORICAL:
                    names = (*encoding.vocabulary, OTHER, MISSING)
                    best = np.argsort(-part)[: 2 if part.max() < 0.8 else 1]
                    expected.append(" or ".join(f"{names[i]} ({part[i]:.0%})" for i in best))
        text = " ".join(expected)
        return format_value(encoding.type, row[column], self.timezone), f"missing (else {text})" if is_missing else text

    def speak(self, column: str, value: Any) -> str:
        """Format a value of a fitted column as text."""
        return format_value(self._encoding(column).type, value, self.timezone)

    def _encoding(self, column: str) -> ColumnEncoding:
        return next(entry for entry in self.inputs if entry.name == column)


def _unreadable(column: ColumnEncoding, stored: pl.DataType, reason: str) -> BundleError:
    return BundleError(
        f"column {column.name!r} holds {stored}, which cannot be read as {column.type.value}: {reason}; give the type "
        "of the features"
    )
