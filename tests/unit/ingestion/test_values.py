"""What values mean: identities as they landed, exact numbers and times, and the forms that people write."""

import datetime as dt
import io
import logging
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ae_pipeline.common.errors import SchemaError
from ae_pipeline.config.columns import ColumnType
from ae_pipeline.ingestion.contract import ColumnRule, SchemaContract
from ae_pipeline.ingestion.inference import infer_contract
from ae_pipeline.ingestion.numbers import decimal_scale
from ae_pipeline.ingestion.parse import landed_text, parse_value
from ae_pipeline.ingestion.rows import content_hashes
from tests.support.datasets import DAY, LandedDataset, assert_says, make_dataset, parquet

TIME = f"{DAY}T10:00:00"


def text_ids(root: Path, **settings: Any) -> LandedDataset:
    """Return a dataset whose identity `key` is not declared."""
    return make_dataset(root, identity=["key"], **settings)


def keys(*values: Any, dtype: pl.DataType | None = None) -> bytes:
    """Return a Parquet file with one row for each key."""
    time = dt.datetime.fromisoformat(TIME)
    return parquet(pl.DataFrame({"key": pl.Series(list(values), dtype=dtype), "time": [time] * len(values)}))


def infer(texts: list[Any], **settings: Any) -> ColumnRule:
    """Return the rule that is inferred for a column of a dataset without event time."""
    sample = pl.DataFrame({"id": [str(i) for i in range(len(texts))], "x": texts})
    config = make_dataset(Path(), event_time=None, start=None, end=None, **settings).config
    return infer_contract([sample], config).columns["x"]


def parsed(value: Any, dtype: pl.DataType | None = None, **rule: Any) -> Any:
    """Return one value as a rule reads it."""
    values = pl.DataFrame({"x": pl.Series([value], dtype=dtype)})
    expression = parse_value(pl.col("x"), values.schema["x"], ColumnRule.model_validate(rule))
    return values.select(expression).item()


# Identities


@pytest.mark.parametrize(
    "texts",
    [
        ["11898508762506083287", "11898508762506083288"],
        ["1.1", "1.10", "1.100"],
        ["12E3", "12000", "1.2e4"],
        ["t", "true", "T", "yes", "True"],
        ["7", "007", "+7", "7.0", "07"],
        ["01067", "1067"],
        ["0.1", "0.10000000000000001"],
        ["NA", "null", "nan", "-"],
        ["1_000", "1000"],
    ],
)
def test_identities_are_the_text_that_landed(tmp_path: Path, texts: list[str]) -> None:
    shop = text_ids(tmp_path)
    shop.land("a.csv", "key,time\n" + "".join(f"{text},{TIME}\n" for text in texts))
    assert sorted(shop.rows("row_id", "key")) == sorted((text, text) for text in texts)


@pytest.mark.parametrize(
    ("values", "dtype", "texts"),
    [
        ([Decimal("12345678901234567890"), Decimal("12345678901234567891")], pl.Decimal(38, 0), None),
        ([Decimal("1.10"), Decimal("1.1000")], pl.Decimal(10, 4), ["1.1000", "1.1000"]),
        ([2**63 + 1, 2**64 - 1], pl.UInt64(), None),
        ([2**53, 2**53 + 1], pl.Int64(), None),
        ([0.1, 16777217.0, 1e22, 517.0], pl.Float64(), ["0.1", "16777217", "1e+22", "517"]),
        ([0.1, 3.4e38], pl.Float32(), ["0.1", "3.4e+38"]),
        ([True, False], pl.Boolean(), ["true", "false"]),
        (["x1 ", " x2"], pl.Categorical(), ["x1", "x2"]),
        (["x1 ", " x2"], pl.Enum(["x1 ", " x2"]), ["x1", "x2"]),
        ([dt.time(10, 0, 0, 1), dt.time(10)], pl.Time(), ["10:00:00.000001", "10:00:00"]),
    ],
)
def test_typed_identities_keep_every_digit(
    tmp_path: Path, values: list[Any], dtype: pl.DataType, texts: list[str] | None
) -> None:
    shop = text_ids(tmp_path)
    shop.land("a.parquet", keys(*values, dtype=dtype))
    expected = texts or [str(value) for value in values]
    assert sorted(row_id for (row_id,) in shop.rows("row_id")) == sorted(set(expected))


