"""The files that a latent table needs after a publication: which ones, and how to write those that are missing."""

import datetime as dt
import logging
import platform
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import pyarrow as pa
from deltalake import DeltaTable
from open_data_contract_standard.model import OpenDataContractStandard

from ae_pipeline.common.errors import PublicationError
from ae_pipeline.common.parallel import prefetch
from ae_pipeline.common.progress import ProgressLogger
from ae_pipeline.common.text import first_line
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.engine.mapping import engine_map
from ae_pipeline.latent_space.names import latent_space_name
from ae_pipeline.latents.data_contract import violations
from ae_pipeline.latents.files import TableFiles, last_line, live_files, rows_in_log, sizes_in_log
from ae_pipeline.latents.layout import (
    day_key,
    file_path,
    group_of,
    latent_schema,
    parse_path,
    read_features,
    score_batch,
    spaces_of,
    verify_file,
    write_file,
)
from ae_pipeline.latents.read import PublishedDay, days_in, read_day
from ae_pipeline.latents.removal import check_removal
from ae_pipeline.latents.retention import ORPHAN_AGE, earlier_files
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.object_store import settings_of
from ae_pipeline.storage.parquet import read_facts
from ae_pipeline.storage.paths import DatasetPaths

logger = logging.getLogger(__name__)

_MAX_REUSE_AGE = ORPHAN_AGE / 2
"""Age up to which a file that no commit references is reused. An older file could be vacuumed before the commit."""


@dataclass(frozen=True, kw_only=True)
class LatentDay:
    """A day of a publication.

    Attributes:
        day: ISO date, or `ALL_ROWS`.
        rows: Number of rows.
        flagged: Number of rows within the alert budget.
        path: Path of the file with its rows, relative to the table; None for a day without rows.
        key: Hash of what the rows were made from; see `day_key`.
        built: Whether this publication scored the day.
    """

    day: str
    rows: int
    flagged: int
    path: str | None
    key: str
    built: bool


