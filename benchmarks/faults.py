"""Plant known single-row faults into flights, as a source system could produce them.

Each fault satisfies the schema contract and passes ingestion. Nearly all faults are visible only in how the values of a
row fit together. Faults change raw rows, so that derived columns contain the fault too.
"""

from collections.abc import Callable

import numpy as np
import polars as pl

Row = dict[str, object]
"""One raw flight."""

Routes = set[tuple[str, str, str]]
"""Carrier, origin and destination."""


def _clock(minutes: float) -> int:
    minutes = int(minutes) % 1440
    return minutes // 60 * 100 + minutes % 60


def _minutes(clock: object) -> int:
    value = int(str(clock))
    return value // 100 * 60 + value % 100


def _swap_airports(row: Row, _: Row, __: np.random.Generator) -> Row:
    return {"origin": row["dest"], "dest": row["origin"]}


def _air_time_in_seconds(row: Row, _: Row, __: np.random.Generator) -> Row:
    return {"air_time": int(str(row["air_time"])) * 60}


def _air_time_of_another(_: Row, other: Row, __: np.random.Generator) -> Row:
    return {"air_time": other["air_time"]}


def _distance_of_another_route(_: Row, other: Row, __: np.random.Generator) -> Row:
    return {"distance": other["distance"]}


def _distance_in_kilometres(row: Row, _: Row, __: np.random.Generator) -> Row:
    return {"distance": round(int(str(row["distance"])) * 1.609)}


def _arrival_before_departure(row: Row, _: Row, generator: np.random.Generator) -> Row:
    return {"arr_time": _clock(_minutes(row["dep_time"]) - int(generator.integers(20, 180)))}


def _departure_on_a_twelve_hour_clock(row: Row, _: Row, __: np.random.Generator) -> Row:
    return {"dep_time": _clock(_minutes(row["dep_time"]) - 720)}


def _arrival_in_another_zone(row: Row, _: Row, generator: np.random.Generator) -> Row:
    return {"arr_time": _clock(_minutes(row["arr_time"]) + int(generator.choice([-240, -180, 180, 240])))}


def _departure_delay_of_another(_: Row, other: Row, __: np.random.Generator) -> Row:
    return {"dep_delay": other["dep_delay"]}


def _arrival_delay_sign_turned(row: Row, _: Row, __: np.random.Generator) -> Row:
    return {"arr_delay": -int(str(row["arr_delay"]))}


def _carrier_that_does_not_fly_there(_: Row, other: Row, __: np.random.Generator) -> Row:
    return {"carrier": other["carrier"]}


def _departure_time_lost(_: Row, __: Row, ___: np.random.Generator) -> Row:
    return {"dep_time": None}


FAULTS: dict[str, tuple[Callable[[Row, Row, np.random.Generator], Row], Callable[[Row, Row], bool]]] = {
    "origin and destination swapped": (_swap_airports, lambda _, __: True),
    "air time in seconds": (_air_time_in_seconds, lambda _, __: True),
    "air time of another flight": (_air_time_of_another, lambda a, b: _differ(a, b, "air_time", 60)),
    "distance of another route": (_distance_of_another_route, lambda a, b: _differ(a, b, "distance", 300)),
    "distance in kilometres": (_distance_in_kilometres, lambda _, __: True),
    "arrival before departure": (_arrival_before_departure, lambda _, __: True),
    "departure on a 12-hour clock": (_departure_on_a_twelve_hour_clock, lambda a, _: _minutes(a["dep_time"]) >= 780),
    "arrival in another time zone": (_arrival_in_another_zone, lambda _, __: True),
    "departure delay of another flight": (_departure_delay_of_another, lambda a, b: _differ(a, b, "dep_delay", 60)),
    "arrival delay with its sign turned": (
        _arrival_delay_sign_turned,
        lambda a, _: abs(int(str(a["arr_delay"]))) >= 30,
    ),
    "carrier that does not fly the route": (_carrier_that_does_not_fly_there, lambda _, __: True),
    "departure time lost": (_departure_time_lost, lambda _, __: True),
}
"""Kinds of fault: a function that returns the changes to a row, given another row, and a condition for both rows."""


def _differ(row: Row, other: Row, column: str, least: float) -> bool:
    return abs(float(str(row[column])) - float(str(other[column]))) >= least


def plant(raw: pl.DataFrame, routes: Routes, seed: int, per_kind: int = 10) -> tuple[pl.DataFrame, pl.Series]:
    """Plant faults of every kind into rows of flights that took index.

    Args:
        raw: Raw rows.
        routes: Carrier, origin and destination of every flight of the year. Other routes are unflown all year.
        seed: Seed for the selection of the rows.
        per_kind: Number of rows of each kind.

    Returns:
        The rows with the faults, and the kind of each row's fault, null for rows without a fault.
    """
    generator = np.random.default_rng(seed)
    flew = raw.with_row_index("_index").drop_nulls(["dep_time", "arr_time", "arr_delay", "air_time", "tailnum"])
    order = iter(generator.permutation(flew.height))
    changes: dict[int, Row] = {}
    kinds: list[str | None] = [None] * raw.height
    for kind, (fault, can_befall) in FAULTS.items():
        planted = 0
        while planted < per_kind:
            row = flew.row(int(next(order)), named=True)
            other = flew.row(int(generator.integers(flew.height)), named=True)
            flown = kind.startswith("carrier") and (other["carrier"], row["origin"], row["dest"]) in routes
            if flown or not can_befall(row, other):
                continue
            changes[row["_index"]] = fault(row, other, generator)
            kinds[row["_index"]] = kind
            planted += 1
    columns = sorted({column for change in changes.values() for column in change})
    rows = raw.to_dict()
    for column in columns:
        values = rows[column].to_list()
        for index, change in changes.items():
            if column in change:
                values[index] = change[column]
        rows[column] = pl.Series(column, values, dtype=raw.schema[column])
    return pl.DataFrame(rows), pl.Series("fault", kinds, dtype=pl.String)
