"""Fetch the rows of SQL queries through SQLAlchemy. No error holds the URL or the password."""

import datetime as dt
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote, quote_plus
from zoneinfo import ZoneInfo

import pyarrow as pa

from ae_pipeline.common.errors import SourceError
from ae_pipeline.common.text import first_line
from ae_pipeline.ingestion.query_values import to_table

if TYPE_CHECKING:
    import sqlalchemy as sa

CONNECT_SECONDS = 10
"""Seconds after which an attempt to connect ends, if the driver has an option for it."""

_TIMEOUT_OPTIONS = {
    **dict.fromkeys(("psycopg2", "psycopg", "pymysql", "mysqldb"), "connect_timeout"),
    **dict.fromkeys(("pg8000", "pyodbc"), "timeout"),
    **dict.fromkeys(("pymssql", "snowflake"), "login_timeout"),
    "mysqlconnector": "connection_timeout",
    "oracledb": "tcp_connect_timeout",
}
"""Name of the option for the timeout of a connection, by driver."""

T = TypeVar("T")

RunQuery = Callable[[dt.date | None], pa.Table]
"""Function that runs the query for a day, or for all rows without a day."""


@contextmanager
def open_query(query: str, variable: str, zone: ZoneInfo, subject: str) -> Iterator[RunQuery]:
    """Connect to a database, and yield a function that runs the query for a day.

    Args:
        query: SQL query with the parameters of `DAY_PARAMETERS`, or without parameters.
        variable: Environment variable that holds the SQLAlchemy URL.
        zone: Time zone that cuts the days.
        subject: What fails, for messages, such as `the query of 'orders' (connection ORDERS_DB)`.

    Raises:
        SourceError: The variable is not set, the driver is missing, or the database cannot be reached. The function
            raises it if the query fails.
    """
    import sqlalchemy as sa

    url = _url(variable, subject)
    engine = _attempt(
        lambda: sa.create_engine(url, poolclass=sa.NullPool, connect_args=connect_options(url)),
        url,
        f"{subject} cannot load the driver of the database",
        f"install the driver, or name another one in {variable}",
    )
    connection = _attempt(
        engine.connect, url, f"{subject} cannot connect", f"check that the database runs, and the URL in {variable}"
    )
    try:
        if engine.dialect.name == "postgresql":  # a time without a zone is a local time, as in files
            connection.execute(sa.text("SELECT set_config('TimeZone', :zone, false)"), {"zone": zone.key})

        def run(day: dt.date | None) -> pa.Table:
            parameters = {} if day is None else day_parameters(day, zone, engine.dialect.name)
            problem = f"{subject} failed{'' if day is None else f' for {day}'}"
            return _attempt(
                lambda: _read(connection, sa.text(query), parameters),
                url,
                problem,
                "correct the query, or repair the database",
            )

        yield run
    finally:
        connection.close()
        engine.dispose()


def _read(connection: "sa.Connection", statement: "sa.TextClause", parameters: dict[str, object]) -> pa.Table:
    result = connection.execute(statement, parameters)
    if not result.returns_rows:
        raise ValueError("the statement returns no rows, a query starts with SELECT or WITH")
    names = list(result.keys())
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two columns have the name {duplicates[0]!r}, give one of them another name with AS")
    return to_table(names, result.fetchall())


def day_parameters(day: dt.date, zone: ZoneInfo, dialect: str) -> dict[str, object]:
    """Return the parameters of a query in the form that the database compares with its own times.

    PostgreSQL gets instants, which may be 23 or 25 hours apart. Other databases get local times without a zone, and
    SQLite, which has no times, gets them as the texts that its own functions write.
    """
    midnights = [dt.datetime.combine(date, dt.time()) for date in (day, day + dt.timedelta(days=1))]
    bounds: list[object] = list(midnights)
    if dialect == "postgresql":
        bounds = [midnight.replace(tzinfo=zone).astimezone(dt.UTC) for midnight in midnights]
    elif dialect == "sqlite":
        bounds = [midnight.isoformat(" ") for midnight in midnights]
    return {"day": day.isoformat(), "day_start": bounds[0], "day_end": bounds[1]}


def _url(variable: str, subject: str) -> "sa.URL":
    import sqlalchemy as sa

    text = os.environ.get(variable, "").strip()
    if not text:
        raise SourceError(
            f"{subject} needs the environment variable {variable}, which is not set; set it to a SQLAlchemy URL such "
            "as postgresql+psycopg2://user:password@host/database"
        )
    try:
        url = sa.make_url(text)
    except (sa.exc.ArgumentError, ValueError):
        url = None
    if url is None:  # raised here, so that no chained error shows the text
        raise SourceError(
            f"{subject}: the environment variable {variable} does not hold a SQLAlchemy URL; write one such as "
            "postgresql+psycopg2://user:password@host/database, with special characters of the password as %40"
        )
    file = url.database or ":memory:"
    if url.get_backend_name() == "sqlite" and not file.startswith((":memory:", "file:")) and not Path(file).is_file():
        raise SourceError(
            f"{subject}: the SQLite file that {variable} names does not exist, seen from {Path.cwd()}; give the whole "
            "path, as sqlite:////folder/file.db"
        )
    return url


def connect_options(url: "sa.URL") -> dict[str, int]:
    """Return the option that bounds the time of an attempt to connect, unless the URL has it or the driver has none."""
    try:
        driver = url.get_driver_name()
    except Exception:  # noqa: BLE001  # an unknown dialect or a missing driver, which create_engine reports
        return {}
    option = _TIMEOUT_OPTIONS.get(driver)
    return {} if option is None or option in url.query else {option: CONNECT_SECONDS}


def _attempt(work: Callable[[], T], url: "sa.URL", problem: str, remedy: str) -> T:
    """Return the result of work with a database, or raise an error without secrets.

    The error is raised after the handler, because a chained error would show the URL in logs.
    """
    import sqlalchemy as sa

    try:
        return work()
    except (
        sa.exc.SQLAlchemyError,
        pa.ArrowException,
        ImportError,
        OSError,
        ValueError,
        TypeError,
        ArithmeticError,
    ) as error:
        message = first_line(Exception(_without_secrets(str(getattr(error, "orig", None) or error), url)))
    raise SourceError(f"{problem}: {message.rstrip('.')}; {remedy}")


def _without_secrets(text: str, url: "sa.URL") -> str:
    values = [value for option in url.query.values() for value in ((option,) if isinstance(option, str) else option)]
    if url.password:
        values += [str(url.password), quote(str(url.password), safe=""), quote_plus(str(url.password))]
    for secret in sorted({url.render_as_string(hide_password=False), *values} - {""}, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text
