"""A part of the benchmark `hostile`: hostile files are refused, in bounded time and memory."""

import pytest

from benchmarks.hostile_inputs import INPUTS, MAX_BYTES, MAX_SECONDS, run_input

BY_NAME = {case.case: case for case in INPUTS}


def test_each_hostile_file_has_a_name_of_its_own() -> None:
    assert len(BY_NAME) == len(INPUTS) >= 60


@pytest.mark.parametrize(
    "name",
    [
        "header of 100,000 columns",
        "cells that span the sheet",
        "Parquet of 900,000,000 equal values",
    ],
)
def test_a_hostile_file_is_refused_in_bounded_time_and_memory(name: str) -> None:
    row = run_input(BY_NAME[name])
    assert row["right"], row
    assert float(row["seconds"]) < MAX_SECONDS
    assert float(row["megabytes"]) < MAX_BYTES / 1e6
