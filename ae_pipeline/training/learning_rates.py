"""Learning rates by layer: wide layers learn with smaller steps."""

from typing import Any

from torch import nn

USUAL_INPUTS, WIDE_INPUTS = 1024, 4096
"""Inputs for which the learning rate is meant, and inputs of a linear layer above which it falls with their number."""


def parameter_groups(model: nn.Module, loss: nn.Module) -> list[dict[str, Any]]:
    """Return the parameter groups of an optimizer. A group with a `rate_factor` learns at that multiple of the rate.

    An adaptive optimizer moves each weight by about the learning rate. The output of a layer then moves by that much
    for each of its inputs. With a million inputs, as in networks of large images, one step would saturate the latents.
    So the rate falls with the number of inputs (Yang et al. 2022, table 3).

    Args:
        model: Autoencoder.
        loss: Loss, whose scales have no weight decay.
    """
    wide = {
        layer.weight: layer.in_features
        for layer in model.modules()
        if isinstance(layer, nn.Linear) and layer.in_features > WIDE_INPUTS
    }
    return [
        {"params": [parameter for parameter in model.parameters() if parameter not in wide]},
        {"params": list(loss.parameters()), "weight_decay": 0.0},
        *({"params": [weight], "rate_factor": USUAL_INPUTS / inputs} for weight, inputs in wide.items()),
    ]
