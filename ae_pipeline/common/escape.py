r"""Show names, descriptions and values as text, wherever they are shown.

They come from data that anybody may have sent. HTML pages escape by themselves (Jinja's autoescape); the functions here
are for everything else.
"""

import re

from ae_pipeline.common.text import printable

_BIDIRECTIONAL = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Characters that change the order in which a terminal shows the others."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", *"\uff1d\uff0b\uff0d\uff20")
"""Characters at the start of a cell that make a spreadsheet compute it, some of them in full width."""


def terminal_line(text: object) -> str:
    r"""Return a text on one line without characters that control a terminal; they appear as escapes.

    >>> print(terminal_line("order \x1b[2J 7\n8"))
    order \x1b[2J 7\n8
    """
    line = printable(str(text), is_line=True)
    return _BIDIRECTIONAL.sub(lambda match: match.group().encode("unicode_escape").decode(), line)


def terminal_lines(text: object) -> str:
    r"""Return a text of several lines without characters that control a terminal.

    >>> print(terminal_lines("first\nsecond\x07"))
    first
    second\x07
    """
    return "\n".join(terminal_line(line) for line in str(text).split("\n"))


def escape_markdown(text: object) -> str:
    r"""Return Markdown that shows a text literally, on one line.

    >>> print(escape_markdown("a *b* [c]"))
    a \*b\* \[c\]
    """
    line = terminal_line(re.sub(r"[^\S\x1c-\x1f\x85\u2028\u2029]+", " ", str(text)))
    # An underscore within a word is literal in Markdown. Column names are easier to read without a backslash.
    line = re.sub(r"([\\`*\[\]<>|!#~&@])|(?<![^\W_])(_)|(_)(?![^\W_])", r"\\\1\2\3", line)
    # GitHub's Markdown makes links of addresses without brackets.
    line = re.sub(r"(?i)(://)|\b(www)\.", lambda match: r":\/\/" if match[1] else rf"{match[2]}\.", line)
    # At the start of a line: lists, rules and underlines of headings.
    return re.sub(r"^( ?)(?:([-+=])(?=[\s=-]|$)|(\d+)([.)])(?=\s|$))", _escape_start, line)


def _escape_start(match: re.Match[str]) -> str:
    return f"{match[1]}\\{match[2]}" if match[2] else f"{match[1]}{match[3]}\\{match[4]}"


def without_html(markdown: str) -> str:
    r"""Return Markdown whose tags of HTML are shown as text, for descriptions that may be Markdown.

    >>> without_html("*all* <b>orders</b>")
    '*all* &lt;b>orders&lt;/b>'
    """
    return markdown.replace("<", "&lt;")


def escape_json_in_html(text: str) -> str:
    r"""Return JSON that cannot end the script element which contains it.

    >>> escape_json_in_html('{"name": "</script>"}')
    '{"name": "\\u003c/script>"}'
    """
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def spreadsheet_text(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula, for cells of CSV files that people open.

    >>> spreadsheet_text("=1+1"), spreadsheet_text("order 7")
    ("'=1+1", 'order 7')
    """
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA) else text
