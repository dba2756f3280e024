"""The benchmark of alert budgets: the distribution of flagged rows, the splits, and the results file."""

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import polars as pl
import pytest

pytest.importorskip("pyod")
pytest.importorskip("sklearn")
pytest.importorskip("scipy")

from ae_pipeline.features.split import Window
from ae_pipeline.gate.results import GateResult
from ae_pipeline.gate.rules import calibration_holds
from ae_pipeline.ingestion.contract import load_contract
from ae_pipeline.scoring.calibration import Calibration, calibrate
from benchmarks import calibration, calibration_months
from benchmarks.calibration import Case, evaluate, law_of_flags, rank_limit
from benchmarks.calibration_months import Month
from benchmarks.command_line import read_seeds
from benchmarks.labelled_sets import Table
from benchmarks.planted_faults import Prepared
from tests.support.sensors import Fitted

ROW = {"set", "seed", "budget", "calibration_rows", "test_rows", "flagged", "low", "high", "within", "tied"}
MONTH_ROW = {"set", "month", "budget", "rows", "flagged", "share", "gap", "gap_allowed", "calibration_holds"}

SIMULATIONS = 4_000


@pytest.mark.parametrize(("n", "m", "budget"), [(199, 150, 0.05), (120, 300, 0.01), (99, 40, 0.2)])
def test_counts_of_exchangeable_scores_follow_the_law(n: int, m: int, budget: float) -> None:
    # Exchangeable, but far from independent: each draw has its own scale, and distinct ranks in random order.
    rng = np.random.default_rng(n)
    counts = np.empty(SIMULATIONS)
    for index in range(SIMULATIONS):
        scores = rng.lognormal(sigma=3) * rng.permutation(n + m).astype(float)
        fitted = calibrate(scores[:n], budget, None)
        counts[index] = fitted.flags(fitted.p_values(scores[n:])).sum()
    law = law_of_flags(m, n, rank_limit(fitted))
    within = (counts >= law.low) & (counts <= law.high)
    assert law.coverage >= 0.99
    assert within.mean() == pytest.approx(law.coverage, abs=4 * np.sqrt(0.01 / SIMULATIONS))
    assert counts.mean() / m == pytest.approx(law.mean, abs=4 * counts.std() / m / np.sqrt(SIMULATIONS))
    # The interval cannot be narrower: otherwise more than 0.5% of the counts would lie beyond one end.
    assert (counts <= law.low).mean() >= 0.005 - 4 * np.sqrt(0.005 / SIMULATIONS)
    assert (counts >= law.high).mean() >= 0.005 - 4 * np.sqrt(0.005 / SIMULATIONS)


def test_the_rank_limit_is_the_budget_rounded_down() -> None:
    for n in (*range(19, 130), 999, 1000, 1999, 4999):
        for budget in ("0.05", "0.01", "0.001"):
            fitted = Calibration(np.arange(n, dtype=float), float(budget))
            assert rank_limit(fitted) == (n + 1) * Fraction(budget) // 1


def test_budgets_too_small_for_the_rows_are_left_out() -> None:
    scores = np.random.default_rng(0).random(2_000)
    assert [case.budget for case in evaluate("s", 0, scores[:999], scores[999:])] == [0.05, 0.01, 0.001]
    assert [case.budget for case in evaluate("s", 0, scores[:998], scores[998:])] == [0.05, 0.01]
    assert [case.budget for case in evaluate("s", 0, scores[:98], scores[98:])] == [0.05]


def test_ties_are_distinguished_from_a_wrong_count() -> None:
    scores = np.random.default_rng(1).random(2_000)
    held_out, test = scores[:1_000], scores[1_000:]
    normal, shifted, low, tied = (
        next(evaluate("s", 0, held_out, rows)) for rows in (test, test + 0.2, test - 0.2, np.full(1_000, 0.5))
    )
    assert (normal.is_within, normal.is_above, normal.is_below, normal.tied) == (True, False, False, 0)
    assert (shifted.is_within, shifted.is_above) == (False, True)
    assert (low.flagged, low.is_below, low.is_below_by_ties) == (0, True, False)
    assert (tied.flagged, tied.is_below, tied.is_below_by_ties) == (0, True, False)
    # No score exceeds an equal one, but the interval allows for any order of ties.
    equal = next(evaluate("s", 0, np.full(1_000, 0.5), np.full(1_000, 0.5)))
    assert (equal.flagged, equal.tied, equal.is_below_by_ties) == (0, 1_000, True)


