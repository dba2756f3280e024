"""Sizes that a configuration leaves out, chosen from the data: days of each part, alert budget and batch size.

With enough data they are the standard sizes. Less data gets proportionally smaller parts.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ae_pipeline.config.pipeline import PipelineConfig

VALIDATION_DAYS, CALIBRATION_DAYS, GATE_DAYS = 21, 42, 7
"""Standard numbers of days."""

STANDARD_DAYS = 112
"""Days with rows from which the standard numbers of days are used: they then leave 42 days or more to train on."""

BUDGET, BATCH_SIZE = 0.001, 512
"""Standard alert budget and batch size."""

MIN_ROWS = 20
"""Rows that a training needs."""

MIN_FITTED_ROWS, MIN_CALIBRATION_ROWS = 16, 3
"""Training and validation rows together, and calibration rows, that a training needs."""

RANKED_ROWS = 1000
"""Rows of a dataset without event time from which a hash assigns each row to a part. Fewer rows are ranked by it."""

_MIN_BATCH_SIZE, _STEPS_PER_EPOCH, _BATCH_BYTES = 8, 16, 256 << 20


@dataclass(frozen=True, kw_only=True)
class DayParts:
    """The number of days of each part.

    Attributes:
        train: Training days; 0 or less if the configured days leave none.
        validation: Validation days.
        calibration: Calibration days.
        gate: Days of the gate.
        by_row: Whether a hash divides the rows of all days instead, because there are too few days or rows.
    """

    train: int
    validation: int
    calibration: int
    gate: int
    by_row: bool = False


def choose_days(rows: Sequence[int], config: PipelineConfig, gate_days: int | None) -> DayParts:
    """Return how many days each part gets. Numbers in the configuration stay as they are.

    With fewer than `STANDARD_DAYS` days, the standard numbers shrink in proportion. If the alert budget is configured,
    the calibration gets more days where its rows need them. If three parts of whole days are impossible, rows are
    divided.

    Args:
        rows: Number of rows of each day that has rows, the oldest first.
        config: Configuration of the dataset.
        gate_days: Number of days of the gate; chosen if it is None.
    """
    training, count = config.training, len(rows)
    gate = gate_days if gate_days is not None else GATE_DAYS * min(count, STANDARD_DAYS) // STANDARD_DAYS
    scaled = min(count, training.window_days + gate, STANDARD_DAYS)
    validation = training.validation_days or max(1, VALIDATION_DAYS * scaled // STANDARD_DAYS)
    calibration = training.calibration_days or max(1, CALIBRATION_DAYS * scaled // STANDARD_DAYS)
    window = min(count - gate, training.window_days)
    if training.calibration_days is None:
        needed = budget_rows(config.alerts.budget) if config.alerts.budget else 0
        newest = list(rows)[: count - gate][::-1]
        while calibration < len(newest) and window - validation - calibration > window // 3:
            if sum(newest[:calibration]) >= needed:
                break
            calibration += 1
        calibration = max(1, min(calibration, window - validation - 1))
    if training.validation_days is None:
        validation = max(1, min(validation, window - calibration - 1))
    if gate_days is None:
        gate = max(0, min(gate, count - validation - calibration - 1))
    parts = DayParts(
        train=min(count - gate, training.window_days) - validation - calibration,
        validation=validation,
        calibration=calibration,
        gate=gate,
    )
    is_free = training.validation_days is None and training.calibration_days is None and not gate_days
    return parts if not is_free or _has_enough(rows, parts) else DayParts(**{**vars(parts), "by_row": True})


def _has_enough(rows: Sequence[int], parts: DayParts) -> bool:
    """Return whether each part has at least one day and enough rows."""
    newest = list(rows)[: len(rows) - parts.gate][::-1]
    calibration = sum(newest[: parts.calibration])
    fitted = sum(newest[parts.calibration : parts.calibration + parts.validation + max(parts.train, 0)])
    return parts.train > 0 and calibration >= MIN_CALIBRATION_ROWS and fitted >= MIN_FITTED_ROWS


def gate_size(rows: Mapping[str, int], config: PipelineConfig) -> int:
    """Return the number of newest days that belong to the gate, out of days with a number of rows each."""
    parts = choose_days([rows[day] for day in sorted(rows)], config, config.gate.days)
    return 0 if parts.by_row else parts.gate


def budget_rows(budget: float) -> int:
    """Return the number of calibration rows that an alert budget needs.

    >>> budget_rows(0.001)
    999
    """
    return math.ceil(round(1 / budget, 6)) - 1


def choose_budget(rows: int) -> float:
    """Return the alert budget for a number of calibration rows: the standard one, or the lowest with one digit.

    >>> choose_budget(5000), choose_budget(144), choose_budget(22)
    (0.001, 0.007, 0.05)
    """
    if rows >= budget_rows(BUDGET):
        return BUDGET
    lowest = 1 / (rows + 1)
    digits = -math.floor(math.log10(lowest))
    power = 10.0**digits
    return min(math.ceil(round(lowest * power, 9)) / power, 0.9)


def choose_batch_size(rows: int, width: int = 1) -> int:
    """Return the batch size for a number of training rows: the standard one, or less for 16 steps per epoch.

    A batch of large images takes at most 256 MiB.

    Args:
        rows: Number of training rows.
        width: Number of encoded values of a row.

    >>> choose_batch_size(300_000), choose_batch_size(1000), choose_batch_size(30)
    (512, 32, 8)
    >>> choose_batch_size(300_000, 64 * 64 * 3), choose_batch_size(300_000, 1024 * 1536 * 3)
    (512, 8)
    """
    fitting = 1 << max(0, (rows // _STEPS_PER_EPOCH).bit_length() - 1)
    in_memory = 1 << max(0, (_BATCH_BYTES // (4 * width)).bit_length() - 1)
    return min(BATCH_SIZE, max(_MIN_BATCH_SIZE, fitting), in_memory)
