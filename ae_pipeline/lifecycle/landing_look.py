"""A look at what has landed that is quick while nothing changes, so that a sensor can look often."""

import datetime as dt
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ae_pipeline.ingestion.fetch import days_to_fetch
from ae_pipeline.ingestion.landing_folder import landing_folder
from ae_pipeline.lifecycle.plan import Plan, plan_landing
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.hashing import hash_json

_FULL_LOOK_SECONDS = 900.0
"""Time after which everything is looked at, because damage of a staged copy does not show in its name."""

Fingerprint = tuple[int, int]
"""Number of files, and a hash of their names, sizes and times."""


@dataclass(frozen=True)
class _Idle:
    """What a dataset looked like when nothing was to do.

    Attributes:
        settings: Hash of configuration and day.
        files: Fingerprint of its files.
        plan: What the planner said.
        at: Time of the look, in seconds of `time.monotonic`.
    """

    settings: str
    files: Fingerprint
    plan: Plan
    at: float


_idle: dict[Path, _Idle] = {}
"""The last look of this process, by the ledger of the dataset."""


def look_at_landing(dataset: Dataset, today: dt.date, settle_seconds: float) -> Plan:
    """Return the plan of `plan_landing`; that of the last look where no file has changed since and nothing was to do.

    Args:
        dataset: Dataset to look at.
        today: Last day whose rows are accepted, unless the configuration names one.
        settle_seconds: Age from which a file does not grow any more.
    """
    began = time.time()
    settings = hash_json(
        [dataset.config.model_dump(mode="json"), today.isoformat(), dataset.config.today().isoformat()]
    )
    files, newest = _fingerprint(dataset)
    last = _idle.pop(dataset.paths.ledger, None)
    is_same = last is not None and (last.settings, last.files) == (settings, files)
    if last and is_same and time.monotonic() - last.at < _FULL_LOOK_SECONDS:
        if days_to_fetch(dataset, dt.datetime.now(dt.UTC)):
            return plan_landing(dataset, today, settle_seconds)
        _idle[dataset.paths.ledger] = last
        return last.plan
    plan = plan_landing(dataset, today, settle_seconds)
    if not plan.work and newest < began - settle_seconds:  # younger files may have changed twice within a time stamp
        _idle[dataset.paths.ledger] = _Idle(settings, files, plan, time.monotonic())
    return plan


def _fingerprint(dataset: Dataset) -> tuple[Fingerprint, float]:
    """Return a fingerprint of all files that decide what has to be read or ingested, and the time of the newest."""
    paths = dataset.paths
    count, digest, newest = 0, 0, 0
    folders = (landing_folder(dataset), paths.raw("_").parent, paths.features("_").parent)
    single = (paths.contract, *(path for path in paths.ledger.parent.glob("*") if path.is_file()))
    copies = (paths.staged("_").parent, paths.quarantined("_").parent)  # an added or removed file changes their time
    for name, size, modified in (*map(_state, map(str, (*single, *copies))), *_states(*map(str, folders))):
        count, digest, newest = count + 1, hash((digest, name, size, modified)), max(newest, modified)
    return (count, digest), newest / 1e9


def _states(*folders: str) -> Iterator[tuple[str, int, int]]:
    """Yield path, size and modification time in ns of everything in some folders. Links to folders are not followed."""
    for folder in folders:
        yield _state(folder)
        try:
            entries = os.scandir(folder)
        except OSError:
            continue
        with entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from _states(entry.path)
                else:
                    yield _state(entry.path)


def _state(path: str) -> tuple[str, int, int]:
    try:
        status = os.stat(path)  # noqa: PTH116 - a path object for each of 200,000 files takes a second
    except OSError:
        return path, -1, 0
    return path, 0 if stat.S_ISDIR(status.st_mode) else status.st_size, status.st_mtime_ns
