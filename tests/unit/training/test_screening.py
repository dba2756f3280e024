"""The screening of validation and calibration: bad days and rows go, clean ones stay, and a changed world is named."""

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.detector.facts import ScreeningFacts
from ae_pipeline.features.split import PARTS, Window, cut_window
from ae_pipeline.scoring.calibration import calibrate
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.training.calibration_scores import score_calibration
from ae_pipeline.training.fit import fit_bundle
from ae_pipeline.training.own_screening import count_excess, screen_by_own_scores
from ae_pipeline.training.reviewed import Reviewed
from ae_pipeline.training.screened import Screened
from ae_pipeline.training.screening import screen_by_serving
from ae_pipeline.training.tails import encoded_slices, fit_categories, leaving_one_out, with_tails
from tests.support.sensors import NO_ENSEMBLE, ROWS_A_DAY, Fitted, sensor_config, within_budget

NONE = np.empty(0)
"""Scores of no validation rows."""

Rewrite = Callable[[Fitted, str, pl.DataFrame], None]


def spoil(dataset: Fitted, days: tuple[str, ...], rows: int, rewrite: Rewrite) -> None:
    """Give the first rows of each day a power that does not fit the load."""
    for day in days:
        features = dataset.features(day)
        is_bad = pl.int_range(pl.len()) < rows
        rewrite(
            dataset,
            day,
            features.with_columns(pl.when(is_bad).then(pl.col("power") * 9).otherwise("power").alias("power")),
        )


def with_cap(dataset: Fitted, cap: float) -> Dataset:
    """Return the dataset with another `training.max_screened_share`."""
    training = {**dataset.config.training.model_dump(), "max_screened_share": cap}
    return Dataset(sensor_config(training=training), dataset.paths)


def left_out(window: Window, screened: Window) -> tuple[str, ...]:
    """Return the calibration days that a screening left out."""
    return tuple(day for day in window.calibration if day not in screened.calibration)


