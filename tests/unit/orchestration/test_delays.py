"""When unfinished work is requested again."""

import datetime as dt
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import dagster as dg
import pytest

from ae_pipeline.orchestration import runs

HOUR = 3600.0


def attempts_at(*starts: float) -> Sequence[dg.RunRecord]:
    """Return records of runs that took a second, the newest first, for seconds before now."""
    now = time.time()
    records = [
        SimpleNamespace(
            create_timestamp=dt.datetime.fromtimestamp(now - start, dt.UTC),
            end_time=now - start + 1,
            dagster_run=SimpleNamespace(run_id="abc", status=dg.DagsterRunStatus.SUCCESS),
        )
        for start in sorted(starts)
    ]
    return cast("Sequence[dg.RunRecord]", records)


@pytest.mark.parametrize(
    ("starts", "seconds"),
    [
        ((1,), 60),
        ((1, 100, 300), 240),
        ((1, HOUR, 2 * HOUR, 3.5 * HOUR), 480),
        ((1, 3 * HOUR, 4 * HOUR), 60),
        ((1, 100, 9 * HOUR, 10 * HOUR), 120),
        ((1, *(HOUR * count for count in range(1, 15))), 3600),
    ],
)
def test_the_delay_doubles_with_each_attempt_of_the_same_streak(starts: Sequence[float], seconds: float) -> None:
    message = runs._delay_message(attempts_at(*starts), "rebuild")
    expected = dt.datetime.fromtimestamp(time.time() + seconds, dt.UTC)
    assert message is not None
    assert any(f"next attempt at {expected - dt.timedelta(seconds=late):%H:%M:%S} UTC" in message for late in (0, 1, 2))


def test_the_first_repetition_after_a_pause_waits_one_minute() -> None:
    assert runs._delay_message(attempts_at(61, 3 * HOUR, 4 * HOUR), "rebuild") is None
