"""Arrow tables from the Python values of database drivers."""

import datetime as dt
import uuid
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from ae_pipeline.ingestion.query_values import to_table

D128 = pa.decimal128
ZONE = dt.timezone(dt.timedelta(hours=2))
KEY = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([None, 2**63 - 1, -(2**63)], pa.int64(), [None, 2**63 - 1, -(2**63)]),
        ([1, 2**63], D128(38, 0), [Decimal(1), Decimal(2**63)]),
        ([1, 10**39], pa.string(), ["1", "1" + "0" * 39]),
        ([1, 0.5, None], pa.float64(), [1.0, 0.5, None]),
        ([2**53 + 1, 0.5], pa.string(), ["9007199254740993", "0.5"]),
        ([float("nan"), 1.5], pa.float64(), ["nan", 1.5]),
        ([True, None], pa.bool_(), [True, None]),
        ([True, 2], pa.string(), ["True", "2"]),
        ([None, Decimal("1.10"), 3], D128(38, 2), [None, Decimal("1.10"), Decimal("3.00")]),
        ([Decimal("1E+3"), Decimal("0.001")], D128(38, 3), [Decimal("1000.000"), Decimal("0.001")]),
        ([Decimal(0), Decimal("-0.0")], D128(38, 1), [Decimal("0.0"), Decimal("0.0")]),
        ([Decimal("9" * 38)], D128(38, 0), [Decimal("9" * 38)]),
        ([Decimal("9" * 39), Decimal("1.5")], pa.string(), ["9" * 39, "1.5"]),
        ([Decimal("9" * 37), Decimal("0.001")], pa.string(), ["9" * 37, "0.001"]),
        ([Decimal("NaN"), Decimal("1.50")], pa.string(), ["NaN", "1.50"]),
        ([Decimal("0.1"), 0.5], pa.string(), ["0.1", "0.5"]),
        (["x", None], pa.string(), ["x", None]),
        (["x", 1], pa.string(), ["x", "1"]),
        ([dt.date(9999, 12, 31), None], pa.date32(), [dt.date(9999, 12, 31), None]),
        ([dt.datetime(2025, 3, 30, 1, 30, 0, 1)], pa.timestamp("us"), [dt.datetime(2025, 3, 30, 1, 30, 0, 1)]),
        (
            [dt.datetime(2025, 3, 30, 3, 30, tzinfo=ZONE), dt.datetime(2025, 1, 1, tzinfo=dt.UTC)],
            pa.timestamp("us", "UTC"),
            [dt.datetime(2025, 3, 30, 1, 30, tzinfo=dt.UTC), dt.datetime(2025, 1, 1, tzinfo=dt.UTC)],
        ),
        (
            [dt.datetime(2025, 3, 30), dt.datetime(2025, 1, 1, tzinfo=dt.UTC)],
            pa.string(),
            ["2025-03-30T00:00:00", "2025-01-01T00:00:00+00:00"],
        ),
        ([uuid.UUID(KEY), None], pa.string(), [KEY, None]),
        ([dt.time(12, 30), None], pa.string(), ["12:30:00", None]),
        ([dt.timedelta(days=1)], pa.string(), ["1 day, 0:00:00"]),
        ([{"a": [1, Decimal("2.50")]}], pa.string(), ['{"a": [1, "2.50"]}']),
        ([[1, "ä"]], pa.string(), ['[1, "ä"]']),
        ([memoryview(b"\x01"), b"\x02"], pa.binary(), [b"\x01", b"\x02"]),
        ([None, None], pa.null(), [None, None]),
        ([], pa.null(), []),
    ],
)
def test_values_stay_exact(values: list[Any], kind: pa.DataType, expected: list[Any]) -> None:
    table = to_table(["x"], [(value,) for value in values])
    assert table.schema.field("x").type == kind
    found = ["nan" if value != value else value for value in table["x"].to_pylist()]
    assert found == expected


def test_type_does_not_depend_on_the_first_values() -> None:
    rows = [(None, 1)] * 1000 + [("x", 2**62), (None, 2**60)]
    table = to_table(["a", "b"], rows)
    assert table.schema.types == [pa.string(), pa.int64()]
    assert table["b"].to_pylist()[-2:] == [2**62, 2**60]