def test_a_later_file_does_not_merge_leading_zeros(tmp_path: Path) -> None:
    shop = text_ids(tmp_path)
    shop.land("a.parquet", keys(7, 8))
    shop.land("b.csv", f"key,time\n007,{TIME}\n7,{TIME}\n")
    assert shop.rows("key") == [("007",), ("7",), ("8",)]


def test_the_same_moment_is_one_identity_and_nanoseconds_are_not(tmp_path: Path) -> None:
    shop = make_dataset(tmp_path, identity=["time"])
    moments = pl.Series([dt.datetime(2024, 3, 1, 10)] * 3).cast(pl.Datetime("ns")).to_physical() + pl.Series([0, 1, 2])
    shop.land("a.parquet", parquet(pl.DataFrame({"time": moments.cast(pl.Datetime("ns", "Europe/Berlin"))})))
    shop.land(
        "b.csv", "time\n2024-03-01T10:00:00Z\n2024-03-01 11:00:00.000000001+01:00\n2024-03-01T10:00:00.0000000025Z\n"
    )
    assert [row_id for (row_id,) in sorted(shop.rows("row_id"), key=lambda row: len(row[0]))] == [
        "2024-03-01T10:00:00Z",
        "2024-03-01T10:00:00.000000001Z",
        "2024-03-01T10:00:00.000000002Z",
    ]
    ((*index, _),) = shop.quarantine()
    assert index == ["b.csv", 4, "time: timestamp"]


def test_an_integer_contract_quarantines_what_it_would_change(tmp_path: Path) -> None:
    shop = make_dataset(tmp_path)
    shop.declare(id={"type": "integer"}, time={"type": "timestamp"})
    texts = ["7", "007", "9223372036854775807", "9223372036854775808", "1.00000000000000001", "9e3"]
    shop.land("a.csv", "id,time\n" + "".join(f"{text},{TIME}\n" for text in texts))
    assert sorted(shop.rows("row_id", "id")) == [
        ("7", 7),
        ("9223372036854775807", 9223372036854775807),
        ("9e3", 9000),
    ]
    reasons = [reason for _, _, _, reason in shop.quarantine()]
    assert_says(reasons[0], "id = 007 has leading zeros, which type integer would lose; change the type to text")
    assert_says(
        reasons[1], "id = 9223372036854775808 has more digits than type integer keeps; change the type to decimal"
    )
    assert_says(reasons[2], "id = 1.00000000000000001 ")


def test_dictionary_encoded_text_obeys_the_same_rules(tmp_path: Path) -> None:
    shop = text_ids(tmp_path)
    shop.declare(key={"type": "text"}, time={"type": "timestamp"}, country={"type": "text", "null_values": ["NA"]})
    time = dt.datetime.fromisoformat(TIME)
    rows = pl.DataFrame({"key": ["x1 ", "", "x2"], "time": [time] * 3, "country": [" DE ", "FR", "NA"]})
    shop.land("a.parquet", parquet(rows.with_columns(pl.col("key", "country").cast(pl.Categorical))))
    assert shop.rows("row_id", "country") == [("x1", "DE"), ("x2", None)]
    assert [(row, rule) for _, row, rule, _ in shop.quarantine()] == [(2, "key: required")]


# Exact numbers


