"""Large files that are read part by part, and large days that are sorted on disk, give the rows of small ones."""

import random
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ae_pipeline.common.errors import PipelineError
from ae_pipeline.config.source import SourceConfig
from ae_pipeline.ingestion import deduplicate, first_contract, landing, raw
from ae_pipeline.ingestion.raw import build_raw_day
from ae_pipeline.ingestion.readers import large_text
from ae_pipeline.ingestion.readers.delimited import read_delimited
from ae_pipeline.ingestion.readers.large_text import read_delimited_parts
from ae_pipeline.ingestion.rows import FileRows, UnreadableFileError
from ae_pipeline.storage.parquet import read_facts
from tests.support.datasets import HEADER, TODAY, LandedDataset, leftovers, line, make_dataset

TOKENS: tuple[bytes, ...] = (
    b"a",
    b",",
    b"\n",
    b'"',
    b'""',
    b"\r\n",
    b" ",
    b'"\n"',
    b',"x\ny",',
    b"1,2,3\n",
    "é".encode(),
    b"\xe9",
)
TOKENS += (b"\r", "\ufeff".encode())


def use_parts(monkeypatch: pytest.MonkeyPatch, part_bytes: int = 400) -> None:
    """Read every text file in parts, and sort every day on disk."""
    monkeypatch.setattr(large_text, "LARGE_BYTES", 0)
    monkeypatch.setattr(large_text, "PART_BYTES", part_bytes)
    monkeypatch.setattr(raw, "LARGE_ROWS", 0)
    monkeypatch.setattr(raw, "BATCH_ROWS", 17)
    monkeypatch.setattr(deduplicate, "_PARTITION_ROWS", 20)
    large_text._scan.cache_clear()


def joined(parts: list[FileRows]) -> tuple[Any, ...]:
    """Return the rows of the parts of a file together."""
    rows, rejected = pl.concat([part.rows for part in parts]), pl.concat([part.rejected for part in parts])
    return rows.rows(), rows.schema, rejected.rows(), {part.dialect for part in parts}


def test_random_texts_have_the_same_rows_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, path, compared, refused = random.Random(0), tmp_path / "a.csv", 0, 0
    for _ in range(60):
        weights = [rng.random() ** 2 for _ in TOKENS]
        data = b"p,q,r\n" + b"".join(rng.choices(TOKENS, weights, k=rng.randint(20, 120)))
        limits = {
            "record_bytes": rng.choice([30, 64]),
            "rows": rng.choice([8, 1000, 1000, 1000]),
            "rejected_rows": rng.choice([3, 1000, 1000, 1000]),
        }
        declared = {"separator": ",", "encoding": rng.choice([None, "cp1252"]), "max_record_lines": 5}
        source = SourceConfig.model_validate({**declared, "limits": limits})
        path.write_bytes(data)
        use_parts(monkeypatch, rng.choice([8, 16, 40]))
        try:
            whole = joined([read_delimited(".csv", data, source)])
        except UnreadableFileError as error:
            message = str(error)
            if "cannot be told apart" not in message:  # this message counts the rows of a part
                if "rows that cannot be read" in message:  # those of the part that reached the limit are counted
                    message = message[message.index("or more") :]
                with pytest.raises(UnreadableFileError, match=re.escape(message)):
                    list(read_delimited_parts(".csv", path, source))
                refused += 1
            continue
        parts = list(read_delimited_parts(".csv", path, source))
        assert joined(parts) == whole, data
        compared += len(parts) > 1
    assert compared > 15
    assert refused > 5


def many_lines(count: int, start: int = 0) -> str:
    """Return rows of three days, with repeated identities and quoted line breaks."""
    rows = (
        line(
            (start + 7 * index) % 211,
            f"2024-03-{1 + index % 3:02d}T{index % 24:02d}:00:00",
            price=index,
            city=f'"Oslo\n{index}"' if index % 5 == 0 else "Oslo",
        )
        for index in range(count)
    )
    return "".join(rows)


BROKEN = "1,2\n" + line(9999, price="much") + '5,"open\n' + line(7, "2025-02-01T00:00:00")
"""Too few values, no number, an open quote, and a day after the last one."""

