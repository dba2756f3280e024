"""Days that a person withdraws: their rows stay in the staged copies, and nothing is made from them.

The ledger holds what is withdrawn. A log beside the history says who did it and why, and restores the ledger.
"""

import datetime as dt
from collections.abc import Sequence

from ae_pipeline.common.errors import ConfigError
from ae_pipeline.common.text import abbreviate
from ae_pipeline.ingestion.ledger import LandedFile, Ledger
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.jsonl import add_line, lines_of
from ae_pipeline.storage.paths import DatasetPaths

WITHDRAWN, RESTORED = "withdrawn", "restored"


def affected_rows(ledger: Ledger, days: Sequence[str], dataset: Dataset, *, undo: bool = False) -> dict[str, int]:
    """Return the number of rows of each landed file that a withdrawal of days, or its undoing, would change.

    Args:
        ledger: Current ledger.
        days: ISO dates.
        dataset: Dataset of the ledger.
        undo: Whether to take a withdrawal back.

    Raises:
        ConfigError: The dataset has no days, a day is not an ISO date, or no landed file has such rows.
    """
    if not dataset.config.is_daily:
        raise ConfigError(
            f"{dataset.name!r} has no event time, so its rows have no days; to withdraw a file, delete it from the "
            f"landing folder and set 'on_delete: withdraw' in {dataset.paths.contract}"
        )
    for day in days:
        _check_date(day)
    counted = [entry.withdrawn if undo else entry.days for entry in ledger.files.values()]
    if missing := [day for day in days if not any(day in counts for counts in counted)]:
        state = "is withdrawn" if undo else "has rows of landed files"
        known = sorted({day for counts in counted for day in counts})
        which = f"; such days are {abbreviate(known)}" if known else ""
        raise ConfigError(f"{missing[0]} is not a day of {dataset.name!r} that {state}; choose another day{which}")
    rows = {name: sum(counts.get(day, 0) for day in days) for name, counts in zip(ledger.files, counted, strict=True)}
    return {name: count for name, count in rows.items() if count}


def change_days(
    ledger: Ledger, days: Sequence[str], dataset: Dataset, *, who: str, why: str, undo: bool = False
) -> Ledger:
    """Withdraw days, or take their withdrawal back, and return the new ledger. The caller holds the lock.

    Args:
        ledger: Current ledger.
        days: ISO dates with rows.
        dataset: Dataset of the ledger.
        who: Person who asks for it.
        why: Reason, kept in the log.
        undo: Whether to take a withdrawal back.
    """
    files = {name: ledger.files[name] for name in affected_rows(ledger, days, dataset, undo=undo)}
    line = {
        "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "change": RESTORED if undo else WITHDRAWN,
        "days": list(days),
        "files": {name: entry.sha256 for name, entry in files.items()},
        "who": who,
        "why": why,
    }
    add_line(dataset.paths.withdrawals, line)
    changed = {name: _changed(entry, days, undo=undo) for name, entry in files.items()}
    result = Ledger({**ledger.files, **changed})
    result.save(dataset.paths.ledger)
    return result


def replay_withdrawals(ledger: Ledger, paths: DatasetPaths) -> Ledger:
    """Return a ledger that was built from staged copies with the withdrawals of the log.

    Args:
        ledger: Ledger of the staged copies.
        paths: Paths of the dataset.
    """
    files = dict(ledger.files)
    for line in lines_of(paths.withdrawals):
        for name, sha256 in line["files"].items():
            if name in files and files[name].sha256 == sha256:
                files[name] = _changed(files[name], line["days"], undo=line["change"] == RESTORED)
    return Ledger(files)


def _changed(entry: LandedFile, days: Sequence[str], *, undo: bool) -> LandedFile:
    return entry.with_days(days) if undo else entry.without_days(days)


def _check_date(day: str) -> None:
    try:
        is_date = dt.date.fromisoformat(day).isoformat() == day
    except ValueError:
        is_date = False
    if not is_date:
        raise ConfigError(f"{day!r} is not a day; write it as an ISO date, such as 2013-02-08")
