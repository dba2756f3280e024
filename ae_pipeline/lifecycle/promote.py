"""Which version serves: the decision that follows the gate, and a rollback by a person."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ae_pipeline.common.errors import PromotionError, TrainingError
from ae_pipeline.common.text import pluralize
from ae_pipeline.common.timestamps import now
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.features.build import features_content
from ae_pipeline.latents.publish import Publication, publish
from ae_pipeline.lifecycle.publish import copy_for_workers
from ae_pipeline.registry.bundles import load_bundle
from ae_pipeline.registry.history import Change, HistoryEntry, history, record
from ae_pipeline.registry.names import CHALLENGER, CHAMPION, GATE_TAG
from ae_pipeline.registry.store import Tracker
from ae_pipeline.registry.versions import TrackedVersion
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.paths import DatasetPaths

logger = logging.getLogger(__name__)

PASSED = "passed"
"""Value of the gate's tag on a version that keeps every rule."""

FIGURES_TAG = "gate.figures"
"""Version tag with the gate's figures, as JSON."""

RUN = "mlflow_run_id"
"""Key of a version's MLflow run in the history. Version numbers start from 1 again in another model store."""

DECIDED = "decided"
"""Version tag with the decision that followed the gate. Each version is decided once."""

_NOT_EVALUATED = "rejected: the gate never evaluated it"


@dataclass(frozen=True)
class Decision:
    """Which version serves, and why.

    Attributes:
        champion: The version that serves.
        promoted: Whether this decision promoted it.
        message: The reason, for a person.
    """

    champion: TrackedVersion
    promoted: bool
    message: str


def undecided_challenger(config: PipelineConfig, tracker: Tracker) -> TrackedVersion | None:
    """Return a challenger that the gate evaluated and nobody decided on, because the training run was interrupted.

    A rejected challenger does not wait for a decision where no other version can serve.
    """
    challenger = tracker.version(config.dataset, CHALLENGER)
    if challenger is None or DECIDED in challenger.tags or GATE_TAG not in challenger.tags:
        return None
    waits = challenger.tags[GATE_TAG] == PASSED or tracker.version(config.dataset, CHAMPION) is not None
    return challenger if waits else None


def decide(
    dataset: Dataset,
    tracker: Tracker,
    who: str,
    runs: Mapping[str, str] | None = None,
    on_rejected: Callable[[TrackedVersion, str], None] = lambda *_: None,
    confirm: Callable[[TrackedVersion], None] = lambda _: None,
) -> Decision:
    """Promote the challenger if it passed the gate. Each version is decided once, so a rollback is never undone.

    Args:
        dataset: Dataset whose history is extended.
        tracker: The model store.
        who: Person, schedule or sensor that asked for the decision; kept in the history.
        runs: Runs that the decision belongs to; kept in the history.
        on_rejected: Called with a rejected challenger and the message. It is called again if the process is killed
            before the decision is stored.
        confirm: Called with a version after the alias has moved to it, before the promotion is stored. An error, or an
            interrupt, takes the promotion back.

    Raises:
        TrainingError: No version can serve.
    """
    name, paths = dataset.name, dataset.paths
    challenger, champion = (tracker.version(name, alias) for alias in (CHALLENGER, CHAMPION))
    if champion is not None:
        _complete_promotion(paths, tracker, champion, challenger, who, runs)
    if challenger is None:
        if champion is None:
            raise TrainingError(f"{name!r} has no trained model; materialize autoencoder first")
        return Decision(champion, False, f"no challenger waits; version {champion.version} keeps serving")
    serves = champion is not None and champion.version == challenger.version
    if champion is not None and DECIDED in challenger.tags:
        return _decided_before(challenger, champion)
    gate = challenger.tags.get(GATE_TAG, _NOT_EVALUATED)
    if gate == PASSED or serves:
        if not serves:
            _promote(challenger, champion, tracker, confirm)
        previous = champion if not serves else None
        _record(paths, challenger, Change.PROMOTED, previous, who, runs)
        follows = f"replaces version {previous.version}" if previous else "serves"
        decision = Decision(challenger, not serves, f"version {challenger.version} passed the gate and {follows}")
        change = Change.PROMOTED
    elif champion is not None:
        _record(paths, challenger, Change.REJECTED, champion, who, runs)
        message = f"challenger {challenger.version} {gate}; version {champion.version} keeps serving"
        on_rejected(challenger, message)
        decision, change = Decision(champion, False, message), Change.REJECTED
    else:
        raise TrainingError(
            f"version {challenger.version} of {name!r} was {gate}, and no other version can serve; look at the checks "
            f"of autoencoder, then change the data or the settings and train a new model"
        )
    tracker.tag_version(name, challenger.version, {DECIDED: change.value})
    return decision


