"""Marks of people: which flagged rows they cover, for how long, and what becomes of them."""

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import polars as pl
import pytest

from ae_pipeline.common.errors import ConfigError
from ae_pipeline.monitoring.feedback import (
    GROWTH_NATS,
    FlaggedRow,
    Mark,
    MarkKind,
    MarkState,
    add_mark,
    marks_digest,
    marks_of,
    review,
)
from ae_pipeline.monitoring.feedback_precision import precision_by_version
from ae_pipeline.monitoring.marks_summary import (
    days_in_state,
    false_alarms_of,
    marks_since_known,
    parse_choice,
    rows_in_state,
)
from ae_pipeline.storage.paths import DatasetPaths

DAYS = [f"2024-03-{day:02d}" for day in range(1, 31)]


def row(day: str, number: int = 0, score: float = 10.0, entity: str = "UA|1", columns: str = "delay") -> FlaggedRow:
    return FlaggedRow(row_id=f"{entity}|{day}|{number}", day=day, score=score, columns=(columns,), entity=entity)


def known(*rows: FlaggedRow, entity: str = "", state: MarkState = MarkState.KNOWN, version: int = 1) -> Mark:
    """Return a mark of the cause of rows of one day."""
    return Mark(
        kind=MarkKind.CAUSE,
        subject="+".join(rows[0].columns),
        state=state,
        day=rows[0].day,
        entity=entity,
        columns=rows[0].columns,
        rows={each.row_id: each.day for each in rows},
        sizes={"rows": len(rows), "score": max(each.score for each in rows)},
        model_version=version,
        who="ana",
    )


class TestKnownCauses:
    def test_the_next_days_are_left_out_too(self) -> None:
        first, second, other = row(DAYS[0]), row(DAYS[1], 1), row(DAYS[1], columns="dest")
        reviewed = review([first, second, other], [known(first)], DAYS)
        assert reviewed.states == {first.row_id: MarkState.KNOWN, second.row_id: MarkState.KNOWN}
        assert reviewed.hidden == {DAYS[0]: 1, DAYS[1]: 1}

    def test_an_earlier_day_is_not_covered(self) -> None:
        assert review([row(DAYS[0])], [known(row(DAYS[1]))], DAYS).states == {}

    @pytest.mark.parametrize(
        ("rows", "is_hidden"),
        [
            ([row(DAYS[1], each) for each in range(2)], True),
            ([row(DAYS[1], each) for each in range(3)], True),
            ([row(DAYS[1], each) for each in range(4)], False),  # more than 1.5 times as many
            ([row(DAYS[1], score=10 + GROWTH_NATS)], True),
            ([row(DAYS[1], score=10.1 + GROWTH_NATS)], False),  # more than ten times as rare
        ],
    )
    def test_what_grows_shows_again(self, rows: list[FlaggedRow], is_hidden: bool) -> None:
        mark = known(row(DAYS[0]), row(DAYS[0], 1))
        assert bool(review(rows, [mark], DAYS).hidden) == is_hidden

    @pytest.mark.parametrize(("late", "hidden"), [(1, 3), (2, 2)])
    def test_late_rows_of_the_marked_day_count_with_the_marked_ones(self, late: int, hidden: int) -> None:
        marked = [row(DAYS[0], each) for each in range(2)]
        rows = [*marked, *(row(DAYS[0], each + 2) for each in range(late))]
        assert review(rows, [known(*marked)], DAYS).hidden == {DAYS[0]: hidden}

    @pytest.mark.parametrize("state", [MarkState.KNOWN, MarkState.FALSE_ALARM])
    def test_a_marked_row_whose_values_have_changed_shows_again(self, state: MarkState) -> None:
        mark = known(row(DAYS[0]), state=state)
        assert review([row(DAYS[0], score=10 + GROWTH_NATS)], [mark], DAYS).hidden == {DAYS[0]: 1}
        assert review([row(DAYS[0], score=10.1 + GROWTH_NATS)], [mark], DAYS).states == {}

    def test_what_happens_again_after_a_pause_shows_again(self) -> None:
        mark = known(row(DAYS[0]))
        daily = [row(day) for day in DAYS[1:8]]
        assert len(review([*daily, row(DAYS[14])], [mark], DAYS).states) == 8
        assert len(review([*daily, row(DAYS[15])], [mark], DAYS).states) == 7

    def test_days_without_rows_are_no_pause(self) -> None:
        weekends = [day for day in DAYS if int(day[-2:]) % 7 in {1, 2}]
        assert len(review([row(day) for day in weekends[1:]], [known(row(weekends[0]))], weekends).states) == 9

    def test_an_entity_restricts_the_cause(self) -> None:
        mine, other = row(DAYS[1]), row(DAYS[1], entity="AA|7")
        assert set(review([mine, other], [known(row(DAYS[0]), entity="UA|1")], DAYS).states) == {mine.row_id}
        assert len(review([mine, other], [known(row(DAYS[0]))], DAYS).states) == 2

    def test_a_dataset_without_days_is_covered_as_it_grows(self) -> None:
        old, new = row("all"), row("all", 1)
        assert review([old, new], [known(old)], ["all"]).hidden == {"all": 2}


