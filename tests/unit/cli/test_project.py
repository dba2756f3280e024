"""The project as the command line loads and runs it."""

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorage
from filelock import FileLock, Timeout
from sqlalchemy.exc import OperationalError

from ae_pipeline.cli.project import START_LOCK, Project, open_instance
from ae_pipeline.common.errors import ConfigError
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.orchestration.dead_runs import process_of
from ae_pipeline.orchestration.defs_folder import DefsFolder
from ae_pipeline.orchestration.jobs import job_name
from ae_pipeline.orchestration.processes import identify
from ae_pipeline.orchestration.resources import Workspace
from ae_pipeline.orchestration.side_by_side import set_pool_limits

CONFIG = PipelineConfig.model_validate(
    {"dataset": "orders", "identity": ["id"], "scale": {"days_per_run": 31, "runs_at_once": 2}}
)


def _is_held(lock: Path) -> bool:
    try:
        FileLock(lock).acquire(timeout=0)
    except Timeout:
        return True
    return False


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Project, list[dg.DagsterRun]]]:
    """A project with one job, and the runs that its step has seen. Another process adds its pool at the same time."""
    seen: list[dg.DagsterRun] = []

    @dg.op
    def look(context: dg.OpExecutionContext) -> None:
        seen.append(context.run)

    @dg.job(name=job_name(CONFIG, "ingest"))
    def ingest() -> None:
        look()

    workspace = Workspace(data_folder=str(tmp_path / "data"), mlflow_folder=str(tmp_path / "mlruns"))
    definitions = dg.Definitions(jobs=[ingest], resources={"workspace": workspace})
    monkeypatch.setattr("ae_pipeline.cli.project.load_folder", lambda: DefsFolder(definitions, {"orders": CONFIG}))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    add = SqliteEventLogStorage.set_concurrency_slots

    def add_twice(self: SqliteEventLogStorage, key: str, count: int) -> None:
        add(self, key, count)
        with self.index_connection() as connection:
            connection.exec_driver_sql(f"INSERT INTO concurrency_limits (concurrency_key, `limit`) VALUES ('{key}', 1)")

    monkeypatch.setattr(SqliteEventLogStorage, "set_concurrency_slots", add_twice)
    opens, locked = dg.DagsterInstance.get, []

    def get_locked() -> dg.DagsterInstance:
        locked.append(_is_held(tmp_path / "home" / START_LOCK))
        return opens()

    monkeypatch.setattr(dg.DagsterInstance, "get", get_locked)
    built = Project.load()
    assert locked == [True]
    assert not _is_held(tmp_path / "home" / START_LOCK)
    yield built, seen
    built.instance.dispose()


def test_a_pool_that_another_process_adds_meanwhile_is_no_error(loaded: tuple[Project, list[dg.DagsterRun]]) -> None:
    instance = loaded[0].instance
    for _ in range(2):  # a look of the sensor sets them as well
        pools = {pool.name: pool.limit for pool in instance.event_log_storage.get_pool_limits()}
        assert pools == {"orders": 1, "orders/days": 2}
        set_pool_limits([CONFIG], instance)


def test_a_run_names_its_process_from_the_start(loaded: tuple[Project, list[dg.DagsterRun]]) -> None:
    project, seen = loaded
    project.run_job(project.datasets["orders"], "ingest")
    assert [str(process_of(run)) for run in seen] == [str(identify(os.getpid()))]


@pytest.mark.parametrize(
    ("storage", "reason"),
    [
        ("{module: no_such_package.storage, class: Storage, config: {}}", "Couldn't import module no_such_package"),
        ("{module: dagster._core.storage.legacy_storage, class: NoStorage, config: {}}", "NoStorage"),
    ],
)
def test_a_storage_that_cannot_be_used_is_an_error_with_a_remedy(
    storage: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    (tmp_path / "dagster.yaml").write_text(f"telemetry: {{enabled: false}}\nstorage: {{custom: {storage}}}\n")
    with pytest.raises(
        ConfigError, match=rf"Dagster cannot use what .*dagster\.yaml configures \(.*{reason}.*\); start"
    ):
        open_instance(tmp_path)


def test_a_settings_file_that_is_no_yaml_is_an_error_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    (tmp_path / "dagster.yaml").write_text("storage: [\n")
    with pytest.raises(ConfigError, match=r"Dagster cannot use what .*dagster\.yaml configures .*; start"):
        open_instance(tmp_path)


def test_a_full_disk_is_not_taken_for_a_wrong_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full"))

    def get() -> dg.DagsterInstance:
        raise full from full.orig

    monkeypatch.setattr(dg.DagsterInstance, "get", get)
    with pytest.raises(OperationalError, match="database or disk is full"):
        open_instance(tmp_path)
