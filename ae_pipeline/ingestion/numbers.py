"""Polars expressions that read numbers exactly: a value that a type cannot keep becomes null, and is never rounded."""

import re
from decimal import Decimal, InvalidOperation

import polars as pl

from ae_pipeline.config.columns import ValueFormat

DECIMAL_DIGITS = 38
"""Digits that a decimal keeps."""

LEADING_ZERO = r"^[+-]?0[0-9]"
"""Pattern of numbers with leading zeros, such as 01067. They are names: as numbers they would lose the zero."""

_FLOAT_DIGITS = 15
"""Every number with so many significant digits is exact in float64 as text."""

_MAX_FLOAT_DIGITS = 17
_SMALLEST_NORMAL = 2.3e-308


def plain_number(text: pl.Expr, form: ValueFormat) -> pl.Expr:
    """Return number texts with a decimal point and without prefix, suffix and thousands separators.

    Args:
        text: Texts without surrounding whitespace.
        form: How the numbers are written. Texts that do not fit become null.
    """
    if form.decimal is None and form.thousands is None and form.prefix is None and form.suffix is None:
        return text
    if form.prefix is not None:
        text = text.str.replace(rf"^([+-]?)\s*{re.escape(form.prefix)}\s*([+-]?)", "${1}${2}")
    if form.suffix is not None:
        text = text.str.replace(rf"\s*{re.escape(form.suffix)}$", "")
    mark, separator = form.decimal or ".", form.thousands
    point = re.escape(mark)
    whole = "[0-9]+"
    if separator is not None:
        group = r"[ \x{a0}\x{202f}\x{2009}]" if separator.isspace() else re.escape(separator)
        whole = f"(?:[0-9]+|[0-9]{{1,3}}(?:{group}[0-9]{{2,3}})*{group}[0-9]{{3}})"
    fits = text.str.contains(f"^[+-]?(?:{whole}(?:{point}[0-9]*)?|{point}[0-9]+)(?:[eE][+-]?[0-9]+)?$")
    plain = text.str.replace_all(group, "") if separator is not None else text
    plain = plain.str.replace(mark, ".", literal=True) if mark != "." else plain
    return pl.when(fits).then(plain)


def parse_integers(text: pl.Expr, *, with_zeros: bool = False) -> pl.Expr:
    """Return the integers in plain texts. Leading zeros, fractions and numbers beyond int64 become null.

    Args:
        text: Plain texts, see `plain_number`.
        with_zeros: Whether numbers may have leading zeros.
    """
    return text.map_batches(_integers_with_zeros if with_zeros else _integers, return_dtype=pl.Int64)


def parse_floats(text: pl.Expr) -> pl.Expr:
    """Return the finite float64 numbers in plain texts. Leading zeros, and digits that would be lost, become null."""
    return text.map_batches(_floats, return_dtype=pl.Float64)


def parse_decimals(text: pl.Expr, scale: int) -> pl.Expr:
    """Return the decimals in plain texts. Leading zeros, and digits that would be lost, become null.

    Args:
        text: Plain texts, see `plain_number`.
        scale: Digits after the decimal point.
    """
    plain = text.map_batches(_without_exponents, return_dtype=pl.String)
    fraction = plain.str.extract(r"\.([0-9]*)$").str.strip_chars_end("0").fill_null("")
    whole = plain.str.extract(r"^[+-]?([0-9]*)").str.strip_chars_start("0").fill_null("")
    fits = (
        plain.str.contains(r"^[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)$")
        & ~plain.str.contains(LEADING_ZERO)
        & (fraction.str.len_bytes() <= scale)
        & (whole.str.len_bytes() <= DECIMAL_DIGITS - scale)
    )
    # Zeros after the last digit of the fraction would not fit, although the value does.
    exact = plain.str.replace(r"(\.[0-9]*?)0*$", "${1}").str.strip_chars_end(".")
    return pl.when(fits).then(exact).cast(pl.Decimal(DECIMAL_DIGITS, scale), strict=False)


def whole_numbers(value: pl.Expr) -> pl.Expr:
    """Return an expression that casts whole floats to integers. All other values become null."""
    is_whole = (value == value.floor()) & (value.abs() < 2**53)
    return pl.when(is_whole).then(value).cast(pl.Int64)


def finite_numbers(value: pl.Expr) -> pl.Expr:
    """Return an expression that replaces NaN and infinite values with null."""
    return pl.when(value.is_finite()).then(value)


def has_leading_zeros(texts: pl.Series) -> pl.Series:
    """Return whether texts match `LEADING_ZERO`; most columns have no text that begins with a zero at all."""
    can_match = texts.str.starts_with("0") | texts.str.starts_with("-0") | texts.str.starts_with("+0")
    return can_match & _contains(texts, can_match, LEADING_ZERO)


