"""The table encoder against numpy quantiles and codes by hand."""

import datetime as dt
import math
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest

from ae_pipeline.common.errors import BundleError, TrainingError
from ae_pipeline.config.columns import ColumnType, FeatureColumn
from ae_pipeline.config.model import EventTime, Scaling
from ae_pipeline.encoding.blocks import Block, BlockKind, Matrix
from ae_pipeline.encoding.encoder import read_encoder
from ae_pipeline.encoding.table_encoder import TableEncoder
from ae_pipeline.encoding.table_fitting import fit_table_encoder
from tests.support.sensors import Fitted


def number(name: str) -> FeatureColumn:
    return FeatureColumn(name, ColumnType.NUMBER)


def category(name: str) -> FeatureColumn:
    return FeatureColumn(name, ColumnType.CATEGORY)


def block_of(encoder: TableEncoder, column: str, kind: BlockKind, part: str | None = None) -> Block:
    return next(b for b in encoder.blocks if b.column == column and b.kind == kind and part in {None, b.part})


def part_of(
    encoder: TableEncoder, features: pl.DataFrame, column: str, kind: BlockKind, part: str | None = None
) -> Matrix:
    block = block_of(encoder, column, kind, part)
    return encoder.encode(features)[:, block.start : block.stop]


def reason_for(encoder: TableEncoder, column: str) -> str:
    return next(entry.reason for entry in encoder.left_out if entry.column == column)


@pytest.fixture
def heavy() -> pl.DataFrame:
    """Return a heavy-tailed column with gaps."""
    values = np.random.default_rng(0).standard_t(2, 500) * 7 + 100
    return pl.DataFrame({"x": pl.Series(values).set(pl.Series(np.arange(500) % 10 == 3), None)})


