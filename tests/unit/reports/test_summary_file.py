"""`summary.json` when it is read back."""

from pathlib import Path

import pytest

from ae_pipeline.reports.summary import read_summary
from ae_pipeline.storage.paths import DatasetPaths


@pytest.mark.parametrize("content", [None, b"", b'{"day": "2024-0', b"\xc5\xff\x00", b"[1]"])
def test_a_missing_or_damaged_summary_is_none(tmp_path: Path, content: bytes | None) -> None:
    paths = DatasetPaths(tmp_path, "orders")
    paths.reports.mkdir(parents=True)
    if content is not None:
        (paths.reports / "summary.json").write_bytes(content)
    assert read_summary(paths) is None


def test_a_whole_summary_is_read(tmp_path: Path) -> None:
    paths = DatasetPaths(tmp_path, "orders")
    paths.reports.mkdir(parents=True)
    (paths.reports / "summary.json").write_text('{"rows": 3}', encoding="utf-8")
    assert read_summary(paths) == {"rows": 3}
