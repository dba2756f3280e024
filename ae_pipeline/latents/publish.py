"""Publishes latents and scores: plain Parquet files that enter a Delta Lake log, all of a run in one commit."""

import datetime as dt
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction, RemoveAction
from open_data_contract_standard.model import OpenDataContractStandard

from ae_pipeline.common.errors import PublicationError
from ae_pipeline.common.parallel import prefetch
from ae_pipeline.common.progress import ProgressLogger
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.latent_space.names import latent_space_name
from ae_pipeline.latents.data_contract import broken_rules, build_contract, renew
from ae_pipeline.latents.files import TableFiles, live_files
from ae_pipeline.latents.layout import (
    add_action,
    day_key,
    file_path,
    group_of,
    latent_schema,
    parse_path,
    score_day,
    verify_file,
    write_file,
)
from ae_pipeline.latents.read import MANIFEST, PublishedDay, days_in, last_versions, published_days, read_day
from ae_pipeline.latents.retention import ABANDONED, collect, retention_properties, set_aside
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.parquet import read_facts
from ae_pipeline.storage.paths import DatasetPaths

logger = logging.getLogger(__name__)

_TRUSTED = ABANDONED / 2
"""Age up to which a file that no commit knows is taken as it is; an older one may be swept while it is wanted."""


@dataclass(frozen=True)
class LatentDay:
    """One day of the published table.

    Attributes:
        day: ISO date, or `ALL_ROWS`.
        rows: Rows in it.
        flagged: Rows within the alert budget.
        path: Of the file that its rows are in, relative to the table; None for a day without rows.
        key: What they were made of.
        built: Whether they were scored now.
    """

    day: str
    rows: int
    flagged: int
    path: str | None
    key: str
    built: bool


@dataclass(frozen=True)
class Publication:
    """What a publication came to.

    Attributes:
        days: Every day asked for, and those rebuilt since the table had to change its space as a whole.
        table_version: Of the Delta table after it.
        latent_space: Whose rows the table holds.
        committed: Whether anything changed.
        contract: Version of the data contract beside it; None where there is no table yet.
    """

    days: tuple[LatentDay, ...]
    table_version: int
    latent_space: str
    committed: bool
    contract: str | None


def stale_days(days: Iterable[str], paths: DatasetPaths, fingerprint: str, model_version: int) -> list[str]:
    """Lists days whose rows in the table are not those of their features under this model."""
    published = published_days(paths)
    space = latent_space_name(model_version, fingerprint)
    stale = []
    for day in days:
        if facts := read_facts(paths.features(day)):
            key = day_key(facts["content_hash"], fingerprint)
            wanted = f"{space}/{day}/{key}" if facts["rows"] != "0" else None
            found = published[day].identity if day in published else None
            stale += [day] if found != wanted else []
    return stale


def publish(
    days: Sequence[str],
    dataset: Dataset,
    bundle: ModelBundle,
    model_version: int,
    origin: Mapping[str, str],
    before_commit: Callable[[], None] = lambda: None,
) -> Publication:
    """Brings days of the table up to date under a model, in one commit, and then the list of its current files.

    That list is Delta's symlink manifest, `_symlink_format_manifest/manifest`, for engines that know Parquet alone.

    Rows of two spaces never stand in one version of the table: where it holds rows of another model, all its days are
    scored anew and change over together with those asked for. What the table held when this began is what the commit
    goes by: where another publication comes between, nothing is committed.

    Args:
        days: Days to publish; their features must be there.
        dataset: Configuration and paths of the dataset.
        bundle: The model that serves.
        model_version: Its version.
        origin: Runs that this commit comes from, kept in its metadata.
        before_commit: Called once all rows are scored and nothing is left to do but the commit, also where there is
            none to make.

    Raises:
        PublicationError: Features of a day are missing, a written file is not what its features call for, or another
            publication came first.
    """
    config, paths = dataset.config, dataset.paths
    config, files = config or bundle.config, TableFiles(paths.latents)
    table = files.open()
    contract = build_contract(config, bundle, model_version, files)
    writing = _Writing(paths, bundle, model_version, files, contract, table)
    planned = writing.plan(days)
    opened = table.version() if table else None
    found, space = writing.write(planned), writing.space
    entering, leaving = sorted(set(planned) - writing.previous), sorted(writing.previous - set(planned))
    changes = bool(entering or leaving)
    before_commit()
    if changes:
        table = table or _create(files, dataset, bundle)
        metadata = {**origin, "model_version": str(model_version), "latent_space": space}
        _commit(table, files, bundle, entering, leaving, metadata)
    elif (files_now := files.open()) and files_now.version() != opened:
        raise PublicationError(_too_late(files))
    if table is None:
        return Publication(found, -1, space, changes, None)
    # Also when nothing was committed: an earlier run may have ended between its commit and this.
    # DeltaTable.generate() would write one for each folder, and leave those of files that are gone.
    files.write_text(MANIFEST, "".join(f"{files.full_path(path)}\n" for path in live_files(table)))
    contract = renew(contract, files, last_versions(table), dt.datetime.now(dt.UTC))
    collect(table, files, config.latents.retention_days)
    return Publication(found, table.version(), space, changes, contract.version)


