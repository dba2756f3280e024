"""Rows of a PostgreSQL server as a source: exact types, days in a time zone, errors without secrets."""

import datetime as dt
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest
import sqlalchemy as sa

from ae_pipeline.common.errors import SourceError
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.ingestion.contract import load_contract
from ae_pipeline.ingestion.fetch import fetch
from ae_pipeline.lifecycle.ingest import build_raw_days, read_landed_files
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.paths import DatasetPaths

pytestmark = pytest.mark.slow

NOW = dt.datetime(2025, 4, 1, 12, tzinfo=dt.UTC)


TABLE = """
CREATE TABLE orders (
  id NUMERIC(20), created TIMESTAMPTZ, booked TIMESTAMP, day DATE, big BIGINT, price NUMERIC(12, 4), share REAL,
  weight DOUBLE PRECISION, paid BOOLEAN, note TEXT, code CHAR(3), key UUID, odd NUMERIC, later INT
)
"""
ROWS = """
INSERT INTO orders
SELECT 12345678901234567000 + n, ts, ts AT TIME ZONE 'UTC', (ts AT TIME ZONE 'UTC')::date, 9007199254740993 + n,
       n + 0.1001, 0.5, n / 8.0, CASE WHEN n % 3 > 0 THEN n % 3 = 1 END, E'line\\n' || n, '0' || lpad(n::text, 2, '0'),
       ('a0eebc99-9c0b-4ef8-bb6d-6bb9bd3800' || lpad(n::text, 2, '0'))::uuid,
       CASE WHEN n = 5 THEN 'NaN'::numeric ELSE n END,
       CASE WHEN n > 20 THEN n END
FROM (SELECT n, TIMESTAMPTZ '2025-03-29 00:00+00' + n * interval '3 hours' AS ts FROM generate_series(0, 23) n) t
"""


@pytest.fixture
def database(postgres: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[sa.Engine]:
    """The server with a table of 24 orders on three days; ORDERS_DB holds its URL."""
    engine = sa.create_engine(postgres, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE IF EXISTS orders")
        connection.exec_driver_sql(TABLE)
        connection.execute(sa.text(ROWS))
    monkeypatch.setenv("ORDERS_DB", postgres)
    yield engine
    engine.dispose()


def make_dataset(root: Path, column: str, query: str | None = None) -> Dataset:
    """Return the orders by the day of a column."""
    query = query or f"SELECT * FROM orders WHERE {column} >= :day_start AND {column} < :day_end"
    config = PipelineConfig.model_validate(
        {
            "dataset": "orders",
            "identity": ["id"],
            "event_time": column,
            "start": "2025-03-29",
            "end": "2025-03-31",
            "source": {"query": query, "connection": "ORDERS_DB"},
        }
    )
    return Dataset(config, DatasetPaths(root, "orders"))


@pytest.mark.parametrize("column", ["created", "booked"])
def test_every_type_lands_exactly(tmp_path: Path, database: sa.Engine, column: str) -> None:
    dataset = make_dataset(tmp_path, column)
    result = read_landed_files(dataset, "key", "run")
    days = ["2025-03-29", "2025-03-30", "2025-03-31"]
    assert {name: entry.rows for name, entry in result.ledger.files.items()} == {f"{day}.parquet": 8 for day in days}
    rows = pl.concat(
        [pl.read_parquet(dataset.paths.landing / f"{day}.parquet") for day in days], how="vertical_relaxed"
    )
    rows = rows.sort("id")
    moments = [dt.datetime(2025, 3, 29, tzinfo=dt.UTC) + dt.timedelta(hours=3 * n) for n in range(24)]
    assert rows["id"].to_list() == [Decimal(12345678901234567000 + n) for n in range(24)]
    assert rows["created"].to_list() == moments
    assert rows["booked"].to_list() == [moment.replace(tzinfo=None) for moment in moments]
    assert rows["day"].to_list() == [moment.date() for moment in moments]
    assert rows["big"].to_list() == [9007199254740993 + n for n in range(24)]
    assert rows["price"].to_list() == [n + Decimal("0.1001") for n in range(24)]
    assert rows["share"].to_list() == [0.5] * 24
    assert rows["weight"].to_list() == [n / 8 for n in range(24)]
    assert rows["paid"].to_list() == [(n % 3 == 1) if n % 3 else None for n in range(24)]
    assert rows["note"].to_list() == [f"line\n{n}" for n in range(24)]
    assert rows["code"].to_list() == [f"0{n:02d}" for n in range(24)]
    assert rows["key"].to_list() == [f"a0eebc99-9c0b-4ef8-bb6d-6bb9bd3800{n:02d}" for n in range(24)]
    assert rows["later"].to_list() == [None] * 21 + [21, 22, 23]
    raw = build_raw_days(dataset, days, "run", read_landed=False)
    assert (raw.rows, raw.quarantined) == (24, {})
    assert load_contract(dataset.paths.contract).columns["later"].type == "integer"


def test_unchanged_days_are_not_read_again(tmp_path: Path, database: sa.Engine) -> None:
    dataset = make_dataset(tmp_path, "created")
    read_landed_files(dataset, "key", "run")
    with database.begin() as connection:  # moves the row, so that the server returns it last
        connection.exec_driver_sql("UPDATE orders SET note = note || ''")
    dataset.paths.fetched.unlink()
    assert read_landed_files(dataset, "key", "run").read == ()
    with database.begin() as connection:
        connection.exec_driver_sql("UPDATE orders SET note = 'new' WHERE created = '2025-03-30 03:00+00'")
    dataset.paths.fetched.unlink()
    assert read_landed_files(dataset, "key", "run").read == ("2025-03-30.parquet",)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("SELECT missing FROM orders WHERE created::date = :day", 'for 2025-03-29: column "missing" does not exist'),
        ("SELECT 1/0 FROM orders WHERE created::date = :day", "division by zero"),
        ("SELECT 's3cr/t@1'::int FROM orders WHERE created::date = :day", 'syntax for type integer: "\\*\\*\\*"'),
        ("DELETE FROM orders WHERE created::date = :day", "the statement returns no rows"),
    ],
)
def test_error_of_the_server_is_shown(tmp_path: Path, database: sa.Engine, query: str, message: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        fetch(make_dataset(tmp_path, "created", query), NOW)
    assert "s3cr/t@1" not in str(caught.value)
    with database.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM orders").scalar() == 24


def test_wrong_password_is_not_shown(
    tmp_path: Path, database: sa.Engine, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = sa.make_url(postgres).set(password="wr0ng").render_as_string(hide_password=False)
    monkeypatch.setenv("ORDERS_DB", wrong)
    with pytest.raises(SourceError, match=r'cannot connect: .*authentication failed for user "tester"') as caught:
        fetch(make_dataset(tmp_path, "created"), NOW)
    assert "wr0ng" not in str(caught.value)
