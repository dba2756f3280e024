"""Deleted landed files: what the log says, and what happens to their rows."""

import os
import shutil
from pathlib import Path

import pytest

from ae_pipeline.common.errors import StorageError
from ae_pipeline.ingestion.contract import load_contract
from ae_pipeline.ingestion.landing import idle_landing, unhandled_deletions
from ae_pipeline.ingestion.landing_folder import landing_folder
from ae_pipeline.lifecycle.plan import Step, plan_landing
from tests.support.datasets import HEADER, TODAY, LandedDataset, line, make_dataset

OTHER = "2024-03-02T10:00:00"


@pytest.fixture
def shop(tmp_path: Path) -> LandedDataset:
    """Three files of two days; a.csv and b.csv have rows of one day."""
    dataset = make_dataset(tmp_path)
    dataset.land("a.csv", HEADER + line(1) + line(2))
    dataset.land("b.csv", HEADER + line(3))
    dataset.land("sub/c.csv", HEADER + line(4, OTHER))
    assert dataset.ids() == [1, 2, 3, 4]
    return dataset


def withdraw(dataset: LandedDataset) -> None:
    dataset.edit_contract("dataset: shop", "dataset: shop\non_delete: withdraw")


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the log says about deleted files, and forget it."""
    found = [record.message for record in caplog.records if "left the landing folder" in record.message]
    caplog.clear()
    return found


def test_the_contract_explains_the_choice(shop: LandedDataset) -> None:
    text = shop.paths.contract.read_text()
    assert "# on_delete: keep (the rows of a deleted file stay, the default) or withdraw" in text
    assert load_contract(shop.paths.contract).on_delete == "keep"


def test_the_choice_does_not_read_the_files_again(shop: LandedDataset) -> None:
    withdraw(shop)
    assert shop.ingest().read == ()


def test_rows_of_a_deleted_file_are_kept_and_told_once(shop: LandedDataset, caplog: pytest.LogCaptureFixture) -> None:
    (landing_folder(shop) / "a.csv").unlink()
    (landing_folder(shop) / "sub" / "c.csv").unlink()
    assert shop.ids() == [1, 2, 3, 4]
    (message,) = messages(caplog)
    assert message == (
        "2 files left the landing folder of 'shop': a.csv (2 rows), sub/c.csv (1 row); on_delete=keep keeps their 3 "
        f"rows. To remove them, set 'on_delete: withdraw' in {shop.paths.contract}"
    )
    assert shop.ids() == [1, 2, 3, 4]
    assert messages(caplog) == []


def test_a_file_that_lands_again_is_told_again_when_it_leaves(
    shop: LandedDataset, caplog: pytest.LogCaptureFixture
) -> None:
    path = landing_folder(shop) / "a.csv"
    content, stat = path.read_bytes(), path.stat()
    for _ in range(2):
        path.unlink()
        shop.ingest()
        assert len(messages(caplog)) == 1
        path.write_bytes(content)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        shop.ingest()
        assert messages(caplog) == []


def test_rows_of_a_deleted_file_are_withdrawn(shop: LandedDataset, caplog: pytest.LogCaptureFixture) -> None:
    withdraw(shop)
    copies = {path.name for path in shop.paths.staged("_").parent.iterdir()}
    (landing_folder(shop) / "a.csv").unlink()
    ingested = shop.ingest()
    (message,) = messages(caplog)
    assert message == (
        "1 file left the landing folder of 'shop': a.csv (2 rows); on_delete=withdraw removes their 2 rows, and their "
        "days are built again"
    )
    assert ingested.pending_days(shop) == ["2024-03-01"]
    assert shop.ids() == [3, 4]
    assert sorted(ingested.ledger.files) == ["b.csv", "sub/c.csv"]
    left = {path.name for path in shop.paths.staged("_").parent.iterdir()}
    assert len(copies - left) == 1
    assert left < copies


def test_a_day_without_rows_becomes_empty(shop: LandedDataset) -> None:
    withdraw(shop)
    (landing_folder(shop) / "sub" / "c.csv").unlink()
    ingested = shop.ingest()
    assert ingested.pending_days(shop) == ["2024-03-02"]
    assert shop.raw(ingested, "2024-03-02").height == 0
    assert shop.ingest().pending_days(shop) == []


def test_an_earlier_version_of_a_row_comes_back(shop: LandedDataset) -> None:
    """The deleted file had replaced a row of a file that is still there."""
    shop.land("d.csv", HEADER + line(1, city="Rome"))
    assert ("Rome",) in shop.rows("city")
    withdraw(shop)
    (landing_folder(shop) / "d.csv").unlink()
    assert shop.ids() == [1, 2, 3, 4]
    assert ("Rome",) not in shop.rows("city")


def test_a_row_returns_to_the_day_from_which_a_deleted_file_moved_it(shop: LandedDataset) -> None:
    shop.land("d.csv", HEADER + line(1, OTHER))
    withdraw(shop)
    assert shop.ingest().moved == {"2024-03-01": ["1"]}
    (landing_folder(shop) / "d.csv").unlink()
    ingested = shop.ingest()
    assert ingested.moved == {}
    assert shop.raw(ingested, "2024-03-01")["id"].to_list() == [1, 2, 3]


def test_quarantined_rows_of_a_withdrawn_file_are_removed(shop: LandedDataset) -> None:
    shop.land("d.csv", HEADER + line(5) + line(6, "2020-01-01T00:00:00"))
    shop.ingest()
    assert len(shop.quarantine()) == 1
    withdraw(shop)
    (landing_folder(shop) / "d.csv").unlink()
    assert shop.ids() == [1, 2, 3, 4]
    assert shop.quarantine() == []


def test_files_that_left_before_the_choice_are_withdrawn_too(shop: LandedDataset) -> None:
    (landing_folder(shop) / "a.csv").unlink()
    assert shop.ids() == [1, 2, 3, 4]
    withdraw(shop)
    assert shop.ids() == [3, 4]


def test_a_withdrawn_file_that_lands_again_gives_its_rows(shop: LandedDataset) -> None:
    withdraw(shop)
    content = (landing_folder(shop) / "a.csv").read_bytes()
    (landing_folder(shop) / "a.csv").unlink()
    assert shop.ids() == [3, 4]
    shop.land("a.csv", content)
    assert shop.ids() == [1, 2, 3, 4]


@pytest.mark.parametrize("choice", ["keep", "withdraw"])
@pytest.mark.parametrize("what", ["folder", "files"])
def test_a_missing_landing_folder_withdraws_nothing(shop: LandedDataset, choice: str, what: str) -> None:
    """An unmounted disk looks like a folder without files."""
    if choice == "withdraw":
        withdraw(shop)
    folder = landing_folder(shop)
    shutil.rmtree(folder)
    if what == "files":
        folder.mkdir()
    ledger = shop.paths.ledger.read_bytes()
    with pytest.raises(StorageError) as error:
        shop.ingest()
    assert f"{folder} is missing or has no file of 'shop', although 4 rows of 3 files were read from it" in str(
        error.value
    )
    assert "restore the folder" in str(error.value)
    assert shop.paths.ledger.read_bytes() == ledger
    assert unhandled_deletions(shop) == {}
    assert "An unmounted disk looks like this" in idle_landing(shop)
    plan = plan_landing(shop, TODAY)
    assert Step.READ not in [work.step for work in plan.work]


@pytest.mark.skipif(os.getuid() == 0, reason="root reads every folder")
def test_a_folder_that_cannot_be_read_withdraws_nothing(shop: LandedDataset) -> None:
    withdraw(shop)
    sub = landing_folder(shop) / "sub"
    sub.chmod(0)
    try:
        assert shop.ids() == [1, 2, 3, 4]
    finally:
        sub.chmod(0o700)


def test_a_file_system_that_fails_withdraws_nothing(shop: LandedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    withdraw(shop)
    (landing_folder(shop) / "a.csv").unlink()

    def fail(path: Path) -> os.stat_result:
        raise OSError(116, "Stale file handle", str(path))

    monkeypatch.setattr(Path, "lstat", fail)
    assert shop.ids() == [1, 2, 3, 4]


@pytest.mark.parametrize("choice", ["keep", "withdraw"])
def test_the_planner_reads_after_a_deletion_and_then_rests(shop: LandedDataset, choice: str) -> None:
    if choice == "withdraw":
        withdraw(shop)
    (landing_folder(shop) / "a.csv").unlink()
    first = plan_landing(shop, TODAY).work[0]
    assert (first.step, first.reason) == (Step.READ, "1 deleted file: a.csv")
    assert plan_landing(shop, TODAY, settle_seconds=60).idle == "1 deleted file, which may land again"
    shop.ingest()
    assert Step.READ not in [work.step for work in plan_landing(shop, TODAY).work]


def test_a_refused_file_that_is_deleted_is_forgotten_without_waiting(shop: LandedDataset) -> None:
    shop.land("bad.csv", "id,size\n9,1\n")
    assert list(shop.ingest().ledger.refused) == ["bad.csv"]
    (landing_folder(shop) / "bad.csv").unlink()
    assert unhandled_deletions(shop) == {"bad.csv": 0}
    plan = plan_landing(shop, TODAY, settle_seconds=1e6)  # a deleted file with rows may land again, and waits
    assert Step.READ in [work.step for work in plan.work]
    assert shop.ingest().ledger.files.keys() == {"a.csv", "b.csv", "sub/c.csv"}
    assert unhandled_deletions(shop) == {}
    assert Step.READ not in [work.step for work in plan_landing(shop, TODAY).work]


def test_a_refused_version_of_a_deleted_file_is_no_longer_shown(shop: LandedDataset) -> None:
    shop.land("b.csv", "id,size\n9,1\n")
    refused = shop.ingest().ledger
    assert list(refused.refused) == ["b.csv"]
    assert refused.refused_message.startswith("the landed file b.csv is refused: ")
    (landing_folder(shop) / "b.csv").unlink()
    assert shop.ids() == [1, 2, 3, 4]  # the rows of the earlier version stay
    assert shop.ingest().ledger.refused_message == ""


def test_a_refused_file_in_a_folder_that_cannot_be_read_stays(
    shop: LandedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.land("bad.csv", "id,size\n9,1\n")
    shop.ingest()
    (landing_folder(shop) / "bad.csv").unlink()
    monkeypatch.setattr("ae_pipeline.ingestion.deletions._is_readable", lambda _: False)
    assert unhandled_deletions(shop) == {}
    assert list(shop.ingest().ledger.refused) == ["bad.csv"]
