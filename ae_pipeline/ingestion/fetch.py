"""Fetch rows from a query or a Python function into the landing folder, one Parquet file for each day.

A state file records when each day was fetched. A day is fetched if it was never fetched, if its file is gone, or if it
was younger than `source.refresh_days` at its last fetch. A file is replaced only if its rows differ.
"""

import datetime as dt
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ae_pipeline.common.errors import SourceError, StorageError
from ae_pipeline.common.progress import ProgressLogger
from ae_pipeline.common.text import abbreviate, pluralize
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.ingestion.callables import call, load_callable
from ae_pipeline.ingestion.landing_folder import landing_folder
from ae_pipeline.ingestion.query import open_query
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.files import write_text
from ae_pipeline.storage.hashing import hash_json, hash_table
from ae_pipeline.storage.parquet import read_facts, write_parquet
from ae_pipeline.storage.paths import ALL_ROWS
from ae_pipeline.storage.session import load_landed

_ORIGIN, _ROWS_HASH = "fetched_by", "rows_hash"
"""Footer keys of a fetched file: its source, and the hash of its rows in any order."""

_WRITTEN, _UNCHANGED, _EMPTY = "written", "unchanged", "without rows"

_SAVE_SECONDS = 5.0
"""Seconds between two writes of the state file during a long fetch."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FetchedDay:
    """The last fetch of a day.

    Attributes:
        on: ISO date of the fetch, in the time zone of the dataset.
        rows: Number of rows.
    """

    on: str
    rows: int


@dataclass(frozen=True)
class FetchState:
    """What a source has given so far.

    Attributes:
        source: Hash of the settings of the source. Days of other settings do not count.
        at: ISO time of the last complete fetch, or an empty text.
        days: Last fetch of each day, or of `ALL_ROWS`.
    """

    source: str
    at: str = ""
    days: dict[str, FetchedDay] = field(default_factory=dict)

    @classmethod
    def load(cls, dataset: Dataset) -> "FetchState":
        """Read the state of a dataset. It is empty if nothing was fetched yet from the source as configured now."""
        path, source = dataset.paths.fetched, _source_hash(dataset.config)
        if not path.exists():
            return cls(source)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["source"] != source:
                return cls(source)
            return cls(source, content["at"], {day: FetchedDay(**entry) for day, entry in content["days"].items()})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StorageError(
                f"the state file {path} cannot be read ({error}); delete it to fetch all days again"
            ) from error

    def save(self, dataset: Dataset) -> None:
        """Write the state file atomically."""
        write_text(dataset.paths.fetched, json.dumps(asdict(self), indent=0))


def days_to_fetch(dataset: Dataset, now: dt.datetime, fetched_since: dt.datetime | None = None) -> list[str]:
    """Return the days to fetch now, sorted, or `ALL_ROWS` alone. There are none without a query or a callable.

    Args:
        dataset: Dataset to look at.
        now: Current time.
        fetched_since: Return no days if a fetch is at least as new; by default `source.check_minutes` before now.
    """
    config = dataset.config
    if not config.source.is_fetched:
        return []
    state = FetchState.load(dataset)
    newest = fetched_since or now - dt.timedelta(minutes=config.source.check_minutes)
    if state.at and dt.datetime.fromisoformat(state.at) >= newest:
        return []
    return _due_days(dataset, state, now)


def _due_days(dataset: Dataset, state: FetchState, now: dt.datetime) -> list[str]:
    config = dataset.config
    if config.start is None:
        return [ALL_ROWS]
    folder, today = landing_folder(dataset), now.astimezone(config.zone).date()
    last = min(config.end or today, today)
    dates = (config.start + dt.timedelta(days=index) for index in range((last - config.start).days + 1))
    landed = {path.name for path in folder.glob("*.parquet")}

    def is_due(date: dt.date) -> bool:
        entry = state.days.get(date.isoformat())
        if entry is None or (entry.rows and _file_name(date.isoformat()) not in landed):
            return True
        return dt.date.fromisoformat(entry.on) - date < dt.timedelta(days=config.source.refresh_days)

    return [date.isoformat() for date in dates if is_due(date)]


def last_fetch(dataset: Dataset) -> tuple[str, str]:
    """Return the hash of the source, and the time of its last complete fetch or an empty text."""
    state = FetchState.load(dataset)
    return state.source, state.at


def fetch(dataset: Dataset, now: dt.datetime) -> None:
    """Fetch what is due into the landing folder. If it fails, days that were fetched stay fetched.

    Args:
        dataset: Dataset with a query or a callable; for another one nothing happens.
        now: Current time.

    Raises:
        SourceError: The query or the function failed, or has never given a row.
        StorageError: A file that somebody else has put into the landing folder has the name of a fetched one.
    """
    if not dataset.config.source.is_fetched:
        return
    state = FetchState.load(dataset)
    days = _due_days(dataset, state, now)
    if not days:
        return
    today = now.astimezone(dataset.config.zone).date().isoformat()
    done = dict(state.days)
    outcomes: dict[str, str] = {}
    saved, progress = time.monotonic(), ProgressLogger(logger)
    try:
        with _open(dataset) as read_day:
            for day in progress.over(days, "days fetched"):
                table = read_day(day)
                outcomes[day] = _land(day, table, dataset)
                done[day] = FetchedDay(today, table.num_rows)
                if time.monotonic() - saved > _SAVE_SECONDS:
                    FetchState(state.source, state.at, done).save(dataset)
                    saved = time.monotonic()
        state = replace(state, at=now.isoformat())
    finally:
        FetchState(state.source, state.at, done).save(dataset)
        if outcomes:
            _log(outcomes, sum(done[day].rows for day in outcomes), dataset)
    folder = landing_folder(dataset)
    if not folder.is_dir() or not any(folder.iterdir()):
        raise SourceError(
            f"{describe_source(dataset.config)} gave no rows for {abbreviate(days)}; correct its condition, or start "
            "and end in the YAML"
        )


def _log(outcomes: Mapping[str, str], rows: int, dataset: Dataset) -> None:
    counts = Counter(outcomes.values())
    what = "all rows" if ALL_ROWS in outcomes else f"{pluralize(len(outcomes), 'day')} ({abbreviate(list(outcomes))})"
    results = ", ".join(f"{counts[result]:,} {result}" for result in (_WRITTEN, _UNCHANGED, _EMPTY) if counts[result])
    logger.info(f"{describe_source(dataset.config)} gave {what}: {pluralize(rows, 'row')}; {results}")


@contextmanager
def _open(dataset: Dataset) -> Iterator[Callable[[str], pa.Table]]:
    """Yield a function that fetches the rows of a day, or of `ALL_ROWS`."""
    config, subject = dataset.config, describe_source(dataset.config)
    source = config.source
    if source.query and source.connection:
        with open_query(source.query, source.connection, config.zone, subject) as run:
            yield lambda day: run(None if day == ALL_ROWS else dt.date.fromisoformat(day))
        return
    function = load_callable(str(source.callable), subject)

    def call_for(day: str) -> pa.Table:
        if day == ALL_ROWS:
            return call(function, (), subject)
        return call(function, (dt.date.fromisoformat(day),), f"{subject} for {day}")

    yield call_for


def _land(day: str, table: pa.Table, dataset: Dataset) -> str:
    """Write the file of a day unless it has these rows, and return what was done.

    The rows of a day without rows any more are withdrawn by a file without rows.
    """
    path = landing_folder(dataset) / _file_name(day)
    load_landed(dataset.paths, [path])
    facts = _facts(path)
    if not table.num_rows:
        if facts is None or facts["rows"] == "0":
            return _EMPTY
        table = pq.read_schema(path).empty_table()
        logger.warning(f"{day} has no rows any more; the {facts['rows']} rows of its last fetch are withdrawn")
    rows_hash = _hash_rows(table)
    if facts is not None and facts[_ROWS_HASH] == rows_hash:
        return _UNCHANGED
    origin = "query" if dataset.config.source.query else "callable"
    write_parquet(path, table, {_ORIGIN: origin, _ROWS_HASH: rows_hash})
    return _WRITTEN


def _facts(path: Path) -> dict[str, str] | None:
    """Return the facts of a fetched file, or None if the file does not exist.

    Raises:
        StorageError: Somebody else has written the file.
    """
    if not path.exists():
        return None
    try:
        facts = read_facts(path)
    except (pa.ArrowException, OSError):
        facts = {}
    if _ORIGIN not in facts:
        raise StorageError(
            f"{path} was not fetched, but it has the name of a fetched file; give it another name to keep its rows, or "
            "delete it"
        )
    return facts


def _hash_rows(table: pa.Table) -> str:
    """Return a hash of the rows in any order, because a query without ORDER BY may return them in another order."""
    columns = [
        (name, "ascending")
        for name, kind in zip(table.column_names, table.schema.types, strict=True)
        if not pa.types.is_nested(kind)
    ]
    with suppress(pa.ArrowException):  # for types that have no order, the order of the rows counts
        table = table.sort_by(columns) if columns and table.num_rows else table
    return hash_table(table, is_earlier=True)  # the hash of files that were fetched before


def _file_name(day: str) -> str:
    return f"{day}.parquet"


def _source_hash(config: PipelineConfig) -> str:
    source = config.source
    settings = [
        source.query,
        source.connection,
        source.callable,
        source.path,
        config.event_time,
        config.timezone,
    ]
    return hash_json(settings)


def describe_source(config: PipelineConfig) -> str:
    """Return what fetches the rows of a dataset, for messages."""
    if config.source.query:
        return f"the query of {config.dataset!r} (connection {config.source.connection})"
    return f"the callable {config.source.callable} of {config.dataset!r}"
