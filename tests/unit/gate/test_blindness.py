"""Blind challengers are rejected, and those that have adapted to a changed world are not."""

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest

from ae_pipeline.config.service import GateConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.gate.blindness import (
    BLINDNESS_RULES,
    NO_ALERTS,
    RecentAlerts,
    alerts_still_found,
    compare_sight,
    each_kind_found_at_budget,
    faults_found_at_budget,
    rankings_agree,
    recent_alerts,
    threshold_in_line,
)
from ae_pipeline.gate.planted_faults import plant_kinds
from ae_pipeline.gate.results import GateResult
from ae_pipeline.gate.sight import Seen, within_budget
from ae_pipeline.scoring.calibration import Calibration
from tests.support.sensors import Fitted

Rewrite = Callable[[Fitted, str, pl.DataFrame], None]


def seen(shift: float = 0.0, threshold: float = 5.0, originals: float = 1.0) -> Seen:
    """Return what a model sees: scores of rows from 0 to 4, and of 200 faults from 0 to 10, lower by `shift`."""
    faults = np.linspace(0, 10, 200)
    return Seen(
        threshold=threshold,
        rows=np.linspace(0, 4, 500),
        faults={"outlier": faults - shift, "other value": faults - shift},
        originals={"outlier": np.full(200, originals), "other value": np.full(200, originals)},
    )


def one_kind(kind: str, scores: npt.NDArray[np.float64]) -> Seen:
    """Return what a model with a threshold of 5 sees of faults of one kind, in rows with a score of 0."""
    return Seen(threshold=5.0, rows=np.zeros(9), faults={kind: scores}, originals={kind: np.zeros(len(scores))})


def blinded(bundle: ModelBundle, rows: int, score: float) -> ModelBundle:
    """Return a model whose calibration has further rows of one score."""
    scores = np.sort(np.concatenate([bundle.calibration.scores, np.full(rows, score)]))
    return replace(bundle, calibration=Calibration(scores, bundle.calibration.budget), stored_fingerprint=None)


