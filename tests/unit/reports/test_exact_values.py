"""Values that people are shown: exact integers and decimals, which a model reads as float64."""

from decimal import Decimal
from pathlib import Path

import polars as pl

from ae_pipeline.reports.ranking import features_of
from ae_pipeline.storage.paths import DatasetPaths


def test_integers_and_decimals_of_features_are_those_of_raw_data(tmp_path: Path) -> None:
    paths = DatasetPaths(tmp_path, "shop")
    raw = pl.DataFrame(
        {
            "row_id": ["a", "b", "c"],
            "big": [2**60 + 1, None, 5],
            "price": pl.Series([Decimal("12345678901234567890.10"), None, Decimal("1.50")], dtype=pl.Decimal(38, 2)),
            "due": [1745, 100, None],
            "x": [0.5, 1.5, 2.5],
        }
    )
    features = raw.with_columns(pl.col("big", "price").cast(pl.Float64), due=pl.Series([1065.0, 60.0, None]))
    for path, rows in ((paths.raw("all"), raw), (paths.features("all"), features)):
        path.parent.mkdir(parents=True)
        rows.write_parquet(path)
    shown = features_of(pl.Series(["c", "a"]), "all", paths)
    assert shown.rows() == [
        ("c", 5, Decimal("1.50"), None, 2.5),
        ("a", 2**60 + 1, Decimal("12345678901234567890.10"), 1065.0, 0.5),
    ]
    paths.raw("all").unlink()
    assert features_of(pl.Series(["a"]), "all", paths)["big"].to_list() == [float(2**60)]
