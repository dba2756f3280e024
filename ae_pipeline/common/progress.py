"""Progress in the log, at a bounded rate."""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


class ThrottledLogger:
    """Log the first and the last of many messages, and at most one every few seconds between them.

    It is a context manager: its exit logs the last message if it was withheld.

    Args:
        logger: Logger that receives the messages, at level INFO.
        seconds: Minimum time between two messages.
    """

    def __init__(self, logger: logging.Logger, seconds: float = 2.0) -> None:
        self._logger, self._seconds, self._last = logger, seconds, -math.inf
        self._withheld: str | None = None

    def info(self, message: str) -> None:
        """Log a message, or withhold it until the next message or the exit."""
        self._withheld = message
        if time.monotonic() - self._last >= self._seconds:
            self._flush()

    def __enter__(self) -> "ThrottledLogger":
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()

    def _flush(self) -> None:
        if self._withheld is not None:
            self._logger.info(self._withheld)
        self._withheld, self._last = None, time.monotonic()


class ProgressLogger:
    """Log the progress of long work every few seconds. Short work logs nothing.

    Args:
        logger: Logger that receives the messages, at level INFO.
        seconds: Minimum time between two messages, and from the start to the first message.
    """

    def __init__(self, logger: logging.Logger, seconds: float = 3.0) -> None:
        self._logger, self._seconds, self._last = logger, seconds, time.monotonic()

    def update(self, done: int, total: int, noun: str) -> None:
        """Log the progress, unless the last message is more recent than `seconds`.

        Args:
            done: Number of finished items.
            total: Number of all items.
            noun: Plural of what the items are, such as `files read`.
        """
        if done < total and time.monotonic() - self._last >= self._seconds:
            self._last = time.monotonic()
            self._logger.info(f"{done:,} of {total:,} {noun}")

    def over(self, items: Sequence[T], noun: str) -> Iterator[T]:
        """Yield items and log the progress."""
        for done, item in enumerate(items):
            self.update(done, len(items), noun)
            yield item
