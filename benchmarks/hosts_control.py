"""What a person at the deployment of `benchmarks.hosts_deployment` does and sees: files land, runs start and end."""

import json
import os
import re
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from ae_pipeline.engine.mapping import VARIABLE
from ae_pipeline.latents.files import TableFiles, live_files
from ae_pipeline.latents.read import model_version_of
from ae_pipeline.lifecycle.plan import plan_landing, plan_serving
from ae_pipeline.orchestration.dead_runs import active_records
from ae_pipeline.orchestration.tags import range_tags
from ae_pipeline.registry.store import Tracker
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.location import DATA_VARIABLE, SCRATCH_VARIABLE
from ae_pipeline.storage.object_store import ObjectStore, copy_all
from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.storage.session import refresh
from benchmarks.hosts_launcher import pid_of
from benchmarks.hosts_look import look
from benchmarks.hosts_stack import Stack, wait_until
from benchmarks.hosts_store import built, dataset_of, rows_of

DATASET = "flights"

_WITH_METADATA = {dg.DagsterEventType.ASSET_MATERIALIZATION, dg.DagsterEventType.ASSET_CHECK_EVALUATION}

_LONGEST_SECONDS = 900.0
"""Time after which work counts as stuck."""


def table_files(paths: DatasetPaths) -> dict[str, bytes]:
    """Return the files of the newest version of a latent table by their path."""
    files = TableFiles(paths.latents)
    table, content = files.open(), dict[str, bytes]()
    for path in live_files(table) if table else ():
        with files.filesystem.open_input_stream(path) as stream:
            content[path] = stream.read()
    return content


def differing(expected: dict[str, bytes], actual: dict[str, bytes]) -> int:
    """Return the number of files that are missing, have other bytes, or should not be there."""
    return sum(expected.get(name) != actual.get(name) for name in expected.keys() | actual.keys())


def as_figures(counts: Counter[str]) -> dict[str, int]:
    """Return counts with names of figures."""
    return {name.replace(" ", "_"): int(count) for name, count in counts.items()}


