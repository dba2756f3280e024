"""Markdown with names and values of the data, which are shown as text and never interpreted as Markdown or HTML."""

from collections.abc import Iterable, Sequence
from typing import Any

from ae_pipeline.common.escape import escape_markdown


class Markdown(str):
    """Text that is Markdown already and is not escaped."""

    __slots__ = ()


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a Markdown table, or `none` without rows.

    Args:
        heads: Headings, as Markdown.
        rows: Cells; those that are not `Markdown` are escaped.

    >>> print(markdown_table(["column", "rows"], [["load", 3]]))
    | column | rows |
    | --- | --- |
    | load | 3 |
    """
    lines = [[cell if isinstance(cell, Markdown) else escape_markdown(cell) for cell in row] for row in rows]
    if not lines:
        return "none"
    return "\n".join(f"| {' | '.join(line)} |" for line in ([*heads], ["---"] * len(heads), *lines))
