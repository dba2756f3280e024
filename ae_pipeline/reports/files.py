"""Files of a report and their digests, so that a damaged or deleted one is written again."""

import json
from pathlib import Path

from ae_pipeline.storage.files import write_text
from ae_pipeline.storage.hashing import hash_json
from ae_pipeline.storage.integrity import file_digest
from ae_pipeline.storage.paths import DatasetPaths

_INDEX = "files.json"
"""File with the SHA-256 of the files of a report, relative to its folder."""


def write_report_file(path: Path, text: str, paths: DatasetPaths) -> None:
    """Write a text file of a report atomically, and record its digest."""
    write_text(path, text)
    record_report_file(path, paths)


def record_report_file(path: Path, paths: DatasetPaths) -> None:
    """Record the digest of a file of a report, or forget it if the file does not exist."""
    name, digest, known = path.relative_to(paths.reports).as_posix(), file_digest(path), _index(paths) or {}
    if known.get(name) == digest:
        return
    changed = {**known, name: digest}
    files = {other: value for other, value in sorted(changed.items()) if value is not None}
    write_text(paths.reports / _INDEX, json.dumps({"files": files, "digest": hash_json(files)}, indent=1))


def damaged_report_files(paths: DatasetPaths) -> list[Path]:
    """Return the files of a report that are missing or were changed; also the record of their digests itself."""
    known = _index(paths)
    if known is None:
        return [paths.reports / _INDEX]
    return [paths.reports / name for name, digest in known.items() if file_digest(paths.reports / name) != digest]


def _index(paths: DatasetPaths) -> dict[str, str | None] | None:
    """Return the recorded digests; none without a record, as in reports of earlier versions; None if it is damaged."""
    path = paths.reports / _INDEX
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_bytes())
        files = content["files"]
        return dict(files) if content["digest"] == hash_json(files) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
