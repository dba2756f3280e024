"""Registered model versions, read from the MLflow registry."""

from collections.abc import Mapping
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

RunFacts = dict[str, tuple[dict[str, str], dict[str, float]]]
"""Tags and newest metrics of runs, by run."""


@dataclass(frozen=True)
class TrackedVersion:
    """A registered model version.

    Attributes:
        dataset: Name of the registered model, which is the name of the dataset.
        version: Version number. The registry counts from 1.
        run_id: MLflow run that registered the version.
        tags: Tags of the version. One of them is the result of the gate.
    """

    dataset: str
    version: int
    run_id: str
    tags: Mapping[str, str]


def as_tracked(version: ModelVersion) -> TrackedVersion:
    """Return an MLflow version in the project's form."""
    return TrackedVersion(str(version.name), int(version.version), str(version.run_id), dict(version.tags))


def version_by_alias(client: MlflowClient, dataset: str, alias: str) -> TrackedVersion | None:
    """Return the version that has an alias, or None if no version has it."""
    try:
        return as_tracked(client.get_model_version_by_alias(dataset, alias))
    except MlflowException as error:
        if error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            return None
        raise


def newest_version_of_run(client: MlflowClient, dataset: str, run_id: str) -> TrackedVersion | None:
    """Return the newest version that a run registered, or None if it registered none."""
    versions = client.search_model_versions(f"name = '{dataset}' and run_id = '{run_id}'")
    return max(map(as_tracked, versions), key=lambda version: version.version, default=None)


def facts_of_runs(client: MlflowClient, experiment: str) -> RunFacts:
    """Return the tags and the newest metrics of all runs of an experiment by run, deleted ones too."""
    facts: RunFacts = {}
    token: str | None = None
    while token != "":
        page = client.search_runs([experiment], run_view_type=ViewType.ALL, page_token=token)
        facts |= {str(run.info.run_id): (dict(run.data.tags), dict(run.data.metrics)) for run in page}
        token = page.token or ""
    return facts
