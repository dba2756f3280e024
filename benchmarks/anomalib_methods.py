"""Models of anomalib that need no pretrained weights, on whole images: GANomaly and DRAEM.

They are optional: `pip install anomalib[cpu]` installs them. The networks, losses and synthetic anomalies are those of
anomalib with its defaults, in training loops that repeat the training steps of its Lightning modules. Its module of
DRAEM downloads photographs of textures as anomalies. The loop here leaves them out, so that anomalies are noise, which
is what anomalib's generator does without photographs.
"""

import importlib
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from itertools import chain
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks.materials import Pixels, Scored, Sheet, Values

NAMES = ("anomalib GANomaly", "anomalib DRAEM")
GANOMALY_EPOCHS, DRAEM_EPOCHS = 5, 2
"""Passes over the training images: far fewer than in the papers, because a pass takes minutes on a CPU."""
GANOMALY_BATCH, DRAEM_BATCH = 4, 4


def missing_reason() -> str | None:
    """Return why the models of anomalib cannot be measured, and what to do; None if they can."""
    if find_spec("anomalib") is None:
        return "anomalib is not installed; run `pip install 'anomalib[cpu]'` to measure its models too"
    try:
        _library()
    except (ImportError, RuntimeError) as error:  # the latter if torchvision was built for another torch
        return f"anomalib cannot be imported ({error}); install a torchvision that was built for this torch"
    return None


def anomalib_methods(seed: int) -> dict[str, Callable[[Sheet], Scored]]:
    """Return the models by their names; none if anomalib cannot be imported."""
    if missing_reason():
        return {}
    return dict(zip(NAMES, (partial(score_ganomaly, seed=seed), partial(score_draem, seed=seed)), strict=True))


def score_ganomaly(sheet: Sheet, seed: int) -> Scored:
    """Score the test images by the distance of the two latents. GANomaly has no heat map."""
    library, size = _library(), len(sheet.test[0])
    torch.manual_seed(seed)
    network = library.GanomalyModel((size, size), 3, 64, 100)
    generator_loss, discriminator_loss = library.GeneratorLoss(1, 50, 1), library.DiscriminatorLoss()
    discriminator, generator = (
        torch.optim.Adam(part.parameters(), lr=2e-4, betas=(0.5, 0.999))
        for part in (network.discriminator, network.generator)
    )
    for batch in _batches(sheet.training, GANOMALY_EPOCHS, GANOMALY_BATCH):
        padded, fake, first, second = network(batch)
        real_score, _ = network.discriminator(padded)
        fake_score, _ = network.discriminator(fake)
        generator.zero_grad()
        generator_loss(first, second, padded, fake, real_score, fake_score).backward(retain_graph=True)
        generator.step()
        fake_score, _ = network.discriminator(fake.detach())
        discriminator.zero_grad()
        discriminator_loss(real_score, fake_score).backward()
        discriminator.step()
    return _by_image(network, sheet.test, lambda output: output.pred_score), None


def score_draem(sheet: Sheet, seed: int) -> Scored:
    """Score the test images by the highest probability of an anomalous pixel, and pixels by theirs."""
    library = _library()
    torch.manual_seed(seed)
    network, loss = library.DraemModel(), library.DraemLoss()
    augment = library.PerlinAnomalyGenerator(blend_factor=(0.1, 1.0))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    for batch in _batches(sheet.training, DRAEM_EPOCHS, DRAEM_BATCH):
        augmented, mask = augment(batch)
        reconstruction, prediction = network(augmented)
        optimizer.zero_grad()
        loss(batch, reconstruction, mask, prediction).backward()
        optimizer.step()
    maps = list(_by_image(network, sheet.test, lambda output: output.anomaly_map))
    return np.array([heat.max() for heat in maps]), maps


def _library() -> Any:
    """Return the parts of anomalib that the methods use."""
    parts = {
        "draem.torch_model": ("DraemModel",),
        "draem.loss": ("DraemLoss",),
        "ganomaly.torch_model": ("GanomalyModel",),
        "ganomaly.loss": ("GeneratorLoss", "DiscriminatorLoss"),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of models that are not used here
        modules = {importlib.import_module(f"anomalib.models.image.{path}"): names for path, names in parts.items()}
        modules[importlib.import_module("anomalib.data.utils.generators.perlin")] = ("PerlinAnomalyGenerator",)
    return SimpleNamespace(**dict(chain.from_iterable(((n, getattr(m, n)) for n in ns) for m, ns in modules.items())))


def _batches(images: list[Pixels], epochs: int, size: int) -> Iterator[torch.Tensor]:
    """Yield batches in random order, (n, 3, side, side), on the scale 0 to 1."""
    values = _tensor(images)
    for _ in range(epochs):
        yield from values[torch.randperm(len(values))].split(size)


def _tensor(images: list[Pixels]) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)).float().div(255)[:, None].expand(-1, 3, -1, -1)


@torch.no_grad()
def _by_image(network: torch.nn.Module, images: list[Pixels], choose: Callable[[Any], torch.Tensor]) -> Values:
    network.eval()
    parts = [choose(network(part)) for part in _tensor(images).split(4)]
    return torch.cat(parts).double().numpy()
