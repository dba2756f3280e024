"""Lets a training go on from the model that serves: from its weights, and near its latents."""

from collections.abc import Iterator
from typing import cast

import polars as pl
import torch
from torch import Tensor, nn

from ae_pipeline.common.errors import BundleError
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.detector.network import FittedNetwork
from ae_pipeline.encoding.encoder import Encoder
from ae_pipeline.encoding.table_encoder import Block, BlockKind, TableEncoder
from ae_pipeline.models.base import AutoEncoder
from ae_pipeline.models.losses import LikelihoodLoss, ReconstructionLoss
from ae_pipeline.training.loop import LatentRegularizer

_Place = tuple[str, str, str]


@torch.no_grad()
def load_matching_weights(
    model: AutoEncoder, loss: ReconstructionLoss, encoder: Encoder, previous: FittedNetwork
) -> bool:
    """Puts the weights of a trained network into one that is configured alike, in place.

    Of tables the first and the last layer have a place for each number and each category: those that both networks know
    are taken over, and the others stay as they were drawn. The axes of the latents come along.

    Args:
        model: Freshly drawn.
        loss: Its loss, whose learnt scales are taken over likewise.
        encoder: What makes its inputs.
        previous: To start from.

    Returns:
        Whether the layers are as wide; nothing is changed where they are not.
    """
    places = None
    if isinstance(encoder, TableEncoder) and isinstance(previous.encoder, TableEncoder):
        places = _shared(_columns(encoder), _columns(previous.encoder))
    new, old = (_weights(network) for network in (model, previous.model))
    pairs = [(tensor, old[name][0], dimension if places else None) for name, (tensor, dimension) in new.items()]
    if any(not _is_as_wide(tensor, other, dimension) for tensor, other, dimension in pairs):
        return False
    for tensor, other, dimension in pairs:
        _copy(tensor, other, dimension, places)
    if isinstance(loss, LikelihoodLoss) and isinstance(previous.loss, LikelihoodLoss):
        scaled = [[(b.column, b.part, "") for b in one.blocks if b.kind in _SCALED] for one in (loss, previous.loss)]
        _copy(loss.log_scale, previous.loss.log_scale, 0, _shared(*scaled))
    return True


def build_latent_regularizer(
    previous: ModelBundle, rows: pl.DataFrame, config: PipelineConfig, latent_dim: int
) -> LatentRegularizer | None:
    """Makes the pull to the latents of the model that serves.

    It is measured by what the training of that model has saved of the loss, so that one share fits losses of any unit.

    Args:
        previous: That model.
        rows: Features to train on.
        config: How strong it is to be.
        latent_dim: Of the new model.

    Returns:
        None where nothing is to pull, or the model before has another loss, other latents, or columns that are gone.
    """
    saved = previous.facts.get("untrained_loss", 0.0) - previous.facts["validation_loss"]
    if previous.config.loss != config.loss or previous.model.latent_dim != latent_dim:
        return None
    if saved <= 0 or config.training.anchor == 0:
        return None
    try:
        latents = previous.encode(rows)
    except BundleError:
        return None
    return LatentRegularizer(torch.from_numpy(latents), config.training.anchor * saved)


_SCALED = {BlockKind.NUMERIC, BlockKind.CYCLIC}


def _weights(model: AutoEncoder) -> dict[str, tuple[Tensor, int | None]]:
    """Lists all weights, and for each which dimension runs over the columns of the matrix, if any does."""
    ends = {id(tensor): dimension for tensor, dimension in _ends(model)}
    return {name: (tensor, ends.get(id(tensor))) for name, tensor in model.state_dict(keep_vars=True).items()}


def _ends(model: AutoEncoder) -> Iterator[tuple[Tensor, int]]:
    first = next(layer for layer in model.encoder.modules() if isinstance(layer, nn.Linear | nn.Conv2d))
    last = [layer for layer in model.decoder.modules() if isinstance(getattr(layer, "bias", None), Tensor)][-1]
    yield first.weight, 1
    if isinstance(last, nn.Linear):
        yield last.weight, 0
    yield cast("Tensor", last.bias), 0


def _columns(encoder: TableEncoder) -> list[_Place]:
    """Names each column of the matrix by what it stands for."""
    vocabularies = {column.name: column.vocabulary for column in encoder.columns}

    def parts(block: Block) -> list[str]:
        if block.kind != BlockKind.CATEGORICAL:
            return [str(index) for index in range(block.width)]
        # A value may be called as the places behind the vocabulary are.
        return [*(f"={text}" for text in vocabularies[block.column]), "other", "missing"]

    return [(block.column, block.part, part) for block in encoder.blocks for part in parts(block)]


def _shared(new: list[_Place], old: list[_Place]) -> tuple[list[int], list[int]]:
    there = {name: index for index, name in enumerate(old)}
    pairs = [(index, there[name]) for index, name in enumerate(new) if name in there]
    return [index for index, _ in pairs], [index for _, index in pairs]


def _is_as_wide(tensor: Tensor, other: Tensor, dimension: int | None) -> bool:
    shapes = [[size for index, size in enumerate(one.shape) if index != dimension] for one in (tensor, other)]
    return tensor.dim() == other.dim() and shapes[0] == shapes[1]


def _copy(tensor: Tensor, other: Tensor, dimension: int | None, places: tuple[list[int], list[int]] | None) -> None:
    if dimension is None or places is None:
        tensor.copy_(other)
    else:
        mine, theirs = (torch.tensor(part, dtype=torch.long, device=tensor.device) for part in places)
        tensor.index_copy_(dimension, mine, other.to(tensor.device).index_select(dimension, theirs))
