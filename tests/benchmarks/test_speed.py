"""The benchmark of speed: medians without the first round, tables, and reproducible data."""

from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest

pytest.importorskip("pyod")

from ae_pipeline.storage.parquet import read_facts
from ae_pipeline.storage.paths import DatasetPaths
from benchmarks import figures, generated, speed


def test_medians_alternate_methods_and_skip_the_first_round() -> None:
    order: list[str] = []
    values = {"a": iter([100.0, 1.0, 3.0, 2.0]), "b": iter([7.0, 9.0, 8.0, 10.0])}

    def measure(name: str) -> float:
        order.append(name)
        return next(values[name])

    assert speed.medians(3, {name: partial(measure, name) for name in values}) == {"a": 2.0, "b": 9.0}
    assert order == ["a", "b"] * 4


def test_a_table_has_methods_as_lines_and_metrics_as_columns() -> None:
    measured = [
        figures.Measured("t", "ours", "rows/s", 123456.0, 10, 2),
        figures.Measured("t", "ours", "× (a)", 1.5, 10, 2),
        figures.Measured("t", "theirs", "rows/s", 0.25, 10, 2),
    ]
    assert figures.as_table(measured).splitlines() == [
        "| method |  rows/s | × (a) |",
        "| ------ | ------: | ----: |",
        "| ours   | 123,456 |   1.5 |",
        "| theirs |    0.25 |       |",
    ]


@pytest.fixture
def paths(tmp_path: Path) -> DatasetPaths:
    """Paths of the generated dataset."""
    return DatasetPaths(tmp_path, generated.DATASET)


def test_a_generated_day_is_reproducible(paths: DatasetPaths) -> None:
    assert generated.write_day(paths, 3, 5, rows=200) == "2024-01-04"
    previous = read_facts(paths.features("2024-01-04"))
    generated.write_day(paths, 3, 5, rows=200)
    assert read_facts(paths.features("2024-01-04")) == previous
    rows = pl.read_parquet(paths.features("2024-01-04"))
    assert rows["event_time"].dt.date().dt.to_string().unique().to_list() == ["2024-01-04"]
    assert rows["event_time"].is_sorted()
    assert rows["row_id"].n_unique() == rows.height == 200
    assert [name for name in rows.columns if name.startswith("c")] == [f"c{index:03d}" for index in range(5)]


def test_few_components_explain_generated_numbers() -> None:
    values = generated.numbers(2000, 32, seed=0)
    spectrum = np.linalg.svd(values - values.mean(axis=0), compute_uv=False) ** 2
    assert spectrum[: 3 * generated.HIDDEN].sum() / spectrum.sum() > 0.85


def test_a_model_of_generated_days_scores_and_publishes_them(paths: DatasetPaths) -> None:
    days = [generated.write_day(paths, index, 4, rows=1500) for index in range(3)]
    bundle = generated.fitted(paths, 4, speed.PLAIN)
    assert speed._published(days, paths, bundle) > 0
    assert speed._published(days, paths, bundle) > 0  # each call publishes again
    table = pl.read_delta(paths.latents)
    assert table.height == 4500
    assert speed._copied(days, paths) > 0
    assert pl.read_parquet(paths.root / "copy.parquet").equals(pl.read_parquet(paths.features(days[-1])))
