"""The code location: the datasets of the defs folder, and the resources and executor of the deployment."""

import os
from pathlib import Path

import dagster as dg

from ae_pipeline.common.deprecation import show_deprecations
from ae_pipeline.orchestration.console import line_logger
from ae_pipeline.orchestration.resources import DAGSTER_URL, DATA_URL, RunLock, Workspace

PROJECT_ROOT = Path(__file__).resolve().parent.parent


@dg.definitions
def defs() -> dg.Definitions:
    """Return everything that Dagster loads."""
    show_deprecations()
    # A process for each step imports everything again: 2 s for a step that may take less.
    executor = (
        dg.multiprocess_executor if os.environ.get("AE_PIPELINE_EXECUTOR") == "multiprocess" else dg.in_process_executor
    )
    workspace = Workspace(
        data_folder=os.environ.get("AE_PIPELINE_DATA", str(PROJECT_ROOT / "data")),
        mlflow_folder=os.environ.get("AE_PIPELINE_MLRUNS", str(PROJECT_ROOT / "mlruns")),
        tracking_uri=os.environ.get("MLFLOW_TRACKING_URI"),
        tables=os.environ.get("AE_PIPELINE_TABLES"),
        project_folder=str(PROJECT_ROOT),
        dagster_url=os.environ.get("AE_PIPELINE_DAGSTER_URL", DAGSTER_URL),
        mlflow_url=os.environ.get("AE_PIPELINE_MLFLOW_URL"),
        data_url=os.environ.get("AE_PIPELINE_DATA_URL", DATA_URL),
    )
    return dg.Definitions.merge(
        dg.load_from_defs_folder(path_within_project=Path(__file__)),
        dg.Definitions(
            resources={"workspace": workspace, "run_lock": RunLock(workspace=workspace)},
            executor=executor,
            loggers={"console": line_logger},
        ),
    )
