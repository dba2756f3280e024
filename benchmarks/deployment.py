"""One dataset's deployment in a folder of its own, whose stages are run one at a time and measured."""

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
from typing import Any

STAGES = ("raw_data", "features", "autoencoder", "champion", "latent_features", "anomaly_report")

_JOBS = dict(zip(STAGES, ("ingest", "ingest", "train", "train", "publish", "publish"), strict=True))


@dataclass(frozen=True)
class Measure:
    """What a stage took.

    Attributes:
        seconds: Of the run, without the start of its process.
        mebibytes: Most memory that its process held.
    """

    seconds: float
    mebibytes: float


def environment(root: Path) -> dict[str, str]:
    """Gives the environment of a process whose data, models and events lie in a folder."""
    own = {"DAGSTER_HOME": "home", "AE_PIPELINE_DATA": "data", "AE_PIPELINE_MLRUNS": "mlruns"}
    for name in own.values():
        (root / name).mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(__file__).parent.parent / ".dagster" / "dagster.yaml", root / "home")
    quiet = {"OMP_WAIT_POLICY": "PASSIVE", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return {**os.environ, **quiet, **{name: str(root / folder) for name, folder in own.items()}}


def run_stage(root: Path, attributes: Mapping[str, Any], stage: str, days: Sequence[str]) -> Measure:
    """Materializes one asset over some days in a process of its own.

    Raises:
        RuntimeError: It failed.
    """
    command = [sys.executable, "-m", "benchmarks.deployment", json.dumps(dict(attributes)), stage, days[0], days[-1]]
    found = subprocess.run(command, env=environment(root), capture_output=True, text=True, check=False)
    if found.returncode:
        raise RuntimeError(f"{stage} of {days[0]} to {days[-1]} failed:\n{found.stdout}\n{found.stderr}")
    return Measure(**json.loads(found.stdout.splitlines()[-1]))


def measured(work: Callable[[], object]) -> Measure:
    """Measures a piece of work in this process, and the most memory that it has held so far."""
    began = time.perf_counter()
    work()
    return Measure(time.perf_counter() - began, _most_held())


def _most_held() -> float:
    """Gives the most memory that this process has held, MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage tells there may be the parent's, from before this process had its own memory
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes


def _materialize(attributes: Mapping[str, Any], stage: str, first: str, last: str) -> Measure:
    import dagster as dg

    from ae_pipeline.config.pipeline import PipelineConfig
    from ae_pipeline.orchestration.automation import job_name
    from ae_pipeline.orchestration.component import AutoencoderPipeline
    from ae_pipeline.orchestration.console import LOGGERS, line_logger
    from ae_pipeline.orchestration.resources import Workspace
    from ae_pipeline.orchestration.upkeep import range_tags

    config = PipelineConfig.model_validate(attributes)
    workspace = Workspace(data_folder=os.environ["AE_PIPELINE_DATA"], mlflow_folder=os.environ["AE_PIPELINE_MLRUNS"])
    own = dg.Definitions(
        resources={"workspace": workspace}, executor=dg.in_process_executor, loggers={"console": line_logger}
    )
    context: Any = None  # of a defs folder, which there is none of
    definitions = dg.Definitions.merge(AutoencoderPipeline(config).build_defs(context), own)
    job = definitions.resolve_job_def(job_name(config, _JOBS[stage]))
    tags = range_tags(first, last) if stage not in {"autoencoder", "champion"} else {}
    with dg.DagsterInstance.get() as instance:
        return measured(
            lambda: job.execute_in_process(
                instance=instance, tags=tags, run_config=LOGGERS, asset_selection=[dg.AssetKey([config.dataset, stage])]
            )
        )


if __name__ == "__main__":
    print(json.dumps(vars(_materialize(json.loads(sys.argv[1]), *sys.argv[2:]))))