class Control:
    """A look at a deployment, on a machine with an empty folder. It sets variables of this process.

    Args:
        stack: The deployment.
        attributes: Attributes of its dataset.
    """

    def __init__(self, stack: Stack, attributes: dict[str, Any]) -> None:
        self._stack, self._attributes = stack, attributes
        folders = {SCRATCH_VARIABLE: "control", "AE_PIPELINE_MLRUNS": "control_models"}
        os.environ.update({**stack.variables, **{name: str(stack.root / path) for name, path in folders.items()}})
        os.environ.pop(VARIABLE, None)  # this process does no work
        self.instance = dg.DagsterInstance.get()
        self.tracker = Tracker(stack.root / "control_models", stack.variables["MLFLOW_TRACKING_URI"])

    def dataset(self) -> Dataset:
        """Return the dataset as the object store has it now."""
        dataset = dataset_of(self._attributes)
        refresh(dataset.paths)
        return dataset

    def land(self, files: Sequence[Path]) -> None:
        """Let files land as objects."""
        store = ObjectStore(os.environ[DATA_VARIABLE])
        copy_all(lambda path: store.write(f"landing/{DATASET}/{path.name}", path), files)

    def launch(self, job: str, days: Sequence[str] = ()) -> None:
        """Launch a run of a job, as the guide for deployments shows.

        Args:
            job: Its name.
            days: First and last day of its range; none for a job without days.
        """
        tags = ["--tags", json.dumps(range_tags(*days))] if days else []
        self._stack.dagster("job", "launch", "--location", "ae_pipeline", "--job", f"{DATASET}_{job}", *tags)

    def remove_table(self) -> None:
        """Remove the latent table, so that all days must be published again."""
        store, folder = ObjectStore(os.environ[DATA_VARIABLE]), f"latents/{DATASET}"
        names = [f"{folder}/{each.name}" for each in store.list(folder)]
        assert names
        store.remove(names)

    def runs(self, job: str | None = None, since: float = 0.0) -> list[dg.RunRecord]:
        """Return the runs of a job, or all of them, that were created after a time, the oldest first."""
        filters = dg.RunsFilter(job_name=f"{DATASET}_{job}" if job else None)
        records = self.instance.get_run_records(filters, ascending=True)
        return [each for each in records if each.create_timestamp.timestamp() > since]

    def wait_for(self, job: str, since: float, *, status: Sequence[dg.DagsterRunStatus] = ()) -> dg.RunRecord:
        """Wait for a run of a job that was created after a time, and has one of the statuses."""
        records: list[dg.RunRecord] = []

        def is_there() -> bool:
            records[:] = [each for each in self.runs(job, since) if each.dagster_run.status in status or not status]
            return bool(records)

        wait_until(is_there, _LONGEST_SECONDS, f"there is no run of {job}")
        return records[0]

    def record(self, run_id: str) -> dg.RunRecord:
        """Return a run as Dagster knows it now."""
        return self.instance.get_run_records(dg.RunsFilter(run_ids=[run_id]))[0]

    def has_begun(self, run_id: str, asset: str) -> bool:
        """Return whether a run builds an asset now, or has built it."""
        steps = self.instance.get_run_step_stats(run_id)
        return any(each.step_key.endswith(asset) and each.start_time for each in steps)

    def wait_for_start(self, at: float) -> list[float]:
        """Wait for a run that starts after a time, and return when such runs have started."""
        times: list[float] = []

        def has_started() -> bool:
            times[:] = [each.start_time for each in self.runs() if each.start_time and each.start_time > at]
            return bool(times)

        wait_until(has_started, _LONGEST_SECONDS, "no run has started")
        return times

    def retried(self) -> int:
        """Return the number of runs that Dagster has started again."""
        return sum("dagster/retry_number" in each.dagster_run.tags for each in self.runs())

    def settle(self) -> float:
        """Wait until no run is active and no work is left, and return how long it took."""
        began = time.perf_counter()
        wait_until(self._is_idle, _LONGEST_SECONDS, "the deployment has not done its work")
        return time.perf_counter() - began

    def _is_idle(self) -> bool:
        if active_records(None, self.instance):
            return False
        dataset = self.dataset()
        plans = plan_landing(dataset, dataset.config.today()), plan_serving(dataset, self.tracker)
        return not any(plan.work for plan in plans) and not active_records(None, self.instance)

    def process_of(self, run_id: str) -> int | None:
        """Return the process of a run, or None if it was not launched."""
        if self._stack.launcher == "hosts":
            return pid_of(self._stack.hosts, run_id)
        records = self.instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT).records
        texts = (
            each.event_log_entry.dagster_event.message or "" for each in records if each.event_log_entry.dagster_event
        )
        matches = (re.search(r"Started process for run \(pid: (\d+)\)", text) for text in texts)
        return next((int(match[1]) for match in matches if match), None)

    def seconds_of(self, run_id: str) -> float:
        """Return how long a run took from its launch on; 0 if it has not ended."""
        stats = self.instance.get_run_stats(run_id)
        times = [event.timestamp for event in self.instance.all_logs(run_id, of_type=dg.DagsterEventType.RUN_STARTING)]
        return (stats.end_time or 0.0) - min(times) if times and stats.end_time else 0.0

    def local_metadata(self) -> int:
        """Return the number of entries in the log of events that name a folder of a single host."""
        folders = [str(self._stack.hosts), str(self._stack.root / "control")]
        texts = (
            str(entry.dagster_event.event_specific_data)
            for record in self.runs()
            for entry in self.instance.all_logs(record.dagster_run.run_id, of_type=_WITH_METADATA)
            if entry.dagster_event
        )
        return sum(any(folder in text for folder in folders) for text in texts)

    def failed(self) -> int:
        """Return the number of runs that have failed."""
        return self.instance.get_runs_count(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]))

    def at_once(self, job: str) -> int:
        """Return how many runs of a job worked at the same time, at most."""
        changes = []
        for record in self.runs(job):
            steps = self.instance.get_run_step_stats(record.dagster_run.run_id)
            times = [(step.start_time, step.end_time) for step in steps if step.start_time and step.end_time]
            if times:
                changes += [(min(start for start, _ in times), 1), (max(end for _, end in times), -1)]
        active = most = 0
        for _, change in sorted(changes):
            active += change
            most = max(most, active)
        return most

    def compare(self, expected: DatasetPaths, *, with_table: bool) -> Counter[str]:
        """Return what differs from a data folder that the embedded setup has filled.

        Args:
            expected: Paths of that folder.
            with_table: Whether it has the same table too.
        """
        paths, identities = self.dataset().paths, rows_of(expected)
        rows, version = rows_of(paths), model_version_of(paths)
        counts = look(DATASET, str(paths.tables), version, set(identities))
        counts["rows lost"] += len(identities.keys() - rows.keys())
        counts["rows doubled"] += sum(count > 1 for count in rows.values())
        counts["files that differ"] = differing(built(expected), built(paths))
        if with_table:
            counts["table files that differ"] = differing(table_files(expected), table_files(paths))
        return counts
