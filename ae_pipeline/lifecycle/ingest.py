"""Ingestion and features of days."""

import datetime as dt
import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from ae_pipeline.common.errors import PipelineError, SchemaError, StorageError
from ae_pipeline.common.progress import ProgressLogger
from ae_pipeline.common.text import abbreviate, plural, pluralize
from ae_pipeline.config.display import count_rejected, noun_of_rows
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.engine.mapping import engine_map
from ae_pipeline.features.build import build_features_day
from ae_pipeline.ingestion.contract import contract_in_force
from ae_pipeline.ingestion.fetch import fetch
from ae_pipeline.ingestion.landing import IngestResult, ingest, last_ingest, unread_files
from ae_pipeline.ingestion.raw import DayResult, count_duplicates, write_raw_days
from ae_pipeline.lifecycle.alerts import alert_broken_contract, post_due_and_show, raise_and_show
from ae_pipeline.monitoring.alerts import Alert, AlertEvent
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.parquet import read_facts
from ae_pipeline.storage.session import save_landed

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RawDays:
    """Raw rows of the days of a run.

    Attributes:
        days: Result of each day.
        files_read: Number of files that were read now.
        refused: Reason of each landed file that cannot be used.
        quarantined: Rows in quarantine by rule, of the files with rows on these days.
        rows_of_files: All rows of these files, in quarantine or not.
        duplicates: Rows whose identity occurs twice.
        waiting: Days that other files changed and that another run must build.
    """

    days: tuple[DayResult, ...]
    files_read: int
    refused: Mapping[str, str]
    quarantined: Mapping[str, int]
    rows_of_files: int
    duplicates: int
    waiting: tuple[str, ...]

    @property
    def rows(self) -> int:
        """Rows on these days."""
        return sum(day.rows for day in self.days)

    @property
    def quarantined_rows(self) -> int:
        """Rows in quarantine."""
        return sum(self.quarantined.values())

    @property
    def quarantine_share(self) -> float:
        """Share of the rows of the files that are in quarantine."""
        return self.quarantined_rows / max(self.rows_of_files, 1)


@dataclass(frozen=True)
class FeatureDays:
    """Features of the days of a run.

    Attributes:
        days: Result of each day.
        raw_rows: Raw rows of the same days.
    """

    days: tuple[DayResult, ...]
    raw_rows: int

    @property
    def rows(self) -> int:
        """Rows on these days."""
        return sum(day.rows for day in self.days)


def read_landed_files(dataset: Dataset, alert_key: str, run_id: str, *, accepts_removal: bool = False) -> IngestResult:
    """Fetch what is due, read new and changed landed files, and raise an alert if one breaks the schema contract.

    Args:
        dataset: Dataset whose files landed.
        alert_key: Key of the alert if a file has other columns than the contract.
        run_id: Dagster run that reads them.
        accepts_removal: Whether more than `max_removed_share` of the rows may go.

    Raises:
        RemovalError: Too many rows would go, so that nothing was changed.
        SchemaError: A file has other columns than the contract. All other files are read first.
        SourceError: The query or the function of the dataset failed. What landed before is read first.
    """
    post_due_and_show(dataset)
    try:
        result = _fetch_and_ingest(dataset, accepts_removal)
    except SchemaError as error:
        # The message is the subject: another attempt has the same, whichever files landed beside it.
        event, message = AlertEvent.CONTRACT_BROKEN, str(error)
        alert = Alert(event=event, key=alert_key, message=message, run_id=run_id, subjects=(message,))
        raise_and_show(alert, dataset)
        raise
    alert_broken_contract(result.ledger, None, dataset, run_id, result.read)
    read = {name: result.ledger.files[name] for name in result.read}
    refused = {name: entry.refused for name, entry in read.items() if entry.refused}
    days = {day for entry in read.values() for day in entry.days}
    for name, reason in sorted(refused.items()):
        logger.warning(f"{name} is refused: {reason}")
    accepted = pluralize(len(read) - len(refused), "file")
    more = f"; {pluralize(len(refused), 'file')} refused" if refused else ""
    on_days = (
        f", with {plural(noun_of_rows(dataset.config))} on {pluralize(len(days), 'day')}"
        if dataset.config.is_daily
        else ""
    )
    logger.info(f"{accepted} read{on_days}{more}")
    return result


