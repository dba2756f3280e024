"""Days that a person withdraws: what is left of them, and when they come back."""

from pathlib import Path

import pytest

from ae_pipeline.common.errors import ConfigError
from ae_pipeline.ingestion.landing import last_ingest
from ae_pipeline.ingestion.ledger import Ledger
from ae_pipeline.ingestion.withdrawals import affected_rows, change_days
from ae_pipeline.lifecycle.doctor.landed import ledger_problems
from ae_pipeline.storage.jsonl import lines_of
from ae_pipeline.storage.parquet import read_facts
from tests.support.datasets import DAY, HEADER, LandedDataset, line, make_dataset

OTHER = "2024-03-02"


@pytest.fixture
def shop(tmp_path: Path) -> LandedDataset:
    """A file with rows of two days, and one whose only row moves order 1 to the other day."""
    dataset = make_dataset(tmp_path)
    dataset.land("a.csv", HEADER + line(1) + line(2) + line(3, f"{OTHER}T09:00:00"))
    dataset.land("b.csv", HEADER + line(1, f"{OTHER}T10:00:00"))
    assert dataset.rows("id", "event_time")[0][0] == 2
    return dataset


def change(dataset: LandedDataset, *days: str, undo: bool = False) -> Ledger:
    return change_days(Ledger.load(dataset.paths.ledger), days, dataset, who="ana", why="wrong", undo=undo)


def ids_by_day(dataset: LandedDataset) -> dict[str, list[int]]:
    """Build the days that are pending, and return the ids of the rows of each day with a file."""
    ingested = dataset.ingest()
    for day in ingested.pending_days(dataset):
        dataset.raw(ingested, day)
    return {day: sorted(dataset.raw(ingested, day)["id"].to_list()) for day in (DAY, OTHER)}


def test_a_withdrawn_day_is_empty_and_its_moved_rows_return(shop: LandedDataset) -> None:
    assert ids_by_day(shop) == {DAY: [2], OTHER: [1, 3]}
    change(shop, OTHER)
    result = last_ingest(shop)
    assert result is not None
    assert result.pending_days(shop) == [DAY, OTHER]
    assert ids_by_day(shop) == {DAY: [1, 2], OTHER: []}
    assert read_facts(shop.paths.raw(OTHER))["rows"] == "0"
    (entry,) = lines_of(shop.paths.withdrawals)
    assert (entry["change"], entry["days"], entry["who"], entry["why"]) == ("withdrawn", [OTHER], "ana", "wrong")
    change(shop, OTHER, undo=True)
    assert ids_by_day(shop) == {DAY: [2], OTHER: [1, 3]}


def test_a_new_contract_does_not_bring_a_withdrawn_day_back(shop: LandedDataset) -> None:
    change(shop, OTHER)
    shop.edit_contract("city: {type: text}", "city: {type: text, optional: true}")
    assert shop.ingest().read == ("a.csv", "b.csv")
    assert ids_by_day(shop) == {DAY: [1, 2], OTHER: []}
    assert Ledger.load(shop.paths.ledger).withdrawn == {OTHER: 2}


def test_the_same_content_with_a_new_time_stays_withdrawn(shop: LandedDataset) -> None:
    change(shop, OTHER)
    shop.land("b.csv", HEADER + line(1, f"{OTHER}T10:00:00"))
    assert ids_by_day(shop)[OTHER] == []


def test_a_changed_file_and_a_new_file_bring_their_rows(shop: LandedDataset) -> None:
    change(shop, OTHER)
    shop.land("b.csv", HEADER + line(1, f"{OTHER}T11:00:00"))
    assert ids_by_day(shop) == {DAY: [2], OTHER: [1]}
    shop.land("c.csv", HEADER + line(7, f"{OTHER}T11:00:00"))
    assert ids_by_day(shop) == {DAY: [2], OTHER: [1, 7]}


def test_a_rebuilt_ledger_keeps_the_withdrawal(shop: LandedDataset) -> None:
    change(shop, DAY, OTHER)
    change(shop, DAY, undo=True)
    shop.paths.ledger.unlink()
    (problem,) = ledger_problems(shop)
    assert problem.repair is not None
    problem.repair()
    assert Ledger.load(shop.paths.ledger).withdrawn == {OTHER: 2}


def test_a_file_that_is_refused_meanwhile_stays_withdrawn(shop: LandedDataset) -> None:
    change(shop, OTHER)
    shop.edit_contract("city: {type: text}", "city: {type: text}\n  weight: {type: number}")
    assert set(shop.ingest().ledger.refused) == {"a.csv", "b.csv"}
    shop.edit_contract("\n  weight: {type: number}", "")
    assert ids_by_day(shop) == {DAY: [1, 2], OTHER: []}


@pytest.mark.parametrize(
    ("day", "undo", "reason"),
    [
        ("2024-03-09", False, "2024-03-09 is not a day of 'shop' that has rows of landed files; choose another day"),
        (DAY, True, f"{DAY} is not a day of 'shop' that is withdrawn; choose another day"),
        ("yesterday", False, "'yesterday' is not a day; write it as an ISO date"),
        ("20240301", False, "'20240301' is not a day; write it as an ISO date"),
    ],
)
def test_days_without_such_rows_are_refused(shop: LandedDataset, day: str, undo: bool, reason: str) -> None:
    with pytest.raises(ConfigError) as refused:
        affected_rows(Ledger.load(shop.paths.ledger), [day], shop, undo=undo)
    assert str(refused.value).startswith(reason)


def test_rows_without_event_time_have_no_days(tmp_path: Path) -> None:
    shop = make_dataset(tmp_path, event_time=None, start=None, end=None)
    shop.land("a.csv", HEADER + line(1))
    with pytest.raises(ConfigError, match="has no event time, so its rows have no days; to withdraw a file, delete it"):
        affected_rows(shop.ingest().ledger, [DAY], shop)
