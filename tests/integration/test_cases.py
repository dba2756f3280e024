"""Small files with values that are easy to lose: each row ends in raw_data, in quarantine, or in a refused file.

Each case is a dataset of one project. Its files land in steps, and `ae-pipeline run` follows each step.
"""

import datetime as dt
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from ae_pipeline.ingestion.ledger import Ledger
from tests.support.project import ProjectCopy

NOON = dt.datetime(2024, 3, 1, 12)
SETTINGS: dict[str, Any] = {"identity": ["id"], "event_time": "time", "start": "2024-01-01", "end": "2024-12-31"}


def csv(*ids: str, column: str = "v") -> bytes:
    """Return a CSV file with one row for each identity."""
    rows = [f"{identity},2024-03-01T10:00:00,{index}" for index, identity in enumerate(ids, 1)]
    return "\n".join([f"id,time,{column}", *rows, ""]).encode()


def parquet(ids: pa.Array, *, int96: bool = False, **columns: pa.Array) -> bytes:
    """Return a Parquet file with some identities and further columns."""
    times = pa.array([NOON] * len(ids), pa.timestamp("us"))
    values = {"v": pa.array(range(1, len(ids) + 1)), **columns}
    buffer = io.BytesIO()
    pq.write_table(pa.table({"id": ids, "time": times, **values}), buffer, use_deprecated_int96_timestamps=int96)
    return buffer.getvalue()


def feather(table: Mapping[str, pa.Array]) -> bytes:
    """Return an Arrow file."""
    buffer = io.BytesIO()
    pa.feather.write_feather(pa.table(dict(table)), buffer)
    return buffer.getvalue()


@dataclass(frozen=True, kw_only=True)
class Case:
    """Files that land, and what must become of them.

    Attributes:
        steps: Files of each step, by name.
        rows: Value of each row in raw_data, by identity.
        show: Column whose values `rows` holds.
        quarantined: Number of rows in quarantine.
        refused: Files that are refused.
        settings: Keys of the YAML beside identity and event time.
        says: Words that the output must contain.
    """

    steps: tuple[Mapping[str | bytes, bytes], ...]
    rows: Mapping[str, object]
    show: str = "v"
    quarantined: int = 0
    refused: frozenset[str] = frozenset()
    settings: Mapping[str, Any] = field(default_factory=dict)
    says: tuple[str, ...] = ()


def beside(name: str, odd: bytes) -> tuple[Mapping[str | bytes, bytes], ...]:
    """Return the steps of a case in which an odd file lands beside good ones."""
    return {"a_good.csv": csv("a")}, {"b0_good.csv": csv("b0"), name: odd, "c_good.csv": csv("c")}


def odd_column(column: pa.Array) -> tuple[Mapping[str | bytes, bytes], ...]:
    """Return the steps of a case in which the column `v` of a Parquet file has an odd type."""
    return beside("b.parquet", parquet(pa.array(["b"]), v=column))


GOOD: dict[str, object] = {"a": 1, "b0": 1, "c": 1}
LONG = ["11898508762506083287", "11898508762506083288", "11898508762506083289"]
DECIMALS = ["12345678901234567890", "12345678901234567891"]
TEXT = pa.dictionary(pa.int32(), pa.string())

