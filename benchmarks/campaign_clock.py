"""Cases of `benchmarks.campaign` in which the clock of the machine jumps by 100 days.

The clock itself stays right. Instead, all times that a deployment has recorded move the other way: the times of its
files, the times in its JSON files, and the times in the databases of Dagster and MLflow.
"""

import datetime as dt
import os
import re
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from benchmarks.campaign_deployment import COMPLETE, DATASET, LANDED, Case, Deployment, Outcome, allowed

DAYS = 100
"""Days by which the clock jumps."""

_ISO = re.compile(r"20\d\d-\d\d-\d\d(?=[T ]\d\d:\d\d)")
_EPOCH = re.compile(r"\b1[6-9]\d{8}(?:\.\d+|\d{3}|\d{6})?\b")
"""Times of this century in seconds, with or without a fraction, in milliseconds or microseconds."""

_TIME_COLUMN = re.compile(r"time(stamp)?$|^updated_at$|^created_at$|_at$")


def move_times(root: Path, days: int) -> int:
    """Move all recorded times of a deployment by some days, and return how many files changed.

    Times before the deployment was made stay: the data are of the year 2013.

    Args:
        root: Folder of the deployment.
        days: Days to add; 100 if the clock was set back by 100 days.
    """
    today = dt.datetime.now(dt.UTC).date()
    changed = 0
    for path in sorted(root.rglob("*")):
        if path.is_symlink() or not path.is_file() or "landing" in path.parts:
            continue
        status = path.stat()
        if path.suffix == ".db":
            _move_database(path, today, days)
        elif path.suffix in {".json", ".jsonl", ".yaml"}:
            text = path.read_text(encoding="utf-8")
            moved = _moved_text(text, today, days)
            changed += moved != text
            path.write_text(moved, encoding="utf-8")
        shift = days * 86_400 * 10**9
        os.utime(path, ns=(status.st_atime_ns + shift, status.st_mtime_ns + shift))
    return changed


def _moved_text(text: str, today: dt.date, days: int) -> str:
    """Return a text in which the times of the last days are moved.

    >>> _moved_text('{"at": "2026-05-01T10:00:00+00:00", "day": "2026-05-01"}', dt.date(2026, 5, 1), 2)
    '{"at": "2026-05-03T10:00:00+00:00", "day": "2026-05-01"}'
    """

    def iso(match: re.Match[str]) -> str:
        day = dt.date.fromisoformat(match[0])
        return (day + dt.timedelta(days=days)).isoformat() if abs((today - day).days) <= 1 else match[0]

    now = dt.datetime(today.year, today.month, today.day, tzinfo=dt.UTC).timestamp()

    def epoch(match: re.Match[str]) -> str:
        number, _, fraction = match[0].partition(".")
        unit = 10 ** (len(number) - 10)
        if abs(int(number) / unit - now) > 2 * 86_400:
            return match[0]
        return str(int(number) + days * 86_400 * unit) + (f".{fraction}" if fraction else "")

    return _EPOCH.sub(epoch, _ISO.sub(iso, text))


def _move_database(path: Path, today: dt.date, days: int) -> None:
    """Move the times in all tables of a database: numbers, texts, and JSON documents."""

    def moved(value: str | float | None, is_time: int) -> str | float | None:
        if isinstance(value, str):
            return _moved_text(value, today, days) if is_time or value.startswith("{") else value
        if value is None or not is_time:
            return value
        return value + days * 86_400 * (1000 if value > 1e11 else 1)

    with closing(sqlite3.connect(path)) as connection, connection:
        connection.create_function("moved", 2, moved, deterministic=True)
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for name in names:
            for _, column, *_ in list(connection.execute(f"PRAGMA table_info('{name}')")):
                is_time = int(bool(_TIME_COLUMN.search(column)))
                connection.execute(f'UPDATE OR IGNORE "{name}" SET "{column}" = moved("{column}", {is_time})')


def _after_jump(days: int) -> Callable[[Deployment], Outcome]:
    """Return a function that lands changes after a jump of the clock; all steps must notice and do the work."""

    def run(deployment: Deployment) -> Outcome:
        changed = move_times(deployment.root, -days)
        deployment.land_change()
        printed = deployment.finish()
        built = f"{DATASET}_ingest" in printed and f"{DATASET}_publish" in printed
        return Outcome({"lost": int(not built), "tracebacks": printed.count("Traceback")}, f"{changed} files moved")

    return run


def _during_run(days: int) -> Callable[[Deployment], Outcome]:
    """Return a function that kills a run, lets the clock jump, and starts the servers: the run must be ended."""

    def run(deployment: Deployment) -> Outcome:
        process, _ = deployment.start_until("run", ["training on"])
        process.send_signal(signal.SIGKILL)
        process.communicate()
        changed = move_times(deployment.root, -days)
        (run_id,) = deployment.active_runs()
        began = time.monotonic()
        with deployment.serving() as (_, api):
            status = api.wait_for_end(run_id, allowed(60))
        blocked = int(status not in {"FAILURE", "CANCELED"})
        return Outcome({"blocked": blocked}, f"{status.lower()}, {changed} files moved", time.monotonic() - began)

    return run


def clock_cases() -> list[Case]:
    """Return the cases of clocks that jump forward and back."""
    table = []
    for days, direction in ((DAYS, "forward"), (-DAYS, "back")):
        table += [
            Case(f"clock {DAYS} days {direction}", COMPLETE, _after_jump(days)),
            Case(f"clock {DAYS} days {direction} after a kill", LANDED, _during_run(days)),
        ]
    return table
