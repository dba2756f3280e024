"""Messages of long work are logged at a bounded rate."""

import logging

import pytest

from ae_pipeline.common.errors import TrainingError
from ae_pipeline.common.progress import ProgressLogger, ThrottledLogger

logger = logging.getLogger("ae_pipeline.test")


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Clock:
    caplog.set_level(logging.INFO, "ae_pipeline.test")
    clock = Clock()
    monkeypatch.setattr("ae_pipeline.common.progress.time.monotonic", clock)
    return clock


@pytest.mark.parametrize(
    ("count", "step", "logged"),
    [
        (0, 1.0, []),
        (1, 1.0, [0]),
        (2, 0.0, [0, 1]),
        (7, 0.0, [0, 6]),
        (7, 0.7, [0, 3, 6]),
        (8, 0.7, [0, 3, 6, 7]),
        (4, 2.0, [0, 1, 2, 3]),
    ],
)
def test_throttled_logger_keeps_first_and_last_message(
    clock: Clock, caplog: pytest.LogCaptureFixture, count: int, step: float, logged: list[int]
) -> None:
    with ThrottledLogger(logger) as throttled:
        for number in range(count):
            throttled.info(str(number))
            clock.now += step
    assert caplog.messages == [str(number) for number in logged]


def test_throttled_logger_flushes_before_an_error(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        with ThrottledLogger(logger) as throttled:
            for epoch in range(3):
                throttled.info(f"epoch {epoch}")
            raise TrainingError("the loss is not finite; lower learning_rate")

    with pytest.raises(TrainingError, match="not finite"):
        fail()
    assert caplog.messages == ["epoch 0", "epoch 2"]


def test_progress_is_logged_every_three_seconds(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    for _ in ProgressLogger(logger).over(range(10), "files read"):
        clock.now += 1.0
    assert caplog.messages == ["3 of 10 files read", "6 of 10 files read", "9 of 10 files read"]


def test_short_work_logs_no_progress(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    assert list(ProgressLogger(logger).over(range(5), "files read")) == [0, 1, 2, 3, 4]
    assert caplog.messages == []
