"""Short texts for log lines and messages."""

from collections.abc import Sequence


def pluralize(count: int, noun: str) -> str:
    """Counts something whose plural ends in s."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def abbreviate(days: Sequence[str]) -> str:
    """Names days, the middle of a long list left out."""
    return ", ".join(days) if len(days) <= 4 else f"{days[0]}, {days[1]} … {days[-1]}"


def first_line(error: Exception) -> str:
    """Shortens an error to what fits into a reason."""
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
