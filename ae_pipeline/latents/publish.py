"""Publication of latents and scores: Parquet files that one commit adds to a Delta Lake table."""

import datetime as dt
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import pyarrow as pa
from deltalake import DeltaTable
from open_data_contract_standard.model import OpenDataContractStandard

from ae_pipeline.common.errors import PublicationError
from ae_pipeline.common.parallel import prefetch
from ae_pipeline.common.progress import ProgressLogger
from ae_pipeline.common.signals import critical_section
from ae_pipeline.common.text import first_line
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.ingestion.removal import is_accepted
from ae_pipeline.latent_space.names import latent_space_name
from ae_pipeline.latents.commit import commit_files, conflict_message, create_table
from ae_pipeline.latents.contract_versions import update_contract
from ae_pipeline.latents.data_contract import CONTRACT, PAGE, build_contract, violations
from ae_pipeline.latents.files import TableFiles, live_files, rows_in_log, sizes_in_log
from ae_pipeline.latents.layout import (
    day_key,
    file_path,
    group_of,
    latent_schema,
    parse_path,
    score_day,
    verify_file,
    write_file,
)
from ae_pipeline.latents.log import record_digests, restore_texts
from ae_pipeline.latents.read import MANIFEST, PublishedDay, days_in, last_versions, published_days, read_day
from ae_pipeline.latents.removal import check_removal
from ae_pipeline.latents.retention import ORPHAN_AGE, earlier_files, vacuum
from ae_pipeline.storage.dataset import Dataset
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


@dataclass(frozen=True, kw_only=True)
class Publication:
    """Result of a publication.

    Attributes:
        days: Requested days, and days that were scored again because the table changed its latent space.
        table_version: Version of the Delta table after the publication; -1 if there is no table yet.
        latent_space: Latent space of the rows in the table.
        committed: Whether the table changed.
        contract: Version of the data contract; None if there is no table yet.
    """

    days: tuple[LatentDay, ...]
    table_version: int
    latent_space: str
    committed: bool
    contract: str | None


def stale_days(days: Iterable[str], paths: DatasetPaths, fingerprint: str, model_version: int) -> list[str]:
    """Return the days whose rows in the table do not come from their current features and this model.

    Days without features are not stale.

    Args:
        days: Days to look at.
        paths: Paths of the dataset.
        fingerprint: Fingerprint of the champion.
        model_version: Version of the champion.
    """
    published = published_days(paths)
    space = latent_space_name(model_version, fingerprint)
    stale = []
    for day in days:
        if facts := read_facts(paths.features(day)):
            key = day_key(facts["content_hash"], fingerprint)
            expected = f"{space}/{day}/{key}" if facts["rows"] != "0" else None
            actual = published[day].identity if day in published else None
            stale += [day] if actual != expected else []
    return stale


def publish(
    days: Sequence[str],
    dataset: Dataset,
    bundle: ModelBundle,
    model_version: int,
    origin: Mapping[str, str],
    before_commit: Callable[[], None] = lambda: None,
    *,
    accepts_removal: bool = False,
) -> Publication:
    """Publish the rows of some days under a model, in one commit.

    A version of the table never mixes two latent spaces. If the table has rows of another model, all its days are
    scored again and change in the same commit. The commit is based on the version of the table at the start: after a
    concurrent publication it fails, and the table stays unchanged.

    After the commit, the list of current files (Delta's symlink manifest, for engines that only read Parquet) and the
    data contract are updated, and old files are vacuumed.

    Args:
        days: Days to publish. Their features must exist.
        dataset: Configuration and paths of the dataset.
        bundle: Champion.
        model_version: Version of the champion.
        origin: Ids of the runs that this commit comes from, for its metadata.
        before_commit: Function to call after scoring, directly before the commit, also if there is nothing to commit.
        accepts_removal: Whether more than `max_removed_share` of the rows may leave the table.

    Raises:
        RemovalError: Too many rows would leave the table. It is unchanged.
        PublicationError: Features of a day are missing, a written file does not have the expected rows, or another
            publication has committed at the same time.
    """
    config, files = dataset.config, TableFiles(dataset.paths.latents)
    table = files.open()
    if files.is_folder:
        restore_texts(Path(files.location))
    contract = build_contract(config, bundle, model_version, files)
    update = _TableUpdate(dataset, bundle, model_version, files, contract, table)
    planned = update.plan(days)
    if not (accepts_removal or is_accepted(dataset.paths)):
        update.check_removal(planned)
    version_at_start = table.version() if table else None
    published, space = update.write(planned), update.space
    added, removed = sorted({*planned} - update.live | update.resized), sorted(update.live - set(planned))
    changes = bool(added or removed)
    with critical_section():  # what `before_commit` does and the commit belong together
        before_commit()
        if changes:
            table = table or create_table(files, dataset, bundle)
            metadata = {**origin, "model_version": str(model_version), "latent_space": space}
            commit_files(table, files, bundle, added, removed, metadata)
    if not changes and (current := files.open()) and current.version() != version_at_start:
        raise PublicationError(conflict_message(files))
    if table is None:
        return Publication(days=published, table_version=-1, latent_space=space, committed=changes, contract=None)
    # Also without a commit, because an earlier run may have been interrupted between its commit and these steps.
    # DeltaTable.generate() would write one manifest per folder, and keep manifests of files that were removed.
    files.write_text(MANIFEST, "".join(f"{files.full_path(path)}\n" for path in live_files(table)))
    contract = update_contract(contract, files, last_versions(table), dt.datetime.now(dt.UTC))
    vacuum(table, files, config.latents.retention_days)
    if files.is_folder:
        record_digests(Path(files.location), texts=(CONTRACT, PAGE), files=(MANIFEST,))
    return Publication(
        days=published,
        table_version=table.version(),
        latent_space=space,
        committed=changes,
        contract=contract.version,
    )


