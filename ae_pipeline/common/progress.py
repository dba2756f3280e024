"""Progress in the log, at a bounded rate."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


class ThrottledLogger:
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

    def __enter__(self) -> "ThrottledLogger":
        return self

    def __exit__(self, *_: object) -> None:
        self._tell()

    def _tell(self) -> None:
        if self._withheld is not None:
            self._log(self._withheld)
        self._withheld, self._last = None, time.monotonic()


class ProgressLogger:
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
