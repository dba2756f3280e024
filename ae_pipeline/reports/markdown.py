"""Markdown with names and values of the data, which are shown as text and never interpreted as Markdown or HTML."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from ae_pipeline.common.text import printable


class Markdown(str):
    """Text that is Markdown already and is not escaped."""

    __slots__ = ()


def escaped(text: object) -> str:
    r"""Return Markdown that shows a text literally, on one line.

    >>> print(escaped("a *b* [c]"))
    a \*b\* \[c\]
    """
    line = printable(re.sub(r"[^\S\x1c-\x1f\x85\u2028\u2029]+", " ", str(text)))
    # An underscore within a word is literal in Markdown. Column names are easier to read without a backslash.
    return re.sub(r"([\\`*\[\]<>|!#~&])|(?<!\w)(_)|(_)(?!\w)", r"\\\1\2\3", line)


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
    lines = [[cell if isinstance(cell, Markdown) else escaped(cell) for cell in row] for row in rows]
    if not lines:
        return "none"
    return "\n".join(f"| {' | '.join(line)} |" for line in ([*heads], ["---"] * len(heads), *lines))
