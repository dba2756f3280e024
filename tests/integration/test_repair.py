"""Damaged state is found, never served, and repaired."""

import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from ae_pipeline.cli.project import Project
from ae_pipeline.cli.run import warn_of_history
from ae_pipeline.common.errors import StorageError
from ae_pipeline.ingestion.ledger import Ledger
from ae_pipeline.latents.files import TableFiles
from ae_pipeline.latents.read import read_latents
from ae_pipeline.lifecycle.doctor.examine import Examination, examine
from ae_pipeline.lifecycle.pending_days import days_to_ingest
from ae_pipeline.lifecycle.plan import Step, plan_serving, plan_training
from ae_pipeline.registry.history import history
from ae_pipeline.storage.sqlite import sqlite_damage
from benchmarks.corruption import damage
from tests.support.shop import DAYS, Shop

pytestmark = pytest.mark.slow


def doctor(shop: Shop, *, repair: bool = False) -> Examination:
    """Examine the dataset of a shop."""
    return examine(shop.dataset, shop.workspace.tracker(), shop.root / "dagster_home", repair=repair)


def kinds_of(examination: Examination) -> set[str]:
    """Return the kinds of the problems of an examination."""
    return {problem.kind for problem in examination.problems}


def rows(shop: Shop) -> pl.DataFrame:
    """Return the rows of the table."""
    return read_latents("orders", data=shop.root / "data").polars().sort("row_id")


@pytest.fixture
def shop(serving_shop: Shop) -> Shop:
    """A published project, which is whole."""
    assert doctor(serving_shop) == Examination((), repaired=True)
    return serving_shop


class TestDerivedFiles:
    @pytest.mark.parametrize("stage", ["raw", "features"])
    @pytest.mark.parametrize("how", ["truncated", "garbled", "flipped", "deleted"])
    def test_a_damaged_day_is_built_again(self, shop: Shop, stage: str, how: str) -> None:
        path: Path = getattr(shop.paths, stage)(DAYS[3])
        content = path.read_bytes()
        damage(path, how, seed=1)
        assert kinds_of(doctor(shop)) == {"raw_data" if stage == "raw" else "features"}
        assert days_to_ingest(shop.dataset) == [DAYS[3]]
        assert shop.run("ingest", DAYS[3]).success
        assert path.read_bytes() == content

    def test_no_training_leaves_out_a_damaged_day(self, shop: Shop) -> None:
        damage(shop.paths.features(DAYS[3]), "flipped", seed=1)
        result = shop.run("train")
        assert f"features of 'orders' are damaged on {DAYS[3]}; `ae-pipeline run orders`" in shop.failure_message(
            result
        )

    @pytest.mark.parametrize("how", ["truncated", "garbled", "flipped", "deleted"])
    def test_a_damaged_latent_file_is_written_again(self, shop: Shop, how: str) -> None:
        expected, files = rows(shop), TableFiles(shop.paths.latents)
        (path, *_) = sorted(Path(files.location).glob("v*/*/*.parquet"))
        damage(path, how, seed=2)
        plan = plan_serving(shop.dataset, shop.workspace.tracker())
        assert [work.step for work in plan.work] == [Step.PUBLISH]
        assert shop.run("publish", *plan.work[0].ranges[0]).success
        assert rows(shop).equals(expected)
        assert doctor(shop).problems == ()


