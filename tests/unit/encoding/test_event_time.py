"""The event time as context, and columns that restate a part of it."""

import datetime as dt
from collections.abc import Callable

import numpy as np
import polars as pl
import pytest

from ae_pipeline.common.errors import TrainingError
from ae_pipeline.config.columns import ColumnType, FeatureColumn
from ae_pipeline.config.model import EventTime, Scaling
from ae_pipeline.encoding.encoder import context_width
from ae_pipeline.encoding.restatement import EventTimeParts
from ae_pipeline.encoding.table_encoder import TableEncoder
from ae_pipeline.encoding.table_fitting import fit_table_encoder
from ae_pipeline.encoding.values import to_known_hours

TIME = FeatureColumn("event_time", ColumnType.TIMESTAMP)
LOAD = FeatureColumn("load", ColumnType.NUMBER)


def times(days: int = 60, of_day: int = 12, hours: tuple[int, int] = (0, 24), start: str = "2024-01-01") -> pl.Series:
    """Return `of_day` times on each of some days, UTC, at hours in a range."""
    rng = np.random.default_rng(0)
    first = dt.datetime.fromisoformat(start).replace(tzinfo=dt.UTC)
    minutes = np.arange(days * of_day) // of_day * 1440 + rng.integers(hours[0] * 60, hours[1] * 60, days * of_day)
    values = [first + dt.timedelta(minutes=int(minute)) for minute in minutes]
    return pl.Series("event_time", values, pl.Datetime("us", "UTC"))


def rows(moments: pl.Series) -> pl.DataFrame:
    rng = np.random.default_rng(1)
    return pl.DataFrame({"event_time": moments, "load": rng.normal(size=len(moments))})


def fit(moments: pl.Series, event_time: EventTime = EventTime.CONTEXT) -> TableEncoder:
    return fit_table_encoder(rows(moments), [LOAD, TIME], event_time=event_time)


class TestContext:
    def test_it_is_the_last_input_and_no_column_to_reconstruct(self) -> None:
        encoder = fit(times())
        assert [column.name for column in encoder.columns] == ["load"]
        assert [column.name for column in encoder.inputs] == ["load", "event_time"]
        assert {block.column for block in encoder.blocks} == {"load"}
        assert [(block.part, block.start) for block in encoder.context_blocks] == [("time_of_day", 2), ("weekday", 4)]
        assert (encoder.width, encoder.target_width, context_width(encoder)) == (6, 2, 4)
        assert encoder.groups.tolist() == [0, 0, -1, -1, -1, -1]

    def test_its_values_are_those_of_a_target(self) -> None:
        moments = times()
        context = fit(moments).encode(rows(moments))[:, 2:]
        target = fit(moments, EventTime.TARGET)
        blocks = [block for block in target.blocks if block.column == "event_time"]
        expected = np.hstack([target.encode(rows(moments))[:, block.start : block.stop] for block in blocks])
        np.testing.assert_array_equal(context, expected)

    def test_unit_scaling_keeps_it_between_0_and_1(self) -> None:
        data = rows(times())
        matrix = fit_table_encoder(data, [LOAD, TIME], Scaling.UNIT).encode(data)
        assert (matrix[:, 2:].min(), matrix[:, 2:].max()) == pytest.approx((0, 1), abs=1e-3)

    @pytest.mark.parametrize(("days", "start"), [(13, "2024-01-01"), (14, "2024-01-01"), (20, "2024-01-06")])
    def test_each_weekday_must_occur_twice(self, days: int, start: str) -> None:
        parts = [block.part for block in fit(times(days, start=start)).context_blocks]
        assert parts == (["time_of_day", "weekday"] if days >= 14 else ["time_of_day"])

    def test_a_window_without_mondays_has_no_weekday(self) -> None:
        moments = times()
        encoder = fit(moments.filter(moments.dt.weekday() != 1))
        assert [block.part for block in encoder.context_blocks] == ["time_of_day"]

    def test_midnights_have_no_time_of_day(self) -> None:
        encoder = fit(times(of_day=1, hours=(0, 1)))
        assert [block.part for block in encoder.context_blocks] == ["weekday"]

    def test_without_any_part_the_reason_is_recorded(self) -> None:
        encoder = fit(times(days=10, hours=(0, 1)))
        assert (encoder.context, encoder.context_blocks) == ((), ())
        assert [(entry.column, entry.reason[:35]) for entry in encoder.left_out] == [
            ("event_time", "all rows are of one hour of the day")
        ]

    def test_an_hour_that_training_lacks_becomes_the_nearest_one(self) -> None:
        encoder = fit(times(hours=(9, 18)))
        night, morning, noon = (
            pl.Series("event_time", [dt.datetime(2024, 5, 1, hour, 30, tzinfo=dt.UTC)]) for hour in (4, 9, 12)
        )
        encoded = [encoder.encode(rows(moment))[0, 2:4].tolist() for moment in (night, morning, noon)]
        assert encoded[0] == encoded[1] != encoded[2]

    def test_known_hours_keep_their_minutes(self) -> None:
        hours = [9 if hour < 9 else min(hour, 17) for hour in range(24)]
        minutes = np.array([1440 * 3 + 600.5, 1440 * 3 + 60, -1440 + 1439, np.nan])
        moved = to_known_hours(minutes, hours)
        np.testing.assert_array_equal(moved, [1440 * 3 + 600.5, 1440 * 3 + 570, -1440 + 17 * 60 + 30, np.nan])

    def test_ignored_it_is_left_out(self) -> None:
        encoder = fit(times(), EventTime.IGNORE)
        assert [column.name for column in encoder.inputs] == ["load"]
        assert [(entry.column, entry.reason) for entry in encoder.left_out] == [
            ("event_time", "model.event_time is ignore")
        ]

    def test_alone_it_is_nothing_to_learn_from(self) -> None:
        with pytest.raises(TrainingError, match="no column is left to learn from"):
            fit_table_encoder(rows(times()), [TIME])


