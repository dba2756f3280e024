"""Drift: effect sizes on both sides of their thresholds, and days through the whole chain."""

import datetime as dt
from collections.abc import Iterator

import dagster as dg
import numpy as np
import polars as pl
import pytest

from ae_pipeline.config.columns import ColumnType, FeatureColumn
from ae_pipeline.config.service import DriftConfig
from ae_pipeline.monitoring.daily_drift import drifting_days, read_drift
from ae_pipeline.orchestration.sensors import early_training_requests, landing_requests, rebuild_requests
from ae_pipeline.scoring.drift import (
    Distribution,
    Part,
    describe_columns,
    describe_numbers,
    measure_columns,
    measure_numbers,
    with_usual,
)
from ae_pipeline.training.fit import with_reference
from tests.support.shop import ATTRIBUTES, DAYS, FIRST, Shop, orders_csv, served_shop

CONFIG = DriftConfig(psi=0.5, wasserstein=0.75, new_categories=0.02, missing=0.2, min_rows=30)


def numbers(seed: int, size: int, shift: float = 0.0, stretch: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, stretch, size)


def beside(known: np.ndarray, values: np.ndarray):
    return measure_numbers(describe_numbers(Part.SCORE, "score", known), values, len(values), CONFIG)


def column(window: pl.Series, day: pl.Series, kind: ColumnType = ColumnType.NUMBER):
    known = describe_columns(window.to_frame("c"), [FeatureColumn("c", kind)])
    (effect,) = measure_columns(day.to_frame("c"), known, CONFIG)
    return effect


class TestNumbers:
    @pytest.mark.parametrize("size", [30, 100, 1000, 50_000])
    def test_rows_of_the_same_kind_have_none_however_many_or_few(self, size):
        drifted = [beside(numbers(0, 50_000), numbers(seed, size)).is_drift for seed in range(1, 41)]
        assert sum(drifted) <= 1

    def test_the_distance_is_told_in_spreads(self):
        for unit in (1e-6, 1.0, 1e6):
            effect = beside(numbers(0, 50_000) * unit, numbers(1, 50_000, 0.5) * unit)
            assert effect.wasserstein == pytest.approx(0.5, abs=0.02)

    @pytest.mark.parametrize(("shift", "drifts"), [(0.3, False), (0.65, False), (0.85, True), (3.0, True)])
    def test_the_distance_counts_from_its_threshold_on(self, shift, drifts):
        effect = beside(numbers(0, 50_000), numbers(1, 50_000, shift))
        assert (effect.wasserstein > 0.75) == drifts
        assert effect.is_drift == (drifts or effect.psi > 0.5)

    def test_the_stability_index_is_that_of_the_textbook(self):
        """Of shares a and e in bins, the sum of (a − e) ln (a / e)."""
        known, rows = np.repeat(np.arange(10.0), 1000), np.repeat(np.arange(10.0), [1900, 100, *[1000] * 8])
        wanted = 0.09 * np.log(0.19 / 0.1) + 0.09 * np.log(0.1 / 0.01)
        assert beside(known, rows).psi == pytest.approx(wanted, abs=0.01)

    @pytest.mark.parametrize(("stretch", "drifts"), [(1.2, False), (3.0, True)])
    def test_the_index_sees_a_change_of_spread(self, stretch, drifts):
        effect = beside(numbers(0, 50_000), numbers(1, 50_000, 0, stretch))
        assert (effect.psi > 0.5) == effect.is_drift == drifts

    def test_one_wild_row_is_no_drift(self):
        wild = np.append(numbers(1, 500), 1e12)
        assert not beside(numbers(0, 50_000), wild).is_drift

    def test_a_column_of_one_value_drifts_as_soon_as_another_comes(self):
        assert not beside(np.full(1000, 3.0), np.full(100, 3.0)).is_drift
        assert beside(np.full(1000, 3.0), np.full(100, 4.0)).is_drift

    @pytest.mark.parametrize("share", [0.002, 0.005, 0.008])
    def test_a_flag_that_is_seldom_set_does_not_drift_by_chance(self, share):
        chance = np.random.default_rng(0)
        window = (chance.random(50_000) < share).astype(float)
        days = [(chance.random(rows) < share).astype(float) for rows in (100, 300, 900) for _ in range(200)]
        assert not any(beside(window, day).is_drift for day in days)
        assert beside(window, (chance.random(300) < 0.5).astype(float)).is_drift

    def test_missing_values_count_as_such(self):
        window = pl.Series("c", [1.0, 2.0, None, 4.0] * 250)
        assert not column(window, pl.Series("c", [1.0, None, 2.0, 4.0] * 25)).is_drift
        more = column(window, pl.Series("c", [1.0, None, None, None, 4.0, 2.0] * 25))
        assert more.missing == pytest.approx(0.25)
        assert more.message == "25.0% more values missing, at most 20.0%"
        assert column(window, pl.Series("c", [None] * 100, pl.Float64)).message.startswith("75.0% more values missing")

    def test_a_column_that_was_empty_or_is_gone_does_not_stop_the_rest(self):
        empty = pl.Series("c", [None] * 100, pl.Float64)
        effect = column(empty, pl.Series("c", [1.0] * 100))
        assert effect.message == "100.0% fewer values missing, at most 20.0%"
        known = describe_columns(pl.DataFrame({"c": [1.0, 2.0] * 50}), [FeatureColumn("c", ColumnType.NUMBER)])
        (gone,) = measure_columns(pl.DataFrame({"d": [1.0] * 50}), known, CONFIG)
        assert gone.message.startswith("100.0% more values missing")

    def test_infinite_values_are_passed_over(self):
        day = pl.Series("c", [float("inf"), float("nan"), *numbers(1, 500).tolist()])
        assert not column(pl.Series("c", numbers(0, 5000)), day).is_drift


