"""Reconstruction losses: the base class, element-wise terms, and the losses of table columns."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ae_pipeline.config.model import LossTerm
from ae_pipeline.encoding.blocks import Block, BlockKind
from ae_pipeline.models.base import AutoEncoderOutput


class ReconstructionLoss(nn.Module, ABC):
    """The cost of reconstructions: per row in training, and per column in scoring.

    Attributes:
        columns: Names of the columns that scores are attributed to.
        kl_weight: Weight of one nat of KL divergence next to this loss: 1 for a likelihood, and 1 / number of elements
            for a mean over elements.
        unit: Unit of the loss of a row, as text.
    """

    columns: tuple[str, ...]
    kl_weight: float = 1.0
    unit: str

    @abstractmethod
    def forward(self, output: Tensor, x: Tensor) -> Tensor:
        """Return the parts of the loss of each row, shape (n, parts), for outputs and inputs of shape (n, …)."""

    @abstractmethod
    def by_column(self, output: Tensor, x: Tensor) -> Tensor:
        """Return the loss of each column, shape (n, columns). Higher means a worse reconstruction."""

    def parts(self, result: AutoEncoderOutput, x: Tensor) -> Tensor:
        """Return the inputs of the scores: the loss of each column, then of the whole row, shape (n, columns + 1).

        The loss of a whole table row includes the KL divergence. A variational form that needs an unusual code to
        reconstruct a row well marks that row as unusual.
        """
        columns = self.by_column(result.output, x)
        whole = columns.sum(1) + self.kl_weight * result.kl
        return torch.cat([columns, whole.unsqueeze(1)], 1)

    def fit_scores(self, result: AutoEncoderOutput, x: Tensor) -> None:
        """Fit the statistics of `by_column` and `parts` on held-out inputs. A likelihood has none."""

    def to_scale(self, output: Tensor) -> Tensor:
        """Map outputs to the expected values on the scale of the inputs, shape (n, …)."""
        return output

    def objective(self, result: AutoEncoderOutput, x: Tensor, beta: float | Tensor) -> Tensor:
        """Return what training minimizes, shape (n,): the reconstruction loss plus β times the KL divergence.

        Args:
            result: Output of the network.
            x: Inputs, shape (n, …).
            beta: β, a number or a tensor without dimensions that holds one.
        """
        row: Tensor = self(result.output, x).sum(1)
        is_zero = not isinstance(beta, Tensor) and beta == 0
        return row if is_zero else row + beta * self.kl_weight * result.kl


def element_losses(terms: Mapping[LossTerm, float], huber_delta: float, output: Tensor, x: Tensor) -> Tensor:
    """Return the weighted sum of the element-wise terms, of the shape of the inputs.

    Args:
        terms: Weights. The caller adds ssim, which is not element-wise.
        huber_delta: Distance at which huber changes from quadratic to linear.
        output: Reconstruction; between 0 and 1 for bce.
        x: Inputs. Outside 0 to 1, bce clips the target and adds the squared distance to the clipped value. The plain
            formula would reward outputs beyond an impossible target.
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
                # torch raises on NaN outputs. Replace them, and restore NaN with `0 * output` so that the caller sees
                # it in the loss.
                finite = torch.nan_to_num(output, nan=0.5)
                entropy = functional.binary_cross_entropy(finite, target, reduction="none") + 0 * output
                total = total + weight * (entropy + (x - target).square())
            case _:
                pass
    return total


def minimum_losses(terms: Mapping[LossTerm, float], x: Tensor) -> Tensor | float:
    """Return the loss of a perfect reconstruction: the entropy of the targets under bce, otherwise 0.

    The result is a number, or a tensor of the shape of the inputs.
    """
    if LossTerm.BCE not in terms:
        return 0.0
    target = x.clamp(0, 1)
    return terms[LossTerm.BCE] * functional.binary_cross_entropy(target, target, reduction="none")


