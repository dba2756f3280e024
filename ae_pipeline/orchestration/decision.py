"""Which version serves: the gate's verdict on a challenger, acted on once."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from ae_pipeline.config import PipelineConfig
from ae_pipeline.errors import TrainingError
from ae_pipeline.journal import Change, Entry, history, now, record
from ae_pipeline.storage import DatasetPaths
from ae_pipeline.tracking import CHALLENGER, CHAMPION, TrackedVersion, Tracker

GATE_TAG, FIGURES_TAG = "gate", "gate.figures"
"""Tags of a version: the gate's verdict, and its figures as JSON."""

DECIDED = "decided"
"""Tag of a version on which the gate's verdict was acted: what became of it. It is acted on once."""


@dataclass(frozen=True)
class Decision:
    """Which version serves, and why.

    Attributes:
        champion: It.
        promoted: Whether it does so from now on.
        words: Why, for a person.
        rejected: A challenger that does not, and of which this is the first to tell.
    """

    champion: TrackedVersion
    promoted: bool
    words: str
    rejected: int | None = None


def decide(
    config: PipelineConfig, paths: DatasetPaths, tracker: Tracker, who: str, runs: Mapping[str, str] | None = None
) -> Decision:
    """Lets the challenger take over where it passed the gate, once: a version that was rolled back stays so.

    Args:
        config: The pipeline's.
        paths: The dataset's; its history is added to.
        tracker: The model store.
        who: On whose behalf this runs, for the history.
        runs: Runs that this belongs to, for the history.

    Raises:
        TrainingError: There is no version that could serve.
    """
    challenger, champion = (tracker.version(config.dataset, alias) for alias in (CHALLENGER, CHAMPION))
    if challenger is None and champion is not None:
        return Decision(champion, False, f"no challenger waits; version {champion.version} goes on serving")
    if challenger is None:
        raise TrainingError(f"{config.dataset!r} has no trained model; materialize autoencoder first")
    gate = challenger.tags.get(GATE_TAG, "rejected: it was never judged")
    serves = champion is not None and champion.version == challenger.version
    if DECIDED in challenger.tags and champion is not None:
        if serves:
            return Decision(champion, False, f"version {champion.version} serves already")
        words = f"challenger {challenger.version} was {challenger.tags[DECIDED]} before"
        return Decision(
            champion, False, f"{words}; version {champion.version} goes on serving until another is trained"
        )
    if champion is None and gate != "passed":
        raise TrainingError(
            f"version {challenger.version} of {config.dataset!r} was {gate}, and there is no other version to serve; "
            "look at the checks of autoencoder and train anew"
        )
    promoted = gate == "passed" or serves
    if promoted and not serves:
        tracker.set_alias(config.dataset, CHAMPION, challenger.version)
    # A run that ended between the alias and here is told of by the one that comes after it.
    change = Change.PROMOTED if promoted else Change.REJECTED
    past = history(paths)
    if not any((entry.version, entry.change) == (challenger.version, change) for entry in past):
        served = [entry.version for entry in past if entry.change != Change.REJECTED]
        before = champion.version if champion and not serves else served[-1] if served else None
        why = "it passed the gate" if promoted else gate.removeprefix("rejected: ")
        figures = json.loads(challenger.tags.get(FIGURES_TAG, "{}"))
        told = {**(runs or {}), "mlflow_run_id": challenger.run_id}
        record(paths, Entry(now(), change, challenger.version, before, who, why, figures, told))
    tracker.tag_version(config.dataset, challenger.version, {DECIDED: change.value})
    if promoted or champion is None:
        before_it = f" in place of version {champion.version}" if champion and not serves else ""
        return Decision(challenger, not serves, f"version {challenger.version} passed the gate and serves{before_it}")
    return Decision(
        champion,
        False,
        f"challenger {challenger.version} {gate}; version {champion.version} goes on serving",
        challenger.version,
    )