CASES = {
    # Identities are text, exactly as landed.
    "long_ids": Case(steps=({"a.csv": csv(*LONG)},), rows={name: index for index, name in enumerate(LONG, 1)}),
    "long_ids_later": Case(
        steps=({"a.csv": csv("1", "2")}, {"b.csv": csv(*LONG)}),
        rows={"1": 1, "2": 2, **{name: index for index, name in enumerate(LONG, 1)}},
    ),
    "decimal_ids": Case(
        steps=({"a.parquet": parquet(pa.array([Decimal(name) for name in DECIMALS], pa.decimal128(38, 0)))},),
        rows=dict(zip(DECIMALS, (1, 2), strict=True)),
    ),
    "uint64_ids": Case(
        steps=({"a.parquet": parquet(pa.array([2**64 - 1, 2**64 - 2], pa.uint64()))},),
        rows={str(2**64 - 1): 1, str(2**64 - 2): 2},
    ),
    "scaled_decimal_ids": Case(
        steps=({"a.csv": csv("1.1", "1.10")}, {"b.parquet": parquet(pa.array([Decimal("1.2")], pa.decimal128(9, 2)))}),
        rows={"1.1": 1, "1.10": 2, "1.20": 1},
    ),
    "float32_ids": Case(
        steps=({"a.parquet": parquet(pa.array([0.1, 16777217.0, 3.0], pa.float32()))},),
        rows={"0.1": 1, "16777216": 2, "3": 3},
    ),
    "leading_zeros_later": Case(
        steps=({"a.csv": csv("7", "8")}, {"b.csv": csv("007")}), rows={"7": 1, "8": 2, "007": 1}
    ),
    "number_forms": Case(
        steps=({"a.csv": csv("12E3", "12000", "12000.0", "+12000", "0x10", "1_000")},),
        rows={"12E3": 1, "12000": 2, "12000.0": 3, "+12000": 4, "0x10": 5, "1_000": 6},
    ),
    "truth_ids": Case(steps=({"a.csv": csv("t", "true", "yes", "T")},), rows={"t": 1, "true": 2, "yes": 3, "T": 4}),
    "nanosecond_ids": Case(
        steps=(
            {
                "a.csv": csv("2024-03-01T10:00:00.000000001", "2024-03-01T10:00:00.000000002"),
                "b.parquet": parquet(
                    pa.array([1_709_287_200_000_000_003, 1_709_287_200_000_000_004], pa.timestamp("ns"))
                ),
            },
        ),
        rows={},
        show="count=4",
    ),
    # Dictionary-encoded text obeys the rules of plain text.
    "categories": Case(
        steps=(
            {"a.csv": b"id,time,v,country\nx1,2024-03-01T10:00:00,1,DE\nx9,2024-03-01T10:00:00,NA,NA\n"},
            {
                "b.parquet": parquet(
                    pa.array(["x1 ", "", "x3"]).cast(TEXT), country=pa.array(["NA", " DE ", "NA"]).cast(TEXT)
                )
            },
        ),
        rows={"x1": None, "x9": None, "x3": None},
        show="country",
        quarantined=1,
    ),
    # Names and folders.
    "name_not_utf8": Case(
        steps=({"a.csv": csv("a"), b"caf\xe9.csv": csv("b"), "c [1] %20?#.csv": csv("c")},),
        rows={"a": 1, "b": 1, "c": 1},
    ),
    "one_file": Case(steps=({"ünï cödé.csv": csv("a")},), rows={"a": 1}),
    # One odd file holds up no other.
    "zone_of_india": Case(
        steps=beside("b.parquet", parquet(pa.array(["b"]), time=pa.array([NOON], pa.timestamp("us", "+05:30")))),
        rows={**GOOD, "b": 1},
    ),
    "decimal256": Case(
        steps=odd_column(pa.array([Decimal("1.50")], pa.decimal256(50, 2))),
        rows=GOOD,
        quarantined=1,
        refused=frozenset({"b.parquet"}),
    ),
    "duration": Case(steps=odd_column(pa.array([5], pa.duration("s"))), rows=GOOD, refused=frozenset({"b.parquet"})),
    "struct": Case(steps=odd_column(pa.array([{"x": 1}])), rows=GOOD, refused=frozenset({"b.parquet"})),
    "list": Case(steps=odd_column(pa.array([[1, 2]])), rows=GOOD, refused=frozenset({"b.parquet"})),
    "binary": Case(steps=odd_column(pa.array([b"\0\1"])), rows=GOOD, refused=frozenset({"b.parquet"})),
    "nested_and_excluded": Case(
        steps=beside("b.parquet", parquet(pa.array(["b"]), w=pa.array([{"x": 1}]))),
        rows={**GOOD, "b": 1},
    ),
    "empty_header_name": Case(
        steps=beside("b.csv", b",id,time,v\n0,b,2024-03-01T10:00:00,1\n"), rows=GOOD, refused=frozenset({"b.csv"})
    ),
    "garbage": Case(steps=beside("b.parquet", b"PAR1 is not enough"), rows=GOOD, refused=frozenset({"b.parquet"})),
    "far_timestamps": Case(
        steps=(
            {
                "a.parquet": parquet(
                    pa.array(["a", "b"]),
                    int96=True,
                    v=pa.array([dt.datetime(9999, 12, 31), dt.datetime(2024, 5, 1)], pa.timestamp("us")),
                )
            },
        ),
        rows={"a": dt.datetime(9999, 12, 31, tzinfo=dt.UTC), "b": dt.datetime(2024, 5, 1, tzinfo=dt.UTC)},
    ),
    "event_out_of_range": Case(
        steps=beside("b.parquet", parquet(pa.array(["b"]), time=pa.array([2**62], pa.timestamp("ms")))),
        rows=GOOD,
        quarantined=1,
        refused=frozenset({"b.parquet"}),
    ),
    # Values.
    "line_breaks": Case(
        steps=({"a.csv": b'id,time,v\n"a\nb",2024-03-01T10:00:00,1\nc,2024-03-01T10:00:00,"2"\n'},),
        rows={"a\nb": 1, "c": 2},
    ),
    "one_bad_time": Case(
        steps=({"a.csv": csv(*(f"r{index}" for index in range(250))) + b"bad,yesterday,1\n"},),
        rows={f"r{index}": index + 1 for index in range(250)},
        quarantined=1,
        says=("yesterday",),
    ),
    "nil_marker": Case(
        steps=(
            {
                "s.csv": b"id,time,v\n"
                + b"".join(
                    f"{i},2024-01-{1 + i // 50:02d}T00:00:00,{'nil' if i % 50 == 0 else i / 4}\n".encode()
                    for i in range(500)
                )
            },
        ),
        rows={str(i): None if i % 50 == 0 else i / 4 for i in range(500)},
        says=("nil",),
    ),
    "exact_integers": Case(
        steps=(
            {
                "a.csv": b"id,time,v\n"
                + b"".join(f"{i},2024-03-01T10:00:00,{2**60 + 7 * i}\n".encode() for i in range(200))
            },
        ),
        rows={str(i): 2**60 + 7 * i for i in range(200)},
    ),
    "missing_boolean": Case(
        steps=(
            {"a.csv": b"id,time,v\na,2024-03-01T10:00:00,true\nb,2024-03-01T10:00:00,\nc,2024-03-01T10:00:00,no\n"},
        ),
        rows={"a": True, "b": None, "c": False},
    ),
}
"""Cases by the name of their dataset."""