class _Writing:
    """The files that a publication writes: which there must be, and their rows."""

    def __init__(
        self,
        paths: DatasetPaths,
        bundle: ModelBundle,
        model_version: int,
        files: TableFiles,
        contract: OpenDataContractStandard,
        table: DeltaTable | None,
    ) -> None:
        self._paths, self._bundle, self._version, self._files = paths, bundle, model_version, files
        self._schema, self._broken_rules = latent_schema(bundle.model.latent_dim), partial(broken_rules, contract)
        self.space = latent_space_name(model_version, bundle.fingerprint)
        written = files.written()
        self.previous = set(live_files(table) if table else ())
        self.held = days_in(self.previous & written.keys(), files)
        committed = self.previous | (set_aside(table) if table else set())
        recent = dt.datetime.now(dt.UTC) - _TRUSTED
        self._there = {
            path
            for path, when in written.items()
            if path.startswith(f"{self.space}/") and (path in committed or when > recent)
        }
        self._rows: dict[str, int] = {}
        self._keys: dict[str, str] = {}

    def plan(self, days: Sequence[str]) -> dict[str, dict[str, str]]:
        """Gives the path of each file that is to stand in the table, and the keys of its days."""
        foreign = any(not path.startswith(f"{self.space}/") for path in self.previous)
        # Also days whose file has gone: they are scored anew.
        there = {day.path for day in self.held.values()}
        gone = {parts.group for path in self.previous - there if (parts := parse_path(path))}
        lost = {file.stem for group in gone for file in self._paths.features("_").parent.glob(f"{group}*.parquet")}
        for day in sorted({*days, *lost, *(self.held if foreign else ())}):
            facts = read_facts(self._paths.features(day))
            if not facts:
                raise PublicationError(
                    f"features of {self._paths.dataset!r} have no {day}; materialize that partition first"
                )
            self._rows[day] = int(facts["rows"])
            self._keys[day] = day_key(facts["content_hash"], self._bundle.fingerprint)
        groups: dict[str, dict[str, str]] = {}
        for day in sorted({*self._rows, *self.held}):
            if day not in self._rows:
                groups.setdefault(_group(self.held[day]), {})[day] = self.held[day].key
            elif self._rows[day]:
                groups.setdefault(group_of(day, self._rows[day]), {})[day] = self._keys[day]
        return {file_path(self.space, group, keys): keys for group, keys in groups.items()}

    def write(self, planned: Mapping[str, Mapping[str, str]]) -> tuple[LatentDay, ...]:
        """Writes the files that are not there yet, and verifies all that hold a day of this publication."""
        total, progress = len(self._rows), ProgressLogger(logger)
        found = {day: LatentDay(day, 0, 0, None, "", built=False) for day in self._rows}
        done = 0
        missing = {path: keys for path, keys in planned.items() if path not in self._there}
        # The next file is scored while one is written and verified.
        with closing(prefetch(self._tables(missing))) as tables:
            coming = groupby(tables, key=itemgetter(0))
            for path, keys in planned.items():
                asked = {day: self._rows[day] for day in keys if day in self._rows}
                built = {day for day in asked if path not in self._there and not self._is_held(day, keys[day])}
                if path in missing:
                    days = self._log_progress(next(coming)[1], done, progress)
                    write_file(days, keys, self._bundle.model.latent_dim, path, self._files)
                if asked or path not in self.previous:
                    flagged = verify_file(path, self._files, keys, asked, self._schema, self.space, self._broken_rules)
                    for day, rows in asked.items():
                        found[day] = LatentDay(day, rows, flagged[day], path, keys[day], day in built)
                done += len(asked)
                progress.update(done, total, "days scored")
        return tuple(found.values())

    def _log_progress(
        self, days: Iterable[tuple[str, int, pa.Table]], done: int, progress: ProgressLogger
    ) -> Iterator[pa.Table]:
        ended = 0
        for _, index, rows in days:
            if index > ended:
                ended = index
                progress.update(done + ended, len(self._rows), "days scored")
            yield rows

    def _tables(self, files: Mapping[str, Mapping[str, str]]) -> Iterator[tuple[str, int, pa.Table]]:
        """Gives the rows of files, each part with its file and the number of days before its own there."""
        for path, keys in files.items():
            for index, (day, key) in enumerate(keys.items()):
                if self._is_held(day, key):
                    yield path, index, self._copied(self.held[day])
                else:
                    for rows in score_day(self._bundle, self._version, self._paths.features(day)):
                        yield path, index, rows

    def _is_held(self, day: str, key: str) -> bool:
        old = self.held.get(day)
        return old is not None and old.key == key and old.path in self._there

    def _copied(self, day: PublishedDay) -> pa.Table:
        try:
            return read_day(day, self._files)
        except (pa.ArrowException, OSError) as error:
            raise PublicationError(
                f"{self._files.full_path(day.path)} cannot be read ({str(error).splitlines()[0]}); remove that file "
                "and run again"
            ) from error


