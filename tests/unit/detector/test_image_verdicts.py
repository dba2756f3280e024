"""Scores and verdicts of images, from the scores of their patches."""

import numpy as np
import polars as pl
import pytest

from ae_pipeline.detector.image_verdicts import ImageJudge, image_id, patch_position, score_images
from ae_pipeline.scoring.calibration import Calibration

IDENTITY = ("file", "top", "left")


@pytest.mark.parametrize(
    ("identity", "row_id", "name", "position"),
    [
        (("file", "top", "left"), "a/b.png|0|32", "a/b.png", (0, 32)),
        (("top", "left", "file"), "8|16|a.png", "a.png", (8, 16)),
        (("line", "top", "file", "left"), "L1|8|a.png|16", "L1|a.png", (8, 16)),
        (("left", "file", "top"), "16|a.png|8", "a.png", (8, 16)),
        (("file", "top", "left"), "odd|1|2.png|3|4", "odd|1|2.png", (3, 4)),
        (("file", "top", "left"), "two\nlines.png|3|4", "two\nlines.png", (3, 4)),
    ],
)
def test_the_identity_of_a_patch_gives_image_and_position(
    identity: tuple[str, ...], row_id: str, name: str, position: tuple[int, int]
) -> None:
    parts = pl.DataFrame({"row_id": [row_id]}).select(image_id(identity), *patch_position(identity))
    assert parts.row(0) == (name, *position)


@pytest.mark.parametrize("top", [1, 3, 100])
def test_the_score_of_an_image_is_the_mean_of_its_highest_patches(top: int) -> None:
    scores = np.random.default_rng(top).exponential(size=(4, 10))
    rows = [(f"{image}.png|{patch}|0", scores[image, patch]) for image in range(4) for patch in range(10)]
    shuffled = pl.DataFrame(rows, schema=["row_id", "score"], orient="row").sample(fraction=1, shuffle=True, seed=0)
    images = score_images(shuffled, IDENTITY, top)
    assert images["image_id"].to_list() == [f"{image}.png" for image in range(4)]
    np.testing.assert_allclose(images["score"], np.sort(scores, axis=1)[:, -top:].mean(axis=1))
    assert images["strangest"].to_list() == [f"{image}.png|{scores[image].argmax()}|0" for image in range(4)]
    assert images["patches"].to_list() == [10] * 4


def test_images_are_flagged_by_the_calibration_of_images() -> None:
    judge = ImageJudge(Calibration(np.arange(1.0, 20.0), budget=0.1), 1, IDENTITY)
    patches = pl.DataFrame({"row_id": ["a|0|0", "a|0|8", "b|0|0"], "score": [3.0, 18.5, 17.5]})
    assert judge(patches).select("image_id", "score", "p_value", "is_anomaly").rows() == [
        ("a", 18.5, 2 / 20, True),
        ("b", 17.5, 3 / 20, False),
    ]