class TestRules:
    @pytest.mark.parametrize(("shift", "recall", "passes"), [(0.0, 0.5, True), (0.9, 0.41, True), (1.5, 0.35, False)])
    def test_the_recall_at_the_budget_may_drop_a_little(self, shift: float, recall: float, passes: bool) -> None:
        result = faults_found_at_budget(seen(shift), seen(), 0.1)
        assert result.figure == pytest.approx(recall, abs=0.01)
        assert result.threshold == pytest.approx(0.4)
        assert result.passed == passes
        assert f"outlier {recall:.0%} (50%)" in result.message

    def test_faults_in_rows_that_are_flagged_anyway_do_not_count(self) -> None:
        changed_world = seen(originals=6.0)
        result = faults_found_at_budget(seen(5.0), changed_world, 0.1)
        assert result.passed
        in_calm_rows = "planted faults in rows that the version that serves does not flag"
        assert result.message == f"not compared: there are fewer than 50 {in_calm_rows}"
        assert not faults_found_at_budget(changed_world, seen(), 0.1).passed

    def test_a_gain_in_one_kind_hides_no_loss_in_another(self) -> None:
        champion, other = seen(), seen(-1.5).faults["other value"]
        challenger = replace(champion, faults={"outlier": seen(1.5).faults["outlier"], "other value": other})
        assert faults_found_at_budget(challenger, champion, 0.1).figure == pytest.approx(0.5, abs=0.01)
        result = each_kind_found_at_budget(challenger, champion, 0.1)
        assert (result.passed, result.threshold) == (False, 0.1)
        assert result.figure == pytest.approx(0.15)
        assert result.message == (
            "of no kind of planted fault may it flag 10 percentage points less than the version that serves; the "
            "largest difference that chance does not explain is 15.0, in the kind outlier 35.0% (50.0%)"
        )
        within = each_kind_found_at_budget(challenger, champion, 0.2)
        assert within.message == (
            "of no kind of planted fault may it flag 20 percentage points less than the version that serves; the "
            "largest difference is 15.0, in the kind outlier 35.0% (50.0%)"
        )
        assert each_kind_found_at_budget(challenger, champion, 0.2).passed
        assert each_kind_found_at_budget(champion, challenger, 0.1).figure == pytest.approx(0.15)

    @pytest.mark.parametrize(("lost", "gained", "passes"), [(12, 0, False), (20, 6, False), (30, 18, True)])
    def test_a_loss_of_a_kind_that_chance_explains_does_not_count(self, lost: int, gained: int, passes: bool) -> None:
        # Of 100 faults, the champion flags the first 50. P(B(48, 1/2) >= 30) is 0.056, P(B(26, 1/2) >= 20) 0.005.
        of_champion = np.where(np.arange(100) < 50, 6.0, 4.0)
        of_challenger = of_champion.copy()
        of_challenger[:lost], of_challenger[100 - gained :] = 4.0, 6.0
        challenger, champion = (one_kind("mixed row", faults) for faults in (of_challenger, of_champion))
        result = each_kind_found_at_budget(challenger, champion, 0.1)
        assert result.figure == pytest.approx((lost - gained) / 100)
        assert result.passed == passes
        assert result.message.endswith("which chance can explain") == passes

    @pytest.mark.parametrize(("columns", "passes"), [(1, True), (4, True), (6, True), (7, False), (20, False)])
    def test_the_faults_of_a_column_are_lost_together(self, columns: int, passes: bool) -> None:
        # All faults of a column have the same score, and the challenger loses them all: 2**-6 is .016, 2**-7 .008.
        column_of = np.repeat(np.array([f"x{column}" for column in range(columns)]), 60)
        kept = np.full(60, 6.0)  # of a column that stays
        champion, challenger = (
            one_kind("outlier", np.concatenate([np.full(60 * columns, score), kept, kept + 0.1]))
            for score in (5.5, 4.5)
        )
        by_column = {"outlier": np.concatenate([column_of, np.full(120, "kept")])}
        result = each_kind_found_at_budget(challenger, replace(champion, columns=by_column), 0.1)
        assert result.figure == pytest.approx(columns / (columns + 2))
        assert result.passed == passes
        assert not each_kind_found_at_budget(challenger, champion, 0.1).passed  # as rows of their own

    def test_columns_that_differ_by_chance_reject_no_model(self) -> None:
        # Two equally good models, whose scores of the faults of a column are constant and differ by about a nat.
        rng = np.random.default_rng(0)
        rejected = {"rows": 0, "columns": 0}
        for trial in range(200):
            column_of = rng.integers(0, 4 + trial % 8, 300)
            typical = rng.normal(5, 2, 12)
            ours, theirs = (one_kind("lost value", (typical + rng.normal(0, 1, 12))[column_of]) for _ in range(2))
            by_column = replace(theirs, columns={"lost value": column_of.astype(str)})
            rejected["rows"] += not each_kind_found_at_budget(ours, theirs, 0.1).passed
            rejected["columns"] += not each_kind_found_at_budget(ours, by_column, 0.1).passed
        assert rejected["rows"] > 30
        assert rejected["columns"] <= 2

    def test_the_message_names_the_kind_that_breaks_the_rule(self) -> None:
        scores = np.full(100, 6.0)
        champion = replace(
            seen(),
            faults={"mixed row": scores, "outlier": scores},
            originals={"mixed row": np.zeros(100), "outlier": np.zeros(100)},
            columns={"outlier": np.repeat(["a", "b"], 50)},
        )
        is_lost = np.arange(100) < 20
        challenger = replace(champion, faults={"mixed row": np.where(is_lost, 4.0, 6.0), "outlier": scores - 2})
        result = each_kind_found_at_budget(challenger, champion, 0.1)
        assert not result.passed
        assert result.figure == pytest.approx(0.2)
        assert result.message == (
            "of no kind of planted fault may it flag 10 percentage points less than the version that serves; the "
            "largest difference that chance does not explain is 20.0, in the kind mixed row 80.0% (100.0%)"
        )
        only_outliers = replace(champion, faults={"mixed row": scores, "outlier": scores - 2})
        by_chance = each_kind_found_at_budget(only_outliers, champion, 0.1)
        assert (by_chance.passed, by_chance.figure) == (True, 1.0)
        assert by_chance.message == (
            "of no kind of planted fault may it flag 10 percentage points less than the version that serves; the "
            "largest difference is 100.0, in the kind outlier 0.0% (100.0%), which chance can explain"
        )

    def test_a_challenger_gains_nothing_from_rows_it_flags_anyway(self) -> None:
        champion = one_kind("mixed row", np.full(100, 6.0))
        flags_anyway = replace(champion, originals={"mixed row": np.where(np.arange(100) < 30, 6.0, 0.0)})
        result = each_kind_found_at_budget(flags_anyway, champion, 0.1)
        assert not result.passed
        assert result.figure == pytest.approx(0.3)
        assert each_kind_found_at_budget(champion, flags_anyway, 0.1).figure == 0

    def test_kinds_with_few_faults_in_calm_rows_are_not_compared(self) -> None:
        champion = seen(originals=6.0)
        champion.originals["outlier"][:49] = 1.0
        result = each_kind_found_at_budget(seen(5.0), champion, 0.1)
        assert result.passed
        in_calm_rows = "planted faults in rows that the version that serves does not flag"
        assert result.message == f"not compared: no kind has 50 {in_calm_rows}"
        champion.originals["outlier"][150:] = 1.0
        assert not each_kind_found_at_budget(seen(5.0), champion, 0.1).passed

    @pytest.mark.parametrize(("threshold", "rise"), [(5.0, 0.0), (6.5, 1.5), (8.0, 3.0), (4.5, -0.5)])
    def test_the_threshold_is_measured_in_scores_of_the_champion(self, threshold: float, rise: float) -> None:
        result = threshold_in_line(seen(threshold=threshold), seen(), 2.0)
        assert result.figure == pytest.approx(rise, abs=0.06)
        assert result.passed == (rise <= 2.0)

    def test_the_threshold_does_not_depend_on_the_scale_of_the_challenger(self) -> None:
        challenger = seen(threshold=6.5)
        doubled = replace(
            challenger,
            threshold=13.0,
            rows=challenger.rows * 2,
            faults={kind: scores * 2 for kind, scores in challenger.faults.items()},
        )
        assert threshold_in_line(doubled, seen(), 2.0).figure == threshold_in_line(challenger, seen(), 2.0).figure

    def test_rankings_are_compared(self) -> None:
        reversed_order = replace(
            seen(),
            rows=-seen().rows,
            faults={kind: -scores for kind, scores in seen().faults.items()},
        )
        assert rankings_agree(seen(), seen(), 0.3).figure == pytest.approx(1.0)
        result = rankings_agree(reversed_order, seen(), 0.3)
        assert (result.passed, round(result.figure, 6)) == (False, -1.0)

    @pytest.mark.parametrize(("flagged", "threshold"), [(1, 5.0), (2, 9.0), (5, 9.0), (6, 5.0), (900, 5.0)])
    def test_a_threshold_that_is_too_low_is_raised_to_the_budget(self, flagged: int, threshold: float) -> None:
        rows = np.sort(np.concatenate([np.linspace(0, 4, 1_000 - flagged), np.full(flagged, 9.0)]))
        corrected = within_budget(replace(seen(), rows=rows), 0.001)
        assert corrected.threshold == pytest.approx(threshold)

    def test_too_few_faults_are_not_compared(self) -> None:
        few = Seen(threshold=5.0, rows=np.zeros(10), faults={}, originals={})
        assert faults_found_at_budget(few, few, 0.1).passed
        assert each_kind_found_at_budget(few, few, 0.1).message.startswith("not compared: ")
        assert threshold_in_line(few, few, 2.0).message == (
            "not compared: the version that serves leaves fewer than 50 rows unflagged, with the faults in them"
        )
        assert rankings_agree(few, few, 0.3).message == "not compared: too few rows have different scores"


