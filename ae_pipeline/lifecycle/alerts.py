"""Alerts that the steps of a dataset raise, shown in the report at once."""

import logging
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from ae_pipeline.common.errors import StorageError
from ae_pipeline.common.text import plural, pluralize
from ae_pipeline.config.display import count_rejected
from ae_pipeline.ingestion.ledger import LandedFile, Ledger
from ae_pipeline.monitoring.alerts import Alert, AlertEvent, alerted_subjects, post_due_alerts, raise_alert
from ae_pipeline.monitoring.verdict import DayAssessment, ReasonKind
from ae_pipeline.reports.summary import read_summary
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.hashing import hash_json
from ae_pipeline.storage.session import try_to_hold_dataset

if TYPE_CHECKING:
    from ae_pipeline.detector.bundle import ModelBundle

logger = logging.getLogger(__name__)

RECENT_DAYS = 7
"""Newest days of a run with alerts about more than the alert budget. Older ones are past help, and would be many."""


def _show(dataset: Dataset, refused: str | None = None) -> None:
    """Show alerts and refused files in the report. Its modules need torch, which a run without alerts need not load."""
    from ae_pipeline.reports.page import refresh_operations

    refresh_operations(dataset, refused)


def raise_and_show(alert: Alert, dataset: Dataset) -> None:
    """Raise an alert and show it in the report. The caller holds the lock of the dataset."""
    if raise_alert(alert, dataset):
        _show(dataset)


def raise_without_lock(alert: Alert, dataset: Dataset) -> None:
    """Raise an alert. Show it in the report if no run holds the lock of the dataset; otherwise the run will show it."""
    if not raise_alert(alert, dataset):
        return
    try:
        with try_to_hold_dataset(dataset.paths) as is_free:
            if is_free:
                _show(dataset)
    except StorageError as error:
        logger.warning(f"the alert is stored, but the report does not show it yet: {error}")


def post_due_and_show(dataset: Dataset) -> None:
    """Post the queued alerts of earlier runs that are due. The caller holds the lock of the dataset."""
    if post_due_alerts(dataset):
        _show(dataset)


def alert_broken_contract(
    ledger: Ledger,
    days: Collection[str] | None,
    dataset: Dataset,
    run_id: str,
    names: Collection[str] = (),
) -> None:
    """Raise one alert about all landed files that break the schema contract and were not alerted before.

    Args:
        ledger: Ledger after the files were read.
        days: Files with rows on these days are checked for rows in quarantine; None to check only `names`.
        dataset: Dataset of the files.
        run_id: Dagster run that found them.
        names: Files to check as well. Refused files are always part of the alert.
    """
    known = alerted_subjects(dataset.paths, AlertEvent.CONTRACT_BROKEN)
    entries = {name: ledger.files[name] for name in ledger.refused}
    refused = {name: entry for name, entry in entries.items() if _subject(name, entry) not in known}
    messages = [_refused_message(refused)] if refused else []
    subjects = [_subject(*item) for item in refused.items()]
    checked = {
        name: entry
        for name, entry in ledger.files.items()
        if name in names or (days is not None and (not entry.days or not entry.days.keys().isdisjoint(days)))
    }
    broken = {name: sum(entry.quarantined.values()) for name, entry in checked.items() if entry.quarantined}
    rows = sum(entry.rows for entry in checked.values()) + sum(broken.values())
    new = [name for name in broken if name not in refused and _subject(name, checked[name]) not in known]
    if new and sum(broken.values()) > dataset.config.max_quarantine_share * rows:
        messages.append(_quarantine_message(dataset, checked, broken, rows, new))
        subjects += [_subject(name, checked[name]) for name in new]
    summary = read_summary(dataset.paths)
    is_shown = summary is None or summary.get("refused", "") == ledger.refused_message
    if subjects:
        key = f"contract {hash_json(sorted(subjects))}"
        event = AlertEvent.CONTRACT_BROKEN
        message = "; ".join(messages)
        alert = Alert(event=event, key=key, message=message, run_id=run_id, subjects=tuple(subjects))
        is_shown &= not raise_alert(alert, dataset)
    if not is_shown:
        _show(dataset, ledger.refused_message)


def _refused_message(refused: dict[str, LandedFile]) -> str:
    name, entry = next(iter(refused.items()))
    more = f" ({pluralize(len(refused) - 1, 'more file')} too)" if len(refused) > 1 else ""
    return f"{name} is refused{more}: {entry.refused}"


def _quarantine_message(
    dataset: Dataset, checked: dict[str, LandedFile], broken: dict[str, int], rows: int, new: list[str]
) -> str:
    name, config = max(new, key=lambda name: broken[name]), dataset.config
    rule = max(checked[name].quarantined.items(), key=lambda item: item[1])[0]
    quarantined = dataset.paths.quarantined(checked[name].rejected_copy or "")
    most, verb = count_rejected(broken[name], config), "is" if rows == 1 else "are"
    return (
        f"{sum(broken.values()):,} of {count_rejected(rows, config)} of {pluralize(len(checked), 'file')} {verb} in "
        f"quarantine, at most {dataset.config.max_quarantine_share:.1%} may be: {most} of "
        f"{name}, mostly by the rule {rule!r}; look at {quarantined}, fix the file and land it again"
    )


def _subject(name: str, entry: LandedFile) -> str:
    return f"{name} {entry.sha256[:16]}"


def alert_wrong_days(
    assessments: Mapping[str, DayAssessment], bundle: "ModelBundle", dataset: Dataset, run_id: str
) -> None:
    """Raise an alert for each reason why a day is wrong, except for days that the model was fitted on.

    Another version of the model or of the report assesses all days again: see `RECENT_DAYS`.

    Args:
        assessments: Assessments by day. They leave out what people marked as known or as false alarms.
        bundle: Model that scored the days.
        dataset: Dataset of the days.
        run_id: Dagster run that assessed them.
    """
    recent = set(sorted(assessments)[-RECENT_DAYS:])
    for day, each in assessments.items():
        if dataset.config.is_daily and day <= bundle.window.days[-1]:
            continue
        for reason in each.reasons:
            if reason.kind != ReasonKind.OVER_BUDGET and day not in recent:
                continue
            message, key = f"{each.title}: {reason.message}", f"{reason.kind.value} {day} {each.rows}"
            figures = {"rows": float(each.rows), "size": float(reason.size)}
            if reason.kind == ReasonKind.OVER_BUDGET:
                rows = each.rows - each.known_anomalies
                times = each.new / rows / each.budget
                of_day = f" of {day}" if dataset.config.is_daily else ""
                message = (
                    f"{each.new:,} of {rows:,} {plural(each.noun)}{of_day} are flagged, {times:.1f} times the budget"
                )
                key = f"budget {day} {each.rows}"
                figures = {"rows": float(rows), "flagged": float(each.new), "budget": each.budget}
            event = AlertEvent(reason.kind.value)
            raise_alert(Alert(event=event, key=key, message=message, run_id=run_id, figures=figures), dataset)