def test_robust_scaling_is_asinh_of_robust_z_score(heavy: pl.DataFrame) -> None:
    encoder = fit_table_encoder(heavy, [number("x")])
    present = heavy["x"].drop_nulls().to_numpy()
    low, median, high = np.quantile(present, [0.25, 0.5, 0.75])
    expected = np.arcsinh((present - median) / ((high - low) / 1.349))
    encoded = part_of(encoder, heavy, "x", BlockKind.NUMERIC)[heavy["x"].is_not_null().to_numpy(), 0]
    np.testing.assert_allclose(encoded, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("missing", [None, math.nan])
def test_missing_number_is_zero_and_sets_its_indicator(heavy: pl.DataFrame, missing: float | None) -> None:
    encoder = fit_table_encoder(heavy, [number("x")])
    rows = pl.DataFrame({"x": [90.0, missing, 110.0]}, schema={"x": pl.Float64})
    matrix = encoder.encode(rows)
    value, flag = block_of(encoder, "x", BlockKind.NUMERIC), block_of(encoder, "x", BlockKind.BINARY)
    assert value.present == flag.start
    assert matrix[1, value.start] == 0
    assert matrix[:, flag.start].tolist() == [0, 1, 0]


def test_scale_is_standard_deviation_if_the_iqr_is_zero() -> None:
    values = np.r_[np.zeros(90), np.full(10, 30.0)]
    encoder = fit_table_encoder(pl.DataFrame({"x": values}), [number("x")])
    assert encoder.columns[0].center == 0
    assert encoder.columns[0].scale == pytest.approx(values.std())


def test_constant_column_with_gaps_is_kept() -> None:
    encoder = fit_table_encoder(pl.DataFrame({"x": [5.0, None, 5.0, 5.0]}), [number("x")])
    np.testing.assert_array_equal(
        encoder.encode(pl.DataFrame({"x": [5.0, None, 6.0]}))[:, 0], np.array([0, 0, np.arcsinh(1)], np.float32)
    )


@pytest.mark.parametrize("value", [1.7e308, -1.7e308])
def test_largest_floats_have_finite_codes(value: Any) -> None:
    tight = pl.DataFrame({"x": np.linspace(0, 1e-6, 50)})
    encoder = fit_table_encoder(tight, [number("x")])
    assert np.isfinite(encoder.encode(pl.DataFrame({"x": [value]}))).all()


@pytest.mark.parametrize(
    ("minutes", "sine", "cosine"), [(0, 0, 1), (360, 1, 0), (720, 0, -1), (1080, -1, 0), (180, 0.5**0.5, 0.5**0.5)]
)
def test_clock_becomes_sine_and_cosine_of_the_day(minutes: int, sine: float, cosine: float) -> None:
    clocks = pl.DataFrame({"at": [0.0, 360.0, 720.0, None]})
    encoder = fit_table_encoder(clocks, [FeatureColumn("at", ColumnType.CLOCK_HHMM)])
    rows = pl.DataFrame({"at": [float(minutes), None]})
    encoded = part_of(encoder, rows, "at", BlockKind.CYCLIC, "time_of_day")
    np.testing.assert_allclose(encoded, np.array([[sine, cosine], [0, 0]]), atol=1e-6)
    assert part_of(encoder, rows, "at", BlockKind.BINARY)[:, 0].tolist() == [0, 1]


def test_timestamp_becomes_time_of_day_and_weekday() -> None:
    moments = [dt.datetime(2024, 1, 1, 6), dt.datetime(2024, 1, 3, 18), None]  # a Monday and a Wednesday
    rows = pl.DataFrame({"t": moments}, schema={"t": pl.Datetime("us", "UTC")})
    encoder = fit_table_encoder(rows, [FeatureColumn("t", ColumnType.TIMESTAMP)])
    day = part_of(encoder, rows, "t", BlockKind.CYCLIC, "time_of_day")
    week = part_of(encoder, rows, "t", BlockKind.CYCLIC, "weekday")
    angle = 2 * math.pi * 2 / 7
    np.testing.assert_allclose(day, np.array([[1, 0], [-1, 0], [0, 0]]), atol=1e-6)
    np.testing.assert_allclose(week, np.array([[0, 1], [math.sin(angle), math.cos(angle)], [0, 0]]), atol=1e-6)


@pytest.mark.parametrize(
    ("zone", "first", "hours"),
    [
        ("America/New_York", "2024-03-10", 23),
        ("America/New_York", "2024-11-03", 25),
        ("Asia/Kolkata", "2024-03-10", 24),
        ("Australia/Lord_Howe", "2024-04-07", 25),
        ("America/Sao_Paulo", "2018-11-04", 23),
        ("Pacific/Apia", "2011-12-29", 48),
    ],
)
def test_clock_features_are_those_of_the_time_zone(zone: str, first: str, hours: int) -> None:
    midnight = dt.datetime.combine(dt.date.fromisoformat(first), dt.time(), ZoneInfo(zone)).astimezone(dt.UTC)
    instants = [midnight + dt.timedelta(minutes=20 * n) for n in range(3 * hours)]
    rows = pl.DataFrame({"t": [*instants, None]}, schema={"t": pl.Datetime("us", "UTC")})
    encoder = fit_table_encoder(rows, [FeatureColumn("t", ColumnType.TIMESTAMP)], timezone=zone)
    local = [instant.astimezone(ZoneInfo(zone)) for instant in instants]
    for part, position in (
        ("time_of_day", [(time.hour * 60 + time.minute) / 1440 for time in local]),
        ("weekday", [time.weekday() / 7 for time in local]),
    ):
        angle = 2 * math.pi * np.array(position)
        expected = np.stack([np.sin(angle), np.cos(angle)], axis=1)
        encoded = part_of(encoder, rows, "t", BlockKind.CYCLIC, part)
        np.testing.assert_allclose(encoded, [*expected, [0, 0]], atol=1e-6)
    assert encoder.speak("t", instants[0]) == f"{local[0]:%H:%M %a}"
    naive = rows.with_columns(pl.col("t").dt.replace_time_zone(None))
    np.testing.assert_array_equal(encoder.encode(naive), encoder.encode(rows))


def test_a_date_stays_its_own_day_in_every_time_zone() -> None:
    rows = pl.DataFrame({"d": [dt.date(2024, 1, 1), dt.date(2024, 1, 7)]})
    encoder = fit_table_encoder(rows, [FeatureColumn("d", ColumnType.DATE)], timezone="America/New_York")
    served = rows.with_columns(pl.col("d").cast(pl.Datetime("ns")).dt.replace_time_zone("UTC"))
    np.testing.assert_array_equal(encoder.encode(served), encoder.encode(rows))
    assert encoder.speak("d", dt.date(2024, 1, 1)) == "2024-01-01"


def test_an_encoder_of_before_time_zones_reads_as_utc() -> None:
    rows = pl.DataFrame({"t": [dt.datetime(2024, 1, 1, 6), dt.datetime(2024, 1, 3, 18)]})
    manifest = fit_table_encoder(rows, [FeatureColumn("t", ColumnType.TIMESTAMP)]).model_dump(mode="json")
    del manifest["timezone"]
    encoder = read_encoder(manifest)
    assert isinstance(encoder, TableEncoder)
    assert encoder.timezone == "UTC"


def test_date_becomes_its_weekday() -> None:
    rows = pl.DataFrame({"d": [dt.date(2024, 1, 1), dt.date(2024, 1, 7)]})  # Monday, Sunday
    encoder = fit_table_encoder(rows, [FeatureColumn("d", ColumnType.DATE)])
    angle = 2 * math.pi * 6 / 7
    np.testing.assert_allclose(
        part_of(encoder, rows, "d", BlockKind.CYCLIC), np.array([[0, 1], [math.sin(angle), math.cos(angle)]]), atol=1e-6
    )


def test_event_time_has_no_missing_indicator() -> None:
    rows = pl.DataFrame({"event_time": [dt.datetime(2024, 1, 1, 6), dt.datetime(2024, 1, 2, 7)]})
    column = FeatureColumn("event_time", ColumnType.TIMESTAMP)
    encoder = fit_table_encoder(rows, [column], event_time=EventTime.TARGET)
    assert [(block.kind, block.present) for block in encoder.blocks] == [(BlockKind.CYCLIC, None)] * 2


def test_category_is_one_hot_with_codes_for_other_and_missing() -> None:
    train = pl.DataFrame({"c": ["b"] * 3 + ["a"] * 3 + ["c"] * 4 + [None]})
    encoder = fit_table_encoder(train, [category("c")])
    assert encoder.columns[0].vocabulary == ("c", "a", "b")  # by frequency, then by name
    codes = encoder.encode(pl.DataFrame({"c": ["a", "never seen", None, "c", "b"]}))
    np.testing.assert_array_equal(
        codes, [[0, 1, 0, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1], [1, 0, 0, 0, 0], [0, 0, 1, 0, 0]]
    )


def test_boolean_becomes_a_one_hot_code() -> None:
    encoder = fit_table_encoder(
        pl.DataFrame({"f": [True, False, True, None]}), [FeatureColumn("f", ColumnType.BOOLEAN)]
    )
    codes = encoder.encode(pl.DataFrame({"f": [True, False, None]}))
    np.testing.assert_array_equal(codes, [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize(("count", "is_known"), [(4, False), (5, True)])
def test_category_with_fewer_than_five_rows_counts_as_other(count: int, is_known: bool) -> None:
    train = pl.DataFrame({"c": ["common"] * (1000 - count) + ["rare"] * count})
    encoder = fit_table_encoder(train, [category("c")])
    assert ("rare" in encoder.columns[0].vocabulary) is is_known
    assert encoder.encode(pl.DataFrame({"c": ["rare"]}))[0].tolist() == ([0, 1, 0, 0] if is_known else [0, 1, 0])


def test_vocabulary_has_at_most_1024_values() -> None:
    train = pl.DataFrame({"c": [f"v{index:04d}" for index in range(1100) for _ in range(8)]})
    encoder = fit_table_encoder(train, [category("c")])
    assert encoder.width == 1024 + 2


@pytest.mark.parametrize("name", ["count", "value", "part", "len", "literal"])
@pytest.mark.parametrize("kind", [ColumnType.CATEGORY, ColumnType.NUMBER])
def test_column_can_have_any_name(name: str, kind: ColumnType) -> None:
    values = ["1", "2", "1", "3"] if kind == ColumnType.CATEGORY else [1.0, 2.0, 1.0, 3.0]
    rows = pl.DataFrame({name: values})
    encoder = fit_table_encoder(rows, [FeatureColumn(name, kind)])
    assert encoder.encode(rows).shape == (4, 5 if kind == ColumnType.CATEGORY else 2)


_N = 200


@pytest.mark.parametrize(
    ("values", "kind", "reason"),
    [
        ([7.0] * _N, ColumnType.NUMBER, "its only value in the training window is 7.0"),
        (["x"] * _N, ColumnType.CATEGORY, "its only value in the training window is x"),
        ([None] * _N, ColumnType.NUMBER, "all its values are missing in the training window"),
        ([math.nan] * _N, ColumnType.NUMBER, "all its values are missing in the training window"),
        ([float(i) for i in range(_N)], ColumnType.INTEGER, "an identifier: its 200 values are all distinct"),
        (
            [f"n{i}" for i in range(_N)],
            ColumnType.CATEGORY,
            "an identifier: 200 values, all of them rare",
        ),
        (
            ["plane"] * 100 + [f"n{i}" for i in range(100)],
            ColumnType.CATEGORY,
            "an identifier: 101 values, of which the 1 commonest cover 50% of the rows",
        ),
        ([float(i % 17) for i in range(_N)], ColumnType.NUMBER, "a copy of 'kept'"),
    ],
)
def test_uninformative_column_is_left_out_with_a_reason(values: Any, kind: ColumnType, reason: str) -> None:
    rows = pl.DataFrame({"kept": [float(i % 17) for i in range(_N)], "column": values}, strict=False)
    encoder = fit_table_encoder(rows, [number("kept"), FeatureColumn("column", kind)])
    assert [column.name for column in encoder.columns] == ["kept"]
    assert reason_for(encoder, "column") == reason


def test_distinct_floats_are_no_identifier() -> None:
    rows = pl.DataFrame({"x": np.random.default_rng(0).normal(size=500)})
    assert fit_table_encoder(rows, [number("x")]).left_out == ()


def test_columns_with_permuted_values_are_no_copies() -> None:
    values = np.random.default_rng(0).normal(size=50)
    encoder = fit_table_encoder(pl.DataFrame({"a": values, "b": values[::-1]}), [number("a"), number("b")])
    assert [column.name for column in encoder.columns] == ["a", "b"]


def test_error_without_usable_columns_has_every_reason() -> None:
    with pytest.raises(TrainingError, match=r"no column is left to learn from: a: its only .* is 1\.0; b: all its"):
        fit_table_encoder(pl.DataFrame({"a": [1.0, 1.0], "b": [None, None]}), [number("a"), number("b")])


def test_code_of_a_row_does_not_depend_on_other_rows(fitted: Fitted) -> None:
    rows = fitted.features(fitted.days[-1])
    unusual = rows.with_columns(load=pl.lit(1e9), mode=pl.lit("new"), temperature=pl.lit(None, pl.Float64))
    encoder = fitted.bundle.encoder
    single, together = encoder.encode(rows), encoder.encode(pl.concat([rows, unusual]))
    np.testing.assert_array_equal(together[: rows.height], single)
    np.testing.assert_array_equal(encoder.encode(rows.head(1)), single[:1])


def test_statistics_are_those_of_the_training_days(fitted: Fitted) -> None:
    train = pl.concat([fitted.features(day) for day in fitted.window.train])
    numbers = {column.name: column for column in fitted.bundle.encoder.columns if column.type == ColumnType.NUMBER}
    assert set(numbers) == {"load", "power", "temperature", "balance"}
    for name, column in numbers.items():
        low, median, high = np.quantile(train[name].drop_nulls().to_numpy(), [0.25, 0.5, 0.75])
        assert column.center == pytest.approx(median)
        assert column.scale == pytest.approx((high - low) / 1.349)
    assert {entry.column: entry.reason.split(":")[0] for entry in fitted.bundle.encoder.left_out} == {
        "serial": "an identifier",
        "site": "its only value in the training window is north",
    }


def test_float32_and_float64_have_the_same_codes() -> None:
    values = [1.5, -2.25, 1024.0, 0.125, None]
    wide, narrow = (pl.DataFrame({"x": values}, schema={"x": kind}) for kind in (pl.Float64, pl.Float32))
    encoder = fit_table_encoder(wide, [number("x")])
    np.testing.assert_array_equal(encoder.encode(narrow), encoder.encode(wide))


def test_rows_are_encoded_into_a_given_matrix(fitted: Fitted) -> None:
    rows, encoder = fitted.features(fitted.days[0]), fitted.bundle.encoder
    into = np.zeros((len(rows), *encoder.shape), np.float32)
    assert encoder.encode(rows, into=into) is into
    assert np.array_equal(into, encoder.encode(rows))


@pytest.mark.parametrize(("scaling", "middle"), [(Scaling.UNIT, 0.5), (Scaling.STANDARD, 0.0), (Scaling.ROBUST, 0.0)])
def test_a_missing_number_is_in_the_middle_and_an_infinite_one_at_the_end(scaling: Scaling, middle: float) -> None:
    values = pl.DataFrame({"a": [*range(50), None], "b": [*(float(each) for each in range(50)), None]})
    columns = [FeatureColumn("a", ColumnType.INTEGER), FeatureColumn("b", ColumnType.NUMBER)]
    encoder = fit_table_encoder(values, columns, scaling)
    starts = [next(block.start for block in encoder.blocks if block.column == name) for name in ("a", "b")]
    assert encoder.encode(values[-1:])[0, starts].tolist() == [middle] * 2
    (infinite,) = encoder.encode(pl.DataFrame({"a": [0], "b": [float("inf")]}))
    assert 100 < infinite[starts[1]] < np.inf


@pytest.mark.parametrize("stored", [pl.Time, pl.Duration("us"), pl.Date, pl.Datetime("us")], ids=str)
def test_times_are_no_numbers(fitted: Fitted, stored: pl.DataType) -> None:
    rows = fitted.features(fitted.days[0]).head(2).with_columns(pl.Series("load", [1, 2]).cast(stored))
    with pytest.raises(BundleError, match=r"column 'load' holds (Time|Du|Date).*cannot be read as number"):
        fitted.bundle.encoder.encode(rows)


def test_no_rows_give_an_empty_matrix(fitted: Fitted) -> None:
    empty = fitted.features(fitted.days[0]).clear()
    assert fitted.bundle.encoder.encode(empty).shape == (0, *fitted.bundle.encoder.shape)


def test_error_names_the_missing_and_the_needed_columns(fitted: Fitted) -> None:
    rows = fitted.features(fitted.days[0]).drop("temperature")
    with pytest.raises(BundleError, match=r"lack column 'temperature'.*it needs load, power, temperature"):
        fitted.bundle.encoder.encode(rows)


@pytest.mark.parametrize(
    ("column", "values"), [("load", "not a number"), ("event_time", "2024-01-01"), ("load", [1.0])]
)
def test_error_names_a_column_of_another_type(fitted: Fitted, column: str, values: Any) -> None:
    rows = fitted.features(fitted.days[0]).head(2).with_columns(pl.Series(column, [values] * 2))
    with pytest.raises(BundleError, match=f"column '{column}' holds (String|List).*cannot be read as"):
        fitted.bundle.encoder.encode(rows)


def described(value: object, kind: ColumnType, train: list[object], part: list[float]) -> tuple[str, str]:
    """Return the actual and expected value of one column for an output `part` of the network."""
    encoder = fit_table_encoder(pl.DataFrame({"x": train}), [FeatureColumn("x", kind)])
    return encoder.describe({"x": value}, np.asarray(part, np.float32), "x")


_NUMBERS = [10.0, 20.0, 30.0, 40.0, 50.0]  # median 30, quartiles 20 and 40


@pytest.mark.parametrize(
    ("value", "kind", "train", "part", "actual", "expected"),
    [
        (55.5, ColumnType.NUMBER, _NUMBERS, [0, 0], "55.5", "30"),
        (1234.6, ColumnType.NUMBER, _NUMBERS, [math.asinh(1.349), 0.1], "1,235", "50"),
        (30.0, ColumnType.NUMBER, _NUMBERS, [-9, 0], "30", "10"),  # no value outside the training rows is expected
        (30.0, ColumnType.NUMBER, _NUMBERS, [9, 0.1], "30", "50"),
        (None, ColumnType.NUMBER, _NUMBERS, [0, 0.9], "missing", "missing (else 30)"),
        (math.nan, ColumnType.NUMBER, _NUMBERS, [0, 0.2], "missing", "30"),
        (1065.0, ColumnType.CLOCK_HHMM, [0.0, 700.0], [1, 0, 0], "17:45", "06:00"),
        (0.0, ColumnType.CLOCK_HHMM, [0.0, 700.0], [-1e-9, 1, 0], "00:00", "00:00"),
        ("a", ColumnType.CATEGORY, ["a", "a", "b"], [0.05, 0.9, 0.02, 0.03], "a", "b (90%)"),
        ("z", ColumnType.CATEGORY, ["a", "a", "b"], [0.3, 0.1, 0.6, 0.0], "z", "<other> (60%) or a (30%)"),
        (None, ColumnType.CATEGORY, ["a", "a", "b"], [0.1, 0.05, 0.0, 0.85], "missing", "<missing> (85%)"),
        (True, ColumnType.BOOLEAN, [True, False], [0.95, 0.05, 0, 0], "true", "false (95%)"),
    ],
)
def test_actual_and_expected_values_are_formatted_by_type(
    value: Any, kind: ColumnType, train: list[Any], part: list[float], actual: str, expected: str
) -> None:
    assert described(value, kind, train, part) == (actual, expected)


def test_timestamp_is_described_by_time_and_weekday() -> None:
    moments = [dt.datetime(2024, 1, 1, 6), dt.datetime(2024, 1, 2, 7)]
    column = FeatureColumn("event_time", ColumnType.TIMESTAMP)
    encoder = fit_table_encoder(pl.DataFrame({"event_time": moments}), [column], event_time=EventTime.TARGET)
    angle = 2 * math.pi * 5 / 7
    output = np.array([0, -1, math.sin(angle), math.cos(angle)], np.float32)
    row = {"event_time": dt.datetime(2024, 1, 3, 17, 45)}
    assert encoder.describe(row, output, "event_time") == ("17:45 Wed", "12:00 Sat")


@pytest.mark.parametrize("scaling", list(Scaling))
def test_huge_and_tiny_numbers_have_finite_statistics_and_codes(scaling: Scaling) -> None:
    largest = np.finfo(np.float64).max
    values = [*np.linspace(0.0, 9.0, 500), 1e300, -1e300, largest, -largest, 5e-324]
    rows = pl.DataFrame({"a": values, "b": [5e-324, *[0.0] * 504], "c": [1e300, -1e300, *[0.0] * 503]})
    encoder = fit_table_encoder(rows, [number(name) for name in "abc"], scaling)
    assert all(np.isfinite([column.center, column.scale]).all() for column in encoder.columns)
    matrix = encoder.encode(rows)
    assert np.isfinite(matrix).all()
    assert matrix[500, 0] > matrix[499, 0] > matrix[501, 0]
    decoded = encoder.decode(matrix.astype(np.float64), rows)
    assert decoded["a"].is_finite().all()


@pytest.mark.parametrize("values", [[f"k{i}" for i in range(200)], [float(i) for i in range(200)]])
def test_a_unique_column_of_the_identity_is_left_out(values: list[Any]) -> None:
    kind = ColumnType.CATEGORY if isinstance(values[0], str) else ColumnType.NUMBER
    rows = pl.DataFrame({"key": values, "half": [*values[:100], *values[:100]], "n": np.arange(200) % 7 * 1.0})
    columns = [FeatureColumn(name, kind, is_identity=True) for name in ("key", "half")]
    encoder = fit_table_encoder(rows, [*columns, number("n")])
    left_out = {entry.column: entry.reason for entry in encoder.left_out}
    assert left_out["key"] == "an identifier: its 200 values identify the rows"
    assert ("half" in left_out) == (kind == ColumnType.CATEGORY)  # 100 rare categories


def test_an_identity_above_2_to_53_is_left_out_although_floats_repeat() -> None:
    values = [float(2**60 + i) for i in range(200)]
    assert len(set(values)) < 200
    rows = pl.DataFrame({"id": values, "n": np.arange(200) % 7 * 1.0})
    for is_unique in (False, True):
        columns = [FeatureColumn("id", ColumnType.INTEGER, is_identity=True, is_unique=is_unique), number("n")]
        assert [entry.column for entry in fit_table_encoder(rows, columns).left_out] == ["id"]


def test_integers_and_decimals_are_shown_exactly() -> None:
    rows = pl.DataFrame({"a": np.arange(200) * 1.5, "b": np.arange(200) % 50 * 2.0})
    encoder = fit_table_encoder(rows, [number("a"), FeatureColumn("b", ColumnType.INTEGER)])
    assert encoder.speak("a", Decimal("12345678901234567890.10")) == "12,345,678,901,234,567,890.10"
    assert encoder.speak("b", 2**60 + 1) == "1,152,921,504,606,846,977"
    assert encoder.speak("b", 12.0) == "12"
    assert encoder.speak("a", 1e300) == "1e+300"
