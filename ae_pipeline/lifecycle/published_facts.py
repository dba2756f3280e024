"""Flags and drift of the published rows, as of the last report with a version."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import NonNegativeInt, ValidationError

from ae_pipeline.config.section import Section


class PublishedFacts(Section):
    """Flags and drift of the rows that a version scored, as of its last report.

    They are a tag of its MLflow run, so that they stay known after the next version has scored the rows again.
    """

    days: NonNegativeInt
    rows: NonNegativeInt
    flagged: NonNegativeInt
    days_after: NonNegativeInt
    days_with_drift: NonNegativeInt

    @classmethod
    def of_summary(cls, summary: Mapping[str, Any]) -> Self | None:
        """Return the facts of a `summary.json`; None if one of them is missing.

        Days without rows do not count, nor do days after the training window with too few rows for a comparison.

        >>> drift = [{"is_after": True, "is_judged": True, "drifted": "load"}]
        >>> days = [{"rows": 4}, {"rows": 0}, {"rows": 6}]
        >>> facts = PublishedFacts.of_summary({"rows": 10, "flagged": 3, "days": days, "drift": drift})
        >>> facts.flagged_a_day, facts.share, facts.days_with_drift
        (1.5, 0.3, 1)
        """
        try:
            after = [day for day in summary["drift"] if day["is_after"] and day["is_judged"]]
            return cls(
                days=sum(day["rows"] > 0 for day in summary["days"]),
                rows=summary["rows"],
                flagged=summary["flagged"],
                days_after=len(after),
                days_with_drift=sum(bool(day["drifted"]) for day in after),
            )
        except (KeyError, TypeError, ValidationError):  # of another release, or changed by hand
            return None

    @classmethod
    def of_tag(cls, text: str | None) -> Self | None:
        """Return the facts of a tag; None without it, or if it cannot be read."""
        try:
            return cls.model_validate_json(text) if text else None
        except ValidationError:
            return None

    @property
    def flagged_a_day(self) -> float:
        """Flagged rows for each day with rows."""
        return self.flagged / max(self.days, 1)

    @property
    def share(self) -> float:
        """Share of the rows that are flagged."""
        return self.flagged / max(self.rows, 1)
