"""A compact form of encoded rows, for windows larger than memory. A one-hot code is stored as one number."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from ae_pipeline.encoding.blocks import BlockKind, Matrix
from ae_pipeline.encoding.encoder import Encoder
from ae_pipeline.encoding.table_encoder import TableEncoder


@dataclass(frozen=True)
class Packing:
    """Lossless conversion between encoded rows and compact records.

    Attributes:
        shape: Shape of an encoded row.
        plain: Indices of row elements that are stored unchanged, shape (k,).
        categories: Start and width of each one-hot code, which is stored as a category number, shape (c, 2).
    """

    shape: tuple[int, ...]
    plain: npt.NDArray[np.int64]
    categories: npt.NDArray[np.int64]

    @classmethod
    def of(cls, encoder: Encoder) -> "Packing":
        """Return the packing for the rows of an encoder."""
        if not isinstance(encoder, TableEncoder):
            return cls(encoder.shape, np.arange(np.prod(encoder.shape)), np.empty((0, 2), np.int64))
        blocks = [block for block in encoder.blocks if block.kind == BlockKind.CATEGORICAL]
        is_one_hot = np.zeros(encoder.width, dtype=np.bool_)
        for block in blocks:
            is_one_hot[block.start : block.stop] = True
        categories = np.array([(block.start, block.width) for block in blocks], np.int64).reshape(-1, 2)
        return cls(encoder.shape, np.flatnonzero(~is_one_hot), categories)

    @property
    def width(self) -> int:
        """Number of elements in a record."""
        return len(self.plain) + len(self.categories)

    def pack(self, encoded: Matrix) -> Matrix:
        """Convert encoded rows, shape (n, *shape), to records, shape (n, width)."""
        flat = encoded.reshape(len(encoded), -1)
        numbers = [flat[:, start : start + width].argmax(axis=1) for start, width in self.categories]
        return np.column_stack([flat[:, self.plain], *(column.astype(np.float32) for column in numbers)])

    def unpack(self, records: torch.Tensor) -> torch.Tensor:
        """Convert records, shape (n, width), to encoded rows, shape (n, *shape), on the same device."""
        if not len(self.categories):
            return records.reshape(len(records), *self.shape)
        count, (plain, starts) = len(self.plain), self._indices_on(records.device)
        rows = records.new_zeros(len(records), *self.shape)
        rows[:, plain] = records[:, :count]
        return rows.scatter_(1, records[:, count:].long() + starts, 1.0)

    def _indices_on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `plain` and the start of each code on a device. They are copied once, because a copy waits for it."""
        if device not in self._indices:
            parts = (self.plain, np.ascontiguousarray(self.categories[:, 0]))
            plain, starts = (torch.from_numpy(part).to(device) for part in parts)
            self._indices[device] = plain, starts
        return self._indices[device]

    @cached_property
    def _indices(self) -> dict[torch.device, tuple[torch.Tensor, torch.Tensor]]:
        return {}
