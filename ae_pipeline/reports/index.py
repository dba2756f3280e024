"""Which days the page over all days lists, and what it says of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from ae_pipeline.reports.groups import group_rows
from ae_pipeline.reports.ranking import as_rows, ranked_day
from ae_pipeline.storage.paths import DatasetPaths

_INDEX = 20
"""Days that the index lists, about."""


def most_worth_a_look(index: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Takes the days that the index lists: the newest with words, then those with the most flagged rows."""
    told = sorted((entry for entry in index if entry["words"]), key=lambda entry: entry["day"], reverse=True)
    others = [entry for entry in index if not entry["words"] and entry["flagged"]]
    others.sort(key=lambda entry: (-entry["flagged"], entry["day"]))
    return [*told[:_INDEX], *others[: max(_INDEX // 3, _INDEX - len(told))]]


def with_causes(index: Sequence[Mapping[str, Any]], paths: DatasetPaths) -> list[Mapping[str, Any]]:
    """Says of listed days that have no words what their flagged rows are strange by."""
    told: list[Mapping[str, Any]] = []
    for entry in index:
        causes = [] if entry["words"] else group_rows(as_rows(ranked_day(entry["day"], paths)))
        told.append({**entry, "words": entry["words"] or "; ".join(cause.message for cause in causes[:3])})
    return told
