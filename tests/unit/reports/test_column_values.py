"""Values of a column by day: bins, medians and missing shares."""

from dataclasses import replace

import polars as pl
import pytest

from ae_pipeline.config.columns import ColumnType
from ae_pipeline.config.service import DriftConfig
from ae_pipeline.reports.column_values import OTHER, ColumnDays
from ae_pipeline.reports.explore_charts import VersionMark, column_charts, score_days_chart, score_quantiles
from ae_pipeline.storage.paths import ALL_ROWS


def column(values: dict[str, list[float | str | None]], *, is_category: bool = False, window: str = "d1") -> ColumnDays:
    rows = [{"day": day, "rows": len(of_day), "value": value} for day, of_day in values.items() for value in of_day]
    types = {"day": pl.String, "rows": pl.Int64, "value": pl.String if is_category else pl.Float64}
    return ColumnDays(name="x", is_category=is_category, values=pl.DataFrame(rows, schema=types), window=(window,))


def test_a_number_has_median_band_and_missing_share_by_day() -> None:
    by_day = column({"d1": [1.0, 2.0, 3.0, None], "d2": [5.0]}).by_day()
    assert by_day["missing"].to_list() == [0.25, 0.0]
    assert by_day["median"].to_list() == [2.0, 5.0]
    assert by_day.row(0, named=True)["low"] == pytest.approx(1.2)
    assert by_day.row(0, named=True)["high"] == pytest.approx(2.8)


def test_shares_of_the_bins_of_a_day_add_up_to_one_and_outliers_fall_into_the_last() -> None:
    usual = [float(value) for value in range(1000)]
    bins = column({"d1": list(usual), "d2": [500.0, 1e9]}).bins()
    sums = bins.group_by("day").agg(pl.col("share").sum()).sort("day")
    assert sums["share"].to_list() == pytest.approx([1.0, 1.0, 1.0])
    of_second = bins.filter(pl.col("day") == "d2").sort("from")
    assert of_second["share"].to_list() == [0.5, 0.5]
    assert of_second["to"][-1] < 1001
    assert bins.filter(pl.col("day") == "window")["count"].sum() == 1000


def test_few_distinct_numbers_have_a_bin_each() -> None:
    bins = column({"d1": [0.0, 0.0, 1.0, 3.0]}).bins().filter(pl.col("day") == "d1")
    assert bins["from"].to_list() == [0.0, 1.0, 3.0]
    assert bins["share"].to_list() == [0.5, 0.25, 0.25]


def test_rare_categories_are_counted_together() -> None:
    names: list[float | str | None] = [f"c{index:02d}" for index in range(20) for _ in range(20 - index)]
    bins = column({"d1": names}, is_category=True).bins().filter(pl.col("day") == "d1")
    shares = dict(zip(bins["bin"], bins["share"], strict=True))
    assert len(shares) == 13
    assert shares["c00"] == pytest.approx(20 / 210)
    assert shares[OTHER] == pytest.approx(sum(range(1, 9)) / 210)


def test_a_column_without_values_has_a_chart_of_missing_values_only() -> None:
    empty = column({"2024-01-01": [None], "2024-01-02": [None]}, window="2024-01-01")
    charts = column_charts(empty, ColumnType.NUMBER, pl.DataFrame(), DriftConfig())
    assert [chart.name for chart in charts] == ["median", "missing"]


def test_scores_by_day_name_the_versions_within_the_days() -> None:
    scores = pl.DataFrame({"day": ["2024-01-01"] * 3 + ["2024-01-02"], "score": [1.0, 2.0, 9.0, 4.0]})
    first = score_quantiles(scores).filter(pl.col("day") == "2024-01-01")
    assert dict(zip(first["quantile"], first["score"], strict=True))["median"] == 2.0
    chart = score_days_chart(score_quantiles(scores), 3.0, [VersionMark("2023-01-01", 1), VersionMark("2024-01-02", 2)])
    assert '"version":"v2"' in chart.spec
    assert '"version":"v1"' not in chart.spec


def test_days_outside_of_the_training_window_are_not_called_so() -> None:
    values: dict[str, list[float | str | None]] = {"2024-01-01": [1.0, 2.0, None], "2024-01-02": [3.0, 5.0]}
    outside = column(values, window="2022-01-01")
    assert outside.in_window.is_empty()
    assert outside.bins().filter(pl.col("day") == "window").is_empty()
    charts = {each.name: each for each in column_charts(outside, ColumnType.NUMBER, pl.DataFrame(), DriftConfig())}
    for name in ("distribution", "median", "missing"):
        assert "The days of the training window are not among those shown" in charts[name].message
        assert "dashed" not in charts[name].message
    assert "training window" not in charts["distribution"].spec
    inside = column(values, window="2024-01-01")
    charts = {each.name: each for each in column_charts(inside, ColumnType.NUMBER, pl.DataFrame(), DriftConfig())}
    assert charts["distribution"].message.startswith("Values of 2024-01-02 and of the training window.")
    assert charts["missing"].message.endswith("The dashed line is that of the training window, 33.33%.")
    assert charts["median"].message.endswith("The dashed line is the median of the training window.")
    partly = replace(inside, window=("2022-01-01", "2022-01-02", "2024-01-01"))
    assert partly.window_name == "training window (1 of its 3 days)"


def test_a_column_without_days_shows_all_rows() -> None:
    rows = replace(column({ALL_ROWS: ["a", "b", "b", None]}, is_category=True), window=())
    (chart,) = column_charts(rows, ColumnType.CATEGORY, pl.DataFrame(), DriftConfig())
    assert chart.message == "Values of all rows."
    assert '"of":"all rows"' in chart.spec
    (chart,) = column_charts(rows, ColumnType.CATEGORY, pl.DataFrame(), DriftConfig(), "patches")
    assert chart.message == "Values of all patches."
    assert '"of":"all patches"' in chart.spec
