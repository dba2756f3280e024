"""Dialects of text files: find the separator, and check what the schema contract allows."""

import csv
import io
from collections.abc import Sequence

from ae_pipeline.common.text import pluralize
from ae_pipeline.config.source import Dialect, Separator, SourceConfig
from ae_pipeline.ingestion.readers.records import RecordScanner
from ae_pipeline.ingestion.rows import UnreadableFileError

SEPARATORS: tuple[Separator, ...] = (",", ";", "\t", "|")

_HEAD_BYTES, _HEAD_ROWS = 1 << 16, 200
"""Size of the head of a file in which its separator is found."""

_MIN_SHARE = 0.5
"""Minimum share of the first rows that must have as many values as the header has columns."""


def check_dialect(dialect: Dialect, dialects: Sequence[Dialect], source: SourceConfig) -> None:
    """Check that the schema contract allows a dialect. What the YAML declares is always allowed.

    Raises:
        UnreadableFileError: The file has another dialect.
    """
    allowed = [(source.separator or each.separator, source.encoding or each.encoding) for each in dialects or [dialect]]
    if (dialect.separator, dialect.encoding) not in allowed:
        known = " or ".join(str(each) for each in dialects)
        raise UnreadableFileError(
            f"the file has {dialect}, but the schema contract says {known}; land it again in that form, or add "
            f"'{{separator: {dialect.separator!r}, encoding: {dialect.encoding}}}' to dialects in the contract"
        )


def find_separator(kind: str, text: bytes, allowed: Sequence[Separator] = ()) -> Separator:
    """Return the separator that splits the header and most of the first rows into the same number of values.

    Args:
        kind: Suffix of the file. The values of `.tsv` files are separated by tabs, if that fits.
        text: The text in UTF-8.
        allowed: Separators of the schema contract, which are right if they fit.

    Raises:
        UnreadableFileError: Two separators fit equally well.
    """
    head = text[:_HEAD_BYTES]
    if len(text) > _HEAD_BYTES:
        head = head[: max(head.rfind(b"\n"), head.rfind(b"\r")) + 1] or head
    lines = head.decode("utf-8", errors="replace")
    fits = {separator: fit for separator in SEPARATORS if (fit := _fit(lines, separator)) is not None}
    fits = {separator: fit for separator, fit in fits.items() if fit[0] >= _MIN_SHARE} or fits
    preferred: dict[Separator, tuple[float, float, int]] = {name: fits[name] for name in allowed if name in fits}
    tab = kind == ".tsv" and "\t" in fits
    candidates: dict[Separator, tuple[float, float, int]] = (
        {"\t": fits["\t"]} if tab and not preferred else preferred or fits
    )
    if not candidates:
        return allowed[0] if allowed else ","
    best = max(candidates.values())
    best_fits = [separator for separator, fit in candidates.items() if fit == best]
    if len(best_fits) > 1 and not allowed:
        raise UnreadableFileError(
            f"the values may be separated by {' or '.join(map(repr, best_fits))}, since both give "
            f"{pluralize(best[2], 'column')}; set source.separator in the YAML"
        )
    return best_fits[0]


def _fit(text: str, separator: str) -> tuple[float, float, int] | None:
    """Return how well a separator fits, or None if the header has one value.

    Returns:
        The share of rows with as many values as the header, the share of quotes at the edge of a value, and the number
        of values of the header.
    """
    counts: list[int] = []
    try:
        for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator):
            counts += [len(row)] if row else []
            if len(counts) > _HEAD_ROWS:
                break
    except csv.Error:  # a value is larger than 128 KiB, probably after an open quote
        pass
    if not counts or counts[0] < 2:
        return None
    rows = counts[1:]
    share = sum(count == counts[0] for count in rows) / len(rows) if rows else 1.0
    return share, RecordScanner(text.encode(), separator.encode()).share_of_edge_quotes, counts[0]
