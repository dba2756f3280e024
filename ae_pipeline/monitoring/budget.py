"""Compare the flagged rows of a day with the alert budget."""

from dataclasses import dataclass

from ae_pipeline.scoring.budget import TOLERATED_FACTOR, is_over_budget

__all__ = ["TOLERATED_FACTOR", "ReportDay", "is_over_budget"]


@dataclass(frozen=True, kw_only=True)
class ImageCounts:
    """Counts of the images of one reported day whose patches are rows.

    Attributes:
        flagged: Flagged images.
        known_anomalies: Images that the label marks as anomalies.
        known_flagged: Flagged images among these.
    """

    flagged: int
    known_anomalies: int
    known_flagged: int


@dataclass(frozen=True, kw_only=True)
class ReportDay:
    """Counts of one reported day.

    Attributes:
        day: ISO date, or `ALL_ROWS`.
        rows: Scored rows.
        flagged: Rows within the alert budget.
        known_anomalies: Rows that the label marks as anomalies.
        known_flagged: Flagged known anomalies.
        discovery_count: Rows marked at the false discovery rate; 0 without one.
        content_hash: Content hash of the ranked rows.
        images: Counts of images where rows are their patches; None otherwise. A label is held against these.
    """

    day: str
    rows: int
    flagged: int
    known_anomalies: int
    known_flagged: int
    discovery_count: int
    content_hash: str
    images: ImageCounts | None = None
