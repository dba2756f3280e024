"""Versions of a model: what a comparison scores, and what it says about it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import polars as pl
import pytest

from ae_pipeline.common.errors import PromotionError
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.lifecycle.comparison import compare_versions
from ae_pipeline.registry.store import Tracker
from ae_pipeline.registry.versions import TrackedVersion
from ae_pipeline.storage.parquet import write_parquet
from tests.support.reports import as_dataset
from tests.support.sensors import Fitted


def tracker_of(*versions: TrackedVersion, serving: TrackedVersion) -> Tracker:
    return cast(Tracker, SimpleNamespace(versions=lambda _: versions, version=lambda *_: serving))


def test_a_comparison_keeps_a_feature_named_day_and_says_what_it_sampled(
    fitted: Fitted, other_bundle: ModelBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = fitted.at(tmp_path / "data")
    newest = dataset.days[-7:]
    for day in newest:
        rows = dataset.features(day).with_columns(day=pl.lit(7.5))
        write_parquet(dataset.paths.features(day), rows.to_arrow(), {"input_hash": day})
    first, second = (TrackedVersion(dataset.name, number, "run", {}) for number in (1, 2))
    bundles, scored = {1: fitted.bundle, 2: other_bundle}, []
    score = ModelBundle.score

    def noted(bundle: ModelBundle, rows: pl.DataFrame) -> Any:
        scored.append(rows)
        return score(bundle, rows)

    monkeypatch.setattr("ae_pipeline.lifecycle.comparison.load_bundle", lambda _, version: bundles[version.version])
    monkeypatch.setattr("ae_pipeline.lifecycle.comparison._MAX_ROWS", 50)
    monkeypatch.setattr(ModelBundle, "score", noted)
    tracker = tracker_of(first, second, serving=first)
    compared = compare_versions(as_dataset(dataset), tracker, 2)
    total = sum(dataset.features(day).height for day in newest)
    assert (compared.rows, compared.total) == (50, total)
    assert f"of 50 rows, sampled from the {total:,} of the newest days" in compared.message
    assert scored[0]["day"].unique().to_list() == [7.5]
    ids = {day: set(dataset.features(day)["row_id"]) for day in newest}
    assert set(compared.days) <= set(newest)
    assert all(row.row_id in ids[row.day] for row in (*compared.only_new, *compared.only_old))
    with pytest.raises(PromotionError, match="has no version 0; choose among 1, 2"):
        compare_versions(as_dataset(dataset), tracker, 2, 0)
