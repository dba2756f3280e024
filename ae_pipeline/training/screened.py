"""A window without the days and rows that a screening left out, and what both screenings share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

from ae_pipeline.common.text import abbreviate, plural, pluralize
from ae_pipeline.config.display import noun_of_rows
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.facts import ScreeningFacts
from ae_pipeline.detector.image_verdicts import image_of_row
from ae_pipeline.features.sizes import MIN_CALIBRATION_ROWS, budget_rows
from ae_pipeline.features.split import PARTS, Window, sample_by_hash
from ae_pipeline.storage.dataset import Dataset

SCREENED_PARTS = ("validation", "calibration")
"""Parts of the window that are screened."""

MAX_FALSE_ALARM_RATE = 1e-3
"""Largest probability that a part of exchangeable rows loses a day or a row, by each of the rules."""

MIN_DAYS = 4
"""Calibration days from which they can be compared with one another."""


@dataclass(frozen=True)
class Screened:
    """A window without the days and rows that a screening left out.

    Attributes:
        window: The window without these days.
        row_ids: Identities of further rows that are left out, by part.
        facts: What was left out, and why; None if nothing was screened.
        calibration_share: Share of the calibration rows that were screened. A screening by own scores looks at a sample
            of very many rows. If it leaves rows out, those that it has not seen are not used either.
        sampled_by: What the hash of the sample is of; None for the `row_id`.
    """

    window: Window
    row_ids: Mapping[str, pl.Series]
    facts: ScreeningFacts | None
    calibration_share: float = 1.0
    sampled_by: pl.Expr | None = field(default=None, compare=False)

    def keep(self, part: str, rows: pl.DataFrame) -> pl.DataFrame:
        """Return rows of a part without those that are left out."""
        row_ids = self.row_ids.get(part)
        kept = rows if row_ids is None else rows.filter(~pl.col("row_id").is_in(row_ids.implode()))
        return sample_by_hash(kept, self.calibration_share, self.sampled_by) if part == "calibration" else kept

    def leaving_out(self, window: Window, row_ids: pl.Series, facts: ScreeningFacts) -> "Screened":
        """Return this without further calibration days and rows.

        Args:
            window: Window without the days.
            row_ids: Identities of further calibration rows.
            facts: What was left out, and why.
        """
        left = pl.concat([*(each for each in [self.row_ids.get("calibration")] if each is not None), row_ids])
        return Screened(window, {**self.row_ids, "calibration": left} if left.len() else self.row_ids, facts)

    def incomplete_images(self, part: str, config: PipelineConfig) -> pl.Series:
        """Return the identities of the images of a part of which rows are left out."""
        row_ids = self.row_ids.get(part, pl.Series("row_id", [], dtype=pl.String))
        return row_ids.alias("row_id").to_frame().select(image_of_row(config)).to_series().unique()

    def counts(self, dataset: Dataset) -> dict[str, int]:
        """Return the number of rows of each part that remain, of all calibration rows if only a sample is used."""
        return {part: self.window.count(part, dataset.paths) - len(self.row_ids.get(part, ())) for part in PARTS}


def leaves_enough(part: str, gone: int, rows: int, dataset: Dataset) -> bool:
    """Return whether so many rows may go: neither more than the cap, nor too many for the alert budget."""
    is_enough = part != "calibration" or rows - gone >= needed_rows(dataset)
    return gone <= dataset.config.training.max_screened_share * rows and is_enough


def leaves_enough_images(gone: int, images: int, dataset: Dataset) -> bool:
    """Return whether so many calibration images may go: neither more than the cap, nor too many for their budget.

    One patch that is left out makes its image incomplete. The image then leaves the calibration of images too.
    """
    budget = dataset.config.alerts.image_budget
    needed = max(MIN_CALIBRATION_ROWS, budget_rows(budget) if budget else 0)
    return gone <= dataset.config.training.max_screened_share * images and images - gone >= needed


def needed_rows(dataset: Dataset) -> int:
    """Return the number of calibration rows that the configured alert budget needs."""
    budget = dataset.config.alerts.budget
    return max(MIN_CALIBRATION_ROWS, budget_rows(budget) if budget else 0)


def beyond_cap(part: str, config: PipelineConfig, images: int | None = None) -> str:
    """Return why a part has changed, if more of it than the cap or the alert budget permits would go.

    Args:
        part: Part of the window.
        config: Configuration of the dataset.
        images: Number of images that would be incomplete, if they are what would be too many.
    """
    cap = config.training.max_screened_share
    if images is not None:
        return (
            f"patches of {pluralize(images, 'image')} of {part} would go, more than {cap:.0%} of its images, or more "
            "than their alert budget allows"
        )
    nouns = plural(noun_of_rows(config))
    return f"{part} would lose more than {cap:.0%} of its {nouns}, or more than the alert budget allows"


def describe_screening(
    days: Mapping[str, Sequence[str]],
    of_days: Mapping[str, int],
    rows: Mapping[str, int],
    changed: Mapping[str, str],
    images: int | None = None,
    noun: str = "row",
) -> str:
    """Return the result of a screening as a sentence.

    Args:
        days: Days that were left out, by part.
        of_days: Number of rows of these days, by part.
        rows: Number of rows that were left out, those of the days included, by part.
        changed: Why nothing of a part is left out, by part.
        images: Number of calibration images of which patches were left out; None unless rows are patches.
        noun: What a row is called.
    """
    phrases = []
    for part, count in rows.items():
        if not count:
            continue
        of_which = "all of" if of_days.get(part) == count else f"of which {of_days.get(part, 0):,} are all of"
        phrase = f", {of_which} {abbreviate(days[part])}" if days.get(part) else ""
        of_images = f" of {pluralize(images, 'image')}" if part == "calibration" and images is not None else ""
        phrases.append(f"{pluralize(count, noun)}{of_images} left out of {part}{phrase}")
    phrases += [f"the data has changed: {why}, so nothing of {part} is left out" for part, why in changed.items()]
    return "; ".join(phrases) or "nothing left out of validation and calibration"


def screening_metrics(facts: ScreeningFacts | None) -> dict[str, float]:
    """Return the metrics of a screening: rows that were left out, by part; a part without such rows has none."""
    rows = facts.rows if facts else {}
    return {f"screening.{part}.rows": float(rows[part]) for part in SCREENED_PARTS if rows.get(part)}


def screening_tags(facts: ScreeningFacts | None) -> dict[str, str]:
    """Return the tags of a screening: which parts had changed."""
    return {"screening.changed": ", ".join(facts.changed) or "none"} if facts else {}