class TestRepeatedFalseAlarms:
    ALARMS: ClassVar = [row(day) for day in DAYS[:3]]

    def marks(self, count: int = 3, version: int = 1, entity: str = "UA|1") -> list[Mark]:
        alarms = [known(each, state=MarkState.FALSE_ALARM, entity=entity, version=version) for each in self.ALARMS]
        return [replace(each, kind=MarkKind.ROW, subject=next(iter(each.rows))) for each in alarms[:count]]

    def hidden(self, marks: list[Mark], *rows: FlaggedRow, version: int = 2) -> int:
        """Return how many of the rows are left out under a version, which flags the marked rows too."""
        flagged = [replace(each, model_version=version) for each in (*self.ALARMS, *rows)]
        return len({each.row_id for each in rows} & review(flagged, marks, DAYS).states.keys())

    @pytest.mark.parametrize(("count", "version", "hidden"), [(3, 2, 2), (3, 1, 0), (3, 0, 0), (2, 2, 0)])
    def test_the_next_version_leaves_out_later_rows(self, count: int, version: int, hidden: int) -> None:
        assert self.hidden(self.marks(count), row(DAYS[3]), row(DAYS[4]), version=version) == hidden

    def test_it_does_the_same_as_a_known_cause(self) -> None:
        rows = [row(day, score=score) for day, score in zip(DAYS[3:8], (9.0, 11.0, 12.4, 14.0, 10.0), strict=True)]
        click = replace(known(self.ALARMS[2], entity="UA|1"), rows={each.row_id: each.day for each in self.ALARMS})
        assert self.hidden(self.marks(), *rows) == self.hidden([*self.marks(), click], *rows) == 3

    def test_other_entities_causes_and_earlier_days_stay(self) -> None:
        others = [row(DAYS[3], entity="AA|7"), row(DAYS[3], columns="dest"), row(DAYS[1], 5)]
        assert self.hidden(self.marks(), *others) == 0
        assert self.hidden(self.marks(entity=""), row(DAYS[3])) == 0

    def test_a_later_mark_of_the_cause_ends_it_and_an_earlier_one_does_not(self) -> None:
        cleared = known(self.ALARMS[0], state=MarkState.CLEARED, entity="UA|1")
        assert self.hidden([*self.marks(), cleared], row(DAYS[3])) == 0
        of_all = replace(known(self.ALARMS[0], state=MarkState.REAL), rows={})
        assert self.hidden([*self.marks(), of_all], row(DAYS[3])) == 0
        assert self.hidden([of_all, *self.marks()], row(DAYS[3])) == 1

    @pytest.mark.parametrize("columns", ["delay", "dest"])
    def test_a_real_row_with_a_like_cause_ends_it(self, columns: str) -> None:
        later = row(DAYS[5], columns=columns)
        real = replace(known(later, state=MarkState.REAL, entity="UA|1"), kind=MarkKind.ROW, subject=later.row_id)
        assert self.hidden([*self.marks(), real], row(DAYS[8])) == (columns == "dest")

    @pytest.mark.parametrize("state", [MarkState.CLEARED, MarkState.REAL])
    def test_a_judgement_of_one_of_several_like_causes_ends_all(self, state: MarkState) -> None:
        alarms = [
            replace(mark, columns=("delay", other), subject=f"delay+{other}")
            for mark, other in zip(self.marks(), ("dest", "origin", "time"), strict=True)
        ]
        as_now = [replace(each, columns=mark.columns) for each, mark in zip(self.ALARMS, alarms, strict=True)]
        later = replace(row(DAYS[4]), columns=("delay", "time"))
        flagged = [replace(each, model_version=2) for each in (*as_now, later)]
        end = replace(known(later, state=state, entity="UA|1"), columns=("delay", "dest"), rows={})
        assert review(flagged, alarms, DAYS).states[later.row_id] == MarkState.KNOWN
        assert later.row_id not in review(flagged, [*alarms, end], DAYS).states


