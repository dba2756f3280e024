"""Marks of people in a training: real anomalies are left out, and false alarms are learned."""

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest

from ae_pipeline.features.split import PARTS, cut_window
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.training.fit import fit_bundle
from ae_pipeline.training.reviewed import Reviewed
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
        learned = marked.learned(fitted.paths, fitted.features(day).columns, 1_000)
        assert learned["row_id"].unique().to_list() == [fitted.features(day)["row_id"][3]]
        assert learned.height == 20
        assert Reviewed().learned(fitted.paths, ["row_id"], 1_000).is_empty()
