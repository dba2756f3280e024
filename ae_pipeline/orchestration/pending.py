"""Which days still lack a stage's result."""

from pathlib import Path

from ae_pipeline.bundle import ModelBundle
from ae_pipeline.config import PipelineConfig
from ae_pipeline.ingestion.contract import contract_in_force
from ae_pipeline.latents.publish import stale_days
from ae_pipeline.latents.read import published_days
from ae_pipeline.preprocessing.features import features_content, features_input_hash
from ae_pipeline.reports.ranking import is_reported
from ae_pipeline.storage import DatasetPaths, read_facts
from ae_pipeline.tracking import CHAMPION, Tracker


def days_without_features(config: PipelineConfig, paths: DatasetPaths) -> list[str]:
    """Lists days with raw rows whose features are missing or were built from other raw rows or settings."""
    if not paths.contract.exists():
        return []
    contract = contract_in_force(paths.contract, config)
    return [
        day
        for day in _days_in(paths.raw("_").parent)
        if config.has_day(day)
        and read_facts(paths.features(day)).get("input_hash") != features_input_hash(day, config, contract, paths)
    ]


def days_without_report(config: PipelineConfig, paths: DatasetPaths, tracker: Tracker) -> list[str]:
    """Lists days with features that are not published under the model that serves, or not reported on."""
    champion = tracker.version(config.dataset, CHAMPION)
    if champion is None:
        return []
    bundle = ModelBundle.load(tracker.bundle_folder(champion))
    days = list(features_content(config, paths))
    published = published_days(paths)
    unreported = [day for day in days if not is_reported(day, published.get(day), paths, config)]
    return sorted({*stale_days(days, paths, bundle, champion.version), *unreported})


def _days_in(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("[!.]*.parquet"))