def build_raw_days(
    dataset: Dataset,
    days: Sequence[str],
    run_id: str,
    *,
    read_landed: bool,
    accepts_removal: bool = False,
    is_side_by_side: bool = False,
) -> RawDays:
    """Read what landed and write the raw rows of days.

    Args:
        dataset: Dataset to work on.
        days: Days to build, sorted.
        run_id: Dagster run, for alerts.
        read_landed: Whether to read new landed files first. If an earlier run has read them, a file that cannot be read
            does not block the days of the others.
        accepts_removal: Whether more than `max_removed_share` of the rows may go.
        is_side_by_side: Whether other runs build other days at the same time, so that this one may not read files.

    Raises:
        StorageError: Nothing was read so far, and this run may not read.
    """
    config, paths = dataset.config, dataset.paths
    known = None if read_landed else last_ingest(dataset)
    if is_side_by_side and known is None:
        raise StorageError(
            f"no landed file of {dataset.name!r} was read so far; run the job {dataset.name}_intake first, because a "
            "run beside others cannot read"
        )
    result = known or _fetch_and_ingest(dataset, accepts_removal)
    with closing(write_raw_days(days, result, paths)) as written:
        built = tuple(next(written) for _ in ProgressLogger(logger).over(days, "days of raw rows written"))
    quarantined = result.ledger.quarantined(days)
    waiting = tuple(day for day in result.pending_days(dataset) if day not in set(days))
    # A row that moved to another day occurs twice until the day that it left is rebuilt, maybe by another run.
    duplicates = count_duplicates(sorted({*days, *result.moved} - set(waiting)), paths)
    raw = RawDays(
        days=built,
        files_read=len(result.read),
        refused=result.ledger.refused,
        quarantined=quarantined,
        rows_of_files=result.ledger.rows_beside(days) + sum(quarantined.values()),
        duplicates=duplicates,
        waiting=waiting,
    )
    logger.info(
        f"{rows_on_days(raw.rows, len(days), config)}, {_written(built, config)}; "
        f"{count_rejected(raw.quarantined_rows, config)} in quarantine"
    )
    if waiting:
        logger.info(f"{pluralize(len(waiting), 'more day')} wait for a run of their own: {abbreviate(waiting)}")
    alert_broken_contract(result.ledger, days, dataset, run_id)
    return raw


def build_feature_days(dataset: Dataset, days: Sequence[str]) -> FeatureDays:
    """Write the features of days.

    Args:
        dataset: Dataset to work on.
        days: Days to build, sorted; their raw rows must exist.

    Raises:
        StorageError: No landed file was read so far, or a day has no raw rows.
    """
    if not dataset.paths.contract.exists():
        raise StorageError(
            f"raw_data of {dataset.name!r} has no partition {days[0]}, because no landed file was read so far; "
            "materialize raw_data first"
        )
    contract = contract_in_force(dataset.paths.contract, dataset.config)
    build = partial(build_features_day, dataset=dataset, contract=contract)
    with closing(engine_map(build, days)) as written:
        built = tuple(next(written) for _ in ProgressLogger(logger).over(days, "days of features written"))
    raw_rows = sum(int(read_facts(dataset.paths.raw(day))["rows"]) for day in days)
    features = FeatureDays(built, raw_rows)
    logger.info(f"{rows_on_days(features.rows, len(days), dataset.config)}, {_written(built, dataset.config)}")
    return features


def rows_on_days(rows: int, days: int, config: PipelineConfig) -> str:
    """Return how many rows there are, and on how many days if the dataset has event time."""
    counted = pluralize(rows, noun_of_rows(config))
    return f"{counted} on {pluralize(days, 'day')}" if config.is_daily else counted


def _written(built: Sequence[DayResult], config: PipelineConfig) -> str:
    written = sum(day.built for day in built)
    if config.is_daily:
        return f"{written:,} of them written now"
    return "written now" if written else "up to date"


def _fetch_and_ingest(dataset: Dataset, accepts_removal: bool) -> IngestResult:
    """Fetch what is due, and read what landed. A source that fails does not hold up the files that have landed."""
    failure: PipelineError | None = None
    try:
        fetch(dataset, dt.datetime.now(dt.UTC))
    except PipelineError as error:
        failure = error
    finally:  # an error of any kind leaves files whose fetch is noted as done
        if dataset.config.source.is_fetched:
            save_landed(dataset.paths)
    today = dataset.config.today()
    if failure and not unread_files(dataset, today):
        raise failure
    result = ingest(dataset, today, accepts_removal=accepts_removal)
    if failure:
        raise failure
    return result
