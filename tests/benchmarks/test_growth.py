"""The benchmark of growth: stages of a deployment, each in its own process, and the exponent of their times."""

import math
from pathlib import Path

import polars as pl
import pytest

pytest.importorskip("pyod")

from benchmarks import generated, growth
from benchmarks.deployment import STAGES, run_stage


def test_the_exponent_is_the_power_of_the_number_of_rows() -> None:
    rows = [1000, 3000, 10_000]
    assert growth.exponent({n: 0.002 * n for n in rows}) == pytest.approx(1)
    assert growth.exponent({n: 1e-6 * n * n for n in rows}) == pytest.approx(2)
    assert math.isnan(growth.exponent({1000: 1.0}))


def test_a_category_has_a_thousand_values_and_sets_a_mean() -> None:
    day = growth.many_categories(9).day(0)
    assert day["kind"].n_unique() == growth.CATEGORIES
    means = day.group_by("kind").agg(pl.col("c000").mean()).sort("kind")["c000"]
    assert means.is_sorted()
    assert len([name for name in day.columns if name.startswith("c")]) == 8


def test_a_stage_of_a_small_deployment_is_measured(tmp_path: Path) -> None:
    data = growth.Data(lambda index: generated.day_rows(index, 4, 1500), 1500, 4, "1MiB")
    days = data.land(tmp_path, 3)
    measure = run_stage(tmp_path, data.attributes, STAGES[0], days)
    assert measure.seconds > 0
    assert 100 < measure.mebibytes < 5000
    rows = pl.read_parquet(tmp_path / "data" / "raw" / generated.DATASET / "*.parquet")
    assert rows.height == 4500
    with pytest.raises(RuntimeError, match="features of 2030-01-01 to 2030-01-01 failed"):
        run_stage(tmp_path, data.attributes, "features", ["2030-01-01"])