NEW_YORK, BERLIN = "America/New_York", "Europe/Berlin"


def local(moments: pl.Series, zone: str) -> pl.Series:
    return moments.dt.convert_time_zone(zone).dt.replace_time_zone(None)


RESTATED: dict[str, tuple[Callable[[pl.Series], pl.Series], str]] = {
    "year": (lambda t: t.dt.year(), "year"),
    "year as text": (lambda t: t.dt.year().cast(pl.String), "year"),
    "month": (lambda t: t.dt.month(), "month"),
    "month from 0": (lambda t: t.dt.month() - 1, "month"),
    "month of two digits": (lambda t: t.dt.strftime("%m"), "month"),
    "name of the month": (lambda t: t.dt.strftime("%B"), "month"),
    "day": (lambda t: t.dt.day().cast(pl.Float64), "day"),
    "hour": (lambda t: t.dt.hour(), "hour"),
    "hour from 1": (lambda t: t.dt.hour() + 1, "hour"),
    "minute": (lambda t: t.dt.minute(), "minute"),
    "weekday": (lambda t: t.dt.weekday(), "weekday"),
    "weekday from 0": (lambda t: t.dt.weekday() - 1, "weekday"),
    "weekday from Sunday": (lambda t: t.dt.weekday() % 7, "weekday from Sunday"),
    "short weekday": (lambda t: t.dt.strftime("%a"), "weekday"),
    "German weekday": (
        lambda t: t.dt.strftime("%A").replace(
            ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"],
            ["Montag", "Dienstag", "Mittwoch", "Donnerstag", "Freitag", "Samstag", "Sonntag"],
        ),
        "weekday",
    ),
    "day of the year": (lambda t: t.dt.ordinal_day(), "day of the year"),
    "week": (lambda t: t.dt.week(), "week"),
    "quarter": (lambda t: t.dt.quarter(), "quarter"),
    "date": (lambda t: t.dt.date(), "date"),
    "date as text": (lambda t: t.dt.strftime("%d.%m.%Y"), "date"),
    "date as a number": (lambda t: t.dt.strftime("%Y%m%d").cast(pl.Int64), "date"),
    "time as text": (lambda t: t.dt.strftime("%H:%M"), "time of day"),
    "time as a number": (lambda t: t.dt.strftime("%H%M").cast(pl.Int64), "time of day"),
    "epoch": (lambda t: t.dt.epoch("s"), "second"),
    "epoch in ms": (lambda t: t.dt.epoch("ms"), "millisecond"),
    "a copy": (lambda t: t, "time"),
    "the hour as a time": (lambda t: t.dt.truncate("1h"), "hour"),
    "hour in New York": (lambda t: local(t, NEW_YORK).dt.hour(), f"hour, {NEW_YORK}"),
    "date in Berlin": (lambda t: local(t, BERLIN).dt.date(), f"date, {BERLIN}"),
    "hour in India": (lambda t: (t + dt.timedelta(hours=5, minutes=30)).dt.hour(), "hour, UTC+05:30"),
    "weekday in Tokyo": (lambda t: (t + dt.timedelta(hours=9)).dt.weekday(), "weekday, UTC+09:00"),
}
YEAR = times(days=400, of_day=10, start="2023-10-01")

