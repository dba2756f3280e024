"""Plant faults of one raw column into copies of real flights, and list the columns that may be blamed."""

import datetime as dt
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import polars as pl

from ae_pipeline.config.pipeline import PipelineConfig
from benchmarks.faults import FAULTS, Routes

PER_KIND = 100

RawRow = dict[str, object]
"""One raw flight."""


class Fault(NamedTuple):
    """A fault of one raw column.

    Attributes:
        column: Name of the faulty column.
        value: Function that returns the faulty value, given the row and another row.
        can_befall: Function that returns whether the fault applies to a row, given the other row.
        is_unflown: Whether the carrier must never have flown the route of the faulty row.
    """

    column: str
    value: Callable[[RawRow, RawRow, np.random.Generator], object]
    can_befall: Callable[[RawRow, RawRow], bool] = lambda _, __: True
    is_unflown: bool = False


def _known(kind: str, column: str, is_unflown: bool = False) -> Fault:
    """Return a fault of `benchmarks.faults` that changes one column."""
    change, can_befall = FAULTS[kind]
    return Fault(column, lambda row, other, generator: change(row, other, generator)[column], can_befall, is_unflown)


def _of_another(column: str, least: int = 0) -> Fault:
    """Return a fault that copies the value of another flight; numbers must differ by at least `least`."""

    def differs(row: RawRow, other: RawRow) -> bool:
        return abs(_whole(row[column]) - _whole(other[column])) >= least if least else row[column] != other[column]

    return Fault(column, lambda _, other, __: other[column], differs)


def _later(column: str, *minutes: int) -> Fault:
    """Return a fault that moves a clock time by one of several numbers of minutes."""

    def moved(row: RawRow, _: RawRow, generator: np.random.Generator) -> object:
        hours, rest = divmod(_whole(row[column]), 100)
        total = (hours * 60 + rest + int(generator.choice(minutes))) % 1440
        return total // 60 * 100 + total % 60

    return Fault(column, moved)


def _whole(value: object) -> int:
    return int(str(value))


def _in_local_time(row: RawRow, _: RawRow, __: np.random.Generator) -> object:
    time_hour = row["event_time"]
    if not isinstance(time_hour, dt.datetime):
        raise TypeError(f"event_time={time_hour!r} is not a datetime; cast the column to Datetime")
    return time_hour - dt.timedelta(hours=5)


SINGLE: Mapping[str, Fault] = {
    "air time in seconds": _known("air time in seconds", "air_time"),
    "air time of another flight": _known("air time of another flight", "air_time"),
    "air time lost": Fault("air_time", lambda *_: None),
    "distance of another route": _known("distance of another route", "distance"),
    "distance in kilometres": _known("distance in kilometres", "distance"),
    "distance without its last digit": Fault("distance", lambda row, *_: _whole(row["distance"]) // 10),
    "arrival before departure": _known("arrival before departure", "arr_time"),
    "arrival in another time zone": _known("arrival in another time zone", "arr_time"),
    "arrival time lost": Fault("arr_time", lambda *_: None),
    "arrival delay with its sign turned": _known("arrival delay with its sign turned", "arr_delay"),
    "arrival delay of another flight": _of_another("arr_delay", 60),
    "arrival delay lost": Fault("arr_delay", lambda *_: None),
    "scheduled arrival in another time zone": _later("sched_arr_time", -240, -180, 180, 240),
    "departure on a 12-hour clock": _known("departure on a 12-hour clock", "dep_time"),
    "departure time lost": _known("departure time lost", "dep_time"),
    "departure delay of another flight": _known("departure delay of another flight", "dep_delay"),
    "departure delay in seconds": Fault(
        "dep_delay", lambda row, *_: _whole(row["dep_delay"]) * 60, lambda row, _: abs(_whole(row["dep_delay"])) >= 10
    ),
    "departure delay lost": Fault("dep_delay", lambda *_: None),
    "scheduled departure hours off": _later("sched_dep_time", -180, -120, 120, 180),
    "carrier that does not fly the route": _known("carrier that does not fly the route", "carrier", is_unflown=True),
    "destination of another flight": _of_another("dest"),
    "origin of another flight": _of_another("origin"),
    "hour in local time instead of UTC": Fault("event_time", _in_local_time),
}
"""Kinds of fault that change one raw column. `event_time` is a copy of the raw column `time_hour`."""

FOLLOWING = (
    frozenset({"sched_arr_time", "arr_delay", "arr_time"}),
    frozenset({"sched_dep_time", "dep_delay", "dep_time"}),
)
"""Groups of columns that determine each other: scheduled time, delay and actual time."""


class Planted(NamedTuple):
    """Copies of flights that took place. One raw column of each copy is faulty.

    Attributes:
        rows: Rows with the faults.
        kinds: Kind of the fault of each row.
        indices: Index of each row in the frame that it was copied from.
    """

    rows: pl.DataFrame
    kinds: list[str]
    indices: list[int]


def guilty_columns(column: str, config: PipelineConfig) -> frozenset[str]:
    """Return the features that may be blamed for a faulty raw column, including the column itself."""
    guilty = {column}
    for name, expression in config.derive.items():  # a derived column may use columns that precede it
        if guilty & set(pl.sql_expr(expression).meta.root_names()):
            guilty.add(name)
    return frozenset(guilty.union(*(together for together in FOLLOWING if column in together)))


def plant_columns(raw: pl.DataFrame, routes: Routes, seed: int, per_kind: int = PER_KIND) -> Planted:
    """Copy rows of flights that took index, and plant one fault of `SINGLE` into each copy.

    Args:
        raw: Raw rows; not modified.
        routes: Carrier, origin and destination of every flight of the year.
        seed: Seed for the selection of rows and values.
        per_kind: Number of rows of each kind.
    """
    flew = raw.with_row_index("_index").drop_nulls(["dep_time", "arr_time", "arr_delay", "air_time", "tailnum"])
    parts: list[pl.DataFrame] = []
    indices: list[int] = []
    for number, fault in enumerate(SINGLE.values()):
        generator = np.random.default_rng([seed, number])
        changed: dict[int, object] = {}
        for index in generator.permutation(flew.height):
            row = flew.row(int(index), named=True)
            other = flew.row(int(generator.integers(flew.height)), named=True)
            if not fault.can_befall(row, other):
                continue
            value = fault.value(row, other, generator)
            faulty = {**row, fault.column: value}
            flown = (faulty["carrier"], faulty["origin"], faulty["dest"]) in routes
            if value == row[fault.column] or (fault.is_unflown and flown):
                continue
            changed[row["_index"]] = value
            if len(changed) == per_kind:
                break
        values = pl.Series(fault.column, list(changed.values()), dtype=raw.schema[fault.column])
        parts.append(raw[list(changed)].with_columns(values))
        indices += changed
    kinds = [kind for kind, part in zip(SINGLE, parts, strict=True) for _ in range(part.height)]
    return Planted(pl.concat(parts), kinds, indices)
