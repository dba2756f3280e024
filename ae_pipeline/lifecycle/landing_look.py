"""A look at what has landed that is quick while nothing changes, so that a sensor can look often."""

import datetime as dt
import os
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ae_pipeline.config.source import SourceConfig
from ae_pipeline.ingestion.fetch import days_to_fetch
from ae_pipeline.ingestion.landing_folder import is_read, landing_folder
from ae_pipeline.lifecycle.plan import Plan, plan_landing, still_being_written
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.hashing import hash_json

_FULL_LOOK_SECONDS = 900.0
"""Time after which everything is looked at, because damage of a staged copy does not show in its name."""

_FOLDER, _MISSING = -1, -2
"""Sizes that stand for a folder, and for a link to nothing."""

_States = dict[int, int]
"""Hash of size and modification time of each file in the landing folder, by the hash of its path."""


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What the files of a dataset looked like.

    Attributes:
        rest: Hash of names, sizes and times of the files that the pipeline has written.
        landed: States of the files in the landing folder.
        newest: Time of the newest file or folder, in ns since 1970.
        changed: Files in the landing folder that are new or changed since the last look, below the folder, with the
            time of their last change in ns since 1970.
    """

    rest: int
    landed: _States
    newest: int
    changed: Mapping[str, int]


@dataclass(frozen=True)
class _Idle:
    """What a dataset looked like when nothing was to do.

    Attributes:
        settings: Hash of configuration and day.
        seen: Its files.
        plan: What the planner said.
        at: Time of the full look, in seconds of `time.monotonic`.
    """

    settings: str
    seen: _Seen
    plan: Plan
    at: float


_idle: dict[Path, _Idle] = {}
"""The last look of this process, by the ledger of the dataset."""


def forget_looks() -> None:
    """Forget the looks of this process, so that the next one is as in a new process."""
    _idle.clear()


def look_at_landing(dataset: Dataset, today: dt.date, settle_seconds: float) -> Plan:
    """Return the plan of `plan_landing`, but look at everything only if it may have work.

    It has none where nothing was to do at the last look, and since then no file has changed but landed ones that are
    not read or are still being written.

    Args:
        dataset: Dataset to look at.
        today: Last day whose rows are accepted, unless the configuration names one.
        settle_seconds: Age from which a file does not grow any more.
    """
    began = time.time()
    settings = hash_json(
        [dataset.config.model_dump(mode="json"), today.isoformat(), dataset.config.today().isoformat()]
    )
    last = _idle.pop(dataset.paths.ledger, None)
    seen = _look(dataset, last.seen.landed if last else {})
    is_recent = last is not None and time.monotonic() - last.at < _FULL_LOOK_SECONDS
    if last and is_recent and (last.settings, last.seen.rest) == (settings, seen.rest):
        plan = _quick_plan(dataset, last, seen, began - settle_seconds)
        if plan and not days_to_fetch(dataset, dt.datetime.now(dt.UTC)):
            is_settled = plan is last.plan and seen.newest / 1e9 < began - settle_seconds
            _idle[dataset.paths.ledger] = replace(last, seen=seen) if is_settled else last
            return plan
    plan = plan_landing(dataset, today, settle_seconds)
    if not plan.work and seen.newest / 1e9 < began - settle_seconds:  # younger ones may change twice in a time stamp
        _idle[dataset.paths.ledger] = _Idle(settings, seen, plan, time.monotonic())
    return plan


def _quick_plan(dataset: Dataset, last: _Idle, seen: _Seen, settled_before: float) -> Plan | None:
    """Return the plan after changes in the landing folder alone, or None if only a full look can tell."""
    config = dataset.config
    is_removed = not last.seen.landed.keys() <= seen.landed.keys()
    if not seen.changed and not is_removed:
        return last.plan
    if (
        is_removed
        or config.images  # metadata and masks beside an image decide what it gives
        or config.source.pattern != SourceConfig().pattern
        or len(seen.landed) > config.source.limits.files
    ):
        return None
    folder = landing_folder(dataset)
    unread = {name: at for name, at in seen.changed.items() if is_read(name, folder, config)}
    if not unread:
        return last.plan
    if min(unread.values()) / 1e9 > settled_before:
        return Plan((), still_being_written(unread))
    return None


def _look(dataset: Dataset, known: _States) -> _Seen:
    """Return what all files look like that decide what has to be read or ingested.

    Args:
        dataset: Dataset to look at.
        known: States of the landed files at the last look.
    """
    paths, landing = dataset.paths, str(landing_folder(dataset))
    folders = (paths.raw("_").parent, paths.features("_").parent)
    single = (paths.contract, *(path for path in paths.ledger.parent.glob("*") if path.is_file()))
    copies = (paths.staged("_").parent, paths.quarantined("_").parent)  # an added or removed file changes their time
    rest, newest = 0, 0
    for state in (*map(_state, map(str, (*single, *copies))), *_states(*map(str, folders))):
        rest, newest = hash((rest, state)), max(newest, state[2])
    landed: _States = {}
    changed: dict[str, int] = {}
    start = len(landing) + 1
    for path, size, modified in _states(landing):
        newest = max(newest, modified)
        if size == _FOLDER:
            continue
        key, value = hash(path), hash((size, modified))
        landed[key] = value
        if known.get(key) != value:
            changed[path[start:]] = modified
    return _Seen(rest=rest, landed=landed, newest=newest, changed=changed)


def _states(*folders: str) -> Iterator[tuple[str, int, int]]:
    """Yield path, size and modification time in ns of everything in some folders. Links to folders are not followed."""
    pending = [*reversed(folders)]
    while pending:
        folder = pending.pop()
        yield _state(folder)
        try:
            entries = os.scandir(folder)
        except OSError:
            continue
        with entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                else:
                    yield _state(entry.path)


def _state(path: str) -> tuple[str, int, int]:
    try:
        status = os.stat(path)  # noqa: PTH116 - a path object for each of 200,000 files takes a second
    except OSError:
        return path, _MISSING, 0
    # As in `unread_files`: a file that is dated into the future counts from its last change.
    at = min(status.st_mtime_ns, status.st_ctime_ns)
    return path, _FOLDER if stat.S_ISDIR(status.st_mode) else status.st_size, at
