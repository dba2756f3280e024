"""Publication of latents and scores."""

import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from open_data_contract_standard.model import OpenDataContractStandard

from ae_pipeline.common.errors import StorageError, TrainingError
from ae_pipeline.common.text import pluralize
from ae_pipeline.config.display import noun_of_rows
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.engine.mapping import Engine, selected_engine
from ae_pipeline.gate.results import GateResult
from ae_pipeline.gate.rules import calibration_holds, latents_not_collapsed
from ae_pipeline.latents.data_contract import build_contract
from ae_pipeline.latents.files import TableFiles
from ae_pipeline.latents.images import publish_images
from ae_pipeline.latents.publish import Publication, publish
from ae_pipeline.latents.read import current_files, latents_of, model_version_of, published_days, rows_published
from ae_pipeline.latents.table_update import LatentDay
from ae_pipeline.lifecycle.ingest import rows_on_days
from ae_pipeline.lifecycle.newest_day import newest_filling_day
from ae_pipeline.registry.bundles import load_bundle, verified_folder
from ae_pipeline.registry.names import CHAMPION
from ae_pipeline.registry.store import Tracker
from ae_pipeline.registry.versions import TrackedVersion
from ae_pipeline.reports.labels import normal_scores
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.files import make_folder
from ae_pipeline.storage.parquet import read_facts

logger = logging.getLogger(__name__)

_COLLAPSE_DAYS = 31
"""Newest days of a publication whose latents are checked for collapse."""

_KEPT_COPY_SECONDS = 86_400
"""Age up to which the copy of an earlier bundle stays, because another publication may use it."""

_COLLAPSE_ROWS = 30
"""Rows below which the variance of latents says nothing."""


@dataclass(frozen=True, kw_only=True)
class PublishedLatents:
    """Result of the publication of days.

    Attributes:
        version: Version whose latents and scores these are.
        bundle: Bundle of the version.
        publication: What was written and committed.
        days: Days that were asked for.
        rows: Rows in the table on all days of the publication.
        expected_rows: Rows of features on the same days.
        collapse: Whether enough latent columns vary.
        calibration: Whether the newest scores are distributed like those of the calibration days.
        contract: Data contract of the table.
        files: Files of the table.
    """

    version: TrackedVersion
    bundle: ModelBundle
    publication: Publication
    days: tuple[LatentDay, ...]
    rows: int
    expected_rows: int
    collapse: GateResult
    calibration: GateResult
    contract: OpenDataContractStandard
    files: TableFiles

    @property
    def flagged(self) -> int:
        """Flagged rows on the days that were asked for."""
        return sum(day.flagged for day in self.days)

    @property
    def is_collapsed(self) -> bool:
        """Whether latents collapsed; never of few rows."""
        return not self.collapse.passed and self.rows >= _COLLAPSE_ROWS


def load_champion(dataset: str, tracker: Tracker) -> tuple[TrackedVersion, ModelBundle]:
    """Load the model that serves.

    Raises:
        TrainingError: No version serves.
    """
    champion = tracker.version(dataset, CHAMPION)
    if champion is None:
        raise TrainingError(f"{dataset!r} has no champion; materialize autoencoder and champion first")
    return champion, load_bundle(tracker, champion)


def load_table_model(dataset: Dataset, tracker: Tracker) -> tuple[TrackedVersion, ModelBundle]:
    """Load the model that scored the published table.

    Raises:
        StorageError: Nothing was published yet.
    """
    if not current_files(dataset.paths):
        raise StorageError(f"nothing was published for {dataset.name!r}; materialize latent_features first")
    version = tracker.version_number(dataset.name, model_version_of(dataset.paths))
    return version, load_bundle(tracker, version)


def copy_for_workers(dataset: Dataset, tracker: Tracker, version: TrackedVersion, bundle: ModelBundle) -> Path | None:
    """Copy a bundle into the data folder, which all workers of the engine see, and return the folder of the copy.

    Returns:
        None if the engine is threads, because this process then does the work.

    Raises:
        BundleError: A byte of the bundle has changed since it was registered.
    """
    if selected_engine() is Engine.THREADS:
        return None
    folder = dataset.paths.cache / "bundles" / dataset.name / bundle.fingerprint
    if not folder.exists():
        make_folder(folder.parent)
        for earlier in folder.parent.iterdir():
            if earlier.stat().st_mtime < time.time() - _KEPT_COPY_SECONDS:
                shutil.rmtree(earlier, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent))
        shutil.copytree(verified_folder(tracker, version), temporary, dirs_exist_ok=True)
        temporary.rename(folder)
    return folder


def publish_latents(
    dataset: Dataset,
    tracker: Tracker,
    days: Sequence[str],
    origin: Mapping[str, str],
    *,
    before_commit: Callable[[], None] = lambda: None,
    accepts_removal: bool = False,
) -> PublishedLatents:
    """Score days under the champion and publish them in one commit.

    Args:
        dataset: Dataset to publish.
        tracker: The model store.
        days: Days to publish; their features must exist.
        origin: Runs that the publication belongs to.
        before_commit: Function to call directly before the commit; an error leaves the table unchanged.
        accepts_removal: Whether more than `max_removed_share` of the rows may leave the table.

    Raises:
        RemovalError: Too many rows would leave the table, so that it is unchanged.
    """
    config, paths = dataset.config, dataset.paths
    version, bundle = load_champion(dataset.name, tracker)
    runs = {**origin, "mlflow_run_id": version.run_id}
    publication = publish(
        sorted(days),
        dataset,
        bundle,
        version.version,
        runs,
        before_commit=before_commit,
        accepts_removal=accepts_removal,
        bundle_folder=copy_for_workers(dataset, tracker, version, bundle),
    )
    images = publish_images(paths, bundle, version.version)
    published = published_days(paths)
    recent = [published[day.day] for day in publication.days if day.rows][-_COLLAPSE_DAYS:]
    filling = newest_filling_day(dataset)
    # The newest days of the table, whichever days were asked for: as many as the model was calibrated on.
    newer = [entry for day, entry in published.items() if config.is_daily and day > bundle.window.days[-1]]
    newer = [entry for entry in newer if filling is None or entry.day != filling.day]
    scores = normal_scores(newer[-len(bundle.window.calibration) :], dataset)
    files = TableFiles(paths.latents)
    result = PublishedLatents(
        version=version,
        bundle=bundle,
        publication=publication,
        days=tuple(day for day in publication.days if day.day in set(days)),
        rows=rows_published([day.day for day in publication.days], paths),
        expected_rows=sum(int(read_facts(paths.features(day.day))["rows"]) for day in publication.days),
        collapse=latents_not_collapsed(latents_of(recent, paths, bundle.model.latent_dim)),
        calibration=calibration_holds(scores, bundle.calibration.scores, noun_of_rows(config)),
        contract=build_contract(config, bundle, version.version, files),
        files=files,
    )
    table = f"table version {publication.table_version}" if publication.committed else "the table did not change"
    rows = rows_on_days(result.rows, len(publication.days), config)
    logger.info(f"{rows} under model version {version.version}, {result.flagged:,} flagged; {table}")
    if images is not None:
        logger.info(f"{images['is_anomaly'].sum():,} of {pluralize(images.height, 'image')} flagged")
    return result
