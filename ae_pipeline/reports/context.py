"""Variables of the page templates, as JSON-compatible values, so that a page can be rendered again from a file."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ae_pipeline.config.display import ColumnNames
from ae_pipeline.detector.explanation import Contribution
from ae_pipeline.monitoring.verdict import DayAssessment
from ae_pipeline.reports.cards import cards, unseen_days_summary
from ae_pipeline.reports.charts import Chart
from ae_pipeline.reports.gallery import Gallery, thumbnails
from ae_pipeline.reports.groups import EntityGroup, Group, group_by_entity, group_rows
from ae_pipeline.reports.image_report import ImageReport
from ae_pipeline.reports.labels import Labels
from ae_pipeline.reports.pictures import Panel
from ae_pipeline.reports.ranking import RankedRow
from ae_pipeline.reports.review import cause_key, entity_of
from ae_pipeline.reports.view import Published, adjacent

_BAR_DAYS = 366
"""Number of days shown as bars."""

_THUMBNAILS = 20
"""Rows of the table that have a small picture; the table shows as many at first."""

_PICTURE_BOX = (160, 160)
"""Width and height that a picture must fit into, CSS pixels."""


@dataclass(frozen=True, kw_only=True)
class PageContext:
    """Content that both kinds of pages have: the assessment of a day, its rows and its charts.

    Attributes:
        assessment: Assessment of the day; None if no row is published.
        rows: Listed rows, the highest score first.
        groups: Rows that are flagged or discoveries, grouped by cause.
        charts: Charts, in the order of the page.
        variables: Variables of the template, as JSON-compatible values.
    """

    assessment: DayAssessment | None
    rows: Sequence[RankedRow]
    groups: Sequence[Group]
    charts: Sequence[Chart]
    variables: Mapping[str, Any]


def page_context(published: Published, day: str | None, ranked: Sequence[RankedRow], page: Path) -> PageContext:
    """Return the content of a page.

    Args:
        published: Published table.
        day: Day that the page assesses; None if no row is published.
        ranked: Rows to list, the highest score first.
        page: Path of the page.
    """
    names = published.names
    groups = group_rows(ranked, names)
    if groups and day and page == published.page_of(day):
        groups = published.locate(groups, day)
    assessment = published.assess_with_later_days(day) if day else None
    rows = published.row_details.explanations(ranked)
    charts = published.charts(day) if day else []
    config, left_out = published.dataset.config, [each.column for each in published.bundle.encoder.left_out]
    entities = group_by_entity(rows, lambda row_id: entity_of(row_id, config), names)
    variables = {
        **cards(published, day, assessment),
        "dataset": published.dataset.name,
        "timezone": config.timezone,
        "filling": published.filling.message if published.filling else "",
        "features": published.features_link(day, page),
        "budget": published.bundle.calibration.budget,
        "rate": config.alerts.false_discovery_rate,
        "unseen_days": unseen_days_summary(published, day),
        "groups": [_group_variables(group) for group in groups],
        "entities": [_entity_variables(group) for group in entities],
        "titles": {name: names.title(name) for name in (*published.bundle.columns, *left_out)},
        "entity_columns": [names.title(name) for name in config.identity if name != config.event_time],
        "rows": _row_variables(published, rows, groups, entities, page),
        "states": {row.row_id: state.text for row in rows if (state := published.review.states.get(row.row_id))},
        "charts": [asdict(chart) for chart in charts],
    }
    return PageContext(assessment=assessment, rows=rows, groups=groups, charts=charts, variables=variables)


def day_variables(published: Published, day: str, context: PageContext) -> dict[str, Any]:
    """Return the variables of the page of one day.

    Args:
        published: Published table.
        day: ISO date.
        context: Content of the page.
    """
    adjacent_days = adjacent(day, published.days_with_rows)
    adjacent_pages = adjacent(day, published.days_with_page())
    neighbors = {*adjacent_days, *adjacent_pages} - {None}
    shown = [row.row_id for row in context.rows[:_THUMBNAILS]]
    return {
        **context.variables,
        "are_images": published.dataset.config.images is not None,
        "thumbnails": thumbnails(shown, day, published.dataset.paths, published.bundle),
        "has_labels": published.dataset.config.label is not None,
        "adjacent": adjacent_days,
        "adjacent_pages": adjacent_pages,
        "verdicts": {other: published.assess_in_brief(other).verdict.value for other in neighbors if other},
    }


def report_variables(
    context: PageContext,
    summary: Mapping[str, Any],
    index: Sequence[Mapping[str, Any]],
    listed_days: Sequence[Mapping[str, Any]],
    labels: Labels | None,
    gallery: Gallery | None,
    images: ImageReport | None = None,
) -> dict[str, Any]:
    """Return the variables of the page over all days.

    Args:
        context: Content of the page.
        summary: Content of `summary.json`.
        index: All days.
        listed_days: Days that the page lists.
        labels: Measures against the label; None without a label.
        gallery: Pictures; None if rows are not images.
        images: Verdicts on images; None unless rows are images or patches.
    """
    bars = [{**entry, "month": entry["day"][:7]} for entry in index[-_BAR_DAYS:]]
    return {
        **context.variables,
        "summary": summary,
        "bars": bars,
        "highest_bar": max([1, *(entry["flagged"] for entry in bars)]),
        "listed_days": listed_days,
        "flagged_share": summary["flagged"] / max(summary["rows"], 1),
        "has_labels": labels is not None,
        "labels": asdict(labels) if labels else None,
        "gallery": _gallery_variables(gallery) if gallery else None,
        "thumbnails": {each.row_id: each.addresses[0] for each in gallery.strangest[:_THUMBNAILS]} if gallery else {},
        "images": asdict(images) if images else None,
    }


def _group_variables(group: Group) -> dict[str, Any]:
    return {
        "message": group.message,
        "where": group.where,
        "rows": len(group.rows),
        "highest_score": group.rows[0].score,
        "cause": cause_key(group.columns),
        "example": group.rows[0].row_id,
        "days": group.days,
    }


def _entity_variables(group: EntityGroup) -> dict[str, Any]:
    return {
        "entity": group.entity,
        "rows": len(group.rows),
        "highest_score": group.rows[0].score,
        "days": group.days,
        "message": group.cause.message,
        "of_cause": len(group.cause.rows),
        "cause": cause_key(group.cause.columns),
    }


def _row_variables(
    published: Published,
    rows: Sequence[RankedRow],
    groups: Sequence[Group],
    entities: Sequence[EntityGroup],
    page: Path,
) -> list[dict[str, Any]]:
    entity_of_row = {row.row_id: number for number, group in enumerate(entities, 1) for row in group.rows}
    group_of = {row.row_id: number for number, group in enumerate(groups, 1) for row in group.rows}
    details, names = published.row_details, published.names
    neighbors, values = details.nearest(rows), details.values(rows)
    return [
        {
            "row_id": row.row_id,
            "score": row.score,
            "p_value": row.p_value,
            "is_anomaly": row.is_anomaly,
            "is_discovery": row.is_discovery,
            "is_known_anomaly": row.is_known_anomaly,
            "reason": row.reason_as(names),
            "contributions": [_part_variables(part, names) for part in row.contributions],
            "group": group_of.get(row.row_id),
            "entity": entity_of_row.get(row.row_id),
            "values": [(names.title(name), names.value(name, text)) for name, text in values.get(row.row_id, ())],
            "neighbors": neighbors.get(row.row_id, ()),
            "day": details.day_of(row),
            "features": published.features_link(details.day_of(row), page),
        }
        for row in rows
    ]


def _part_variables(part: Contribution, names: ColumnNames) -> dict[str, Any]:
    return {
        "column": part.column,
        "title": names.title(part.column),
        "actual": names.value(part.column, part.actual, part.categories),
        "expected": names.value(part.column, part.expected),
        "surprisal": part.surprisal,
    }


def _gallery_variables(gallery: Gallery) -> dict[str, Any]:
    return {
        "ticks": gallery.scale.ticks,
        "colors": gallery.scale.colours,
        "normal": [_panel_variables(panel) for panel in gallery.normal],
        "strangest": [_panel_variables(panel) for panel in gallery.strangest],
    }


def _panel_variables(panel: Panel) -> dict[str, Any]:
    return {
        "row_id": panel.row_id,
        "score": panel.score,
        "is_anomaly": panel.is_anomaly,
        "is_known_anomaly": panel.is_known_anomaly,
        "addresses": panel.addresses,
        "size": panel.size(*_PICTURE_BOX),
        "spot": panel.drawing.spot,
        "highest": panel.drawing.highest,
    }
