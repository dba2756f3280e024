"""Recognize the formats of dates and times in text."""

import re

import polars as pl

from ae_pipeline.config.columns import ColumnType
from ae_pipeline.ingestion.contract import ColumnRule

_NAME = r"[A-Za-z]{3,9}"
_TIME = (
    r"(?P<hour>\d{1,2}):\d{2}(?P<second>:\d{2})?(?P<fraction>[.,]\d+)?(?P<noon>\s?[AaPp][Mm])?"
    r"(?P<zone>\s?(?:[Zz]|[+-]\d{2}(?::?\d{2})?)|\s(?:UTC|GMT))?"
)
_REST = rf"(?P<rest>(?P<separator>T|, |:|\s){_TIME})?$"
_WEEKDAY = rf"^(?P<weekday>{_NAME},? )?"

_SHAPES: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...] = tuple(
    (re.compile(pattern), formats)
    for pattern, formats in (
        (rf"{_WEEKDAY}\d{{4}}(?P<a>[-/.])\d{{1,2}}(?P=a)\d{{1,2}}{_REST}", ("%Y{a}%m{a}%d",)),
        (rf"{_WEEKDAY}\d{{1,2}}(?P<a>[-/.])\d{{1,2}}(?P=a)\d{{4}}{_REST}", ("%d{a}%m{a}%Y", "%m{a}%d{a}%Y")),
        (
            rf"{_WEEKDAY}\d{{1,2}}(?P<a>[-/.])\d{{1,2}}(?P=a)\d{{2}}{_REST}",
            ("%d{a}%m{a}%y", "%m{a}%d{a}%y", "%y{a}%m{a}%d"),
        ),
        (rf"{_WEEKDAY}\d{{1,2}}(?P<a>[-/ ]|\. ?){_NAME}(?P<b>[-/ ]|\. ?|, )\d{{4}}{_REST}", ("%d{a}%B{b}%Y",)),
        (rf"{_WEEKDAY}\d{{1,2}}(?P<a>[-/ ]|\. ?){_NAME}(?P<b>[-/ ]|\. ?|, )\d{{2}}{_REST}", ("%d{a}%B{b}%y",)),
        (rf"{_WEEKDAY}{_NAME}(?P<a>[-/ ]|\. ?)\d{{1,2}}(?P<b>, ?|[-/ ])\d{{4}}{_REST}", ("%B{a}%d{b}%Y",)),
        (rf"{_WEEKDAY}\d{{4}}(?P<a>[-/ ]){_NAME}(?P=a)\d{{1,2}}{_REST}", ("%Y{a}%B{a}%d",)),
        (r"^(?:19|20)\d{2}(?P<a>[-/])\d{2}$", ("%Y{a}%m",)),
        (r"^\d{1,2}(?P<a>[-/])(?:19|20)\d{2}$", ("%m{a}%Y",)),
        (rf"^{_NAME}(?P<a>[-/ ])\d{{4}}$", ("%B{a}%Y",)),
        (r"^(?:19[7-9]|20[0-6])\d{5}$", ("%Y%m%d",)),
        (r"^(?:19[7-9]|20[0-6])\d{9}$", ("%Y%m%d%H%M",)),
        (r"^(?:19[7-9]|20[0-6])\d{11}$", ("%Y%m%d%H%M%S",)),
        (r"^\d{8}(?P<a>[T ])\d{4}(?P<zone>Z|[+-]\d{2}:?\d{2})?$", ("%Y%m%d{a}%H%M",)),
        (r"^\d{8}(?P<a>[T ])\d{6}(?P<fraction>\.\d+)?(?P<zone>Z|[+-]\d{2}:?\d{2})?$", ("%Y%m%d{a}%H%M%S",)),
    )
)
"""Shapes of dates and times, and the formats that each can have."""

_COMPACT = {"%Y%m%d", "%Y%m%d%H%M", "%Y%m%d%H%M%S"}
"""Formats of digits only, which can also be plain integers."""

_MONTHS = {"%Y-%m", "%Y/%m", "%m-%Y", "%m/%Y"}

_MIN_COMPACT_VALUES = 5
"""Digits are times only if so many distinct ones all are: one number in a thousand happens to be a date."""

_SAMPLED = 50


def candidate_rules(texts: pl.Series, *, is_needed: bool, is_identity: bool = False) -> list[ColumnRule]:
    """Return rules for dates and times that some texts seem to follow.

    Args:
        texts: Distinct texts.
        is_needed: Whether the column must be a time, so that digits are read as one.
        is_identity: Whether the column identifies rows, where digits and months are names.
    """
    step = max(1, len(texts) // _SAMPLED)
    formats = dict.fromkeys(form for text in texts.gather_every(step) for form in _formats_of(text))
    if is_identity:
        formats = {form: None for form in formats if form not in _COMPACT | _MONTHS}
    elif not is_needed and len(texts) < _MIN_COMPACT_VALUES:
        formats = {form: None for form in formats if form not in _COMPACT}
    rules = [ColumnRule(type=_type_of(form), format=None if form == "%Y-%m-%d" else form) for form in formats]
    if any(form.startswith("%Y-%m-%d") and len(form) > len("%Y-%m-%d") for form in formats):
        rules.append(ColumnRule(type=ColumnType.TIMESTAMP))  # a mixture of the forms of ISO 8601
    return rules


def is_compact(rule: ColumnRule) -> bool:
    """Return whether a format is digits only."""
    return rule.format in _COMPACT


def day_order(form: str | None) -> str:
    """Return the order of day, month and year in a format, such as `dmy`."""
    return "".join(re.findall("%([dmBYy])", form or "")).replace("B", "m").lower()


def describe_format(rule: ColumnRule) -> str:
    """Return the declaration of a time, as the YAML writes it."""
    return f'{{type: {rule.type.value}, format: "{rule.format}"}}'


def _type_of(form: str) -> ColumnType:
    return ColumnType.TIMESTAMP if re.search("%[HI]", form) else ColumnType.DATE


def _formats_of(text: str) -> list[str]:
    """Return the formats that one text can have."""
    for pattern, formats in _SHAPES:
        match = pattern.match(text)
        if match is None:
            continue
        parts = match.groupdict()
        marks = {key: parts.get(key) or "" for key in "ab"}
        weekday = parts.get("weekday") or ""
        day_of_week = re.sub(_NAME, "%a" if len(weekday.strip(" ,")) == 3 else "%A", weekday)
        return [day_of_week + form.format(**marks) + _time_format(parts) for form in formats]
    return []


def _time_format(parts: dict[str, str | None]) -> str:
    """Return the format of the time of day in a text."""
    fraction = parts.get("fraction") or ""
    form = ""
    if parts.get("hour"):
        form = (parts["separator"] or "") + ("%I:%M" if parts["noon"] else "%H:%M")
        form += ":%S" if parts["second"] else ""
        # Every other value may have a fraction, which "%.f" also reads if it is missing.
        form += f",%{len(fraction) - 1}f" if fraction.startswith(",") else "%.f" if parts["second"] else ""
        noon = parts["noon"] or ""
        form += (" %p" if noon[:1].isspace() else "%p") if noon else ""
    elif fraction:
        form = "%.f"
    zone = parts.get("zone") or ""
    if zone.strip() in {"UTC", "GMT"}:
        return form + zone
    return form + (" %#z" if zone[:1].isspace() else "%#z" if zone else "")
