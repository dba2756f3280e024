"""Reconstruction losses: what every loss is, the terms of the textbook, and those for the columns of tables."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ae_pipeline.config.model import LossTerm
from ae_pipeline.encoding.table_encoder import Block, BlockKind
from ae_pipeline.models.base import AutoEncoderOutput


class ReconstructionLoss(nn.Module, ABC):
    """What reconstructions cost: in training by row, in scoring by what a person would name as the reason.

    Attributes:
        columns: Names of what scores are attributed to.
        kl_share: What a nat of KL divergence weighs beside this loss: 1 for a likelihood, and one part in the number of
            elements for a mean over them.
        unit: Of a row's loss, in words.
    """

    columns: tuple[str, ...]
    kl_share: float = 1.0
    unit: str

    @abstractmethod
    def forward(self, output: Tensor, x: Tensor) -> Tensor:
        """Gives the parts of each row's loss, (n, parts), for outputs and inputs of shape (n, …)."""

    @abstractmethod
    def by_column(self, output: Tensor, x: Tensor) -> Tensor:
        """Gives what scores are attributed to, (n, columns); the higher, the worse the reconstruction."""

    def parts(self, passed: AutoEncoderOutput, x: Tensor) -> Tensor:
        """Gives what scores are made of: the loss of each column, and last of the row as a whole, (n, columns + 1).

        The whole of a table's row has its divergence from the prior: what a variational form reconstructs well only by
        an unusual code is unusual.
        """
        columns = self.by_column(passed.output, x)
        whole = columns.sum(1) + self.kl_share * passed.kl
        return torch.cat([columns, whole.unsqueeze(1)], 1)

    def fit_scores(self, passed: AutoEncoderOutput, x: Tensor) -> None:
        """Fits what `by_column` and `parts` need on inputs held out of training; a likelihood needs nothing."""

    def to_scale(self, output: Tensor) -> Tensor:
        """Turns outputs into what the network expects on the scale of the inputs, (n, …)."""
        return output

    def objective(self, passed: AutoEncoderOutput, x: Tensor, beta: float) -> Tensor:
        """Gives what training minimises, (n,): reconstruction and β times the divergence from the prior."""
        row: Tensor = self(passed.output, x).sum(1)
        return row + beta * self.kl_share * passed.kl if beta else row


def element_losses(terms: Mapping[LossTerm, float], huber_delta: float, output: Tensor, x: Tensor) -> Tensor:
    """Adds up the weighted terms that compare element with element, of the inputs' shape.

    Args:
        terms: Weights; ssim compares no elements and is left to the caller.
        huber_delta: Where huber turns from squares to distances.
        output: Reconstruction; for bce between 0 and 1.
        x: Inputs. Where they lie outside 0 to 1, bce takes the nearest end and adds the square of the distance to it:
            the formula itself would reward an impossible target.
    """
    total = torch.zeros_like(x)
    for term, weight in terms.items():
        match term:
            case LossTerm.MSE:
                total = total + weight * (output - x).square()
            case LossTerm.MAE:
                total = total + weight * (output - x).abs()
            case LossTerm.HUBER:
                total = total + weight * functional.huber_loss(output, x, reduction="none", delta=huber_delta)
            case LossTerm.BCE:
                target = x.clamp(0, 1)
                # What is not a number would stop the program there; it is to reach the caller as a loss.
                sound = torch.nan_to_num(output, nan=0.5)
                entropy = functional.binary_cross_entropy(sound, target, reduction="none") + 0 * output
                total = total + weight * (entropy + (x - target).square())
            case _:
                pass
    return total


def least_losses(terms: Mapping[LossTerm, float], x: Tensor) -> Tensor | float:
    """Gives what a perfect reconstruction costs, of the inputs' shape: the targets' entropy under bce, else nothing."""
    if LossTerm.BCE not in terms:
        return 0.0
    target = x.clamp(0, 1)
    return terms[LossTerm.BCE] * functional.binary_cross_entropy(target, target, reduction="none")


class LikelihoodLoss(ReconstructionLoss):
    """Negative log likelihood of each block of a row, in nats up to a constant.

    - numeric and cyclic: Student's t with 3 degrees of freedom around the output, with a scale per block that is learnt
      with the network, so that columns which can be told exactly weigh more and outliers do not govern the fit (Lange
      et al. 1989); zero where the value is missing.
    - binary: Bernoulli, the output being a logit.
    - categorical: softmax cross-entropy.

    Args:
        blocks: Of the encoder, laid out kind by kind.
        columns: Of the encoder; a column's loss is that of its blocks.
    """

    _sums: Tensor
    unit = "nats a row"

    def __init__(self, blocks: Sequence[Block], columns: Sequence[str]) -> None:
        super().__init__()
        self.columns = tuple(columns)
        by_kind = {kind: [block for block in blocks if block.kind == kind] for kind in BlockKind}
        self._order = [block for kind in BlockKind for block in by_kind[kind]]
        self._numeric, self._cyclic = by_kind[BlockKind.NUMERIC], by_kind[BlockKind.CYCLIC]
        self._binary, self._categorical = by_kind[BlockKind.BINARY], by_kind[BlockKind.CATEGORICAL]
        self._sizes = [
            *(sum(block.width for block in group) for group in (self._numeric, self._cyclic, self._binary)),
            *(block.width for block in self._categorical),
        ]
        self.log_scale = nn.Parameter(torch.full((len(self._numeric) + len(self._cyclic),), -1.0))
        self._numbers_there, self._cycles_there = _Present(self._numeric), _Present(self._cyclic)

        self.register_buffer("_sums", _sums(self._order, self.columns), persistent=False)

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
            _student_t(squares, log_scale, 1) * self._numbers_there(x),
            _student_t(squares_cyclic, log_scale_cyclic, 2) * self._cycles_there(x),
            functional.binary_cross_entropy_with_logits(binary, x_binary, reduction="none"),
        ]
        for logits, target in zip(codes, x_codes, strict=True):
            parts.append((torch.logsumexp(logits, 1) - (logits * target).sum(1)).unsqueeze(1))
        return torch.cat(parts, 1)

    @property
    def blocks(self) -> list[Block]:
        """Blocks in the order of the loss's parts."""
        return self._order

    def by_column(self, output: Tensor, x: Tensor) -> Tensor:
        """Gives the loss of each column, nats, (n, columns)."""
        blocks: Tensor = self(output, x)
        return blocks @ self._sums

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
    standardized = squares * torch.exp(-2 * log_scale)
    return 0.5 * (_FREEDOM + dimensions) * torch.log1p(standardized / _FREEDOM) + dimensions * log_scale


