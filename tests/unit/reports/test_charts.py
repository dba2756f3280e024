"""Values of the charts."""

import json

import numpy as np
import pytest

from ae_pipeline.common.escape import escape_markdown
from ae_pipeline.common.text import printable
from ae_pipeline.reports.charts import calibration_chart, score_chart
from ae_pipeline.reports.render import render_png

NASTY = [
    *map(
        chr, (*range(0x20), 0x7F, *range(0x80, 0xA0), 0x2028, 0x2029, 0xFEFF, 0xFDD0, 0xFFFE, 0xFFFF, 0x1FFFE, 0xD800)
    ),
    *("<b>", "</script>", "&amp;", '"', "'", "|", "`", "{{x}}", "%s", "\\"),
]


class TestCharts:
    def test_score_bars_are_shares_and_flagged_rows_are_counted(self) -> None:
        chart = score_chart(np.array([0.5, 0.5, 9.0]), np.linspace(0, 8, 100), 7.0, "2024-01-01")
        spec = json.loads(chart.spec)
        values = max(spec["datasets"].values(), key=len)
        for whose in ("2024-01-01", "calibration"):
            assert sum(value["share"] for value in values if value["of"] == whose) == pytest.approx(1)
        assert chart.message.endswith("are flagged: 1.")

    def test_calibrated_p_values_lie_on_the_diagonal(self) -> None:
        p_values = np.arange(1, 10_001) / 10_000
        spec = json.loads(calibration_chart(p_values, "10,000 rows.").spec)
        points = max(spec["datasets"].values(), key=len)
        for point in points:
            assert point["share"] == pytest.approx(point["budget"], abs=1e-4)

    def test_any_character_can_be_drawn(self) -> None:
        chart = score_chart(np.array([0.5, 9.0]), np.linspace(0, 8, 100), 7.0, "".join(NASTY))
        assert render_png(chart).width > 100
        assert not set("\x00\x1b\u2028\uffff\ud800") & set(str(json.loads(chart.spec)))


def test_printable_text_keeps_differences_and_plain_text() -> None:
    assert len({printable(text, is_line=True) for text in NASTY}) == len(NASTY)
    assert printable("München 漢字 🙂 a\tb\n") == "München 漢字 🙂 a\tb\n"
    assert printable("a\tb\n\x1b[31m", is_line=True) == "a\\tb\\n\\x1b[31m"
    assert escape_markdown("a\x1b b\n\u2028c") == "a\\\\x1b b \\\\u2028c"