class LikelihoodLoss(ReconstructionLoss):
    """Negative log likelihood of each block of a row, in nats up to a constant.

    - numeric and cyclic: Student's t with 3 degrees of freedom around the output. The network learns one scale per
      block, so that precisely predictable columns weigh more. Outliers do not dominate the fit (Lange et al. 1989). The
      loss of a missing value is zero.
    - binary: Bernoulli; the output is a logit.
    - categorical: softmax cross-entropy.

    Args:
        blocks: Blocks of the encoder, ordered by kind.
        columns: Columns of the encoder. The loss of a column is the sum over its blocks.
    """

    _block_sums: Tensor
    unit = "nats per row"

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
        self._numeric_present, self._cyclic_present = _Present(self._numeric), _Present(self._cyclic)

        self.register_buffer("_block_sums", _block_sums(self._order, self.columns), persistent=False)

    def forward(self, output: Tensor, x: Tensor) -> Tensor:
        """Return the loss of each row and block.

        Args:
            output: Output of the decoder, shape (n, width). Columns after the blocks are context and do not count.
            x: Encoded inputs, shape (n, width).

        Returns:
            Shape (n, blocks).
        """
        # One split is faster than slices: the backward pass copies the whole output for each slice.
        sizes = [*self._sizes, output.shape[1] - sum(self._sizes)]
        values, cycles, binary, *codes, _ = output.split(sizes, 1)
        x_values, x_cycles, x_binary, *x_codes, _ = x.split(sizes, 1)
        log_scale, log_scale_cyclic = self.log_scale.clamp(min=MIN_LOG_SCALE).split(
            [len(self._numeric), len(self._cyclic)]
        )
        squares = (values - x_values).square()  # (n, numeric)
        squares_cyclic = (cycles - x_cycles).square().unflatten(1, (-1, 2)).sum(2)  # (n, cyclic)
        parts = [
            _student_t(squares, log_scale, 1) * self._numeric_present(x),
            _student_t(squares_cyclic, log_scale_cyclic, 2) * self._cyclic_present(x),
            functional.binary_cross_entropy_with_logits(binary, x_binary, reduction="none"),
        ]
        for logits, target in zip(codes, x_codes, strict=True):
            parts.append((torch.logsumexp(logits, 1) - (logits * target).sum(1)).unsqueeze(1))
        return torch.cat(parts, 1)

    @property
    def blocks(self) -> list[Block]:
        """Blocks in the order of the parts of the loss."""
        return self._order

    def by_column(self, output: Tensor, x: Tensor) -> Tensor:
        """Return the loss of each column, nats, shape (n, columns)."""
        blocks: Tensor = self(output, x)
        return blocks @ self._block_sums

    def to_scale(self, output: Tensor) -> Tensor:
        """Convert logits to probabilities and keep other values, shape (n, width)."""
        expected = output.clone()
        for entry in self._binary:
            expected[:, entry.start] = output[:, entry.start].sigmoid()
        for entry in self._categorical:
            expected[:, entry.start : entry.stop] = output[:, entry.start : entry.stop].softmax(1)
        return expected


MIN_LOG_SCALE = -4.6
"""log 0.01. A finer scale would learn the rounding of a column."""

_DEGREES_OF_FREEDOM = 3.0


def _student_t(squares: Tensor, log_scale: Tensor, dimensions: int) -> Tensor:
    """Return the negative log density of a multivariate t up to a constant, shape (n, blocks)."""
    standardized = squares * torch.exp(-2 * log_scale)
    exponent = 0.5 * (_DEGREES_OF_FREEDOM + dimensions)
    return exponent * torch.log1p(standardized / _DEGREES_OF_FREEDOM) + dimensions * log_scale


class _Present(nn.Module):
    """A mask of blocks: 1 where the value of a block is present, 0 where it is missing."""

    _indices: Tensor
    _flags: Tensor

    def __init__(self, blocks: Sequence[Block]) -> None:
        super().__init__()
        flagged = [(index, block.present) for index, block in enumerate(blocks) if block.present is not None]
        self._blocks = len(blocks)
        self.register_buffer("_indices", torch.tensor([index for index, _ in flagged], dtype=torch.long), False)
        self.register_buffer("_flags", torch.tensor([column for _, column in flagged], dtype=torch.long), False)

    def forward(self, x: Tensor) -> Tensor:
        """Map encoded inputs, shape (n, width), to the mask, shape (n, blocks)."""
        present = 1 - x.index_select(1, self._flags)
        if len(self._indices) == self._blocks:
            return present
        return x.new_ones(len(x), self._blocks).index_copy(1, self._indices, present)


