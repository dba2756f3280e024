"""Encoded rows in few bytes, for rows that do not fit into memory: a category is its number, and not a row of zeros."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ae_pipeline.encoding.encoder import Encoder
from ae_pipeline.encoding.table_encoder import BlockKind, Matrix, TableEncoder


@dataclass(frozen=True)
class Packing:
    """From encoded rows to records of numbers and back, exactly.

    Attributes:
        shape: Of an encoded row.
        plain: Places in a row that are kept as they are, (k,).
        categories: First place and width of each one-hot code, which becomes the number of its place, (c, 2).
    """

    shape: tuple[int, ...]
    plain: npt.NDArray[np.int64]
    categories: npt.NDArray[np.int64]

    @classmethod
    def of(cls, encoder: Encoder) -> "Packing":
        """Makes the packing of what an encoder gives."""
        if not isinstance(encoder, TableEncoder):
            return cls(encoder.shape, np.arange(np.prod(encoder.shape)), np.empty((0, 2), np.int64))
        blocks = [block for block in encoder.blocks if block.kind == BlockKind.CATEGORICAL]
        coded = np.zeros(encoder.width, dtype=np.bool_)
        for block in blocks:
            coded[block.start : block.stop] = True
        places = np.array([(block.start, block.width) for block in blocks], np.int64).reshape(-1, 2)
        return cls(encoder.shape, np.flatnonzero(~coded), places)

    @property
    def width(self) -> int:
        """Numbers in a record."""
        return len(self.plain) + len(self.categories)

    def pack(self, encoded: Matrix) -> Matrix:
        """Makes records, (n, width), of encoded rows, (n, *shape)."""
        flat = encoded.reshape(len(encoded), -1)
        numbers = [flat[:, start : start + width].argmax(axis=1) for start, width in self.categories]
        return np.column_stack([flat[:, self.plain], *(column.astype(np.float32) for column in numbers)])

    def unpack(self, records: torch.Tensor) -> torch.Tensor:
        """Makes encoded rows, (n, *shape), of records, (n, width), on their device."""
        if not len(self.categories):
            return records.reshape(len(records), *self.shape)
        count = len(self.plain)
        starts = torch.from_numpy(self.categories[:, 0]).to(records.device)
        rows = records.new_zeros(len(records), *self.shape)
        rows[:, torch.from_numpy(self.plain).to(records.device)] = records[:, :count]
        return rows.scatter_(1, records[:, count:].long() + starts, 1.0)
