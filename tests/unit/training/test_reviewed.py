"""Marks of people in a training: real anomalies are left out, and false alarms are learned."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ae_pipeline.features.split import PARTS, USABLE, cut_window
from ae_pipeline.scoring.ensemble import FITTED_ROWS
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.training.fit import AllRows, _ensemble_rows, fit_bundle
from ae_pipeline.training.reviewed import Reviewed, copied
from ae_pipeline.training.screening import screen_by_serving
from tests.support.sensors import NO_ENSEMBLE, Fitted, sensor_config, within_budget

Rewrite = Callable[[Fitted, str, pl.DataFrame], None]


def hot_service(rows: pl.DataFrame, number: int) -> pl.DataFrame:
    """Return rows whose first ones are a hot service: rare, but nothing is wrong with it."""
    is_hot = pl.int_range(pl.len()) < number
    noise = pl.Series(np.random.default_rng(number).normal(0, 1, rows.height))
    return rows.with_columns(
        mode=pl.when(is_hot).then(pl.lit("service")).otherwise("mode"),
        temperature=pl.when(is_hot).then(95.0 + noise).otherwise("temperature"),
    )


def faulty(rows: pl.DataFrame) -> pl.DataFrame:
    """Return rows whose power does not fit the load."""
    return rows.with_columns(pl.col("power") * 3)


def test_a_false_alarm_marked_three_times_is_flagged_no_more(dataset: Fitted, rewrite_day: Rewrite) -> None:
    *_, one, two, three, unseen = dataset.window.calibration
    for day in (one, two, three):
        rewrite_day(dataset, day, hot_service(dataset.features(day), 1))
    false_alarms = {day: dataset.features(day)["row_id"].head(1).to_list() for day in (one, two, three)}
    later = hot_service(dataset.features(unseen), 20).head(20)
    faults = faulty(dataset.features(unseen).tail(40))
    training = {**dataset.config.training.model_dump(), "epochs": 6}
    config = sensor_config(training=training, alerts={"budget": 0.01, "evidence": NO_ENSEMBLE})
    window = cut_window(dict.fromkeys(dataset.days, "x"), config)
    serving = within_budget(dataset)

    def found(reviewed: Reviewed) -> tuple[float, float]:
        bundle, _ = fit_bundle(
            Dataset(config, dataset.paths), dataset.columns, window, previous=serving, reviewed=reviewed
        )
        return float(bundle.score(later).is_anomaly.mean()), float(bundle.score(faults).is_anomaly.mean())

    alarms, recall = found(Reviewed())
    assert alarms == 1.0
    learned, recall_after = found(Reviewed(false_alarms=false_alarms))
    assert learned <= 0.05
    assert recall_after >= recall - 0.01


class TestWhatIsLeftOut:
    @pytest.fixture
    def reviewed(self, fitted: Fitted) -> Reviewed:
        window = fitted.window
        ids = {getattr(window, part)[0]: fitted.features(getattr(window, part)[0])["row_id"] for part in PARTS}
        return Reviewed(
            real={day: [*of_day.head(2), "gone"] for day, of_day in ids.items()},
            false_alarms={day: of_day.tail(1).to_list() for day, of_day in ids.items()},
            real_days=(window.calibration[1],),
        )

    def test_real_anomalies_leave_all_parts_and_false_alarms_those_after_the_training(
        self, fitted: Fitted, reviewed: Reviewed
    ) -> None:
        screened = screen_by_serving(fitted.window, fitted, None, reviewed)
        assert {part: len(screened.row_ids[part]) for part in PARTS} == {"train": 2, "validation": 3, "calibration": 3}
        rows = fitted.bundle.facts.rows
        of_day = fitted.features(fitted.window.calibration[1]).height
        assert screened.counts(fitted) == {
            "train": rows["train"] - 2,
            "validation": rows["validation"] - 3,
            "calibration": rows["calibration"] - 3 - of_day,
        }
        kept = screened.keep("train", screened.window.rows("train", fitted.paths))
        assert kept.height == rows["train"] - 2

    def test_the_screening_adds_to_what_is_marked(self, fitted: Fitted, reviewed: Reviewed) -> None:
        screened = screen_by_serving(fitted.window, fitted, within_budget(fitted), reviewed)
        assert len(screened.row_ids["validation"]) == 3
        assert screened.facts is not None
        assert screened.facts.message == "nothing left out of validation and calibration"

    def test_a_part_keeps_its_only_day(self, fitted: Fitted) -> None:
        assert Reviewed(real_days=fitted.window.calibration).kept_window(fitted.window) == fitted.window

    def test_false_alarms_of_missing_days_and_rows_are_skipped(self, fitted: Fitted) -> None:
        day = fitted.days[0]
        marked = Reviewed(false_alarms={"2020-01-01": ["x"], day: ["gone", fitted.features(day)["row_id"][3]]})
        learned = copied(marked.learned(fitted, fitted.features(day).columns), 1_000)
        assert learned["row_id"].unique().to_list() == [fitted.features(day)["row_id"][3]]
        assert learned.height == 20
        assert copied(Reviewed().learned(fitted, ["row_id"]), 1_000).is_empty()

    def test_a_day_marked_real_leaves_the_gate_too(self, fitted: Fitted) -> None:
        window = replace(fitted.window, gate=("2024-03-01", "2024-03-02"))
        assert Reviewed(real_days=("2024-03-01",)).kept_window(window).gate == ("2024-03-02",)

    def test_rows_of_a_day_marked_real_leave_all_parts_that_a_hash_divides(
        self, fitted: Fitted, caplog: pytest.LogCaptureFixture
    ) -> None:
        days = fitted.days[:3]
        window = replace(fitted.window, train=days, validation=days, calibration=days, gate=days)
        reviewed = Reviewed(real_days=days[:1])
        assert reviewed.kept_window(window) == replace(window, gate=days[1:])
        left = reviewed.left_out(window, fitted.paths)
        of_parts = [rows["row_id"] for part in PARTS for rows in window.batches(part, fitted.paths, ["row_id"])]
        of_day = set(fitted.features(days[0])["row_id"]) & set(pl.concat(of_parts))
        assert len(of_day) > 40
        assert set(pl.concat(left.values())) == of_day
        assert Reviewed(real_days=days).left_out(window, fitted.paths) == {}
        assert "all parts keep" in caplog.text


class TestWhatIsLearned:
    def test_rows_that_the_training_may_not_use_are_not_learned(self, dataset: Fitted, rewrite_day: Rewrite) -> None:
        first, last = dataset.days[0], dataset.days[-1]
        for day in (first, last):
            features = dataset.features(day)
            usable = pl.Series([None, False, *[True] * (features.height - 2)])
            rewrite_day(dataset, day, features.with_columns(usable.alias(USABLE)))
        ids = {day: dataset.features(day)["row_id"].head(3).to_list() for day in (first, last)}
        columns = dataset.features(first).columns
        config = sensor_config(training={"where": "load > 0"}, end=dataset.config.start)
        learned = Reviewed(false_alarms=ids).learned(Dataset(config, dataset.paths), columns)
        assert learned["row_id"].to_list() == ids[first][2:]

    def test_a_sample_of_copies_is_thinned(self) -> None:
        rows = pl.DataFrame({"row_id": [f"{number}" for number in range(1_000)]})
        alarm = pl.DataFrame({"row_id": ["alarm"]})
        train_rows = pl.concat([rows, copied(alarm, 2_000)])
        assert train_rows.height == 1_020
        sizes = {"train": 510, "validation": FITTED_ROWS - 510}
        all_rows = AllRows(**sizes, batches=lambda: iter(()), folder=Path(), memory=0)
        sample, _ = _ensemble_rows(train_rows, rows, all_rows)
        assert sample.height == 510
        assert 4 <= sample["row_id"].str.starts_with("alarm").sum() <= 16