class TestPlantedKinds:
    def test_each_kind_changes_what_its_name_says(self, fitted: Fitted) -> None:
        rows = pl.concat([fitted.features(day) for day in fitted.days[-6:]])
        faults = plant_kinds(rows, [fitted.bundle.encoder])
        originals = {row["row_id"]: row for row in rows.iter_rows(named=True)}
        changed = {
            kind: [
                [name for name, value in row.items() if value != originals[row["row_id"]][name]]
                for row in faulty.rows.iter_rows(named=True)
            ]
            for kind, faulty in faults.items()
        }
        assert set(faults) == {"outlier", "other value", "mixed row", "lost value"}
        assert all(faulty.rows.height >= 200 for faulty in faults.values())
        for kind in ("outlier", "other value", "lost value"):
            columns = faults[kind].columns
            assert columns is not None
            assert changed[kind] == [[column] for column in columns]
        assert faults["mixed row"].columns is None
        assert np.mean([len(names) for names in changed["mixed row"]]) > 2
        lost = zip(changed["lost value"], faults["lost value"].rows.iter_rows(named=True), strict=True)
        assert all(row[name] is None for (name,), row in lost)
        again = plant_kinds(rows, [fitted.bundle.encoder])
        assert all(again[kind].rows.equals(faulty.rows) for kind, faulty in faults.items())

    def test_columns_of_both_models_get_faults(self, fitted: Fitted) -> None:
        rows = pl.concat([fitted.features(day) for day in fitted.days[-6:]])
        encoder = fitted.bundle.encoder
        narrow = encoder.model_copy(update={"columns": encoder.columns[:1]})
        only, both = (plant_kinds(rows, encoders)["other value"].rows for encoders in ([narrow], [narrow, encoder]))
        first = encoder.columns[0].name
        unchanged = rows.select("row_id", first)
        changed = [
            faulty.join(unchanged, on="row_id").filter(pl.col(first).ne_missing(pl.col(f"{first}_right"))).height
            for faulty in (only, both)
        ]
        assert changed[0] == only.height
        assert changed[1] < 0.5 * both.height


