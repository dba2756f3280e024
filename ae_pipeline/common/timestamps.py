"""Timestamps in the format of all state files."""

import datetime as dt


def now() -> str:
    """Return the current time as ISO 8601 text, in UTC, to the second."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
