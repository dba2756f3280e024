"""Reads bundles of format 6, which version 0.1 wrote. Version 0.3 removes this module."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ae_pipeline.config.model import EventTime
from ae_pipeline.config.service import GateConfig, LatentsConfig

FORMAT = 6

_RENAMED = (
    (r"^typical$", "mean_input"),
    (r"^density\.", "mahalanobis."),
    (r"^model\.axes\.", "model.latent_transform."),
    (r"^ensemble\.members\.", "ensemble.denoising_ensemble."),
    (r"^ensemble\.views\.", "ensemble.scalings."),
    (r"^ensemble\.scalings\.bent$", "ensemble.scalings.asinh_mask"),
    (r"^ensemble\.scalings\.spread$", "ensemble.scalings.std"),
    (r"(^|\.)(tails|scalings)\.knots$", r"\1\2.quantiles"),
)
"""Tensor names of format 6 as patterns, each with its replacement in format 7, applied in this order."""


def upgrade_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a bundle of format 6 under their names of format 7.

    The keys of the manifest have not changed, except for those of the configuration; see `upgrade_config`.
    """
    return {_upgrade(name): tensor for name, tensor in tensors.items()}


def upgrade_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of a bundle of format 6 under the present keys."""
    renamed = {"gate": GateConfig.renamed_keys, "latents": LatentsConfig.renamed_keys}
    return {
        section: {renamed[section].get(key, key): value for key, value in values.items()}
        if section in renamed
        else values
        for section, values in config.items()
    }


def with_defaults_of_format_7(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of a bundle with the defaults that were in force when a key did not exist yet.

    Up to version 0.2 the event time was a target like every other column.
    """
    return {**config, "model": {"event_time": EventTime.TARGET.value, **config["model"]}}


def _upgrade(name: str) -> str:
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name
