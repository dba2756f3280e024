"""Where rows lie in the latent space: a map of two directions that stays as it is from day to day, and who is near."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from ae_pipeline.common.errors import TrainingError
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.features.split import LABEL
from ae_pipeline.latents.read import PublishedDay, published_day
from ae_pipeline.storage.parquet import detach
from ae_pipeline.storage.paths import ALL_ROWS, DatasetPaths

Array = npt.NDArray[np.float64]

REFERENCE_ROWS, SHOWN_ROWS = 4000, 1000
"""Rows that others are held against, and rows that one map shows of either, at most."""

NEIGHBORS = 3


def projection(bundle: ModelBundle) -> Array:
    """Gives the two directions in which the latents of the training rows vary most, scaled by their spread.

    They are a part of the model: the map of every day under it has the same axes.

    Returns:
        Shape (latent_dim, 2 or 1); its first column is the widest direction.
    """
    # Ascending variance, as eigh gives it; each with its largest entry positive, since a sign means nothing.
    widest = bundle.mahalanobis.whitening[:, ::-1][:, :2]
    signs = np.sign(widest[np.abs(widest).argmax(axis=0), np.arange(widest.shape[1])])
    directions: Array = widest * signs
    return directions


def places(latents: Array, bundle: ModelBundle) -> Array:
    """Puts latents, (n, latent_dim), on the map, (n, 2)."""
    found = (latents - bundle.mahalanobis.mean) @ projection(bundle)
    flat: Array = found if found.shape[1] == 2 else np.column_stack([found, np.zeros(len(found))])
    return flat


def reference_rows(files: Mapping[str, PublishedDay], paths: DatasetPaths, bundle: ModelBundle) -> pl.DataFrame:
    """Reads calibration rows that are neither flagged nor known anomalies, up to `REFERENCE_ROWS`, evenly spaced.

    Args:
        files: The published days.
        paths: The dataset's.
        bundle: The model that the table was scored with.
    """
    days = [files[day] for day in bundle.window.calibration if day in files]
    each = max(1, REFERENCE_ROWS // max(len(days), 1))
    parts = [_thinned(_ordinary(day, paths, bundle), each) for day in days]
    return pl.concat(parts) if parts else pl.DataFrame(schema=_schema(bundle))


def _ordinary(day: PublishedDay, paths: DatasetPaths, bundle: ModelBundle) -> pl.DataFrame:
    rows = published_day(day, paths, columns_of(bundle)).filter(~pl.col("is_anomaly"))
    features = pl.scan_parquet(paths.features(day.day), glob=False)
    marks = [LABEL] if LABEL in features.collect_schema() else []
    if day.day == ALL_ROWS:
        try:
            known = bundle.window.rows("calibration", paths, ["row_id", *marks], most=2 * REFERENCE_ROWS)
        except TrainingError:  # none is left of these rows
            return rows.clear()
    elif marks:
        known = features.select("row_id", *marks).collect()
    else:
        return rows
    kept = known.filter(~pl.col(LABEL).fill_null(value=False)) if marks else known
    return rows.filter(pl.col("row_id").is_in(kept["row_id"].implode()))


def shown_rows(rows: pl.DataFrame) -> pl.DataFrame:
    """Takes as many rows as a map shows: all that are flagged, and others evenly spaced."""
    flagged, others = rows.filter("is_anomaly"), rows.filter(~pl.col("is_anomaly"))
    flagged = flagged.sort("score", "row_id", descending=[True, False]).head(SHOWN_ROWS // 2)
    return pl.concat([_thinned(others, SHOWN_ROWS - flagged.height), flagged])


def columns_of(bundle: ModelBundle) -> list[str]:
    """Names the columns of the latent table that a map needs."""
    return [
        "row_id",
        "event_time",
        "score",
        "is_anomaly",
        *(f"z_{index:03d}" for index in range(bundle.model.latent_dim)),
    ]


def _schema(bundle: ModelBundle) -> dict[str, pl.DataType]:
    own = {
        "row_id": pl.String(),
        "event_time": pl.Datetime("us", "UTC"),
        "score": pl.Float64(),
        "is_anomaly": pl.Boolean(),
    }
    return {name: own.get(name, pl.Float32()) for name in columns_of(bundle)}


def latents_in(rows: pl.DataFrame) -> Array:
    """Gives the latents of rows of the table, (n, latent_dim), float64."""
    return rows.select(pl.col("^z_[0-9]+$").cast(pl.Float64)).to_numpy()


def near(rows: pl.DataFrame, reference: pl.DataFrame, bundle: ModelBundle) -> dict[str, list[tuple[str, float]]]:
    """Names for each row the ordinary ones that are nearest in the latent space.

    Args:
        rows: Of the table.
        reference: Of `reference_rows`.
        bundle: Whose latents they are.

    Returns:
        By `row_id`: identities, and distances in units of the training rows' spread.
    """
    from sklearn.neighbors import NearestNeighbors

    if not rows.height or not reference.height:
        return {}
    white, others = (
        (latents_in(part) - bundle.mahalanobis.mean) @ bundle.mahalanobis.whitening for part in (rows, reference)
    )
    count = min(NEIGHBORS + 1, len(others))
    distances, at = NearestNeighbors(n_neighbors=count).fit(others).kneighbors(white)
    names = reference["row_id"].to_list()
    found: dict[str, list[tuple[str, float]]] = {}
    for row_id, far, nearest in zip(rows["row_id"], distances, at, strict=True):
        told = [(names[index], float(distance)) for index, distance in zip(nearest, far, strict=True)]
        found[row_id] = [(name, distance) for name, distance in told if name != row_id][:NEIGHBORS]
    return found


def _thinned(rows: pl.DataFrame, most: int) -> pl.DataFrame:
    places: Sequence[int] = np.linspace(0, rows.height - 1, min(max(most, 0), rows.height)).astype(int).tolist()
    return detach(rows[places])
