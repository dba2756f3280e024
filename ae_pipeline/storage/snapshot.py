"""A snapshot: the files of a dataset by path, with the hash of their content, and the merge of two of them."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

from ae_pipeline.common.errors import ConflictError, StorageError
from ae_pipeline.storage.hashing import hash_json_items
from ae_pipeline.storage.marks_table import marks_parquet

T = TypeVar("T")

LEDGER_DIGEST = "sha256"
"""Key of the ledger beside its entries: their digest. No landed file has this name, because it has no suffix."""

_FORMAT = 1

_TIMES = ("landed_ns", "modified_ns")
"""Times of an entry of the ledger. Two hosts that read the same file at the same time have different ones."""

_REBUILT = ("raw/", "features/", "reports/", "quarantine/", "staging/")
"""Folders of files that describe themselves, so that the planner rebuilds one that does not fit the merged ledger."""


class Entry(NamedTuple):
    """A file of a snapshot.

    Attributes:
        sha256: Hash of the content, and the name of the object that has it.
        size: Size in bytes.
        modified_ns: Modification time in ns since 1970, so that each working copy has the same.
    """

    sha256: str
    size: int
    modified_ns: int


Entries = Mapping[str, Entry]
"""Files of a snapshot, by their path below the data folder."""


def dump_snapshot(entries: Entries) -> bytes:
    """Return a snapshot as JSON."""
    return json.dumps({"format": _FORMAT, "files": dict(sorted(entries.items()))}, separators=(",", ":")).encode()


def parse_snapshot(data: bytes, address: str) -> dict[str, Entry]:
    """Return the files of a snapshot.

    Args:
        data: Content of the object.
        address: Its address, for the message.

    Raises:
        StorageError: It is no snapshot, or one of a later version of this package.
    """
    try:
        content = json.loads(data)
        if content["format"] == _FORMAT:
            entries = {path: Entry(*entry) for path, entry in content["files"].items()}
            if outside := next((path for path in entries if not is_relative(path)), None):
                raise ValueError(f"it has the path {outside!r}")
            return entries
        reason = f"its format is {content['format']}, and this version of ae_pipeline reads {_FORMAT}"
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = str(error)
    raise StorageError(f"{address} cannot be read ({reason}); install a newer version, or restore an earlier object")


def is_relative(path: str) -> bool:
    """Return whether a path stays below the folder that it is relative to.

    >>> is_relative("raw/orders/2024-01-01.parquet"), is_relative("raw/../../x"), is_relative("/x")
    (True, False, False)
    """
    return "\0" not in path and not any(part in {"", ".", ".."} for part in path.split("/"))


class Merge(NamedTuple):
    """A snapshot that has the changes of two hosts.

    Attributes:
        entries: Its files.
        written: Content of files that neither host has.
    """

    entries: dict[str, Entry]
    written: dict[str, bytes]


def merge(base: Entries, theirs: Entries, ours: Mapping[str, Entry | None], read: Callable[[Entry], bytes]) -> Merge:
    """Return their snapshot with our changes, and the content of files that both hosts have changed.

    Changes of different files stand side by side. Lines of JSON Lines files and entries of the ledger are merged. Of
    files that can be built again, theirs stands, and the planner finds what does not fit.

    Args:
        base: Snapshot that both started from.
        theirs: Snapshot that the other host has written.
        ours: Files that this host has changed; None for a deleted one.
        read: Returns the content of a file.

    Raises:
        ConflictError: Both have changed what only a person, or another run, can merge.
    """
    merged, written = dict(theirs), dict[str, bytes]()
    for path, our in ours.items():
        earlier, their = base.get(path), theirs.get(path)
        if _hash(their) == _hash(earlier):
            if our is None:
                merged.pop(path, None)
            else:
                merged[path] = our
        elif _hash(their) == _hash(our) or is_rebuilt(path):
            continue
        elif our is None or their is None:
            raise ConflictError(f"another host has changed or removed {path} at the same time; run again")
        elif path.endswith(".jsonl"):
            written[path] = _merge_lines(*(read(each) if each else b"" for each in (earlier, their, our)))
        elif path.endswith("/ledger.json"):
            written[path] = _merge_ledgers(*(read(each) if each else b"{}" for each in (earlier, their, our)))
        elif path.endswith("marks.parquet"):
            merged[path] = our  # the merged marks replace it below
        else:
            raise ConflictError(f"another host has changed {path} at the same time; run again")
    for path in [each for each in written if each.endswith("/marks.jsonl")]:
        written[path.removesuffix("jsonl") + "parquet"] = marks_parquet(written[path])
    return Merge(merged, written)


def _hash(entry: Entry | None) -> str | None:
    return entry.sha256 if entry else None


def is_rebuilt(path: str) -> bool:
    """Return whether the next runs build a file again if it is missing."""
    return path.startswith(_REBUILT) and not path.endswith("/ledger.json")


def _merge_lines(base: bytes, theirs: bytes, ours: bytes) -> bytes:
    """Return the lines of both hosts without those that one has removed, theirs first."""
    earlier, their, our = (text.splitlines(keepends=True) for text in (base, theirs, ours))
    kept_by_us, known, has = set(our), set(earlier), set(their)
    kept = [line for line in their if line in kept_by_us or line not in known]
    new = [line for line in our if line not in known and line not in has]
    return b"".join(line if line.endswith(b"\n") else line + b"\n" for line in [*kept, *new])


def _merge_ledgers(base: bytes, theirs: bytes, ours: bytes) -> bytes:
    earlier, their, our = (json.loads(text) for text in (base, theirs, ours))
    for ledger in (earlier, their, our):
        ledger.pop(LEDGER_DIGEST, None)
    for name in our.keys() | earlier.keys():
        if our.get(name) == earlier.get(name) or our.get(name) == their.get(name):
            continue
        if their.get(name) != earlier.get(name):
            if _without_times(their.get(name)) != _without_times(our.get(name)):
                raise ConflictError(f"another host has read {name} at the same time, with another result; run again")
        elif name in our:
            their[name] = our[name]
        else:
            del their[name]
    return "".join(ledger_lines(their, lambda entry: entry)).encode()


def ledger_lines(entries: Mapping[str, T], as_json: Callable[[T], object]) -> Iterator[str]:
    """Yield the lines of a ledger: one for each entry, and their digest.

    Args:
        entries: Entries by the path of the landed file.
        as_json: Function that returns the JSON value of an entry.
    """
    yield "{\n"
    for key, entry in entries.items():
        yield f"{json.dumps(key)}: {json.dumps(as_json(entry))},\n"
    digest = hash_json_items((key, as_json(entries[key])) for key in sorted(entries))
    yield f"{json.dumps(LEDGER_DIGEST)}: {json.dumps(digest)}\n}}"


def _without_times(entry: dict[str, Any] | None) -> dict[str, Any] | None:
    return entry and {name: value for name, value in entry.items() if name not in _TIMES}
