"""Rows as they land get the scores of the published table, or the reason why the schema contract rejects them."""

import dataclasses
import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from PIL import Image

from ae_pipeline.common.errors import BundleError, SchemaError, StorageError
from ae_pipeline.config.columns import ImageShape
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.detector.explanation import because
from ae_pipeline.features.build import build_features_day, feature_columns
from ae_pipeline.features.split import cut_window
from ae_pipeline.ingestion.contract import contract_in_force
from ae_pipeline.ingestion.landing import ingest
from ae_pipeline.ingestion.raw import build_raw_day
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.paths import ALL_ROWS, DatasetPaths
from ae_pipeline.training.fit import fit_bundle
from tests.support.images import waves
from tests.support.sensors import Fitted, sensor_config, sensor_rows, with_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(fitted: Fitted) -> ModelBundle:
    """The bundle of the tiny dataset, with its schema contract."""
    return dataclasses.replace(fitted.bundle, contract=contract_in_force(fitted.paths.contract, fitted.config))


@pytest.fixture(scope="module")
def landed(fitted: Fitted) -> Path:
    """The newest landed file: ten days."""
    return fitted.paths.landing / "part_3.csv"


@pytest.fixture(scope="module")
def expected(fitted: Fitted) -> pl.DataFrame:
    """Scores of the features of the same ten days, one day at a time."""
    days = [fitted.features(day) for day in fitted.days[30:]]
    return pl.concat([day.select("row_id", "event_time").hstack(fitted.bundle.score(day).to_frame()) for day in days])


def assert_same(scored: pl.DataFrame, expected: pl.DataFrame) -> None:
    """Assert that rows have the same identity, time, scores and latents, in any order."""
    scored, expected = scored.sort("row_id"), expected.sort("row_id")
    assert scored.select("row_id", "event_time", "is_anomaly").equals(
        expected.select("row_id", "event_time", "is_anomaly")
    )
    assert scored.height > 0
    for name in ("score", "p_value"):
        np.testing.assert_allclose(scored[name], expected[name], rtol=1e-9, atol=1e-9)
    for name in ("z_000", "z_001", "z_002"):
        np.testing.assert_allclose(scored[name], expected[name], rtol=1e-5, atol=1e-6)


def test_a_landed_file_gets_the_scores_of_its_features(
    bundle: ModelBundle, landed: Path, expected: pl.DataFrame
) -> None:
    scores = bundle.score_raw(landed)
    assert (scores.rows, scores.scored.height, scores.rejected.height) == (600, 600, 0)
    assert scores.scored["row_number"].to_list() == list(range(2, 602))
    assert_same(scores.scored, expected)


@pytest.mark.parametrize(
    "convert",
    [lambda rows: rows, lambda rows: rows.to_arrow(), lambda rows: rows.to_pandas()],
    ids=["polars", "pyarrow", "pandas"],
)
def test_a_table_gets_the_same_scores(
    bundle: ModelBundle, expected: pl.DataFrame, convert: Callable[[pl.DataFrame], Any]
) -> None:
    scores = bundle.score_raw(convert(sensor_rows().tail(600)))
    assert scores.scored["row_number"].to_list() == list(range(1, 601))
    assert_same(scores.scored, expected)


def test_the_same_rows_in_the_same_batch_give_the_same_bytes(fitted: Fitted, bundle: ModelBundle) -> None:
    features = fitted.features(fitted.days[-1])
    rows = sensor_rows().with_columns(row_id=pl.col("serial").cast(pl.String))
    in_order = features.select("row_id").join(rows, on="row_id", maintain_order="left").drop("row_id")
    scored = bundle.score_raw(in_order).scored
    reference = fitted.bundle.score(features)
    assert scored["row_id"].equals(features["row_id"])
    assert scored["score"].to_numpy().tobytes() == reference.score.tobytes()
    assert (
        scored.select("z_000", "z_001", "z_002").to_numpy().tobytes() == np.asfortranarray(reference.latents).tobytes()
    )


def test_flagged_rows_have_the_explanation_of_the_report(fitted: Fitted, bundle: ModelBundle) -> None:
    rows = sensor_rows().tail(60).with_columns(power=pl.when(pl.int_range(60) < 3).then(90.0).otherwise("power"))
    scored = bundle.score_raw(rows).scored
    flagged = scored.filter("is_anomaly")
    assert flagged.height >= 3
    assert scored.filter(~pl.col("is_anomaly"))["because"].unique().to_list() == [""]
    assert all(text.startswith(("power is 90, expected ", "balance is ")) for text in flagged["because"].head(3))
    wrong = fitted.features(fitted.days[-1]).join(flagged.head(1), on="row_id", how="semi")
    wrong = wrong.with_columns(power=pl.lit(90.0), balance=pl.col("load") - 45)
    (parts,) = fitted.bundle.explain(wrong.select(bundle.columns))
    assert flagged["because"][0] == because(parts)
    assert [part["column"] for part in flagged["contributions"][0]] == [part.column for part in parts]