@pytest.mark.parametrize(
    ("texts", "kind", "scale"),
    [
        (["9223372036854775807", "1"], "integer", None),
        (["9223372036854775808", "1"], "decimal", 0),
        (["12345678901234567.25", "0.5"], "decimal", 2),
        (["0.1000000000000000055511151231257827", "2"], "decimal", 34),
        (["0.30000000000000004", "1e-7"], "number", None),
        (["1" * 39, "2"], "text", None),
        (["1" * 38, "0.5"], "text", None),
    ],
)
def test_numbers_with_more_digits_than_float64_are_decimals(texts: list[str], kind: str, scale: int | None) -> None:
    rule = infer(texts)
    assert (rule.type, rule.scale) == (ColumnType(kind), scale)


@pytest.mark.parametrize(
    ("values", "kind", "scale"),
    [
        (pl.Series([Decimal("1.10"), None], dtype=pl.Decimal(10, 2)), "decimal", 2),
        (pl.Series([2**64 - 1], dtype=pl.UInt64), "decimal", 0),
        (pl.Series([5], dtype=pl.UInt64), "integer", None),
        (pl.Series([0.5, 1e300]), "number", None),
    ],
)
def test_typed_numbers_keep_their_digits(values: pl.Series, kind: str, scale: int | None) -> None:
    rule = (
        infer(list(values))
        if values.dtype.is_float()
        else infer_contract(
            [pl.DataFrame({"id": ["1"] * len(values), "x": values})],
            make_dataset(Path(), event_time=None, start=None, end=None).config,
        ).columns["x"]
    )
    assert (rule.type, rule.scale) == (ColumnType(kind), scale)


def test_decimals_are_exact_in_raw_data(tmp_path: Path) -> None:
    shop = make_dataset(tmp_path)
    shop.declare(id={"type": "integer"}, time={"type": "timestamp"}, x={"type": "decimal", "scale": 2})
    texts = ["12345678901234567890.25", "1.5e3", "-0.10", "1.250", "1.255", "1e40", "007.5"]
    shop.land("a.csv", "id,time,x\n" + "".join(f"{number},{TIME},{text}\n" for number, text in enumerate(texts)))
    assert shop.rows("x") == [
        (Decimal("12345678901234567890.25"),),
        (Decimal("1500.00"),),
        (Decimal("-0.10"),),
        (Decimal("1.25"),),
    ]
    assert [(row, rule) for _, row, rule, _ in shop.quarantine()] == [(n, "x: decimal") for n in (6, 7, 8)]
    assert_says(shop.quarantine()[0][3], "x = 1.255 has more digits than type decimal keeps; change the type")


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        ("9007199254740993", None, None),
        ("9007199254740992", None, 9007199254740992.0),
        ("0.10000000000000001", None, 0.1),
        ("0.1000000000000000000001", None, None),
        ("1e-400", None, None),
        ("5e-324", None, 5e-324),
        ("0.0", None, 0.0),
        ("01.5", None, None),
        (2**53 + 1, pl.Int64(), None),
        (2**53 + 2, pl.Int64(), float(2**53 + 2)),
        (2**64 - 1, pl.UInt64(), None),
        (Decimal("0.1"), pl.Decimal(38, 20), 0.1),
        (Decimal("0.12345678901234567891"), pl.Decimal(38, 20), None),
        (float("inf"), pl.Float64(), None),
    ],
)
def test_a_number_that_float64_would_change_is_rejected(value: Any, dtype: pl.DataType, expected: float | None) -> None:
    assert parsed(value, dtype, type="number") == expected


def test_decimal_scale_counts_the_digits_that_matter() -> None:
    assert decimal_scale(pl.Series(["1.500", "20", "1e3"])) == 1
    assert decimal_scale(pl.Series(["1" * 38, "0.1"])) is None
    assert decimal_scale(pl.Series(["x"])) is None


