"""Packs: staged copies that hold the rows of many landed files, because a disk takes milliseconds for each file.

The name of a copy in the ledger is then that of the pack and the first row of the landed file in it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import polars as pl

from ae_pipeline.ingestion.ledger import LandedFile
from ae_pipeline.storage.hashing import hash_json
from ae_pipeline.storage.parquet import read_facts, write_rows
from ae_pipeline.storage.paths import MEMBER, DatasetPaths

ENTRY_FACT = "ledger_entry"
"""Footer key of a staged copy with its entry of the ledger, as JSON, from which a lost ledger is rebuilt."""

ENTRIES_FACT = "ledger_entries"
"""The same key of the copy of many landed files, with a list."""

IMAGE_FACT = "image."
"""Prefix of the footer key with the shape of the images of a column in a staged copy."""

NUMBER = "_number"
"""Column with the number of the landed file that a row comes from."""


def entry_fact(name: str, entry: LandedFile) -> dict[str, str]:
    """Return the footer entry of a staged copy.

    Args:
        name: Path of the file below the landing folder.
        entry: Entry of the file; rows and days are those of the copy.
    """
    return {ENTRY_FACT: json.dumps({"name": name, **entry.as_json()})}


def entries_fact(entries: Mapping[str, LandedFile]) -> dict[str, str]:
    """Return the footer entry of the staged copy of landed files.

    Args:
        entries: Entries by the path of the file below the landing folder; rows and days are those of the copy.
    """
    if len(entries) == 1 and all(first_row(entry) is None for entry in entries.values()):
        return entry_fact(*next(iter(entries.items())))
    return {ENTRIES_FACT: json.dumps([{"name": name, **entry.as_json()} for name, entry in entries.items()])}


def stored_entries(path: Path) -> dict[str, LandedFile]:
    """Return the ledger entries of a staged copy, none if it is damaged or of an earlier version."""
    facts = read_facts(path)
    values = [json.loads(facts[ENTRY_FACT])] if ENTRY_FACT in facts else json.loads(facts.get(ENTRIES_FACT, "[]"))
    return {value.pop("name"): LandedFile.from_json(value) for value in values}


def pack_name(copies: Iterable[str]) -> str:
    """Return the name of the pack of some landed files.

    Args:
        copies: Name that the staged copy of each file would have.
    """
    return hash_json(list(copies))


def member_name(pack: str, first: int) -> str:
    """Return the name of the copy of a landed file in a pack.

    Args:
        pack: Name of the pack.
        first: Its first row in the pack, from 0.

    >>> member_name("1f3a", 20)
    '1f3a@20'
    """
    return f"{pack}{MEMBER}{first}"


def packed_entries(entries: Mapping[str, LandedFile]) -> dict[str, LandedFile]:
    """Return the entries of landed files with a new pack as their staged copy, which has their rows in this order.

    Args:
        entries: Entries by the path of the file below the landing folder, with the copy that each would have.
    """
    pack = pack_name(str(entry.staged) for entry in entries.values())
    starts = accumulate((entry.rows for entry in entries.values()), initial=0)
    return {
        name: replace(entry, staged=member_name(pack, start))
        for (name, entry), start in zip(entries.items(), starts, strict=False)
    }


def first_row(entry: LandedFile) -> int | None:
    """Return the first row of a landed file in its pack, or None if it has a staged copy of its own."""
    _, separator, first = str(entry.staged).partition(MEMBER)
    return int(first) if separator else None


def is_packed(entry: LandedFile) -> bool:
    """Return whether the staged copy of a landed file is a pack."""
    return first_row(entry) is not None


def rows_of(entry: LandedFile, rows: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of one landed file.

    Args:
        entry: Its ledger entry.
        rows: All rows of its staged copy.
    """
    first = first_row(entry)
    return rows if first is None else rows.slice(first, entry.rows)


def in_packs(files: Iterable[tuple[str, LandedFile]]) -> dict[str, list[tuple[int, str, LandedFile]]]:
    """Return number, name and entry of landed files by the file of their staged copy, in the order of the first ones.

    Args:
        files: Path below the landing folder and entry of each file.
    """
    copies: dict[str, list[tuple[int, str, LandedFile]]] = {}
    for number, (name, entry) in enumerate(files):
        copies.setdefault(str(entry.staged).partition(MEMBER)[0], []).append((number, name, entry))
    return copies


def numbered_rows(rows: pl.DataFrame, packed: Sequence[tuple[int, LandedFile]]) -> pl.DataFrame:
    """Return the rows of some landed files of one staged copy, with the number of the file as `NUMBER`.

    Args:
        rows: All rows of the copy.
        packed: Number and ledger entry of each file.
    """
    if first_row(packed[0][1]) is None:
        return rows.with_columns(pl.lit(packed[0][0], pl.Int64).alias(NUMBER))
    index = np.concatenate([np.arange(entry.rows) + (first_row(entry) or 0) for _, entry in packed])
    numbers = np.repeat([number for number, _ in packed], [entry.rows for _, entry in packed])
    is_whole = np.array_equal(index, np.arange(rows.height))  # a selection would copy all pixels
    return (rows if is_whole else rows[index]).with_columns(pl.Series(NUMBER, numbers, pl.Int64))


def repack(
    files: Mapping[str, LandedFile], previous: Iterable[LandedFile], paths: DatasetPaths
) -> dict[str, LandedFile]:
    """Return ledger entries whose packs hold no rows of other files, and write such packs again.

    So the rows of a file that was deleted or landed again do not stay on the disk. Packs that are damaged stay.

    Args:
        files: Ledger entries by the path of the file below the landing folder.
        previous: Entries whose packs held rows of no other files: those of the last ingestion, or of the copies.
        paths: Paths of the dataset.

    Raises:
        StorageError: The disk is full, or a folder cannot be written.
    """
    result = dict(files)
    current = {entry.staged for entry in files.values()}
    left_out = (entry for entry in previous if entry.staged not in current and first_row(entry) is not None)
    smaller = {paths.staged(str(entry.staged)) for entry in left_out}
    rest = in_packs(
        (name, entry) for name, entry in files.items() if smaller and paths.staged(str(entry.staged)) in smaller
    )
    for packed in rest.values():
        path = paths.staged(str(packed[0][2].staged))
        if not (facts := read_facts(path)):
            continue
        packed.sort(key=lambda member: first_row(member[2]) or 0)
        rows = pl.read_parquet(path, glob=False)
        kept = packed_entries({name: entry for _, name, entry in packed})
        left = pl.concat([rows_of(entry, rows) for _, _, entry in packed])
        shapes = {key: value for key, value in facts.items() if key.startswith(IMAGE_FACT)}
        target = paths.staged(str(kept[packed[0][1]].staged))
        write_rows(target, left.to_arrow(), {**shapes, **entries_fact(kept)}, fast=True)
        result |= kept
    return result
