"""Rows grouped by the cause of their scores."""

import datetime as dt
from dataclasses import replace

from ae_pipeline.detector.explanation import Contribution
from ae_pipeline.reports.groups import cause, group_by_entity, group_rows
from ae_pipeline.reports.ranking import RankedRow


def row(name: str, score: float, *parts: tuple[str, float, str], day: int = 1) -> RankedRow:
    given = tuple(Contribution(column, surprisal, actual, "usual") for column, surprisal, actual in parts)
    at = dt.datetime(2024, 1, day, tzinfo=dt.UTC)
    return RankedRow(
        row_id=name,
        event_time=at,
        score=score,
        p_value=0.001,
        is_anomaly=True,
        is_discovery=None,
        is_known_anomaly=None,
        because="because",
        contributions=given,
    )


class TestCauses:
    def test_rows_with_the_same_cause_form_a_group(self) -> None:
        rows = [
            row("a", 30.0, ("load", 20.0, "9"), ("mode", 8.0, "off"), day=3),
            row("b", 20.0, ("mode", 9.0, "off"), ("load", 12.0, "7"), ("power", 1.0, "2"), day=1),
            row("c", 10.0, ("power", 9.0, "0")),
        ]
        first, second = group_rows(rows)
        assert [one.row_id for one in first.rows] == ["a", "b"]
        assert first.columns == ("load", "mode")
        assert first.message == "load, mode is off"
        assert first.days == ("2024-01-01", "2024-01-03")
        assert (second.message, len(second.rows)) == ("power is 0", 1)

    def test_a_small_contribution_is_not_part_of_the_cause(self) -> None:
        assert cause(row("a", 9.0, ("x", 10.0, "1"), ("y", 2.9, "1"))) == ("x",)
        assert cause(row("a", 9.0, ("x", 10.0, "1"), ("y", 3.0, "1"))) == ("x", "y")

    def test_rows_without_an_explanation_have_no_group(self) -> None:
        assert group_rows([row("a", 1.0)]) == []


class TestEntities:
    def test_flagged_rows_of_an_entity_form_a_group_with_its_most_frequent_cause(self) -> None:
        rows = [
            row("UA|15|1", 30.0, ("distance", 9.0, "4963"), day=3),
            row("UA|15|2", 20.0, ("distance", 9.0, "4963"), day=1),
            row("UA|15|3", 10.0, ("dest", 9.0, "HNL"), day=2),
            replace(row("UA|15|4", 9.0, ("dest", 9.0, "HNL"), day=2), is_anomaly=False),
            row("AA|1|1", 8.0, ("dest", 9.0, "JFK")),
            row("alone", 7.0, ("dest", 9.0, "JFK")),
            row("alone too", 7.0, ("dest", 9.0, "JFK")),
        ]
        (group,) = group_by_entity(rows, lambda row_id: row_id.rpartition("|")[0])
        assert (group.entity, [each.row_id for each in group.rows]) == ("UA|15", ["UA|15|1", "UA|15|2", "UA|15|3"])
        assert group.days == ("2024-01-01", "2024-01-02", "2024-01-03")
        assert (group.cause.message, len(group.cause.rows)) == ("distance is 4963", 2)