RUN = """
import json, os, sys, traceback
from pathlib import Path
from ae_pipeline.cli.main import main
from ae_pipeline.cli.project import Project

# Once for all datasets, because it takes longer than most runs. Databases of Dagster take longer than the rest.
loaded = Project.load(opens_instance=False)
Project.load = lambda: loaded
plan = json.loads(Path(sys.argv[1]).read_text())
for name, steps in plan.items():
    for number, step in enumerate(steps, 1):
        folder = Path(os.environ["AE_PIPELINE_DATA"]) / "landing" / name
        folder.mkdir(parents=True, exist_ok=True)
        for target, source in step:
            path = os.path.join(os.fsencode(folder), bytes.fromhex(target))
            os.rename(source, path)
            os.utime(path, (1_700_000_000 + number, 1_700_000_000 + number))
        for stream in (sys.stdout, sys.stderr):
            print(f"== {name}", file=stream, flush=True)
        try:
            main(["run", name])
        except BaseException:
            traceback.print_exc()
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> ProjectCopy:
    """A project with one dataset for each case, in a data folder whose name is a glob pattern."""
    root = tmp_path_factory.mktemp("cases")
    settings = {name: {**SETTINGS, **case.settings} for name, case in CASES.items()}
    return ProjectCopy.create(root, settings, data_folder="data[1] %20?ä")


@pytest.fixture(scope="module")
def outputs(project: ProjectCopy) -> Mapping[str, str]:
    """Land and run all cases; return what each one printed."""
    plan: dict[str, list[list[tuple[str, str]]]] = {}
    staging = project.root / "files"
    staging.mkdir()
    for name, case in CASES.items():
        plan[name] = []
        for step in case.steps:
            plan[name].append([])
            for target, content in step.items():
                source = staging / str(sum(1 for _ in staging.iterdir()))
                source.write_bytes(content)
                encoded = target if isinstance(target, bytes) else target.encode()
                plan[name][-1].append((encoded.hex(), str(source)))
                source.with_suffix(".taken").touch()
    (project.root / "plan.json").write_text(json.dumps(plan))
    done = project.python(RUN, str(project.root / "plan.json"))
    assert done.returncode == 0, done.stderr[-3000:]
    printed = dict.fromkeys(CASES, "")
    for stream in (done.stdout, done.stderr):
        for part in stream.split("== ")[1:]:
            name, _, text = part.partition("\n")
            if name in printed:
                printed[name] += text
    return printed


def raw_rows(project: ProjectCopy, name: str) -> pl.DataFrame:
    """Return the raw rows of all days."""
    files = sorted(project.dataset(name).paths.raw("_").parent.glob("*.parquet"))
    return pl.concat([pl.read_parquet(path, glob=False) for path in files])


def check_case(name: str, project: ProjectCopy, output: str) -> None:
    """Check ledger, raw rows and output of a case.

    Raises:
        AssertionError: A row was lost or changed, or a file was not named.
    """
    case = CASES[name]
    assert "Traceback" not in output
    ledger = Ledger.load(project.dataset(name).paths.ledger)
    assert set(ledger.refused) == case.refused
    assert all(file in output for file in case.refused)
    assert sum(ledger.quarantined().values()) == case.quarantined
    rows = raw_rows(project, name)
    if case.show.startswith("count="):
        assert rows.height == rows["row_id"].n_unique() == int(case.show.removeprefix("count="))
    else:
        assert dict(zip(rows["row_id"], rows[case.show], strict=True)) == case.rows
    assert all(text in output for text in case.says)
    landed = sum(len(step) for step in case.steps)
    assert len(list((project.data / "landing" / name).iterdir())) == landed


@pytest.mark.timeout(900)
def test_each_row_is_kept_or_named(project: ProjectCopy, outputs: Mapping[str, str]) -> None:
    # One test, because tests of one module may run in several processes, and each would run all cases.
    assert Path(project.data).name.startswith("data[1]")
    problems = {}
    for name in CASES:
        try:
            check_case(name, project, outputs[name])
        except AssertionError as error:
            problems[name] = f"{error}\n{outputs[name][-2000:]}"
    assert problems == {}
