"""Tests of ae_pipeline/ingestion/removal.py: no edit removes many rows without a confirmation."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ae_pipeline.common.errors import RemovalError
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.ingestion.batch import StagingBatch
from ae_pipeline.ingestion.contract import load_contract
from ae_pipeline.ingestion.removal import has_unread_contract, is_accepted
from ae_pipeline.lifecycle.pending_days import days_to_ingest
from tests.support.datasets import HEADER, TODAY, LandedDataset, line, make_dataset

DAYS = [f"2024-03-0{day}" for day in range(1, 5)]
ROWS = 10


def content(day: str, count: int = ROWS, first: int | None = None) -> str:
    """Return a file with rows of a day; the price is 0 to 9."""
    start = int(day[-2:]) * 100 if first is None else first
    return HEADER + "".join(line(start + index, f"{day}T10:00:00", index + 0.5) for index in range(count))


def standing_shop(root: Path, **settings: Any) -> LandedDataset:
    """Return a dataset with 4 days of 10 rows in raw_data."""
    shop = make_dataset(root, **settings)
    for day in DAYS:
        shop.land(f"{day}.csv", content(day))
    assert len(shop.rows("id")) == 40
    return shop


def with_settings(shop: LandedDataset, **settings: Any) -> LandedDataset:
    """Return the dataset after an edit of its YAML."""
    values = {**shop.config.model_dump(mode="json"), **settings}
    return LandedDataset(PipelineConfig.model_validate(values), shop.paths)


def state(shop: LandedDataset) -> dict[str, str]:
    """Return a hash of each file that an ingestion writes."""
    folders = (shop.paths.ledger.parent, shop.paths.quarantined("_").parent, shop.paths.raw("_").parent)
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def edit_maximum(shop: LandedDataset) -> LandedDataset:
    """Send the half of all rows to quarantine."""
    shop.edit_contract("price: {type: number}", "price: {type: number, maximum: 5}")
    return shop


def edit_type(shop: LandedDataset) -> LandedDataset:
    """Give texts a numeric type."""
    shop.edit_contract("city: {type: text}", "city: {type: integer}")
    return shop


def rename_column(shop: LandedDataset) -> LandedDataset:
    """Make a column required that no file has; each file keeps the rows of its earlier version."""
    shop.edit_contract("city: {type: text}", "city: {type: text}\n  size: {type: number}")
    return shop


def infer_again(shop: LandedDataset) -> LandedDataset:
    """Move the contract away, and declare a type that no value has."""
    shop.paths.contract.unlink()
    return with_settings(shop, columns={"id": "integer", "price": "boolean"})


def withdraw(shop: LandedDataset) -> LandedDataset:
    """Delete two of four files, whose rows are withdrawn."""
    shop.paths.contract.write_text(f"on_delete: withdraw\n{shop.paths.contract.read_text()}")
    for day in DAYS[:2]:
        (shop.paths.landing / f"{day}.csv").unlink()
    return shop


def narrow_pattern(shop: LandedDataset) -> LandedDataset:
    """Let three of four files no longer match, whose rows are withdrawn."""
    shop.paths.contract.write_text(f"on_delete: withdraw\n{shop.paths.contract.read_text()}")
    return with_settings(shop, source={"pattern": f"{DAYS[0]}.csv"})


def land_shorter(shop: LandedDataset) -> LandedDataset:
    """Land three of four files again with one row each."""
    for day in DAYS[:3]:
        shop.land(f"{day}.csv", content(day, 1))
    return shop


def lose_ledger(shop: LandedDataset) -> LandedDataset:
    """Delete the ledger with the staged copies, when only one file is still in the landing folder."""
    shutil.rmtree(shop.paths.ledger.parent)
    for day in DAYS[1:]:
        (shop.paths.landing / f"{day}.csv").unlink()
    return shop


EDITS: dict[str, tuple[Callable[[LandedDataset], LandedDataset], int, str]] = {
    "maximum": (edit_maximum, 20, "20 rows to quarantine by the rule 'price: maximum'.*maximum is 5.0, was None"),
    "type": (edit_type, 40, "40 rows to quarantine by the rule 'city: integer'|now refused.*city.type is 'integer'"),
    "inferred type": (infer_again, 40, "'price: boolean'|now refused: none of its 10 rows"),
    "start": (
        lambda shop: with_settings(shop, start="2024-03-03"),
        20,
        "time: before start|start is .2024-03-03., was .2024-01",
    ),
    "end": (lambda shop: with_settings(shop, end="2024-03-02"), 20, "time: after the last day|outside 2024-01-01"),
    "no days": (lambda shop: with_settings(shop, event_time=None, start=None, end=None, identity=["city"]), 39, ""),
    "identity": (lambda shop: with_settings(shop, identity=["city"]), 39, r"equal by identity=\['city'\]"),
    "identity of parts": (lambda shop: with_settings(shop, identity=["price"]), 30, r"equal by identity=\['price'\]"),
    "encoding": (
        lambda shop: with_settings(shop, source={"encoding": "utf-16"}),
        40,
        "source.encoding is .utf-16., was None",
    ),
    "separator": (lambda shop: with_settings(shop, source={"separator": ";"}), 0, ""),
    "path columns": (
        lambda shop: with_settings(shop, source={"path_columns": "(?P<branch>north|south)"}),
        40,
        "path_columns",
    ),
    "withdrawn files": (
        withdraw,
        20,
        "20 rows of 2024-03-01.csv and others .on_delete.*on_delete is .withdraw., was .keep.",
    ),
    "pattern": (narrow_pattern, 30, "30 rows of 2024-03-02.csv and others .on_delete=withdraw"),
    "shorter files": (land_shorter, 27, "27 rows of 2024-03-01.csv and others .the file landed again with fewer rows"),
    "lost ledger": (lose_ledger, 30, "knew no file"),
}
"""An edit, the number of rows that it removes, and the reason that the message names."""


@pytest.mark.parametrize("name", [name for name, (_, rows, _) in EDITS.items() if rows])
def test_an_edit_that_removes_many_rows_changes_nothing(tmp_path: Path, name: str) -> None:
    edit, rows, reason = EDITS[name]
    edited = edit(standing_shop(tmp_path))
    before = state(edited)
    message = rf"(?s){rows} of 40 rows .*{reason}.*ae-pipeline run shop --accept-removal"
    with pytest.raises(RemovalError, match=message):
        edited.ingest()
    assert state(edited) == before


@pytest.mark.parametrize("name", [name for name, (_, rows, _) in EDITS.items() if rows])
def test_an_accepted_edit_removes_the_rows_and_is_not_asked_for_again(tmp_path: Path, name: str) -> None:
    edit, rows, _ = EDITS[name]
    edited = edit(standing_shop(tmp_path))
    result = edited.ingest_accepted()
    assert is_accepted(edited.paths)
    days = {*result.ledger.days, *result.pending_days(edited)}
    left = [edited.raw(result, day).height for day in sorted(days) if edited.config.has_day(day)]
    assert sum(left) == 40 - rows
    assert edited.ingest().read == ()


def test_an_edit_that_refuses_files_keeps_their_rows(tmp_path: Path) -> None:
    shop = rename_column(standing_shop(tmp_path))
    assert {entry.rows for entry in shop.ingest().ledger.files.values()} == {ROWS}


def test_the_planner_waits_for_the_confirmation(tmp_path: Path) -> None:
    shop = standing_shop(tmp_path)
    ready = days_to_ingest(shop)
    edit_maximum(shop)
    assert has_unread_contract(load_contract(shop.paths.contract), shop)
    assert ready == DAYS  # raw rows without features
    assert days_to_ingest(shop) == []
    result = shop.ingest_accepted()
    assert not has_unread_contract(result.contract, shop)
    assert days_to_ingest(shop) == DAYS


def test_a_comment_in_the_contract_holds_nothing_up(tmp_path: Path) -> None:
    shop = standing_shop(tmp_path)
    shop.edit_contract("columns:", "# a comment\ncolumns:")
    assert days_to_ingest(shop) == DAYS


@pytest.mark.parametrize("limit", [0.5, 1])
def test_the_share_is_a_setting(tmp_path: Path, limit: float) -> None:
    shop = edit_maximum(standing_shop(tmp_path, max_removed_share=limit))
    assert sum(entry.rows for entry in shop.ingest().ledger.files.values()) == 20
    assert not is_accepted(shop.paths)


def test_new_rows_do_not_make_up_for_removed_ones(tmp_path: Path) -> None:
    shop = edit_maximum(standing_shop(tmp_path))
    shop.land("new.csv", content("2024-03-09", 200, 5000))
    with pytest.raises(RemovalError, match="20 of 40 rows"):
        shop.ingest()


def test_a_file_with_another_name_removes_nothing(tmp_path: Path) -> None:
    shop = standing_shop(tmp_path)
    shop.paths.contract.write_text(f"on_delete: withdraw\n{shop.paths.contract.read_text()}")
    for day in DAYS:
        (shop.paths.landing / f"{day}.csv").rename(shop.paths.landing / f"orders_{day}.csv")
    assert sorted(shop.ingest().ledger.files) == [f"orders_{day}.csv" for day in DAYS]


def test_a_row_that_moves_to_another_day_is_not_removed(tmp_path: Path) -> None:
    shop = standing_shop(tmp_path)
    shop.land("moved.csv", content("2024-05-01", 100, 100).replace("Oslo", "Rome"))
    shop.land(f"{DAYS[0]}.csv", HEADER + line(100, "2024-05-02"))
    assert len(shop.ingest().ledger.days) == 5


def test_equal_rows_without_identity_count_each(tmp_path: Path) -> None:
    shop = make_dataset(tmp_path, identity=None)
    shop.land("a.csv", HEADER + line(1) * 30)
    shop.land("b.csv", HEADER + line(1) * 10)
    assert len(shop.rows("id")) == 40
    shop.land("a.csv", HEADER + line(1) * 3)
    with pytest.raises(RemovalError, match="27 of 40 rows"):
        shop.ingest()


def test_another_type_without_identity_removes_nothing(tmp_path: Path) -> None:
    shop = make_dataset(tmp_path, identity=None)
    for day in DAYS:
        shop.land(f"{day}.csv", content(day))
    assert len(shop.rows("id")) == 40
    shop.edit_contract("price: {type: number}", "price: {type: text}")
    assert len(shop.rows("id")) == 40


def test_a_first_landing_in_quarantine_needs_no_confirmation(tmp_path: Path) -> None:
    shop = make_dataset(tmp_path)
    shop.land("a.csv", content("2023-01-01", 30) + line(1))
    assert shop.ingest().ledger.files["a.csv"].rows == 1


def test_a_few_rows_may_go_but_not_all(tmp_path: Path) -> None:
    shop = make_dataset(tmp_path)
    shop.land("a.csv", HEADER + line(1) + line(2, price=3) + line(3, price=9))
    assert len(shop.rows("id")) == 3
    shop.edit_contract("price: {type: number}", "price: {type: number, maximum: 2}")
    assert shop.ids() == [1]
    shop.edit_contract("maximum: 2", "maximum: 1")
    with pytest.raises(RemovalError, match="1 of 1 row "):
        shop.ingest()


def test_corrections_after_an_accepted_removal_are_not_asked_for(tmp_path: Path) -> None:
    shop = edit_maximum(standing_shop(tmp_path))
    shop.ingest_accepted()
    shop.land(f"{DAYS[0]}.csv", content(DAYS[0], 20))  # raw rows are not built again yet
    assert shop.ingest().ledger.files[f"{DAYS[0]}.csv"].rows == 5


def test_an_acceptance_ends_with_the_next_change(tmp_path: Path) -> None:
    shop = edit_maximum(standing_shop(tmp_path))
    shop.ingest_accepted()
    shop.land("new.csv", content("2024-03-09", 3, 5000))
    shop.ingest()
    assert not is_accepted(shop.paths)


def test_damaged_copies_are_built_again(tmp_path: Path) -> None:
    shop = standing_shop(tmp_path)
    copies = sorted(shop.paths.staged("_").parent.glob("*.parquet"))
    for copy in copies:
        copy.write_bytes(copy.read_bytes()[:-20])
    assert len(shop.ids()) == 40
    for copy in copies:
        copy.unlink()
    edit_maximum(shop)
    with pytest.raises(RemovalError, match="20 of 40 rows"):
        shop.ingest()


def test_an_error_in_the_middle_removes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = edit_maximum(standing_shop(tmp_path))
    before = state(shop)
    add, seen = StagingBatch.add, []

    def fail(batch: StagingBatch, name: str, *values: Any) -> None:
        seen.append(name)
        if len(seen) == len(DAYS):
            raise OSError("the disk is gone")
        add(batch, name, *values)

    monkeypatch.setattr(StagingBatch, "is_full", True)  # the other files are staged before
    monkeypatch.setattr(StagingBatch, "add", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        shop.ingest()
    assert state(shop) == before


def test_a_correction_below_the_share_is_not_asked_for(tmp_path: Path) -> None:
    shop = standing_shop(tmp_path)
    shop.land(f"{DAYS[0]}.csv", content(DAYS[0], 2))
    assert len(shop.rows("id")) == 32
    assert pl.read_parquet(shop.paths.raw(DAYS[0])).height == 2
    assert shop.ingest(TODAY).read == ()


def test_a_setting_that_is_removed_is_named(tmp_path: Path) -> None:
    shop = standing_shop(tmp_path, source={"sheet": "orders"})
    edits = r"identity is \['city'\], was \['id'\].*source.sheet is None, was 'orders'"
    with pytest.raises(RemovalError, match=edits):
        with_settings(shop, identity=["city"], source={}).ingest()
