"""The code location: the datasets of the defs folder, and the resources and executor of the deployment."""

import logging
import os

import dagster as dg

from ae_pipeline.common.deprecation import show_deprecations
from ae_pipeline.common.errors import ConfigError
from ae_pipeline.orchestration.console import line_logger
from ae_pipeline.orchestration.defs_folder import DefsFolder, load_defs_folder
from ae_pipeline.orchestration.resources import DAGSTER_URL, DATA_URL, RunLock, Workspace, deployed
from ae_pipeline.orchestration.sensors import build_dead_runs_sensor
from ae_pipeline.orchestration.side_by_side import EXECUTOR_VARIABLE, MULTIPROCESS
from ae_pipeline.orchestration.yaml_errors import is_expected
from ae_pipeline.storage.environment import project_folders
from ae_pipeline.storage.location import data_location
from ae_pipeline.storage.project import find_project

logger = logging.getLogger(__name__)


@dg.definitions
def defs() -> dg.Definitions:
    """Return everything that Dagster loads. A file with an error takes only its own datasets out.

    Raises:
        ConfigError: `dg check defs` is running, and a file cannot be loaded.
    """
    show_deprecations()
    loaded = load_project()
    defects = [broken.error for broken in loaded.broken if not is_expected(broken.error)]
    # Dagster sets the variable for code that must be stricter while it is checked.
    if loaded.broken and os.environ.get("DAGSTER_IS_DEFS_VALIDATION_CLI"):
        raise ConfigError("\n".join(broken.message for broken in loaded.broken)) from next(iter(defects), None)
    for broken in loaded.broken:
        # Dagster calls this function more than once in a process.
        if broken.message not in _logged:
            _logged.add(broken.message)
            logger.error(f"not loaded: {broken.message}", exc_info=broken.error if broken.error in defects else None)
    return loaded.definitions


_logged: set[str] = set()
"""Messages that this process has logged."""


def load_project() -> DefsFolder:
    """Return the content of the defs folder, with the resources and the executor of the deployment.

    Raises:
        ConfigError: The project cannot be found, or a variable names no folder of this machine.
    """
    project, folders = find_project(), project_folders()
    # A process for each step imports everything again: 2 s for a step that may take less.
    is_multiprocess = os.environ.get(EXECUTOR_VARIABLE) == MULTIPROCESS
    executor = dg.multiprocess_executor if is_multiprocess else dg.in_process_executor
    workspace = Workspace(
        data_folder=data_location(),
        mlflow_folder=str(folders["AE_PIPELINE_MLRUNS"]),
        tracking_uri=os.environ.get("MLFLOW_TRACKING_URI"),
        tables=os.environ.get("AE_PIPELINE_TABLES"),
        project_folder=str(project.root),
        dagster_url=os.environ.get("AE_PIPELINE_DAGSTER_URL", DAGSTER_URL),
        mlflow_url=os.environ.get("AE_PIPELINE_MLFLOW_URL"),
        data_url=os.environ.get("AE_PIPELINE_DATA_URL", DATA_URL),
    )
    deployment = dg.Definitions(
        resources={"workspace": workspace, "run_lock": RunLock(workspace=workspace)},
        executor=executor,
        loggers={"console": line_logger},
        sensors=[build_dead_runs_sensor()],
    )
    token = deployed.set(workspace)
    try:
        return load_defs_folder(project, deployment)
    finally:
        deployed.reset(token)