class TestModels:
    def results_of(
        self, fitted: Fitted, challenger: ModelBundle, champion: ModelBundle, rows: pl.DataFrame | None = None
    ) -> dict[str, GateResult]:
        rows = pl.concat([fitted.features(day) for day in fitted.days[-6:]]) if rows is None else rows
        return {each.rule: each for each in compare_sight(challenger, champion, rows, NO_ALERTS, GateConfig())}

    def test_the_same_model_sees_the_same(self, fitted: Fitted) -> None:
        results = self.results_of(fitted, fitted.bundle, fitted.bundle)
        assert tuple(results) == BLINDNESS_RULES
        assert all(result.passed for result in results.values())
        assert results["rankings_agree"].figure == pytest.approx(1.0)
        assert results["faults_found_at_budget"].figure > 0.5

    def test_a_model_of_fewer_epochs_loses_mixed_rows(self, fitted: Fitted, other_bundle: ModelBundle) -> None:
        rule = "each_kind_found_at_budget"
        better = self.results_of(fitted, fitted.bundle, other_bundle)[rule]
        assert better.passed, better.message
        assert better.figure < 0
        worse = self.results_of(fitted, other_bundle, fitted.bundle)
        assert not worse[rule].passed
        # It loses more of the lost values. They are in four columns, which chance can explain.
        lost = re.search(r"lost value (\d+)% \((\d+)%\)", worse["faults_found_at_budget"].message)
        assert lost is not None
        assert int(lost[2]) - int(lost[1]) > 100 * worse[rule].figure > 10
        assert ", in the kind mixed row " in worse[rule].message

    def test_a_model_calibrated_on_faulty_rows_is_rejected(self, fitted: Fitted) -> None:
        blind = blinded(fitted.bundle, 25, 1_000.0)
        results = self.results_of(fitted, blind, fitted.bundle)
        assert not results["faults_found_at_budget"].passed
        assert not results["each_kind_found_at_budget"].passed
        assert not results["threshold_in_line"].passed
        assert results["rankings_agree"].passed

    def test_a_model_that_adapted_to_a_changed_world_is_not(self, fitted: Fitted) -> None:
        rows = pl.concat([fitted.features(day) for day in fitted.days[-6:]])
        changed = rows.with_columns(pl.col("power") * 4)
        sees_all = self.results_of(fitted, blinded(fitted.bundle, 25, 1_000.0), fitted.bundle, changed)
        assert fitted.bundle.score(changed).is_anomaly.mean() > 0.95
        assert all(result.passed for result in sees_all.values())


