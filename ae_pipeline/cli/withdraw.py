"""`ae-pipeline withdraw`: take the rows of wrong days out of everything, or take that back."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ae_pipeline.cli.confirm import confirm
from ae_pipeline.cli.project import Project, current_user
from ae_pipeline.common.errors import ConfigError
from ae_pipeline.common.escape import terminal_line
from ae_pipeline.common.text import abbreviate, pluralize
from ae_pipeline.config.display import noun_of_rows

if TYPE_CHECKING:
    from ae_pipeline.storage.dataset import Dataset

_NAMED_FILES = 10
"""Landed files that the question names."""


def withdraw(name: str, days: Sequence[str], why: str, *, undo: bool, confirmed: bool) -> int:
    """Withdraw days of a dataset after a confirmation, or take that back; return the exit status.

    Without days, list those that are withdrawn.

    Args:
        name: Name of the dataset.
        days: ISO dates.
        why: Reason, kept in the log of withdrawals.
        undo: Whether to take a withdrawal back.
        confirmed: Whether to go on without a question.

    Raises:
        ConfigError: A day has no such rows, a reason is missing, or nobody confirms.
        PipelineError: A run failed. The withdrawal stays, and `ae-pipeline run` goes on.
    """
    from ae_pipeline.ingestion.ledger import Ledger
    from ae_pipeline.ingestion.withdrawals import affected_rows, change_days

    project = Project.load()
    dataset = project.dataset(name)
    days = sorted(set(days))
    if not days:
        return _list_withdrawn(dataset)
    rows = affected_rows(Ledger.load(dataset.paths.ledger), days, dataset, undo=undo)
    if not why and not undo:
        raise ConfigError(f"a withdrawal needs a reason, which the log keeps; add --why to withdraw {abbreviate(days)}")
    print(terminal_line(_description(rows, days, undo=undo)))
    if not confirmed:
        confirm("Write yes to go on: ", "yes", "nothing was changed", "--yes to go on")
    with project.workspace.locked(name):
        ledger = Ledger.load(dataset.paths.ledger)
        change_days(ledger, days, dataset, who=current_user(), why=why, undo=undo)
    _follow(project, dataset)
    state = "back" if undo else "withdrawn"
    after = "" if undo else f"; `ae-pipeline withdraw {name} {' '.join(days)} --undo` takes it back"
    print(f"\n{abbreviate(days)}: {pluralize(sum(rows.values()), noun_of_rows(dataset.config))} {state}{after}.")
    return 0


def _list_withdrawn(dataset: "Dataset") -> int:
    from ae_pipeline.ingestion.ledger import Ledger
    from ae_pipeline.storage.jsonl import lines_of

    withdrawn = Ledger.load(dataset.paths.ledger).withdrawn
    reasons = {day: line for line in lines_of(dataset.paths.withdrawals) for day in line["days"]}
    noun = noun_of_rows(dataset.config)
    for day, rows in withdrawn.items():
        line = reasons.get(day, {"at": "", "who": "unknown", "why": ""})
        print(terminal_line(f"{day}  {pluralize(rows, noun)}, withdrawn {line['at']} by {line['who']}: {line['why']}"))
    if not withdrawn:
        print(f"No day of {dataset.name!r} is withdrawn.")
    return 0


def _description(rows: Mapping[str, int], days: Sequence[str], *, undo: bool) -> str:
    files = f"{abbreviate(sorted(rows))}" if len(rows) <= _NAMED_FILES else pluralize(len(rows), "landed file")
    count, what = pluralize(sum(rows.values()), "row"), abbreviate(days)
    if undo:
        return f"This brings back {count} of {what} from {files}."
    return (
        f"This withdraws {count} of {what}, which came from {files}: from raw_data, features, the latent table and the "
        "report. The landed files stay. The rows come back if their file changes, or with --undo."
    )


def _follow(project: Project, dataset: "Dataset") -> None:
    """Build the days again, and publish them if a version serves."""
    import datetime as dt

    from ae_pipeline.lifecycle.plan import Step, plan_landing, plan_serving
    from ae_pipeline.orchestration.tags import READ_TAG

    landing = plan_landing(dataset, dataset.config.today(), fetched_since=dt.datetime.now(dt.UTC))
    for work in landing.work:
        if work.step == Step.INGEST:
            for days in work.ranges:
                project.run_job(dataset, work.step, days, tags={READ_TAG: "by an earlier run"})
    for work in plan_serving(dataset, project.tracker).work:
        if work.step == Step.PUBLISH:
            for days in work.ranges:
                project.run_job(dataset, work.step, days)
