"""Remove everything that the MLflow store has of a dataset."""

import contextlib
import io
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException

from ae_pipeline.common.errors import StorageError
from ae_pipeline.common.text import first_line
from ae_pipeline.registry.store import Tracker

_PAGE = 1000
"""Runs that are read at once."""


@dataclass(frozen=True, kw_only=True)
class ModelState:
    """What the MLflow store has of a dataset.

    Attributes:
        versions: Registered versions of the model.
        runs: Ids of the runs of trainings, deleted ones included.
        experiment: Id of the experiment; None if there is none.
        folders: Folders of artifacts and downloaded bundles on this machine.
    """

    versions: tuple[int, ...] = ()
    runs: tuple[str, ...] = ()
    experiment: str | None = None
    folders: tuple[Path, ...] = ()


def model_state(tracker: Tracker, dataset: str) -> ModelState:
    """Return what the MLflow store has of a dataset. A store that does not exist is not created."""
    candidates = (tracker.root / "artifacts" / dataset, tracker.root / "downloaded" / dataset)
    folders = tuple(path for path in candidates if path.exists())
    if tracker.database and not tracker.database.exists():
        return ModelState(folders=folders)
    experiment = tracker.client.get_experiment_by_name(dataset)
    experiment_id = str(experiment.experiment_id) if experiment else None
    return ModelState(
        versions=tuple(sorted(version.version for version in tracker.versions(dataset))),
        runs=tuple(_runs(tracker, experiment_id)) if experiment_id else (),
        experiment=experiment_id,
        folders=folders,
    )


def _runs(tracker: Tracker, experiment: str) -> Iterator[str]:
    token = None
    while True:
        page = tracker.client.search_runs([experiment], run_view_type=ViewType.ALL, max_results=_PAGE, page_token=token)
        yield from (str(run.info.run_id) for run in page)
        if not (token := page.token):
            return


def delete_models(tracker: Tracker, dataset: str, state: ModelState) -> None:
    """Delete the registered model, its runs and the experiment of a dataset.

    A local store deletes them for good. A tracking server marks the runs as deleted, and its administrator removes
    them with `mlflow gc`; the experiment stays, because its name could not be used again.

    Args:
        tracker: The model store.
        dataset: Name of the dataset.
        state: What the store has of it.

    Raises:
        StorageError: The store refuses.
    """
    try:
        if state.experiment is not None:
            _delete_registered_model(tracker, dataset)
            if tracker.is_remote:
                for run_id in state.runs:
                    tracker.client.delete_run(run_id)
            else:
                _delete_for_good(tracker, state.experiment, state.runs)
    except MlflowException as error:
        raise StorageError(
            f"the MLflow store at {tracker.web_url or tracker.uri} did not delete the models of {dataset!r}: "
            f"{first_line(error)}; correct this, and run `ae-pipeline forget {dataset}` again"
        ) from error
    for folder in state.folders:
        shutil.rmtree(folder)


def _delete_registered_model(tracker: Tracker, dataset: str) -> None:
    try:
        tracker.client.delete_registered_model(dataset)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise


def _delete_for_good(tracker: Tracker, experiment: str, runs: tuple[str, ...]) -> None:
    """Delete an experiment and its runs as `mlflow gc` does, and nothing else that is marked as deleted."""
    from mlflow.cli import gc

    client = tracker.client
    models = [str(model.model_id) for model in client.search_logged_models([experiment], max_results=_PAGE)]
    for model_id in models:
        client.delete_logged_model(model_id)
    if client.get_experiment(experiment).lifecycle_stage != "deleted":
        client.delete_experiment(experiment)
    # Without ids, the command would also remove what others have marked as deleted.
    arguments = ["--backend-store-uri", tracker.uri, "--tracking-uri", tracker.uri, "--experiment-ids", experiment]
    arguments += ["--run-ids", ",".join(runs)] if runs else []
    arguments += ["--logged-model-ids", ",".join(models)] if models else []
    with contextlib.redirect_stdout(io.StringIO()):
        gc.main(arguments, standalone_mode=False)