class _Present(nn.Module):
    """1 where a block's value is there, and 0 where it is missing."""

    _places: Tensor
    _flags: Tensor

    def __init__(self, blocks: Sequence[Block]) -> None:
        super().__init__()
        flagged = [(index, block.present) for index, block in enumerate(blocks) if block.present is not None]
        self._blocks = len(blocks)
        self.register_buffer("_places", torch.tensor([index for index, _ in flagged], dtype=torch.long), False)
        self.register_buffer("_flags", torch.tensor([column for _, column in flagged], dtype=torch.long), False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps encoded inputs, (n, width), to (n, blocks)."""
        there = 1 - x.index_select(1, self._flags)
        if len(self._places) == self._blocks:
            return there
        return x.new_ones(len(x), self._blocks).index_copy(1, self._places, there)


def _sums(blocks: Sequence[Block], columns: Sequence[str]) -> Tensor:
    """Matrix of zeros and ones, (blocks, columns), that adds up the blocks of each column."""
    sums = torch.zeros(len(blocks), len(columns))
    for index, block in enumerate(blocks):
        sums[index, columns.index(block.column)] = 1.0
    return sums


class TermsLoss(ReconstructionLoss):
    """Terms of the textbook on the encoded columns of a table, codes of categories among them; means over elements.

    What stands for a missing number or time is not compared.

    Args:
        blocks: Of the encoder.
        columns: Of the encoder.
        terms: Weights of mse, mae, huber and bce.
        huber_delta: Where huber turns from squares to distances.
    """

    _block_of: Tensor
    _sums: Tensor
    usual: Tensor
    unit = "mean over the elements of a row"

    def __init__(
        self, blocks: Sequence[Block], columns: Sequence[str], terms: Mapping[LossTerm, float], huber_delta: float
    ) -> None:
        super().__init__()
        self.columns = tuple(columns)
        self._blocks, self._terms, self._delta = tuple(blocks), dict(terms), huber_delta
        self._width = max(block.stop for block in blocks)
        self.kl_share = 1.0 / self._width
        block_of = torch.repeat_interleave(torch.arange(len(blocks)), torch.tensor([block.width for block in blocks]))
        self.register_buffer("_block_of", block_of, persistent=False)
        self._there = _Present(self._blocks)
        self.register_buffer("_sums", _sums(self._blocks, self.columns), persistent=False)
        self.register_buffer("usual", torch.ones(len(self.columns) + 1))

    def forward(self, output: Tensor, x: Tensor) -> Tensor:
        """Gives the loss of each block, (n, blocks); a row's blocks add up to the mean over its elements."""
        return self._by_block(element_losses(self._terms, self._delta, output, x), x)

    def by_column(self, output: Tensor, x: Tensor) -> Tensor:
        """Gives the loss of each column above that of a perfect reconstruction, as a multiple of the usual one."""
        return self._above(output, x) / self.usual[:-1]

    def parts(self, passed: AutoEncoderOutput, x: Tensor) -> Tensor:
        """Gives the same for each column and for the row with its divergence from the prior, (n, columns + 1)."""
        return self._parts(passed, x) / self.usual

    @torch.no_grad()
    def fit_scores(self, passed: AutoEncoderOutput, x: Tensor) -> None:
        """Fits what is usual: means over rows, of no column less than a thousandth of what the columns have."""
        usual = self._parts(passed, x).mean(0)
        self.usual.copy_(usual.clamp(min=max(1e-3 * float(usual[:-1].mean()), 1e-12)))

    def _parts(self, passed: AutoEncoderOutput, x: Tensor) -> Tensor:
        columns = self._above(passed.output, x)
        return torch.cat([columns, (columns.sum(1) + self.kl_share * passed.kl).unsqueeze(1)], 1)

    def _above(self, output: Tensor, x: Tensor) -> Tensor:
        above = element_losses(self._terms, self._delta, output, x) - least_losses(self._terms, x)
        return self._by_block(above, x) @ self._sums

    def _by_block(self, losses: Tensor, x: Tensor) -> Tensor:
        if len(self._blocks) < self._width:
            losses = losses.new_zeros(len(losses), len(self._blocks)).index_add(1, self._block_of, losses)
        there: Tensor = self._there(x)
        return losses / self._width * there
