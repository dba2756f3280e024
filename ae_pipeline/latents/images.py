"""Verdicts on images whose patches are rows: a small table beside the latent table, one row per image."""

import json
import os
from collections.abc import Mapping

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ae_pipeline.common.errors import PublicationError
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.detector.image_verdicts import ImageJudge, has_patches
from ae_pipeline.latent_space.names import latent_space_name
from ae_pipeline.latents.files import TableFiles
from ae_pipeline.latents.read import PublishedDay, published_day, published_days
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.integrity import SEAL, UNSEALED, seal
from ae_pipeline.storage.location import reader_paths
from ae_pipeline.storage.paths import ALL_ROWS, DatasetPaths

IMAGES = "_images/images.parquet"
"""Path of the table of images, relative to the latent table. Delta Lake ignores folders that start with `_`."""

_DAYS_KEY = b"ae_pipeline.days"
"""Key in the Parquet footer of the identity of each published day that the rows come from."""

SCHEMA = {
    "image_id": pl.String(),
    "event_time": pl.Datetime("us", "UTC"),
    "date": pl.Date(),
    "score": pl.Float64(),
    "p_value": pl.Float64(),
    "is_anomaly": pl.Boolean(),
    "patches": pl.UInt32(),
    "strangest": pl.String(),
    "model_version": pl.Int64(),
    "latent_space": pl.String(),
}
"""Columns of the table of images."""


def read_images(dataset: str, *, data: str | os.PathLike[str] | None = None, tables: str | None = None) -> pl.DataFrame:
    """Return the verdict on each image of a dataset whose rows are patches, in the order of time.

    Args:
        dataset: Name of the dataset.
        data: Data folder or address; as in `read_latents`.
        tables: Folder, or prefix of an object store, that holds the tables; as in `read_latents`.

    Returns:
        One row per image: `image_id`, `event_time`, `date`, `score`, `p_value`, `is_anomaly`, number of `patches`,
        `row_id` of the `strangest` patch, `model_version` and `latent_space`.

    Raises:
        PublicationError: There is no such table, or it is damaged.
    """
    paths = reader_paths(dataset, data, tables)
    images, _ = _read(TableFiles(paths.latents)) or (pl.DataFrame(schema=SCHEMA), {})
    if images.is_empty():
        raise PublicationError(
            f"{dataset!r} has no verdicts on images: its rows are no patches, its model has no calibration of images, "
            f"or the table is damaged; set images.patch, train a new model, or run `ae-pipeline run {dataset}`"
        )
    return images


def has_images(dataset: Dataset) -> bool:
    """Return whether the table of images is whole, or rows are no patches."""
    return not has_patches(dataset.config) or bool(TableFiles(dataset.paths.latents).whole([IMAGES]))


def publish_images(paths: DatasetPaths, bundle: ModelBundle, model_version: int) -> pl.DataFrame | None:
    """Bring the table of images up to date with the latent table, and return it; None unless rows are patches.

    Only days that changed in the latent table are read. The file is replaced in one step.

    Args:
        paths: Paths of the dataset.
        bundle: Model that scored the published table.
        model_version: Version of the model.
    """
    if not has_patches(bundle.config):
        return None
    judge, files, days = bundle.judge_images, TableFiles(paths.latents), published_days(paths)
    nothing = pl.DataFrame(schema=SCHEMA)
    known, identities = _read(files) or (nothing, {})
    current = {day: published.identity for day, published in days.items()}
    if judge is None:  # a model of an earlier version: the table is empty, but it is there
        if identities != current or not known.is_empty():
            _write(nothing, current, files)
        return None
    if current == identities and not known.is_empty():
        return known
    kept = {day for day, identity in identities.items() if current.get(day) == identity and not known.is_empty()}
    space = latent_space_name(model_version, bundle.fingerprint)
    images = pl.concat(
        [
            known.filter(pl.col("date").dt.to_string().fill_null(ALL_ROWS).is_in(kept)),
            *(_judged(days[day], paths, judge, model_version, space) for day in sorted(current.keys() - kept)),
        ]
    ).sort("event_time", "image_id")
    _write(images, current, files)
    return images


def _judged(day: PublishedDay, paths: DatasetPaths, judge: ImageJudge, model_version: int, space: str) -> pl.DataFrame:
    patches = published_day(day, paths, ["row_id", "event_time", "date", "score"])
    times = patches.select("event_time", "date", strangest="row_id")
    images = judge(patches).join(times, on="strangest", how="left", maintain_order="left")
    return images.with_columns(model_version=model_version, latent_space=pl.lit(space)).select(
        pl.col(name).cast(dtype) for name, dtype in SCHEMA.items()
    )


def _read(files: TableFiles) -> tuple[pl.DataFrame, dict[str, str]] | None:
    """Return the table of images and the identity of each day in it; None if it is missing or damaged."""
    if not files.whole([IMAGES]):
        return None
    table = files.read(IMAGES)
    days: dict[str, str] = json.loads((table.schema.metadata or {}).get(_DAYS_KEY, b"{}"))
    return pl.DataFrame(pl.from_arrow(table)), days


def _write(images: pl.DataFrame, days: Mapping[str, str], files: TableFiles) -> None:
    table = images.to_arrow()
    table = table.cast(pa.schema([(field.name, _plain(field.type)) for field in table.schema]))
    schema = table.schema.with_metadata({_DAYS_KEY: json.dumps(dict(days))})
    with files.writing(IMAGES) as temporary:
        with pq.ParquetWriter(temporary, schema, compression="zstd", write_page_checksum=True) as writer:
            writer.write_table(table)
            writer.add_key_value_metadata({SEAL: UNSEALED})
        seal(temporary)


def _plain(kind: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) else kind
