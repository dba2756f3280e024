"""Runs that build ranges of days of one dataset at the same time: which they are, and the pool that limits them.

Such a run holds the lock of the dataset together with its like. It builds raw rows and features of its own days, and
changes nothing else. All other runs hold the lock alone.
"""

import os
from collections.abc import Iterable
from contextlib import suppress

import dagster as dg
from sqlalchemy.exc import IntegrityError

from ae_pipeline.common.errors import ConfigError
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.orchestration.tags import DATASET_TAG, READ_TAG, SIDE_BY_SIDE_TAG

EXECUTOR_VARIABLE, MULTIPROCESS = "AE_PIPELINE_EXECUTOR", "multiprocess"

_BUILT_BY_DAY = ("raw_data", "features")


def pool_of_days(dataset: str) -> str:
    """Return the pool of the assets that ranges of days are built of, if several may be built at once."""
    return f"{dataset}/days"  # no name of a dataset has a slash


def pool_of(config: PipelineConfig, asset: str) -> str:
    """Return the pool of an asset: that of the dataset, or one with room for several ranges."""
    return pool_of_days(config.dataset) if config.scale.runs_at_once > 1 and asset in _BUILT_BY_DAY else config.dataset


def require_whole_runs(config: PipelineConfig) -> None:
    """Check that a run is one process if several may work at once: only then does it hold the lock until its end.

    Raises:
        ConfigError: Each step would be a process, and ranges could work between two steps of a training.
    """
    if config.scale.runs_at_once > 1 and os.environ.get(EXECUTOR_VARIABLE) == MULTIPROCESS:
        raise ConfigError(
            f"{config.dataset!r} has scale.runs_at_once={config.scale.runs_at_once}, which needs runs that are one "
            f"process; unset {EXECUTOR_VARIABLE}, or remove runs_at_once"
        )


def is_side_by_side(run: dg.DagsterRun) -> bool:
    """Return whether a run may work at the same time as others on its dataset.

    A run that reads landed files changes the ledger, and a job with further assets changes more. Both work alone.
    """
    job = f"{run.tags.get(DATASET_TAG)}_ingest"
    return SIDE_BY_SIDE_TAG in run.tags and READ_TAG in run.tags and run.job_name == job


def set_pool_limits(configs: Iterable[PipelineConfig], instance: dg.DagsterInstance) -> None:
    """Let the pools of datasets have their sizes. Dagster enforces a pool only after it has seen it."""
    storage = instance.event_log_storage
    if not storage.supports_global_concurrency_limits:
        return
    limits = {}
    for config in configs:
        limits[config.dataset] = 1
        if config.scale.runs_at_once > 1:
            limits[pool_of_days(config.dataset)] = config.scale.runs_at_once
    known = {pool.name: pool.limit for pool in storage.get_pool_limits() if not pool.from_default}
    for name, limit in limits.items():
        if known.get(name) != limit:
            with suppress(IntegrityError):  # another process adds it at the same time
                storage.set_concurrency_slots(name, limit)
