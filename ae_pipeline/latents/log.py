"""Integrity of a latent table in a folder: digests of its Delta log and of the texts beside it, and their repair.

A commit of the log that was cut at the end of a line is valid JSON with fewer rows, so parsing does not find the
damage. The digests of the log are therefore kept beside it. In an object store, the store itself keeps objects whole.
"""

import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ae_pipeline.storage.files import write_text
from ae_pipeline.storage.hashing import hash_json
from ae_pipeline.storage.integrity import file_digest, move_aside

DIGESTS = "_contract/digests.json"
"""File with the digests, and with copies of the texts, relative to the table."""

_LOG = "_delta_log"
_COMMIT = re.compile(r"_delta_log/(\d{20})\.json")
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint.*\.parquet")

logger = logging.getLogger(__name__)


def record_digests(table: Path, texts: Iterable[str], files: Iterable[str]) -> None:
    """Write the digests of the log and of other files of a table, and copies of texts.

    Args:
        table: Folder of the table.
        texts: Text files to copy as well, relative to the table.
        files: Further files, relative to the table.
    """
    texts = [name for name in texts if (table / name).is_file()]
    commits = [f"{_LOG}/{path.name}" for path in sorted((table / _LOG).glob("*.json"))]
    names = [name for name in (*commits, *texts, *files) if (table / name).is_file()]
    content: dict[str, Any] = {
        "files": {name: file_digest(table / name) for name in names},
        "texts": {name: (table / name).read_text(encoding="utf-8") for name in texts},
    }
    text = json.dumps({**content, "digest": hash_json(content)}, indent=1)
    path = table / DIGESTS
    if not path.is_file() or path.read_bytes() != text.encode():
        write_text(path, text)


def damaged_commits(table: Path) -> dict[str, str]:
    """Return the files of the log that are missing or changed, relative to the table, each with what is wrong."""
    damaged = {name: reason for name, reason in _damaged(table).items() if _COMMIT.fullmatch(name)}
    newest_checkpoint = max(
        (int(match[1]) for path in (table / _LOG).glob("*.parquet") if (match := _CHECKPOINT.fullmatch(path.name))),
        default=-1,
    )
    # Delta deletes commits that a checkpoint contains after the retention of the log.
    return {
        name: reason for name, reason in damaged.items() if reason != "missing" or _version(name) > newest_checkpoint
    }


def damaged_texts(table: Path) -> list[str]:
    """Return the files beside the log that are missing or changed, relative to the table; also `DIGESTS` itself."""
    record = [DIGESTS] if (table / DIGESTS).exists() and _read(table) is None else []
    return record + [name for name in _damaged(table) if not _COMMIT.fullmatch(name)]


def restore_texts(table: Path) -> None:
    """Write texts that are missing or changed again from their copies."""
    content = _read(table) or {}
    for name in _damaged(table):
        if name in content["texts"]:
            logger.warning(f"{table / name} is damaged or missing, and is restored")
            write_text(table / name, content["texts"][name])


def repair_log(table: Path, location: str) -> list[Path]:
    """Move aside the damaged commits of a log and those after them, or the whole log if no version remains.

    Args:
        table: Folder of the table.
        location: Location with which the `deltalake` package opens the table.

    Returns:
        The new paths of what was moved.
    """
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    folder = table / _LOG
    first = min(map(_version, damaged_commits(table)), default=None)
    commits = sorted(path for path in folder.glob("*.json") if path.stem.isdigit())
    versions = [int(path.stem) for path in commits]
    candidates = sorted({version - 1 for version in versions if first is None or version <= first} - {-1}, reverse=True)
    if first is not None and first - 1 in versions:
        candidates = [first - 1, *candidates]
    moved: list[Path] = []
    aside = table / "_damaged"
    for last in candidates:
        for path in sorted(folder.glob("*")):
            match = re.match(r"(\d{20})\.", path.name)
            if path.name == "_last_checkpoint" or (match and int(match[1]) > last):
                moved.append(move_aside(path, aside))
        try:
            if DeltaTable.is_deltatable(location):
                DeltaTable(location).get_add_actions()
                _forget(table)
                return moved
        except (DeltaError, OSError, ValueError):
            continue
    if folder.exists():
        moved.append(move_aside(folder, aside))
    _forget(table)
    return moved


def _forget(table: Path) -> None:
    """Remove the digests of commits that are no longer in the log."""
    content = _read(table)
    if content is None:
        (table / DIGESTS).unlink(missing_ok=True)
        return
    files = {
        name: digest
        for name, digest in content["files"].items()
        if not _COMMIT.fullmatch(name) or (table / name).is_file()
    }
    content = {"files": files, "texts": content["texts"]}
    write_text(table / DIGESTS, json.dumps({**content, "digest": hash_json(content)}, indent=1))


def _damaged(table: Path) -> dict[str, str]:
    known = (_read(table) or {"files": {}})["files"]
    digests = {name: (digest, file_digest(table / name)) for name, digest in known.items()}
    return {
        name: "missing" if actual is None else "its SHA-256 is another one"
        for name, (expected, actual) in digests.items()
        if actual != expected
    }


def _read(table: Path) -> dict[str, Any] | None:
    """Return digests and texts; None if they are missing or damaged."""
    try:
        content = json.loads((table / DIGESTS).read_bytes())
        digest = content.pop("digest")
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    return dict(content) if digest == hash_json(content) else None


def _version(name: str) -> int:
    return int(Path(name).stem)
