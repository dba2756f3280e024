"""Pages about the versions of a model, made when they are asked for."""

from ae_pipeline.lifecycle.comparison import compare_versions
from ae_pipeline.lifecycle.promote import PASSED
from ae_pipeline.lifecycle.versions import SHOWN_METRICS, list_versions
from ae_pipeline.registry.history import history
from ae_pipeline.registry.names import GATE_TAG, LAST_DAY_TAG
from ae_pipeline.registry.store import Tracker
from ae_pipeline.reports.explore_charts import VersionMark
from ae_pipeline.reports.page import render_page
from ae_pipeline.storage.dataset import Dataset


def versions_page(dataset: Dataset, tracker: Tracker, mlflow: str = "") -> str:
    """Return the page with all versions, their figures and the whole history.

    Args:
        dataset: Dataset of the model.
        tracker: The model store.
        mlflow: Address of MLflow's UI; without it, there are no links to the runs.
    """
    versions = list_versions(dataset, tracker)
    variables = {
        "dataset": dataset.name,
        "charts": (),
        "versions": versions,
        "runs": f"{mlflow.rstrip('/')}/#/experiments/{tracker.experiment(dataset.name)}/runs"
        if mlflow and versions
        else "",
        "serving": next((each.version for each in versions if each.serves), None),
        "metrics": [name for name in SHOWN_METRICS if any(name in each.metrics for each in versions)],
        "rules": list(dict.fromkeys(rule for each in versions for rule in each.figures)),
        "daily": dataset.config.is_daily,
        "history": history(dataset.paths),
    }
    return render_page("versions.html.j2", variables, dataset)


def version_marks(dataset: Dataset, tracker: Tracker) -> list[VersionMark]:
    """Return the ends of the training windows of the versions that passed the gate, the oldest first.

    An earlier package did not tag versions with their last day. Their runs have it.

    Args:
        dataset: Dataset of the model.
        tracker: The model store.

    Raises:
        StorageError: The store does not answer.
    """
    versions = sorted(tracker.versions(dataset.name), key=lambda each: each.version)
    passed = [each for each in versions if each.tags.get(GATE_TAG) == PASSED]
    untagged = [each for each in passed if LAST_DAY_TAG not in each.tags]
    of_runs = tracker.facts_of_runs(dataset.name) if untagged else {}
    days = {each.version: of_runs.get(each.run_id, ({}, {}))[0].get(LAST_DAY_TAG, "") for each in untagged}
    days |= {each.version: each.tags[LAST_DAY_TAG] for each in passed if LAST_DAY_TAG in each.tags}
    return [VersionMark(day, version) for version, day in sorted(days.items()) if day]


def compare_page(new: int, old: int | None, dataset: Dataset, tracker: Tracker) -> str:
    """Return the page that says what one version flags on the newest days that another does not.

    Args:
        new: Version that is considered.
        old: Version to compare it with; None for the one that serves.
        dataset: Dataset of the model.
        tracker: The model store.

    Raises:
        PromotionError: A version does not exist, or there is nothing to score.
        BundleError: A bundle cannot be read, or cannot score the present features.
        StorageError: A bundle is gone.
    """
    compared = compare_versions(dataset, tracker, new, old)
    variables = {
        "dataset": dataset.name,
        "daily": dataset.config.is_daily,
        "are_images": dataset.config.images is not None,
        "charts": (),
        "compared": compared,
    }
    return render_page("compare.html.j2", variables, dataset)
