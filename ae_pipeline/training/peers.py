"""Processes that train one model together, each on a part of every batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from ae_pipeline.training.rows import TrainingBatch


@dataclass(frozen=True)
class Peers:
    """The processes of a training, seen from one of them.

    All of them take the same batches in the same order. The gradient of a batch is the sum of what each process
    computed from its part. All processes then take the same step.

    Attributes:
        rank: Number of this process, from 0.
        count: Number of processes.
        add: Replaces a tensor by its sum over all processes, in place.
        broadcast: Replaces a tensor by that of process 0, in place.
    """

    rank: int
    count: int
    add: Callable[[Tensor], object]
    broadcast: Callable[[Tensor], object]

    @classmethod
    def of_process_group(cls) -> "Peers":
        """Return the processes of the default process group of torch."""

        def broadcast(tensor: Tensor) -> object:
            return distributed.broadcast(tensor, src=0)

        return cls(distributed.get_rank(), distributed.get_world_size(), distributed.all_reduce, broadcast)

    def part(self, rows: int) -> slice:
        """Return which of some rows this process has. With fewer rows than processes, some have none.

        Examples:
            >>> [Peers(rank, 3, print, print).part(7) for rank in range(3)]
            [slice(0, 2, None), slice(2, 4, None), slice(4, 7, None)]
        """
        return slice(rows * self.rank // self.count, rows * (self.rank + 1) // self.count)

    def part_of(self, batch: TrainingBatch) -> tuple[TrainingBatch, int]:
        """Return the part of a batch that this process has, and the number of rows that count.

        A process without rows gets one that does not count, so that it has a gradient for each weight.
        """
        part = self.part(len(batch.rows))
        count = part.stop - part.start
        if not count:
            part = slice(0, 1)
        return batch.map(lambda tensor: tensor[part]), count

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace the gradient of each weight by its sum over all processes. One message has all of them."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        whole = torch.cat([gradient.reshape(-1) for gradient in gradients])
        self.add(whole)
        for gradient, part in zip(gradients, whole.split([each.numel() for each in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def agree(self, weights: Sequence[Tensor]) -> None:
        """Replace weights by those of process 0. They differ only if the processors round differently."""
        with torch.no_grad():
            for weight in weights:
                self.broadcast(weight)

    def sum(self, value: Tensor) -> float:
        """Return the sum of a number over all processes. All get the same bits, and so take the same decisions."""
        total = value.to(torch.float64)
        self.add(total)
        self.broadcast(total)
        return float(total)
