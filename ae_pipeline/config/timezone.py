"""Check the name of a time zone."""

import difflib
import zoneinfo

_NOT_PORTABLE = {"Factory", "localtime", "posixrules"}
"""Names that the time zone database has, but that mean another zone on each machine, or none."""

_EXAMPLE = "Europe/Berlin"


def check_timezone(name: str) -> str:
    """Return the name of a time zone if it exists.

    Args:
        name: IANA name.

    Raises:
        ValueError: The database has no such zone. The message names one that is similar and valid.

    >>> check_timezone("America/New_York")
    'America/New_York'
    >>> check_timezone("America/NewYork")
    Traceback (most recent call last):
        ...
    ValueError: timezone='America/NewYork' is not an IANA time zone; write a name such as 'America/New_York'
    """
    valid = zoneinfo.available_timezones() - _NOT_PORTABLE
    if name in valid:
        return name
    by_lower = {each.lower(): each for each in sorted(valid)}
    cities = {each.rpartition("/")[2].lower(): each for each in sorted(valid, reverse=True) if "/" in each}
    lower = name.strip().lower().replace(" ", "_")
    similar = difflib.get_close_matches(lower, by_lower, 1, 0.75)
    suggestion = by_lower.get(lower) or cities.get(lower) or (by_lower[similar[0]] if similar else _EXAMPLE)
    raise ValueError(f"timezone={name!r} is not an IANA time zone; write a name such as {suggestion!r}")
