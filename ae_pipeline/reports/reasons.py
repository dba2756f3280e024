"""Why a row stands out, as text."""

from collections.abc import Mapping
from typing import Any

from ae_pipeline.config.display import ColumnNames
from ae_pipeline.detector.explanation import Contribution, because


def reason_of(because: str, *, is_marked: bool) -> str:
    """Return an explanation, with the remark that the row is not flagged if it is not.

    Args:
        because: Explanation of the row; may be empty if the row is not marked.
        is_marked: Whether the row is flagged or a discovery.

    >>> reason_of("load is 9, expected 1", is_marked=False)
    'not flagged; most unusual: load is 9, expected 1'
    """
    if is_marked:
        return because
    return f"not flagged; most unusual: {because}" if because else "not flagged"


def reworded(record: Mapping[str, Any], names: ColumnNames) -> str:
    """Return the explanation of a stored row with titles, units and names of values; empty if it has none.

    Args:
        record: Row of a file, with `because` and `contributions`.
        names: How the text names columns.
    """
    parts = [Contribution.from_record(each) for each in record["contributions"] or ()]
    return because(parts, names) if parts and record["because"] else record["because"]
