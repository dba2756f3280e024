"""Run the stages of one dataset one at a time, in a separate deployment folder, and measure them."""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import dagster as dg

    from ae_pipeline.config.pipeline import PipelineConfig

STAGES = ("raw_data", "features", "autoencoder", "champion", "latent_features", "anomaly_report")

_JOBS = dict(zip(STAGES, ("ingest", "ingest", "train", "train", "publish", "publish"), strict=True))


@dataclass(frozen=True)
class Measure:
    """Time and memory of a stage.

    Attributes:
        seconds: Duration of the run, without the start of its process.
        cpu: Time of the processor in the run, of all threads.
        mebibytes: Peak memory of its process.
    """

    seconds: float
    cpu: float
    mebibytes: float


def environment(root: Path) -> dict[str, str]:
    """Return the environment of a process whose data, models and events are in a folder."""
    folders = {"DAGSTER_HOME": "home", "AE_PIPELINE_DATA": "data", "AE_PIPELINE_MLRUNS": "mlruns"}
    for name in folders.values():
        (root / name).mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(__file__).parent.parent / ".dagster" / "dagster.yaml", root / "home")
    quiet = {"OMP_WAIT_POLICY": "PASSIVE", "MLFLOW_DISABLE_TELEMETRY": "true"}
    # With this variable each process would compile all modules again, which no deployment does.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**inherited, **quiet, **{name: str(root / folder) for name, folder in folders.items()}}


def run_stage(root: Path, attributes: Mapping[str, Any], stage: str, days: Sequence[str]) -> Measure:
    """Materialize one asset over some days in a separate process.

    Args:
        root: Folder of the deployment.
        attributes: Settings of the dataset.
        stage: The asset, or several of one job, separated by commas, which one run materializes.
        days: First and last day are materialized, and those between them.

    Raises:
        RuntimeError: The process failed.
    """
    command = [sys.executable, "-m", "benchmarks.deployment", json.dumps(dict(attributes)), stage, days[0], days[-1]]
    completed = subprocess.run(command, env=environment(root), capture_output=True, text=True, check=False)
    if completed.returncode:
        raise RuntimeError(f"{stage} of {days[0]} to {days[-1]} failed:\n{completed.stdout}\n{completed.stderr}")
    return Measure(**json.loads(completed.stdout.splitlines()[-1]))


def measured(work: Callable[[], object]) -> Measure:
    """Run a function and return its duration and the peak memory of this process so far."""
    began, cpu = time.perf_counter(), time.process_time()
    work()
    return Measure(time.perf_counter() - began, time.process_time() - cpu, _peak_memory())


def _peak_memory() -> float:
    """Return the peak memory of this process, MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux getrusage may report the parent's peak from before exec
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes


def definitions_of(config: "PipelineConfig") -> "dg.Definitions":
    """Return the definitions of a dataset whose data and models are where the environment says."""
    import dagster as dg

    from ae_pipeline.orchestration.component import AutoencoderPipeline
    from ae_pipeline.orchestration.console import line_logger
    from ae_pipeline.orchestration.resources import RunLock, Workspace

    workspace = Workspace(data_folder=os.environ["AE_PIPELINE_DATA"], mlflow_folder=os.environ["AE_PIPELINE_MLRUNS"])
    resources = dg.Definitions(
        resources={"workspace": workspace, "run_lock": RunLock(workspace=workspace)},
        executor=dg.in_process_executor,
        loggers={"console": line_logger},
    )
    context: Any = None  # build_defs needs no context without a defs folder
    return dg.Definitions.merge(AutoencoderPipeline(config).build_defs(context), resources)


def _materialize(attributes: Mapping[str, Any], stage: str, first: str, last: str) -> Measure:
    import dagster as dg

    from ae_pipeline.config.pipeline import PipelineConfig
    from ae_pipeline.orchestration.console import LOGGERS
    from ae_pipeline.orchestration.jobs import job_name
    from ae_pipeline.orchestration.tags import range_tags

    config = PipelineConfig.model_validate(attributes)
    definitions = definitions_of(config)
    stages = stage.split(",")
    job = definitions.resolve_job_def(job_name(config, _JOBS[stages[0]]))
    tags = range_tags(first, last) if _JOBS[stages[0]] != "train" else {}
    assets = [dg.AssetKey([config.dataset, each]) for each in stages]
    with dg.DagsterInstance.get() as instance:
        return measured(
            lambda: job.execute_in_process(instance=instance, tags=tags, run_config=LOGGERS, asset_selection=assets)
        )


if __name__ == "__main__":
    print(json.dumps(vars(_materialize(json.loads(sys.argv[1]), *sys.argv[2:]))))