CASES: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "days, quotes, duplicates, invalid rows, a newer file": (
        {"a.csv": many_lines(100) + BROKEN + many_lines(90), "b.csv": many_lines(100, start=3)},
        {},
    ),
    "no identity": ({"a.csv": many_lines(150) * 2}, {"identity": []}),
    "no event time, and a type that changes late": (
        {"a.csv": many_lines(200) + line(500, price="1.25") + line(501, price="n/a")},
        {"event_time": None, "start": None, "end": None},
    ),
    "a text late in a column of numbers, another encoding": (
        {"a.csv": many_lines(150).replace("Oslo", "Malmö") + "".join(line(n, price="x1") for n in range(99))},
        {"source": {"encoding": "cp1252"}},
    ),
    "no valid row, too many rows": (
        {"a.csv": "".join(line(n, "2030-01-01T00:00:00") for n in range(40)), "b.csv": many_lines(150)},
        {"source": {"limits": {"rows": 100}}},
    ),
    "a day whose rows have all moved to another one": (
        {"a.csv": "".join(line(n) for n in range(50)), "b.csv": "".join(line(n, "2024-04-01") for n in range(50))},
        {},
    ),
    "too many rows that cannot be read": (
        {"a.csv": many_lines(60), "b.csv": many_lines(40) + "1,2\n" * 3},
        {"source": {"limits": {"rejected_rows": 2}}},
    ),
}


def state_of(root: Path, files: dict[str, str], settings: dict[str, Any]) -> tuple[Any, ...]:
    """Ingest files, build all days, and return the contract, the ledger, quarantined rows and raw rows."""
    shop = make_dataset(root, **settings)
    for name, rows in files.items():
        encoding = settings.get("source", {}).get("encoding", "utf-8")
        shop.land(name, (HEADER + rows).encode(encoding), at=1_700_000_000 + ord(name[0]))
    try:
        ingested = landing.ingest(shop, TODAY)
    except PipelineError as error:
        return (str(error),)
    days = [asdict(build_raw_day(day, ingested, shop.paths)) for day in ingested.ledger.days]
    facts = [{**read_facts(shop.paths.raw(day["day"])), "sha256": ""} for day in days]  # the seal of all bytes
    entries = {name: asdict(entry) for name, entry in ingested.ledger.files.items()}
    assert leftovers(root) == []
    return shop.paths.contract.read_text(), entries, quarantine_of(shop), days, facts, ingested.moved


def quarantine_of(shop: LandedDataset) -> list[tuple[Any, ...]]:
    folder = shop.paths.quarantined("_").parent
    return [row for path in sorted(folder.glob("*.parquet")) for row in pl.read_parquet(path).rows()]


@pytest.mark.parametrize("name", CASES)
def test_a_large_file_gives_what_a_small_one_gives(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, settings = CASES[name]
    monkeypatch.setattr(first_contract, "_SAMPLED_CELLS", 700)  # the contract is inferred from every few rows
    settings = {**settings, "source": {"separator": ",", **settings.get("source", {})}}
    settings["source"]["limits"] = {"record_bytes": 300, **settings["source"].get("limits", {})}
    whole = state_of(tmp_path / "whole", files, settings)
    use_parts(monkeypatch)
    assert state_of(tmp_path / "parts", files, settings) == whole


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_parts(monkeypatch)
    shop = make_dataset(tmp_path, source={"separator": ",", "limits": {"record_bytes": 300}})
    shop.land("a.csv", HEADER + many_lines(100))
    shop.ingest()
    path = shop.land("b.csv", HEADER + many_lines(100))
    large_text.scan_text(path)
    stat, scan = path.stat(), large_text._scan
    monkeypatch.setattr(large_text, "scan_text", lambda path: scan(path, stat.st_ino, stat.st_size, stat.st_mtime_ns))
    shop.land("b.csv", HEADER + many_lines(120))
    assert "has changed while it was read" in str(shop.ingest().ledger.files["b.csv"].refused)
    monkeypatch.undo()
    path.touch()
    assert shop.ingest().ledger.files["b.csv"].rows == 120
