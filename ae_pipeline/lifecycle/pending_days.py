"""Days whose raw rows or features are out of date."""

from pathlib import Path

from ae_pipeline.config.days import has_come
from ae_pipeline.features.build import features_input_hash
from ae_pipeline.ingestion.contract import contract_in_force
from ae_pipeline.ingestion.landing import Landing, last_ingest
from ae_pipeline.ingestion.removal import has_unread_contract
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.parquet import read_facts


def days_to_ingest(dataset: Dataset, landing: Landing | None = None) -> list[str]:
    """Return days whose raw rows or features differ from what the files read so far give.

    Args:
        dataset: Dataset to look at.
        landing: What has landed; looked up by default.
    """
    last = last_ingest(dataset, landing)
    if last is None or has_unread_contract(last.contract, dataset):
        return []  # what the files give under an edited contract is not known before they are read
    days = {*last.pending_days(dataset), *_days_without_features(dataset)}
    return sorted(day for day in days if has_come(day, dataset.config))


def _days_without_features(dataset: Dataset) -> list[str]:
    """Return days with raw rows whose features are missing or come from other raw rows or settings."""
    config, paths = dataset.config, dataset.paths
    contract = contract_in_force(paths.contract, config)
    return [
        day
        for day in _days_in(paths.raw("_").parent)
        if config.has_day(day)
        and read_facts(paths.features(day)).get("input_hash") != features_input_hash(day, dataset, contract)
    ]


def _days_in(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("[!.]*.parquet"))
