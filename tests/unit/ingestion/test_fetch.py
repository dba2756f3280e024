"""Rows that a query or a Python function fetches into the landing folder."""

import datetime as dt
import logging
import sqlite3
import sys
import types
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import sqlalchemy as sa
import yaml
from pydantic import ValidationError

from ae_pipeline.common.errors import ConfigError, PipelineError, SourceError, StorageError
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.ingestion.fetch import days_to_fetch, fetch
from ae_pipeline.ingestion.query import connect_options, day_parameters
from ae_pipeline.lifecycle.ingest import read_landed_files
from ae_pipeline.lifecycle.plan import Step, plan_landing
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.paths import DatasetPaths

QUERY = "SELECT * FROM orders WHERE created >= :day_start AND created < :day_end"
NOW = dt.datetime(2025, 3, 4, 12, tzinfo=dt.UTC)
DAYS = ["2025-03-01", "2025-03-02", "2025-03-03", "2025-03-04"]


def make_dataset(root: Path, source: dict[str, Any], **settings: Any) -> Dataset:
    """Return a dataset with event time whose rows come from a source."""
    daily = {"event_time": "created", "start": "2025-03-01"} | settings
    config = PipelineConfig.model_validate({"dataset": "orders", "identity": ["id"], "source": source, **daily})
    return Dataset(config, DatasetPaths(root / "data", "orders"))