class _TableUpdate:
    """The files that the table needs after a publication: which ones, and how to write those that do not exist.

    Attributes:
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
    ) -> None:
        self._dataset, self._bundle, self._version, self._files = dataset, bundle, model_version, files
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
            and (path in committed or modified > dt.datetime.now(dt.UTC) - _MAX_REUSE_AGE)
            and not files.damage(path)
        }
        self._sizes = sizes_in_log(table) if table else {}
        self._rows: dict[str, int] = {}
        self._keys: dict[str, str] = {}
        self._written: set[str] = set()

    @property
    def resized(self) -> set[str]:
        """Current files that were written again after a damage, by another version of the writer in another size."""
        sizes = {path: size for path, size in self._sizes.items() if path in self._written}
        return {path for path, size in sizes.items() if self._files.filesystem.get_file_info(path).size != size}

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
            self._keys[day] = day_key(facts["content_hash"], self._bundle.fingerprint)

    def check_removal(self, planned: Mapping[str, Mapping[str, str]]) -> None:
        """Check that the table keeps most of its rows; see `check_removal`."""
        keys = {day: key for days in planned.values() for day, key in days.items()}
        changed = [each for day, each in self._former.items() if keys.get(day) != each.key]
        check_removal(self._dataset, self._files, changed, self._rows, self._standing)

    def write(self, planned: Mapping[str, Mapping[str, str]]) -> tuple[LatentDay, ...]:
        """Write the planned files that do not exist, and verify every file with a day of this publication."""
        progress = ProgressLogger(logger)
        result = {day: LatentDay(day=day, rows=0, flagged=0, path=None, key="", built=False) for day in self._rows}
        done = 0
        missing = {path: keys for path, keys in planned.items() if path not in self._reusable}
        # The next file is scored while the current one is written and verified.
        with closing(prefetch(self._score_files(missing))) as scored:
            scored_files = groupby(scored, key=itemgetter(0))
            for path, keys in planned.items():
                rows = {day: self._rows[day] for day in keys if day in self._rows}
                built = {day for day in rows if path not in self._reusable and not self._is_published(day, keys[day])}
                if path in missing:
                    tables = self._log_progress(next(scored_files)[1], done, progress)
                    write_file(tables, keys, self._bundle.model.latent_dim, path, self._files)
                    self._written.add(path)
                if rows or path not in self.live:
                    flagged = verify_file(path, self._files, keys, rows, self._schema, self.space, self._violations)
                    for day, count in rows.items():
                        result[day] = LatentDay(
                            day=day, rows=count, flagged=flagged[day], path=path, key=keys[day], built=day in built
                        )
                done += len(rows)
                progress.update(done, len(self._rows), "days scored")
        return tuple(result.values())

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

    def _score_files(self, files: Mapping[str, Mapping[str, str]]) -> Iterator[tuple[str, int, pa.Table]]:
        """Yield the rows of files in parts, each with the path of its file and the index of its day in that file."""
        for path, keys in files.items():
            for index, (day, key) in enumerate(keys.items()):
                if self._is_published(day, key):
                    yield path, index, self._copy_day(self.published[day])
                else:
                    for rows in score_day(self._bundle, self._version, self._paths.features(day)):
                        yield path, index, rows

    def _is_published(self, day: str, key: str) -> bool:
        """Return whether the table has these very rows of a day, so that they can be copied."""
        previous = self.published.get(day)
        return previous is not None and previous.key == key and previous.path in self._reusable

    def _copy_day(self, day: PublishedDay) -> pa.Table:
        try:
            return read_day(day, self._files)
        except (pa.ArrowException, OSError) as error:
            raise PublicationError(
                f"{self._files.full_path(day.path)} cannot be read ({first_line(error)}); delete this file and run "
                "again"
            ) from error
