"""`ae-pipeline mark`: say that a row, a cause or a day is real, known, or a false alarm."""

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ae_pipeline.cli.project import Project, current_user
from ae_pipeline.common.errors import ConfigError
from ae_pipeline.common.escape import terminal_line
from ae_pipeline.common.text import plural, pluralize

if TYPE_CHECKING:
    from ae_pipeline.monitoring.feedback import Mark
    from ae_pipeline.reports.review import MarkRequest
    from ae_pipeline.storage.dataset import Dataset

STATES = ("real", "known", "false-alarm", "cleared")
"""States as the command line names them."""

MARK_HELP = "say that a row, a cause or a day is real, known, or a false alarm"

_LISTED = 20
"""Causes, rows and marks that the list shows of each."""


@dataclass(frozen=True, kw_only=True)
class MarkOptions:
    """Options of the command.

    Attributes:
        state: One of `STATES`; None to list.
        row: Identity of a flagged row.
        cause: Columns of a cause joined by `+`.
        day: ISO date.
        entity: Restricts a cause to one entity.
        note: Remark.
        who: Person; by default the user of this process.
    """

    state: str | None
    row: str | None = None
    cause: str | None = None
    day: str | None = None
    entity: str = ""
    note: str = ""
    who: str | None = None


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments and options of the command to a parser."""
    parser.add_argument("dataset", help="a dataset of the defs folder")
    parser.add_argument("state", nargs="?", choices=STATES, help="what it is; without it, list what can be marked")
    parser.add_argument("--row", metavar="ID", help="a flagged row, by its identity")
    parser.add_argument("--cause", metavar="COLUMNS", help="a cause of the report, its columns joined by +")
    parser.add_argument("--day", metavar="DAY", help="a day as a whole, or the day of the cause; an ISO date")
    parser.add_argument("--entity", default="", help="only the rows of one entity, such as a daily flight")
    parser.add_argument("--note", default="", help="remark, kept with the mark")
    parser.add_argument("--who", help="person; by default the user of this command")


def mark(name: str, options: MarkOptions) -> int:
    """Mark a row, a cause or a day of the report, or list what can be marked; return the exit status.

    Args:
        name: Name of the dataset.
        options: Options of the command.

    Raises:
        ConfigError: The options name nothing that the report has.
    """
    from ae_pipeline.cli.summary import verdict_line
    from ae_pipeline.config.display import noun_of_rows
    from ae_pipeline.lifecycle.feedback import mark_and_show
    from ae_pipeline.monitoring.feedback import MarkKind
    from ae_pipeline.reports.review import offer_after

    dataset = Project.load(opens_instance=False).dataset(name)
    if options.state is None:
        print("\n".join(map(terminal_line, _overview(dataset))))
        return 0
    stored, noun = mark_and_show(_request(options), dataset), noun_of_rows(dataset.config)
    covers = f" ({pluralize(len(stored.rows), noun)})" if stored.rows else ""
    kind = noun if stored.kind == MarkKind.ROW else stored.kind
    print(terminal_line(f"{kind} {stored.subject}{covers}: marked as {stored.state.text} by {stored.who}."))
    if line := verdict_line(dataset):
        print(line)
    print(f"`ae-pipeline run {name}` takes it into checks and pages of days.")
    if offer := offer_after(stored, dataset):
        asked = f"--cause={shlex.quote(offer.request.subject)} --entity={shlex.quote(offer.request.entity)}"
        print(terminal_line(f"{offer.message}: ae-pipeline mark {name} known {asked}"))
    return 0


def _request(options: MarkOptions) -> "MarkRequest":
    from ae_pipeline.monitoring.feedback import MarkKind, MarkState
    from ae_pipeline.reports.review import MarkRequest

    if options.row is not None and options.cause is not None:
        raise ConfigError("a mark is about a row or a cause, and both --row and --cause are given; leave one out")
    if options.row is not None:
        kind, subject = MarkKind.ROW, options.row
    elif options.cause is not None:
        kind, subject = MarkKind.CAUSE, options.cause
    elif options.day is not None:
        kind, subject = MarkKind.DAY, options.day
    else:
        raise ConfigError("a mark needs a subject; add --row ID, --cause COLUMN+COLUMN or --day DATE")
    return MarkRequest(
        kind=kind,
        subject=subject,
        state=MarkState((options.state or "").replace("-", "_")),
        day=options.day or "",
        entity=options.entity,
        note=options.note,
        who=options.who or current_user(),
    )


def _overview(dataset: "Dataset") -> list[str]:
    """Return what can be marked of the newest day with flagged rows, and the last marks."""
    from ae_pipeline.cli.summary import verdict_line
    from ae_pipeline.config.display import noun_of_rows
    from ae_pipeline.monitoring.feedback import marks_of, review
    from ae_pipeline.reports.review import cause_key, flagged_rows, read_ranked
    from ae_pipeline.reports.summary import read_summary

    summary = read_summary(dataset.paths) or {}
    days = [entry["day"] for entry in summary.get("days", [])]
    rows = flagged_rows(read_ranked(dataset.paths), dataset.config)
    marks = marks_of(dataset.paths)
    states = review(rows, marks, days).states
    noun = noun_of_rows(dataset.config)
    newest = max((row.day for row in rows), default="")
    lines = [line] if (line := verdict_line(dataset)) else []
    of_day = [row for row in rows if row.day == newest]
    of_newest = f" of {newest}" if dataset.config.is_daily else ""
    lines += ["", f"Flagged {plural(noun)}{of_newest}:" if of_day else f"No {noun} is flagged."]
    for row in of_day[:_LISTED]:
        state = f", {states[row.row_id].text}" if row.row_id in states else ""
        lines.append(f"  {row.row_id}  cause {cause_key(row.columns)}, score {row.score:.1f}{state}")
    if marks:
        lines += ["", "Last marks:", *_mark_lines(marks)]
    example = shlex.quote(cause_key(of_day[0].columns)) if of_day else "COLUMN"
    return [*lines, "", f'ae-pipeline mark {dataset.name} known --cause={example} --note "why"']


def _mark_lines(marks: "Sequence[Mark]") -> list[str]:
    return [
        f"  {each.at}  {each.kind} {each.subject} {each.entity}".rstrip()
        + f": {each.state.text} by {each.who} {each.note}".rstrip()
        for each in marks[-_LISTED:]
    ]
