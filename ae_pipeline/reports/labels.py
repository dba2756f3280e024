"""Holds scores against known anomalies, where the settings have a label."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.features.split import LABEL, Window, cut_window
from ae_pipeline.latents.read import PublishedDay
from ae_pipeline.reports.ranking import scored_and_known
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.parquet import read_facts
from ae_pipeline.storage.paths import ALL_ROWS, DatasetPaths

_UNSEEN = "that neither the network nor the tails of its losses were fitted on"


@dataclass(frozen=True)
class Measures:
    """How scores of some rows fare against their labels.

    Attributes:
        rows: Rows whose label is known.
        anomalies: Known anomalies among them.
        anomalies_flagged: Flagged ones among these.
        normal_flagged: Flagged ones among the others, which are known to be normal.
        auroc: Share of all pairs of an anomaly and a normal row in which the anomaly scores higher, a tie counting
            half; None where there are no such pairs.
        average_precision: Precision at each anomaly as one goes down the ranking, its mean; None likewise.
    """

    rows: int
    anomalies: int
    anomalies_flagged: int
    normal_flagged: int
    auroc: float | None
    average_precision: float | None

    @property
    def normal(self) -> int:
        """Rows known to be normal."""
        return self.rows - self.anomalies


@dataclass(frozen=True)
class Labels:
    """What the known anomalies say of the published scores.

    Attributes:
        label: The expression that is true for known anomalies.
        only_normal: Whether the training has left known anomalies out.
        unknown: Published rows of which the label says nothing.
        all_rows: Over all published rows with a known label.
        held_out: Over those that the model was not fitted on; None where it cannot be told which these are.
        held_out_is: Which rows these are, or why it cannot be told.
    """

    label: str
    only_normal: bool
    unknown: int
    all_rows: Measures
    held_out: Measures | None
    held_out_is: str


def measure(
    scores: npt.NDArray[np.float64], anomalies: npt.NDArray[np.bool_], flagged: npt.NDArray[np.bool_]
) -> Measures:
    """Measures the scores of n rows whose label is known."""
    total, normal = int(anomalies.sum()), int((~anomalies).sum())
    counts = (len(scores), total, int((anomalies & flagged).sum()), int((~anomalies & flagged).sum()))
    if not total or not normal:
        return Measures(*counts, None, None)
    # The statistic of Mann and Whitney: equal scores share the mean of their ranks.
    ranks = pl.Series(scores).rank("average").to_numpy()
    auroc = (ranks[anomalies].sum() - total * (total + 1) / 2) / (total * normal)
    order = np.argsort(-scores)
    falling, hits = scores[order], np.cumsum(anomalies[order])
    # Rows of equal scores enter together: there is no threshold between them.
    ends = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))
    precision = hits[ends] / (ends + 1)
    average = (np.diff(hits[ends], prepend=0) * precision).sum() / total
    return Measures(*counts, float(auroc), float(average))


def measure_labels(files: Mapping[str, PublishedDay], dataset: Dataset, bundle: ModelBundle) -> Labels | None:
    """Holds the scores of all published rows against their labels; None where the settings have no label.

    Rows are read day by day; what stays are a score and three bits of each.

    Args:
        files: The published days.
        dataset: Configuration and paths of the dataset.
        bundle: The model that the table was scored with.
    """
    config, paths = dataset.config, dataset.paths
    if config.label is None:
        return None
    window = bundle.window
    seen, message = _seen_rows(bundle, paths) if ALL_ROWS in window.train else (None, _all_but_days(window))
    fitted_days = {*window.train, *window.validation} - {ALL_ROWS}
    parts = [pl.DataFrame(schema={"score": pl.Float64, "is_anomaly": pl.Boolean, LABEL: pl.Boolean, "new": pl.Boolean})]
    for day in sorted(files):
        rows = scored_and_known(files[day], paths)
        unseen = ~rows["row_id"].is_in(seen.implode()) if seen is not None else pl.lit(day not in fitted_days)
        parts.append(rows.select("score", "is_anomaly", LABEL, unseen.alias("new")))
    rows = pl.concat(parts)
    known = rows.drop_nulls(LABEL)
    told = ALL_ROWS not in window.train or seen is not None
    held_out = _measure(known.filter("new")) if told else None
    unknown = rows.height - known.height
    return Labels(config.label, window.only_normal, unknown, _measure(known), held_out, message)


def _measure(rows: pl.DataFrame) -> Measures:
    return measure(*(rows[name].to_numpy() for name in ("score", LABEL, "is_anomaly")))


def _all_but_days(window: Window) -> str:
    return f"rows of days {_UNSEEN}: all but {window.train[0]} to {window.validation[-1]}"


def _seen_rows(bundle: ModelBundle, paths: DatasetPaths) -> tuple[pl.Series | None, str]:
    """Names the rows without event time that the model was fitted on, where they are as the training found them."""
    content = {ALL_ROWS: read_facts(paths.features(ALL_ROWS)).get("content_hash", "")}
    if cut_window(content, bundle.config).fingerprint != bundle.window.fingerprint:
        return None, "rows have changed since the training, so it cannot be told which of them the model has seen"
    seen = pl.concat([bundle.window.rows(part, paths, ["row_id"])["row_id"] for part in ("train", "validation")])
    return seen, f"rows {_UNSEEN}: all but those of its training and validation parts"
