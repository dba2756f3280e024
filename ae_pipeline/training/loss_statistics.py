"""Fit the statistics that a loss scores with, such as the covariance of image residuals."""

import math

import polars as pl
import torch
from torch import Tensor

from ae_pipeline.encoding.encoder import Encoder
from ae_pipeline.encoding.table_encoder import TableEncoder
from ae_pipeline.models.base import AutoEncoder, AutoEncoderOutput, rows_at_once
from ae_pipeline.models.losses import ReconstructionLoss
from ae_pipeline.training.tails import MIN_TAIL_ROWS

_MAX_ROWS, _MAX_ELEMENTS = 2048, 2**24
"""Upper limits on the images, and on their values, up to which training images are added."""

_MAX_VALIDATION_ELEMENTS = 2**26
"""Upper limit on the values of validation images, whose reconstructions are in memory beside them."""


def statistics_rows(encoder: Encoder, train_rows: pl.DataFrame, validation: Tensor) -> Tensor:
    """Return the encoded rows to fit the statistics of a loss on: validation, and with few images training rows too.

    Of many large images, evenly spaced ones suffice: each has a million windows.

    Overlapping patches of a few images say too little about the covariance of residuals.

    Args:
        encoder: Encoder of the rows.
        train_rows: Features of the training rows.
        validation: Encoded validation rows, (n, …).
    """
    most = max(1, _MAX_VALIDATION_ELEMENTS // math.prod(encoder.shape))
    if not isinstance(encoder, TableEncoder) and len(validation) > most:
        return validation[:: -(-len(validation) // most)]
    limit = min(_MAX_ROWS, _MAX_ELEMENTS // math.prod(encoder.shape)) - len(validation)
    if isinstance(encoder, TableEncoder) or len(validation) >= MIN_TAIL_ROWS or limit <= 0:
        return validation
    rows = train_rows.gather_every(max(1, -(-train_rows.height // limit)))
    return torch.cat([torch.from_numpy(encoder.encode(rows)).to(validation.device), validation])


def fit_loss_statistics(model: AutoEncoder, loss: ReconstructionLoss, rows: Tensor) -> None:
    """Fit the statistics that a loss scores with, in place, on encoded rows, (n, …)."""
    with torch.inference_mode():
        outputs = [model(batch) for batch in rows.split(rows_at_once(rows.shape[1:]))]
        loss.fit_scores(AutoEncoderOutput(*(torch.cat(part) for part in zip(*outputs, strict=True))), rows)