class TestLedger:
    def test_rows_of_a_file_that_has_left_are_taken_from_raw_data(self, shop: Shop) -> None:
        entry = Ledger.load(shop.paths.ledger).files[f"orders_{DAYS[2]}.csv"]
        (shop.landing / f"orders_{DAYS[2]}.csv").unlink()
        staged = shop.paths.staged(str(entry.staged))
        expected = pl.read_parquet(staged).sort("row_id")
        damage(staged, "garbled", seed=3)
        found = doctor(shop, repair=True)
        assert (kinds_of(found), found.repaired) == ({"staged copy"}, True)
        recovered = pl.read_parquet(staged).sort("row_id")
        assert recovered.equals(expected.select(recovered.columns))
        assert set(recovered.columns) >= {"order_id", "price", "row_id", "event_time", "_day"}
        assert doctor(shop).problems == ()

    def test_a_lost_ledger_is_rebuilt_from_the_copies(self, shop: Shop) -> None:
        expected = Ledger.load(shop.paths.ledger)
        for path in shop.landing.iterdir():
            path.unlink()
        damage(shop.paths.ledger, "garbled", seed=4)
        assert doctor(shop, repair=True).repaired
        assert Ledger.load(shop.paths.ledger) == expected
        assert len(list((shop.root / "data" / "damaged" / "orders").glob("ledger.json.damaged-*"))) == 1
        assert days_to_ingest(shop.dataset) == []

    def test_a_flipped_digit_of_the_ledger_is_an_error(self, shop: Shop) -> None:
        text = shop.paths.ledger.read_text()
        shop.paths.ledger.write_text(text.replace('"rows": 40', '"rows": 41', 1))
        with pytest.raises(StorageError, match=r"`ae-pipeline doctor orders --repair`"):
            Ledger.load(shop.paths.ledger)

    def test_a_wrong_contract_is_restored(self, shop: Shop) -> None:
        expected = shop.paths.contract.read_text()
        shop.paths.contract.write_text(expected.replace("type:", "typ:"))
        assert kinds_of(doctor(shop, repair=True)) == {"contract"}
        assert shop.paths.contract.read_text() == expected


class TestServing:
    def test_a_damaged_champion_is_not_used_and_replaced(self, shop: Shop) -> None:
        expected, tracker = rows(shop).drop("model_version", "latent_space"), shop.workspace.tracker()
        damage(tracker.bundle_folder(shop.champion) / "weights.safetensors", "flipped", seed=5)
        plan = plan_training(shop.dataset, tracker)
        assert "version 1, which serves, cannot be loaded" in plan.work[0].reason
        refused = shop.run("publish", DAYS[0])
        assert "`ae-pipeline run orders` trains a new version" in shop.failure_message(refused)
        assert shop.run("train").success
        assert shop.champion.version == 2
        assert shop.run("publish", DAYS[0], DAYS[-2]).success
        assert rows(shop).drop("model_version", "latent_space").equals(expected)

    def test_a_lost_history_gets_an_entry_for_the_champion(self, shop: Shop) -> None:
        shop.paths.history.unlink()
        assert kinds_of(doctor(shop, repair=True)) == {"history"}
        assert [(entry.version, entry.who) for entry in history(shop.paths)] == [(1, "ae-pipeline doctor")]

    def test_databases_of_dagster_are_moved_aside(self, shop: Shop) -> None:
        database = shop.root / "dagster_home" / "history" / "runs.db"
        database.parent.mkdir(parents=True)
        database.write_bytes(b"x" * 5000)
        assert sqlite_damage(database)
        assert kinds_of(doctor(shop, repair=True)) == {"dagster"}
        assert [path.name.startswith("runs.db.damaged-") for path in database.parent.iterdir()] == [True]

    def test_problems_are_json(self, shop: Shop) -> None:
        damage(shop.paths.raw(DAYS[0]), "deleted", seed=6)
        (problem,) = doctor(shop).problems
        assert json.loads(json.dumps(problem.as_json()))["message"] == f"1 day missing: {DAYS[0]}"


@pytest.mark.timeout(900)
def test_cases_of_the_benchmark_reach_its_goal(tmp_path: Path) -> None:
    # In a process of its own: the benchmark forks, which a process with polars' threads must not do.
    out, kinds = tmp_path / "corruption.json", ["newest commit", "model store"]
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.corruption", "--kinds", ",".join(kinds)]
    done = subprocess.run(
        [*command, "--damages", "truncated", "--out", str(out)], capture_output=True, text=True, check=False
    )
    assert "2 cases, 0 missed the goal." in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0


def test_a_run_names_a_deleted_history(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    project = Project(shop.defs, shop.workspace, {"orders": shop.dataset}, shop.instance)
    warn_of_history(project, shop.dataset)
    assert capsys.readouterr().err == ""
    shop.paths.history.unlink()
    warn_of_history(project, shop.dataset)
    error = capsys.readouterr().err
    assert "orders.jsonl: the file is missing, so earlier decisions are lost: version 1 serves" in error
    assert "`ae-pipeline doctor orders --repair`" in error