def test_a_contract_with_the_old_keys_keeps_its_fingerprint() -> None:
    rules = {
        "id": {"type": "integer", "required": True},
        "x": {"type": "timestamp", "format": "%Y", "null_values": ["a"]},
    }
    contract = SchemaContract.model_validate({"dataset": "shop", "columns": rules})
    assert contract.fingerprint == "d643584337253cc5d7de26ffe96c2fd3"
    decimal = contract.model_copy(update={"columns": {"id": ColumnRule(type=ColumnType.DECIMAL, scale=2)}})
    assert (
        decimal.fingerprint
        != contract.model_copy(update={"columns": {"id": ColumnRule(type=ColumnType.DECIMAL)}}).fingerprint
    )


# Times


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (2**62, pl.Datetime("ms")),
        (-(2**62), pl.Datetime("ms", "UTC")),
        (2**63 - 1, pl.Datetime("us")),
        (-(2**63) + 1, pl.Datetime("us", "Europe/Berlin")),
        (253_402_300_800_000_000, pl.Datetime("us")),
        (-62_135_596_800_001, pl.Datetime("ms")),
    ],
)
def test_a_time_outside_the_years_1_to_9999_is_rejected(tmp_path: Path, value: int, dtype: pl.Datetime) -> None:
    shop = make_dataset(tmp_path)
    shop.declare(id={"type": "integer"}, time={"type": "timestamp"}, x={"type": "timestamp"})
    time = dt.datetime.fromisoformat(TIME)
    last = {"ms": 253_402_300_799_999, "us": 253_402_300_799_999_999}[dtype.time_unit]
    rows = pl.DataFrame({"id": [1, 2], "time": [time] * 2, "x": pl.Series([value, last]).cast(dtype)})
    buffer = io.BytesIO()
    rows.write_parquet(buffer)
    shop.land("a.parquet", buffer.getvalue())
    ((year, _),) = [(x.year, x) for (x,) in shop.rows("x")]
    assert year == 9999
    ((*index, reason),) = shop.quarantine()
    assert index == ["a.parquet", 1, "x: timestamp"]
    assert_says(reason, f"x = {value} is not a timestamp; correct it")


@pytest.mark.parametrize("days", [3_000_000, -800_000])
def test_a_date_outside_the_years_1_to_9999_is_rejected(days: int) -> None:
    assert parsed(days, pl.Int32(), type="date", format="%Y") is None
    values = pl.DataFrame({"x": pl.Series([days, 0], dtype=pl.Int32).cast(pl.Date)})
    result = values.select(parse_value(pl.col("x"), pl.Date(), ColumnRule(type=ColumnType.DATE))).to_series()
    assert result.to_list() == [None, dt.date(1970, 1, 1)]


def test_nanoseconds_are_kept_or_rejected(tmp_path: Path) -> None:
    texts = [f"{TIME}.123456789", f"{TIME}.5", "1969-12-31T23:59:59.999999999"]
    assert infer(texts).precision == "ns"
    assert infer([f"{TIME}.123456", TIME]).precision is None
    assert infer([*texts, "9999-12-31T00:00:00"]).precision is None
    shop = make_dataset(tmp_path)
    shop.declare(
        id={"type": "integer"},
        time={"type": "timestamp"},
        us={"type": "timestamp"},
        ns={"type": "timestamp", "precision": "ns"},
    )
    lines = [
        f"1,{TIME},{TIME}.123456,{texts[2]}",
        f"2,{TIME},{texts[0]},{TIME}",
        f"3,{TIME},{TIME},2262-12-31T00:00:00",
    ]
    shop.land("a.csv", "id,time,us,ns\n" + "\n".join(lines) + "\n")
    assert pl.DataFrame(shop.rows("ns"), schema={"ns": pl.Datetime("ns", "UTC")}, orient="row").height == 1
    raw = shop.raw(shop.ingest())
    assert raw["ns"].to_physical().to_list() == [-1]
    assert [(row, rule) for _, row, rule, _ in shop.quarantine()] == [(3, "us: precision"), (4, "ns: timestamp")]
    assert_says(shop.quarantine()[0][3], "us = .*123456789 has digits after the microsecond", "set 'precision: ns'")


