"""Encoded rows that a training walks through, in another order each epoch: from memory, or in blocks from disk."""

import math
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ae_pipeline.common.parallel import prefetch
from ae_pipeline.encoding.packing import Packing
from ae_pipeline.encoding.table_encoder import Matrix
from ae_pipeline.storage.files import make_folder, translate_os_error


class TrainingBatch(NamedTuple):
    """Rows of one step.

    Attributes:
        rows: Encoded, (n, …).
        latents: That the network is to keep near, (n, latent_dim); None where there are none.
    """

    rows: Tensor
    latents: Tensor | None


class TrainingRows(Protocol):
    """What a training learns from."""

    @property
    def device(self) -> torch.device:
        """Where the batches lie."""

    def __len__(self) -> int:
        """Counts the rows."""

    def shuffled(self, size: int, generator: torch.Generator) -> Iterator[TrainingBatch]:
        """Gives each row once, in an order that a generator on the CPU draws, in batches of a size but for the last."""

    def mean(self) -> Matrix:
        """Gives the mean row, (…), float32."""


class InMemory:
    """Rows in memory, or in that of a device.

    Args:
        rows: Encoded, (n, …).
        latents: Of each row, those to keep near.
    """

    def __init__(self, rows: Tensor, latents: Tensor | None = None) -> None:
        self._rows, self._latents = rows, latents

    @property
    def device(self) -> torch.device:
        """Where the batches lie."""
        return self._rows.device

    def __len__(self) -> int:
        """Counts the rows."""
        return len(self._rows)

    def shuffled(self, size: int, generator: torch.Generator) -> Iterator[TrainingBatch]:
        """Gives each row once, in an order drawn over all of them."""
        for chosen in torch.randperm(len(self), generator=generator).to(self.device).split(size):
            latents = None if self._latents is None else self._latents[chosen.to(self._latents.device)]
            yield TrainingBatch(self._rows.index_select(0, chosen), latents)

    def mean(self) -> Matrix:
        """Gives the mean row, (…), float32."""
        mean: Matrix = self._rows.mean(0, dtype=torch.float64).float().cpu().numpy()
        return mean


class OnDisk:
    """Rows in a file, of which two blocks are in memory at a time.

    Each of the blocks has rows of all days: what is written together is dealt out to them at random. An epoch takes the
    blocks in a random order, and the rows of a block in another. The file has no name, so that nothing is left of it
    however the process ends.

    Args:
        folder: Where there is room.
        batches: Encoded rows, (n, …), each batch with the latents that they are to be kept near, if any.
        packing: Of the rows.
        blocks: How many blocks there are to be.
        seed: Of the dealing.
        device: Where the batches are to lie.

    Raises:
        StorageError: There is no room.
    """

    def __init__(
        self,
        folder: Path,
        batches: Iterable[tuple[Matrix, Matrix | None]],
        packing: Packing,
        blocks: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.device, self._packing = device, packing
        self._file = tempfile.TemporaryFile(dir=make_folder(folder), buffering=0)  # noqa: SIM115
        self._pieces: list[list[tuple[int, int]]] = [[] for _ in range(blocks)]  # where in the file, how many rows
        self._count = self._width = 0
        total: npt.NDArray[np.float64] | float = 0.0
        rng = np.random.default_rng(seed)
        try:
            for rows, latents in batches:
                total = total + rows.sum(0, dtype=np.float64)
                records = packing.pack(rows)
                self._write(records if latents is None else np.hstack([records, latents]), rng)
        except OSError as error:
            raise translate_os_error(error, folder) from error
        self._mean = np.asarray(total / max(self._count, 1), np.float32)

    def _write(self, records: Matrix, rng: np.random.Generator) -> None:
        dealt = np.ascontiguousarray(records[rng.permutation(len(records))], np.float32)
        self._width = dealt.shape[1]
        # Whoever gets one row more changes from batch to batch, so that blocks are as long as each other.
        order = rng.permutation(len(self._pieces))
        start = self._file.seek(0, 2)
        for block, part in zip(order, np.array_split(np.arange(len(dealt)), len(order)), strict=True):
            if len(part):
                self._pieces[block].append((start + int(part[0]) * self._width * 4, len(part)))
        left = memoryview(dealt.data).cast("B")
        while left:
            left = left[self._file.write(left) :]
        self._count += len(dealt)

    def __len__(self) -> int:
        """Counts the rows."""
        return self._count

    def shuffled(self, size: int, generator: torch.Generator) -> Iterator[TrainingBatch]:
        """Gives each row once, block by block."""
        order = torch.randperm(len(self._pieces), generator=generator).tolist()
        left = torch.empty((0, self._width))
        with closing(prefetch(map(self._read, order))) as blocks:
            for block in blocks:
                left = torch.cat([left, block[torch.randperm(len(block), generator=generator)]])
                full = len(left) // size * size
                yield from map(self._batch, left[:full].split(size) if full else ())
                left = left[full:].clone()
        if len(left):
            yield self._batch(left)

    def mean(self) -> Matrix:
        """Gives the mean row, (…), float32."""
        return self._mean

    def _read(self, block: int) -> Tensor:
        found = np.empty((sum(rows for _, rows in self._pieces[block]), self._width), np.float32)
        done = 0
        for start, rows in self._pieces[block]:
            self._file.seek(start)
            wanted = memoryview(found[done : done + rows].data).cast("B")
            while wanted:
                read = self._file.readinto(wanted)
                if not read:
                    raise OSError(f"the file of training rows ends before row {done + rows}")
                wanted = wanted[read:]
            done += rows
        return torch.from_numpy(found)

    def _batch(self, records: Tensor) -> TrainingBatch:
        there = records.to(self.device)
        width = self._packing.width
        return TrainingBatch(self._packing.unpack(there[:, :width]), there[:, width:] if self._width > width else None)


def blocks_for(rows: int, row_bytes: int, block_bytes: int, batch: int) -> int:
    """Says how many blocks some rows take, none of them much smaller than a batch."""
    return max(1, math.ceil(rows * row_bytes / max(block_bytes, batch * row_bytes)))
