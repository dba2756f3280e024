"""Files that `ae-pipeline score` writes."""

from pathlib import Path

import polars as pl
import pytest

from ae_pipeline.cli.score import _write_table

ROWS = pl.DataFrame({"row_id": ["=1+1", "a", None, "-5"], "score": [1.5, -2.0, 3.0, 4.0]})


def test_no_spreadsheet_runs_a_text_of_a_csv_file(tmp_path: Path) -> None:
    _write_table(ROWS, tmp_path / "scores.csv")
    written = pl.read_csv(tmp_path / "scores.csv")
    assert written["row_id"].to_list() == ["'=1+1", "a", None, "'-5"]
    assert written["score"].to_list() == ROWS["score"].to_list()


@pytest.mark.parametrize(("suffix", "read"), [(".parquet", pl.read_parquet), (".jsonl", pl.read_ndjson)])
def test_other_files_keep_each_text(suffix: str, read: object, tmp_path: Path) -> None:
    assert callable(read)
    _write_table(ROWS, tmp_path / f"scores{suffix}")
    assert read(tmp_path / f"scores{suffix}").equals(ROWS)
