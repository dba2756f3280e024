"""Blocks of a matrix: adjacent columns that encode one part of a feature."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ae_pipeline.config.columns import MINUTES_PER_DAY
from ae_pipeline.config.model import Scaling
from ae_pipeline.config.section import Section
from ae_pipeline.encoding.values import middle_of

Matrix = npt.NDArray[np.float32]


class BlockKind(StrEnum):
    """The meaning of a block of matrix columns. It determines the loss of its reconstruction."""

    NUMERIC = "numeric"
    CYCLIC = "cyclic"
    BINARY = "binary"
    CATEGORICAL = "categorical"


class Block(Section):
    """Adjacent matrix columns that encode one part of a feature.

    A numeric block is one scaled value. A cyclic block is a sine and a cosine. A binary block is 1 for a missing value
    and 0 otherwise. A categorical block is a one-hot code, with a code for rare or unseen values and one for missing
    values.
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


def fill(matrix: Matrix, block: Block, numbers: npt.NDArray[Any], scaling: Scaling) -> None:
    """Write a column that is not a number, as codes of categories or minutes of times, into its block of a matrix."""
    middle = middle_of(scaling)
    match block.kind:
        case BlockKind.CYCLIC:
            days, minutes = np.divmod(numbers, MINUTES_PER_DAY)
            # Day 0, 1 January 1970, was a Thursday.
            position = (days + 3) % 7 / 7 if block.part == "weekday" else minutes / MINUTES_PER_DAY
            present, amplitude = ~np.isnan(position), 1.0 - middle
            matrix[:, block.start : block.stop] = middle
            matrix[present, block.start] = middle + amplitude * np.sin(2 * np.pi * position[present])
            matrix[present, block.start + 1] = middle + amplitude * np.cos(2 * np.pi * position[present])
        case BlockKind.BINARY:
            matrix[:, block.start] = np.isnan(numbers)
        case BlockKind.CATEGORICAL:
            matrix[np.arange(len(numbers)), block.start + numbers] = 1.0


def positions(blocks: Sequence[tuple[int, Block]], kind: BlockKind) -> tuple[list[int], list[int]]:
    """Return the numbers of the features with a block of a kind, and the first matrix column of each block."""
    chosen = [(feature, block.start) for feature, block in blocks if block.kind == kind]
    return [feature for feature, _ in chosen], [start for _, start in chosen]


def as_slice(indices: Sequence[int]) -> slice | Sequence[int]:
    """Return adjacent indices as a slice, which selects without a copy."""
    is_adjacent = bool(indices) and list(indices) == list(range(indices[0], indices[-1] + 1))
    return slice(indices[0], indices[-1] + 1) if is_adjacent else indices
