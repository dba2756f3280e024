"""Deviations of a day as a whole: description, hours and categories."""

import dataclasses
import datetime as dt

import numpy as np
import polars as pl
import pytest

from ae_pipeline.config.columns import ColumnDisplay, ColumnType, FeatureColumn
from ae_pipeline.config.display import ColumnNames
from ae_pipeline.config.service import DriftConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.monitoring.daily_drift import DayDrift
from ae_pipeline.monitoring.deviations import DETAILED, deviations_of
from ae_pipeline.scoring.drift import Effect, Part, describe_columns
from ae_pipeline.training.reference import with_reference
from tests.support.sensors import Fitted


@pytest.fixture(scope="module")
def bundle(fitted: Fitted) -> ModelBundle:
    """The fitted model with the distributions of its training window."""
    return with_reference(fitted.bundle, fitted.columns, fitted.paths)


class TestColumns:
    def test_columns_missing_in_the_same_rows_are_one_deviation(self, fitted: Fitted, bundle: ModelBundle) -> None:
        day = fitted.features(fitted.days[-1])
        hit = pl.int_range(pl.len()) < 30
        gone = day.with_columns(
            load=pl.when(hit).then(None).otherwise("load"), power=pl.when(hit).then(None).otherwise("power")
        )
        effects = tuple(
            Effect(part=Part.COLUMN, name=name, psi=0.0, missing=0.5, is_drift=True, message="more missing")
            for name in ("load", "power")
        )
        drift = day_drift("2024-02-09", 60, effects)
        (deviation,) = deviations_of(drift, gone, bundle, fitted.config.drift)
        assert set(deviation.columns) == {"load", "power"}
        assert deviation.rows == 30
        assert deviation.message.startswith("50% of rows (30) lack load and power, usually 0.0%")
        context = pl.SQLContext(day=gone)
        hit_ids = context.execute(f"SELECT row_id FROM day WHERE {deviation.where}", eager=True)["row_id"]
        assert set(hit_ids) == set(day["row_id"].head(30)) == set(deviation.row_ids)

    def test_columns_missing_in_different_rows_are_two_deviations(self, fitted: Fitted, bundle: ModelBundle) -> None:
        index = pl.int_range(pl.len())
        gone = fitted.features(fitted.days[-1]).with_columns(
            load=pl.when(index < 30).then(None).otherwise("load"),
            power=pl.when(index >= 30).then(None).otherwise("power"),
        )
        effects = tuple(
            Effect(part=Part.COLUMN, name=name, psi=0.0, missing=0.5, is_drift=True, message="more missing")
            for name in ("load", "power")
        )
        deviations = deviations_of(day_drift("d", 60, effects), gone, bundle, fitted.config.drift)
        assert [(each.columns, each.rows) for each in deviations] == [(("load",), 30), (("power",), 30)]

    def test_a_median_is_compared_with_its_usual_value(self, fitted: Fitted, bundle: ModelBundle) -> None:
        day = fitted.features(fitted.days[-1]).with_columns(load=pl.lit(77.0))
        effect = Effect(
            part=Part.COLUMN, name="load", psi=3.0, is_drift=True, message="stability index 3.00, at most 0.5"
        )
        drift = day_drift("2024-02-09", 60, (effect,))
        (deviation,) = deviations_of(drift, day, bundle, fitted.config.drift)
        usual = next(known for known in bundle.reference if known.name == "load").quantiles[49]
        assert deviation.message == f"the median of load is 77, usually {usual:.4g} (stability index 3.00, at most 0.5)"
        display = {"load": ColumnDisplay(title="motor load", unit="kW"), "mode": ColumnDisplay(unit="%")}
        (named,) = deviations_of(drift, day, bundle, fitted.config.drift, ColumnNames(display))
        assert named.message.startswith(f"the median of motor load is 77 kW, usually {usual:.4g} kW (stability")
        (large,) = deviations_of(drift, day.with_columns(load=pl.lit(12345.0)), bundle, fitted.config.drift)
        assert large.message.startswith("the median of load is 12,345, usually")

    def test_a_column_name_with_quotes_is_valid_in_the_query(self, bundle: ModelBundle) -> None:
        name = 'load "A" in %'
        known = remembered(bundle, pl.DataFrame({name: [float(n) for n in range(100)]}))
        day = pl.DataFrame({"row_id": ["a", "b", "c", "d"], name: [None, 1.0, None, None]})
        (deviation,) = deviations_of(lacking(name), day, known, DriftConfig())
        assert pl.SQLContext(day=day).execute(f"SELECT row_id FROM day WHERE {deviation.where}", eager=True).rows() == [
            ("a",),
            ("c",),
            ("d",),
        ]

    def test_all_rows_lack_an_absent_column(self, fitted: Fitted, bundle: ModelBundle) -> None:
        (deviation,) = deviations_of(lacking("load"), day_rows().drop("load"), bundle, fitted.config.drift)
        assert deviation.message == "100% of rows (240) lack load, usually 0.0%"
        assert (deviation.rows, deviation.where) == (240, "")

    def test_an_absent_column_is_a_deviation_of_its_own(self, fitted: Fitted, bundle: ModelBundle) -> None:
        day = day_rows().drop("load").with_columns(power=pl.when(pl.col("of_hour") < 5).then(None).otherwise(1.0))
        deviations = deviations_of(lacking("load", "power"), day, bundle, fitted.config.drift)
        assert [(each.columns, each.rows) for each in deviations] == [(("load",), 240), (("power",), 120)]

    def test_columns_with_different_usual_shares_are_not_grouped(self, bundle: ModelBundle) -> None:
        window = pl.DataFrame({"a": [float(n) for n in range(100)], "b": [None, 1.0] * 50})
        known = remembered(bundle, window)
        day = pl.DataFrame({"a": [None] * 20, "b": [None] * 20}, schema={"a": pl.Float64, "b": pl.Float64})
        deviations = deviations_of(lacking("a", "b"), day, known, DriftConfig())
        assert [each.message for each in deviations] == [
            "100% of rows (20) lack a, usually 0.0%",
            "100% of rows (20) lack b, usually 50.0%",
        ]

    def test_fewer_missing_values_than_usual_come_last(self, bundle: ModelBundle) -> None:
        window = pl.DataFrame({"a": [None, 1.0] * 50, "b": [float(n) for n in range(100)]})
        day = pl.DataFrame({"a": [1.0] * 16 + [None] * 4, "b": [1.0] * 10 + [None] * 10})
        fewer = Effect(part=Part.COLUMN, name="a", psi=9.0, missing=-0.3, is_drift=True, message="fewer missing")
        more = lacking("b").effects
        drift = day_drift("d", 20, (fewer, *more))
        first, second = deviations_of(drift, day, remembered(bundle, window), DriftConfig())
        assert first.columns == ("b",)
        assert second.message == "80% of rows (16) have a, usually 50.0%"
        assert (second.rows, second.where, second.splits) == (16, '"a" IS NOT NULL', ())

    def test_only_the_first_deviations_are_described_in_detail(self, bundle: ModelBundle) -> None:
        names = [f"c{n}" for n in range(DETAILED + 2)]
        window = pl.DataFrame({name: [float(n) for n in range(100)] for name in names})
        indices = pl.int_range(240)
        # Each column lacks values in different rows.
        day = day_rows().select(
            "event_time",
            *(pl.when(indices // 30 == n).then(None).otherwise(1.0).alias(name) for n, name in enumerate(names)),
        )
        deviations = deviations_of(lacking(*names), day, remembered(bundle, window), DriftConfig())
        assert [bool(each.hours) for each in deviations] == [True] * DETAILED + [False] * 2
        assert all(each.where and "UTC" in each.message for each in deviations)

    @pytest.mark.parametrize(
        ("modes", "message"),
        [
            (["run"] * 90 + ["idle"] * 90 + ["brandnew"] * 60, "brandnew is 25.0% of its values, and is new"),
            (["run"] * 60 + ["idle"] * 180, "idle is 75.0% of its values, usually"),
        ],
    )
    def test_the_category_value_with_the_largest_change_is_named(
        self, fitted: Fitted, bundle: ModelBundle, modes: list[str], message: str
    ) -> None:
        effect = Effect(
            part=Part.COLUMN, name="mode", psi=1.0, is_drift=True, message="stability index 1.00, at most 0.5"
        )
        day = day_rows().with_columns(mode=pl.Series(modes))
        (deviation,) = deviations_of(day_drift("d", 240, (effect,)), day, bundle, fitted.config.drift)
        assert message in deviation.message
        assert deviation.message.endswith("(stability index 1.00, at most 0.5)")


class TestLocations:
    @pytest.mark.parametrize(
        ("hit", "message"),
        [
            (pl.col("hour").is_between(6, 14), ", including nearly every row from 06:00 to 14:59 UTC"),
            (pl.col("hour").is_between(6, 14) & (pl.col("of_hour") < 5), ", most of them from 06:00 to 14:59 UTC"),
            (pl.col("of_hour") < 5, ", in most hours that have rows"),
            # Two nights of the same UTC day, and no row in between.
            ((pl.col("hour") < 3) | (pl.col("hour") > 21), ""),
            # A few completely affected hours, but most affected rows are elsewhere.
            ((pl.col("hour").is_in([6, 7])) | (pl.col("of_hour") < 2), ", in most hours that have rows"),
        ],
    )
    def test_affected_hours_are_described(
        self, fitted: Fitted, bundle: ModelBundle, hit: pl.Expr, message: str
    ) -> None:
        day = day_rows().with_columns(load=pl.when(hit).then(None).otherwise("load"))
        (deviation,) = deviations_of(lacking("load"), day, bundle, fitted.config.drift)
        assert deviation.message.endswith(f"usually 0.0%{message}")
        counts = day.group_by("hour").agg(pl.col("load").null_count(), pl.len()).sort("hour")
        assert deviation.hours == tuple(counts.select("load", "len").rows())

    def test_no_hours_are_named_if_they_do_not_stand_out(self, fitted: Fitted, bundle: ModelBundle) -> None:
        everything = day_rows().with_columns(load=pl.lit(None, pl.Float64))
        (deviation,) = deviations_of(lacking("load"), everything, bundle, fitted.config.drift)
        assert deviation.message == "100% of rows (240) lack load, usually 0.0%"
        noon = day_rows().filter(pl.col("hour").is_between(9, 12))
        noon = noon.with_columns(load=pl.when(pl.col("of_hour") < 3).then(None).otherwise("load"))
        (deviation,) = deviations_of(lacking("load"), noon, bundle, fitted.config.drift)
        assert deviation.message == "30% of rows (12) lack load, usually 0.0%, in most hours that have rows"

    def test_a_neighboring_hour_with_a_similar_rate_extends_the_span(self, fitted: Fitted, bundle: ModelBundle) -> None:
        hit = pl.col("hour").is_between(9, 16) & (pl.col("of_hour") < 6) | (pl.col("hour") == 17) & (
            pl.col("of_hour") < 3
        )
        day = day_rows().with_columns(load=pl.when(hit).then(None).otherwise("load"))
        (deviation,) = deviations_of(lacking("load"), day, bundle, fitted.config.drift)
        assert deviation.message.endswith(", most of them from 09:00 to 17:59 UTC")

    def test_hours_without_rows_do_not_interrupt_a_run(self, fitted: Fitted, bundle: ModelBundle) -> None:
        day = day_rows().filter(~pl.col("hour").is_between(8, 10))
        day = day.with_columns(load=pl.when(pl.col("hour").is_between(6, 14)).then(None).otherwise("load"))
        (deviation,) = deviations_of(lacking("load"), day, bundle, fitted.config.drift)
        assert deviation.message.endswith(", including nearly every row from 06:00 to 14:59 UTC")
        assert deviation.hours[9] == (0, 0)

    def test_category_values_with_higher_rates_are_named(self, fitted: Fitted, bundle: ModelBundle) -> None:
        day = day_rows().with_columns(load=pl.when(pl.col("mode") == "run").then(None).otherwise("load"))
        (deviation,) = deviations_of(lacking("load"), day, bundle, fitted.config.drift)
        assert deviation.splits == ("by mode: run 100% (120 of 120)",)

    def test_an_even_distribution_is_reported(self, fitted: Fitted, bundle: ModelBundle) -> None:
        day = day_rows().with_columns(load=pl.when(pl.col("of_hour") < 4).then(None).otherwise("load"))
        (deviation,) = deviations_of(lacking("load"), day, bundle, fitted.config.drift)
        assert deviation.splits == ("about evenly over the values of mode",)
        few = day.filter(pl.col("hour") < 6)
        (deviation,) = deviations_of(lacking("load"), few, bundle, fitted.config.drift)
        assert deviation.splits == ()

    def test_sampling_noise_of_many_values_names_none(self, bundle: ModelBundle) -> None:
        window = pl.DataFrame({"a": [float(n) for n in range(100)], "site": [f"p{n % 90}" for n in range(100)]})
        known = remembered(bundle, window)
        named = 0
        for seed in range(50):
            rng = np.random.default_rng(seed)
            indices = rng.zipf(1.6, 750) % 90
            values = pl.Series(np.where(rng.random(750) < 0.35, np.nan, 1.0)).fill_nan(None)
            day = pl.DataFrame({"a": values, "site": [f"p{n}" for n in indices]})
            (deviation,) = deviations_of(lacking("a"), day, known, DriftConfig())
            named += deviation.splits != ("about evenly over the values of site",)
        assert named <= 1

    def test_one_of_many_values_with_a_higher_rate_is_named(self, bundle: ModelBundle) -> None:
        window = pl.DataFrame({"a": [float(n) for n in range(100)], "site": [f"p{n % 90}" for n in range(100)]})
        rng = np.random.default_rng(0)
        indices = rng.integers(0, 30, 750)
        gone = (rng.random(750) < 0.2) | (indices == 7)
        values = pl.Series(np.where(gone, np.nan, 1.0)).fill_nan(None)
        day = pl.DataFrame({"a": values, "site": [f"p{n}" for n in indices]})
        (deviation,) = deviations_of(lacking("a"), day, remembered(bundle, window), DriftConfig())
        of_place = int((indices == 7).sum())
        assert deviation.splits[0].startswith(f"by site: p7 100% ({of_place} of {of_place})")

    def test_missing_category_values_are_ignored(self, fitted: Fitted, bundle: ModelBundle) -> None:
        hit = pl.col("of_hour") < 5
        day = day_rows().with_columns(
            load=pl.when(hit).then(None).otherwise("load"), mode=pl.when(hit).then(None).otherwise("mode")
        )
        (deviation,) = deviations_of(lacking("load"), day, bundle, fitted.config.drift)
        assert deviation.splits == ()


def day_rows() -> pl.DataFrame:
    """Return ten rows for each hour of a day, in two alternating modes that are independent of the hour."""
    rows = pl.DataFrame({"at": range(240)}).with_columns(hour=pl.col("at") // 10, of_hour=pl.col("at") % 10)
    begin = dt.datetime(2024, 2, 9, tzinfo=dt.UTC)
    return rows.select(
        row_id=pl.col("at").cast(pl.String),
        event_time=begin + pl.duration(hours="hour", minutes=pl.col("of_hour") * 6),
        load=pl.col("at").cast(pl.Float64),
        mode=pl.when(pl.col("at") % 2 == 0).then(pl.lit("idle")).otherwise(pl.lit("run")),
        hour="hour",
        of_hour="of_hour",
    )


def day_drift(day: str, rows: int, effects: tuple[Effect, ...]) -> DayDrift:
    return DayDrift(day=day, is_after=True, rows=rows, effects=effects, is_judged=True)


def lacking(*names: str) -> DayDrift:
    effects = (
        Effect(part=Part.COLUMN, name=name, psi=0.0, missing=0.5, is_drift=True, message="more missing")
        for name in names
    )
    return day_drift("2024-02-09", 240, tuple(effects))


def remembered(bundle: ModelBundle, window: pl.DataFrame) -> ModelBundle:
    """Return the model as if it was trained on other columns; text columns are categories."""
    kinds = {pl.String: ColumnType.CATEGORY, pl.Float64: ColumnType.NUMBER}
    columns = [FeatureColumn(name, kinds[type(window[name].dtype)]) for name in window.columns]
    return dataclasses.replace(bundle, reference=describe_columns(window, columns))
