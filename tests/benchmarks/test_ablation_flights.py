"""The variants of the ablation on flights, and its table."""

import pytest

pytest.importorskip("pyod")

from ae_pipeline.config.service import Evidence
from benchmarks.ablation_flights import ALL, describe, variants
from benchmarks.faults import FAULTS
from benchmarks.report import Row


def test_each_kind_is_left_out_added_and_used_alone() -> None:
    shipped = (Evidence.COLUMNS, Evidence.CATEGORIES)
    by_name = variants(shipped)
    assert by_name["as shipped"] == shipped
    assert by_name["without categories"] == (Evidence.COLUMNS,)
    assert by_name["with ensemble"] == (*shipped, Evidence.ENSEMBLE)
    assert [name for name in by_name if name.startswith("without")] == ["without columns", "without categories"]
    assert {name: by_name[f"{name.value} alone"] for name in Evidence} == {name: (name,) for name in Evidence}


def test_the_table_has_the_mean_recall_over_seeds() -> None:
    rows: list[Row] = [
        {"variant": "as shipped", "seed": seed, "kind": kind, "recall_top_1pct": recall}
        for seed, recall in ((0, 0.5), (1, 0.7))
        for kind in (ALL, *FAULTS)
    ]
    assert describe(rows).splitlines()[-1].count("60%") == len(FAULTS) + 1
