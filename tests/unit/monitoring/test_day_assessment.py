"""The assessment of a day: reasons, remark and usual number of rows."""

import datetime as dt
import json
from dataclasses import replace

import pytest

from ae_pipeline.config.display import ColumnNames
from ae_pipeline.monitoring.budget import ImageCounts, ReportDay
from ae_pipeline.monitoring.daily_drift import DayDrift
from ae_pipeline.monitoring.day_assessment import assess_day
from ae_pipeline.monitoring.deviations import Deviation
from ae_pipeline.monitoring.feedback import Mark, MarkKind, MarkState, Review
from ae_pipeline.monitoring.verdict import FLAGGED, DayAssessment, LabelLimits
from ae_pipeline.scoring.drift import Effect, Part


def entry(rows: int, flagged: int = 0, day: str = "2024-03-01", known: int = 0) -> ReportDay:
    return ReportDay(
        day=day,
        rows=rows,
        flagged=flagged,
        known_anomalies=known,
        known_flagged=known,
        discovery_count=0,
        content_hash="hash",
    )


def weeks(rows: int) -> dict[str, int]:
    return {(dt.date(2024, 3, 1) - dt.timedelta(weeks=week)).isoformat(): rows for week in range(1, 5)}


class TestAssessment:
    @pytest.mark.parametrize(
        ("given", "headline"),
        [
            (
                entry(1000),
                "calm: nothing unusual: 0 of 1,000 rows are flagged, and the alert budget allows 1.0",
            ),
            (entry(1000, 1), "worth a look: 1 of 1,000 rows are flagged, and the alert budget allows 1.0"),
            (
                entry(1000, 4, known=4),
                "calm: nothing new: 4 of 4 known anomalies are flagged (recall 100%, precision 100%), and 0 of 996 "
                "other rows, where the alert budget allows 1.0",
            ),
            (entry(1000, 30), "wrong: 30 rows are flagged, 30 times the budget"),
        ],
    )
    def test_a_day_has_one_of_three_verdicts(self, given: ReportDay, headline: str) -> None:
        assessment = assess_day(given, weeks(990), None, (), 0.001)
        assert assessment.headline == headline
        assert assessment.is_wrong == headline.startswith("wrong")
        assert assessment.completeness == pytest.approx(1000 / 990)

    @pytest.mark.parametrize("given", [entry(1000), entry(1000, 1), entry(1000, 4, known=4), entry(1000, 30)])
    def test_messages_name_what_rows_are(self, given: ReportDay) -> None:
        of_rows = assess_day(given, weeks(990), None, (), 0.001)
        of_images = assess_day(given, weeks(990), None, (), 0.001, names=ColumnNames(row="image"))
        assert of_images.headline == of_rows.headline.replace("rows", "images") != of_rows.headline
        assert DayAssessment.from_record(of_images.record()) == of_images
        earlier = {name: value for name, value in of_images.record().items() if name != "noun"}
        assert DayAssessment.from_record(earlier) == of_rows
        assert DayAssessment.from_record(earlier, "image") == of_images

    def test_a_day_whose_labeled_anomalies_are_missed_is_wrong(self) -> None:
        missed = replace(entry(1000, 4, known=4), known_anomalies=40)
        assert assess_day(missed, {}, None, (), 0.001).message == (
            "36 of 40 known anomalies are not flagged (recall 10%, at least 50% is expected)"
        )
        assert not assess_day(replace(missed, known_anomalies=9), {}, None, (), 0.001).is_wrong  # too few to tell

    @pytest.mark.parametrize(
        ("known", "found", "flagged", "headline"),
        [
            (
                *(12, 11, 12),
                "calm: the label confirms the flags: 11 of 12 known anomalous images are flagged (recall 92%, "
                "precision 92%), and 1 of 996 other rows, where the alert budget allows 1.0",
            ),
            (
                *(12, 6, 13),
                "worth a look: at least 50% of the flagged images should be known anomalies: 6 of 12 known anomalous "
                "images are flagged (recall 50%, precision 46%), and 1 of 996",
            ),
            (12, 5, 5, "wrong: 7 of 12 known anomalous images are not flagged (recall 42%, at least 50% is expected)"),
            (9, 0, 0, "worth a look: 0 of 9 known anomalous images are flagged (recall 0%), and 1 of 996"),
        ],
    )
    def test_a_label_is_held_against_images_where_rows_are_patches(
        self, known: int, found: int, flagged: int, headline: str
    ) -> None:
        patches = replace(entry(2000, 3, known=2), known_anomalies=1004)  # a defect covers few patches of its image
        images = ImageCounts(flagged=flagged, known_anomalies=known, known_flagged=found)
        assessment = assess_day(replace(patches, images=images), {}, None, (), 0.001)
        assert assessment.headline.startswith(headline)
        assert DayAssessment.from_record(json.loads(json.dumps(assessment.record()))) == assessment
        earlier = {name: value for name, value in assessment.record().items() if name != "images"}
        assert DayAssessment.from_record(earlier) == replace(assessment, images=None)

    @pytest.mark.parametrize(
        ("hidden", "sizes", "state", "verdict"),
        [
            (0, None, MarkState.KNOWN, "worth a look"),
            (1, None, MarkState.KNOWN, "calm"),
            (0, {FLAGGED: 1}, MarkState.KNOWN, "calm"),
            (0, {FLAGGED: 1}, MarkState.FALSE_ALARM, "calm"),
            (0, {FLAGGED: 1}, MarkState.REAL, "worth a look"),
            (0, {FLAGGED: 0}, MarkState.KNOWN, "worth a look"),  # a patch is flagged that the mark does not cover
        ],
    )
    def test_marks_clear_false_alarms_of_images(
        self, hidden: int, sizes: dict[str, float] | None, state: MarkState, verdict: str
    ) -> None:
        images = ImageCounts(flagged=13, known_anomalies=12, known_flagged=6)
        patches = replace(entry(2000, 3, known=2), known_anomalies=1004, images=images)
        day = patches.day
        mark = Mark(kind=MarkKind.DAY, subject=day, state=state, day=day, sizes=sizes or {})
        review = Review(hidden={day: hidden}, days={} if sizes is None else {day: mark})
        assessment = assess_day(patches, {}, None, (), 0.001, review=review)
        assert assessment.verdict == verdict
        assert f"precision {'100%' if verdict == 'calm' else '46%'}" in assessment.message

    def test_a_mark_of_missed_patches_does_not_cover_missed_images(self) -> None:
        images = ImageCounts(flagged=100, known_anomalies=900, known_flagged=100)
        patches = replace(entry(20_000, 300, known=300), known_anomalies=1200)
        before = assess_day(patches, {}, None, (), 0.001)
        sizes = {reason.kind.value: reason.size for reason in before.all_reasons}
        assert sizes == {"low_recall": 900}
        mark = Mark(kind=MarkKind.DAY, subject=before.day, state=MarkState.KNOWN, day=before.day, sizes=sizes)
        review = Review(days={before.day: mark})
        assert not before.reviewed(review, before.day).is_wrong
        assessment = assess_day(replace(patches, images=images), {}, None, (), 0.001, review=review)
        assert [reason.kind.value for reason in assessment.reasons] == ["low_image_recall"]

    @pytest.mark.parametrize(
        ("recalled", "false_alarms", "verdict", "message"),
        [
            (
                40,
                0,
                "calm",
                "the label confirms the flags: 40 of 40 known anomalies are flagged (recall 100%, precision",
            ),
            (
                20,
                20,
                "calm",
                "the label confirms the flags: 20 of 40 known anomalies are flagged (recall 50%, precision 50%",
            ),
            (20, 21, "worth a look", "at least 50% of the flagged rows should be known anomalies: 20 of 40 known anom"),
            (19, 0, "wrong", "21 of 40 known anomalies are not flagged (recall 48%, at least 50% is expected)"),
            (40, 200, "wrong", "200 rows are flagged, 10 times the budget"),
        ],
    )
    def test_recall_and_precision_decide_where_anomalies_are_known(
        self, recalled: int, false_alarms: int, verdict: str, message: str
    ) -> None:
        given = replace(entry(2040, recalled + false_alarms), known_anomalies=40, known_flagged=recalled)
        assessment = assess_day(given, {}, None, (), 0.01)
        assert assessment.headline.startswith(f"{verdict}: {message}")
        limits = LabelLimits(min_recall=0.4, min_precision=0.95)
        other = assess_day(given, {}, None, (), 0.01, limits=limits).verdict
        assert other == {200: "wrong", 0: "calm"}.get(false_alarms, "worth a look")

    def test_since_when_a_verdict_holds_is_said_until_it_changes(self) -> None:
        assessment = replace(assess_day(entry(1000, 1), {}, None, (), 0.001), since="2024-02-27")
        assert assessment.headline.startswith("worth a look since 2024-02-27: 1 of")
        assert replace(assessment, since=assessment.day).headline.startswith("worth a look since this day: 1 of")
        assert DayAssessment.from_record(assessment.record()) == assessment
        marked = assessment.reviewed(Review(hidden={assessment.day: 1}), assessment.day)
        assert marked.headline.startswith("calm: nothing new")

    def test_marks_cover_reasons_until_these_grow(self) -> None:
        odd = (Deviation(columns=("x",), message="x is odd", rows=100),)
        before = assess_day(entry(1000, 30), {}, None, odd, 0.001)
        sizes = {FLAGGED: 30, **{reason.kind.value: reason.size for reason in before.all_reasons}}
        day = before.day
        mark = Mark(
            kind=MarkKind.DAY, subject=day, state=MarkState.KNOWN, day=day, columns=("x",), sizes=sizes, who="ana"
        )
        known = before.reviewed(Review(days={day: mark}), day)
        assert known.headline == (
            "calm: nothing new: 0 of 1,000 rows are flagged, and the alert budget allows 1.0; 30 more are known or "
            "false alarms"
        )
        assert known.aside == "Marked as known by ana: 30 rows are flagged, 30 times the budget; x is odd."
        assert DayAssessment.from_record(json.loads(json.dumps(before.record()))) == before
        grown = assess_day(entry(1000, 46), {}, None, odd, 0.001, review=Review(days={day: mark}))
        assert grown.message == "46 rows are flagged, 46 times the budget"
        assert (before.known_as_a_whole, known.known_as_a_whole) == ("", "known: x is odd")
        other = (Deviation(columns=("y",), message="y is odd", rows=100),)
        assert assess_day(entry(1000), {}, None, other, 0.001, review=Review(days={day: mark})).message == "y is odd"
        real = Review(days={day: replace(mark, state=MarkState.REAL)})
        assert before.reviewed(real, day).message == before.message

    def test_a_calm_day_that_grows_over_its_budget_counts_its_rows(self) -> None:
        mark = Mark(
            kind=MarkKind.DAY, subject="2024-03-01", state=MarkState.KNOWN, day="2024-03-01", sizes={FLAGGED: 24}
        )
        review = Review(days={"2024-03-01": mark})
        assert assess_day(entry(1000, 24), {}, None, (), 0.02, review=review).new == 0
        grown = assess_day(entry(1000, 35), {}, None, (), 0.01, review=review)
        assert (grown.message, grown.new) == ("35 rows are flagged, 4 times the budget", 35)

    def test_hidden_rows_do_not_count(self) -> None:
        review = Review(hidden={"2024-03-01": 30})
        assert assess_day(entry(1000, 30), {}, None, (), 0.001, review=review).headline == (
            "calm: nothing new: 0 of 1,000 rows are flagged, and the alert budget allows 1.0; 30 more are known or "
            "false alarms"
        )

    @pytest.mark.parametrize(
        ("given", "previous", "deviations", "message"),
        [
            (entry(1000, 30), {}, (), "30 rows are flagged, 30 times the budget"),
            (entry(500), weeks(1000), (), "500 rows came, where the same weekday usually has 1,000"),
            (entry(1000), {}, (Deviation(columns=("x",), message="x is odd"),), "x is odd"),
            (
                entry(1000, 30),
                {},
                tuple(Deviation(columns=(name,), message=f"{name} is odd") for name in "xyz"),
                "30 rows are flagged, 30 times the budget; x is odd, and the day is unusual in 2 more ways",
            ),
        ],
    )
    def test_the_message_contains_every_reason(
        self, given: ReportDay, previous: dict[str, int], deviations: tuple[Deviation, ...], message: str
    ) -> None:
        assessment = assess_day(given, previous, None, deviations, 0.001)
        assert assessment.is_wrong
        assert assessment.message == message

    def test_the_aside_says_that_single_rows_are_not_unusual(self) -> None:
        odd = (Deviation(columns=("x",), message="x is odd"),)
        assert assess_day(entry(1000, 2), {}, None, odd, 0.001).aside == (
            "The day as a whole is unusual, but the number of flagged rows is not significantly above the budget: 2 of "
            "1,000 rows are flagged, and the alert budget allows 1.0."
        )
        assert assess_day(entry(1000, 30, known=30), {}, None, odd, 0.001).aside == (
            "The day as a whole is unusual, but the number of flagged rows is within the budget: 30 of 30 known "
            "anomalies are flagged (recall 100%, precision 100%), and 0 of 970 other rows, where the alert budget "
            "allows 1.0."
        )
        assert not assess_day(entry(1000, 30), {}, None, odd, 0.001).aside  # single rows are unusual too
        assert not assess_day(entry(500), weeks(1000), None, (), 0.001).aside  # too few rows say nothing about rows

    def test_known_anomalies_do_not_count_against_the_budget(self) -> None:
        assert not assess_day(entry(1000, 30, known=30), {}, None, (), 0.001).is_wrong

    def test_the_usual_number_of_rows_needs_two_previous_weeks(self) -> None:
        two = dict(list(weeks(1000).items())[:2])
        assert assess_day(entry(10), two, None, (), 0.001).usual_rows == 1000
        assert assess_day(entry(10), dict(list(two.items())[:1]), None, (), 0.001).usual_rows is None

    def test_a_day_with_drift_of_its_scores_only_needs_attention(self) -> None:
        effect = Effect(
            part=Part.SCORE, name="score", psi=2.0, is_drift=True, message="stability index 2.00, at most 0.5"
        )
        assessment = assess_day(
            entry(1000),
            {},
            DayDrift(day="2024-03-01", is_after=True, rows=1000, effects=(effect,), is_judged=True),
            (),
            0.001,
        )
        assert assessment.is_wrong
        assert "score: stability index 2.00" in assessment.message
