"""Checks of what ingestion keeps: schema contract, ledger, staged copies, quarantine, raw rows and features."""

import datetime as dt
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

import polars as pl

from ae_pipeline.common.errors import SchemaError, StorageError
from ae_pipeline.common.text import abbreviate, pluralize
from ae_pipeline.ingestion.contract import SchemaContract, contract_in_force, load_contract
from ae_pipeline.ingestion.landing_folder import list_landing
from ae_pipeline.ingestion.ledger import LandedFile, Ledger
from ae_pipeline.ingestion.packs import IMAGE_FACT, entries_fact, first_row, packed_entries, repack, stored_entries
from ae_pipeline.ingestion.readers.pictures import FILE_COLUMN, is_image
from ae_pipeline.ingestion.staged import has_whole_copies, kept_contract, read_staged
from ae_pipeline.ingestion.withdrawals import replay_withdrawals
from ae_pipeline.lifecycle.doctor.problem import Problem, remove, set_aside
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.files import write_text
from ae_pipeline.storage.parquet import damage_of, read_facts, write_parquet
from ae_pipeline.storage.paths import DatasetPaths


def contract_problems(dataset: Dataset) -> Iterator[Problem]:
    """Yield what is wrong with the schema contract."""
    paths = dataset.paths
    copy, has_rows = kept_contract(paths), paths.ledger.exists() or any(paths.staged("_").parent.glob("*.parquet"))
    if not paths.contract.exists():
        if has_rows:
            yield _contract_problem(paths, copy, "it is missing, although files were read with it")
        return
    try:
        contract_in_force(paths.contract, dataset.config)
    except (SchemaError, OSError) as error:
        yield _contract_problem(paths, copy, str(error))


def _contract_problem(paths: DatasetPaths, copy: Path, message: str) -> Problem:
    restored = copy.is_file() and _is_contract(copy)
    remedy = (
        "restore the one that the last run used"
        if restored
        else "the next run infers a new one from the landed files; edits of the old one are lost"
    )

    def repair() -> None:
        if paths.contract.exists():
            set_aside(paths.contract, paths)
        if restored:
            write_text(paths.contract, copy.read_text(encoding="utf-8"))

    return Problem(kind="contract", subject=str(paths.contract), message=message, remedy=remedy, repair=repair)


def _is_contract(path: Path) -> bool:
    try:
        load_contract(path)
    except SchemaError:
        return False
    return True


def ledger_problems(dataset: Dataset) -> Iterator[Problem]:
    """Yield what is wrong with the ledger and with the copies that it names."""
    paths = dataset.paths
    try:
        ledger = Ledger.load(paths.ledger)
    except (StorageError, OSError) as error:
        yield Problem(
            kind="ledger",
            subject=str(paths.ledger),
            message=str(error),
            remedy="rebuild it from the staged copies; files that were refused are read again if they are still there",
            repair=lambda: _rebuild_ledger(paths),
        )
        return
    yield from _copy_problems(ledger, dataset)
    moved = paths.ledger.with_name("moved.json")
    if moved.exists() and not moved.is_file():
        yield Problem(
            kind="cache",
            subject=str(moved),
            message="it is not a file",
            remedy="move it aside; it is computed again",
            repair=lambda: set_aside(moved, paths),
        )


def _copy_problems(ledger: Ledger, dataset: Dataset) -> Iterator[Problem]:
    """Yield a problem for each copy that is missing or damaged, one for the files that left and one for the others."""
    paths = dataset.paths
    damaged = {name: entry for name, entry in ledger.files.items() if not has_whole_copies(entry, paths)}
    landed = _landed(dataset) if damaged else set()
    groups: dict[tuple[bool, Path], dict[str, LandedFile]] = {}
    for name, entry in damaged.items():
        groups.setdefault((name in landed, _bad_copies(entry, paths)[0]), {})[name] = entry
    for (is_landed, _), files in sorted(groups.items(), key=lambda group: group[0][0]):
        yield _copy_problem(files, ledger, dataset, is_landed=is_landed)


def _landed(dataset: Dataset) -> set[str]:
    """Return the names of the files in the landing folder. A name may not be the path of its file."""
    try:
        return set(list_landing(dataset).files)
    except StorageError:
        return set()


def _bad_copies(entry: LandedFile, paths: DatasetPaths) -> list[Path]:
    copies = [
        *([paths.staged(entry.staged)] if entry.staged else []),
        *([paths.quarantined(entry.rejected_copy)] if entry.rejected_copy else []),
    ]
    return [path for path in copies if not read_facts(path)]