def _promote(
    challenger: TrackedVersion,
    champion: TrackedVersion | None,
    tracker: Tracker,
    confirm: Callable[[TrackedVersion], None],
) -> None:
    """Move the alias to the challenger, and back if the promotion is not confirmed."""
    try:
        tracker.set_alias(challenger.dataset, CHAMPION, challenger.version)
        confirm(challenger)
    except BaseException:
        tracker.set_alias(challenger.dataset, CHAMPION, champion.version if champion else None)
        raise


def _decided_before(challenger: TrackedVersion, champion: TrackedVersion) -> Decision:
    if challenger.version == champion.version:
        return Decision(champion, False, f"version {champion.version} serves already")
    earlier = f"challenger {challenger.version} was {challenger.tags[DECIDED]} before"
    return Decision(champion, False, f"{earlier}; version {champion.version} keeps serving until another is trained")


def _complete_promotion(
    paths: DatasetPaths,
    tracker: Tracker,
    champion: TrackedVersion,
    challenger: TrackedVersion | None,
    who: str,
    runs: Mapping[str, str] | None,
) -> None:
    """Record a promotion whose run was killed after it moved the alias, if another version was trained since."""
    if DECIDED in champion.tags or (challenger is not None and challenger.version == champion.version):
        return
    _record(paths, champion, Change.PROMOTED, None, who, runs)
    tracker.tag_version(champion.dataset, champion.version, {DECIDED: Change.PROMOTED.value})


def _record(
    paths: DatasetPaths,
    version: TrackedVersion,
    change: Change,
    previous: TrackedVersion | None,
    who: str,
    runs: Mapping[str, str] | None,
) -> None:
    """Add a decision to the history, unless a run that was killed afterwards added it already."""
    entries = history(paths)
    if any((entry.runs.get(RUN), entry.change) == (version.run_id, change) for entry in entries):
        return
    served = [entry.version for entry in entries if entry.change != Change.REJECTED]
    replaced = previous.version if previous else served[-1] if served else None
    gate = version.tags.get(GATE_TAG, "")
    why = "it passed the gate" if change == Change.PROMOTED else gate.removeprefix("rejected: ")
    all_runs = {**(runs or {}), RUN: version.run_id}
    entry = HistoryEntry(
        at=now(),
        change=change,
        version=version.version,
        previous=replaced,
        who=who,
        why=why,
        figures=gate_figures(version),
        runs=all_runs,
    )
    record(paths, entry)


def gate_figures(version: TrackedVersion) -> dict[str, float]:
    """Return the figures of the gate that a version is tagged with, by rule."""
    figures: dict[str, float] = json.loads(version.tags.get(FIGURES_TAG, "{}"))
    return figures


@dataclass(frozen=True, kw_only=True)
class RollbackRequest:
    """A request to let another version serve.

    Attributes:
        version: Version that shall serve.
        why: Reason, kept in the history.
        who: Person who asks, kept in the history.
        even_if_rejected: Whether a version that the gate rejected may serve.
    """

    version: int
    why: str
    who: str
    even_if_rejected: bool = False


@dataclass(frozen=True)
class Rollback:
    """Result of a rollback.

    Attributes:
        version: Version that serves.
        publication: Publication of its table.
        message: The result, for a person.
    """

    version: TrackedVersion
    publication: Publication
    message: str