def test_explanations_are_limited_to_the_highest_scores(fitted: Fitted, bundle: ModelBundle) -> None:
    alerts = bundle.config.alerts.model_copy(update={"report_rows": 2})
    limited = with_config(bundle, bundle.config.model_copy(update={"alerts": alerts}))
    scored = limited.score_raw(sensor_rows().tail(20).with_columns(power=pl.lit(90.0))).scored
    explained = scored.filter(pl.col("because") != "")
    assert scored["is_anomaly"].sum() == 20
    assert sorted(explained["score"]) == sorted(scored["score"])[-2:]


def test_rows_that_violate_the_contract_come_back_with_the_reason(bundle: ModelBundle, tmp_path: Path) -> None:
    lines = sensor_rows().tail(6).write_csv().splitlines()
    cells = [line.split(",") for line in lines[1:]]
    cells[1][2] = "many"
    cells[2][0] = ""
    cells[3].append("surplus")
    cells[4][1] = "2031-01-01T00:00:00Z"
    file = tmp_path / "rows.csv"
    file.write_text("\n".join([lines[0], *map(",".join, cells)]) + "\n")
    scores = bundle.score_raw(file)
    assert scores.rows == 6
    assert scores.scored["row_number"].to_list() == [2, 7]
    assert scores.rejected["row_number"].to_list() == [3, 4, 5, 6]
    assert scores.rejected["rule"].to_list() == [
        "load: number",
        "serial: required",
        "columns",
        "measured_at: after the last day",
    ]
    assert "load = many is not a finite number" in scores.rejected["reason"][0]
    assert '"load":"many"' in scores.rejected["record"][0]


def test_days_replace_those_of_the_configuration(bundle: ModelBundle) -> None:
    late = sensor_rows().tail(3).with_columns(measured_at=pl.lit("2024-12-24T00:00:00Z"))
    assert bundle.score_raw(late).rejected.height == 3
    assert bundle.score_raw(late, days=(None, None)).scored.height == 3
    assert bundle.score_raw(late, days=(None, dt.date(2024, 12, 23))).rejected.height == 3


@pytest.mark.parametrize("count", [0, 2])
def test_no_valid_row_gives_an_empty_table(bundle: ModelBundle, count: int) -> None:
    rows = sensor_rows().head(count).with_columns(serial=pl.lit(None, pl.Int64))
    scores = bundle.score_raw(rows)
    assert (scores.scored.height, scores.rejected.height) == (0, count)
    full = bundle.score_raw(sensor_rows().head(1))
    assert scores.scored.schema == full.scored.schema
    assert scores.rejected.schema == full.rejected.schema


def test_rows_with_one_identity_are_all_scored(bundle: ModelBundle) -> None:
    rows = sensor_rows().tail(1)
    scored = bundle.score_raw(pl.concat([rows, rows])).scored
    assert scored["row_id"].n_unique() == 1
    assert scored.height == 2
    assert scored["score"][0] == scored["score"][1]


def test_other_columns_are_the_error_of_the_ingestion(bundle: ModelBundle) -> None:
    rows = sensor_rows().tail(2)
    message = r"the columns of 'sensors' have changed: table.parquet lacks 'load' and has unknown 'lod'\. If this is"
    with pytest.raises(SchemaError, match=message):
        bundle.score_raw(rows.rename({"load": "lod"}))
    with pytest.raises(SchemaError, match=r"lacks 'serial'\. Every row needs 'serial', because it is an identity"):
        bundle.score_raw(rows.drop("serial"))


def test_columns_of_the_label_may_be_missing(fitted: Fitted, bundle: ModelBundle) -> None:
    config = sensor_config(label="site = 'south'")
    assert bundle.contract is not None
    required = bundle.contract.columns["site"].model_copy(update={"required": True})
    contract = bundle.contract.model_copy(update={"columns": {**bundle.contract.columns, "site": required}})
    labelled = dataclasses.replace(with_config(bundle, config), contract=contract)
    scored = labelled.score_raw(sensor_rows().tail(60).drop("site")).scored
    assert scored["score"].equals(bundle.score_raw(sensor_rows().tail(60)).scored["score"])


