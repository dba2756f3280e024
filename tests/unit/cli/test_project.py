"""The project as the command line loads and runs it."""

import os
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorage

from ae_pipeline.cli.project import Project
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.orchestration.dead_runs import process_of
from ae_pipeline.orchestration.defs_folder import DefsFolder
from ae_pipeline.orchestration.jobs import job_name
from ae_pipeline.orchestration.processes import identify
from ae_pipeline.orchestration.resources import Workspace

CONFIG = PipelineConfig.model_validate({"dataset": "orders", "identity": ["id"]})


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
    built = Project.load()
    yield built, seen
    built.instance.dispose()


def test_a_pool_that_another_process_adds_meanwhile_is_no_error(loaded: tuple[Project, list[dg.DagsterRun]]) -> None:
    assert loaded[0].instance.event_log_storage.get_concurrency_keys() == {"orders"}


def test_a_run_names_its_process_from_the_start(loaded: tuple[Project, list[dg.DagsterRun]]) -> None:
    project, seen = loaded
    project.run_job(project.datasets["orders"], "ingest")
    assert [str(process_of(run)) for run in seen] == [str(identify(os.getpid()))]
