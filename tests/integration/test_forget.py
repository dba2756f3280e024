"""`ae-pipeline forget` on a small project: what it lists, refuses, removes and keeps."""

import io
import sys

import dagster as dg
import polars as pl
import pytest
from deltalake import DeltaTable

from ae_pipeline.cli.forget import forget
from ae_pipeline.cli.main import main
from ae_pipeline.cli.project import Project
from ae_pipeline.cli.run import run
from ae_pipeline.common.errors import ConfigError
from ae_pipeline.orchestration.tags import DATASET_TAG
from ae_pipeline.registry.history import history
from tests.support.shop import DAYS, ROWS, Shop


@pytest.fixture
def shop(serving_shop: Shop) -> Shop:
    """A project whose days, except the last, are published under version 1."""
    return serving_shop


@pytest.fixture
def project(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The project of the shop, which the command line loads."""
    project = Project(shop.defs, shop.workspace, {"orders": shop.dataset}, shop.instance)
    monkeypatch.setattr(Project, "load", lambda: project)
    return project


@pytest.fixture
def undefined(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the YAML of the shop."""
    monkeypatch.setattr(Project, "load", lambda: Project(project.definitions, project.workspace, {}, project.instance))


def remaining(shop: Shop) -> list[str]:
    """Return the files that are left in the data folder and in the artifacts of the model store."""
    folders = (shop.root / "data", shop.root / "mlruns" / "artifacts")
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return sorted({str(path.relative_to(shop.root).parent) for path in files})


KEPT = ["data/landing/orders", "data/locks"]


class TestPublishedShop:
    def test_everything_but_the_landed_files_is_removed(
        self, shop: Shop, project: Project, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert forget("orders", confirmed=True, landing_too=False) == 0
        assert [folder for folder in remaining(shop) if "cache" not in folder] == KEPT
        client = shop.workspace.tracker().client
        assert client.search_registered_models() == []
        assert client.get_experiment_by_name("orders") is None
        assert shop.instance.get_runs() == []
        assert shop.instance.get_asset_keys() == []
        checks = list(shop.defs.resolve_asset_graph().asset_check_keys)
        assert len(checks) > 5
        assert shop.instance.event_log_storage.get_latest_asset_check_execution_by_key(checks) == {}
        key = dg.AssetKey(["orders", "raw_data"])
        assert shop.instance.get_materialized_partitions(key) == set()
        output = capsys.readouterr().out
        for path in (shop.paths.contract, shop.paths.ledger.parent, shop.paths.latents, shop.paths.reports):
            assert str(path) in output
        assert "1 model version (1) and 1 MLflow run" in output
        assert "It keeps (--landing-too removes them as well):\n\n   " in output
        assert f"landed files: {shop.landing}" in output

    def test_the_next_run_starts_from_scratch(
        self, shop: Shop, project: Project, capsys: pytest.CaptureFixture[str]
    ) -> None:
        forget("orders", confirmed=True, landing_too=False)
        assert run("orders") == 0
        assert shop.champion.version == 1
        assert [(entry.version, entry.previous) for entry in history(shop.paths)] == [(1, None)]
        table = DeltaTable(shop.paths.latents)
        assert pl.read_delta(table).height == (len(DAYS) - 1) * ROWS
        assert "no model was trained so far" in capsys.readouterr().out

    def test_the_landed_files_can_go_too(self, shop: Shop, project: Project) -> None:
        forget("orders", confirmed=True, landing_too=True)
        assert [folder for folder in remaining(shop) if "cache" not in folder] == ["data/locks"]

    def test_a_second_time_finds_nothing(
        self, shop: Shop, project: Project, capsys: pytest.CaptureFixture[str]
    ) -> None:
        forget("orders", confirmed=True, landing_too=False)
        assert forget("orders", confirmed=True, landing_too=False) == 0
        assert capsys.readouterr().out.endswith("Nothing to remove: nothing is stored of 'orders'.\n")

    def test_a_dataset_without_a_yaml_is_removed(
        self, shop: Shop, undefined: None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert forget("orders", confirmed=True, landing_too=True) == 0
        assert [folder for folder in remaining(shop) if "cache" not in folder] == ["data/locks"]
        assert "still defined" not in capsys.readouterr().out

    def test_it_refuses_without_a_terminal(
        self, shop: Shop, project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(sys, "stdin", io.StringIO("orders\n"))
        before = remaining(shop)
        assert main(["forget", "orders"]) == 1
        assert "there is no terminal to confirm it; add --yes to forget 'orders'" in capsys.readouterr().err
        assert remaining(shop) == before

    @pytest.mark.parametrize(("answer", "removes"), [("orders", True), ("yes", False), ("", False), ("Orders", False)])
    def test_the_name_confirms(
        self, shop: Shop, project: Project, monkeypatch: pytest.MonkeyPatch, answer: str, removes: bool
    ) -> None:
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
        monkeypatch.setattr("builtins.input", lambda _: answer)
        if removes:
            assert forget("orders", confirmed=False, landing_too=False) == 0
        else:
            with pytest.raises(ConfigError, match="nothing was removed, because"):
                forget("orders", confirmed=False, landing_too=False)
        assert shop.paths.contract.exists() != removes

    def test_other_datasets_keep_theirs(self, shop: Shop, project: Project) -> None:
        tracker = shop.workspace.tracker()
        other = tracker.experiment("orders_2")
        run_id = tracker.client.create_run(other).info.run_id
        tracker.client.delete_run(run_id)
        for folder in ("raw", "features", "landing"):
            path = shop.root / "data" / folder / "orders_2" / "2024-01-01.parquet"
            path.parent.mkdir(parents=True)
            path.write_bytes(b"rows")
        forget("orders", confirmed=True, landing_too=True)
        assert tracker.client.get_run(run_id).info.lifecycle_stage == "deleted"
        assert len(list((shop.root / "data").rglob("orders_2/*.parquet"))) == 3

    def test_an_active_run_is_named(self, shop: Shop, project: Project) -> None:
        active = shop.instance.create_run_for_job(
            shop.defs.resolve_job_def("orders_ingest"), status=dg.DagsterRunStatus.STARTED, tags={DATASET_TAG: "orders"}
        )
        with pytest.raises(ConfigError, match=rf"run {active.run_id} of 'orders' is started; wait for its end"):
            forget("orders", confirmed=True, landing_too=False)
        assert shop.paths.contract.exists()


@pytest.mark.parametrize("name", ["../orders", "Orders", "", "orders/x", "."])
def test_a_name_that_is_no_dataset_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="is not the name of a dataset; write it as in its YAML"):
        forget(name, confirmed=True, landing_too=True)