def test_a_file_that_cannot_be_read_is_named(bundle: ModelBundle, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"none.csv cannot be read: No such file or directory; name a file"):
        bundle.score_raw(tmp_path / "none.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(SchemaError, match=r"empty.csv cannot be read: the file is empty"):
        bundle.score_raw(tmp_path / "empty.csv")


def test_a_pandas_column_of_several_types_is_an_error(bundle: ModelBundle) -> None:
    rows = sensor_rows().tail(2).to_pandas().assign(mode=pd.Series([1, "run"], dtype=object, index=[0, 1]))
    with pytest.raises(
        SchemaError, match=r"(?s)cannot be read as columns of one type each .*'?mode'?.*; convert the col"
    ):
        bundle.score_raw(rows)


def test_a_saved_bundle_scores_raw_rows_with_the_same_bytes(bundle: ModelBundle, tmp_path: Path) -> None:
    bundle.save(tmp_path)
    loaded = ModelBundle.load(tmp_path)
    assert loaded.contract == bundle.contract
    assert loaded.fingerprint == bundle.fingerprint
    rows = sensor_rows().tail(60)
    assert loaded.score_raw(rows).scored.equals(bundle.score_raw(rows).scored)


def test_a_bundle_without_contract_asks_for_a_new_model(fitted: Fitted) -> None:
    assert fitted.bundle.contract is None
    with pytest.raises(BundleError, match=r"has no schema contract, .* train a new model to score rows as they land"):
        fitted.bundle.score_raw(sensor_rows().tail(1))


def test_patches_of_an_image_file_get_the_scores_of_its_features(tmp_path: Path) -> None:
    dataset, bundle = fit_patches(tmp_path)
    assert bundle.contract is not None
    image = dataset.paths.landing / "waves" / "7.png"
    scores = bundle.score_raw(image, landing=dataset.paths.landing)
    features = pl.read_parquet(dataset.paths.features(ALL_ROWS)).filter(
        pl.col("row_id").str.starts_with("waves/7.png|")
    )
    expected = features.select("row_id").hstack(bundle.score(features).to_frame())
    assert (scores.rows, features.height) == (4, 4)
    joined = scores.scored.join(expected, on="row_id", maintain_order="left", suffix="_expected")
    np.testing.assert_allclose(joined["score"], joined["score_expected"], rtol=1e-9)
    elsewhere = tmp_path / "7.png"
    elsewhere.write_bytes(image.read_bytes())
    np.testing.assert_array_equal(bundle.score_raw(elsewhere).scored["score"], scores.scored["score"])
    elsewhere = tmp_path / "broken.png"
    elsewhere.write_bytes(image.read_bytes()[:60])
    rejected = bundle.score_raw(elsewhere).rejected
    assert rejected.select("row_number", "rule").rows() == [(1, "image: readable")]


def fit_patches(root: Path) -> tuple[Dataset, ModelBundle]:
    """Return a dataset whose rows are patches of PNG files, and a bundle that is fitted on it."""
    config = PipelineConfig.model_validate(
        {
            "dataset": "waves",
            "identity": ("file", "top", "left"),
            "images": {"path": "(?P<kind>[a-z]+)/", "patch": 8},
            "model": {"architecture": "conv", "latent_dim": 2, "hidden": (4,)},
            "training": {"epochs": 1, "batch_size": 64, "device": "cpu"},
            "alerts": {"budget": 0.05},
        }
    )
    dataset = Dataset(config, DatasetPaths(root, "waves"))
    folder = dataset.paths.landing / "waves"
    folder.mkdir(parents=True)
    for index, pixels in enumerate(waves(120, 0, ImageShape(height=16, width=16, channels=1, dtype="uint8"))):
        Image.fromarray(pixels[:, :, 0]).save(folder / f"{index}.png")
    ingested = ingest(dataset, dt.date(2025, 1, 1))
    build_raw_day(ALL_ROWS, ingested, dataset.paths)
    content = {ALL_ROWS: build_features_day(ALL_ROWS, dataset, ingested.contract).content_hash}
    columns = feature_columns(config, ingested.contract)
    bundle, _ = fit_bundle(dataset, columns, cut_window(content, config))
    return dataset, dataclasses.replace(bundle, contract=ingested.contract)


def test_without_identity_a_row_is_known_by_its_content_and_occurrence(bundle: ModelBundle) -> None:
    nameless = with_config(bundle, sensor_config(identity=()))
    row = sensor_rows().tail(1)
    scored = nameless.score_raw(pl.concat([row, row])).scored
    first, second = scored["row_id"].to_list()
    assert first.removesuffix("-1") == second.removesuffix("-2")
    assert len(first) == 34
    assert scored["score"][0] == pytest.approx(bundle.score_raw(row).scored["score"][0], rel=1e-9)


def test_dictionary_encoded_text_is_read_like_plain_text(bundle: ModelBundle) -> None:
    rows = sensor_rows().tail(60)
    encoded = bundle.score_raw(rows.with_columns(pl.col("mode").cast(pl.Categorical), site=pl.lit(" north ")))
    assert encoded.scored["score"].equals(bundle.score_raw(rows).scored["score"])