@pytest.mark.parametrize(
    ("texts", "kind", "form", "first"),
    [
        (
            ["2012/01/13 00:01:02", "2012/02/01 10:00:00"],
            "timestamp",
            "%Y/%m/%d %H:%M:%S%.f",
            dt.datetime(2012, 1, 13, 0, 1, 2),
        ),
        (["13.01.2012", "01.02.2012"], "date", "%d.%m.%Y", dt.date(2012, 1, 13)),
        (["01/13/2012", "02/01/2012"], "date", "%m/%d/%Y", dt.date(2012, 1, 13)),
        (["13-01-2012 7:05", "01-02-2012 17:05"], "timestamp", "%d-%m-%Y %H:%M", dt.datetime(2012, 1, 13, 7, 5)),
        (["1/13/2012 12:05 AM", "2/1/2012 1:05 PM"], "timestamp", "%m/%d/%Y %I:%M %p", dt.datetime(2012, 1, 13, 0, 5)),
        (["13-Jan-2012", "01-Feb-2012"], "date", "%d-%B-%Y", dt.date(2012, 1, 13)),
        (["January 13, 2012", "May 1, 2012"], "date", "%B %d, %Y", dt.date(2012, 1, 13)),
        (["13 March 2012 10:00", "1 May 2012 10:00"], "timestamp", "%d %B %Y %H:%M", dt.datetime(2012, 3, 13, 10)),
        (["20120113T000102Z", "20120201T000000Z"], "timestamp", "%Y%m%dT%H%M%S%#z", dt.datetime(2012, 1, 13, 0, 1, 2)),
        (["2012-01", "2012-02"], "date", "%Y-%m", dt.date(2012, 1, 1)),
        (
            ["Fri, 13 Jan 2012 00:00:00 +0100", "Wed, 01 Feb 2012 00:00:00 +0000"],
            "timestamp",
            "%a, %d %B %Y %H:%M:%S%.f %#z",
            dt.datetime(2012, 1, 12, 23),
        ),
        (["13/Jan/2012:00:00:00 +0000"], "timestamp", "%d/%B/%Y:%H:%M:%S%.f %#z", dt.datetime(2012, 1, 13)),
        (["Fri, 13 Jan 2012 10:00:00 GMT"], "timestamp", "%a, %d %B %Y %H:%M:%S%.f GMT", dt.datetime(2012, 1, 13, 10)),
        (["2012-01-13 10:00:00,250"], "timestamp", "%Y-%m-%d %H:%M:%S,%3f", dt.datetime(2012, 1, 13, 10, 0, 0, 250000)),
        (["2012-01-13 10:00", "2012-01-13T10:00:00Z"], "timestamp", None, dt.datetime(2012, 1, 13, 10)),
    ],
)
def test_usual_forms_of_times_are_recognized(
    texts: list[str], kind: str, form: str | None, first: dt.date | dt.datetime
) -> None:
    rule = infer(texts)
    assert (rule.type, rule.format) == (ColumnType(kind), form)
    value = parsed(texts[0], **rule.model_dump(exclude_defaults=True))
    assert (value.replace(tzinfo=None) if isinstance(value, dt.datetime) else value) == first


def test_digits_are_a_date_only_if_several_values_are() -> None:
    days = [f"201201{day:02d}" for day in range(1, 8)]
    assert infer(days).format == "%Y%m%d"
    assert infer(days[:2]).type == ColumnType.INTEGER
    assert infer([*days, "20120199"]).type == ColumnType.INTEGER


def test_a_year_with_two_digits_does_not_fit_a_format_with_four() -> None:
    assert parsed("01/02/12", type="date", format="%d/%m/%Y") is None
    assert parsed("01/02/12", type="date", format="%d/%m/%y") == dt.date(2012, 2, 1)
    assert parsed("0001-01-01", type="date") == dt.date(1, 1, 1)


