"""Split a text file into records: where each one starts, and which ones have a quote that is not closed.

A value may be quoted, and a quoted value may hold line breaks, separators and doubled quotes, as in RFC 4180. A quote
in the middle of a value that does not start with one is an ordinary character. Spaces may follow a closing quote.

A quoted value ends at the first quote that is not doubled and that a separator or a line break follows. If a quote
comes first that looks like the start of another value (a separator or a line break precedes it, none follows it), or if
no quote comes at all, then the value was never closed. Only the lines up to the one with the open quote are broken, and
the next line is a new record. Other quotes in between should be doubled; they come in pairs. The whole record is then
broken, so that no line of a quoted value is taken for a row.
"""

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_QUOTE, _LF, _CR = b'"\n\r'
_MIN_BLOCK, _MAX_BLOCK = 64, 2**20
_MAX_BURST = 4096

OPEN_QUOTE = "a quote is not closed; close it, or double each quote inside a quoted value"
STRAY_QUOTE = "a quote inside a quoted value is not doubled; double it"

Positions = npt.NDArray[np.int64]


class Broken(NamedTuple):
    """A record that cannot be read.

    Attributes:
        start: Index of its first byte.
        end: Index after its last byte.
        rule: Rule that it violates.
        reason: Reason with the remedy.
    """

    start: int
    end: int
    rule: str
    reason: str


class _Record(NamedTuple):
    end: int
    quotes: list[int]
    problem: str | None