def execute(file: Path, statement: str) -> None:
    """Run a statement on a SQLite database, and commit."""
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(statement)


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A SQLite database with orders on three of four days; ORDERS_DB holds its URL."""
    file = tmp_path / "orders.db"
    execute(file, "CREATE TABLE orders (id BIGINT, created TIMESTAMP, price REAL, note TEXT)")
    for day, count in (("2025-03-01", 2), ("2025-03-03", 1), ("2025-03-04", 3)):
        for index in range(count):
            execute(file, f"INSERT INTO orders VALUES ({2**62 + index}, '{day} 0{index}:30:00', 1.5, NULL)")
    monkeypatch.setenv("ORDERS_DB", f"sqlite:///{file}")
    return file


@pytest.fixture
def by_query(tmp_path: Path, database: Path) -> Dataset:
    """The orders of the database."""
    return make_dataset(tmp_path, {"query": QUERY, "connection": "ORDERS_DB"})


def landed(dataset: Dataset) -> dict[str, int]:
    """Return the landed files and their numbers of rows."""
    return {path.stem: pl.read_parquet(path).height for path in sorted(dataset.paths.landing.glob("*.parquet"))}


def times(dataset: Dataset) -> dict[str, int]:
    """Return the modification time of each landed file."""
    return {path.stem: path.stat().st_mtime_ns for path in dataset.paths.landing.glob("*.parquet")}


def test_each_day_with_rows_becomes_a_file(by_query: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert days_to_fetch(by_query, NOW) == DAYS
    fetch(by_query, NOW)
    assert landed(by_query) == {"2025-03-01": 2, "2025-03-03": 1, "2025-03-04": 3}
    expected = (
        "the query of 'orders' (connection ORDERS_DB) gave 4 days (2025-03-01, 2025-03-02, 2025-03-03, 2025-03-04)"
    )
    assert [r.getMessage() for r in caplog.records] == [f"{expected}: 6 rows; 3 written, 1 without rows"]
    rows = pl.read_parquet(by_query.paths.landing / "2025-03-01.parquet")
    assert rows["id"].to_list() == [2**62, 2**62 + 1]


def test_only_young_days_are_fetched_again(by_query: Dataset, database: Path) -> None:
    fetch(by_query, NOW)
    written = times(by_query)
    execute(database, "DELETE FROM orders WHERE created < '2025-03-02'")
    execute(database, f"INSERT INTO orders VALUES ({2**62 + 7}, '2025-03-03 09:00:00', 2.5, 'late')")
    assert days_to_fetch(by_query, NOW, NOW + dt.timedelta(seconds=1)) == ["2025-03-03", "2025-03-04"]
    fetch(by_query, NOW + dt.timedelta(hours=1))
    assert landed(by_query) == {"2025-03-01": 2, "2025-03-03": 2, "2025-03-04": 3}
    assert {day for day, at in times(by_query).items() if at != written[day]} == {"2025-03-03"}


def test_day_is_fetched_once_more_after_a_pause(by_query: Dataset) -> None:
    """A day that was fetched while it was still filling is fetched again, however long the pause is."""
    fetch(by_query, NOW)
    later = NOW + dt.timedelta(days=30)
    due = days_to_fetch(by_query, later)
    assert due[:3] == ["2025-03-03", "2025-03-04", "2025-03-05"]
    fetch(by_query, later)
    assert days_to_fetch(by_query, later, later + dt.timedelta(seconds=1)) == ["2025-04-02", "2025-04-03"]


def test_deleted_file_is_fetched_again(by_query: Dataset) -> None:
    fetch(by_query, NOW)
    (by_query.paths.landing / "2025-03-01.parquet").unlink()
    later = NOW + dt.timedelta(hours=2)
    assert days_to_fetch(by_query, later) == ["2025-03-01", "2025-03-03", "2025-03-04"]


def test_sensor_waits_between_two_fetches(by_query: Dataset) -> None:
    fetch(by_query, NOW)
    assert days_to_fetch(by_query, NOW + dt.timedelta(minutes=59)) == []
    assert days_to_fetch(by_query, NOW + dt.timedelta(minutes=61)) == ["2025-03-03", "2025-03-04"]


def test_other_order_of_rows_is_no_change(by_query: Dataset, database: Path, tmp_path: Path) -> None:
    fetch(by_query, NOW)
    written = times(by_query)
    other = make_dataset(tmp_path, {"query": f"{QUERY} ORDER BY id DESC", "connection": "ORDERS_DB"})
    assert days_to_fetch(other, NOW) == DAYS  # another query may give other rows
    fetch(other, NOW)
    assert times(other) == written


def test_day_without_rows_any_more_is_withdrawn(by_query: Dataset, database: Path) -> None:
    fetch(by_query, NOW)
    execute(database, "DELETE FROM orders WHERE created >= '2025-03-04'")
    fetch(by_query, NOW + dt.timedelta(hours=1))
    assert landed(by_query) == {"2025-03-01": 2, "2025-03-03": 1, "2025-03-04": 0}
    result = read_landed_files(by_query, "key", "run")
    assert result.ledger.days == ["2025-03-01", "2025-03-03"]


def test_planner_fetches_and_reads_in_one_step(by_query: Dataset) -> None:
    today = dt.datetime.now(dt.UTC).date()
    (work,) = plan_landing(by_query, today).work
    assert work.step == Step.READ
    assert work.reason.endswith("days to fetch with the query of 'orders' (connection ORDERS_DB)")
    started = dt.datetime.now(dt.UTC)
    result = read_landed_files(by_query, "key", "run")
    assert result.ledger.days == ["2025-03-01", "2025-03-03", "2025-03-04"]
    assert [work.step for work in plan_landing(by_query, today, fetched_since=started).work] == [Step.INGEST]
    assert [work.step for work in plan_landing(by_query, today).work] == [Step.INGEST]
    after = dt.datetime.now(dt.UTC)
    assert [w.step for w in plan_landing(by_query, today, fetched_since=after).work] == [Step.READ, Step.INGEST]


def test_files_beside_fetched_ones_are_read(by_query: Dataset) -> None:
    by_query.paths.landing.mkdir(parents=True)
    (by_query.paths.landing / "old.csv").write_text("id,created,price,note\n7,2025-03-02 10:00:00,2.5,by hand\n")
    assert read_landed_files(by_query, "key", "run").ledger.days == DAYS


def test_failed_fetch_does_not_hold_up_files(by_query: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    by_query.paths.landing.mkdir(parents=True)
    (by_query.paths.landing / "old.csv").write_text("id,created,price,note\n7,2025-03-02 10:00:00,2.5,by hand\n")
    monkeypatch.delenv("ORDERS_DB")
    with pytest.raises(SourceError, match="needs the environment variable ORDERS_DB, which is not set"):
        read_landed_files(by_query, "key", "run")
    (work,) = plan_landing(by_query, NOW.date()).work[1:]
    assert (work.step, work.days) == (Step.INGEST, ("2025-03-02",))


def test_file_of_somebody_else_is_never_replaced(by_query: Dataset) -> None:
    by_query.paths.landing.mkdir(parents=True)
    file = by_query.paths.landing / "2025-03-03.parquet"
    pl.DataFrame({"id": [1]}).write_parquet(file)
    content = file.read_bytes()
    with pytest.raises(StorageError, match=r"2025-03-03.parquet was not fetched, .* give it another name"):
        fetch(by_query, NOW)
    assert file.read_bytes() == content
    assert days_to_fetch(by_query, NOW) == ["2025-03-03", "2025-03-04"]  # the days before stay fetched


def test_without_event_time_one_file_is_replaced(tmp_path: Path, database: Path) -> None:
    source = {"query": "SELECT id, price FROM orders", "connection": "ORDERS_DB"}
    dataset = make_dataset(tmp_path, source, event_time=None, start=None)
    fetch(dataset, NOW)
    assert landed(dataset) == {"all": 6}
    execute(database, "DELETE FROM orders WHERE created < '2025-03-02'")
    fetch(dataset, NOW)
    assert landed(dataset) == {"all": 4}


def test_source_without_rows_is_an_error(tmp_path: Path, database: Path) -> None:
    execute(database, "DELETE FROM orders")
    dataset = make_dataset(tmp_path, {"query": QUERY, "connection": "ORDERS_DB"})
    with pytest.raises(SourceError, match=r"gave no rows for 2025-03-01, 2025-03-02, .* correct its condition"):
        fetch(dataset, NOW)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("SELECT * FROM missing WHERE :day = :day", "failed for 2025-03-01: no such table: missing; correct the query"),
        ("SELECT id, id FROM orders WHERE :day = :day", "two columns have the name 'id'"),
        ("DELETE FROM orders WHERE created = :day", "the statement returns no rows"),
    ],
)
def test_failed_query_names_day_and_reason(tmp_path: Path, database: Path, query: str, message: str) -> None:
    dataset = make_dataset(tmp_path, {"query": query, "connection": "ORDERS_DB"})
    with pytest.raises(SourceError, match=message) as caught:
        fetch(dataset, NOW)
    assert str(caught.value).startswith("the query of 'orders' (connection ORDERS_DB)")
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT count(*) FROM orders").fetchone() == (6,)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "needs the environment variable ORDERS_DB, which is not set"),
        ("s3cret", "does not hold a SQLAlchemy URL"),
        ("nosuch://me:s3cret@host/db", "cannot load the driver of the database"),
        ("oracle+cx_oracle://me:s3cret@host/db", "cannot load the driver of the database"),
        (
            "postgresql+psycopg2://me:s3cret@127.0.0.1:1/db",
            "cannot connect: .*Connection refused.*check that the database",
        ),
        ("sqlite:////no/such/s3cret.db", "the SQLite file that ORDERS_DB names does not exist"),
    ],
)
def test_connection_errors_hold_no_secret(
    by_query: Dataset, monkeypatch: pytest.MonkeyPatch, url: str, message: str
) -> None:
    monkeypatch.setenv("ORDERS_DB", url)
    with pytest.raises(SourceError, match=message) as caught:
        fetch(by_query, NOW)
    error: BaseException | None = caught.value
    while error is not None:  # logs show chained errors too
        assert "s3cret" not in str(error)
        error = error.__cause__ or error.__context__
    assert not Path("/no/such/s3cret.db").exists()


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("postgresql+psycopg2://host/db", {"connect_timeout": 10}),
        ("postgresql://host/db", {"connect_timeout": 10}),
        ("postgresql+psycopg2://host/db?connect_timeout=3", {}),
        ("mysql+pymysql://host/db", {"connect_timeout": 10}),
        ("sqlite:///file.db", {}),
        ("nosuch://host", {}),
    ],
)
def test_attempt_to_connect_is_bounded(url: str, options: dict[str, int]) -> None:
    assert connect_options(sa.make_url(url)) == options


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"query": QUERY, "connection": "postgresql://me:s3cret@host/db"}, "source.connection holds a URL with a user"),
        ({"query": QUERY, "connection": "sqlite:///s3cret.db"}, "source.connection is not the name of an environment"),
        ({"query": QUERY, "conection": "mysql://me:s3cret@host/db"}, "source.conection holds a URL with a user"),
    ],
)
def test_url_in_the_yaml_is_refused_without_showing_it(tmp_path: Path, source: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make_dataset(tmp_path, source)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("day", "dialect", "start", "end"),
    [
        ("2025-03-30", "postgresql", "2025-03-29 23:00:00+00:00", "2025-03-30 22:00:00+00:00"),  # 23 hours
        ("2025-10-26", "postgresql", "2025-10-25 22:00:00+00:00", "2025-10-26 23:00:00+00:00"),  # 25 hours
        ("2025-03-30", "mysql", "2025-03-30 00:00:00", "2025-03-31 00:00:00"),
        ("2025-03-30", "sqlite", "2025-03-30 00:00:00", "2025-03-31 00:00:00"),
    ],
)
def test_days_start_and_end_in_their_time_zone(day: str, dialect: str, start: str, end: str) -> None:
    parameters = day_parameters(dt.date.fromisoformat(day), ZoneInfo("Europe/Berlin"), dialect)
    assert {name: str(value) for name, value in parameters.items()} == {"day": day, "day_start": start, "day_end": end}
    assert isinstance(parameters["day_start"], str) == (dialect == "sqlite")


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        ({"query": QUERY}, {}, "query needs connection"),
        ({"connection": "ORDERS_DB"}, {}, "connection='ORDERS_DB' needs query"),
        ({"query": QUERY, "connection": "A", "callable": "m:f"}, {}, "two sources of the same rows"),
        ({"callable": "module.function"}, {}, "names no function; write package.module:function"),
        ({"refresh_days": 3}, {}, "refresh_days is for a query or a callable"),
        ({"callable": "m:f", "pattern": "**/*.csv"}, {}, "does not match the files that are fetched"),
        ({"query": "SELECT * FROM orders", "connection": "A"}, {}, "uses no day; add a condition such as created >= "),
        ({"query": "SELECT :month", "connection": "A"}, {}, "has the parameter :month"),
        ({"query": QUERY, "connection": "A"}, {"event_time": None, "start": None}, "but the dataset has no days"),
    ],
)
def test_contradictory_sources_are_refused(
    tmp_path: Path, source: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        make_dataset(tmp_path, source, **settings)


@pytest.mark.parametrize("source", [{}, {"query": QUERY, "connection": "A"}, {"callable": "m:f", "refresh_days": 9}])
def test_dumped_configuration_loads_again(tmp_path: Path, source: dict[str, Any]) -> None:
    config = make_dataset(tmp_path, source).config
    assert PipelineConfig.model_validate_json(config.model_dump_json()) == config


def test_colons_that_are_no_parameters_are_allowed(tmp_path: Path) -> None:
    query = r"SELECT a::text, '12:30', '\:x' FROM t WHERE d = :day"
    dataset = make_dataset(tmp_path, {"query": query, "connection": "A", "pattern": "*.parquet"})
    assert dataset.config.source.query_parameters == {"day"}


@pytest.fixture
def module() -> Iterator[types.ModuleType]:
    """An importable module without content."""
    name = "fetched_source_of_a_test"
    sys.modules[name] = types.ModuleType(name)
    yield sys.modules[name]
    del sys.modules[name]


CREATED = dt.datetime(2025, 3, 1, 10, tzinfo=dt.UTC)
TABLES = {
    "polars": pl.DataFrame({"id": [1], "created": [CREATED]}),
    "lazy": pl.LazyFrame({"id": [1], "created": [CREATED]}),
    "pandas": pd.DataFrame({"id": [1], "created": [CREATED]}),
    "pandas_index": pd.DataFrame({"id": [1], "created": [CREATED]}).set_index("id"),
    "arrow": pa.table({"id": [1], "created": [CREATED]}),
    "batch": pa.RecordBatch.from_pylist([{"id": 1, "created": CREATED}]),
}


@pytest.mark.parametrize("kind", TABLES)
def test_function_returns_any_kind_of_table(tmp_path: Path, module: types.ModuleType, kind: str) -> None:
    asked = []

    def fetch_day(day: dt.date) -> Any:
        asked.append(day.isoformat())
        return TABLES[kind] if day == CREATED.date() else None

    module.fetch_day = fetch_day  # type: ignore[attr-defined]
    dataset = make_dataset(tmp_path, {"callable": f"{module.__name__}:fetch_day"})
    fetch(dataset, NOW)
    assert asked == DAYS
    assert landed(dataset) == {"2025-03-01": 1}
    rows = pl.read_parquet(dataset.paths.landing / "2025-03-01.parquet")
    assert rows.select("id", "created").rows() == [(1, CREATED)]


def test_function_without_days_has_no_argument(tmp_path: Path, module: types.ModuleType) -> None:
    module.fetch_all = lambda: TABLES["polars"]  # type: ignore[attr-defined]
    source = {"callable": f"{module.__name__}:fetch_all"}
    dataset = make_dataset(tmp_path, source, event_time=None, start=None)
    fetch(dataset, NOW)
    assert landed(dataset) == {"all": 1}


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ([{"id": 1}], "returned list, not a table; return a table of polars, pandas or pyarrow, or None"),
        (pl.DataFrame({"id": [object()]}), "column 'id' holds Python objects"),
        (pd.DataFrame({"id": [1, "x"]}), "returned a table that Arrow cannot hold"),
        (pd.DataFrame({"id": [1]}, index=["a"]), "the index holds values and has no name"),
    ],
)
def test_function_without_a_table_is_refused(
    tmp_path: Path, module: types.ModuleType, result: Any, message: str
) -> None:
    module.fetch_day = lambda day: result  # type: ignore[attr-defined]
    dataset = make_dataset(tmp_path, {"callable": f"{module.__name__}:fetch_day"})
    with pytest.raises(SourceError, match=message):
        fetch(dataset, NOW)


def test_failed_function_names_line_and_keeps_days(tmp_path: Path, module: types.ModuleType) -> None:
    def fetch_day(day: dt.date) -> Any:
        if day.day == 3:
            raise KeyError("https://me:s3cret@host/orders")
        return TABLES["polars"]

    module.fetch_day = fetch_day  # type: ignore[attr-defined]
    dataset = make_dataset(tmp_path, {"callable": f"{module.__name__}:fetch_day"})
    with pytest.raises(
        SourceError, match=r"for 2025-03-03 failed: KeyError: .*\*\*\*@host.*test_fetch.py, line"
    ) as caught:
        fetch(dataset, NOW)
    assert "s3cret" not in str(caught.value)
    assert landed(dataset) == {"2025-03-01": 1, "2025-03-02": 1}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:f", "no module 'no_such_module'"),
        ("fetched_source_of_a_test:missing", "has no function 'missing'"),
    ],
)
def test_missing_function_is_named(tmp_path: Path, module: types.ModuleType, name: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        fetch(make_dataset(tmp_path, {"callable": name}), NOW)


class TestGuide:
    """The examples of the guide on SQL and Python sources."""

    PAGE = (Path(__file__).parents[3] / "docs" / "how-to" / "sql-and-python.md").read_text(encoding="utf-8")

    @classmethod
    def block(cls, start: str) -> str:
        """Return the code block that starts with a text."""
        return cls.PAGE.partition(f"\n{start}")[2].partition("\n```")[0]

    @classmethod
    def dataset(cls, name: str, root: Path) -> Dataset:
        """Return the dataset of a YAML in the guide."""
        blocks = cls.PAGE.split("```yaml\n")[1:]
        (text,) = [block.partition("```")[0] for block in blocks if f"dataset: {name}\n" in block]
        config = PipelineConfig.model_validate(yaml.safe_load(text)["attributes"])
        return Dataset(config, DatasetPaths(root / "data", name))

    def test_query_gives_the_orders(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        script = self.block("$ .venv/bin/python - <<'EOF'\n").partition("\nEOF")[0]
        exec(script, {})
        monkeypatch.setenv("ORDERS_DB", f"sqlite:///{tmp_path}/orders.db")
        result = read_landed_files(self.dataset("orders", tmp_path), "key", "run")
        assert (len(result.ledger.days), sum(entry.rows for entry in result.ledger.files.values())) == (39, 4000)

    def test_function_gives_the_visits(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        module = types.ModuleType("ae_pipeline.defs.visits.fetch")
        exec("import datetime as dt\n" + self.block("import datetime as dt\n"), module.__dict__)
        monkeypatch.setitem(sys.modules, "ae_pipeline.defs.visits.fetch", module)
        result = read_landed_files(self.dataset("visits", tmp_path), "key", "run")
        assert sum(entry.rows for entry in result.ledger.files.values()) == 3400
        assert len(result.ledger.days) == 34  # of 39 days, 5 are Sundays
