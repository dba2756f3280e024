"""Apply what people marked to flagged rows, and mark rows, causes and days."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from ae_pipeline.common.errors import ConfigError
from ae_pipeline.common.text import plural, with_article
from ae_pipeline.config.display import noun_of_rows
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.features.split import LABEL
from ae_pipeline.ingestion.names import column_names
from ae_pipeline.latents.read import published_day, published_days
from ae_pipeline.monitoring.feedback import (
    NO_VERSION,
    PAUSE_DAYS,
    REPEATED,
    UNREVIEWED,
    FlaggedRow,
    Mark,
    MarkKind,
    MarkState,
    Review,
    add_mark,
    marks_by_row,
    marks_of,
    review,
)
from ae_pipeline.monitoring.marks_summary import false_alarms_of, marks_since_known
from ae_pipeline.monitoring.verdict import FLAGGED
from ae_pipeline.reports.groups import cause
from ae_pipeline.reports.ranking import DESCRIBED, as_rows
from ae_pipeline.reports.summary import read_summary
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.parquet import read_facts, whole
from ae_pipeline.storage.paths import ALL_ROWS, DatasetPaths

_MAX_ROWS = 1_000
"""Rows that one mark may cover."""


@dataclass(frozen=True, kw_only=True)
class MarkRequest:
    """What a person wants to mark.

    Attributes:
        kind: What the mark is about.
        subject: Identity of a row, columns of a cause joined by `+`, or ISO date.
        state: What the person says.
        day: Day of the cause; empty for its rows on all days.
        entity: Restricts a cause to one entity; empty for all.
        note: Remark.
        who: Person.
    """

    kind: MarkKind
    subject: str
    state: MarkState
    day: str = ""
    entity: str = ""
    note: str = ""
    who: str = ""


def entity_of(row_id: str, config: PipelineConfig) -> str:
    """Return the identity of a row without its event time, such as a daily flight.

    It is empty if each row has another one: the event time is not part of the identity, or nothing else is.

    Args:
        row_id: Identity of the row.
        config: Configuration of the dataset.
    """
    names, parts = config.identity, row_id.split("|")
    if config.event_time not in names or len(names) < 2 or len(parts) != len(names):
        return ""
    return "|".join(part for name, part in zip(names, parts, strict=True) if name != config.event_time)


def cause_key(columns: Sequence[str]) -> str:
    """Return the columns of a cause as the subject of a mark."""
    return "+".join(columns)


def flagged_rows(ranked: pl.DataFrame, config: PipelineConfig) -> list[FlaggedRow]:
    """Return the flagged rows of a ranked table, the highest score first.

    Args:
        ranked: Ranked rows.
        config: Configuration of the dataset.
    """
    flagged = ranked.filter("is_anomaly")
    return [
        FlaggedRow(
            row_id=row.row_id,
            day=row.event_time.date().isoformat() if config.is_daily and row.event_time else ALL_ROWS,
            score=row.score,
            columns=cause(row) if row.contributions else (),
            entity=entity_of(row.row_id, config),
            is_labeled=bool(row.is_known_anomaly),
            model_version=version,
        )
        for row, version in zip(as_rows(flagged, config.timezone), flagged["model_version"], strict=True)
    ]


def review_of(ranked: pl.DataFrame, days: Sequence[str], dataset: Dataset) -> Review:
    """Return the flagged rows of a ranked table, and the days, as people marked them.

    Args:
        ranked: Ranked rows of all days.
        days: All days with rows.
        dataset: Configuration and paths of the dataset.
    """
    marks = marks_of(dataset.paths)
    return review(flagged_rows(ranked, dataset.config), marks, days) if marks else UNREVIEWED


def read_ranked(paths: DatasetPaths) -> pl.DataFrame:
    """Read the ranked rows of the last report.

    Raises:
        ConfigError: There is no report, or an earlier version of the package wrote it.
    """
    path = paths.reports / "alerts.parquet"
    if not read_facts(path):
        raise ConfigError(f"{paths.dataset!r} has no report, so nothing can be marked; run `ae-pipeline run` first")
    ranked = pl.read_parquet(whole(path), glob=False)
    if missing := DESCRIBED.keys() - set(ranked.columns):
        raise ConfigError(
            f"an earlier version wrote the report of {paths.dataset!r}, without {', '.join(sorted(missing))}; "
            f"`ae-pipeline run {paths.dataset}` builds it again"
        )
    return ranked.with_columns(pl.col(LABEL).cast(pl.Boolean))


def mark(request: MarkRequest, dataset: Dataset) -> Mark:
    """Store what a person says about a flagged row, a cause or a day of the report, and return the mark.

    Args:
        request: What to mark.
        dataset: Configuration and paths of the dataset.

    Raises:
        ConfigError: The report has no such row, cause or day.
    """
    ranked = read_ranked(dataset.paths)
    rows = flagged_rows(ranked, dataset.config)
    version = int(ranked["model_version"][0]) if ranked.height else 0
    stored = _mark_of_day(request, dataset, version) if request.kind == MarkKind.DAY else None
    stored = stored or _mark_of_rows(request, rows, version, dataset)
    add_mark(stored, dataset.paths)
    return stored


@dataclass(frozen=True)
class Offer:
    """A mark that would leave out the later rows of an entity with repeated false alarms.

    Attributes:
        message: Why it is offered.
        request: What would be marked.
    """

    message: str
    request: MarkRequest


def offer_of(entity: str, columns: Sequence[str], dataset: Dataset) -> Offer | None:
    """Return the offer to mark a cause as known for an entity that has had several false alarms of this cause.

    There is none with fewer false alarms since the cause was made known for the last time. What is known ends when it
    grows or pauses, and is then offered again.

    Args:
        entity: Identity of the rows without the event time; may be empty.
        columns: Columns of the cause.
        dataset: Configuration and paths of the dataset.
    """
    marks, cause_columns = marks_of(dataset.paths), tuple(columns)
    alarms = len(false_alarms_of(entity, cause_columns, marks_since_known(entity, cause_columns, marks)))
    if alarms < REPEATED:
        return None
    subject, names = cause_key(cause_columns), column_names(dataset)
    rows, cause_text = names.rows, ", ".join(map(names.title, cause_columns))
    message = (
        f"{alarms} {rows} of {entity} with a cause like {cause_text} are false alarms. "
        "Later ones can stay flagged after a training, because the model does not see who they belong to. From the "
        f"next version of the model on, counts and alerts leave out later {rows} of {entity} with this cause. If it is "
        f"known for {entity}, they do so at once, until its {rows} grow or pause for {PAUSE_DAYS} days"
    )
    note = f"{alarms} false alarms"
    request = MarkRequest(kind=MarkKind.CAUSE, subject=subject, state=MarkState.KNOWN, entity=entity, note=note)
    return Offer(message, request)


def offer_after(stored: Mark, dataset: Dataset) -> Offer | None:
    """Return the offer that follows from a mark: after a false alarm, that of its entity and cause; otherwise none."""
    return offer_of(stored.entity, stored.columns, dataset) if stored.state == MarkState.FALSE_ALARM else None


def _mark_of_rows(request: MarkRequest, rows: Sequence[FlaggedRow], version: int, dataset: Dataset) -> Mark:
    marks, noun = marks_of(dataset.paths), noun_of_rows(dataset.config)
    if request.kind == MarkKind.ROW:
        chosen = [row for row in rows if row.row_id == request.subject] or _published_row(request, dataset)
    else:
        chosen = [
            row
            for row in rows
            if row.columns  # one without explanation has no cause
            and cause_key(row.columns) == request.subject
            and request.day in {"", row.day}
            and request.entity in {"", row.entity}
        ]
        if chosen and request.entity and request.state == MarkState.KNOWN:
            # Their causes vary from row to row, and they show what the cause of this entity looks like.
            alarms = {*false_alarms_of(request.entity, chosen[0].columns, marks)}
            chosen += [row for row in rows if row.row_id in alarms and row not in chosen]
        if request.state == MarkState.KNOWN:  # what somebody called real says nothing about what is known
            real = {
                row_id
                for row_id, mark in marks_by_row(marks).items()
                if mark.is_judged_row and mark.state == MarkState.REAL
            }
            chosen = [row for row in chosen if row.row_id not in real] or chosen
    if not chosen:
        what = f"{noun} {request.subject!r}" if request.kind == MarkKind.ROW else f"cause {request.subject!r}"
        where = f" on {request.day}" if request.day else ""
        whose = f" of {request.entity!r}" if request.entity else ""
        raise ConfigError(
            f"the report of {dataset.name!r} has no {what}{whose}{where}; `ae-pipeline mark {dataset.name}` lists "
            f"the flagged {plural(noun)} and causes of its newest day"
        )
    by_day: dict[str, int] = {}
    for row in chosen:
        by_day[row.day] = by_day.get(row.day, 0) + 1
    # Of a row that is not flagged, no version has a share: the precision of a version is about its flags.
    version = version if request.kind == MarkKind.CAUSE else chosen[0].model_version
    return Mark(
        kind=request.kind,
        subject=request.subject,
        state=request.state,
        day=max(by_day),
        entity=request.entity if request.kind == MarkKind.CAUSE else chosen[0].entity,
        columns=chosen[0].columns,
        rows={row.row_id: row.day for row in chosen[:_MAX_ROWS]},
        sizes={"rows": max(by_day.values()), "score": max(row.score for row in chosen)},
        model_version=version,
        note=request.note,
        who=request.who,
    )


def _published_row(request: MarkRequest, dataset: Dataset) -> list[FlaggedRow]:
    """Return a row that the report does not list, from the latent table; its cause is unknown.

    Raises:
        ConfigError: The row is not flagged, and is to be called anything but real.
    """
    columns = ["row_id", "score", "is_anomaly", "model_version"]
    for day, published in sorted(published_days(dataset.paths).items(), reverse=True):
        rows = published_day(published, dataset.paths, columns).filter(pl.col("row_id") == request.subject)
        for row in rows.iter_rows(named=True):
            if not row["is_anomaly"] and request.state not in {MarkState.REAL, MarkState.CLEARED}:
                noun = noun_of_rows(dataset.config)
                raise ConfigError(
                    f"{noun} {request.subject!r} of {dataset.name!r} is not flagged, so it cannot be "
                    f"{request.state.text}; {with_article(noun)} that is not flagged can be marked as real"
                )
            entity = entity_of(request.subject, dataset.config)
            version = row["model_version"] if row["is_anomaly"] else NO_VERSION
            return [
                FlaggedRow(
                    row_id=request.subject,
                    day=day if dataset.config.is_daily else ALL_ROWS,
                    score=row["score"],
                    columns=(),
                    entity=entity,
                    model_version=version,
                )
            ]
    return []


def _mark_of_day(request: MarkRequest, dataset: Dataset, version: int) -> Mark:
    day = _days_of(dataset.paths).get(request.subject)
    if day is None:
        raise ConfigError(
            f"the report of {dataset.name!r} has no day {request.subject!r}; name one of its days as an ISO date, such "
            "as 2013-02-08"
        )
    reasons = day.get("reasons", [])
    return Mark(
        kind=MarkKind.DAY,
        subject=request.subject,
        state=request.state,
        day=request.subject,
        columns=tuple(dict.fromkeys(name for reason in reasons for name in reason["columns"])),
        sizes={FLAGGED: day["flagged"], **{reason["kind"]: reason["size"] for reason in reasons}},
        model_version=version,
        note=request.note,
        who=request.who,
    )


def _days_of(paths: DatasetPaths) -> dict[str, Mapping[str, Any]]:
    """Return counts and verdict of each day of the report, by day."""
    return {entry["day"]: entry for entry in (read_summary(paths) or {}).get("days", [])}
