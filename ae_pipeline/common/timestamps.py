"""Timestamps in one format."""

import datetime as dt


def now() -> str:
    """Gives this moment, ISO 8601, UTC, to the second."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