def test_a_row_without_explanation_has_no_cause_that_a_mark_covers() -> None:
    first, bare = row(DAYS[0]), [replace(row(day), columns=(), model_version=2) for day in DAYS[:3]]
    entity = known(first, entity="UA|1")
    assert review(bare, [entity], DAYS).states == {first.row_id: MarkState.KNOWN}
    nothing = replace(known(first), columns=(), subject="")
    assert review(bare[1:], [nothing], DAYS).states == {}
    alarm = replace(known(first, state=MarkState.FALSE_ALARM), kind=MarkKind.ROW, subject=first.row_id)
    assert review(bare[:1], [alarm], DAYS).states == {first.row_id: MarkState.FALSE_ALARM}


class TestWhatIsTakenBack:
    @pytest.mark.parametrize("state", [MarkState.CLEARED, MarkState.REAL])
    def test_one_row_of_a_known_cause(self, state: MarkState) -> None:
        first, second = row(DAYS[0]), row(DAYS[0], 1)
        one = replace(known(first, state=state), kind=MarkKind.ROW, subject=first.row_id)
        reviewed = review([first, second, row(DAYS[1])], [known(first, second), one], DAYS)
        assert reviewed.hidden == {DAYS[0]: 1, DAYS[1]: 1}
        assert reviewed.states.get(first.row_id) == (state if state == MarkState.REAL else None)

    def test_one_entity_of_a_known_cause_and_its_later_days(self) -> None:
        rows = [row(day, entity=entity) for day in DAYS[:2] for entity in ("UA|1", "AA|7")]
        cleared = known(rows[0], entity="UA|1", state=MarkState.CLEARED)
        assert set(review(rows, [known(*rows[:2]), cleared], DAYS).states) == {rows[1].row_id, rows[3].row_id}
        assert len(review(rows, [known(*rows[:2]), cleared, known(*rows[:2])], DAYS).states) == 4  # known again

    def test_the_whole_cause_with_its_entities(self) -> None:
        rows = [row(DAYS[0]), row(DAYS[1])]
        assert review(rows, [known(rows[0], entity="UA|1"), known(rows[0], state=MarkState.CLEARED)], DAYS).states == {}