class TestUsual:
    """Days that differ from one another, as Mondays from Sundays do, and are all of the window."""

    DAYS = tuple(numbers(seed, 400, shift=seed % 7) for seed in range(42))

    def known(self) -> Distribution:
        window = describe_numbers(Part.LATENT, "z_000", np.concatenate(self.DAYS))
        return with_usual(window, [measure_numbers(window, day, len(day), DriftConfig()) for day in self.DAYS])

    def test_a_day_like_one_of_them_has_not_drifted(self):
        known = self.known()
        plain = known.model_copy(update={"usual_psi": 0.0, "usual_distance": 0.0})
        for index in range(7):
            day = numbers(100 + index, 400, shift=index)
            assert not measure_numbers(known, day, 400, DriftConfig()).is_drift
        assert measure_numbers(plain, numbers(100, 400, shift=0), 400, DriftConfig()).is_drift

    def test_a_day_unlike_all_of_them_has(self):
        assert measure_numbers(self.known(), numbers(100, 400, shift=12), 400, DriftConfig()).is_drift

    def test_one_wild_day_of_the_window_does_not_make_its_like_usual(self):
        wild = numbers(1, 400, shift=30)
        window = describe_numbers(Part.LATENT, "z_000", np.concatenate([*self.DAYS, wild]))
        days = [measure_numbers(window, day, len(day), DriftConfig()) for day in (*self.DAYS, wild)]
        assert measure_numbers(with_usual(window, days), numbers(2, 400, shift=30), 400, DriftConfig()).is_drift

    def test_without_days_nothing_is_usual(self):
        window = describe_numbers(Part.LATENT, "z_000", np.concatenate(self.DAYS))
        assert with_usual(window, []) == window

    def test_it_is_told_of_columns_and_latents_and_goes_with_the_bundle(self, fitted):
        found = {
            (known.part, known.name): known
            for known in with_reference(fitted.bundle, fitted.columns, fitted.paths).reference
        }
        assert found[Part.LATENT, "z_000"].usual_psi > 0
        assert found[Part.COLUMN, "load"].usual_distance >= 0
        assert found[Part.SCORE, "score"].usual_psi == 0


class TestCategories:
    WINDOW = pl.Series("c", ["a"] * 500 + ["b"] * 400 + ["rare"] * 2 + [f"x{n}" for n in range(98)])

    def of(self, *values: str | None):
        return column(self.WINDOW, pl.Series("c", values, pl.String), ColumnType.CATEGORY)

    def test_the_same_shares_are_none(self):
        day = ["a"] * 50 + ["b"] * 40 + [f"x{n}" for n in range(10)]
        effect = self.of(*day)
        assert (effect.is_drift, effect.new_categories) == (False, 0.0)

    @pytest.mark.parametrize(("new", "drifts"), [(1, False), (3, True)])
    def test_new_ones_count_from_their_threshold_on(self, new, drifts):
        day = ["a"] * 50 + ["b"] * 40 + [f"x{n}" for n in range(10 - new)] + ["unheard of"] * new
        effect = self.of(*day)
        assert (effect.new_categories, effect.is_drift) == (pytest.approx(new / 100), drifts)

    def test_where_new_ones_come_every_day_more_of_them_are_needed(self):
        names = pl.Series("c", ["a"] * 800 + [f"new {n}" if n % 5 == 0 else "a" for n in range(200)])
        known = describe_columns(names.to_frame(), [FeatureColumn("c", ColumnType.CATEGORY)], newest=200)
        assert known[0].novelty == pytest.approx(0.2)
        day = pl.DataFrame({"c": ["a"] * 79 + [f"newer {n}" for n in range(21)]})
        (effect,) = measure_columns(day, known, CONFIG)
        assert effect.new_categories == pytest.approx(0.01)

    def test_a_rare_one_of_the_window_is_not_new(self):
        assert self.of(*["a"] * 50, *["b"] * 40, *["rare"] * 10).new_categories == 0.0

    def test_other_shares_are_drift(self):
        effect = self.of(*["a"] * 5, *["b"] * 90, *["rare"] * 5)
        assert effect.psi > 0.5
        assert effect.message.startswith("stability index")

    def test_yes_and_no_are_categories(self):
        window = pl.Series("c", [True, False] * 500)
        assert not column(window, pl.Series("c", [True, False] * 50), ColumnType.BOOLEAN).is_drift
        assert column(window, pl.Series("c", [True] * 100), ColumnType.BOOLEAN).is_drift

    def test_of_a_column_of_countless_names_which_are_new_is_not_told(self):
        names = pl.Series("c", [f"n{n}" for n in range(50_001)])
        assert column(names, pl.Series("c", ["other"] * 50), ColumnType.CATEGORY).new_categories is None

    def test_what_is_remembered_survives_json(self):
        (known,) = describe_columns(self.WINDOW.to_frame("c"), [FeatureColumn("c", ColumnType.CATEGORY)])
        assert Distribution.model_validate_json(known.model_dump_json()) == known