class TableUpdate:
    """The files that the table needs after a publication: which ones, and how to write those that do not exist.

    Attributes:
        dataset: Dataset of the table.
        bundle: Model of the publication.
        model_version: Version of that model.
        files: Files of the table.
        space: Latent space of the table after the publication.
        live: Paths of the current files.
        published: Days of the dataset in those current files that exist.
    """

    def __init__(
        self,
        dataset: Dataset,
        bundle: ModelBundle,
        model_version: int,
        files: TableFiles,
        contract: OpenDataContractStandard,
        table: DeltaTable | None,
        bundle_folder: Path | None = None,
    ) -> None:
        self.dataset, self.bundle, self.model_version, self.files = dataset, bundle, model_version, files
        self._paths = dataset.paths
        self._schema, self._violations = latent_schema(bundle.model.latent_dim), partial(violations, contract)
        self.space = latent_space_name(model_version, bundle.fingerprint)
        written = files.written()
        self.live = set(live_files(table) if table else ())
        self._lost = self.live - set(files.whole(self.live & written.keys()))
        published = days_in(self.live - self._lost, files)
        self.published = {day: published[day] for day in published if dataset.config.has_day(day)}
        self._former = published
        self._standing = (
            sum(rows for path, rows in rows_in_log(table).items() if path not in self._lost) if table else 0
        )
        committed = self.live | (earlier_files(table) if table else set())
        self._reusable = {
            path
            for path, modified in written.items()
            if path.startswith(f"{self.space}/")
            and path.endswith(".parquet")  # not the temporary file of a killed run
            and (path in committed or modified > dt.datetime.now(dt.UTC) - _MAX_REUSE_AGE)
            and not files.damage(path)
        }
        self._sizes = sizes_in_log(table) if table else {}
        self._rows: dict[str, int] = {}
        self._keys: dict[str, str] = {}
        self._written: set[str] = set()
        self._bundle_folder = bundle_folder

    @property
    def spaces(self) -> set[str]:
        """Latent spaces of the current files: one, or none if there are no files."""
        return spaces_of(self.live)

    @property
    def resized(self) -> set[str]:
        """Current files that were written again after a damage, by another version of the writer in another size."""
        sizes = {path: size for path, size in self._sizes.items() if path in self._written}
        return {path for path, size in sizes.items() if self.files.filesystem.get_file_info(path).size != size}

    def plan(self, days: Sequence[str]) -> dict[str, dict[str, str]]:
        """Return the path of each file that the table must have, with the key of each day in it."""
        self._read_features(days)
        groups: dict[str, dict[str, str]] = {}
        for day in sorted({*self._rows, *self.published}):
            if day not in self._rows:
                groups.setdefault(self.published[day].group, {})[day] = self.published[day].key
            elif self._rows[day]:
                groups.setdefault(group_of(day, self._rows[day]), {})[day] = self._keys[day]
        return {file_path(self.space, group, keys): keys for group, keys in groups.items()}

    def _read_features(self, days: Sequence[str]) -> None:
        """Set rows and keys of the days to publish: requested days, days of missing files, or all if the space changes.

        Raises:
            PublicationError: Features of a day are missing.
        """
        changes_space = any(not path.startswith(f"{self.space}/") for path in self.live)
        lost_groups = {parts.group for path in self._lost if (parts := parse_path(path))}
        folder = self._paths.features("_").parent
        lost = {file.stem for group in lost_groups for file in folder.glob(f"{group}*.parquet")}
        for day in sorted({*days, *lost, *(self.published if changes_space else ())}):
            facts = read_facts(self._paths.features(day))
            if not facts:
                raise PublicationError(
                    f"features of {self._paths.dataset!r} have no {day}; materialize that partition first"
                )
            self._rows[day] = int(facts["rows"])
            self._keys[day] = day_key(facts["content_hash"], self.bundle.fingerprint)

    def check_removal(self, planned: Mapping[str, Mapping[str, str]]) -> None:
        """Check that the table keeps most of its rows; see `check_removal`."""
        keys = {day: key for days in planned.values() for day, key in days.items()}
        changed = [each for day, each in self._former.items() if keys.get(day) != each.key]
        check_removal(self.dataset, self.files, changed, self._rows, self._standing)

    def write(self, planned: Mapping[str, Mapping[str, str]]) -> tuple[LatentDay, ...]:
        """Write the planned files that do not exist, and verify every file with a day of this publication."""
        progress = ProgressLogger(logger)
        result = {day: LatentDay(day=day, rows=0, flagged=0, path=None, key="", built=False) for day in self._rows}
        done = 0
        missing = {path: keys for path, keys in planned.items() if path not in self._reusable}
        if self._bundle_folder and len(missing) > 1:
            self._write_by_workers(missing, self._bundle_folder)
            missing = {}
        # The next file is scored while the current one is written and verified.
        with closing(prefetch(self._score_files(missing))) as scored:
            scored_files = groupby(scored, key=itemgetter(0))
            for path, keys in planned.items():
                rows = {day: self._rows[day] for day in keys if day in self._rows}
                built = {day for day in rows if path not in self._reusable and not self._is_published(day, keys[day])}
                if path in missing:
                    tables = self._log_progress(next(scored_files)[1], done, progress)
                    write_file(tables, keys, self.bundle.model.latent_dim, path, self.files)
                    self._written.add(path)
                if rows or path not in self.live:
                    flagged = verify_file(path, self.files, keys, rows, self._schema, self.space, self._violations)
                    for day, count in rows.items():
                        result[day] = LatentDay(
                            day=day, rows=count, flagged=flagged[day], path=path, key=keys[day], built=day in built
                        )
                done += len(rows)
                progress.update(done, len(self._rows), "days scored")
        return tuple(result.values())

    def _write_by_workers(self, files: Mapping[str, Mapping[str, str]], bundle_folder: Path) -> None:
        """Score and write files by the workers of the engine."""
        tasks = [self._task(path, keys) for path, keys in files.items()]
        work = partial(
            write_scored_file,
            bundle_folder=bundle_folder,
            model_version=self.model_version,
            paths=self._paths,
            location=self.files.location,
        )
        days, done, progress = sum(map(len, files.values())), 0, ProgressLogger(logger)
        with closing(engine_map(work, tasks)) as written:
            for task, _ in zip(tasks, written, strict=True):
                done += len(task.keys)
                progress.update(done, days, "days scored")
                self._written.add(task.path)

    def _log_progress(
        self, scored: Iterable[tuple[str, int, pa.Table]], done: int, progress: ProgressLogger
    ) -> Iterator[pa.Table]:
        """Yield the rows of one file, and log each day that is complete."""
        complete = 0
        for _, index, rows in scored:
            if index > complete:
                complete = index
                progress.update(done + complete, len(self._rows), "days scored")
            yield rows

    def _score_files(self, files: Mapping[str, Mapping[str, str]]) -> Generator[tuple[str, int, pa.Table]]:
        """Yield the rows of files in parts; see `_score_tasks`."""
        tasks = [self._task(path, keys) for path, keys in files.items()]
        return _score_tasks(tasks, self.bundle, self.model_version, self._paths, self.files)

    def _task(self, path: str, keys: Mapping[str, str]) -> "FileTask":
        copied = {day: self.published[day] for day, key in keys.items() if self._is_published(day, key)}
        return FileTask(path, dict(keys), copied)

    def _is_published(self, day: str, key: str) -> bool:
        """Return whether the table has these very rows of a day, so that they can be copied."""
        previous = self.published.get(day)
        return previous is not None and previous.key == key and previous.path in self._reusable


