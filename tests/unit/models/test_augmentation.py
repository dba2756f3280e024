"""Random symmetries of training images."""

from typing import Any

import pytest
import torch

from ae_pipeline.common.errors import ConfigError
from ae_pipeline.config.model import LossTerm, TrainingConfig
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.models.augmentation import build_augmentation
from ae_pipeline.models.factory import build_model
from ae_pipeline.models.image_loss import ImageLoss
from ae_pipeline.models.noise import PartGenerator
from ae_pipeline.training.loop import train

IMAGES = torch.arange(2.0 * 2 * 3 * 3).reshape(1, 4, 3, 3).repeat(400, 1, 1, 1)
"""Equal images without a symmetry."""


def augmented(kind: str, x: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Return augmented images."""
    augment = build_augmentation(TrainingConfig.model_validate({"augmentation": kind}))
    assert augment is not None
    return augment(x, generator or torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("kind", "expected"), [("mirror", 2), ("flips", 4), ("turns", 8)])
def test_all_symmetries_of_a_kind_are_about_as_frequent(kind: str, expected: int) -> None:
    forms, counts = augmented(kind, IMAGES).unique(dim=0, return_counts=True)
    assert len(forms) == expected
    assert counts.min() > 400 / expected / 2
    image = IMAGES[0]
    turned = [image.rot90(turns, (1, 2)) for turns in range(4)]
    allowed = {
        "mirror": [image, image.flip(2)],
        "flips": [image, image.flip(2), image.flip(1), image.flip((1, 2))],
        "turns": [*turned, *(each.flip(2) for each in turned)],
    }[kind]
    torch.testing.assert_close(forms, torch.stack(allowed).unique(dim=0))


def test_no_augmentation_is_the_default() -> None:
    assert build_augmentation(TrainingConfig()) is None


def test_flips_keep_the_shape_of_any_image() -> None:
    images = torch.rand(5, 1, 2, 7)
    assert augmented("flips", images).shape == images.shape


@pytest.mark.parametrize("by_row", [False, True])
def test_processes_that_share_a_batch_draw_the_symmetries_of_the_whole_batch(by_row: bool) -> None:
    images = torch.rand(6, 1, 3, 3)

    def of_process(start: int, stop: int) -> torch.Tensor:
        generator = PartGenerator()
        generator.manual_seed(3)
        generator.begin_batch(6, by_row=by_row)
        generator.begin_part(start)
        return augmented("turns", images[start:stop], generator)

    torch.testing.assert_close(torch.cat([of_process(0, 2), of_process(2, 6)]), of_process(0, 6))


@pytest.mark.parametrize(
    ("settings", "shape", "says"),
    [
        ({"images": {}}, (1, 8, 6), "turns needs square images, got 8×6; choose flips"),
        ({}, (12,), "turns changes images, but 'd' has no section images"),
    ],
)
def test_images_or_tables_that_cannot_be_turned_are_refused(
    settings: dict[str, Any], shape: tuple[int, ...], says: str
) -> None:
    training = {"training": {"augmentation": "turns"}, "model": {"latent_dim": 2}}
    config = PipelineConfig.model_validate({"dataset": "d", "identity": ["f"], **training, **settings})
    with pytest.raises(ConfigError, match=says):
        build_model(config, shape, torch.Generator().manual_seed(0))


def test_a_training_with_flips_learns_images_upside_down() -> None:
    images = torch.rand(32, 1, 4, 4, generator=torch.Generator().manual_seed(0)).cumsum(2) / 4
    errors = []
    for augmentation in ("none", "flips"):
        config = PipelineConfig.model_validate(
            {
                "dataset": "d",
                "identity": ["f"],
                "images": {},
                "model": {"latent_dim": 8},
                "training": {"epochs": 60, "batch_size": 8, "augmentation": augmentation, "device": "cpu"},
            }
        )
        generator = torch.Generator().manual_seed(0)
        model, loss = build_model(config, (1, 4, 4), generator), ImageLoss((1, 4, 4), 1.0, {LossTerm.MSE: 1.0}, 1.0)
        train(model, loss, images, images, config.training, generator)
        errors.append(
            float((model.eval().requires_grad_(False)(images.flip(2)).output - images.flip(2)).square().mean())
        )
    assert errors[1] < errors[0] / 2
