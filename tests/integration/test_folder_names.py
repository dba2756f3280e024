"""A project in a folder whose name has characters that mean something in globs and URIs."""

from pathlib import Path

import deltalake
import duckdb
import mlflow
import polars as pl
import pytest

from ae_pipeline.latents.files import TableFiles
from ae_pipeline.latents.read import read_latents
from tests.support.shop import ATTRIBUTES, DAYS, ROWS, Shop, make_shop

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("folder", ["data [1]%20?#*é", "a b"])
def test_a_project_in_a_folder_of_any_name_publishes_and_is_read(folder: str, tmp_path: Path) -> None:
    for shop in make_shop(tmp_path / folder, ATTRIBUTES):
        run_and_read(shop)
        assert shop.root.name == folder


def run_and_read(shop: Shop) -> None:
    shop.publish_first_version()
    latents = read_latents("orders", data=shop.root / "data")
    assert latents.polars().height == len(latents.pandas()) == len(DAYS) * ROWS
    table = TableFiles(shop.paths.latents).open()
    assert table is not None
    assert len(table.to_pandas()) == len(DAYS) * ROWS
    assert pl.DataFrame(pl.from_arrow(table.to_pyarrow_table())).height == len(DAYS) * ROWS
    assert len(duckdb.from_arrow(table.to_pyarrow_dataset()).fetchall()) == len(DAYS) * ROWS
    if shop.root.name == "a b":
        assert deltalake.DeltaTable(shop.paths.latents).to_pandas().shape[0] == len(DAYS) * ROWS
    mlflow.set_tracking_uri(shop.workspace.tracker().open())
    model = mlflow.pyfunc.load_model("models:/orders@champion")
    features = pl.read_parquet(shop.paths.features(DAYS[0]), glob=False)
    assert len(model.predict(features.to_pandas())) == ROWS
    assert (shop.root / "data" / "reports" / "orders" / "report.html").exists()
    shop.land(DAYS[0])
    assert shop.run("day", DAYS[0]).success
