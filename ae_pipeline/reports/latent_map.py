"""Project rows onto two directions of the latent space, and find their nearest normal rows."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from ae_pipeline.common.errors import TrainingError
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.features.split import LABEL
from ae_pipeline.latents.read import PublishedDay, published_day
from ae_pipeline.storage.parquet import detach, whole
from ae_pipeline.storage.paths import ALL_ROWS, DatasetPaths

Array = npt.NDArray[np.float64]

REFERENCE_ROWS, SHOWN_ROWS = 4000, 1000
"""Maximum number of reference rows, and of rows of each kind that one map shows."""

NEIGHBORS = 3
"""Number of nearest normal rows of each row."""


def projection(bundle: ModelBundle) -> Array:
    """Return the two directions of largest variance of the training latents, scaled to unit variance.

    The directions belong to the model, so the maps of all days have the same axes.

    Returns:
        Array of shape (latent_dim, 2), or (latent_dim, 1) with one latent. The first column has the largest variance.
    """
    # `eigh` sorts by ascending variance. The sign is arbitrary, so the largest entry is made positive.
    widest = bundle.mahalanobis.whitening[:, ::-1][:, :2]
    signs = np.sign(widest[np.abs(widest).argmax(axis=0), np.arange(widest.shape[1])])
    directions: Array = widest * signs
    return directions


def project(latents: Array, bundle: ModelBundle) -> Array:
    """Return the coordinates on the map, (n, 2), of latents, (n, latent_dim)."""
    coordinates: Array = (latents - bundle.mahalanobis.mean) @ projection(bundle)
    if coordinates.shape[1] == 1:
        return np.column_stack([coordinates, np.zeros(len(coordinates))])
    return coordinates


def reference_rows(files: Mapping[str, PublishedDay], paths: DatasetPaths, bundle: ModelBundle) -> pl.DataFrame:
    """Read up to `REFERENCE_ROWS` evenly spaced calibration rows that are neither flagged nor known anomalies.

    Args:
        files: Published days.
        paths: Paths of the dataset.
        bundle: Model that scored the published table.
    """
    days = [files[day] for day in bundle.window.calibration if day in files]
    each = max(1, REFERENCE_ROWS // max(len(days), 1))
    parts = [_thinned(_unflagged(day, paths, bundle), each) for day in days]
    return pl.concat(parts) if parts else pl.DataFrame(schema=_schema(bundle))


def _unflagged(day: PublishedDay, paths: DatasetPaths, bundle: ModelBundle) -> pl.DataFrame:
    rows = published_day(day, paths, columns_of(bundle)).filter(~pl.col("is_anomaly"))
    features = pl.scan_parquet(whole(paths.features(day.day)), glob=False)
    marks = [LABEL] if LABEL in features.collect_schema() else []
    if day.day == ALL_ROWS:
        try:
            known = bundle.window.rows("calibration", paths, ["row_id", *marks], most=2 * REFERENCE_ROWS)
        except TrainingError:  # the features no longer contain these rows
            return rows.clear()
    elif marks:
        known = features.select("row_id", *marks).collect()
    else:
        return rows
    kept = known.filter(~pl.col(LABEL).fill_null(value=False)) if marks else known
    return rows.filter(pl.col("row_id").is_in(kept["row_id"].implode()))


def shown_rows(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the rows that a map shows: the flagged ones, and evenly spaced others, at most `SHOWN_ROWS`."""
    flagged, others = rows.filter("is_anomaly"), rows.filter(~pl.col("is_anomaly"))
    flagged = flagged.sort("score", "row_id", descending=[True, False]).head(SHOWN_ROWS // 2)
    return pl.concat([_thinned(others, SHOWN_ROWS - flagged.height), flagged])


def columns_of(bundle: ModelBundle) -> list[str]:
    """Return the columns of the latent table that a map needs."""
    return [
        "row_id",
        "event_time",
        "score",
        "is_anomaly",
        *(f"z_{index:03d}" for index in range(bundle.model.latent_dim)),
    ]


def _schema(bundle: ModelBundle) -> dict[str, pl.DataType]:
    types = {
        "row_id": pl.String(),
        "event_time": pl.Datetime("us", "UTC"),
        "score": pl.Float64(),
        "is_anomaly": pl.Boolean(),
    }
    return {name: types.get(name, pl.Float32()) for name in columns_of(bundle)}


def latents_in(rows: pl.DataFrame) -> Array:
    """Return the latents of n rows of the published table, (n, latent_dim), float64."""
    return rows.select(pl.col("^z_[0-9]+$").cast(pl.Float64)).to_numpy()


def nearest_neighbors(
    rows: pl.DataFrame, reference: pl.DataFrame, bundle: ModelBundle
) -> dict[str, list[tuple[str, float]]]:
    """Return the k nearest neighbors of each row among the reference rows, k = `NEIGHBORS`.

    Args:
        rows: Rows of the published table.
        reference: Rows of `reference_rows`.
        bundle: Model that scored the published table.

    Returns:
        For each `row_id`: identities of the neighbors and their Mahalanobis distances. A row is not its own neighbor.
    """
    from sklearn.neighbors import NearestNeighbors

    if not rows.height or not reference.height:
        return {}
    whitened, reference_latents = (
        (latents_in(part) - bundle.mahalanobis.mean) @ bundle.mahalanobis.whitening for part in (rows, reference)
    )
    # One more than needed, because a reference row is its own nearest neighbor.
    count = min(NEIGHBORS + 1, len(reference_latents))
    distances, indices = NearestNeighbors(n_neighbors=count).fit(reference_latents).kneighbors(whitened)
    names = reference["row_id"].to_list()
    neighbors: dict[str, list[tuple[str, float]]] = {}
    for row_id, row_distances, row_indices in zip(rows["row_id"], distances, indices, strict=True):
        nearest = [(names[i], float(distance)) for i, distance in zip(row_indices, row_distances, strict=True)]
        neighbors[row_id] = [(name, distance) for name, distance in nearest if name != row_id][:NEIGHBORS]
    return neighbors


def _thinned(rows: pl.DataFrame, max_rows: int) -> pl.DataFrame:
    """Return at most `max_rows` evenly spaced rows."""
    count = min(max(max_rows, 0), rows.height)
    indices: Sequence[int] = np.linspace(0, rows.height - 1, count).astype(int).tolist()
    return detach(rows[indices])