def _copy_problem(files: dict[str, LandedFile], ledger: Ledger, dataset: Dataset, *, is_landed: bool) -> Problem:
    """Return the problem of the copy of some files."""
    paths = dataset.paths
    bad = list(dict.fromkeys(path for entry in files.values() for path in _bad_copies(entry, paths)))
    names, first = abbreviate(list(files)), next(iter(files))
    kind = "quarantine" if bad[0].parent == paths.quarantined("_").parent else "staged copy"
    repair: Callable[[], object]
    if is_landed:
        remedy, repair = f"the next run reads {names} again", remove(*bad)
    elif kind == "quarantine":
        remedy = f"the rejected rows of {names}, which has left the landing folder, are lost; their numbers stay"
        repair = partial(_forget_rejected, first, bad[0], paths)
    else:
        days = sorted({day for entry in files.values() for day in entry.days})
        lost = [day for day in days if not read_facts(paths.raw(day))]
        left = f"{names} {'has' if len(files) == 1 else 'have'} left the landing folder"
        remedy = f"take {'its' if len(files) == 1 else 'their'} rows from raw_data, because {left}"
        if lost:
            remedy += f"; the rows on {abbreviate(lost)} are lost, so land {'it' if len(files) == 1 else 'them'} again"
        repair = partial(_recover_copy, files, ledger, dataset)
    message = f"the copy of {names} is {damage_of(bad[0]) or 'missing'}"
    return Problem(kind=kind, subject=str(bad[0]), message=message, remedy=remedy, repair=repair)


def _forget_rejected(name: str, path: Path, paths: DatasetPaths) -> None:
    if path.exists():
        set_aside(path, paths)
    ledger = Ledger.load(paths.ledger)
    Ledger({**ledger.files, name: replace(ledger.files[name], rejected_copy=None)}).save(paths.ledger)


def _recover_copy(files: dict[str, LandedFile], ledger: Ledger, dataset: Dataset) -> None:
    """Write the staged copy of files again from the raw rows of their days that no other copy has."""
    paths, contract = dataset.paths, load_contract(dataset.paths.contract)
    entry = next(iter(files.values()))
    target = paths.staged(str(entry.staged))
    if target.exists():
        set_aside(target, paths)
    parts: dict[str, list[pl.DataFrame]] = {name: [] for name in files}
    for day in sorted({day for entry in files.values() for day in entry.days}):
        if read_facts(paths.raw(day)):
            for name, rows in _raw_rows(day, files, ledger, dataset).items():
                parts[name].append(rows)
    entries = {
        name: replace(
            entry,
            rows=sum(part.height for part in parts[name]),
            days={str(part["_day"][0]): part.height for part in parts[name] if part.height},
        )
        for name, entry in files.items()
    }
    if first_row(entry) is not None:  # the other files of the pack are landed, or were lost with a newer copy of it
        entries = packed_entries(entries)
    shapes = {IMAGE_FACT + column: str(shape) for column, shape in contract.images.items()}
    rows = pl.concat([_empty_copy(contract), *chain.from_iterable(parts.values())], how="diagonal_relaxed")
    target = paths.staged(str(next(iter(entries.values())).staged))
    write_parquet(target, rows.rechunk().to_arrow(), {**shapes, **entries_fact(entries)})
    Ledger({**Ledger.load(paths.ledger).files, **entries}).save(paths.ledger)


def _raw_rows(day: str, files: dict[str, LandedFile], ledger: Ledger, dataset: Dataset) -> dict[str, pl.DataFrame]:
    """Return the raw rows of a day by the file that they come from; all of them at the first one if that is unknown."""
    paths = dataset.paths
    rows = pl.read_parquet(paths.raw(day), glob=False).with_columns(_day=pl.lit(day))
    if not dataset.config.identity:  # raw_data numbers equal rows
        rows = rows.with_columns(pl.col("row_id").str.replace(r"-\d+$", ""))
    if FILE_COLUMN in rows.columns and all(map(is_image, files)):
        rows = rows.filter(pl.col(FILE_COLUMN).cast(pl.String).is_in(list(files)))
        return {str(name): part for (name,), part in rows.group_by(FILE_COLUMN, maintain_order=True)}
    known = [
        read_staged(other, source, paths, ["row_id", "_day"]).filter(pl.col("_day") == day)["row_id"]
        for source, other in ledger.sources(day)
        if source not in files and other.staged and read_facts(paths.staged(other.staged))
    ]
    others = pl.concat([pl.Series("row_id", [], pl.String), *known]).value_counts(name="others")
    rows = (
        rows.with_columns(occurrence=pl.int_range(1, pl.len() + 1).over("row_id"))
        .join(others, on="row_id", how="left", maintain_order="left")
        .filter(pl.col("occurrence") > pl.col("others").fill_null(0))
        .drop("occurrence", "others")
    )
    return {next(name for name, entry in files.items() if day in entry.days): rows}


