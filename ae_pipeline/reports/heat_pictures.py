"""Heat maps of whole images as pictures: an overlay on the image, with the anomalous pixels in color."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from PIL import Image

from ae_pipeline.common.errors import ConfigError, StorageError
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.detector.heat_maps import HeatMap, heat_map, whole_image
from ae_pipeline.detector.image_verdicts import IMAGE_ID, has_patches, image_id
from ae_pipeline.latents.images import publish_images
from ae_pipeline.latents.read import PublishedDay, published_day, published_days
from ae_pipeline.reports.pictures import Scale, as_address
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.files import atomic_write, make_folder
from ae_pipeline.storage.hashing import hash_json
from ae_pipeline.storage.parquet import whole

MapFormat = Literal["png", "npy"]
"""Format of exported heat maps: overlays as pictures, or arrays of multiples of the usual residual."""

_SHOWN = 6
"""Images that the page shows."""

_MAX_SIDE = 320
"""Pixels of a picture on the page in width or height."""

_MAX_NAME_BYTES = 200
"""Bytes of an image's name in that of a file. A disk takes 255, with the digest and what a temporary file adds."""


@dataclass(frozen=True, kw_only=True)
class HeatPicture:
    """Heat map of an image on the page.

    Attributes:
        image_id: Identity of the image.
        score: Score of the image, nats.
        is_anomaly: Whether the image is flagged.
        image: Image as PNG in a `data:` URL.
        overlay: Image with its anomalous pixels in color, as PNG in a `data:` URL.
        share: Share of its pixels that are anomalous by the budget.
        highest: Highest residual, as a multiple of the usual one.
    """

    image_id: str
    score: float
    is_anomaly: bool
    image: str
    overlay: str
    share: float
    highest: float


@dataclass(frozen=True, kw_only=True)
class HeatPictures:
    """Heat maps on the page, with the threshold of a pixel and the labels and colors of their scale."""

    threshold: float
    ticks: list[tuple[str, float]]
    colors: list[str]
    pictures: tuple[HeatPicture, ...]


def heat_pictures(
    files: Mapping[str, PublishedDay], dataset: Dataset, bundle: ModelBundle, model_version: int
) -> HeatPictures | None:
    """Return the heat maps of the most anomalous images; None for tables and for models without a threshold of pixels.

    Args:
        files: Published days.
        dataset: Configuration and paths of the dataset.
        bundle: Model that scored the published table.
        model_version: Version of the model.
    """
    if bundle.pixel_threshold is None or not has_patches(bundle.config):
        return None
    chosen = _strangest(files, dataset, bundle, model_version).head(_SHOWN)
    made = [(row, *_maps(row, dataset, bundle)) for row in chosen.iter_rows(named=True)]
    scale = Scale.up_to(max((float(heat.max()) for *_, heat in made), default=0.0), 1.0)
    pictures = (
        HeatPicture(
            image_id=row[IMAGE_ID],
            score=row["score"],
            is_anomaly=row["is_anomaly"],
            image=as_address(_thumbnail(scale.shades(image))),
            overlay=as_address(_thumbnail(overlay(image, heat, bundle.pixel_threshold, scale))),
            share=float((heat > bundle.pixel_threshold).mean()),
            highest=float(heat.max()),
        )
        for row, image, heat in made
    )
    return HeatPictures(
        threshold=bundle.pixel_threshold, ticks=scale.ticks, colors=scale.colours, pictures=tuple(pictures)
    )


def overlay(image: HeatMap, heat: HeatMap, threshold: float, scale: Scale) -> Image.Image:
    """Return an image in gray, on which the pixels above a threshold have the color of their heat.

    Args:
        image: Image, 0 to 1, (height, width, channels).
        heat: Heat map, (height, width).
        threshold: Heat above which a pixel is anomalous.
        scale: Scale of the colors.
    """
    gray = scale.shades(image).convert("L").convert("RGB")
    opacity = Image.fromarray(np.where(heat > threshold, 200, 0).astype(np.uint8))
    return Image.composite(scale.heat(heat).convert("RGB"), gray, opacity)


