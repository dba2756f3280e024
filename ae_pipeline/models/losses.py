"""Reconstruction losses by block: each kind of column with the negative log likelihood that fits it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ae_pipeline.preprocessing.encoder import Block, BlockKind


class TabularLoss(nn.Module):
    """Negative log likelihood of each block of a row, in nats up to a constant.

    - numeric and cyclic: Student's t with 3 degrees of freedom around the output, with a scale per block that is learnt
      with the network, so that columns which can be told exactly weigh more and outliers do not govern the fit (Lange
      et al. 1989); zero where the value is missing.
    - binary: Bernoulli, the output being a logit.
    - categorical: softmax cross-entropy.

    Args:
        blocks: Of the encoder, laid out kind by kind.
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        super().__init__()
        by_kind = {kind: [block for block in blocks if block.kind == kind] for kind in BlockKind}
        self._order = [block for kind in BlockKind for block in by_kind[kind]]
        self._numeric, self._cyclic = by_kind[BlockKind.NUMERIC], by_kind[BlockKind.CYCLIC]
        self._binary, self._categorical = by_kind[BlockKind.BINARY], by_kind[BlockKind.CATEGORICAL]
        self._sizes = [
            *(sum(block.width for block in group) for group in (self._numeric, self._cyclic, self._binary)),
            *(block.width for block in self._categorical),
        ]
        self.log_scale = nn.Parameter(torch.full((len(self._numeric) + len(self._cyclic),), -1.0))

    @property
    def blocks(self) -> list[Block]:
        """Blocks in the order of the loss's columns."""
        return self._order

    def forward(self, output: Tensor, x: Tensor) -> Tensor:
        """Gives the loss of each row and block.

        Args:
            output: From the decoder, (n, width).
            x: Encoded input, (n, width).

        Returns:
            Shape (n, blocks).
        """
        # One split, since each slice would cost the backward pass a zero-filled copy of the whole output.
        values, cycles, binary, *codes = output.split(self._sizes, 1)
        x_values, x_cycles, x_binary, *x_codes = x.split(self._sizes, 1)
        log_scale, log_scale_cyclic = self.log_scale.clamp(min=MIN_LOG_SCALE).split(
            [len(self._numeric), len(self._cyclic)]
        )
        squares = (values - x_values).square()  # (n, numeric)
        squares_cyclic = (cycles - x_cycles).square().unflatten(1, (-1, 2)).sum(2)  # (n, cyclic)
        parts = [
            _student_t(squares, log_scale, 1) * _present(self._numeric, x),
            _student_t(squares_cyclic, log_scale_cyclic, 2) * _present(self._cyclic, x),
            functional.binary_cross_entropy_with_logits(binary, x_binary, reduction="none"),
        ]
        for logits, target in zip(codes, x_codes, strict=True):
            parts.append((torch.logsumexp(logits, 1) - (logits * target).sum(1)).unsqueeze(1))
        return torch.cat(parts, 1)

    def to_scale(self, output: Tensor) -> Tensor:
        """Turns logits into probabilities, and leaves values as they are: what the network expects, (n, width)."""
        expected = output.clone()
        for entry in self._binary:
            expected[:, entry.start] = output[:, entry.start].sigmoid()
        for entry in self._categorical:
            expected[:, entry.start : entry.stop] = output[:, entry.start : entry.stop].softmax(1)
        return expected


MIN_LOG_SCALE = -4.6
"""log 0.01: finer than this, a column's own rounding would be learnt."""

_FREEDOM = 3.0


def _student_t(squares: Tensor, log_scale: Tensor, dimensions: int) -> Tensor:
    """Negative log density of a multivariate t up to a constant, (n, blocks)."""
    standardised = squares * torch.exp(-2 * log_scale)
    return 0.5 * (_FREEDOM + dimensions) * torch.log1p(standardised / _FREEDOM) + dimensions * log_scale


def _present(blocks: Sequence[Block], x: Tensor) -> Tensor:
    """1 where a block's value is there, (n, blocks)."""
    present = torch.ones(len(x), len(blocks), device=x.device, dtype=x.dtype)
    flagged = [(place, block.present) for place, block in enumerate(blocks) if block.present is not None]
    if flagged:
        places, columns = zip(*flagged, strict=True)
        present[:, list(places)] -= x[:, list(columns)]
    return present