@dataclass(frozen=True)
class FileTask:
    """A file of the table that a worker scores and writes.

    Attributes:
        path: Path of the file, relative to the table.
        keys: Hash of what the rows of each day are made from; see `day_key`.
        copied: Days whose rows the table has already.
    """

    path: str
    keys: dict[str, str]
    copied: dict[str, PublishedDay]


def write_scored_file(
    task: FileTask, bundle_folder: Path, model_version: int, paths: DatasetPaths, location: str
) -> None:
    """Score the days of a file, and write it. A worker process or a task of Ray calls this.

    Args:
        task: The file.
        bundle_folder: Folder of the bundle of the model.
        model_version: Version of the model.
        paths: Paths of the dataset.
        location: Folder or address of the table.

    Raises:
        PublicationError: The node cannot write to the object store of the table.
    """
    bundle, files = _load(bundle_folder), TableFiles(location)
    try:
        with closing(_score_tasks([task], bundle, model_version, paths, files)) as parts:
            tables = (rows for _, _, rows in parts)
            write_file(tables, task.keys, bundle.model.latent_dim, task.path, files)
    except OSError as error:
        if files.is_folder:
            raise
        raise PublicationError(
            f"{platform.node()} cannot use the object store of {location} ({last_line(error)}); give every node of the "
            f"engine the same credentials and variables as the run ({settings_of(location)})"
        ) from error


def _score_tasks(
    tasks: Iterable[FileTask], bundle: ModelBundle, model_version: int, paths: DatasetPaths, files: TableFiles
) -> Generator[tuple[str, int, pa.Table]]:
    """Yield the rows of files in parts, each with the path of its file and the index of its day.

    While rows are scored, the next features are read, also those of the next file.
    """
    with closing(prefetch(_read_tasks(tasks, paths, files))) as parts:
        for path, index, day, part in parts:
            is_scored = isinstance(part, pa.Table)
            yield path, index, part if is_scored else score_batch(bundle, model_version, part, day)


def _read_tasks(
    tasks: Iterable[FileTask], paths: DatasetPaths, files: TableFiles
) -> Iterator[tuple[str, int, str, pa.RecordBatch | pa.Table]]:
    """Yield the features of days to score, and the rows of published days to copy."""
    for task in tasks:
        for index, day in enumerate(task.keys):
            if day in task.copied:
                yield task.path, index, day, _copy_day(task.copied[day], files)
            else:
                for batch in read_features(paths.features(day)):
                    yield task.path, index, day, batch


@lru_cache(maxsize=1)
def _load(folder: Path) -> ModelBundle:
    return ModelBundle.load(folder)


def _copy_day(day: PublishedDay, files: TableFiles) -> pa.Table:
    try:
        return read_day(day, files)
    except (pa.ArrowException, OSError) as error:
        raise PublicationError(
            f"{files.full_path(day.path)} cannot be read ({first_line(error)}); delete this file and run again"
        ) from error