@pytest.mark.parametrize(
    ("form", "text", "expected"),
    [
        ("epoch_s", "1325376000", "2012-01-01T00:00:00Z"),
        ("epoch_s", "1325376000.5", "2012-01-01T00:00:00.500Z"),
        ("epoch_ms", "1325376000001", "2012-01-01T00:00:00.001Z"),
        ("epoch_us", "-1", "1969-12-31T23:59:59.999999Z"),
        ("epoch_ns", "1325376000000000000", "2012-01-01T00:00:00Z"),
        ("epoch_s", "253402300800", None),
        ("epoch_s", "x", None),
        ("epoch_s", "1e9", None),
    ],
)
def test_epochs_are_read_by_declaration(form: str, text: str, expected: str | None) -> None:
    for value, dtype in ((text, pl.String()), (int(text) if text.isdigit() else text, None)):
        moment = parsed(value, dtype, type="timestamp", format=form)
        assert (None if moment is None else landed(moment)) == expected


def landed(moment: dt.datetime) -> str:
    """Return the text of a moment."""
    frame = pl.DataFrame({"x": pl.Series([moment], dtype=pl.Datetime("us", "UTC"))})
    return str(frame.select(landed_text(pl.col("x"), pl.Datetime("us", "UTC"))).item())


@pytest.mark.parametrize("written", ["01/02/2012", "01.02.2012 10:00", "01/02/12"])
def test_an_ambiguous_order_of_day_and_month_asks(
    tmp_path: Path, written: str, caplog: pytest.LogCaptureFixture
) -> None:
    shop = make_dataset(tmp_path)
    shop.land("a.csv", f"id,time\n1,{written}\n2,{written}\n")
    with pytest.raises(SchemaError) as caught:
        shop.ingest()
    assert_says(
        str(caught.value), f"'time' of 'shop' is ambiguous: in '{written}'", "declare columns: .*%d.%m.* or .*%m.%d"
    )
    assert not shop.paths.contract.exists()
    with caplog.at_level(logging.INFO, "ae_pipeline"):
        assert infer([written]).type == ColumnType.TEXT
    assert_says(
        caplog.text, "'x' of 'shop' stays text: in .* to read it as a time, declare columns: .*%d.%m.* or .*%m.%d"
    )
    form = "%d.%m.%Y %H:%M" if " " in written else "%d/%m/%y" if len(written) == 8 else "%d/%m/%Y"
    kind = "timestamp" if " " in written else "date"
    declared = make_dataset(
        tmp_path / "b", start="2012-01-01", end="2012-12-31", columns={"time": {"type": kind, "format": form}}
    )
    declared.land("a.csv", f"id,time\n1,{written}\n")
    assert [time.date() for (time,) in declared.rows("event_time")] == [dt.date(2012, 2, 1)]


# Few odd values


def test_one_bad_event_time_is_quarantined_and_named(tmp_path: Path) -> None:
    shop = make_dataset(tmp_path)
    times = [f"2024-03-{1 + i % 28:02d}T10:00:00" for i in range(250)]
    shop.land(
        "a.csv", "id,time\n" + "".join(f"{i},{time}\n" for i, time in enumerate([*times[:100], "never", *times[100:]]))
    )
    assert shop.entry("a.csv").rows == 250
    ((*index, reason),) = shop.quarantine()
    assert index == ["a.csv", 102, "time: timestamp"]
    assert_says(reason, "time = never is not a timestamp with the format")


def test_an_event_time_that_is_none_names_a_value_and_the_declaration(tmp_path: Path) -> None:
    shop = make_dataset(tmp_path)
    shop.land("a.csv", "id,time\n1,1325376000\n2,1325376001\n")
    with pytest.raises(SchemaError) as caught:
        shop.ingest()
    assert_says(str(caught.value), "such as '1325376000'", r"\{time: \{type: timestamp, format: epoch_s\}\}")


