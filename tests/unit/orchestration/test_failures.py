"""Reasons of failed runs."""

import sys

import dagster as dg
import pytest
from dagster._utils.error import serializable_error_info_from_exc_info
from dagster_shared.error import SerializableErrorInfo

from ae_pipeline.common.errors import StorageError
from ae_pipeline.orchestration.failures import own_message


def info(error: Exception) -> SerializableErrorInfo:
    """Return an error as Dagster stores it."""
    try:
        raise error
    except Exception:  # noqa: BLE001
        return serializable_error_info_from_exc_info(sys.exc_info())


def test_an_error_of_ours_behind_one_of_dagster_is_the_reason() -> None:
    error = dg.DagsterError("Error executing resource_fn")
    error.__cause__ = StorageError("no space left: free some space")
    assert own_message(info(error)) == "no space left: free some space"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("Cannot access partition_key for a non-partitioned run", "this run names no day; choose days"),
        (
            "Partition key range end 2024-03-20 is after the partitions definition end time 2024-03-05 00:00:00+00:00",
            "2024-03-20 is after the days of the dataset; choose other days",
        ),
        (
            "Partition key range start 2024-01-20 is before the partitions definition start time 2024-02-10",
            "2024-01-20 is before the days of the dataset",
        ),
    ],
)
def test_what_dagster_says_about_days_is_said_with_a_remedy(message: str, reason: str) -> None:
    assert reason in str(own_message(info(dg.DagsterInvariantViolationError(message))))


@pytest.mark.parametrize("message", ["division by zero", ""])
def test_other_errors_have_no_message_of_ours(message: str) -> None:
    assert own_message(info(ValueError(message))) is None
    assert own_message(None) is None