@pytest.fixture
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    attributes = {
        **ATTRIBUTES,
        "end": NEW[-1],
        "drift": {"min_rows": 30, "psi": 1.0},
        "retrain": {"min_new_rows": 50, "drifting_days": 2},
    }
    yield from served_shop(tmp_path_factory, attributes, DAYS[:-3])


NEW = [(FIRST + dt.timedelta(days=index)).isoformat() for index in range(len(DAYS) - 3, len(DAYS) + 2)]
"""Days after those that the shop begins with."""


def drifted_csv(day: str) -> str:
    """Orders of a day on which every price is in another currency, and one country is new."""
    return orders_csv(day).replace(",NA,", ",XX,1").replace(",DE,", ",DE,1")


def result(shop: Shop) -> dg.AssetCheckEvaluation:
    key = dg.AssetCheckKey(dg.AssetKey(["orders", "anomaly_report"]), "drift")
    (record,) = shop.instance.event_log_storage.get_latest_asset_check_execution_by_key([key]).values()
    assert record.evaluation
    return record.evaluation


class TestDays:
    def test_days_of_the_window_are_not_judged_and_those_after_it_are(self, shop):
        days = read_drift(shop.paths, 30)
        assert [day.day for day in days] == DAYS[-5:-3]  # the gate's
        assert not any(day.effects for day in days)
        assert result(shop).passed
        assert result(shop).description == "2 days after the training window are like it"

    def test_a_drifted_day_warns_and_the_report_says_what_has_drifted(self, shop):
        shop.land(NEW[0], drifted_csv(NEW[0]))
        assert shop.run("day", NEW[0]).success
        found = result(shop)
        assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.WARN)
        assert f"1 of 1 day after the training window have drifted; {NEW[0]}: " in str(found.description)
        assert "column country" in str(found.description)
        page = (shop.paths.reports / "report.html").read_text()
        assert "with new categories, at most 5.0%" in page
        table = pl.read_parquet(shop.paths.reports / "drift.parquet")
        assert set(table["part"]) == {"column", "score", "latent"}
        assert set(table["name"]) == {"items", "country", "price", "score", "z_000", "z_001"}

    def test_a_day_put_right_is_judged_anew(self, shop):
        shop.land(NEW[0], drifted_csv(NEW[0]))
        assert shop.run("day", NEW[0]).success
        shop.land(NEW[0])
        assert shop.run("day", NEW[0]).success
        assert result(shop).passed
        assert drifting_days(shop.paths, 30) == []

    def test_a_day_of_few_rows_is_not_judged(self, shop):
        shop.land(NEW[0], "\n".join(drifted_csv(NEW[0]).splitlines()[:11]) + "\n")
        assert shop.run("day", NEW[0]).success
        assert result(shop).description == "0 days after the training window are like it; 1 more have too few rows"

    def test_drift_trains_once_a_training_would_learn_from_enough_drifted_days(self, shop):
        assert shop.asks(early_training_requests) == "0 days in a row have drifted, fewer than drifting_days=2"
        said = []
        for index, day in enumerate(NEW, 1):
            shop.land(day, drifted_csv(day))
            shop.obey(landing_requests)
            shop.obey(rebuild_requests)
            assert drifting_days(shop.paths, 30) == list(NEW[:index])
            said.append(shop.asks(early_training_requests))
        few = "{} days in a row have drifted; {} of them are new to a training, fewer than drifting_days=2"
        assert said[0] == "1 day in a row have drifted, fewer than drifting_days=2"
        assert str(said[1]).startswith(few.format(2, 0))
        assert str(said[2]).startswith(few.format(3, 1))
        assert said[2].endswith("the newest 2 belong to the gate")
        (asked,) = said[3]
        assert asked.startswith("orders_train 4 days in a row have drifted; 160 rows on 4 new or changed days")
        assert [sensor.name for sensor in shop.defs.sensors or []].count("orders_drift") == 1

    def test_what_drift_has_trained_once_it_does_not_train_the_next_day(self, shop):
        for day in NEW[:4]:
            shop.land(day, drifted_csv(day))
        shop.obey(landing_requests)
        shop.obey(rebuild_requests)
        assert len(shop.obey(early_training_requests)) == 1  # whether the challenger was promoted or rejected
        shop.obey(rebuild_requests)
        shop.land(NEW[4], drifted_csv(NEW[4]))
        shop.obey(landing_requests)
        shop.obey(rebuild_requests)
        assert isinstance(shop.asks(early_training_requests), str)
