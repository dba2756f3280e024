"""Tests of ae_pipeline/latents/removal.py: no publication removes many rows without a confirmation."""

import datetime as dt
from dataclasses import replace

import pytest

from ae_pipeline.common.errors import RemovalError
from ae_pipeline.ingestion.ledger import Ledger
from ae_pipeline.ingestion.removal import accept_removal
from ae_pipeline.latents.publish import Publication, publish
from tests.support.latents import RewriteDay, table
from tests.support.sensors import Fitted


def shrink(dataset: Fitted, days: tuple[str, ...], rewrite_day: RewriteDay) -> None:
    """Leave one row of each of two days, of 60."""
    for day in days[:2]:
        rewrite_day(dataset, day, dataset.features(day).head(1))


def leave_only(dataset: Fitted, days: tuple[str, ...]) -> None:
    """Delete the features of all other days, which are not published."""
    for path in dataset.paths.features("_").parent.glob("*.parquet"):
        if path.stem not in days:
            path.unlink()


def publish_again(dataset: Fitted, days: tuple[str, ...], *, accepts_removal: bool = False) -> Publication:
    """Publish days under version 1."""
    return publish(days, dataset, dataset.bundle, 1, {}, accepts_removal=accepts_removal)


def test_fewer_rows_of_features_leave_the_table_unchanged(
    dataset: Fitted, days: tuple[str, ...], first: Publication, rewrite_day: RewriteDay
) -> None:
    leave_only(dataset, days)
    shrink(dataset, days, rewrite_day)
    before = table(dataset.paths)
    message = rf"118 of 240 rows .*features have fewer rows of {days[0]}, {days[1]} .*--accept-removal"
    with pytest.raises(RemovalError, match=message):
        publish_again(dataset, days)
    assert table(dataset.paths).equals(before)
    assert publish_again(dataset, days, accepts_removal=True).table_version == first.table_version + 1
    assert table(dataset.paths).height == 122


@pytest.mark.parametrize("first_day", [1, 3])
def test_days_that_the_dataset_no_longer_has_leave_the_table_only_if_accepted(
    dataset: Fitted, days: tuple[str, ...], first: Publication, first_day: int
) -> None:
    leave_only(dataset, days)
    config = dataset.config.model_copy(update={"start": dt.date.fromisoformat(days[first_day])})
    edited = replace(dataset, config=config)
    with pytest.raises(RemovalError, match=f"{first_day * 60} of 240 rows .*outside of start={days[first_day]}"):
        publish_again(edited, days[first_day:])
    publish_again(edited, days[first_day:], accepts_removal=True)
    assert table(dataset.paths).height == 240 - first_day * 60


def test_the_ingestion_that_was_accepted_is_accepted_for_the_table(
    dataset: Fitted, days: tuple[str, ...], first: Publication, rewrite_day: RewriteDay
) -> None:
    leave_only(dataset, days)
    shrink(dataset, days, rewrite_day)
    accept_removal(Ledger.load(dataset.paths.ledger), dataset.paths)
    publish_again(dataset, days)
    assert table(dataset.paths).height == 122


def test_a_corrected_day_and_rows_of_other_days_need_no_confirmation(
    dataset: Fitted, days: tuple[str, ...], first: Publication, rewrite_day: RewriteDay
) -> None:
    shrink(dataset, days, rewrite_day)  # the features of the other days have more rows than the table
    publish_again(dataset, days)
    assert table(dataset.paths).height == 122
    leave_only(dataset, days)
    rewrite_day(dataset, days[2], dataset.features(days[2]).head(40))
    publish_again(dataset, days)
    assert table(dataset.paths).height == 102