def _empty_copy(contract: SchemaContract) -> pl.DataFrame:
    schema = {**contract.polars_schema, "row_id": pl.String(), "event_time": pl.Datetime("us", "UTC")}
    return pl.DataFrame(schema={**schema, "_day": pl.String()})


def _rebuild_ledger(paths: DatasetPaths) -> None:
    """Write the ledger again from the entries in the footers of the staged copies."""
    if paths.ledger.exists():
        set_aside(paths.ledger, paths)
    files: dict[str, LandedFile] = {}
    stored: list[LandedFile] = []
    for path in sorted(paths.staged("_").parent.glob("[!.]*.parquet")):
        known = stored_entries(path) or _entry_of_copy(path)
        if not known:  # damaged; its file is read again if it is still there
            set_aside(path, paths)
        stored += known.values()
        for name, entry in known.items():
            if name not in files or entry.landed_ns > files[name].landed_ns:
                files[name] = entry
    # A run that was killed leaves packs with rows that a newer copy replaces.
    replay_withdrawals(Ledger(repack(files, stored, paths)), paths).save(paths.ledger)


def _entry_of_copy(path: Path) -> dict[str, LandedFile]:
    """Return an entry for a staged copy of an earlier version, whose footer does not name its file, if it is whole."""
    if not read_facts(path):
        return {}
    days = pl.read_parquet(path, columns=["_day"], glob=False)["_day"].value_counts()
    counts = dict(sorted(zip(days["_day"].to_list(), days["count"].to_list(), strict=True)))
    stat = path.stat()
    entry = LandedFile(
        size=0,
        modified_ns=0,
        sha256="",
        landed_ns=stat.st_mtime_ns,
        contract="",
        staged=path.stem,
        rows=sum(counts.values()),
        days=counts,
    )
    return {f"recovered/{path.stem}": entry}


def day_problems(dataset: Dataset) -> Iterator[Problem]:
    """Yield damaged and missing files of raw rows and features."""
    paths, config = dataset.paths, dataset.config
    try:
        days = {day for day in Ledger.load(paths.ledger).days if config.has_day(day)}
    except (StorageError, OSError):
        days = set()
    for kind, path_of in (("raw_data", paths.raw), ("features", paths.features)):
        folder = path_of("_").parent
        for path in sorted(folder.glob("[!.]*.parquet")):
            if damage := damage_of(path):
                remedy = f"the next run builds {kind} of {path.stem} again"
                yield Problem(kind=kind, subject=str(path), message=damage, remedy=remedy, repair=remove(path))
        missing = sorted(day for day in days if not path_of(day).exists())
        if missing and folder.exists():
            yield Problem(
                kind=kind,
                subject=str(folder),
                message=f"{pluralize(len(missing), 'day')} missing: {abbreviate(missing)}",
                remedy="the next run builds them",
            )


def scratch_problems(dataset: Dataset) -> Iterator[Problem]:
    """Yield what is in the way of folders and locks, and old temporary files."""
    paths = dataset.paths
    if paths.lock.exists() and not paths.lock.is_file():
        yield Problem(
            kind="lock",
            subject=str(paths.lock),
            message="it is not a file",
            remedy="move it aside",
            repair=lambda: set_aside(paths.lock, paths),
        )
    for kind, folder in (("scratch", paths.scratch), ("cache", paths.cache)):
        if folder.exists() and not folder.is_dir():
            yield Problem(
                kind=kind,
                subject=str(folder),
                message="it is not a folder",
                remedy="move it aside",
                repair=lambda folder=folder: set_aside(folder, paths),  # type: ignore[misc]
            )
    yesterday = (dt.datetime.now(dt.UTC) - dt.timedelta(days=1)).timestamp()
    old = [
        path
        for folder in (paths.scratch, paths.raw("_").parent, paths.features("_").parent, paths.reports)
        for path in (folder.glob("*" if folder == paths.scratch else ".*.tmp") if folder.is_dir() else ())
        if path.is_file() and path.stat().st_mtime < yesterday
    ]
    if old:
        yield Problem(
            kind="scratch",
            subject=str(old[0]),
            message=f"{pluralize(len(old), 'temporary file')} of killed runs",
            remedy="delete them",
            repair=remove(*old),
        )
