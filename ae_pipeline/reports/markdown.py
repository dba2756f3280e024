"""Markdown of what data hold: names and values are shown as they are and never read as Markdown or HTML."""

import re
from collections.abc import Iterable, Sequence
from typing import Any


class Markdown(str):
    """Text that is Markdown already, of our own making."""

    __slots__ = ()


def escaped(text: object) -> str:
    """Gives a text as Markdown that shows it, on one line."""
    line = re.sub(r"\s+", " ", str(text))
    # An underscore within a word means nothing, and names of columns are easier to read without a stroke before it.
    return re.sub(r"([\\`*\[\]<>|!#~&])|(?<!\w)(_)|(_)(?!\w)", r"\\\1\2\3", line)


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Makes a table, or the word none; what is not `Markdown` is escaped."""
    lines = [[cell if isinstance(cell, Markdown) else escaped(cell) for cell in row] for row in rows]
    if not lines:
        return "none"
    return "\n".join(f"| {' | '.join(line)} |" for line in ([*heads], ["---"] * len(heads), *lines))
