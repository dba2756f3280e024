"""Which version serves: the gate's verdict on a challenger, acted on once."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ae_pipeline.common.errors import TrainingError
from ae_pipeline.common.timestamps import now
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.registry.history import Change, Entry, history, record
from ae_pipeline.registry.names import CHALLENGER, CHAMPION, GATE_TAG
from ae_pipeline.registry.store import TrackedVersion, Tracker
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.paths import DatasetPaths

FIGURES_TAG = "gate.figures"
"""Tag of a version: the gate's figures, as JSON."""

RUN = "mlflow_run_id"
"""Names a version's run among those of an entry of the history: versions count from 1 again in another model store."""

DECIDED = "decided"
"""Tag of a version on which the gate's verdict was acted: what became of it. It is acted on once."""


@dataclass(frozen=True)
class Decision:
    """Which version serves, and why.

    Attributes:
        champion: It.
        promoted: Whether it does so from now on.
        message: Why, for a person.
    """

    champion: TrackedVersion
    promoted: bool
    message: str


def undecided_challenger(config: PipelineConfig, tracker: Tracker) -> TrackedVersion | None:
    """Gives a challenger that was judged and waits for what follows from it: the run that trained it was cut short.

    One that was rejected where no other version serves has nothing to wait for.
    """
    challenger = tracker.version(config.dataset, CHALLENGER)
    if challenger is None or DECIDED in challenger.tags or GATE_TAG not in challenger.tags:
        return None
    waits = challenger.tags[GATE_TAG] == "passed" or tracker.version(config.dataset, CHAMPION) is not None
    return challenger if waits else None


def decide(
    dataset: Dataset,
    tracker: Tracker,
    who: str,
    runs: Mapping[str, str] | None = None,
    on_rejected: Callable[[TrackedVersion, str], None] = lambda *_: None,
) -> Decision:
    """Lets the challenger take over where it passed the gate, once: a version that was rolled back stays so.

    Args:
        dataset: Configuration and paths of the dataset.
        tracker: The model store.
        who: On whose behalf this runs, for the history.
        runs: Runs that this belongs to, for the history.
        on_rejected: Told of a challenger that does not serve, and why; again where this is cut short before it is kept
            that it was decided.

    Raises:
        TrainingError: There is no version that could serve.
    """
    config, paths = dataset.config, dataset.paths
    challenger, champion = (tracker.version(config.dataset, alias) for alias in (CHALLENGER, CHAMPION))
    newest = challenger.version if challenger else None
    if champion is not None and champion.version != newest and DECIDED not in champion.tags:
        # It took over in a run that was cut short, and another was trained before this was kept.
        _record(paths, champion, Change.PROMOTED, None, who, runs)
        tracker.tag_version(config.dataset, champion.version, {DECIDED: Change.PROMOTED.value})
    if challenger is None and champion is not None:
        return Decision(champion, False, f"no challenger waits; version {champion.version} goes on serving")
    if challenger is None:
        raise TrainingError(f"{config.dataset!r} has no trained model; materialize autoencoder first")
    gate = challenger.tags.get(GATE_TAG, "rejected: it was never judged")
    serves = champion is not None and champion.version == challenger.version
    if DECIDED in challenger.tags and champion is not None:
        if serves:
            return Decision(champion, False, f"version {champion.version} serves already")
        message = f"challenger {challenger.version} was {challenger.tags[DECIDED]} before"
        return Decision(
            champion, False, f"{message}; version {champion.version} goes on serving until another is trained"
        )
    if champion is None and gate != "passed":
        raise TrainingError(
            f"version {challenger.version} of {config.dataset!r} was {gate}, and there is no other version to serve; "
            "look at the checks of autoencoder and train anew"
        )
    promoted = gate == "passed" or serves
    if promoted and not serves:
        tracker.set_alias(config.dataset, CHAMPION, challenger.version)
    previous = champion if champion and not serves else None
    change = Change.PROMOTED if promoted else Change.REJECTED
    _record(paths, challenger, change, previous, who, runs)
    message = f"version {challenger.version} passed the gate and serves" + (
        f" in place of version {previous.version}" if previous else ""
    )
    if not promoted and champion is not None:
        message = f"challenger {challenger.version} {gate}; version {champion.version} goes on serving"
        on_rejected(challenger, message)
    tracker.tag_version(config.dataset, challenger.version, {DECIDED: change.value})
    return Decision(challenger if promoted or champion is None else champion, promoted and not serves, message)


def _record(
    paths: DatasetPaths,
    version: TrackedVersion,
    change: Change,
    previous: TrackedVersion | None,
    who: str,
    runs: Mapping[str, str] | None,
) -> None:
    """Adds to the history what became of a version, unless a run that was cut short after that has done so."""
    past = history(paths)
    if any((entry.runs.get(RUN), entry.change) == (version.run_id, change) for entry in past):
        return
    served = [entry.version for entry in past if entry.change != Change.REJECTED]
    replaced = previous.version if previous else served[-1] if served else None
    gate = version.tags.get(GATE_TAG, "")
    why = "it passed the gate" if change == Change.PROMOTED else gate.removeprefix("rejected: ")
    told = {**(runs or {}), RUN: version.run_id}
    record(paths, Entry(now(), change, version.version, replaced, who, why, figures_of(version), told))


def figures_of(version: TrackedVersion) -> dict[str, float]:
    """Gives the figures of the gate, by rule, as the version bears them."""
    found: dict[str, float] = json.loads(version.tags.get(FIGURES_TAG, "{}"))
    return found