class TestRecentAlerts:
    def test_only_days_over_the_budget_count(self, dataset: Fitted, rewrite_day: Rewrite) -> None:
        assert recent_alerts(dataset.window, dataset.bundle, dataset).days == 0
        bad = dataset.window.calibration[3]
        features = dataset.features(bad)
        is_bad = pl.int_range(pl.len()) < 20
        rewrite_day(dataset, bad, features.with_columns(pl.when(is_bad).then(pl.col("power") * 9).otherwise("power")))
        alerts = recent_alerts(dataset.window, dataset.bundle, dataset)
        assert (alerts.days, alerts.of_days, alerts.has_changed) == (1, 8, False)
        assert 18 <= alerts.rows["row_id"].is_in(features["row_id"].head(20).implode()).sum() <= alerts.rows.height
        result = alerts_still_found(dataset.bundle, alerts, dataset.bundle.calibration.threshold, 0.5)
        assert (result.passed, result.figure) == (True, 1.0)
        blind = alerts_still_found(blinded(dataset.bundle, 30, 1_000.0), alerts, 0.0, 0.5)
        assert (blind.passed, blind.figure) == (False, 0.0)
        assert (
            f"of the {alerts.rows.height} rows that the version that serves flags on the 1 recent day" in blind.message
        )

    def test_a_few_faulty_rows_on_each_day_count_together(self, dataset: Fitted, rewrite_day: Rewrite) -> None:
        for day in dataset.window.calibration:
            is_bad = pl.int_range(pl.len()) < 2
            features = dataset.features(day)
            bad_power = pl.when(is_bad).then(pl.col("power") * 9).otherwise("power")
            rewrite_day(dataset, day, features.with_columns(bad_power.alias("power")))
        alerts = recent_alerts(dataset.window, dataset.bundle, dataset)
        assert (alerts.days, alerts.of_days, alerts.has_changed) == (8, 8, False)
        assert alerts.rows.height == len(alerts.scores) >= 14
        assert not alerts_still_found(blinded(dataset.bundle, 30, 1_000.0), alerts, 0.0, 0.5).passed

    def test_in_a_changed_world_alerts_are_not_compared(self, dataset: Fitted, rewrite_day: Rewrite) -> None:
        for day in dataset.window.calibration[-3:]:
            rewrite_day(dataset, day, dataset.features(day).with_columns(pl.col("power") * 9))
        alerts = recent_alerts(dataset.window, dataset.bundle, dataset)
        assert alerts.has_changed
        result = alerts_still_found(blinded(dataset.bundle, 30, 1_000.0), alerts, 0.0, 0.5)
        assert result.passed
        assert result.message == "not compared: the data has changed: 3 of the newest 8 days are over the alert budget"

    def test_a_model_that_cannot_score_has_no_alerts(self, dataset: Fitted, rewrite_day: Rewrite) -> None:
        for day in dataset.days:
            rewrite_day(dataset, day, dataset.features(day).drop("load"))
        assert recent_alerts(dataset.window, dataset.bundle, dataset) is NO_ALERTS

    def test_few_alerts_are_not_compared(self, fitted: Fitted) -> None:
        few = RecentAlerts(fitted.features(fitted.days[0]).head(4), np.full(4, 9.0), 1, 8, has_changed=False)
        assert alerts_still_found(fitted.bundle, few, 0.0, 0.5).message.startswith("not compared: no recent day")
