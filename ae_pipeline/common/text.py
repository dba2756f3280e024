"""Helpers for log lines and messages."""

import re
from collections.abc import Collection, Sequence

_LINE_BREAKS = "\t\n\r"
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufdd0-\ufdef\ufeff\ufff9-\uffff]"
    "|[" + "".join(f"{chr(plane + 0xFFFE)}{chr(plane + 0xFFFF)}" for plane in range(0x10000, 0x110000, 0x10000)) + "]"
)
"""Control characters, line separators, surrogates and code points that are no characters: no page can show them."""


def printable(text: str, *, is_line: bool = False) -> str:
    r"""Return text with escapes such as `\x00` for what XML, HTML and terminals cannot show.

    Args:
        text: Text of the data.
        is_line: Whether tabs and line breaks are escaped, too.

    >>> printable("a\x00b\u2028c"), printable("a\nb", is_line=True)
    ('a\\x00b\\u2028c', 'a\\nb')
    """

    def escape(match: re.Match[str]) -> str:
        character = match.group()
        if character in _LINE_BREAKS and not is_line:
            return character
        return character.encode("unicode_escape").decode("ascii")

    return _UNPRINTABLE.sub(escape, text)


def plural(noun: str) -> str:
    """Return the plural of a regular noun.

    >>> plural("row"), plural("patch")
    ('rows', 'patches')
    """
    return f"{noun}es" if noun.endswith("ch") else f"{noun}s"


def with_article(noun: str) -> str:
    """Return a noun with its indefinite article.

    >>> with_article("row"), with_article("image")
    ('a row', 'an image')
    """
    return f"{'an' if noun[0] in 'aeio' else 'a'} {noun}"


def pluralize(count: int, noun: str) -> str:
    """Return a count with its noun, in the plural if needed.

    >>> pluralize(1, "file"), pluralize(1200, "file")
    ('1 file', '1,200 files')
    """
    return f"{count:,} {noun if count == 1 else plural(noun)}"


def one_in(share: float) -> str:
    """Return a small share of rows, such as a p-value, as people say it. Shares above one half are percentages.

    >>> one_in(2.6e-5), one_in(0.1), one_in(0.66)
    ('1 in 38,000', '1 in 10', '66%')
    """
    if share <= 0 or share > 1 / 2:
        return f"{share:.0%}"
    rows = float(f"{1 / share:.2g}")
    return f"1 in {rows:,.0f}" if rows >= 10 else f"1 in {rows:g}"


def short_number(value: float) -> str:
    """Return a number with four digits, and commas between thousands.

    >>> short_number(12345.6), short_number(0.123456)
    ('12,346', '0.1235')
    """
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e18 else f"{value:.4g}"


def abbreviate(days: Sequence[str]) -> str:
    """Return a list of days as text, without the middle of a long list.

    >>> abbreviate(["2025-01-01", "2025-01-02", "2025-01-03", "2025-01-04", "2025-01-05"])
    '2025-01-01, 2025-01-02 … 2025-01-05'
    """
    return ", ".join(days) if len(days) <= 4 else f"{days[0]}, {days[1]} … {days[-1]}"


def printable_path(path: str) -> str:
    r"""Return the path of a file as printable text. Different paths give different texts.

    Bytes that are not UTF-8, which Python reads as lone surrogates, and control characters are shown as `\x` and two
    digits. A backslash is doubled where it could be taken for one of them.

    >>> printable_path("caf\udce9.csv"), printable_path("Tromsø/a b.csv")
    ('caf\\xe9.csv', 'Tromsø/a b.csv')
    """
    if not _AMBIGUOUS.search(path):
        return path
    doubled = path.replace("\\", "\\\\")
    return _CODED.sub(lambda match: f"\\x{ord(match[0]) & 0xFF:02x}", doubled)


_CODED = re.compile("[\x00-\x1f\x7f\udc80-\udcff]")
_AMBIGUOUS = re.compile(r"\\\\|\\x[0-9a-f]{2}|" + _CODED.pattern)


def first_line(error: BaseException | str) -> str:
    r"""Return the first line of an error message, 200 characters at most; the name of the error's type if it is empty.

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