@dataclass(frozen=True)
class RecordScanner:
    """Finds the records of a text.

    Args:
        data: The text in an encoding that keeps ASCII, such as UTF-8.
        separator: Character between values.

    Attributes:
        undecided: Starts of the broken records that more text could close, as far as they were read.
    """

    data: bytes
    separator: bytes
    undecided: list[int] = field(default_factory=list, init=False)

    @cached_property
    def _bytes(self) -> npt.NDArray[np.uint8]:
        return np.frombuffer(self.data, np.uint8)

    @cached_property
    def breaks(self) -> Positions:
        """Index of the last byte of each line break: LF, CR LF or CR, inside of quoted values or not."""
        breaks = np.flatnonzero(self._bytes == _LF)
        if b"\r" in self.data:
            returns = np.flatnonzero(self._bytes == _CR)
            alone = returns[(self._byte(returns + 1) != _LF) | (returns + 1 == len(self.data))]
            breaks = np.sort(np.concatenate([breaks, alone]))
        return breaks

    @cached_property
    def _quotes(self) -> Positions:
        return np.flatnonzero(self._bytes == _QUOTE)

    def _byte(self, positions: Positions) -> npt.NDArray[np.uint8]:
        """Return bytes. Before the first and after the last byte, it is a line break."""
        size = len(self.data)
        values = self._bytes[np.clip(positions, 0, size - 1)]
        return np.where((positions < 0) | (positions >= size), np.uint8(_LF), values)

    def _is_edge(self, positions: Positions) -> npt.NDArray[np.bool_]:
        values = self._byte(positions)
        is_edge: npt.NDArray[np.bool_] = (values == ord(self.separator)) | (values == _LF) | (values == _CR)
        return is_edge

    @cached_property
    def _can_open(self) -> npt.NDArray[np.bool_]:
        return self._is_edge(self._quotes - 1)

    @cached_property
    def _can_close(self) -> npt.NDArray[np.bool_]:
        return self._is_edge(self._quotes + 1)

    @cached_property
    def _touches_next(self) -> npt.NDArray[np.bool_]:
        return np.append(np.diff(self._quotes) == 1, False)[: len(self._quotes)]

    @cached_property
    def _resolution(self) -> tuple[Positions, Positions, Positions]:
        """For each run of quotes: its first quote, the next odd run that closes or opens a value, and odd runs before.

        Inside a quoted value, an even run of quotes is text. The last quote of an odd run is not doubled.
        """
        starts = np.flatnonzero(~np.insert(self._touches_next[:-1], 0, False))
        ends = np.append(starts[1:], len(self._quotes)) - 1
        is_odd = (ends - starts) % 2 == 0
        resolves = is_odd & (self._can_open[starts] | self._closes(ends))
        indices = np.where(resolves, np.arange(len(starts)), len(starts))
        following = np.minimum.accumulate(indices[::-1])[::-1]
        return np.append(starts, len(self._quotes)), np.append(following, len(starts)), np.append(0, np.cumsum(is_odd))

    def _closes(self, indices: Positions) -> npt.NDArray[np.bool_]:
        closes = self._can_close[indices].copy()
        for at in np.flatnonzero(self._byte(self._quotes[indices] + 1) == ord(" ")):
            closes[at] = self._end_of_close(int(self._quotes[indices[at]])) is not None
        return closes

    @cached_property
    def _after_close(self) -> re.Pattern[bytes]:
        return re.compile(b" *(?=[\r\n" + re.escape(self.separator) + rb"]|\Z)")

    def _end_of_close(self, quote: int) -> int | None:
        """Return the index after a closing quote and its spaces, or None if the quote does not close a value."""
        match = self._after_close.match(self.data, quote + 1)
        return match.end() if match else None

    @property
    def share_of_edge_quotes(self) -> float:
        """Share of the quotes that are doubled, or next to a separator or a line break."""
        if not len(self._quotes):
            return 1.0
        touches_previous = np.insert(self._touches_next[:-1], 0, False)
        return float((self._can_open | self._can_close | self._touches_next | touches_previous).mean())

    def _line_end(self, position: int) -> int:
        """Return the index after the line that a byte is in."""
        index = int(np.searchsorted(self.breaks, position))
        return int(self.breaks[index]) + 1 if index < len(self.breaks) else len(self.data)

    def _close(self, index: int, start: int) -> tuple[int | None, bool]:
        """Return the quote that closes the value that a quote opens, and whether a quote between them is not doubled.

        Args:
            index: Index of the opening quote among all quotes.
            start: Start of its record.

        Returns:
            Index of the closing quote in the data, or None if the value is never closed.
        """
        run_starts, following, odd_before = self._resolution
        run = int(np.searchsorted(run_starts, index, side="right")) - 1
        last = int(run_starts[run + 1]) - 1  # the last quote of the run that the opening one is in
        strays = 0
        if (last - index) % 2 == 1:  # it is not doubled
            if self._end_of_close(int(self._quotes[last])) is not None:
                return int(self._quotes[last]), False
            strays = 1
        run, first = run + 1, None
        while (target := int(following[run])) < len(run_starts) - 1:
            position = int(self._quotes[run_starts[target + 1] - 1])
            if self._end_of_close(position) is None:  # it opens another value
                return first, True
            strays += int(odd_before[target] - odd_before[run])
            if strays % 2 == 0:
                return position, strays > 0
            first = position if first is None else first
            run, strays = target + 1, strays + 1  # quotes that should be doubled come in pairs
        self.undecided.append(start)
        return first, True

    def record(self, start: int) -> _Record:
        """Return the record that starts at an index, byte by byte as a reader would.

        Returns:
            Index after the record, its opening and closing quotes, and the problem if it is broken.
        """
        position, line_end, quotes, problem = start, -1, list[int](), None
        while True:
            if self.data.startswith(b'"', position):
                close, is_stray = self._close(int(np.searchsorted(self._quotes, position)), start)
                if close is None:
                    return _Record(self._line_end(position), [], OPEN_QUOTE)
                problem = STRAY_QUOTE if is_stray else problem
                quotes += [position, close]
                end = self._end_of_close(close)
                position = close + 1 if end is None else end
            line_end = self._line_end(position) if position >= line_end else line_end
            index = self.data.find(self.separator + b'"', position, line_end)
            if index < 0:
                return _Record(line_end, quotes, problem)
            position = index + 1

    def structure(self, start: int = 0) -> tuple[Positions, list[Broken]]:
        """Return the quotes that open and close values, alternating, and the records that are broken.

        Blocks of quotes are checked at once. Only records with unusual quotes are read byte by byte.

        Args:
            start: Index at which a record starts.
        """
        count = len(self._quotes)
        first = checked = int(np.searchsorted(self._quotes, start))
        block, burst = _MIN_BLOCK, 1
        parts: list[Positions] = []
        broken: list[Broken] = []
        while checked < count:
            problem = self._first_problem(first, checked, checked + block)
            if problem is None:
                checked, block, burst = checked + block, min(block * 2, _MAX_BLOCK), 1
                continue
            start = self._record_start(first, problem, start)
            parts.append(self._quotes[first : np.searchsorted(self._quotes, start)])
            for _ in range(burst):
                record = self.record(start)
                if record.problem:
                    broken.append(Broken(start, record.end, "quote", record.problem))
                else:
                    parts.append(np.array(record.quotes, dtype=np.int64))
                start = record.end
                first = checked = int(np.searchsorted(self._quotes, start))
                if first == count:
                    break
                start = max(start, self._line_start(int(self._quotes[first])))
            block, burst = _MIN_BLOCK, min(burst * 2, _MAX_BURST)
        return np.concatenate([np.empty(0, np.int64), *parts, self._quotes[first:]]), broken

    def _first_problem(self, first: int, start: int, end: int) -> int | None:
        """Return the first of some quotes that neither opens nor closes a value nor is doubled, or None.

        Args:
            first: Index of a quote that is outside of values. All quotes up to `start` are as they should be.
            start: Index of the first quote to check; an even number of quotes after `first`.
            end: Index after the last quote to check, an even number of quotes after `start`.
        """
        touches = self._touches_next[start:end]
        opens = self._can_open[start:end][::2].copy()
        opens[1:] |= touches[1:-1:2][: len(opens) - 1]
        opens[0] |= start > first and self._touches_next[start - 1]
        closes = self._can_close[start:end][1::2] | touches[1::2]
        problems = [2 * np.flatnonzero(~opens)[:1], 2 * np.flatnonzero(~closes)[:1] + 1]
        if len(touches) % 2:  # the last value is not closed
            problems.append(np.array([len(touches) - 1]))
        positions = np.concatenate(problems)
        return start + int(positions.min()) if len(positions) else None

    def _record_start(self, first: int, index: int, start: int) -> int:
        """Return the start of the record that a quote is in.

        Args:
            first: Index of a quote that is outside of values. All quotes up to `index` are as they should be.
            index: Index of the quote.
            start: Start of a record before the quote `first`, or of its own.
        """
        while index > first:
            opening = index - (index - first) % 2
            line = self._line_start(int(self._quotes[opening]))
            preceding = int(np.searchsorted(self._quotes, line))
            if preceding <= first or (preceding - first) % 2 == 0:  # the line break before the line is in no value
                return max(line, start)
            index = preceding - 1
        return max(self._line_start(int(self._quotes[first])), start)

    def _line_start(self, position: int) -> int:
        index = int(np.searchsorted(self.breaks, position))
        return int(self.breaks[index - 1]) + 1 if index else 0