def loses_digits(texts: pl.Series, numbers: pl.Series | None = None) -> pl.Series:
    """Return whether float64 cannot keep all digits of number texts.

    Args:
        texts: Numbers as text.
        numbers: The same as float64, if they are known.
    """
    return _loses_digits(texts, texts.cast(pl.Float64, strict=False) if numbers is None else numbers)


def decimal_scale(texts: pl.Series) -> int | None:
    """Return the digits after the point that keep all numbers exactly, or None if 38 digits are not enough."""
    scale = whole = 0
    for text in texts:
        number = _as_decimal(text)
        if number is None:
            return None
        _, digits, exponent = number.as_tuple()
        digits_text = "".join(map(str, digits)).rstrip("0") or "0"
        exponent = int(exponent) + len(digits) - len(digits_text)
        scale = max(scale, -exponent)
        whole = max(whole, len(digits_text) + exponent)
    return scale if scale + whole <= DECIMAL_DIGITS else None


def _as_decimal(text: str) -> Decimal | None:
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    return number if number.is_finite() and abs(number.adjusted()) <= 2 * DECIMAL_DIGITS else None


def _without_exponents(texts: pl.Series) -> pl.Series:
    """Write numbers such as 1.5e3 in full. Other texts, and numbers that no decimal keeps, stay as they are."""
    is_scientific = texts.str.contains("^[^eE]+[eE][+-]?[0-9]+$").fill_null(value=False)
    if not is_scientific.any():
        return texts
    unique = texts.filter(is_scientific).unique().to_list()
    plain = [text if (number := _as_decimal(text)) is None else f"{number:f}" for text in unique]
    return texts.replace(unique, plain)


def _integers_with_zeros(texts: pl.Series) -> pl.Series:
    whole = texts.cast(pl.Int64, strict=False)
    if whole.null_count() == texts.null_count():
        return whole
    # Files write integers with gaps as floats, such as 517.0.
    short = texts.set(texts.str.len_bytes() > _FLOAT_DIGITS, None).cast(pl.Float64, strict=False)
    candidates = pl.DataFrame({"whole": whole, "text": texts, "short": short}).select(
        pl.coalesce(
            "whole",
            pl.col("text").str.replace(r"\.0*$", "").cast(pl.Int64, strict=False),
            whole_numbers(pl.col("short")),
        )
    )
    return candidates.to_series()


def _integers(texts: pl.Series) -> pl.Series:
    return _without_leading_zeros(_integers_with_zeros(texts), texts)


def _floats(texts: pl.Series) -> pl.Series:
    values = texts.cast(pl.Float64, strict=False)
    is_wrong = ~values.is_finite() | _loses_digits(texts, values)
    values = values.set(is_wrong, None) if is_wrong.any() else values
    return _without_leading_zeros(values, texts)


def _without_leading_zeros(values: pl.Series, texts: pl.Series) -> pl.Series:
    has_zeros = has_leading_zeros(texts)
    return values.set(has_zeros, None) if has_zeros.any() else values


def _contains(texts: pl.Series, chosen: pl.Series, pattern: str) -> pl.Series:
    """Return whether texts match a pattern. If none of the chosen ones does, the others are not compared."""
    is_needed = texts.filter(chosen).str.contains(pattern).any()
    return texts.str.contains(pattern) if is_needed else pl.repeat(value=False, n=len(texts), eager=True)


def _loses_digits(texts: pl.Series, values: pl.Series) -> pl.Series:
    """Return whether the digits of texts are not those of their float64 values."""
    is_long = texts.str.len_bytes() > _FLOAT_DIGITS
    is_small = values.abs() < _SMALLEST_NORMAL
    is_candidate = pl.repeat(value=False, n=len(texts), eager=True).alias(texts.name)
    if is_long.any():
        # A number that float64 writes in the same way is kept; this is the usual case of a long number.
        is_candidate |= is_long & values.is_not_null() & (values.cast(pl.String) != texts)
    if is_small.any():
        is_candidate |= is_small & _contains(texts, is_small, "^[^eE]*[1-9]")
    is_candidate = is_candidate.fill_null(value=False)
    if not is_candidate.any():
        return is_candidate
    lost = [text for text in texts.filter(is_candidate).unique() if not _is_kept(text)]
    return texts.is_in(lost).fill_null(value=False)


def _is_kept(text: str) -> bool:
    """Return whether float64 gives the same digits back."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        return True  # not a number, or written in a way that only float64 reads
    if not number.is_finite():
        return True
    digits = len("".join(map(str, number.as_tuple().digits)).strip("0"))
    value = float(text)
    if abs(value) == float("inf"):
        return True  # not a finite number: another rule
    if digits <= _FLOAT_DIGITS and abs(value) >= _SMALLEST_NORMAL:
        return True
    return digits <= _MAX_FLOAT_DIGITS and Decimal(f"{value:.{max(digits, 1) - 1}e}") == number
