"""What must be published and reported before a training uses the present features."""

import polars as pl

from ae_pipeline.common.errors import BundleError, StorageError, TrainingError
from ae_pipeline.lifecycle.plan import Plan, days_to_publish, plan_serving
from ae_pipeline.registry.bundles import load_bundle
from ae_pipeline.registry.names import CHAMPION
from ae_pipeline.registry.store import Tracker
from ae_pipeline.storage.dataset import Dataset


def plan_before_training(dataset: Dataset, tracker: Tracker) -> Plan:
    """Plan what must be published and reported under the version that serves before a training uses it.

    Otherwise a training learns faults of new days before any report names them. Nothing waits where the version that
    serves cannot be loaded or cannot score the present features, because a training is the remedy.

    Args:
        dataset: Dataset to look at.
        tracker: The model store.
    """
    champion = tracker.version(dataset.name, CHAMPION)
    if champion is None:
        return Plan((), "no version serves so far")
    try:
        bundle = load_bundle(tracker, champion)
        if days := days_to_publish(dataset, tracker):
            rows = pl.scan_parquet(dataset.paths.features(days[-1]), glob=False).head(1).collect()
            bundle.encoder.encode(rows)  # raises if a column of the model no longer exists
    except (BundleError, StorageError, TrainingError) as error:
        return Plan((), f"version {champion.version}, which serves, cannot score the present features: {error}")
    return plan_serving(dataset, tracker)


def waits_for_publication(dataset: Dataset, tracker: Tracker) -> str:
    """Return what a training waits for; empty if all days are published and reported.

    Args:
        dataset: Dataset to look at.
        tracker: The model store.
    """
    work = plan_before_training(dataset, tracker).work
    if not work:
        return ""
    return f"the training waits until new days are published under the version that serves: {work[-1].reason}"
