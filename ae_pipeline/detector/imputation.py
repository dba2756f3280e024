"""Values that fit the rest of a row, in place of its own: of a column, and of the event time."""

from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch.nn.functional import one_hot

from ae_pipeline.config.service import Evidence
from ae_pipeline.detector.detector import Detector
from ae_pipeline.encoding.blocks import BlockKind
from ae_pipeline.encoding.event_time import EVENT_TIME
from ae_pipeline.encoding.table_encoder import TableEncoder
from ae_pipeline.encoding.values import column_numbers, is_known_hour
from ae_pipeline.models.base import AutoEncoderOutput

Array = npt.NDArray[np.float64]

_PASSES = 4
"""Forward passes that move an imputed column from its mean to the value that fits the rest of the row."""

_MAX_TRIED = 16
"""Most likely categories of a column that are tried in a row with a rare combination."""

_HOURS = (*(f"{hours}h" for hours in range(-12, 0)), *(f"{hours}h" for hours in range(1, 12)))
_DAYS = ("-3d", "-2d", "-1d", "1d", "2d", "3d")
"""Distances from an event time to the times that are tried instead: all hours of the day, and all weekdays."""


def impute(
    detector: Detector, x: torch.Tensor, mask: npt.NDArray[np.bool_], is_rare: npt.NDArray[np.bool_]
) -> tuple[AutoEncoderOutput, torch.Tensor]:
    """Replace a column by the value that fits the rest of each row.

    The column starts at its mean over the training rows. Then each output of the network becomes its next input, as
    Rezende et al. (2014) impute missing values. The mean alone rarely fits the row and would distort the other columns.
    Categories end as the most likely one, because a row has exactly one. In a row whose combination of categories is
    rare, they end as the one of the most likely that leaves the least surprisal. The network alone does not know which
    combinations occur.

    Args:
        detector: Fitted detector of a table.
        x: Encoded rows, (n, width).
        mask: Inputs to impute, (n, width).
        is_rare: Rows whose combination of categories is rare, (n,).

    Returns:
        Output of the network for the imputed rows, and the imputed rows.
    """
    is_replaced = torch.from_numpy(mask).to(x.device)
    imputed = torch.where(is_replaced, torch.from_numpy(detector.mean_input).to(x), x)
    for _ in range(_PASSES):
        output = detector.network.forward(imputed).output
        imputed = torch.where(is_replaced, detector.network.double_loss.to_scale(output), imputed)
    likely = torch.where(is_replaced, _most_likely(cast("TableEncoder", detector.encoder), imputed), imputed)
    if is_rare.any():
        _choose_categories(detector, imputed, likely, mask & is_rare[:, np.newaxis])
    return detector.network.forward(likely), likely


def _choose_categories(
    detector: Detector, probabilities: torch.Tensor, rows: torch.Tensor, mask: npt.NDArray[np.bool_]
) -> None:
    """Replace categories in `rows`, in place, by the one of the most likely that leaves the least surprisal.

    Args:
        detector: Fitted detector of a table.
        probabilities: Encoded rows with probabilities of the categories, (n, width).
        rows: Encoded rows, (n, width).
        mask: Inputs to replace, (n, width).
    """
    is_counted = counted_parts(detector)
    for block in cast("TableEncoder", detector.encoder).blocks:
        chosen = np.flatnonzero(mask[:, block.start])
        if block.kind != BlockKind.CATEGORICAL or not len(chosen):
            continue
        likeliest = probabilities[chosen, block.start : block.stop].argsort(1, descending=True)[:, :_MAX_TRIED]
        tried = rows[chosen].repeat_interleave(likeliest.shape[1], dim=0)
        tried[:, block.start : block.stop] = one_hot(likeliest.flatten(), block.width).to(rows)
        surprisal = detector.surprisal(detector.network.forward(tried), tried)
        best = surprisal[:, is_counted].sum(axis=1).reshape(likeliest.shape).argmin(axis=1)
        rows[chosen] = tried[np.arange(len(chosen)) * likeliest.shape[1] + best]


def _most_likely(encoder: TableEncoder, x: torch.Tensor) -> torch.Tensor:
    """Replace the probabilities of categories and of binary columns by the most likely value."""
    most_likely = x.clone()
    for block in encoder.blocks:
        values = x[:, block.start : block.stop]
        if block.kind == BlockKind.CATEGORICAL:
            most_likely[:, block.start : block.stop] = one_hot(values.argmax(1), block.width).to(x)
        elif block.kind == BlockKind.BINARY:
            most_likely[:, block.start : block.stop] = values.round().clamp(0, 1)
    return most_likely


def counted_parts(detector: Detector) -> npt.NDArray[np.bool_]:
    """Return the parts of a score whose surprisal an imputation is to remove, (parts,).

    The total loss of the row does not count, because it sums what the columns count already.
    """
    counted: npt.NDArray[np.bool_] = np.arange(detector.part_count) != detector.part_index(Evidence.ROW)
    return counted


class Moved(NamedTuple):
    """Rows whose event time is moved to where it fits the rest of the row best.

    Attributes:
        removed: Surprisal that this removes, nats, (n,).
        x: The rows with the moved event time, encoded, (n, width).
        times: The moved event times.
    """

    removed: Array
    x: torch.Tensor
    times: pl.Series


def move_event_time(detector: Detector, rows: pl.DataFrame, x: torch.Tensor, surprisal: Array) -> Moved:
    """Return rows with the event time, of some others, that removes the most surprisal of each.

    A model that reads the event time as context does not reconstruct it. So each row is tried some hours earlier and
    later, and on other days of the week. Times at an hour that the training rows do not have are not tried: the encoder
    takes them for the nearest known hour. What the best of k times removes is corrected by ln k.

    Args:
        detector: Fitted detector of a table that reads the event time as context.
        rows: Features of n rows.
        x: The same rows encoded, (n, width).
        surprisal: Surprisal of each part, (n, parts).
    """
    encoder = cast("TableEncoder", detector.encoder)
    parts = {block.part for block in encoder.context_blocks}
    shifts = [*(_HOURS if "time_of_day" in parts else ()), *(_DAYS if "weekday" in parts else ())]
    hours = encoder.context[0].hours
    of_context = encoder.model_copy(update={"columns": (), "blocks": ()})
    is_counted = counted_parts(detector)
    times, moved, removed = [], [], np.full((len(x), len(shifts)), -np.inf)
    for index, shift in enumerate(shifts):
        times.append(rows[EVENT_TIME].dt.offset_by(shift))
        context = of_context.encode(times[-1].to_frame())[:, encoder.target_width :]
        moved.append(torch.cat([x[:, : encoder.target_width], torch.from_numpy(context).to(x)], 1))
        decrease = surprisal - detector.surprisal(detector.network.forward(moved[-1]), moved[-1])
        is_tried = is_known_hour(column_numbers(times[-1], encoder.timezone), hours)
        removed[is_tried, index] = decrease[:, is_counted].sum(axis=1)[is_tried]
    best = removed.argmax(axis=1)
    return Moved(
        removed=removed.max(axis=1) - np.log(np.isfinite(removed).sum(axis=1)),
        x=torch.stack([moved[index][row] for row, index in enumerate(best)]),
        times=pl.Series(EVENT_TIME, [times[index][row] for row, index in enumerate(best)]),
    )