class TestByServing:
    def test_nothing_is_left_out_of_clean_days(self, fitted: Fitted) -> None:
        screened = screen_by_serving(fitted.window, fitted, within_budget(fitted))
        assert (screened.window, dict(screened.row_ids)) == (fitted.window, {})
        assert screened.facts is not None
        assert screened.facts.message == "nothing left out of validation and calibration"
        assert screened.counts(fitted) == dict(fitted.bundle.facts.rows)

    def test_a_day_over_its_budget_is_left_out(self, dataset: Fitted, rewrite_day: Rewrite) -> None:
        bad = dataset.window.calibration[3]
        spoil(dataset, (bad,), 10, rewrite_day)
        screened = screen_by_serving(dataset.window, dataset, within_budget(dataset))
        assert left_out(dataset.window, screened.window) == (bad,)
        assert screened.window.validation == dataset.window.validation
        assert screened.facts is not None
        assert screened.facts.rows == {"calibration": ROWS_A_DAY}
        assert screened.facts.message == f"60 rows left out of calibration, all of {bad}"

    def test_a_bad_validation_day_is_left_out(self, dataset: Fitted, rewrite_day: Rewrite) -> None:
        bad = dataset.window.validation[0]
        spoil(dataset, (bad,), 10, rewrite_day)
        assert (
            screen_by_serving(dataset.window, dataset, dataset.bundle).window.validation
            == dataset.window.validation[1:]
        )

    def test_rows_spread_over_days_within_their_budget_are_left_out(
        self, dataset: Fitted, rewrite_day: Rewrite
    ) -> None:
        spoil(dataset, dataset.window.calibration, 2, rewrite_day)
        screened = screen_by_serving(dataset.window, dataset, dataset.bundle)
        assert screened.window == dataset.window
        spoiled = pl.concat([dataset.features(day)["row_id"].head(2) for day in dataset.window.calibration])
        assert 10 <= len(screened.row_ids["calibration"]) <= 16
        assert screened.row_ids["calibration"].is_in(spoiled.implode()).all()
        kept = screened.keep("calibration", dataset.window.rows("calibration", dataset.paths))
        assert (
            kept.height
            == screened.counts(dataset)["calibration"]
            == 8 * ROWS_A_DAY - len(screened.row_ids["calibration"])
        )

    def test_a_day_unlike_the_window_is_left_out(self, dataset: Fitted, rewrite_day: Rewrite) -> None:
        bad = dataset.window.calibration[5]
        median = dataset.features(bad)["temperature"].median()
        features = dataset.features(bad)
        rewrite_day(
            dataset, bad, features.with_columns(pl.lit(median, features["temperature"].dtype).alias("temperature"))
        )
        serving = with_drift_reference(dataset)
        patient = Dataset(sensor_config(drift={"min_rows": 30}), dataset.paths)
        assert left_out(dataset.window, screen_by_serving(dataset.window, patient, serving).window) == (bad,)

    @pytest.mark.parametrize(("days", "cap", "is_changed"), [(2, 0.25, False), (3, 0.25, True), (3, 0.4, False)])
    def test_beyond_the_cap_the_data_has_changed(
        self, dataset: Fitted, rewrite_day: Rewrite, days: int, cap: float, is_changed: bool
    ) -> None:
        bad = dataset.window.calibration[-days:]
        spoil(dataset, bad, ROWS_A_DAY, rewrite_day)
        screened = screen_by_serving(dataset.window, with_cap(dataset, cap), dataset.bundle)
        assert screened.facts is not None
        assert screened.facts.changed == (("calibration",) if is_changed else ())
        assert screened.window.calibration == (
            dataset.window.interleaved().calibration if is_changed else dataset.window.calibration[:-days]
        )
        assert ("the data has changed: calibration would lose more than" in screened.facts.message) == is_changed

    def test_training_learns_a_changed_world(self, dataset: Fitted, rewrite_day: Rewrite) -> None:
        window = dataset.window
        spoil(dataset, window.calibration[-3:], ROWS_A_DAY, rewrite_day)
        screened = screen_by_serving(window, dataset, dataset.bundle)
        assert screened.window == window.interleaved()
        assert set(screened.window.train) & set(window.calibration[-3:])
        newest = len(window.validation) + len(window.calibration)
        assert screened.facts is not None
        assert screened.facts.message.endswith(
            f"training takes every other of the {newest} validation and calibration days, because the data has "
            f"changed since {window.calibration[-3]}"
        )
        assert screened.facts.changed_since == window.calibration[-3]

    def test_rows_stay_left_out_of_the_part_that_has_their_day_now(self, dataset: Fitted, rewrite_day: Rewrite) -> None:
        window = dataset.window
        spoil(dataset, window.calibration, 2, rewrite_day)
        known = ScreeningFacts(judged_by="the model that serves", message="", changed_since=window.validation[0])
        serving = replace(dataset.bundle, facts=dataset.bundle.facts.model_copy(update={"screening": known}))
        screened = screen_by_serving(window, dataset, serving)
        assert screened.window == window.interleaved()
        assert screened.facts is not None
        left = {part: set(row_ids) for part, row_ids in screened.row_ids.items()}
        assert sum(map(len, left.values())) == sum(screened.facts.rows.values()) >= 10
        for part in PARTS:
            days = getattr(screened.window, part)
            spoiled = {row_id for day in days for row_id in dataset.features(day)["row_id"]}
            assert left.get(part, set()) <= spoiled
        assert len(left["train"]) >= 4
        kept = screened.keep("train", screened.window.rows("train", dataset.paths))
        assert kept.height == screened.counts(dataset)["train"]
        needed = screened.counts(dataset)["calibration"]
        for rows, is_learning in ((needed, True), (needed + 1, False)):
            tight = Dataset(sensor_config(alerts={"budget": 1 / (rows + 1)}), dataset.paths)
            assert (screen_by_serving(window, tight, serving).window == window.interleaved()) == is_learning

    def test_the_change_does_not_begin_on_a_day_marked_as_usual(self, dataset: Fitted, rewrite_day: Rewrite) -> None:
        usual, *bad = dataset.window.calibration[-4:]
        spoil(dataset, (usual, *bad), ROWS_A_DAY, rewrite_day)
        reviewed = Reviewed(usual_days=(usual,))
        screened = screen_by_serving(dataset.window, dataset, dataset.bundle, reviewed)
        assert screened.facts is not None
        assert screened.facts.changed_since == bad[0]

    @pytest.mark.parametrize("learned", [0, 1, 2, 3, 4])
    def test_the_split_by_time_returns_once_training_holds_enough_of_the_change(
        self, fitted: Fitted, learned: int
    ) -> None:
        window = fitted.window
        since = [*window.train, window.validation[0]][len(window.train) - learned]
        known = ScreeningFacts(judged_by="the model that serves", message="", changed_since=since)
        serving = replace(fitted.bundle, facts=fitted.bundle.facts.model_copy(update={"screening": known}))
        screened = screen_by_serving(window, fitted, serving)
        is_learned = learned >= len(window.validation)
        assert screened.window == (window if is_learned else window.interleaved())
        assert screened.facts is not None
        assert screened.facts.changed_since == since
        assert (f"because the data has changed since {since}" in screened.facts.message) == (not is_learned)

    def test_the_split_stays_where_the_budget_needs_all_calibration_rows(
        self, dataset: Fitted, rewrite_day: Rewrite
    ) -> None:
        spoil(dataset, dataset.window.calibration[-3:], ROWS_A_DAY, rewrite_day)
        tight = Dataset(sensor_config(alerts={"budget": 1 / 422}), dataset.paths)
        screened = screen_by_serving(dataset.window, tight, dataset.bundle)
        assert screened.window == dataset.window
        assert screened.facts is not None
        assert screened.facts.changed == ("calibration",)
        assert "every other" not in screened.facts.message

    def test_the_budget_keeps_the_rows_that_it_needs(self, dataset: Fitted, rewrite_day: Rewrite) -> None:
        spoil(dataset, dataset.window.calibration[:1], 10, rewrite_day)
        for budget, kept in ((1 / 421, 7), (1 / 422, 8)):
            tight = Dataset(sensor_config(alerts={"budget": budget}), dataset.paths)
            screened = screen_by_serving(dataset.window, tight, dataset.bundle)
            assert len(screened.window.calibration) == kept

    def test_zero_switches_it_off(self, dataset: Fitted, rewrite_day: Rewrite) -> None:
        spoil(dataset, dataset.window.calibration[:1], 30, rewrite_day)
        screened = screen_by_serving(dataset.window, with_cap(dataset, 0.0), dataset.bundle)
        assert (screened.window, screened.facts) == (dataset.window, None)

    def test_a_model_that_cannot_score_the_rows_judges_nothing(self, dataset: Fitted, rewrite_day: Rewrite) -> None:
        for day in dataset.days:
            rewrite_day(dataset, day, dataset.features(day).drop("load"))
        assert screen_by_serving(dataset.window, dataset, dataset.bundle).facts is None