def export_maps(
    dataset: Dataset, bundle: ModelBundle, model_version: int, folder: Path, kind: MapFormat, day: str | None
) -> Iterator[Path]:
    """Write the heat map of each flagged image, at full size, and yield the path of each file.

    Args:
        dataset: Configuration and paths of the dataset.
        bundle: Model that scored the published table.
        model_version: Version of the model.
        folder: Folder of the files.
        kind: `png` for overlays, `npy` for arrays of float32.
        day: Day of the images; all by default.

    Raises:
        ConfigError: The rows are no images.
        StorageError: There are no images of that day, or the model has no threshold of pixels.
    """
    if dataset.config.images is None:
        raise ConfigError(f"{dataset.name!r} has no images, so it has no heat maps; leave out --maps")
    if bundle.pixel_threshold is None:
        raise StorageError(f"the model of {dataset.name!r} has no threshold of pixels; train a new one, and publish it")
    files = published_days(dataset.paths)
    if day is not None and day not in files:
        raise StorageError(f"nothing was published of {day}; choose one of {', '.join(list(files)[-5:]) or 'no day'}")
    chosen = _strangest(files, dataset, bundle, model_version)
    of_day = pl.lit(value=True) if day is None else pl.col("day") == day
    chosen = chosen.filter("is_anomaly", of_day)
    make_folder(folder)
    for row in chosen.iter_rows(named=True):
        image, heat = _maps(row, dataset, bundle)
        path = folder / f"{file_stem(row[IMAGE_ID])}.{kind}"
        with atomic_write(path) as temporary:
            if kind == "npy":
                with temporary.open("wb") as file:
                    np.save(file, heat.astype(np.float32))
            else:
                scale = Scale.up_to(float(heat.max()), 1.0)
                overlay(image, heat, bundle.pixel_threshold, scale).save(temporary, "PNG")
        yield path


def file_stem(name: str) -> str:
    """Return a name that every disk takes, for the files of an image. Its digest tells a/b.png from a_b.png."""
    plain = re.sub(r"[^\w.-]", "_", name).encode()[:_MAX_NAME_BYTES].decode(errors="ignore")
    return f"{plain}-{hash_json(name)[:6]}"


def _strangest(
    files: Mapping[str, PublishedDay], dataset: Dataset, bundle: ModelBundle, model_version: int
) -> pl.DataFrame:
    """Return identity, score, flag and day of all images, the highest score first."""
    images = publish_images(dataset.paths, bundle, model_version)
    if images is None:
        parts = (
            published_day(files[day], dataset.paths, ["row_id", "score", "is_anomaly"]).with_columns(day=pl.lit(day))
            for day in files
        )
        images = pl.concat(parts).rename({"row_id": IMAGE_ID})
    else:
        images = images.with_columns(day=pl.col("date").dt.to_string().fill_null("all"))
    chosen = images.select(IMAGE_ID, "score", "is_anomaly", "day")
    return chosen.sort(["score", IMAGE_ID], descending=[True, False])


def _maps(row: Mapping[str, str], dataset: Dataset, bundle: ModelBundle) -> tuple[HeatMap, HeatMap]:
    """Return an image and its heat map."""
    config = bundle.config
    of_image = image_id(config.identity) if has_patches(config) else pl.col("row_id")
    features = pl.scan_parquet(whole(dataset.paths.features(row["day"])), glob=False)
    rows = features.filter(of_image == row[IMAGE_ID]).collect()
    return whole_image(bundle.network, rows, config), heat_map(bundle.network, rows, config)


def _thumbnail(picture: Image.Image) -> Image.Image:
    smaller = picture.copy()
    smaller.thumbnail((_MAX_SIDE, _MAX_SIDE))
    return smaller