@pytest.mark.parametrize(
    ("odd", "kind", "missing"),
    [
        (["nil", "nil"], "number", ("nil",)),
        (["ERR", "ERR"], "number", ("ERR",)),
        (["ERR"], "number", ()),
        (["12,5", "12,5"], "number", ()),
        (["01067"], "text", ()),
        (["inf"], "number", ()),
        (
            ["?", "--", "unknown", "Missing", "#N/A", ".", "None", "<NA>"],
            "number",
            ("#N/A", "--", ".", "<NA>", "?", "Missing", "None", "unknown"),
        ),
    ],
)
def test_a_few_odd_values_do_not_make_a_column_text(odd: list[str], kind: str, missing: tuple[str, ...]) -> None:
    rule = infer([*(str(i / 7)[:6] for i in range(7, 207)), *odd])
    assert (rule.type, rule.null_values) == (ColumnType(kind), tuple(sorted(missing)))


def test_the_log_names_the_texts_that_mean_missing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "ae_pipeline"):
        infer([*map(str, range(100)), "nil", "nil"])
    assert "'x' of 'shop' is integer; these texts mean a missing value: 'nil' (2)" in caplog.text


def test_many_odd_values_make_a_column_text() -> None:
    assert infer([*map(str, range(90)), *["ERR"] * 10]).type == ColumnType.TEXT
    assert infer([*map(str, range(1000)), *(f"A{i}" for i in range(30))]).type == ColumnType.TEXT


@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        (["Y", "N"], "boolean"),
        (["on", "OFF"], "boolean"),
        (["Yes", "No", "unknown"], "boolean"),
        (["N", "N"], "text"),
        (["F", "M"], "text"),
        (["0", "1"], "integer"),
        (["yes"] * 97 + ["sometimes"] * 3, "text"),
    ],
)
def test_words_are_booleans_only_if_nothing_else_is_meant(texts: list[str], kind: str) -> None:
    assert infer(texts).type == ColumnType(kind)


# Declarations


@pytest.mark.parametrize(
    ("rule", "text", "expected"),
    [
        ({"type": "number", "decimal": ","}, "12,5", 12.5),
        ({"type": "number", "decimal": ","}, "12.5", None),
        ({"type": "number", "decimal": ",", "thousands": "."}, "1.234.567,5", 1234567.5),
        ({"type": "number", "thousands": ","}, "12,800.50", 12800.5),
        ({"type": "number", "thousands": ","}, "12,80", None),
        ({"type": "number", "thousands": " "}, "12\u00a0800.5", 12800.5),
        ({"type": "number", "prefix": "$"}, "-$12.80", -12.8),
        ({"type": "number", "prefix": "$"}, "$-12.80", -12.8),
        ({"type": "number", "prefix": "$"}, "€12.80", None),
        ({"type": "number", "suffix": "%"}, "12.8 %", 12.8),
        ({"type": "number", "suffix": "C"}, "12.8 F", None),
        ({"type": "integer", "thousands": ","}, "12,800", 12800),
        (
            {"type": "decimal", "scale": 2, "prefix": "$", "thousands": ","},
            "$12,345,678,901,234,567.89",
            Decimal("12345678901234567.89"),
        ),
        ({"type": "boolean", "true_values": ["ja"], "false_values": ["nein"]}, "Nein", False),
        ({"type": "boolean", "true_values": ["N"]}, "n", True),
    ],
)
def test_declared_forms_are_read(rule: dict[str, Any], text: str, expected: Any) -> None:
    assert parsed(text, **rule) == expected


def test_declarations_are_kept_in_the_contract(tmp_path: Path) -> None:
    columns = {
        "price": {"type": "number", "prefix": "$", "thousands": ",", "null_values": ["free"]},
        "city": "category",
    }
    shop = make_dataset(tmp_path, columns=columns)
    shop.land("a.csv", f'id,time,price,city\n1,{TIME},"$1,200.50",a\n2,{TIME},free,b\n')
    assert shop.rows("price") == [(1200.5,), (None,)]
    rule = shop.ingest().contract.columns["price"]
    assert (rule.type, rule.prefix, rule.thousands, rule.null_values) == (ColumnType.NUMBER, "$", ",", ("free",))


