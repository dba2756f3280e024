"""What a run prints: its own messages, a line each, without Dagster's bookkeeping."""

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import dagster as dg

T = TypeVar("T")

LOGGERS: dict[str, Any] = {"loggers": {"console": {"config": {}}}}
"""Run config that chooses our console; without it Dagster prints every event it stores."""


class _Line(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        facts = getattr(record, "dagster_meta", {}) or {}
        step = facts.get("step_key") or facts.get("op_name") or ""
        message = facts.get("orig_message") or record.getMessage()
        level = "" if record.levelno < logging.WARNING else f"{record.levelname}: "
        return (
            f"{time.strftime('%H:%M:%S', time.localtime(record.created))}  {step.split('__')[-1]:<16} {level}{message}"
        )


class _OwnMessages(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        facts = getattr(record, "dagster_meta", {}) or {}
        return facts.get("dagster_event") is None or record.levelno >= logging.ERROR


@dg.logger(
    config_schema={"log_level": dg.Field(str, default_value="INFO", is_required=False)},
    description="One short line a message.",
)
def line_logger(context: dg.InitLoggerContext) -> logging.Logger:
    """Prints messages of assets and errors of runs."""
    logger = logging.Logger("ae_pipeline", level=context.logger_config["log_level"])
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Line())
    handler.addFilter(_OwnMessages())
    logger.addHandler(handler)
    return logger


class Sparingly:
    """Logs the first and the last of many lines, and between them at most one every few seconds.

    Used as a context, since only at its end is it known which line was the last.
    """

    def __init__(self, log: Callable[[str], None], seconds: float = 2.0) -> None:
        self._log, self._seconds, self._last = log, seconds, -math.inf
        self._withheld: str | None = None

    def __call__(self, line: str) -> None:
        """Is told a line."""
        self._withheld = line
        if time.monotonic() - self._last >= self._seconds:
            self._tell()

    def __enter__(self) -> "Sparingly":
        return self

    def __exit__(self, *_: object) -> None:
        self._tell()

    def _tell(self) -> None:
        if self._withheld is not None:
            self._log(self._withheld)
        self._withheld, self._last = None, time.monotonic()


class Pace:
    """A progress callback that logs at most every few seconds, and nothing of work that takes less."""

    def __init__(self, log: Callable[[str], None], seconds: float = 3.0) -> None:
        self._log, self._seconds, self._last = log, seconds, time.monotonic()

    def __call__(self, done: int, total: int, what: str) -> None:
        """Is told that so many are done."""
        if done < total and time.monotonic() - self._last >= self._seconds:
            self._last = time.monotonic()
            self._log(f"{done:,} of {total:,} {what}")

    def over(self, items: Sequence[T], what: str) -> Iterator[T]:
        """Goes through items and tells of it."""
        for done, item in enumerate(items):
            self(done, len(items), what)
            yield item
