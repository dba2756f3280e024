"""Tags of runs."""

from collections.abc import Mapping

from ae_pipeline.storage.paths import ALL_ROWS

DATASET_TAG = "ae_pipeline/dataset"
"""Dataset of the run."""

REQUEST_TAG = "ae_pipeline/request"
"""Work that a sensor requested the run for. All attempts at the same work share it."""

REASON_TAG = "ae_pipeline/reason"
"""Why the run was requested, for a person."""

READ_TAG = "ae_pipeline/read"
"""Set if an earlier run has read the landed files, so that this one need not."""

SIDE_BY_SIDE_TAG = "ae_pipeline/side_by_side"
"""Set if other runs may build other days of the dataset at the same time."""

ACCEPT_TAG = "ae_pipeline/accept_removal"
"""Set to `yes` by a person who accepts that the run removes more than `max_removed_share` of the rows."""

PLANNED_TAG = "ae_pipeline/planned"
"""Set if the planner chose the range of days, which may span days without content. Only the others are built."""

WHO_TAG = "ae_pipeline/who"
"""Person who requested the run."""

PROCESS_TAG = "ae_pipeline/process"
"""Process that executes the run, by run id, host, start of the machine, process id and start."""

PRIORITY_TAG = "dagster/priority"
"""Dagster's own tag with the place of a run in the queue: higher ones first, 0 by default."""

RETRY_PRIORITY, PERSON_PRIORITY = "10", "20"
"""Priority of the retry of a lost run, which had its turn already, and of a run that a person waits for."""

REPOSITORY_TAG = ".dagster/repository"
"""Dagster's own tag that assigns a run to a code location, so that its job page shows it."""

LOCATION = "ae_pipeline"
"""Name of the code location, as in workspace.yaml and in the configuration of `dg`."""

REPOSITORY = f"__repository__@{LOCATION}"


_PARTITION = "dagster/partition"
_RANGE_START, _RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"


def range_tags(first: str, last: str) -> dict[str, str]:
    """Return the tags of a planned run over a range of days; none for a dataset without event time."""
    if first == ALL_ROWS:
        return {}
    return {_RANGE_START: first, _RANGE_END: last, PLANNED_TAG: "days with content"}


def named_days(tags: Mapping[str, str]) -> list[str]:
    """Return the day that the tags of a run name, or the first and the last day of its range; empty without a day."""
    names = (_PARTITION,) if _PARTITION in tags else (_RANGE_START, _RANGE_END)
    return sorted(tags[name] for name in names if name in tags)


def accepts_removal(tags: Mapping[str, str]) -> bool:
    """Return whether a person accepts that a run removes many rows.

    >>> accepts_removal({"ae_pipeline/accept_removal": "Yes"}), accepts_removal({})
    (True, False)
    """
    return tags.get(ACCEPT_TAG, "").strip().lower() in {"yes", "true", "1"}


def requested_by(tags: Mapping[str, str]) -> str:
    """Return on whose behalf a run works."""
    for tag, kind in (("dagster/schedule_name", "schedule"), ("dagster/sensor_name", "sensor")):
        if tag in tags:
            return f"{kind} {tags[tag]}"
    return tags.get(WHO_TAG, "somebody in the Dagster UI")
