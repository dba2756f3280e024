"""Weights of an encoder that was trained elsewhere, from which a training can start."""

import hashlib
import logging
from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from ae_pipeline.common.errors import ConfigError
from ae_pipeline.models.base import AutoEncoder
from ae_pipeline.storage.dataset import Dataset

_PREFIXES = ("model.encoder.", "encoder.", "")
"""Prefixes of the names of an encoder's tensors: in a bundle, in an autoencoder, and on their own."""

logger = logging.getLogger(__name__)


def read_encoder_weights(dataset: Dataset) -> dict[str, Tensor]:
    """Return the tensors of the file that `training.encoder_weights` names, by their name in the encoder.

    Tensors of other parts, such as the decoder of a bundle, are left out.

    Args:
        dataset: Configuration and paths of the dataset.

    Returns:
        The tensors; none if the configuration names no file.

    Raises:
        ConfigError: The file is missing or not a safetensors file, or a value is not finite.
    """
    if dataset.config.training.encoder_weights is None:
        return {}
    path = dataset.paths.project / dataset.config.training.encoder_weights
    setting = f"training.encoder_weights: {dataset.config.training.encoder_weights}"
    try:
        content = path.read_bytes()
        tensors = load(content)
    except OSError as error:
        reason = f"{path} cannot be read ({error.strerror})"
        raise ConfigError(f"{setting}: {reason}; give a path relative to the project, or remove the key") from error
    except SafetensorError as error:
        raise ConfigError(f"{setting}: {path} is not a safetensors file ({error}); save the weights as one") from error
    if damaged := [name for name, value in tensors.items() if not value.isfinite().all()]:
        raise ConfigError(f"{setting}: {', '.join(damaged)} has values that are not finite; choose other weights")
    prefix = next(prefix for prefix in _PREFIXES if not prefix or any(name.startswith(prefix) for name in tensors))
    logger.info(f"read the weights of an encoder from {path}, SHA-256 {hashlib.sha256(content).hexdigest()}")
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


@torch.no_grad()
def load_encoder_weights(model: AutoEncoder, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into the encoder of a network, in place.

    Layers of convolutions must all fit. Dense layers depend on the size of the images or on the columns, and on the
    number of latents; those with another shape keep their random weights.

    Args:
        model: Network with random weights.
        weights: Tensors by their name in the encoder; see `read_encoder_weights`.

    Raises:
        ConfigError: A tensor is missing, or has another shape or type.
    """
    if not weights:
        return
    tensors = model.encoder.state_dict()
    copied, kept = [], []
    for name, tensor in tensors.items():
        other = weights.get(name)
        if other is not None and other.shape == tensor.shape and other.is_floating_point():
            copied.append(name)
        elif tensor.dim() == 4 or f"{name.rpartition('.')[0]}.weight" in copied:
            given = "none" if other is None else f"{str(other.dtype).removeprefix('torch.')} of shape {_text(other)}"
            raise ConfigError(
                f"training.encoder_weights has {given} for the layer {name} of the encoder, which is of shape "
                f"{_text(tensor)}; use weights of an encoder with the same channels, or change model.channels"
            )
        else:
            kept.append(name)
    if not copied:
        shapes = ", ".join(f"{name} of shape {_text(tensor)}" for name, tensor in tensors.items())
        raise ConfigError(
            f"training.encoder_weights has no tensor that fits the encoder; it needs {shapes}. Save the weights under "
            "these names, or remove the key"
        )
    for name in copied:
        tensors[name].copy_(weights[name])
    left = f"; {', '.join(kept)} have another shape and start at random values" if kept else ""
    logger.info(f"the encoder starts from given weights of {', '.join(copied)}{left}")


def _text(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape))
