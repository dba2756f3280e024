"""Helpers for log lines and messages."""

from collections.abc import Collection, Sequence


def pluralize(count: int, noun: str) -> str:
    """Return a count with its noun, in the plural if needed.

    >>> pluralize(1, "file"), pluralize(1200, "file")
    ('1 file', '1,200 files')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def abbreviate(days: Sequence[str]) -> str:
    """Return a list of days as text, without the middle of a long list.

    >>> abbreviate(["2025-01-01", "2025-01-02", "2025-01-03", "2025-01-04", "2025-01-05"])
    '2025-01-01, 2025-01-02 … 2025-01-05'
    """
    return ", ".join(days) if len(days) <= 4 else f"{days[0]}, {days[1]} … {days[-1]}"


def first_line(error: Exception) -> str:
    r"""Return the first line of an error message, 200 characters at most; the name of its type if it has no message.

    >>> first_line(ValueError("no such column: prize\nhint: price"))
    'no such column: prize'
    """
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def align(rows: Sequence[Sequence[str]], right: Collection[str] = ()) -> list[str]:
    """Return the rows of a table as lines with aligned columns.

    Args:
        rows: Cells as text; the first row is the header.
        right: Columns that are aligned to the right, by their header.

    >>> align([("dataset", "rows"), ("orders", "960")], right={"rows"})
    ['dataset  rows', 'orders    960']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, cell, width in zip(rows[0], row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]
