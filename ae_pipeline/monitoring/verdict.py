"""The verdict on a day. Report, checks, alerts, `summary.json` and the command line all read it here."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from typing import Any

from ae_pipeline.common.text import plural
from ae_pipeline.monitoring.budget import ImageCounts, is_over_budget
from ae_pipeline.monitoring.deviations import Deviation
from ae_pipeline.monitoring.feedback import GROWTH, HIDDEN, Mark, Review


class DayState(StrEnum):
    """What a day needs."""

    CALM = "calm"
    LOOK = "worth a look"
    WRONG = "wrong"


class ReasonKind(StrEnum):
    """Why a day is wrong."""

    OVER_BUDGET = "over_budget"
    UNUSUAL_DAY = "unusual_day"
    NULL_FLOOD = "null_flood"
    DRIFT = "drift"
    MISSING_ROWS = "missing_rows"
    LOW_RECALL = "low_recall"
    LOW_IMAGE_RECALL = "low_image_recall"


WHOLE = "all rows"
"""Day of an assessment of rows without event time. Messages name it by `DayAssessment.title`."""

FLAGGED = "flagged"
"""Name under which a mark of a day has the number of its flagged rows."""

AS_A_WHOLE = frozenset({ReasonKind.UNUSUAL_DAY, ReasonKind.NULL_FLOOD, ReasonKind.DRIFT})
"""Reasons that concern the day as a whole."""


MIN_LABELED = 10
"""Known anomalies of a day from which recall and precision decide on its verdict."""


@dataclass(frozen=True)
class LabelLimits:
    """Limits of a day with known anomalies.

    Attributes:
        min_recall: Share of the known anomalies that must be flagged; otherwise the day is wrong.
        min_precision: Share of known anomalies among the flagged rows; below it, the day is worth a look.
    """

    min_recall: float = 0.5
    min_precision: float = 0.5


DEFAULT_LIMITS = LabelLimits()
"""Limits that the YAML does not change."""


@dataclass(frozen=True, kw_only=True)
class Reason:
    """One reason why a day is wrong.

    Attributes:
        kind: Kind of the reason.
        message: Description as a clause.
        size: How large it is: affected rows, or number of drifted measurements.
        columns: Columns that deviate.
    """

    kind: ReasonKind
    message: str
    size: float
    columns: tuple[str, ...] = ()

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Reason":
        """Return the reason of JSON-compatible values."""
        kind, columns = ReasonKind(record["kind"]), tuple(record["columns"])
        return cls(kind=kind, message=record["message"], size=record["size"], columns=columns)


@dataclass(frozen=True, kw_only=True)
class DayAssessment:
    """Assessment of one day: what was measured, and the verdict that follows from it and from what people marked.

    Attributes:
        day: ISO date, or `WHOLE`.
        rows: Scored rows.
        flagged: Flagged rows.
        known: Flagged rows that are known anomalies.
        known_anomalies: Rows that the label marks as anomalies.
        budget: Share of normal rows that may be flagged.
        usual_rows: Median number of rows on the same weekday of the previous weeks; None if unknown.
        deviations: Differences between the day as a whole and the training window.
        base_reasons: Reasons why the day is wrong, except for the number of flagged rows.
        is_compared: Whether the day has enough rows to compare it with the training window.
        filling: Why rows of the day are still expected, so that only its flagged rows are assessed; may be empty.
        remark: Further remark; may be empty.
        hidden: Flagged rows, without known anomalies, that people marked as known or as false alarms.
        mark: Last mark of the day; None without one.
        limits: Limits of recall and precision.
        since: First of the days in a row, up to this one, that have its verdict; empty if unknown, and for rows
            without event time.
        images: Counts of images where rows are their patches; None otherwise. A label is held against these.
        noun: What messages call a row.
    """

    day: str
    rows: int
    flagged: int
    known: int
    known_anomalies: int
    budget: float
    usual_rows: int | None
    deviations: tuple[Deviation, ...] = ()
    base_reasons: tuple[Reason, ...] = ()
    is_compared: bool = True
    filling: str = ""
    remark: str = ""
    hidden: int = 0
    mark: Mark | None = None
    limits: LabelLimits = DEFAULT_LIMITS
    since: str = ""
    images: ImageCounts | None = None
    noun: str = "row"

    @property
    def title(self) -> str:
        """The day as messages name it."""
        return f"all {plural(self.noun)}" if self.day == WHOLE else self.day

    @property
    def expected(self) -> float:
        """Flagged rows that the budget allows, among rows that are not known anomalies."""
        return self.budget * (self.rows - self.known_anomalies)

    @property
    def new(self) -> int:
        """Flagged rows that neither the label nor a person knows; all, if a mark does not cover how many they are."""
        is_over = any(reason.kind == ReasonKind.OVER_BUDGET for reason in self.reasons)
        return 0 if not is_over and self._unmarked <= _covered_size(FLAGGED, self.mark) else self._unmarked

    @property
    def _unmarked(self) -> int:
        """Flagged rows without those of the label and of marked rows and causes; a mark of the day is not read."""
        return self.flagged - self.known - self.hidden

    @property
    def all_reasons(self) -> tuple[Reason, ...]:
        """All reasons why the day is wrong, whether a mark covers them or not."""
        flagged = self._unmarked
        if not is_over_budget(self.rows - self.known_anomalies, flagged, self.budget):
            return self.base_reasons
        nouns, times = plural(self.noun), flagged / max(self.expected, 1e-9)
        message = f"{flagged:,} {nouns} are flagged, {times:.0f} times the budget"
        return (Reason(kind=ReasonKind.OVER_BUDGET, message=message, size=flagged), *self.base_reasons)

    @property
    def covered(self) -> tuple[Reason, ...]:
        """Reasons that people know, and that have not grown since."""
        return tuple(reason for reason in self.all_reasons if _is_covered(reason, self.mark))

    @property
    def known_as_a_whole(self) -> str:
        """What people know about the day as a whole, with the state of its mark; empty if they know nothing."""
        known = [reason.message for reason in self.covered if reason.kind in AS_A_WHOLE]
        return f"{self.mark.state.text}: {'; '.join(known)}" if self.mark and known else ""

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """Reasons that no mark covers."""
        return tuple(reason for reason in self.all_reasons if not _is_covered(reason, self.mark))

    @property
    def verdict(self) -> DayState:
        """What the day needs.

        It is wrong if a reason remains. With at least ten known anomalies, the label decides otherwise: the day is
        worth a look if too few of its flagged rows are known anomalies. Without them, it is worth a look if rows are
        flagged that neither the label knows nor a person marked as known or as false alarms. Otherwise it is calm.
        """
        if self.reasons:
            return DayState.WRONG
        if self.is_judged_by_label:
            return DayState.LOOK if self.precision < self.limits.min_precision else DayState.CALM
        return DayState.LOOK if self.new > 0 else DayState.CALM

    @property
    def is_judged_by_label(self) -> bool:
        """Whether recall and precision decide on the verdict."""
        return (self.images or self).known_anomalies >= MIN_LABELED

    @property
    def precision(self) -> float:
        """Share of known anomalies among the flagged rows or images that no mark hides; 1 without one."""
        _, known, flagged = self._labeled
        return known / flagged if flagged else 1.0

    @property
    def _labeled(self) -> tuple[int, int, int]:
        """Known anomalies, flagged ones of them, and all flagged ones that no mark hides: images, or rows."""
        if not (images := self.images):
            return self.known_anomalies, self.known, self.known + self.new
        # Marks are on patches, and the counts do not say of which image: images count until no patch is left.
        is_marked = self.hidden > 0 or (self.mark is not None and self.mark.state in HIDDEN)
        flagged = images.known_flagged if is_marked and self.new == 0 else images.flagged
        return images.known_anomalies, images.known_flagged, flagged

    @property
    def is_wrong(self) -> bool:
        """Whether the day needs attention."""
        return self.verdict == DayState.WRONG

    @property
    def message(self) -> str:
        """Reasons why the day is wrong, or its counts."""
        if self.reasons:
            return "; ".join(reason.message for reason in self.reasons)
        few = f"; too few {plural(self.noun)} to compare the day with the training window"
        counts = self._counts if self.is_compared else f"{self._counts}{few}"
        if self.is_judged_by_label:
            what = "images" if self.images else plural(self.noun)
            expected = f"at least {self.limits.min_precision:.0%} of the flagged {what} should be known anomalies"
            if self.verdict == DayState.LOOK:
                return f"{expected}: {counts}"
            confirmed = self.images.known_flagged if self.images else self.known
            return f"the label confirms the flags: {counts}" if confirmed else counts
        if self.verdict == DayState.LOOK:
            return counts
        return f"nothing {'new' if self.flagged or self.covered else 'unusual'}: {counts}"

    @property
    def headline(self) -> str:
        """Verdict, since when, and message as every screen shows them."""
        return f"{self.verdict.value}{self.duration}: {self.message}"

    @property
    def duration(self) -> str:
        """Since when the verdict holds, as a clause with a space before it; empty if that is unknown."""
        return (f" since {self.since}" if self.since != self.day else " since this day") if self.since else ""

    @property
    def aside(self) -> str:
        """Remark that completes the message; may be empty."""
        if self.filling:
            return f"{self.filling}. It is not compared with other days until it is complete."
        kinds = {reason.kind for reason in self.all_reasons}
        parts = []
        if ReasonKind.OVER_BUDGET not in kinds and any(reason.kind in AS_A_WHOLE for reason in self.reasons):
            level = "within the budget" if self.new <= self.expected else "not significantly above the budget"
            flagged = f"the number of flagged {plural(self.noun)}"
            parts.append(f"The day as a whole is unusual, but {flagged} is {level}: {self._counts}.")
        if self.covered and self.mark:
            what = "; ".join(reason.message for reason in self.covered)
            parts.append(f"Marked as {self.mark.state.text} by {self.mark.who}: {what}.")
        return " ".join([*parts, *([self.remark] if self.remark else [])])

    @property
    def is_filling(self) -> bool:
        """Whether rows of the day are still expected."""
        return bool(self.filling)

    @property
    def completeness(self) -> float | None:
        """Number of rows relative to the usual number; None if that is unknown."""
        return self.rows / self.usual_rows if self.usual_rows else None

    @property
    def _counts(self) -> str:
        """The flagged rows as text, with those that are marked, and recall and precision of a label."""
        normal, allows = self.rows - self.known_anomalies, f"the alert budget allows {_count(self.expected)}"
        text = f"{self.new:,} of {normal:,} {plural(self.noun)} are flagged, and {allows}"
        anomalies, known, flagged = self._labeled
        one, more = ("anomalous image is", "anomalous images are") if self.images else ("anomaly is", "anomalies are")
        are = one if anomalies == 1 else more
        if anomalies:
            precision = f", precision {self.precision:.0%}" if flagged else ""
            text = (
                f"{known:,} of {anomalies:,} known {are} flagged (recall {known / anomalies:.0%}{precision}), and "
                f"{self.new:,} of {normal:,} other {plural(self.noun)}, where {allows}"
            )
        if marked := self.flagged - self.known - self.new:
            text += f"; {marked:,} more {'is' if marked == 1 else 'are'} known or false alarms"
        return text

    def reviewed(self, review: Review, day: str) -> "DayAssessment":
        """Return the same day with what people marked by now.

        Args:
            review: Rows and days as people marked them.
            day: ISO date, or `ALL_ROWS`.
        """
        reviewed = replace(self, hidden=review.hidden.get(day, 0), mark=review.days.get(day))
        return reviewed if reviewed.verdict == self.verdict else replace(reviewed, since="")

    def record(self) -> dict[str, Any]:
        """Return the assessment with its verdict as JSON-compatible values; `from_record` reads them."""
        texts, figures = ("duration", "headline", "message", "aside"), ("expected", "completeness", "new")
        derived = (*texts, *figures, "is_wrong", "is_filling")
        return {
            **asdict(self),
            "verdict": self.verdict.value,
            "reasons": [asdict(reason) for reason in self.reasons],
            **{name: getattr(self, name) for name in derived},
        }

    def brief_record(self) -> dict[str, Any]:
        """Return the assessment without its deviations as JSON-compatible values; `from_record` reads them."""
        return asdict(replace(self, deviations=(), mark=None))

    @classmethod
    def from_record(cls, record: Mapping[str, Any], noun: str = "row") -> "DayAssessment":
        """Return the assessment that `record` or `brief_record` stored, without a mark; with `noun` if it has none."""
        values = {each.name: record[each.name] for each in fields(cls) if each.name in record}  # the last one is new
        images = record.get("images")
        return cls(
            **{
                "noun": noun,
                **values,
                "mark": None,
                "images": ImageCounts(**images) if images else None,
                "limits": LabelLimits(**record["limits"]),
                "base_reasons": tuple(Reason.from_record(reason) for reason in record["base_reasons"]),
                "deviations": tuple(map(Deviation.from_record, record["deviations"])),
            }
        )


def _is_covered(reason: Reason, mark: Mark | None) -> bool:
    """Return whether people know a reason of the day, and it has not grown since."""
    return (
        mark is not None
        and reason.size <= _covered_size(reason.kind, mark)
        and set(reason.columns) <= set(mark.columns)
    )


def _covered_size(name: str, mark: Mark | None) -> float:
    """Return up to which size a mark of the day covers its reason, or its flagged rows."""
    return GROWTH * mark.sizes.get(name, 0) if mark is not None and mark.state in HIDDEN else 0.0


def _count(rows: float) -> str:
    return f"{rows:,.0f}" if rows >= 10 else f"{rows:.1f}"
