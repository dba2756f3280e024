"""The history of a dataset's models: entries, their format on disk, and interrupted writes."""

import json
from pathlib import Path

import pytest

from ae_pipeline.registry.history import Change, HistoryEntry, history, record
from ae_pipeline.storage.paths import DatasetPaths

PROMOTION = HistoryEntry(
    at="2024-01-01T00:00:00+00:00",
    change=Change.PROMOTED,
    version=1,
    previous=None,
    who="a test",
    why="it passed the gate",
    figures={"loss_fell.figure": 1.5},
    runs={"dagster": "d1"},
)
ROLLBACK = HistoryEntry(
    at="2024-01-02T00:00:00+00:00", change=Change.ROLLED_BACK, version=1, previous=2, who="Ada", why="floods of alerts"
)


@pytest.fixture
def paths(tmp_path: Path) -> DatasetPaths:
    return DatasetPaths(tmp_path, "flights")


def test_a_new_dataset_has_no_history(paths: DatasetPaths) -> None:
    assert history(paths) == []


def test_entries_are_returned_as_recorded_in_their_order(paths: DatasetPaths) -> None:
    record(paths, PROMOTION)
    record(paths, ROLLBACK)
    assert history(paths) == [PROMOTION, ROLLBACK]


def test_the_keys_on_disk_stay_the_same(paths: DatasetPaths) -> None:
    record(paths, ROLLBACK)
    line = json.loads(paths.history.read_text(encoding="utf-8"))
    assert list(line) == ["at", "change", "version", "before", "who", "why", "figures", "runs", "crc32"]
    assert (line["change"], line["before"]) == ("rolled back", 2)


def test_an_incomplete_line_is_skipped(paths: DatasetPaths) -> None:
    record(paths, PROMOTION)
    with paths.history.open("a", encoding="utf-8") as file:
        file.write('{"at": "2024-01-0')
    record(paths, ROLLBACK)
    assert history(paths) == [PROMOTION, ROLLBACK]
