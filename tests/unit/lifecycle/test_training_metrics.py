"""Metrics of a training: errors in units of the columns, and measures on rows that no part of the model has seen."""

import numpy as np
import polars as pl
import pytest
from mlflow.utils.validation import MAX_ENTITY_KEY_LENGTH, _validate_metric
from sklearn.metrics import roc_auc_score

from ae_pipeline.config.columns import ColumnDisplay
from ae_pipeline.detector.facts import ScreeningFacts
from ae_pipeline.features.split import LABEL
from ae_pipeline.gate.results import GateResult, not_compared
from ae_pipeline.lifecycle.training_metrics import evaluation_metrics, metric_names, tagged_figures, unseen_metrics
from ae_pipeline.training.screened import screening_metrics, screening_tags
from tests.support.sensors import Fitted, with_config


def test_errors_are_in_the_units_of_their_columns(fitted: Fitted) -> None:
    rows = fitted.features(fitted.days[-1])
    results = (
        GateResult(rule="loss_fell", passed=True, figure=1.5, threshold=2.0, message="it fell"),
        GateResult(rule="finite_weights", passed=True, figure=0.0, threshold=0.0, message="all are finite"),
        not_compared("rankings_agree", 0.3, "no version serves"),
    )
    metrics = evaluation_metrics(fitted.bundle, rows, rows.clear(), results)
    assert {"validation_error/load", "validation_error/mode share wrong", "validation_error/scheduled minutes"} < set(
        metrics
    )
    assert {name: value for name, value in metrics.items() if name.startswith("gate/")} == {"gate/loss_fell": 1.5}
    in_kilowatts = fitted.bundle.config.model_copy(update={"display": {"load": ColumnDisplay(unit="kW")}})
    named = evaluation_metrics(with_config(fitted.bundle, in_kilowatts), rows, rows.clear(), results)
    assert named["validation_error/load kW"] == metrics["validation_error/load"]
    decoded = fitted.bundle.denoise(rows)
    assert metrics["validation_error/mode share wrong"] == pytest.approx((rows["mode"] != decoded["mode"]).mean())
    assert tagged_figures(results)["rankings_agree.threshold"] == 0.3


def test_a_screening_without_rows_is_no_metric() -> None:
    facts = ScreeningFacts(judged_by="its own scores", message="", rows={"validation": 0, "calibration": 7})
    assert screening_metrics(facts) == {"screening.calibration.rows": 7.0}
    assert screening_metrics(None) == {}
    assert screening_tags(None) == {}
    assert screening_tags(facts) == {"screening.changed": "none"}
    changed = facts.model_copy(update={"changed": ("validation", "calibration")})
    assert screening_tags(changed) == {"screening.changed": "validation, calibration"}


def test_unseen_rows_are_measured_against_their_label(fitted: Fitted) -> None:
    rows = fitted.features(fitted.days[-1]).with_row_index("i")
    strange = rows.with_columns(load=pl.when(pl.col("i") < 6).then(-pl.col("load") * 9).otherwise("load"))
    labeled = strange.with_columns((pl.col("i") < 6).alias(LABEL)).drop("i")
    metrics = unseen_metrics(fitted.bundle, labeled)
    scored = fitted.bundle.score(labeled)
    assert metrics["unseen/recall_at_budget"] == scored.is_anomaly[:6].mean() > 0
    assert metrics["unseen/auroc"] == pytest.approx(roc_auc_score(np.arange(rows.height) < 6, scored.score))
    share = scored.is_anomaly[6:].mean()
    assert metrics["unseen/flagged_percent"] == pytest.approx(100 * share)
    error = 100 * abs(share - fitted.bundle.calibration.budget)
    assert metrics["unseen/calibration_error_percent"] == pytest.approx(error)
    assert set(unseen_metrics(fitted.bundle, labeled.drop(LABEL))) == {
        "unseen/flagged_percent",
        "unseen/calibration_error_percent",
    }


def test_names_of_metrics_are_short_different_and_valid() -> None:
    columns = [
        "load",
        "größe",
        "価格",
        "a/b",
        "a_b",
        "Same",
        "same",
        ".",
        "..",
        "€",
        "",
        "line\n",
        *("x" * 300 + end for end in "ab"),
    ]
    names = metric_names("validation_error/", dict(zip(columns, columns, strict=True)))
    assert [names[column] for column in columns[:3]] == [f"validation_error/{column}" for column in columns[:3]]
    assert len({name.casefold() for name in names.values()}) == len(columns)
    for name in names.values():
        _validate_metric(name, 1.0, 0, 0)  # type: ignore[no-untyped-call]
        assert len(name) <= MAX_ENTITY_KEY_LENGTH
