"""Warm start: begin a training with the weights of the previous model, and keep its latents near."""

from collections.abc import Iterator
from typing import cast

import polars as pl
import torch
from torch import Tensor, nn

from ae_pipeline.common.errors import BundleError
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.detector.network import FittedNetwork
from ae_pipeline.encoding.blocks import Block, BlockKind
from ae_pipeline.encoding.encoder import Encoder
from ae_pipeline.encoding.table_encoder import TableEncoder
from ae_pipeline.models.base import AutoEncoder
from ae_pipeline.models.losses import LikelihoodLoss, ReconstructionLoss
from ae_pipeline.training.regularizer import LatentRegularizer

_InputName = tuple[str, str, str]
"""Column, part of the column and, for categories, the value that a network input stands for."""

_Indices = tuple[list[int], list[int]]
"""Indices of the same inputs in the new network and in the previous one."""

_SCALED = {BlockKind.NUMERIC, BlockKind.CYCLIC}


@torch.no_grad()
def load_matching_weights(
    model: AutoEncoder, loss: ReconstructionLoss, encoder: Encoder, previous: FittedNetwork
) -> bool:
    """Copy the weights of a trained network into one of the same configuration, in place.

    For tables, the first and the last layer have weights for each number and each category. Only those that both
    networks know are copied; the others keep their random values. The latent transform is copied too.

    Args:
        model: Network with random weights.
        loss: Loss of that network. Its trained scales are copied in the same way.
        encoder: Encoder of its inputs.
        previous: Network to copy from.

    Returns:
        Whether weights were copied. Nothing changes if the layers differ in width.
    """
    shared = None
    if isinstance(encoder, TableEncoder) and isinstance(previous.encoder, TableEncoder):
        shared = _shared_indices(_input_names(encoder), _input_names(previous.encoder))
    new, old = (_weights(network) for network in (model, previous.model))
    pairs = [(tensor, old[name][0], dimension if shared else None) for name, (tensor, dimension) in new.items()]
    if not all(_have_same_width(tensor, other, dimension) for tensor, other, dimension in pairs):
        return False
    for tensor, other, dimension in pairs:
        _copy(tensor, other, dimension, shared)
    if isinstance(loss, LikelihoodLoss) and isinstance(previous.loss, LikelihoodLoss):
        names, previous_names = (
            [(block.column, block.part, "") for block in one.blocks if block.kind in _SCALED]
            for one in (loss, previous.loss)
        )
        _copy(loss.log_scale, previous.loss.log_scale, 0, _shared_indices(names, previous_names))
    return True


def build_latent_regularizer(
    previous: ModelBundle, rows: pl.DataFrame, config: PipelineConfig, latent_dim: int
) -> LatentRegularizer | None:
    """Return the penalty that keeps latents near those of the previous model.

    Its weight is a share of the loss that the training of the previous model saved. So one setting fits losses of any
    unit.

    Args:
        previous: Model that serves.
        rows: Features to train on.
        config: Configuration of the new model, with the share in `training.anchor`.
        latent_dim: Number of latents of the new model.

    Returns:
        The penalty, or None if the share is 0, the previous training saved nothing, the previous model has another loss
        or another number of latents, or the rows lack one of its columns.
    """
    saved = previous.facts.untrained_loss - previous.facts.validation_loss
    if previous.config.loss != config.loss or previous.model.latent_dim != latent_dim:
        return None
    if saved <= 0 or config.training.anchor == 0:
        return None
    try:
        latents = previous.encode(rows)
    except BundleError:
        return None
    return LatentRegularizer(torch.from_numpy(latents), config.training.anchor * saved)


def _weights(model: AutoEncoder) -> dict[str, tuple[Tensor, int | None]]:
    """Return all weights by name, each with the dimension that runs over the network inputs, or None."""
    dimensions = {id(tensor): dimension for tensor, dimension in _outer_weights(model)}
    return {name: (tensor, dimensions.get(id(tensor))) for name, tensor in model.state_dict(keep_vars=True).items()}


def _outer_weights(model: AutoEncoder) -> Iterator[tuple[Tensor, int]]:
    """Yield the weights of the first and the last layer, each with the dimension that runs over the network inputs."""
    first = next(layer for layer in model.encoder.modules() if isinstance(layer, nn.Linear | nn.Conv2d))
    last = [layer for layer in model.decoder.modules() if isinstance(getattr(layer, "bias", None), Tensor)][-1]
    yield first.weight, 1
    if isinstance(last, nn.Linear):
        yield last.weight, 0
    yield cast("Tensor", last.bias), 0


def _input_names(encoder: TableEncoder) -> list[_InputName]:
    """Return the name of each network input."""
    vocabularies = {column.name: column.vocabulary for column in encoder.columns}

    def values_of(block: Block) -> list[str]:
        if block.kind != BlockKind.CATEGORICAL:
            return [str(index) for index in range(block.width)]
        # The prefix keeps a category that is called "other" or "missing" apart from the reserved inputs.
        return [*(f"={text}" for text in vocabularies[block.column]), "other", "missing"]

    return [(block.column, block.part, value) for block in encoder.blocks for value in values_of(block)]


def _shared_indices(new: list[_InputName], previous: list[_InputName]) -> _Indices:
    index_of = {name: index for index, name in enumerate(previous)}
    pairs = [(index, index_of[name]) for index, name in enumerate(new) if name in index_of]
    return [index for index, _ in pairs], [index for _, index in pairs]


def _have_same_width(tensor: Tensor, other: Tensor, dimension: int | None) -> bool:
    """Return whether two weights have the same shape, apart from one dimension."""
    shapes = [[size for index, size in enumerate(one.shape) if index != dimension] for one in (tensor, other)]
    return tensor.dim() == other.dim() and shapes[0] == shapes[1]


def _copy(tensor: Tensor, other: Tensor, dimension: int | None, shared: _Indices | None) -> None:
    """Copy a weight in place, or only the shared indices of one dimension."""
    if dimension is None or shared is None:
        tensor.copy_(other)
    else:
        new, previous = (torch.tensor(part, dtype=torch.long, device=tensor.device) for part in shared)
        tensor.index_copy_(dimension, new, other.to(tensor.device).index_select(dimension, previous))
