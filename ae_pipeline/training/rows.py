"""Encoded training rows that are shuffled in each epoch: in memory, or in blocks on disk."""

import logging
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import repeat
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ae_pipeline.common.parallel import prefetch
from ae_pipeline.encoding.blocks import Matrix
from ae_pipeline.encoding.packing import Packing
from ae_pipeline.storage.files import make_folder, raise_os_error

logger = logging.getLogger(__name__)


class TrainingBatch(NamedTuple):
    """Rows of one training step.

    Attributes:
        rows: Encoded rows, (n, …).
        latents: Latents of the rows under the previous model, (n, latent_dim); None without a regularizer.
    """

    rows: Tensor
    latents: Tensor | None

    def map(self, function: Callable[[Tensor], Tensor]) -> "TrainingBatch":
        """Return the batch with a function applied to its tensors."""
        return TrainingBatch(function(self.rows), None if self.latents is None else function(self.latents))

    def split(self, size: int) -> list["TrainingBatch"]:
        """Return parts of at most some rows."""
        if len(self.rows) <= size:
            return [self]
        latents = repeat(None) if self.latents is None else self.latents.split(size)
        return [TrainingBatch(*parts) for parts in zip(self.rows.split(size), latents, strict=False)]


class TrainingRows(Protocol):
    """Encoded training rows, in memory or on disk."""

    @property
    def device(self) -> torch.device:
        """Device of the batches."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def shuffled(self, size: int, generator: torch.Generator) -> Iterator[TrainingBatch]:
        """Yield each row once, in random order.

        Args:
            size: Rows in a batch. The last batch may be smaller.
            generator: Generator for the order, on the device of the batches.
        """

    def mean(self) -> Matrix:
        """Return the mean row, (…), float32."""


class InMemory:
    """Rows in the memory of the machine or of a device.

    Args:
        rows: Encoded rows, (n, …).
        latents: Latents of the rows under the previous model, (n, latent_dim).
        device: Device of the batches, if the rows are not there because its memory is too small.
    """

    def __init__(self, rows: Tensor, latents: Tensor | None = None, device: torch.device | None = None) -> None:
        self.device = device or rows.device
        self._rows, self._latents = rows, None if latents is None else latents.to(rows.device)

    @classmethod
    def on(cls, device: torch.device, rows: Tensor, latents: Tensor | None = None) -> "InMemory":
        """Return rows whose batches are on a device, and the rows themselves too if its memory suffices."""
        try:
            return cls(rows.to(device), latents)
        except torch.OutOfMemoryError:
            logger.warning(
                f"the memory of the device is too small for {len(rows):,} training rows; they stay in the memory of "
                "the machine, and each batch is copied"
            )
            return cls(rows, latents, device)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._rows)

    def shuffled(self, size: int, generator: torch.Generator) -> Iterator[TrainingBatch]:
        """Yield each row once, shuffled over all rows; see `TrainingRows.shuffled`."""
        order = torch.randperm(len(self), generator=generator, device=generator.device).to(self._rows.device)
        batches = (self._select(indices) for indices in order.split(size))
        if self._rows.device == self.device:
            yield from batches
            return
        with closing(prefetch(batch.map(Tensor.pin_memory) for batch in batches)) as pinned:
            for batch in pinned:
                # The copy does not wait for the device. torch reuses pinned memory only after its copy.
                yield batch.map(lambda part: part.to(self.device, non_blocking=True))

    def _select(self, indices: Tensor) -> TrainingBatch:
        latents = None if self._latents is None else self._latents.index_select(0, indices)
        return TrainingBatch(self._rows.index_select(0, indices), latents)

    def mean(self) -> Matrix:
        """Return the mean row, (…), float32."""
        mean: Matrix = self._rows.mean(0, dtype=torch.float64).float().cpu().numpy()
        return mean


class OnDisk:
    """Rows in a temporary file, of which two blocks are in memory at a time.

    Each written batch is distributed over all blocks at random, so that a block has rows of all days. An epoch takes
    the blocks in random order and shuffles the rows within each. The file is unlinked from the start, so that nothing
    remains of it when the process ends.

    Args:
        folder: Directory of the temporary file.
        batches: Encoded rows, (n, …), each batch with the latents of its rows under the previous model, or None.
        packing: Packing of the rows.
        blocks: Number of blocks.
        seed: Seed of the distribution over the blocks.
        device: Device of the batches.

    Raises:
        StorageError: There is no disk space.
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
        self._pieces: list[list[tuple[int, int]]] = [[] for _ in range(blocks)]  # (offset in the file, rows), by block
        self._count = self._width = 0
        total: npt.NDArray[np.float64] | float = 0.0
        rng = np.random.default_rng(seed)
        try:
            for rows, latents in batches:
                total = total + rows.sum(0, dtype=np.float64)
                records = packing.pack(rows)
                self._write(records if latents is None else np.hstack([records, latents]), rng)
        except OSError as error:
            raise_os_error(error, folder)
        self._mean = np.asarray(total / max(self._count, 1), np.float32)

    def _write(self, records: Matrix, rng: np.random.Generator) -> None:
        shuffled = np.ascontiguousarray(records[rng.permutation(len(records))], np.float32)
        self._width = shuffled.shape[1]
        # Other blocks get the extra rows in each batch, so that all blocks stay about equally long.
        order = rng.permutation(len(self._pieces))
        start = self._file.seek(0, 2)
        for block, part in zip(order, np.array_split(np.arange(len(shuffled)), len(order)), strict=True):
            if len(part):
                self._pieces[block].append((start + int(part[0]) * self._width * 4, len(part)))
        unwritten = memoryview(shuffled.data).cast("B")
        while unwritten:
            unwritten = unwritten[self._file.write(unwritten) :]
        self._count += len(shuffled)

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._count

    def shuffled(self, size: int, generator: torch.Generator) -> Iterator[TrainingBatch]:
        """Yield each row once, block by block; see `TrainingRows.shuffled`."""
        order = torch.randperm(len(self._pieces), generator=generator, device=generator.device).tolist()
        remaining = torch.empty((0, self._width), device=self.device)
        with closing(prefetch(map(self._read, order))) as blocks:
            for block in blocks:
                # The copy of a pinned block does not wait for the device, which still trains on the last one.
                rows = block.to(self.device, non_blocking=True)
                shuffled = rows[torch.randperm(len(rows), generator=generator, device=generator.device)]
                remaining = torch.cat([remaining, shuffled])
                full = len(remaining) // size * size
                yield from map(self._batch, remaining[:full].split(size) if full else ())
                remaining = remaining[full:].clone()
        if len(remaining):
            yield self._batch(remaining)

    def mean(self) -> Matrix:
        """Return the mean row, (…), float32."""
        return self._mean

    def _read(self, block: int) -> Tensor:
        count = sum(rows for _, rows in self._pieces[block])
        tensor = torch.empty((count, self._width), pin_memory=self.device.type == "cuda")
        records, done = tensor.numpy(), 0
        for start, rows in self._pieces[block]:
            self._file.seek(start)
            unread = memoryview(records[done : done + rows].data).cast("B")
            while unread:
                size = self._file.readinto(unread)
                if not size:
                    raise OSError(f"the temporary file of the training rows ends before row {done + rows} of a block")
                unread = unread[size:]
            done += rows
        return tensor

    def _batch(self, records: Tensor) -> TrainingBatch:
        width = self._packing.width
        latents = records[:, width:] if self._width > width else None
        return TrainingBatch(self._packing.unpack(records[:, :width]), latents)


def blocks_for(rows: int, row_bytes: int, block_bytes: int, batch: int) -> int:
    """Return the number of blocks for some rows.

    Args:
        rows: Number of rows.
        row_bytes: Bytes of a row.
        block_bytes: Upper limit on the bytes of a block, unless a batch is larger.
        batch: Rows in a batch.

    Examples:
        >>> blocks_for(rows=1000, row_bytes=10, block_bytes=1000, batch=1)
        10
    """
    return max(1, math.ceil(rows * row_bytes / max(block_bytes, batch * row_bytes)))
