"""How often the flagged rows of a version were real, as people marked them."""

from collections.abc import Iterable
from dataclasses import dataclass

from ae_pipeline.monitoring.feedback import NO_VERSION, Mark, MarkState, marks_by_row


@dataclass(frozen=True, kw_only=True)
class VersionFeedback:
    """Marked rows that one version flagged."""

    version: int
    real: int
    known: int
    false_alarms: int

    @property
    def precision(self) -> float | None:
        """Share of real anomalies among those that are real or false alarms; None without any."""
        return self.real / (self.real + self.false_alarms) if self.real + self.false_alarms else None


def precision_by_version(marks: Iterable[Mark]) -> list[VersionFeedback]:
    """Return the counts of marked rows by version of the model that flagged them, the oldest first.

    Rows that no version flagged are left out.
    """
    states: dict[int, list[MarkState]] = {}
    for mark in marks_by_row(marks).values():
        if mark.model_version != NO_VERSION:
            states.setdefault(mark.model_version, []).append(mark.state)
    return [
        VersionFeedback(
            version=version,
            real=of_version.count(MarkState.REAL),
            known=of_version.count(MarkState.KNOWN),
            false_alarms=of_version.count(MarkState.FALSE_ALARM),
        )
        for version, of_version in sorted(states.items())
    ]