@pytest.mark.parametrize(
    ("texts", "declaration"),
    [
        (["$12.80", "$3.00"], '{type: number, prefix: "$"}'),
        (["12.8%", "3%"], '{type: number, suffix: "%"}'),
        (["12,800.50", "3.5"], '{type: number, thousands: ","}'),
        (["1 234,5", "2 000,25"], '{type: number, thousands: " ", decimal: ","}'),
        (["€ 12", "€ 3,50"], '{type: number, prefix: "€", decimal: ","}'),
        (["12,5 €", "1.234,50 €"], '{type: number, suffix: "€", decimal: ",", thousands: "."}'),
    ],
)
def test_the_log_says_how_to_declare_numbers(
    texts: list[str], declaration: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "ae_pipeline"):
        assert infer(texts).type == ColumnType.TEXT
    assert f"declare columns: {{x: {declaration}}}" in caplog.text


@pytest.mark.parametrize("texts", [["A1", "A2"], ["3-4", "5-6"], ["12:30", "13:45"], ["1.2.3", "4.5.6"]])
def test_names_with_digits_are_no_numbers(texts: list[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "ae_pipeline"):
        assert infer(texts).type == ColumnType.TEXT
    assert not caplog.text


def test_an_unambiguous_decimal_comma_is_inferred() -> None:
    assert infer(["1,5", "12,25", "3"]).decimal == ","
    assert infer(["1,500", "2,250"]).type == ColumnType.TEXT


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"type": "text", "decimal": ","}, "decimal is for type decimal, integer, number, got type text; remove it"),
        ({"type": "number", "thousands": "."}, "thousands='.' is also the decimal mark"),
        ({"type": "number", "scale": 2}, "scale is for type decimal"),
        ({"type": "date", "format": "epoch_s"}, "format='epoch_s' is for type timestamp"),
    ],
)
def test_contradictory_declarations_are_explained(tmp_path: Path, declared: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_dataset(tmp_path, columns={"x": declared})


# No identity


def test_without_identity_no_row_is_lost_and_repeats_are_counted(tmp_path: Path) -> None:
    shop = make_dataset(tmp_path, identity=[])
    shop.land("a.csv", f"time,x\n{TIME},1\n{TIME},1\n{TIME},2\n")
    shop.land("b.csv", f"time,x\n{TIME},1\n{TIME},3\n")
    ids = [row_id for (row_id,) in shop.rows("row_id")]
    hashes = [row_id.split("-") for row_id in ids]
    assert sorted(number for _, number in hashes) == ["1", "1", "1", "2", "3"]
    assert len(set(ids)) == 5
    assert sorted(x for (x,) in shop.rows("x")) == [1, 1, 1, 2, 3]
    from ae_pipeline.ingestion.raw import build_raw_day

    result = build_raw_day(DAY, shop.ingest(), shop.paths)
    assert (result.superseded, result.repeated) == (0, 2)
    shop.land("a.csv", f"time,x\n{TIME},1\n")
    assert sorted(x for (x,) in shop.rows("x")) == [1, 1, 3]


def test_content_hashes_depend_on_values_and_not_on_columns_without_them() -> None:
    rows = pl.DataFrame({"a": ["x", "x", "x\x1e"], "b": [1, 2, 1], "c": pl.Series([None] * 3, dtype=pl.String)})
    hashes = content_hashes(rows)
    assert hashes.n_unique() == 3
    assert hashes.to_list() == content_hashes(rows.select("b", "a")).to_list()
    pair = pl.DataFrame({"a": ['1\x1e"b":2', "1"], "b": [None, "2"]})
    assert content_hashes(pair).n_unique() == 2