def test_normal_rows_are_split_into_half_and_two_quarters() -> None:
    is_anomaly = np.random.default_rng(0).random(4_011) < 0.1
    table = Table("made", np.arange(4_011.0)[:, None], is_anomaly)
    parts = [part[:, 0].astype(int) for part in calibration.split_normal(table, 7)]
    normal = int((~is_anomaly).sum())
    rest = normal - normal // 2
    assert list(map(len, parts)) == [normal // 2, rest // 2, rest - rest // 2]
    assert sorted(np.concatenate(parts)) == np.flatnonzero(~is_anomaly).tolist()
    again = calibration.split_normal(table, 7)
    for part, expected in zip(again, parts, strict=True):
        np.testing.assert_array_equal(part[:, 0], expected)


def test_seeds_are_numbers_and_ranges() -> None:
    assert read_seeds("0..19") == list(range(20))
    assert read_seeds("3,0..2,7") == [3, 0, 1, 2, 7]


def test_a_month_is_scored_by_a_model_of_earlier_days(fitted: Fitted, monkeypatch: pytest.MonkeyPatch) -> None:
    windows: list[Window] = []

    def fit(dataset: object, columns: object, window: Window) -> tuple[object, None]:
        windows.append(window)
        return fitted.bundle, None

    monkeypatch.setattr(calibration_months, "fit_bundle", fit)
    contract = load_contract(fitted.paths.contract)
    prepared = Prepared(fitted.config, contract, fitted.paths, fitted.window, pl.DataFrame(), set())
    month = calibration_months.try_month(prepared, "2024-02")
    assert windows[0].days == tuple(f"2024-01-{day:02}" for day in range(1, 32))
    assert month.days == (17, 6, 8)
    rows = pl.concat([fitted.features(day) for day in fitted.days if day >= "2024-02-01"])
    assert month.rows == rows.height == 9 * 60
    assert month.flagged == fitted.bundle.score(rows).is_anomaly.sum()
    # In the same batches, because other batches may differ in the last place.
    newest = np.concatenate([fitted.bundle.score(fitted.features(day)).score for day in fitted.days[-8:]])
    assert month.drift == calibration_holds(newest, fitted.bundle.calibration.scores)
    assert month.drift.message.startswith("480 rows after the calibration days")


def test_a_run_writes_a_row_for_each_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fits: list[tuple[int, int]] = []

    def fit_ours(train: np.ndarray, seed: int) -> Callable[[np.ndarray], np.ndarray]:
        fits.append((len(train), seed))
        return lambda values: values[:, 0]

    monkeypatch.setattr(calibration, "fit_ours", fit_ours)
    rng = np.random.default_rng(0)
    for name, normal in (("few", 1_999), ("enough", 2_000), ("many", 4_000)):
        np.savez(tmp_path / f"{name}.npz", X=rng.normal(size=(normal + 9, 2)), y=np.arange(normal + 9) < 9)
    calibration.run(tmp_path, [0, 4], tmp_path / "out.json")
    assert fits == [(1_000, 0), (1_000, 4), (2_000, 0), (2_000, 4)]
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["name"] == "calibration"
    rows = report["rows"]
    assert [(row["set"], row["seed"], row["budget"]) for row in rows] == [
        *(("enough", seed, budget) for seed in (0, 4) for budget in (0.05, 0.01)),
        *(("many", seed, budget) for seed in (0, 4) for budget in (0.05, 0.01, 0.001)),
    ]
    assert all(row.keys() == ROW for row in rows)
    assert all(row["within"] == (row["low"] <= row["flagged"] <= row["high"]) for row in rows)
    output = capsys.readouterr().out
    assert "few, 0 s: skipped, 1,999 normal rows are fewer than 2,000" in output
    assert "of 10 cases are within (goal: 98%)" in output


def test_a_run_writes_a_row_for_each_month(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drift = GateResult(rule="calibration_holds", passed=False, figure=0.2, threshold=0.1, message="")
    result = Month("2013-07", (9, 2, 1), 0.001, 2_000, 3, drift)
    monkeypatch.setattr(calibration_months, "prepare", lambda _: None)
    monkeypatch.setattr(calibration_months, "try_month", lambda _, month: result._replace(month=month))
    calibration_months.run(["2013-07", "2013-08"], tmp_path / "out.json")
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["name"] == "calibration_months"
    assert [row["month"] for row in report["rows"]] == ["2013-07", "2013-08"]
    month = report["rows"][0]
    assert month.keys() == MONTH_ROW
    assert (month["set"], month["share"], month["calibration_holds"]) == ("flights", 0.0015, False)


def test_the_table_shows_shares_by_budget_and_by_set() -> None:
    law = law_of_flags(1_000, 1_000, 50)
    counts = {"a": (50, law.high + 1), "b": (law.low, law.high)}
    cases = [
        Case(name, seed, 0.05, 1_000, 1_000, flagged, 0, law)
        for name, flagged_rows in counts.items()
        for seed, flagged in enumerate(flagged_rows)
    ]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in calibration.describe(cases).splitlines()]
    assert ["all", "4", "75.0%", f"{law.coverage:.1%}", "25.0%", "0.0%", "0.0%", "", ""] in lines
    assert ["a", "2", "50.0%", "50.0%", f"{(51 + law.high) / 2_000:.3%}"] in lines
    assert ["b", "2", "100.0%", "100.0%", f"{(law.low + law.high) / 2_000:.3%}"] in lines