def roll_back(
    dataset: Dataset,
    tracker: Tracker,
    request: RollbackRequest,
    origin: Mapping[str, str],
    require_active: Callable[[], None] = lambda: None,
) -> Rollback:
    """Let a version serve: score all days that it lacks, then move alias and table together.

    Both move at the end, one right after the other, when every row is written and only the commit can still fail. If it
    fails, the next publication publishes the days under the version that serves.

    Args:
        dataset: Dataset to roll back.
        tracker: The model store.
        request: Which version, why, and on whose behalf.
        origin: Runs that the rollback belongs to.
        require_active: Called before anything moves; raises an error if the rollback was cancelled meanwhile.

    Raises:
        PromotionError: The version does not exist, the gate rejected it, or the reason is missing.
        StorageError: The bundle of the version is gone.
        BundleError: The bundle cannot be read, or cannot score the present features.
    """
    target = rollback_target(dataset, tracker, request)
    bundle = load_bundle(tracker, target)
    runs = {**origin, RUN: target.run_id}
    days = list(features_content(dataset))

    def move() -> None:
        require_active()
        _move_alias(dataset, tracker, target, request, runs)

    publication = publish(
        days,
        dataset,
        bundle,
        target.version,
        runs,
        before_commit=move,
        bundle_folder=copy_for_workers(dataset, tracker, target, bundle),
    )
    scored = sum(day.built for day in publication.days)
    table = f"table version {publication.table_version}" if publication.committed else "the table did not change"
    message = (
        f"version {target.version} serves; its table has {pluralize(len(publication.days), 'day')}, {scored:,} of them "
        f"scored now; {table}"
    )
    return Rollback(target, publication, message)


def rollback_target(dataset: Dataset, tracker: Tracker, request: RollbackRequest) -> TrackedVersion:
    """Return the version that shall serve, before anything is done.

    Args:
        dataset: Dataset to roll back.
        tracker: The model store.
        request: Which version, why, and on whose behalf.

    Raises:
        PromotionError: The version does not exist, the gate rejected it, or the reason is missing.
    """
    if not request.why.strip():
        raise PromotionError("a rollback needs a reason, which the history keeps; set why")
    versions = {version.version: version for version in tracker.versions(dataset.name)}
    if request.version not in versions:
        choices = ", ".join(map(str, sorted(versions))) or "none: train one first"
        raise PromotionError(
            f"{dataset.name!r} has no version {request.version} that can serve; choose among {choices}"
        )
    target = versions[request.version]
    gate = target.tags.get(GATE_TAG, _NOT_EVALUATED)
    if gate != PASSED and not request.even_if_rejected:
        raise PromotionError(
            f"version {target.version} of {dataset.name!r} was {gate}; choose another, or set even_if_rejected "
            "(`--even-if-rejected` on the command line)"
        )
    return target


def _move_alias(
    dataset: Dataset, tracker: Tracker, target: TrackedVersion, request: RollbackRequest, runs: Mapping[str, str]
) -> None:
    """Let the version serve and add the rollback to the history, unless an interrupted rollback did both already."""
    champion, challenger = (tracker.version(dataset.name, alias) for alias in (CHAMPION, CHALLENGER))
    served = [entry for entry in history(dataset.paths) if entry.change != Change.REJECTED]
    serves = champion is not None and champion.version == target.version
    # A rollback that was killed between the alias and the history is completed here.
    if serves and served and served[-1].version == target.version:
        return
    if challenger is not None and DECIDED not in challenger.tags:
        # A challenger that waits for its decision must not undo the rollback.
        chosen = "chosen" if challenger.version == target.version else "passed over"
        tracker.tag_version(dataset.name, challenger.version, {DECIDED: f"{chosen} by a rollback"})
    tracker.set_alias(dataset.name, CHAMPION, target.version)
    last = champion.version if champion and not serves else served[-1].version if served else None
    entry = HistoryEntry(
        at=now(),
        change=Change.ROLLED_BACK,
        version=target.version,
        previous=last,
        who=request.who,
        why=request.why,
        figures=gate_figures(target),
        runs=runs,
    )
    record(dataset.paths, entry)
    logger.info(f"version {target.version} replaces version {last}")
