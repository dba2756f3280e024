"""Which days still lack a stage's result."""

import datetime as dt
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.features.build import features_content, features_input_hash
from ae_pipeline.ingestion.contract import contract_in_force
from ae_pipeline.ingestion.landing import last_ingest
from ae_pipeline.latents.publish import stale_days
from ae_pipeline.latents.read import published_days
from ae_pipeline.registry.names import CHAMPION
from ae_pipeline.registry.store import Tracker
from ae_pipeline.reports.ranking import cut_short, is_reported
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.parquet import read_facts
from ae_pipeline.storage.paths import ALL_ROWS


def days_to_ingest(dataset: Dataset) -> list[str]:
    """Lists days whose raw rows or features are not what the files read so far give."""
    _config, _paths = dataset.config, dataset.paths
    intake = last_ingest(dataset)
    if intake is None:
        return []
    return sorted({*intake.pending_days(dataset), *days_without_features(dataset)})


def contiguous(days: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Joins neighbouring days to ranges, each of which one run materializes."""
    if list(days) == [ALL_ROWS]:
        yield ALL_ROWS, ALL_ROWS
        return
    start = previous = None
    for day in map(dt.date.fromisoformat, days):
        if start is None or previous is None:
            start = day
        elif day - previous > dt.timedelta(days=1):
            yield start.isoformat(), previous.isoformat()
            start = day
        previous = day
    if start and previous:
        yield start.isoformat(), previous.isoformat()


def days_without_features(dataset: Dataset) -> list[str]:
    """Lists days with raw rows whose features are missing or were built from other raw rows or settings."""
    config, paths = dataset.config, dataset.paths
    if not paths.contract.exists():
        return []
    contract = contract_in_force(paths.contract, config)
    return [
        day
        for day in _days_in(paths.raw("_").parent)
        if config.has_day(day)
        and read_facts(paths.features(day)).get("input_hash") != features_input_hash(day, dataset, contract)
    ]


def days_without_report(dataset: Dataset, tracker: Tracker) -> list[str]:
    """Lists days with features that are not published under the model that serves, or not reported on."""
    config, paths = dataset.config, dataset.paths
    champion = tracker.version(config.dataset, CHAMPION)
    if champion is None:
        return []
    fingerprint = _fingerprint(tracker.bundle_folder(champion))
    days = list(features_content(dataset))
    published = published_days(paths)
    begun = cut_short(paths)
    unreported = [day for day in days if day in begun or not is_reported(day, published.get(day), dataset)]
    return sorted({*stale_days(days, paths, fingerprint, champion.version), *unreported})


@lru_cache(maxsize=16)
def _fingerprint(folder: Path) -> str:
    """Gives the fingerprint of a registered bundle, which never changes."""
    return ModelBundle.load(folder).fingerprint


def _days_in(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("[!.]*.parquet"))
