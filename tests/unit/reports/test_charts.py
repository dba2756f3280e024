"""Values of the charts."""

import json

import numpy as np
import pytest

from ae_pipeline.reports.charts import calibration_chart, score_chart


class TestCharts:
    def test_score_bars_are_shares_and_flagged_rows_are_counted(self) -> None:
        chart = score_chart(np.array([0.5, 0.5, 9.0]), np.linspace(0, 8, 100), 7.0, "2024-01-01")
        spec = json.loads(chart.spec)
        values = max(spec["datasets"].values(), key=len)
        for whose in ("2024-01-01", "calibration"):
            assert sum(value["share"] for value in values if value["rows"] == whose) == pytest.approx(1)
        assert chart.message.endswith("are flagged: 1.")

    def test_calibrated_p_values_lie_on_the_diagonal(self) -> None:
        p_values = np.arange(1, 10_001) / 10_000
        spec = json.loads(calibration_chart(p_values, "10,000 rows.").spec)
        points = max(spec["datasets"].values(), key=len)
        for point in points:
            assert point["share"] == pytest.approx(point["budget"], abs=1e-4)