OTHERS: dict[str, Callable[[pl.Series], pl.Series]] = {
    "a number": lambda t: pl.Series(np.random.default_rng(3).normal(size=len(t))),
    "a small integer": lambda t: pl.Series(np.random.default_rng(3).integers(0, 7, len(t))),
    "a temperature of the day": lambda t: pl.Series(np.sin(t.dt.ordinal_day().to_numpy() / 58) * 15 + 10),
    "a category": lambda t: pl.Series(np.random.default_rng(3).choice(["Monday", "Tuesday", "Friday"], len(t))),
    "a running number": lambda t: pl.Series(np.arange(len(t))),
    "a hour that is often another": lambda t: pl.Series(
        np.where(np.random.default_rng(3).random(len(t)) < 0.01, 5, t.dt.hour().to_numpy())
    ),
    "a delayed hour": lambda t: (
        t + pl.Series(np.random.default_rng(3).integers(0, 60, len(t)) * 60_000_000).cast(pl.Duration("us"))
    ).dt.hour(),
    "a boolean": lambda t: t.dt.weekday() > 5,
    "missing values": lambda t: pl.Series([None] * len(t), dtype=pl.Float64),
    "a switch in the middle": lambda t: pl.Series((np.arange(len(t)) > len(t) // 2).astype(int)),
}


class TestRestatement:
    @pytest.mark.parametrize("name", RESTATED)
    def test_a_part_is_recognized(self, name: str) -> None:
        make, part = RESTATED[name]
        assert EventTimeParts(YEAR).restated_by(make(YEAR)) == part

    @pytest.mark.parametrize("name", RESTATED)
    def test_gaps_and_one_wrong_row_in_two_thousand_change_nothing(self, name: str) -> None:
        make, part = RESTATED[name]
        values = make(YEAR)
        order = pl.int_range(len(values), eager=True)
        odd = values.shift(1000).zip_with(order % 2000 == 1500, values).set(order % 50 == 7, None)
        assert EventTimeParts(YEAR).restated_by(odd) == part

    @pytest.mark.parametrize("name", OTHERS)
    def test_other_columns_are_kept(self, name: str) -> None:
        assert EventTimeParts(YEAR).restated_by(OTHERS[name](YEAR)) is None

    def test_few_rows_show_nothing(self) -> None:
        few = YEAR.head(19)
        assert EventTimeParts(few).restated_by(few.dt.day()) is None

    def test_a_small_number_on_a_single_day_is_no_date(self) -> None:
        day = times(days=1, of_day=300)
        values = pl.Series(np.random.default_rng(3).uniform(0, 1e-4, 300))
        assert EventTimeParts(day).restated_by(values) is None

    def test_without_event_times_nothing_is_restated(self) -> None:
        none = pl.Series("event_time", [None] * 100, pl.Datetime("us", "UTC"))
        assert EventTimeParts(none).restated_by(pl.Series(range(100))) is None

    def test_such_a_column_is_left_out_with_the_reason(self) -> None:
        data = rows(YEAR).with_columns(month=YEAR.dt.month().cast(pl.Float64), wday=YEAR.dt.strftime("%a"))
        columns = [LOAD, TIME, FeatureColumn("month", ColumnType.INTEGER), FeatureColumn("wday", ColumnType.CATEGORY)]
        encoder = fit_table_encoder(data, columns)
        assert {entry.column: entry.reason for entry in encoder.left_out} == {
            "month": "it restates the event time: month",
            "wday": "it restates the event time: weekday",
        }
        assert [column.name for column in encoder.columns] == ["load"]

    def test_a_declared_column_is_kept(self) -> None:
        data = rows(YEAR).with_columns(month=YEAR.dt.month().cast(pl.Float64))
        columns = [LOAD, TIME, FeatureColumn("month", ColumnType.INTEGER)]
        encoder = fit_table_encoder(data, columns, declared={"month"})
        assert [column.name for column in encoder.columns] == ["load", "month"]

    def test_beside_a_target_it_is_kept(self) -> None:
        data = rows(YEAR).with_columns(month=YEAR.dt.month().cast(pl.Float64))
        columns = [LOAD, TIME, FeatureColumn("month", ColumnType.INTEGER)]
        encoder = fit_table_encoder(data, columns, event_time=EventTime.TARGET)
        assert [column.name for column in encoder.columns] == ["load", "event_time", "month"]