def _group(day: PublishedDay) -> str:
    parts = parse_path(day.path)
    return parts.group if parts else day.day


def _create(files: TableFiles, dataset: Dataset, bundle: ModelBundle) -> DeltaTable:
    config, paths = dataset.config, dataset.paths
    files.prepare()
    try:
        return DeltaTable.create(
            files.location,
            latent_schema(bundle.model.latent_dim),
            name=f"{paths.dataset}_latents",
            configuration=retention_properties(config.latents.retention_days),
        )
    except DeltaError as error:
        if files.open() is not None:
            raise PublicationError(_too_late(files)) from error
        raise


def _commit(
    table: DeltaTable,
    files: TableFiles,
    bundle: ModelBundle,
    entering: Sequence[str],
    leaving: Sequence[str],
    metadata: Mapping[str, str],
) -> None:
    schema = latent_schema(bundle.model.latent_dim)
    now = int(time.time() * 1000)
    try:
        actions: list[AddAction | RemoveAction] = [add_action(path, files, now) for path in entering]
    except FileNotFoundError as error:
        raise PublicationError(f"a file of {files.location} went while its rows were scored; run it again") from error
    actions += [RemoveAction(path, data_change=True, deletion_timestamp=now) for path in leaving]
    # Another width means another schema, which only an overwrite may bring; it removes all files that are not added.
    columns: list[str] = [field.name for field in table.schema().fields]
    mode = "append" if columns == list(schema.names) else "overwrite"
    if mode == "overwrite":
        actions = [action for action in actions if isinstance(action, AddAction)]
    # Tried again, it would add to what another publication has made of the table meanwhile.
    properties = CommitProperties(custom_metadata=dict(metadata), max_commit_retries=0)
    try:
        table.create_write_transaction(actions, mode, schema, commit_properties=properties)
    except CommitFailedError as error:
        raise PublicationError(_too_late(files)) from error
    table.update_incremental()


def _too_late(files: TableFiles) -> str:
    return f"another publication changed {files.location} meanwhile; this one changed nothing there: run it again"
