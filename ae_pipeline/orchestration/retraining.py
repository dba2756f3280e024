"""Whether a training is due: what the last one started from, held against what is there now."""

from collections.abc import Mapping
from dataclasses import dataclass

from ae_pipeline.storage import DatasetPaths, read_facts

Content = Mapping[str, tuple[str, int]]
"""Content hash and rows of each day of features."""


@dataclass(frozen=True)
class Due:
    """Whether to train, and why.

    Attributes:
        yes: To train.
        words: The reason, for a person.
        new_rows: Rows of days that are new or changed.
    """

    yes: bool
    words: str
    new_rows: int


def features_content(paths: DatasetPaths) -> dict[str, tuple[str, int]]:
    """Lists the days of features that are there, with content hash and rows."""
    folder = paths.features("_").parent
    facts = {path.stem: read_facts(path) for path in sorted(folder.glob("[!.]*.parquet"))}
    return {day: (fact["content_hash"], int(fact["rows"])) for day, fact in facts.items() if fact}


def is_training_due(now: Content, last: Content | None, min_new_rows: int) -> Due:
    """Compares the days that the last training started from with those that are there.

    Args:
        now: Content of the features.
        last: The same as the last training found it; None when there was none.
        min_new_rows: Rows of new or changed days below which training can wait.
    """
    if not any(rows for _, rows in now.values()):
        return Due(False, "there are no features yet; materialize raw_data and features first", 0)
    if last is None:
        return Due(True, "nothing was trained yet", sum(rows for _, rows in now.values()))
    changed = [day for day, (digest, _) in now.items() if day not in last or last[day][0] != digest]
    rows = sum(now[day][1] for day in changed)
    if not changed:
        return Due(False, f"nothing new: all {len(now):,} days are as the last training found them", 0)
    words = f"{rows:,} rows on {len(changed):,} new or changed days since the last training"
    if rows < min_new_rows:
        return Due(False, f"{words}, fewer than min_new_rows={min_new_rows:,}", rows)
    return Due(True, words, rows)