def with_drift_reference(dataset: Fitted) -> ModelBundle:
    """Return the model with the distributions of its window."""
    from ae_pipeline.training.reference import with_reference

    return with_reference(replace(dataset.bundle), dataset.columns, dataset.paths)


class TestByOwnScores:
    def test_a_day_with_too_many_of_the_highest_scores_is_left_out(self, fitted: Fitted) -> None:
        rng = np.random.default_rng(0)
        scores = {f"2024-03-{day:02}": rng.random(1_000) for day in range(1, 21)}
        scores["2024-03-07"][:25] += 5
        days, _, facts = screen_by_own_scores(scores, NONE, fitted, 0.002)
        assert days == ["2024-03-07"]
        assert facts.rows == {"calibration": 1_000}
        assert facts.judged_by == "its own scores"

    def test_a_fault_that_passes_midnight_does_not_stay(self, fitted: Fitted) -> None:
        rng = np.random.default_rng(0)
        scores = {f"2024-03-{day:02}": rng.random(24) for day in range(1, 22)}
        scores["2024-03-07"][13:] += 5
        for day in ("2024-03-08", "2024-03-15"):
            scores[day][:5] += 5
        days, _, facts = screen_by_own_scores(scores, NONE, fitted, 0.003)
        assert days == ["2024-03-07", "2024-03-08"]
        assert facts.rows == {"calibration": 48}

    def test_days_beside_a_bad_day_stay_if_the_cap_requires_it(self, fitted: Fitted) -> None:
        rng = np.random.default_rng(0)
        scores = {f"2024-03-{day:02}": rng.random(24) for day in range(1, 22)}
        scores["2024-03-07"][13:] += 5
        scores["2024-03-08"][:5] += 5
        days, _, facts = screen_by_own_scores(scores, NONE, with_cap(fitted, 47 / 504), 0.003)
        assert days == ["2024-03-07"]
        assert (facts.rows, facts.changed) == ({"calibration": 24}, ())

    def test_days_are_neighbors_by_date_not_by_order(self, fitted: Fitted) -> None:
        """On a Monday, the day before in the data can be a Friday. A fault does not pass over the days between."""
        rng = np.random.default_rng(0)
        scores = {f"2024-03-{day:02}": rng.random(24) for day in range(1, 30) if day not in (8, 9, 20)}
        scores["2024-03-07"][13:] += 5
        scores["2024-03-10"][:5] += 5
        assert screen_by_own_scores(scores, NONE, fitted, 0.003)[0] == ["2024-03-07"]
        scores["2024-03-08"] = scores.pop("2024-03-10")
        assert sorted(screen_by_own_scores(scores, NONE, fitted, 0.003)[0]) == ["2024-03-07", "2024-03-08"]

    def test_the_budget_holds_on_clean_days(self, fitted: Fitted) -> None:
        """Exchangeable days lose a day in at most one training in a thousand, so the budget is not touched."""
        rng = np.random.default_rng(1)
        lost, shares = 0, []
        for _ in range(300):
            draws = {f"2024-03-{day:02}": rng.lognormal(sigma=3, size=500) for day in range(1, 21)}
            days, *_ = screen_by_own_scores(draws, NONE, fitted, 0.005)
            lost += len(days)
            kept = np.concatenate([draw for day, draw in draws.items() if day not in days])
            fitted_scores = calibrate(kept, 0.005, None)
            shares.append(fitted_scores.flags(fitted_scores.p_values(rng.lognormal(sigma=3, size=5_000))).mean())
        assert lost <= 2
        assert np.mean(shares) == pytest.approx(0.005, abs=4 * np.std(shares) / np.sqrt(300))

    def test_too_few_days_are_not_compared(self, fitted: Fitted) -> None:
        scores = {f"2024-03-0{day}": np.arange(100.0) + 1_000 * (day == 2) for day in (1, 2, 3)}
        assert screen_by_own_scores(scores, NONE, fitted, 0.01)[0] == []

    def test_rows_spread_over_all_days_are_left_out(self, fitted: Fitted) -> None:
        rng = np.random.default_rng(2)
        scores = {f"2024-03-{day:02}": rng.random(1_000) for day in range(1, 21)}
        validation = rng.random(10_000)
        for each in scores.values():
            each[:10] += 5
        days, excess, facts = screen_by_own_scores(scores, validation, fitted, 0.002)
        assert days == []
        assert excess == pytest.approx(200, abs=20)
        assert facts.rows == {"calibration": excess}
        assert facts.message == f"{excess} rows left out of calibration"
        assert screen_by_own_scores(scores, validation, with_cap(fitted, 0.0), 0.002).excess == 0
        # Where the validation has as many, they are usual in this window.
        assert screen_by_own_scores(scores, np.append(validation, np.full(100, 6.0)), fitted, 0.002).excess == 0

    def test_beyond_the_cap_no_rows_go_and_the_data_has_changed(self, fitted: Fitted) -> None:
        rng = np.random.default_rng(3)
        scores = {f"2024-03-{day:02}": rng.random(100) + 5 * (rng.random(100) < 0.4) for day in range(1, 21)}
        days, excess, facts = screen_by_own_scores(scores, rng.random(1_000), fitted, 0.002)
        assert (days, excess, facts.rows, facts.changed) == ([], 0, {}, ("calibration",))
        assert "score too high, more than 10 times the alert budget, so nothing of calibration" in facts.message

    @pytest.mark.parametrize(("scale", "budget"), [(1.5, 0.2), (2.0, 0.04)])
    def test_the_budget_holds_if_the_scores_have_shifted(self, fitted: Fitted, scale: float, budget: float) -> None:
        """The days after a shift are like the calibration. A threshold without its highest rows would flag far more."""
        rng = np.random.default_rng(5)
        validation = rng.exponential(size=20_000)
        scores = {f"2024-03-{day:02}": scale * rng.exponential(size=4_000) for day in range(1, 11)}
        calibration = np.concatenate(list(scores.values()))
        assert count_excess(calibration, validation) > 0.04 * len(calibration)
        days, excess, facts = screen_by_own_scores(scores, validation, fitted, budget)
        assert (days, excess, facts.rows, facts.changed) == ([], 0, {}, ("calibration",))

    @pytest.mark.parametrize(("shift", "is_changed"), [(0.0, False), (0.3, True)])
    def test_a_shift_of_most_scores_tells_that_the_highest_are_not_faults(
        self, fitted: Fitted, shift: float, is_changed: bool
    ) -> None:
        rng = np.random.default_rng(6)
        scores = {f"2024-03-{day:02}": rng.normal(shift, size=1_000) for day in range(1, 21)}
        scores["2024-03-07"][:60] += 9
        for each in scores.values():
            each[:10] += 9
        days, excess, facts = screen_by_own_scores(scores, rng.normal(size=10_000), fitted, 0.01)
        if is_changed:
            assert (days, excess, facts.rows, facts.changed) == ([], 0, {}, ("calibration",))
            assert "calibration as a whole scores higher than validation" in facts.message
        else:
            assert (days, facts.changed) == (["2024-03-07"], ())
            assert excess == pytest.approx(190, abs=20)
            assert (
                facts.message == f"{1_000 + excess:,} rows left out of calibration, of which 1,000 are all of {days[0]}"
            )

    @pytest.mark.parametrize(("drift", "goes"), [(1.0, True), (1.1, False)])
    def test_the_newest_day_stays_if_the_data_drifts(self, fitted: Fitted, drift: float, goes: bool) -> None:
        """Faults on a day leave its other scores as they are, so that such a day goes in a drift too."""
        rng = np.random.default_rng(8)
        faulty, newest = "2024-03-03", "2024-03-12"
        scores = {f"2024-03-{day:02}": drift * rng.exponential(size=1_000) for day in range(1, 13)}
        scores[faulty][:100] += 30
        scores[newest] *= 1.8
        days, *_ = screen_by_own_scores(scores, rng.exponential(size=12_000), fitted, 0.02)
        assert days == ([faulty, newest] if goes else [faulty])

    @pytest.mark.parametrize(("images_with_faults", "is_changed"), [(20, False), (60, True)])
    def test_patches_stay_if_too_many_images_would_be_incomplete(
        self, fitted: Fitted, images_with_faults: int, is_changed: bool
    ) -> None:
        """200 images of 100 patches. The faulty patches are 120 in each case."""
        rng = np.random.default_rng(7)
        scores = {f"2024-03-{day:02}": rng.random(1_000) for day in range(1, 21)}
        images = {day: pl.Series([f"{day}-{index // 100}" for index in range(1_000)]) for day in scores}
        each = 120 // images_with_faults
        for index in range(images_with_faults):
            start = 100 * (index // 20)
            list(scores.values())[index % 20][start : start + each] += 5
        days, excess, facts = screen_by_own_scores(scores, rng.random(10_000), fitted, 0.002, images)
        assert (days, facts.changed) == ([], ("calibration",) if is_changed else ())
        if is_changed:
            assert re.search(r"patches of 6[0-4] images of calibration would go, more than 25% of", facts.message)
        else:
            assert re.fullmatch(rf"{excess} rows of 2[0-4] images left out of calibration", facts.message)

    def test_exchangeable_rows_lose_none(self) -> None:
        rng = np.random.default_rng(4)
        for rows in (5, 50, 500, 5_000):
            for _ in range(100):
                calibration, validation = rng.lognormal(sigma=3, size=2 * rows), rng.lognormal(sigma=3, size=rows)
                assert count_excess(calibration, validation) == 0
        # Equal scores count for the validation.
        assert count_excess(np.zeros(1_000), np.zeros(1_000)) == 0
        assert count_excess(np.ones(10), NONE) == count_excess(NONE, np.ones(10)) == 0


class TestOfATraining:
    def test_faulty_rows_on_a_calibration_day_do_not_blind_the_next_model(
        self, dataset: Fitted, rewrite_day: Rewrite
    ) -> None:
        bad = dataset.window.calibration[2]
        spoil(dataset, (bad,), 25, rewrite_day)
        faults = dataset.features(bad).head(25)
        found = int(dataset.bundle.score(faults).is_anomaly.sum())
        training = {**dataset.config.training.model_dump(), "epochs": 3}
        alerts = {"budget": 0.01, "evidence": NO_ENSEMBLE}
        config = sensor_config(training=training, alerts=alerts)
        window = cut_window(dict.fromkeys(dataset.days, "x"), config)
        after, _ = fit_bundle(Dataset(config, dataset.paths), dataset.columns, window, previous=dataset.bundle)
        first, _ = fit_bundle(Dataset(config, dataset.paths), dataset.columns, window)
        off = sensor_config(training={**training, "max_screened_share": 0.0}, alerts=alerts)
        blind, _ = fit_bundle(Dataset(off, dataset.paths), dataset.columns, window, previous=dataset.bundle)
        assert found >= 24
        assert after.score(faults).is_anomaly.sum() >= 0.95 * found
        assert first.score(faults).is_anomaly.sum() >= 0.95 * found
        assert blind.score(faults).is_anomaly.sum() <= 5
        for bundle in (after, first):
            assert bad not in bundle.window.calibration
            assert len(bundle.calibration.scores) == bundle.facts.rows["calibration"] == 7 * ROWS_A_DAY

    def test_rows_that_a_sample_does_not_hold_are_not_used(
        self, dataset: Fitted, rewrite_day: Rewrite, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("ae_pipeline.training.calibration_scores._MAX_ROWS", 1)
        window, whole = dataset.window, Screened(dataset.window, {}, None)
        bad = window.calibration[2]
        spoil(dataset, (bad,), ROWS_A_DAY, rewrite_day)
        scored = score_calibration(dataset.bundle.detector, whole, dataset, 0.25, 8 * ROWS_A_DAY)
        assert left_out(window, scored.screened.window) == (bad,)
        kept = scored.screened.keep("calibration", scored.screened.window.rows("calibration", dataset.paths)).height
        assert len(scored.scores) == kept
        assert 300 < kept < 7 * ROWS_A_DAY  # the sample has about 400 of 480 rows
        facts = scored.screened.facts
        assert facts is not None
        gone = facts.rows["calibration"]
        message = f"{gone} rows left out of calibration, all of {bad}, of a sample of {kept + gone} rows"
        assert facts.message == message

    def test_a_burst_of_one_wrong_combination_does_not_excuse_itself(
        self, dataset: Fitted, rewrite_day: Rewrite
    ) -> None:
        """Only service opens the machine, but on one day twenty other rows do too. Counted, they would be usual."""
        window = dataset.window
        bad, is_service = window.calibration[4], pl.col("mode") == "service"
        for day in window.days:
            is_faulty = (pl.col("mode") == "run").cum_sum() <= (20 if day == bad else 0)
            is_open = is_service | ((pl.col("mode") == "run") & is_faulty)
            rewrite_day(dataset, day, dataset.features(day).with_columns(is_open=is_open))
        config = sensor_config(alerts={"budget": 0.01, "evidence": ("categories",)})
        train, validation = (window.rows(part, dataset.paths) for part in ("train", "validation"))
        encoder = dataset.bundle.detector.encoder
        counts = fit_categories(encoder, encoded_slices(encoder, train), config)
        detector = replace(dataset.bundle.detector, config=config, ensemble=None, cooccurrence=counts)
        fitted = with_tails(detector, train, validation)
        whole = Screened(window, {}, None)
        scored = score_calibration(fitted, whole, Dataset(config, dataset.paths), 0.01, 8 * ROWS_A_DAY)
        assert left_out(window, scored.screened.window) == (bad,)
        assert scored.detector.cooccurrence is not None
        assert scored.detector.cooccurrence.rows == train.height + validation.height + 7 * ROWS_A_DAY
        once = leaving_one_out(scored.detector).scores([scored.screened.window.rows("calibration", dataset.paths)])
        np.testing.assert_allclose(scored.scores, once, rtol=1e-12)

    def test_faulty_rows_on_all_calibration_days_do_not_blind_a_first_model(
        self, dataset: Fitted, rewrite_day: Rewrite
    ) -> None:
        window = dataset.window
        spoil(dataset, window.calibration, 8, rewrite_day)
        faulty = pl.concat([dataset.features(day).head(8) for day in window.calibration])
        whole = Screened(window, {}, None)
        scored = score_calibration(dataset.bundle.detector, whole, dataset, 0.02, 8 * ROWS_A_DAY)
        kept = scored.screened.keep("calibration", window.rows("calibration", dataset.paths))
        assert scored.screened.window == window
        assert scored.screened.row_ids["calibration"].is_in(faulty["row_id"].implode()).sum() >= 55
        assert len(scored.scores) == kept.height == 8 * ROWS_A_DAY - len(scored.screened.row_ids["calibration"])
        assert scored.screened.counts(dataset)["calibration"] == kept.height
        assert scored.screened.facts is not None
        assert scored.screened.facts.rows == {"calibration": 8 * ROWS_A_DAY - kept.height}
        screened_recall, blind_recall = (
            replace(dataset.bundle, calibration=calibrate(scores, 0.01, None)).score(faulty).is_anomaly.mean()
            for scores in (scored.scores, dataset.bundle.detector.scores([window.rows("calibration", dataset.paths)]))
        )
        assert screened_recall >= 0.9
        assert blind_recall <= 0.2

    def test_a_first_model_chooses_its_budget_from_the_rows_that_remain(
        self, dataset: Fitted, rewrite_day: Rewrite
    ) -> None:
        """360 calibration rows would have a budget of 0.003, which needs 333. A bad day leaves 300."""
        bad = dataset.window.calibration[-1]
        spoil(dataset, (bad,), 40, rewrite_day)
        training = {**dataset.config.training.model_dump(), "epochs": 1, "calibration_days": 6}
        config = sensor_config(training=training, alerts={"evidence": NO_ENSEMBLE})
        window = cut_window(dict.fromkeys(dataset.days, "x"), config)
        bundle, _ = fit_bundle(Dataset(config, dataset.paths), dataset.columns, window)
        assert bad not in bundle.window.calibration
        assert (bundle.facts.rows["calibration"], bundle.calibration.budget) == (300, 0.004)
