"""Models of runs that somebody has cancelled: they never serve."""

import logging
from typing import TYPE_CHECKING

import dagster as dg

if TYPE_CHECKING:
    from ae_pipeline.registry.store import Tracker
    from ae_pipeline.storage.dataset import Dataset

logger = logging.getLogger(__name__)

_CANCELLED = {dg.DagsterRunStatus.CANCELED, dg.DagsterRunStatus.CANCELING}


def withdraw_cancelled_challenger(dataset: "Dataset", tracker: "Tracker", instance: dg.DagsterInstance) -> None:
    """Delete a version that waits for its decision if the run that trained it was cancelled.

    If the run was ended after it had moved the alias, the version that served before serves again. A training that was
    killed is another case: nobody wanted it to end, and its version is decided on.

    Args:
        dataset: Dataset of the model.
        tracker: The model store.
        instance: Dagster's instance.
    """
    from ae_pipeline.lifecycle.promote import RUN, undecided_challenger
    from ae_pipeline.registry.history import Change, history
    from ae_pipeline.registry.names import CHAMPION

    challenger = undecided_challenger(dataset.config, tracker)
    if challenger is None:
        return
    run_id = tracker.client.get_run(challenger.run_id).data.tags.get("dagster_run_id", "")
    if run_id and _is_cancelled(run_id, instance):
        why = f"its run {run_id} was cancelled"
        champion = tracker.version(dataset.name, CHAMPION)
        if champion is not None and champion.version == challenger.version:
            versions = {each.run_id: each.version for each in tracker.versions(dataset.name)}
            served = [entry.runs.get(RUN, "") for entry in history(dataset.paths) if entry.change != Change.REJECTED]
            earlier = [versions[run] for run in served if run in versions and run != challenger.run_id]
            tracker.set_alias(dataset.name, CHAMPION, earlier[-1] if earlier else None)
            why += f"; version {earlier[-1]} serves again" if earlier else ""
        logger.warning(f"version {challenger.version} of {dataset.name!r} is withdrawn: {why}")
        tracker.withdraw(challenger, why)


def _is_cancelled(run_id: str, instance: dg.DagsterInstance) -> bool:
    """Return whether a run was cancelled, and nobody has started it again."""
    run = instance.get_run_by_id(run_id)
    if run is None:
        return False
    again = instance.get_runs(dg.RunsFilter(tags={"dagster/root_run_id": run_id}), limit=1)
    return (again[0] if again else run).status in _CANCELLED
