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
        Its floating-point tensors in float32; none if the configuration names no file.

    Raises:
        ConfigError: The file is missing, is no safetensors file, or has no weights; or a value is not finite.
    """
    if dataset.config.training.encoder_weights is None:
        return {}
    path = dataset.paths.project / dataset.config.training.encoder_weights
    setting = f"training.encoder_weights: {dataset.config.training.encoder_weights}"
    try:
        content = path.read_bytes()
        tensors = load(content)
    except (OSError, ValueError) as error:  # a path with a NUL is no valid value
        reason = f"{path} cannot be read ({getattr(error, 'strerror', None) or error})"
        raise ConfigError(f"{setting}: {reason}; give a path relative to the project, or remove the key") from error
    except SafetensorError as error:
        raise ConfigError(f"{setting}: {path} is not a safetensors file ({error}); save the weights as one") from error
    prefix = next(prefix for prefix in _PREFIXES if not prefix or any(name.startswith(prefix) for name in tensors))
    weights = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    floating = {name: value.float() for name, value in weights.items() if value.is_floating_point()}
    if not floating:
        raise ConfigError(f"{setting}: {path} has no tensor of floating-point numbers; save the weights as such")
    if damaged := [name for name, value in floating.items() if not value.isfinite().all()]:
        raise ConfigError(f"{setting}: {', '.join(damaged)} has values that are not finite; choose other weights")
    logger.info(f"read the weights of an encoder from {path}, SHA-256 {hashlib.sha256(content).hexdigest()}")
    return floating


@torch.no_grad()
def load_encoder_weights(model: AutoEncoder, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into the encoder of a network, in place.

    The first layer and all convolutions must fit. Other dense layers depend on the size of the images or on the number
    of latents; those that do not fit keep their random weights.

    Args:
        model: Network with random weights.
        weights: Tensors by their name in the encoder; see `read_encoder_weights`.

    Raises:
        ConfigError: A tensor that must fit is missing, or has another shape.
    """
    if not weights:
        return
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in model.encoder.state_dict().items():
        layers.setdefault(name.rpartition(".")[0], {})[name] = tensor
    copied, kept = list[str](), list[str]()
    for tensors in layers.values():
        mismatched = [name for name, tensor in tensors.items() if _shape(weights.get(name)) != tensor.shape]
        if not mismatched:
            for name, tensor in tensors.items():
                tensor.copy_(weights[name])
            copied += tensors
        elif not copied or any(tensor.dim() == 4 for tensor in tensors.values()):
            name = mismatched[0]
            raise ConfigError(
                f"training.encoder_weights has {_describe(weights.get(name))} for the layer {name} of the encoder, "
                f"which is of shape {_describe(tensors[name])}; use weights of an encoder with the same inputs, "
                "model.channels and model.hidden, or remove the key"
            )
        else:
            kept += tensors
    left = f"; {', '.join(kept)} do not fit and start at random values" if kept else ""
    logger.info(f"the encoder starts from given weights of {', '.join(copied)}{left}")


def _shape(tensor: Tensor | None) -> torch.Size | None:
    return None if tensor is None else tensor.shape


def _describe(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else "×".join(map(str, tensor.shape))
