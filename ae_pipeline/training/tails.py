"""Fit the tails of a detector, and the counts of categories that its tails must not see."""

import dataclasses
from collections.abc import Iterable, Iterator

import polars as pl

from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.config.service import Evidence
from ae_pipeline.detector.detector import Detector
from ae_pipeline.encoding.blocks import BlockKind, Matrix
from ae_pipeline.encoding.encoder import Encoder
from ae_pipeline.encoding.table_encoder import TableEncoder
from ae_pipeline.scoring.cooccurrence import Cooccurrence, fit_cooccurrence
from ae_pipeline.scoring.tails import fit_tails

MIN_TAIL_ROWS = 500
"""Validation rows that the tails need; if there are fewer, they are fitted on training and validation rows."""

_SLICE_ROWS = 65_536
"""Rows that are encoded at once, so that memory stays bounded."""


def encoded_slices(encoder: Encoder, rows: pl.DataFrame) -> Iterator[Matrix]:
    """Return an iterator over all rows, encoded in slices."""
    return (encoder.encode(part) for part in rows.iter_slices(_SLICE_ROWS))


def fit_categories(encoder: Encoder, matrices: Iterable[Matrix], config: PipelineConfig) -> Cooccurrence | None:
    """Return the counts of combinations of categories in encoded training rows.

    Args:
        encoder: Encoder of the rows.
        matrices: Encoded training rows in batches.
        config: Configuration of the pipeline.

    Returns:
        The counts; None for images, if `alerts.evidence` leaves them out, or if no columns depend on each other.
    """
    if not isinstance(encoder, TableEncoder) or Evidence.CATEGORIES not in config.alerts.evidence:
        return None
    categorical = (block for block in encoder.blocks if block.kind == BlockKind.CATEGORICAL)
    return fit_cooccurrence(matrices, [(block.start, block.width) for block in categorical])


def counting(detector: Detector, batches: Iterable[pl.DataFrame]) -> Detector:
    """Return the detector with the categories of further rows counted too."""
    if detector.cooccurrence is None:
        return detector
    matrices = (matrix for rows in batches for matrix in encoded_slices(detector.encoder, rows))
    return dataclasses.replace(detector, cooccurrence=detector.cooccurrence.adding(matrices))


def leaving_one_out(detector: Detector) -> Detector:
    """Return the detector that measures rows that it counted as if each of them alone was not counted."""
    if detector.cooccurrence is None:
        return detector
    return dataclasses.replace(detector, cooccurrence=dataclasses.replace(detector.cooccurrence, excluded=1))


def with_tails(detector: Detector, train_rows: pl.DataFrame, validation_rows: pl.DataFrame) -> Detector:
    """Return the detector with tails fitted on the validation rows, and on the training rows if those are too few.

    The tails see the validation rows as new. After that, the categories of the validation rows are counted too, so
    that a combination that started lately is known.
    """
    rows = validation_rows
    if validation_rows.height < MIN_TAIL_ROWS:
        rows = pl.concat([train_rows, validation_rows], how="diagonal")
    tails = fit_tails(detector.latents_and_losses(rows)[1])
    return counting(dataclasses.replace(detector, tails=tails), [validation_rows])
