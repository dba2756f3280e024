"""The encoder of images reads them in parts, with the values that all images at once would have."""

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest

from ae_pipeline.common.errors import BundleError
from ae_pipeline.config.columns import ColumnType, FeatureColumn, ImageShape
from ae_pipeline.config.model import Scaling
from ae_pipeline.encoding import image_encoder
from ae_pipeline.encoding.image_encoder import fit_image_encoder, pixel_batches

HEIGHT, WIDTH, CHANNELS, COUNT = 5, 4, 3, 23


def frame(dtype: str, count: int = COUNT) -> tuple[pl.DataFrame, FeatureColumn, npt.NDArray[Any]]:
    values = np.random.default_rng(0).integers(0, 250, (count, HEIGHT, WIDTH, CHANNELS)).astype(dtype)
    shape = ImageShape.model_validate({"height": HEIGHT, "width": WIDTH, "channels": CHANNELS, "dtype": dtype})
    images = pl.Series("image", [image.tobytes() for image in values], dtype=pl.Binary)
    return pl.DataFrame({"image": images}), FeatureColumn("image", ColumnType.IMAGE, shape), values


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("scaling", [Scaling.UNIT, Scaling.SYMMETRIC, Scaling.STANDARD])
def test_parts_have_the_values_of_all_images_at_once(
    dtype: str, scaling: Scaling, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, column, values = frame(dtype)
    whole = fit_image_encoder(rows, [column], "image", scaling)
    flat = values.astype(np.float64).reshape(-1, CHANNELS)
    if scaling == Scaling.STANDARD:
        np.testing.assert_allclose(whole.offset, flat.mean(0))
        np.testing.assert_allclose(whole.scale, flat.std(0))
    offset, scale = (np.asarray(part, np.float32) for part in (whole.offset, whole.scale))
    expected = ((values.astype(np.float32) - offset) / scale).transpose(0, 3, 1, 2)
    assert np.array_equal(whole.encode(rows), expected)

    monkeypatch.setattr(image_encoder, "_BATCH_BYTES", 4 * values[0].nbytes)
    assert [len(part) for part in pixel_batches(rows["image"], whole.image)] == [4, 4, 4, 4, 4, 3]
    in_parts = fit_image_encoder(rows, [column], "image", scaling)
    np.testing.assert_allclose(in_parts.scale, whole.scale, rtol=1e-15)
    assert in_parts.offset == whole.offset
    assert in_parts.ends == pytest.approx(whole.ends, rel=1e-12)
    assert np.array_equal(whole.encode(rows), expected)
    assert whole.encode(rows).flags.c_contiguous
    into = np.zeros_like(expected)
    assert whole.encode(rows, into=into) is into
    assert np.array_equal(into, expected)


def test_no_rows_and_wrong_rows() -> None:
    rows, column, _ = frame("uint8")
    encoder = fit_image_encoder(rows, [column], "image", Scaling.UNIT)
    assert encoder.encode(rows.clear()).shape == (0, CHANNELS, HEIGHT, WIDTH)
    for wrong in (pl.Series("image", ["x"]), pl.Series("image", [], dtype=pl.String), pl.Series("image", [b"1234"])):
        with pytest.raises(BundleError, match="does not contain images of 5×4×3 uint8, 60 bytes each"):
            encoder.encode(pl.DataFrame([wrong]))
