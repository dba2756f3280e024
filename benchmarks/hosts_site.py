"""A dataset in an object store or in a folder, and hosts that execute runs of it, for `benchmarks.hosts_runs`."""

import multiprocessing
import os
import shutil
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.lifecycle.plan import Plan, plan_landing
from ae_pipeline.orchestration.console import LOGGERS
from ae_pipeline.orchestration.failures import first_reason
from ae_pipeline.orchestration.jobs import job_name
from ae_pipeline.orchestration.runs import request_runs
from ae_pipeline.registry.store import Tracker
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.location import DATA_VARIABLE, SCRATCH_VARIABLE
from ae_pipeline.storage.object_store import ObjectStore
from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.storage.session import refresh
from benchmarks.deployment import definitions_of
from benchmarks.hosts_store import dataset_of

_MODELS = "AE_PIPELINE_MLRUNS"

context = multiprocessing.get_context("forkserver")


def _host(
    job: str, tags: Mapping[str, str], attributes: dict[str, Any], variables: Mapping[str, str], ready: Any, begin: Any
) -> None:
    """Execute a run of a job when it may begin, and exit with the reason if it fails."""
    os.environ.update(variables)
    warnings.simplefilter("ignore", dg.BetaWarning)
    config = PipelineConfig.model_validate(attributes)
    definition = definitions_of(config).resolve_job_def(job_name(config, job))
    with dg.DagsterInstance.ephemeral() as instance:
        ready.set()
        begin.wait()
        result = definition.execute_in_process(LOGGERS, instance=instance, tags=dict(tags), raise_on_error=False)
    if not result.success:
        sys.exit(first_reason(result.all_events))


@dataclass(frozen=True)
class Site:
    """A dataset in an object store or in a folder, with its model store, and the hosts that work on it.

    Attributes:
        root: Folder for the model store and for working copies.
        attributes: Attributes of the dataset.
        data: Address or folder of the data.
    """

    root: Path
    attributes: dict[str, Any]
    data: str

    def variables(self, host: str) -> dict[str, str]:
        """Return the environment of a host."""
        folder = self.root / "hosts" / host
        folder.mkdir(parents=True, exist_ok=True)
        return {DATA_VARIABLE: self.data, SCRATCH_VARIABLE: str(folder), _MODELS: str(self.root / "mlruns")}

    def start(self, host: str, job: str, tags: Mapping[str, str], begin: Any = None) -> Any:
        """Start a run on an empty host, and return its process when it is ready to begin.

        Args:
            host: Name of the host.
            job: End of the name of the job.
            tags: Tags of the run.
            begin: Event for which it waits; by default it begins at once.
        """
        shutil.rmtree(self.root / "hosts" / host, ignore_errors=True)
        ready = context.Event()
        if begin is None:
            begin = context.Event()
            begin.set()
        process = context.Process(target=_host, args=(job, tags, self.attributes, self.variables(host), ready, begin))
        process.start()
        assert ready.wait(300)
        return process

    def run(self, host: str, job: str, tags: Mapping[str, str] | None = None) -> float:
        """Execute a run on an empty host, and return its time in seconds."""
        process = self.start(host, job, tags or {})
        began = time.perf_counter()
        process.join()
        assert process.exitcode == 0, f"{job} failed"
        return time.perf_counter() - began

    def dataset(self) -> Dataset:
        """Return the dataset as this process sees it now."""
        os.environ.update(self.variables("control"))
        dataset = dataset_of(self.attributes)
        refresh(dataset.paths)
        return dataset

    @property
    def tracker(self) -> Tracker:
        """The model store."""
        return Tracker(self.root / "mlruns")

    def land(self, files: Sequence[Path]) -> None:
        """Let files land."""
        if "://" in self.data:
            store = ObjectStore(self.data)
            for path in files:
                store.write(f"landing/flights/{path.name}", path.read_bytes())
            return
        landing = DatasetPaths(Path(self.data), "flights").landing
        landing.mkdir(parents=True, exist_ok=True)
        for path in files:
            shutil.copy(path, landing)

    def requested(self, plan: Plan) -> list[dg.RunRequest]:
        """Return what a sensor requests for a plan."""
        with dg.DagsterInstance.ephemeral() as instance:
            answer = request_runs(plan, PipelineConfig.model_validate(self.attributes), instance)
        return answer if isinstance(answer, list) else []

    def ranges(self) -> list[dg.RunRequest]:
        """Return the runs over days that the sensor requests now."""
        dataset = self.dataset()
        return self.requested(plan_landing(dataset, dataset.config.today()))
