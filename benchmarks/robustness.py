"""Retrain on flights whose newest days are bad or changed: does the next model go blind, and does the gate see it?

A first model serves, fitted on clean days. Then the newest days get one of seven changes, and the pipeline retrains
three times, each time some days later. A challenger that the gate passes serves from then on. For each case and seed
the benchmark reports the share of planted faults that is flagged by the first model, by the next one and after three
retrainings, the verdicts of the gate, and the flagged rows without a fault a day.

The planted faults are those of `benchmarks.faults` and those of the case itself, planted into later days that no model
has seen. Where the case is a changed world, these days are changed too, so that an alert on such a row is false.

Each challenger is evaluated twice: as shipped, and unscreened (`training.max_screened_share: 0`). The second is the
blind challenger that the gate must reject in the cases that have bad rows.

The settings are smaller than the shipped ones, so that a retraining takes seconds: see `SETTINGS`.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.features.build import build_features, feature_columns
from ae_pipeline.features.split import Window, cut_window
from ae_pipeline.gate.blindness import recent_alerts
from ae_pipeline.gate.evaluation import gate_rows
from ae_pipeline.gate.results import GateResult
from ae_pipeline.gate.rules import compare, finite_weights, loss_fell
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.parquet import write_parquet
from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.training.fit import fit_bundle
from ae_pipeline.training.reference import with_reference
from benchmarks.command_line import read_seeds
from benchmarks.faults import plant
from benchmarks.planted_faults import Prepared, prepare
from benchmarks.report import Row, format_table, write_report

SETTINGS = {"window_days": 77, "validation_days": 7, "calibration_days": 28, "epochs": 4}
"""Section `training` of the benchmark. The gate has seven days, as shipped."""

FIRST_DAYS, EVERY, RETRAININGS, TEST_DAYS = 91, 14, 3, 5
"""Days of the first model with its gate, days between trainings, their number, and days after the last for the test."""

FAULTY_ROWS, FAULTY_SHARE, NEW_SHARE, RAMP = 25, 0.01, 0.05, 0.005
"""Faulty rows of the bad day, of the contaminated window, rows of the new category, and the daily rise of the ramp."""

_WEEK = 7

Change = Callable[[pl.DataFrame, int, np.random.Generator], tuple[pl.DataFrame, pl.Series]]
"""Changes the raw rows of a day, given the days since the change began; returns them and which rows are faulty."""


def _no_fault(rows: pl.DataFrame) -> pl.Series:
    return pl.repeat(False, rows.height, eager=True)


def _units(rows: pl.DataFrame, day: int, _: np.random.Generator) -> tuple[pl.DataFrame, pl.Series]:
    """Give the distance in kilometres from a day on."""
    changed = rows.with_columns((pl.col("distance") * 1.609).round().cast(rows.schema["distance"]).alias("distance"))
    return (changed if day >= 0 else rows), _no_fault(rows)


def _new_category(rows: pl.DataFrame, day: int, rng: np.random.Generator) -> tuple[pl.DataFrame, pl.Series]:
    """Let a new carrier fly from a day on."""
    is_new = pl.Series(rng.random(rows.height) < NEW_SHARE) & (day >= 0)
    return rows.with_columns(pl.when(is_new).then(pl.lit("ZZ")).otherwise("carrier").alias("carrier")), _no_fault(rows)


def _stuck(rows: pl.DataFrame, day: int, _: np.random.Generator) -> tuple[pl.DataFrame, pl.Series]:
    """Repeat one air time for a week."""
    if not 0 <= day < _WEEK:
        return rows, _no_fault(rows)
    value = rows["air_time"].drop_nulls().head(1).item()
    stuck = pl.when(pl.col("air_time").is_not_null()).then(pl.lit(value, rows.schema["air_time"])).otherwise(None)
    return rows.with_columns(stuck.alias("air_time")), rows["air_time"].is_not_null()


def _faulty(rows: pl.DataFrame, count: int, rng: np.random.Generator) -> tuple[pl.DataFrame, pl.Series]:
    """Give some flights an air time in seconds."""
    flew = np.flatnonzero(rows["air_time"].is_not_null().to_numpy())
    chosen = rng.choice(flew, min(count, len(flew)), replace=False)
    is_faulty = pl.Series(np.isin(np.arange(rows.height), chosen))
    wrong = pl.when(is_faulty).then(pl.col("air_time") * 60).otherwise("air_time")
    return rows.with_columns(wrong.cast(rows.schema["air_time"]).alias("air_time")), is_faulty


def _bad_day(rows: pl.DataFrame, day: int, rng: np.random.Generator) -> tuple[pl.DataFrame, pl.Series]:
    return _faulty(rows, FAULTY_ROWS, rng) if day == 0 else (rows, _no_fault(rows))


def _bad_week(rows: pl.DataFrame, day: int, rng: np.random.Generator) -> tuple[pl.DataFrame, pl.Series]:
    """Spread the faulty rows of a bad day over a week, so that few or no single days are over their budget."""
    if not 0 <= day < _WEEK:
        return rows, _no_fault(rows)
    return _faulty(rows, FAULTY_ROWS * (day + 1) // _WEEK - FAULTY_ROWS * day // _WEEK, rng)


def _contaminated(rows: pl.DataFrame, _: int, rng: np.random.Generator) -> tuple[pl.DataFrame, pl.Series]:
    return _faulty(rows, round(FAULTY_SHARE * rows.height), rng)


def _ramp(rows: pl.DataFrame, day: int, _: np.random.Generator) -> tuple[pl.DataFrame, pl.Series]:
    """Let air times rise slowly from a day on."""
    rising = (pl.col("air_time") * (1 + RAMP * max(day, 0))).round().cast(rows.schema["air_time"])
    return rows.with_columns(rising.alias("air_time")), _no_fault(rows)


CASES: dict[str, tuple[Change, bool]] = {
    "step change of units": (_units, True),
    "new category that stays": (_new_category, True),
    "sensor stuck for a week": (_stuck, False),
    "25 faulty rows on a day": (_bad_day, False),
    "25 faulty rows over a week": (_bad_week, False),
    "1% of the window faulty": (_contaminated, False),
    "slow ramp": (_ramp, True),
}
"""The change of each case, and whether the world has changed, so that the test days are changed too."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one model of one case sees.

    Attributes:
        retraining: Number of trainings since the first model.
        screened: Whether bad days and rows were screened.
        passed: Whether the gate passed the challenger; None for the first model.
        broken: Rules that it broke.
        general: Share of the planted faults of `benchmarks.faults` that it flags.
        case_faults: Share of the faulty rows of the case that it flags; NaN without such rows.
        false_alerts: Flagged rows without a fault a day.
        changed_split: Whether the screening left out rows or gave newest days to training.
        message: What the screening left out.
    """

    retraining: int
    screened: bool
    passed: bool | None
    broken: str
    general: float
    case_faults: float
    false_alerts: float
    changed_split: bool
    message: str


class Trial:
    """One case with one seed: a copy of the features whose newest days are changed."""

    def __init__(self, prepared: Prepared, case: str, seed: int, root: Path, rows_a_day: int | None) -> None:
        self.case, self.seed, self.prepared = case, seed, prepared
        training = prepared.config.training.model_copy(update={**SETTINGS, "seed": seed})
        gate = prepared.config.gate.model_copy(update={"days": 7})
        self.config = prepared.config.model_copy(update={"training": training, "gate": gate})
        self.paths = DatasetPaths(root, prepared.config.dataset)
        self.columns = feature_columns(self.config, prepared.contract)
        files = sorted(prepared.paths.raw("_").parent.glob("[!.]*.parquet"))
        offset = 14 * seed  # another season for each seed
        self.days = [file.stem for file in files][offset:][: FIRST_DAYS + RETRAININGS * EVERY + TEST_DAYS]
        self.raw = {day: pl.read_parquet(prepared.paths.raw(day)) for day in self.days}
        if rows_a_day:
            self.raw = {day: raw.sample(min(rows_a_day, raw.height), seed=seed) for day, raw in self.raw.items()}
        for day, raw in self.raw.items():
            self._rewrite(day, raw)

    def run(self) -> list[Outcome]:
        """Train the first model, change the days, and retrain."""
        champion, _ = self._fit(self._window(FIRST_DAYS), None, screened=True)
        change, is_changed_world = CASES[self.case]
        rng = np.random.default_rng(self.seed)
        began = FIRST_DAYS - 7  # in the gate of the first model, in the calibration of the next
        for index, day in enumerate(self.days[:-TEST_DAYS]):
            self._rewrite(day, change(self.raw[day], index - began, rng)[0])
        test = self._test_rows(change if is_changed_world else None, rng)
        outcomes = [self._outcome(champion, test, 0, screened=True, results=None)]
        for number in range(1, RETRAININGS + 1):
            window = self._window(FIRST_DAYS + number * EVERY)
            alerts = recent_alerts(window, champion, Dataset(self.config, self.paths))
            for screened in (True, False):
                if not screened and not outcomes[-1].changed_split:  # the same training again
                    outcomes.append(replace(outcomes[-1], screened=False))
                    continue
                bundle, result = self._fit(window, champion, screened=screened)
                rows = gate_rows(bundle.window, champion.window, self.paths)
                results = (
                    finite_weights(bundle),
                    result,
                    *compare(bundle, champion, rows, "", self.config.gate, alerts),
                )
                outcomes.append(self._outcome(bundle, test, number, screened=screened, results=results))
                if screened:
                    challenger, is_promoted = bundle, all(each.passed for each in results)
            champion = challenger if is_promoted else champion
        return outcomes

    def _window(self, days: int) -> Window:
        return cut_window(dict.fromkeys(self.days[:days], "x"), self.config, 7)

    def _fit(self, window: Window, champion: ModelBundle | None, *, screened: bool) -> tuple[ModelBundle, GateResult]:
        config = self.config
        if not screened:
            training = config.training.model_copy(update={"max_screened_share": 0.0})
            config = config.model_copy(update={"training": training})
        bundle, result = fit_bundle(Dataset(config, self.paths), self.columns, window, previous=champion)
        return with_reference(bundle, self.columns, self.paths), loss_fell(result)

    def _rewrite(self, day: str, raw: pl.DataFrame) -> None:
        features = build_features(raw, self.config, self.prepared.contract)
        write_parquet(self.paths.features(day), features.to_arrow())

    def _test_rows(self, change: Change | None, rng: np.random.Generator) -> tuple[pl.DataFrame, pl.Series]:
        """Return features of the test days and the kind of fault of each row: general, case, or null."""
        raw = pl.concat([self.raw[day] for day in self.days[-TEST_DAYS:]])
        if change is not None:
            raw, _ = change(raw, len(self.days) - FIRST_DAYS + 7, rng)
        raw, kinds = plant(raw, self.prepared.routes, self.seed, 20)
        is_clean = kinds.is_null()
        case_faults = _no_fault(raw)
        if not CASES[self.case][1]:
            clean, rest = raw.filter(is_clean), raw.filter(~is_clean)
            wrong, case_faults = _faulty(clean, 200, rng)
            if CASES[self.case][0] is _stuck:
                wrong, case_faults = _stuck(clean.head(200), 0, rng)
                wrong, case_faults = (
                    pl.concat([wrong, clean.slice(200)]),
                    pl.concat([case_faults, _no_fault(clean.slice(200))]),
                )
            raw = pl.concat([wrong, rest])
            kinds = pl.concat([pl.Series("fault", [None] * clean.height, dtype=pl.String), kinds.filter(~is_clean)])
            case_faults = pl.concat([case_faults, _no_fault(rest)])
        labels = pl.select(pl.when(case_faults).then(pl.lit("case")).when(kinds.is_not_null()).then(pl.lit("general")))
        return build_features(raw, self.config, self.prepared.contract), labels.to_series()

    def _outcome(
        self,
        bundle: ModelBundle,
        test: tuple[pl.DataFrame, pl.Series],
        retraining: int,
        *,
        screened: bool,
        results: Sequence[GateResult] | None,
    ) -> Outcome:
        rows, labels = test
        flagged = pl.Series(bundle.score(rows).is_anomaly)
        case_faults, general = flagged.filter(labels.eq_missing("case")), flagged.filter(labels.eq_missing("general"))
        screening = bundle.facts.screening
        return Outcome(
            retraining=retraining,
            screened=screened,
            passed=None if results is None else all(each.passed for each in results),
            broken=", ".join(
                f"{each.rule} {each.figure:.3g} (limit {each.threshold:.3g})"
                for each in results or ()
                if not each.passed
            ),
            general=float(general.mean()),  # type: ignore[arg-type]
            case_faults=float(case_faults.mean()) if case_faults.len() else float("nan"),  # type: ignore[arg-type]
            false_alerts=float(flagged.filter(labels.is_null()).sum()) / TEST_DAYS,
            changed_split=screening is not None and bool(screening.rows or screening.changed),
            message=screening.message if screening else "",
        )


def chosen_cases(texts: str | None) -> list[str]:
    """Return the cases whose name contains one of the comma-separated texts; all without texts."""
    return [case for case in CASES if texts is None or any(text.strip() in case for text in texts.split(","))]


def main() -> None:
    """Run the cases, print a table and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=read_seeds, default=read_seeds("0..4"), help="seeds, such as 0..4")
    parser.add_argument("--rows", type=int, help="random rows of each day; all by default")
    parser.add_argument("--cases", help="only cases whose name contains one of these comma-separated texts")
    parser.add_argument("--data", type=Path, help="data folder of prepared flights, to be reused")
    parser.add_argument("--evidence", help="comma-separated kinds of evidence; all by default")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the rows")
    chosen = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(chosen.data or Path(folder) / "flights")
        if chosen.evidence:
            alerts = prepared.config.alerts.model_copy(update={"evidence": tuple(chosen.evidence.split(","))})
            prepared = replace(prepared, config=prepared.config.model_copy(update={"alerts": alerts}))
        for seed in chosen.seeds:
            for case in chosen_cases(chosen.cases):
                started = time.perf_counter()
                outcomes = Trial(prepared, case, seed, Path(folder) / f"{seed} {case}", chosen.rows).run()
                rows += [_row(case, seed, outcome) for outcome in outcomes]
                shutil.rmtree(Path(folder) / f"{seed} {case}")
                print(f"\n{case}, seed {seed}, {time.perf_counter() - started:.0f} s", flush=True)
                print(format_table(_HEADER, [_cells(outcome) for outcome in outcomes]), flush=True)
                write_report(chosen.out, "robustness", rows, ("torch", "polars", "numpy"))


_HEADER = (
    "retraining",
    "screened",
    "gate",
    "faults found",
    "faults of the case",
    "false alerts a day",
    "screening",
    "broken",
)


def _cells(outcome: Outcome) -> tuple[str, ...]:
    verdict = "serves" if outcome.passed is None else "passed" if outcome.passed else "rejected"
    return (
        str(outcome.retraining),
        "yes" if outcome.screened else "no",
        verdict,
        f"{outcome.general:.1%}",
        f"{outcome.case_faults:.1%}",
        f"{outcome.false_alerts:.1f}",
        outcome.message,
        outcome.broken,
    )


def _row(case: str, seed: int, outcome: Outcome) -> Row:
    return {
        "case": case,
        "seed": seed,
        "retraining": outcome.retraining,
        "screened": outcome.screened,
        "gate": "first" if outcome.passed is None else "passed" if outcome.passed else "rejected",
        "broken": outcome.broken,
        "faults_found": round(outcome.general, 4),
        **({} if np.isnan(outcome.case_faults) else {"case_faults_found": round(outcome.case_faults, 4)}),
        "false_alerts_a_day": round(outcome.false_alerts, 2),
        "screening": outcome.message,
    }


if __name__ == "__main__":
    main()