class TestStates:
    def test_the_last_mark_counts_and_can_be_taken_back(self) -> None:
        flagged = row(DAYS[0])
        real = replace(known(flagged), state=MarkState.REAL)
        cleared = replace(known(flagged), state=MarkState.CLEARED)
        assert review([flagged], [known(flagged), real], DAYS).states == {flagged.row_id: MarkState.REAL}
        assert review([flagged], [known(flagged), real], DAYS).hidden == {}
        assert review([flagged], [known(flagged), cleared], DAYS).states == {}

    def test_a_false_alarm_covers_its_rows_only(self) -> None:
        today, tomorrow = row(DAYS[0]), row(DAYS[1])
        reviewed = review([today, tomorrow], [known(today, state=MarkState.FALSE_ALARM)], DAYS)
        assert reviewed.hidden == {DAYS[0]: 1}

    def test_false_alarms_of_an_entity_are_counted_by_cause(self) -> None:
        rows = [row(day) for day in DAYS[:3]]
        alarms = [replace(known(each, state=MarkState.FALSE_ALARM, entity="UA|1"), kind=MarkKind.ROW) for each in rows]
        taken_back = replace(alarms[0], state=MarkState.CLEARED)
        wider = replace(alarms[1], columns=("delay", "dest"))
        ids = [each.row_id for each in rows]
        assert false_alarms_of("UA|1", ("delay",), [*alarms, wider, alarms[0]]) == ids
        assert false_alarms_of("UA|1", ("delay",), [*alarms, taken_back]) == ids[1:]
        assert false_alarms_of("UA|1", ("dest",), alarms) == false_alarms_of("AA|7", ("delay",), alarms) == []
        assert false_alarms_of("", ("delay",), [replace(each, entity="") for each in alarms]) == []

    def test_a_false_alarm_stays_one_if_its_cause_becomes_known(self) -> None:
        first, second, later = (row(day) for day in DAYS[:3])
        alarm = replace(known(first, state=MarkState.FALSE_ALARM), kind=MarkKind.ROW, subject=first.row_id)
        of_entity = replace(known(second, entity="UA|1"), rows={first.row_id: DAYS[0], second.row_id: DAYS[1]})
        states = review([first, second, later], [alarm, of_entity], DAYS).states
        assert states == {
            first.row_id: MarkState.FALSE_ALARM,
            second.row_id: MarkState.KNOWN,
            later.row_id: MarkState.KNOWN,
        }
        assert rows_in_state([alarm, of_entity], MarkState.FALSE_ALARM) == {DAYS[0]: [first.row_id]}

    @pytest.mark.parametrize(
        ("version", "score", "columns", "entity", "is_hidden"),
        [
            (1, 20.0, "delay", "UA|1", False),  # it has grown
            (2, 20.0, "delay", "UA|1", True),  # the marked row has grown by as much under this version
            (2, 20.0, "delay", "", True),
            (2, 20.5 + GROWTH_NATS, "delay", "UA|1", False),
            (2, 20.0, "dest", "UA|1", True),  # the marked row has this cause now
            (2, 20.0, "dest", "", False),  # too many other rows may have it
        ],
    )
    def test_a_known_cause_survives_another_version(
        self, version: int, score: float, columns: str, entity: str, is_hidden: bool
    ) -> None:
        mark = known(row(DAYS[0]), entity=entity)
        now_flagged = [row(DAYS[0], score=20.0, columns=columns), row(DAYS[1], score=score, columns=columns)]
        rescored = [replace(each, model_version=version) for each in now_flagged]
        states = review(rescored, [mark], DAYS).states
        assert (now_flagged[1].row_id in states) == is_hidden
        assert (now_flagged[0].row_id in states) == (version == 2)

    def test_lower_scores_of_another_version_lower_what_is_known(self) -> None:
        marked, later = row(DAYS[0], score=40.0), row(DAYS[1], score=35.0)
        mark, low = known(marked, entity="UA|1"), replace(marked, score=8.0, model_version=2)
        assert later.row_id in review([marked, later], [mark], DAYS).states
        assert later.row_id not in review([low, replace(later, model_version=2)], [mark], DAYS).states

    def test_rows_that_somebody_judged_later_do_not_speak_for_the_cause(self) -> None:
        usual, other = row(DAYS[0]), row(DAYS[0], score=50.0)
        mark = replace(known(usual, entity="UA|1"), rows={usual.row_id: DAYS[0], other.row_id: DAYS[0]})
        real = replace(known(other, state=MarkState.REAL), kind=MarkKind.ROW, subject=other.row_id)
        later = row(DAYS[1], score=50.0, columns="dest")
        rescored = [replace(each, model_version=2) for each in (usual, replace(other, columns=("dest",)), later)]
        assert later.row_id in review(rescored, [mark], DAYS).states
        assert later.row_id not in review(rescored, [mark, real], DAYS).states

    def test_a_real_row_stays_real_if_its_cause_becomes_known(self) -> None:
        marked, usual = row(DAYS[0]), row(DAYS[1])
        real = replace(known(marked, state=MarkState.REAL), kind=MarkKind.ROW, subject=marked.row_id)
        of_entity = replace(known(usual, entity="UA|1"), rows={marked.row_id: DAYS[0], usual.row_id: DAYS[1]})
        assert rows_in_state([real, of_entity], MarkState.REAL) == {DAYS[0]: [marked.row_id]}

    @pytest.mark.parametrize(("columns", "is_hidden"), [("delay", True), ("dest", False)])
    def test_a_marked_row_with_another_cause_and_a_higher_score_shows_again(
        self, columns: str, is_hidden: bool
    ) -> None:
        marked = row(DAYS[0])
        alarm = replace(known(marked, state=MarkState.FALSE_ALARM), kind=MarkKind.ROW, subject=marked.row_id)
        now = replace(marked, score=100.0, columns=(columns,), model_version=2)
        assert (now.row_id in review([now], [alarm], DAYS).states) == is_hidden

    @pytest.mark.parametrize(
        ("states", "is_known"), [([], False), (["known"], True), (["known", "cleared"], False), (["real"], False)]
    )
    @pytest.mark.parametrize("entity", ["", "UA|1"])
    def test_the_last_mark_says_whether_a_cause_is_known(self, states: list[str], is_known: bool, entity: str) -> None:
        marks = [known(row(DAYS[0]), entity=entity, state=MarkState(state)) for state in states]
        later = replace(known(row(DAYS[1]), state=MarkState.FALSE_ALARM), kind=MarkKind.ROW)
        since = [later] if is_known else [*marks, later]
        assert marks_since_known("UA|1", ("delay",), [*marks, later]) == since
        assert marks_since_known("AA|7", ("delay",), [*marks, later]) == ([*marks, later] if entity else since)

    def test_a_labeled_anomaly_is_not_left_out_twice(self) -> None:
        labeled = replace(row(DAYS[0]), is_labeled=True)
        assert review([labeled], [known(labeled)], DAYS).hidden == {}

    def test_precision_counts_each_row_once_under_its_version(self) -> None:
        one, two, three, four = (row(DAYS[each]) for each in range(4))
        marks = [
            known(one, state=MarkState.FALSE_ALARM),
            known(one, state=MarkState.REAL),
            known(two, state=MarkState.FALSE_ALARM),
            known(three, version=2),
            known(four, state=MarkState.REAL, version=2),
        ]
        first, second = precision_by_version(marks)
        assert (first.version, first.real, first.known, first.false_alarms, first.precision) == (1, 1, 0, 1, 0.5)
        assert (second.version, second.real, second.known, second.false_alarms, second.precision) == (2, 1, 1, 0, 1.0)
        assert precision_by_version([known(three)])[0].precision is None
        assert rows_in_state(marks, MarkState.REAL) == {DAYS[0]: [one.row_id], DAYS[3]: [four.row_id]}

    def test_an_unknown_state_names_the_known_ones(self) -> None:
        with pytest.raises(ConfigError, match="'fine'; it is one of real, known, false_alarm, cleared"):
            parse_choice(MarkState, "fine")


def test_marks_are_kept_and_published_as_parquet(tmp_path: Path) -> None:
    paths = DatasetPaths(tmp_path, "flights")
    assert marks_digest(paths) == ""
    day = Mark(kind=MarkKind.DAY, subject=DAYS[0], state=MarkState.REAL, day=DAYS[0], sizes={"flagged": 3}, who="ben")
    marks = [known(row(DAYS[0])), day]
    for mark in marks:
        add_mark(mark, paths)
    assert marks_of(paths) == marks
    assert days_in_state(marks, MarkState.REAL) == [DAYS[0]]
    assert marks_digest(paths)
    table = pl.read_parquet(paths.marks.with_suffix(".parquet"))
    assert table.select("kind", "subject", "state", "who", "row_ids").rows() == [
        ("cause", "delay", "known", "ana", [f"UA|1|{DAYS[0]}|0"]),
        ("day", DAYS[0], "real", "ben", []),
    ]
    assert str(table.schema["at"]) == "Datetime(time_unit='us', time_zone='UTC')"
