"""Spark reads the latent table through the manifest of its current files."""

import shutil
from pathlib import Path

import polars as pl
import pytest

from ae_pipeline.latents.publish import publish
from ae_pipeline.latents.read import MANIFEST
from ae_pipeline.storage.dataset import Dataset
from tests.support.sensors import Fitted

SKIP_REASON = "the test needs Spark: install pyspark and Java 17"
pyspark_sql = pytest.importorskip("pyspark.sql", reason=SKIP_REASON)


@pytest.mark.skipif(shutil.which("java") is None, reason=SKIP_REASON)
@pytest.mark.timeout(180)
def test_spark_reads_every_row_with_its_type(dataset: Fitted) -> None:
    publish(dataset.days[-3:], Dataset(dataset.bundle.config, dataset.paths), dataset.bundle, 1, {})
    settings = {"spark.ui.enabled": "false", "spark.driver.host": "127.0.0.1", "spark.sql.session.timeZone": "UTC"}
    builder = pyspark_sql.SparkSession.builder.master("local[1]")
    for name, value in settings.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    try:
        files = (Path(dataset.paths.latents) / MANIFEST).read_text(encoding="utf-8").split()
        table = session.read.parquet(*files)
        types = dict(table.dtypes)
        assert (types["event_time"], types["z_000"], types["score"]) == ("timestamp", "float", "double")
        expected = pl.read_delta(dataset.paths.latents).sort("row_id")
        rows = table.sort("row_id").select("row_id", "z_001", "score", "is_anomaly").collect()
        assert [tuple(row) for row in rows] == expected.select("row_id", "z_001", "score", "is_anomaly").rows()
    finally:
        session.stop()