def _block_sums(blocks: Sequence[Block], columns: Sequence[str]) -> Tensor:
    """Return the matrix of zeros and ones that sums the blocks of each column, shape (blocks, columns)."""
    sums = torch.zeros(len(blocks), len(columns))
    for index, block in enumerate(blocks):
        sums[index, columns.index(block.column)] = 1.0
    return sums


class TermsLoss(ReconstructionLoss):
    """Element-wise terms on the encoded columns of a table, including one-hot codes, as means over elements.

    Missing numbers and times do not count.

    Args:
        blocks: Blocks of the encoder.
        columns: Columns of the encoder.
        terms: Weights of mse, mae, huber and bce.
        huber_delta: Distance at which huber changes from quadratic to linear.
    """

    _element_sums: Tensor
    _block_sums: Tensor
    usual: Tensor
    unit = "mean over the elements of a row"

    def __init__(
        self, blocks: Sequence[Block], columns: Sequence[str], terms: Mapping[LossTerm, float], huber_delta: float
    ) -> None:
        super().__init__()
        self.columns = tuple(columns)
        self._blocks, self._terms, self._delta = tuple(blocks), dict(terms), huber_delta
        self._width = max(block.stop for block in blocks)
        self.kl_weight = 1.0 / self._width
        block_of = torch.repeat_interleave(torch.arange(len(blocks)), torch.tensor([block.width for block in blocks]))
        self.register_buffer("_element_sums", functional.one_hot(block_of, len(blocks)).float(), persistent=False)
        self._present = _Present(self._blocks)
        self.register_buffer("_block_sums", _block_sums(self._blocks, self.columns), persistent=False)
        self.register_buffer("usual", torch.ones(len(self.columns) + 1))

    def forward(self, output: Tensor, x: Tensor) -> Tensor:
        """Return the loss of each block, shape (n, blocks). The blocks of a row sum to the mean over its elements."""
        targets = slice(0, self._width)
        return self._by_block(element_losses(self._terms, self._delta, output[:, targets], x[:, targets]), x)

    def by_column(self, output: Tensor, x: Tensor) -> Tensor:
        """Return the loss of each column above that of a perfect reconstruction, divided by the mean excess."""
        return self._excess(output, x) / self.usual[:-1]

    def parts(self, result: AutoEncoderOutput, x: Tensor) -> Tensor:
        """Return `by_column` and the same for the whole row with its KL divergence, shape (n, columns + 1)."""
        return self._parts(result, x) / self.usual

    @torch.no_grad()
    def fit_scores(self, result: AutoEncoderOutput, x: Tensor) -> None:
        """Fit the mean excess of each column and of the row; at least a thousandth of the mean over the columns."""
        usual = self._parts(result, x).mean(0)
        self.usual.copy_(usual.clamp(min=max(1e-3 * float(usual[:-1].mean()), 1e-12)))

    def _parts(self, result: AutoEncoderOutput, x: Tensor) -> Tensor:
        columns = self._excess(result.output, x)
        return torch.cat([columns, (columns.sum(1) + self.kl_weight * result.kl).unsqueeze(1)], 1)

    def _excess(self, output: Tensor, x: Tensor) -> Tensor:
        output, target = output[:, : self._width], x[:, : self._width]
        excess = element_losses(self._terms, self._delta, output, target) - minimum_losses(self._terms, target)
        return self._by_block(excess, x) @ self._block_sums

    def _by_block(self, losses: Tensor, x: Tensor) -> Tensor:
        if len(self._blocks) < self._width:
            losses = losses @ self._element_sums  # on CUDA devices, `index_add` adds in another order each time
        present: Tensor = self._present(x)
        return losses / self._width * present
