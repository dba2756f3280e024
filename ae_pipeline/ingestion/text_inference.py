"""Infer the rule of a column from its texts."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import polars as pl

from ae_pipeline.config.columns import ColumnDeclaration, ColumnType
from ae_pipeline.ingestion.contract import ColumnRule
from ae_pipeline.ingestion.numbers import LEADING_ZERO, decimal_scale, has_leading_zeros, loses_digits, plain_number
from ae_pipeline.ingestion.parse import parse_text
from ae_pipeline.ingestion.time_formats import candidate_rules, day_order, describe_format, is_compact

_NULL_WORDS = frozenset(
    {
        *("na", "n/a", "<na>", "#n/a", "#n/a n/a", "#na", "null", "none", "nil", "missing", "unknown"),
        *("nan", "-nan", "1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan", "?", ".", "-", "--"),
    }
)
"""Words in lower case that mean a missing value, if the other values of a column are numbers, booleans or times."""

_INFINITE = r"(?i)^[+-]?inf(inity)?$"
_INTEGER = r"^[+-]?(0|[1-9][0-9]*)$"
_COMMA = r"^[+-]?(0|[1-9][0-9]*),([0-9]{1,2}|[0-9]{4,})$"
_MAYBE_COMMA = r"^[+-]?(0|[1-9][0-9]*)(,[0-9]+)?$"

_DECIMAL_COMMA = ColumnRule(type=ColumnType.NUMBER, decimal=",")

_CURRENCY = r"^[^\w]*$|^(USD|EUR|GBP|CHF|JPY|US\$)$"
"""Texts before numbers that are a unit. Letters such as A in A12 make a name."""

_SHARE, _EVENT_TIME_SHARE = 0.95, 0.5
"""Share of the values that must have a type. The event time must be a time, so that fewer values decide."""

_MAX_ODD, _MAX_ODD_BOOLEANS = 20, 2
"""Distinct texts that may not have the type of the column."""

_LETTERS = {"t", "f", "y", "n"}

_COMPACT_LENGTHS = [8, 12, 14]
"""Number of digits of dates and times without separators."""


class Role(StrEnum):
    """What a column is for."""

    VALUE = "value"
    IDENTITY = "identity"
    EVENT_TIME = "event_time"


class AmbiguousOrderError(Exception):
    """Day and month of a column can be swapped.

    Attributes:
        problem: What is ambiguous, with values.
        choices: The declarations that the YAML can have.
    """

    def __init__(self, problem: str, choices: Sequence[str]) -> None:
        super().__init__(problem)
        self.problem, self.choices = problem, tuple(choices)


@dataclass(frozen=True)
class Suggestion:
    """A declaration with which a text column would become numbers or times."""

    kind: str
    declaration: str


def is_null_word(text: str) -> bool:
    """Return whether a text usually means a missing value."""
    return text.lower() in _NULL_WORDS


def infer_from_texts(
    counts: pl.DataFrame, declared: ColumnDeclaration | None, role: Role, min_scale: int | None = None
) -> ColumnRule:
    """Return the rule that fits the texts of a column.

    It fits all texts, or all but words that mean a missing value, or all but a few: those go to quarantine, or mean a
    missing value if they repeat and have no digit.

    Args:
        counts: Distinct `text` without surrounding whitespace, and its `count`.
        declared: What the YAML says about the column.
        role: What the column is for.
        min_scale: Digits after the point of a decimal; with it, numbers are decimals.

    Raises:
        AmbiguousOrderError: Day and month can be swapped.
    """
    texts = counts["text"]
    if declared is not None and declared.type in {ColumnType.TEXT, ColumnType.CATEGORY, ColumnType.IMAGE}:
        return _declared(declared)
    if declared is None and role == Role.IDENTITY:
        return _fitting_rule(texts, _time_candidates(texts, role), min_fit=1.0) or ColumnRule(type=ColumnType.TEXT)
    known = declared.null_values if declared else ()
    counts = counts.filter(~pl.col("text").is_in(known)) if known else counts
    texts = counts["text"]
    if texts.len() and (rule := _rule_that_fits(texts, declared, role, min_scale)):
        return _with_null_values(rule, (), known)
    null_texts = texts.filter(texts.str.to_lowercase().is_in(list(_NULL_WORDS)))
    if role == Role.EVENT_TIME:
        null_texts = null_texts.clear()  # a row without a time goes to quarantine, which shows its text
    values = texts.filter(~texts.is_in(null_texts.implode()))
    if null_texts.len() and values.len() and (rule := _rule_that_fits(values, declared, role, min_scale)):
        return _with_null_values(rule, sorted(null_texts), known)
    return _mostly_fitting_rule(counts, null_texts, declared, role, min_scale) or (
        _declared(declared) if declared else ColumnRule(type=ColumnType.TEXT)
    )


def plain_number_rule(texts: pl.Series) -> ColumnRule | None:
    """Return the rule of texts that all are plain numbers, as `infer_from_texts` does, or None if it must decide.

    Args:
        texts: Texts without missing values. They may repeat.
    """
    if texts.is_empty() or not texts[0][-1:].isdigit():
        return None
    numbers = texts.cast(pl.Float64, strict=False)
    is_plain = numbers.is_not_null() & (numbers.abs() < 2**63)  # no integer exceeds int64
    if not is_plain.all() or has_leading_zeros(texts).any():
        return None
    if not texts.cast(pl.Int64, strict=False).null_count():
        return None if texts.str.len_bytes().is_in(_COMPACT_LENGTHS).all() else ColumnRule(type=ColumnType.INTEGER)
    return None if loses_digits(texts, numbers).any() else ColumnRule(type=ColumnType.NUMBER)


def suggest_declaration(texts: pl.Series) -> Suggestion | None:
    """Return how a text column could be declared as numbers, if nearly all texts are written alike."""
    texts = texts.filter(~texts.str.to_lowercase().is_in(list(_NULL_WORDS)))
    if texts.is_empty():
        return None
    matches = [re.match(r"^[+-]?([^\d\s.,+-]*)\s?[+-]?([\d.,' \u00a0]*\d)\s?([^\d.,]*)$", text) for text in texts[:200]]
    parts = [match.groups() for match in matches if match]
    if len(parts) < 0.95 * len(matches):
        return None
    prefixes, bodies, suffixes = zip(*parts, strict=True)
    if len(set(prefixes)) > 1 or len(set(suffixes)) > 1 or not re.match(_CURRENCY, prefixes[0]) or len(suffixes[0]) > 8:
        return None
    keys = {"prefix": prefixes[0], "suffix": suffixes[0].strip()}
    keys |= _separators("".join(bodies), bodies)
    rule = ColumnRule.model_validate({"type": "number", **{key: value for key, value in keys.items() if value}})
    if not any(keys.values()) or _fitting_share(texts.to_frame("text").with_columns(count=1), rule) < _SHARE:
        return None
    keys_text = "".join(f', {key}: "{value}"' for key, value in keys.items() if value)
    return Suggestion("number", f"{{type: number{keys_text}}}")


def _separators(characters: str, bodies: Sequence[str]) -> dict[str, str]:
    """Return decimal mark and thousands separator of numbers, as far as they differ from the usual ones."""
    marks = [mark for mark in ".,' \u00a0" if mark in characters]
    separators = [mark for mark in marks if mark not in ".,"]
    if separators:
        return {"thousands": separators[0], **({"decimal": ","} if "," in marks else {})}
    if marks == [","]:
        return {"thousands": ","} if all(re.match(r"^\d{1,3}(,\d{3})*$", body) for body in bodies) else {"decimal": ","}
    if marks == [".", ","]:
        is_comma_last = sum(body.rfind(",") > body.rfind(".") for body in bodies) > len(bodies) / 2
        return {"decimal": ",", "thousands": "."} if is_comma_last else {"thousands": ","}
    return {}


def _declared(declared: ColumnDeclaration) -> ColumnRule:
    return ColumnRule.model_validate(declared.model_dump())


def _with_null_values(rule: ColumnRule, null_texts: Sequence[str], known: Sequence[str]) -> ColumnRule:
    return rule.model_copy(update={"null_values": (*known, *(word for word in null_texts if word not in known))})


def _rule_that_fits(
    texts: pl.Series, declared: ColumnDeclaration | None, role: Role, min_scale: int | None
) -> ColumnRule | None:
    """Return the first rule that fits all texts. An infinite value is a number: only its row goes to quarantine."""
    for candidates in _candidates(texts, declared, role, min_scale):
        is_number = candidates[0].type in {ColumnType.INTEGER, ColumnType.NUMBER, ColumnType.DECIMAL}
        finite = texts.filter(~_is_infinite(texts)) if is_number else texts
        if finite.len() and (rule := _fitting_rule(finite, candidates, min_fit=1.0)):
            return rule
    return None


def _mostly_fitting_rule(
    counts: pl.DataFrame, null_texts: pl.Series, declared: ColumnDeclaration | None, role: Role, min_scale: int | None
) -> ColumnRule | None:
    """Return the rule that fits nearly all values, with the repeated words among the others as null values."""
    values = counts.filter(~pl.col("text").is_in(null_texts.implode()))
    texts = values["text"]
    if texts.str.contains(LEADING_ZERO).any() and role == Role.VALUE and declared is None:
        return None  # such as ZIP codes: the others are names, too
    share = _EVENT_TIME_SHARE if role == Role.EVENT_TIME or declared else _SHARE
    for candidates in _candidates(texts, declared, role, min_scale):
        rule = _fitting_rule(values, candidates, min_fit=share)
        if rule is None:
            continue
        odd = values.filter(~_fits(texts, rule) & ~_is_infinite(texts))
        limit = _MAX_ODD_BOOLEANS if rule.type == ColumnType.BOOLEAN else _MAX_ODD
        if odd.height > limit and role == Role.VALUE and declared is None:
            continue
        repeated = odd.filter((pl.col("count") > 1) & ~pl.col("text").str.contains("[0-9]"))["text"]
        if rule.type == ColumnType.BOOLEAN and repeated.len():
            continue  # a third value, not a missing one
        if role == Role.EVENT_TIME:
            repeated = repeated.clear()
        return _with_null_values(rule, sorted({*null_texts, *repeated}), declared.null_values if declared else ())
    return None


def _candidates(
    texts: pl.Series, declared: ColumnDeclaration | None, role: Role, min_scale: int | None
) -> list[list[ColumnRule]]:
    """Return groups of rules in the order in which they are tried."""
    times = _time_candidates(texts, role) if declared is None or declared.type in _TIMES else []
    if declared is not None:
        base = _declared(declared)
        if declared.type in _TIMES and declared.format is None:
            of_type = [rule for rule in times if rule.type == declared.type]
            return [[base.model_copy(update={"format": rule.format}) for rule in of_type] or [base]]
        if declared.type == ColumnType.DECIMAL and declared.scale is None:
            plain = _plain(texts.filter(~_is_infinite(texts)), base)
            return [[base.model_copy(update={"scale": max(decimal_scale(plain.drop_nulls()) or 0, min_scale or 0)})]]
        return [[base]]
    if role == Role.EVENT_TIME:
        return [times] if times else []
    compact = [rule for rule in times if is_compact(rule)]
    others = [rule for rule in times if not is_compact(rule)]
    numbers = [] if texts.str.contains(LEADING_ZERO).any() else _number_candidates(texts, min_scale)
    groups = [_boolean_candidates(texts), compact, numbers, others, _comma_candidates(texts)]
    return [group for group in groups if group]


def _boolean_candidates(texts: pl.Series) -> list[ColumnRule]:
    """Return the boolean rule, unless all texts are one letter of one side, which can be a name."""
    lower = set(texts.str.to_lowercase().head(1000)) & {*_LETTERS, "true", "false", "yes", "no", "on", "off"}
    is_one_letter = lower <= _LETTERS and not ({"t", "f"} <= lower or {"y", "n"} <= lower)
    return [] if not lower or is_one_letter else [ColumnRule(type=ColumnType.BOOLEAN)]


def _number_candidates(texts: pl.Series, min_scale: int | None) -> list[ColumnRule]:
    numbers = texts.filter(texts.cast(pl.Float64, strict=False).is_finite().fill_null(value=False))
    if numbers.is_empty():
        return []
    if numbers.str.contains(_INTEGER).all() and not min_scale:
        whole = numbers.cast(pl.Int64, strict=False)
        if min_scale is None and not whole.null_count():
            return [ColumnRule(type=ColumnType.INTEGER)]
    elif min_scale is None and not loses_digits(numbers).any():
        return [ColumnRule(type=ColumnType.NUMBER)]
    scale = decimal_scale(numbers)
    if scale is None or max(scale, min_scale or 0) > 38:
        return [] if numbers.str.contains(_INTEGER).all() else [ColumnRule(type=ColumnType.NUMBER)]
    return [ColumnRule(type=ColumnType.DECIMAL, scale=max(scale, min_scale or 0))]


def _comma_candidates(texts: pl.Series) -> list[ColumnRule]:
    """Return the rule for numbers with a decimal comma, if a thousands separator is impossible."""
    if not texts.str.contains(_COMMA).any() or texts.str.contains(LEADING_ZERO).any():
        return []
    return [_DECIMAL_COMMA]


def _time_candidates(texts: pl.Series, role: Role) -> list[ColumnRule]:
    return candidate_rules(texts, is_needed=role == Role.EVENT_TIME, is_identity=role == Role.IDENTITY)


_TIMES = {ColumnType.TIMESTAMP, ColumnType.DATE}


def _fitting_rule(
    texts: pl.Series | pl.DataFrame, candidates: Sequence[ColumnRule], min_fit: float
) -> ColumnRule | None:
    """Return the candidate that fits the largest share of the values, at least `min_fit`; on a tie the first one.

    Raises:
        AmbiguousOrderError: Two candidates with another order of day and month fit equally well.
    """
    counts = texts.to_frame("text").with_columns(count=1) if isinstance(texts, pl.Series) else texts
    shares: list[tuple[float, ColumnRule]] = []
    for rule in candidates:
        shares.append((_fitting_share(counts, rule), rule))
        if shares[-1][0] == 1.0 and (not rule.format or rule.format.startswith("%Y")):  # no other order is possible
            return rule
    best = max((share for share, _ in shares), default=0.0)
    if best < min_fit or best == 0.0:
        return None
    winners = [rule for share, rule in shares if share == best]
    orders: dict[str, ColumnRule] = {}
    for rule in winners:
        if rule.format:
            orders.setdefault(day_order(rule.format), rule)
    if winners[0].format and len(orders) > 1:
        values = counts.filter(_fits(counts["text"], winners[0]))["text"].head(3).to_list()
        raise AmbiguousOrderError(
            f"in {', '.join(map(repr, values))} the order of day and month is not clear",
            [describe_format(rule) for rule in orders.values()],
        )
    return winners[0]


def _fits(texts: pl.Series, rule: ColumnRule) -> pl.Series:
    values = texts.to_frame("text").select(parse_text(pl.col("text"), rule)).to_series().is_not_null()
    if rule == _DECIMAL_COMMA:  # without a declaration, the comma must be the decimal mark everywhere
        values &= texts.str.contains(_MAYBE_COMMA)
    return values


def _fitting_share(counts: pl.DataFrame, rule: ColumnRule) -> float:
    total = int(counts["count"].sum())
    return int(counts.filter(_fits(counts["text"], rule))["count"].sum()) / total if total else 0.0


def _is_infinite(texts: pl.Series) -> pl.Series:
    infinite = texts.cast(pl.Float64, strict=False).is_infinite().fill_null(value=False)
    return texts.str.contains(_INFINITE) | infinite


def _plain(texts: pl.Series, rule: ColumnRule) -> pl.Series:
    return texts.to_frame("text").select(plain_number(pl.col("text"), rule)).to_series()
