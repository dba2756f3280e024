"""Tensors of a detector: how a bundle stores and reads them."""

from collections.abc import Mapping, Set
from typing import Any

import numpy.typing as npt
import torch

from ae_pipeline.common.device import device_to_serve
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.detector import Detector
from ae_pipeline.detector.network import FittedNetwork
from ae_pipeline.encoding.encoder import context_width, read_encoder
from ae_pipeline.models.factory import build_loss, build_model
from ae_pipeline.scoring.cooccurrence import Cooccurrence
from ae_pipeline.scoring.ensemble import Ensemble
from ae_pipeline.scoring.mahalanobis import MahalanobisDistance
from ae_pipeline.scoring.tails import TailCalibrator

Tensors = Mapping[str, torch.Tensor]


def tensors_of(detector: Detector) -> dict[str, torch.Tensor]:
    """Return the weights and statistics of a detector by name, on the CPU."""
    tensors = {f"model.{name}": value for name, value in detector.model.state_dict().items()}
    tensors |= {f"loss.{name}": value for name, value in detector.loss.state_dict().items()}
    ensemble = detector.ensemble.arrays() if detector.ensemble else {}
    categories = detector.cooccurrence.arrays() if detector.cooccurrence else {}
    statistics = {
        "mean_input": detector.mean_input,
        "mahalanobis.mean": detector.mahalanobis.mean,
        "mahalanobis.whitening": detector.mahalanobis.whitening,
        **{f"tails.{name}": value for name, value in detector.tails.arrays().items()},
        **{f"ensemble.{name}": value for name, value in ensemble.items()},
        **{f"cooccurrence.{name}": value for name, value in categories.items()},
    }
    tensors |= {name: torch.from_numpy(value) for name, value in statistics.items()}
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def read_detector(manifest: Mapping[str, Any], tensors: Tensors, device: torch.device | str | None) -> Detector:
    """Return the detector of a bundle, in evaluation mode.

    Args:
        manifest: JSON object with the configuration and the encoder.
        tensors: Tensors of the bundle, by name.
        device: Device to score on; None for the one of the configuration, as far as this machine has it.

    Raises:
        ConfigError: The configuration does not match the encoder.
        KeyError: A tensor is missing.
        RuntimeError: A weight has another shape.
        ValueError: The configuration or the encoder is invalid.
    """
    config = PipelineConfig.model_validate(manifest["config"])
    device = device or device_to_serve(config.training.device)
    encoder = read_encoder(manifest["encoder"])
    model = build_model(config, encoder.shape, context=context_width(encoder))
    loss = build_loss(config, encoder, rates_flatness="loss.flat_tails" in tensors)
    model.load_state_dict(_below("model.", tensors))
    loss.load_state_dict(_below("loss.", tensors))
    ensemble, categories = _arrays_below("ensemble.", tensors), _arrays_below("cooccurrence.", tensors)
    return Detector(
        network=FittedNetwork(encoder, model.to(device).eval(), loss.to(device).eval()),
        config=config,
        mean_input=tensors["mean_input"].numpy(),
        mahalanobis=MahalanobisDistance(tensors["mahalanobis.mean"].numpy(), tensors["mahalanobis.whitening"].numpy()),
        ensemble=Ensemble.from_arrays(ensemble) if ensemble else None,
        tails=TailCalibrator(**_arrays_below("tails.", tensors)),
        cooccurrence=Cooccurrence.from_arrays(categories) if categories else None,
    )


def check_detector(detector: Detector, surplus: Set[str]) -> None:
    """Raise ValueError unless one row can be scored and every tensor of the file is used.

    Args:
        detector: Detector that was read.
        surplus: Names of tensors in the file that no part uses.
    """
    if detector.needs_ensemble and detector.ensemble is None:
        raise ValueError("the configuration scores with an ensemble, but the bundle has none")
    if surplus:
        raise ValueError(f"no part uses the tensor {min(surplus)!r}")
    latent_dim, ensemble = detector.model.latent_dim, detector.ensemble
    if detector.mahalanobis.whitening.shape != (latent_dim, latent_dim):
        shape = detector.mahalanobis.whitening.shape
        raise ValueError(f"mahalanobis.whitening has shape {shape}, but the model has {latent_dim} latents")
    width = len(detector.mean_input) - context_width(detector.encoder)
    if ensemble is not None and ensemble.first.shape != (width,):
        raise ValueError(
            f"ensemble.first has shape {ensemble.first.shape}, but rows without their context have {(width,)}"
        )
    device = next(detector.model.parameters()).device
    row = torch.from_numpy(detector.mean_input).double().unsqueeze(0).to(device)
    detector.surprisal(detector.network.forward(row), row)


def _below(prefix: str, tensors: Tensors) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _arrays_below(prefix: str, tensors: Tensors) -> dict[str, npt.NDArray[Any]]:
    return {name: value.numpy() for name, value in _below(prefix, tensors).items()}
