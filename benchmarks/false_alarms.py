"""What a training makes of three false alarms: whether later ones stay quiet, and whether anything else is lost.

From December 2013 on, one daily flight reports a value in another form, which is harmless. Either its departure is on a
12-hour clock, a fixed shift that a model can learn, or its air time is in seconds, which multiplies its scatter by 60.
The version that serves was trained on the days before. It flags the flight, and a person marks the first three flagged
rows as false alarms. The next training starts from that version and learns them. The same training without marks is the
control.

All versions score December again, in which faults of the twelve kinds of `benchmarks.faults` are planted into other
flights. One of the kinds is the same change. Measured are the rows of the harmless flight after the third mark that are
flagged, and the recall of the planted faults, at the alert budget and in the top 1 % of the month. No method knows the
planted rows.

The last two methods leave out the later rows of the flight. Under the version that serves, a person takes the offer of
the page after the third false alarm: the cause is known for this flight. Under the next version, the three marks do the
same without the offer. Faults of the other kinds are planted into
the later rows of the harmless flight itself: those that are flagged should still count.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.features.build import build_features, feature_columns
from ae_pipeline.monitoring.feedback import (
    FlaggedRow,
    Mark,
    MarkKind,
    MarkState,
    marks_by_row,
    repeated_alarms,
    review,
)
from ae_pipeline.reports.groups import cause_of
from ae_pipeline.reports.review import entity_of
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.parquet import write_parquet
from ae_pipeline.training.fit import fit_bundle
from ae_pipeline.training.reviewed import Reviewed
from benchmarks.command_line import data_folder, parser_with_data
from benchmarks.faults import FAULTS, plant
from benchmarks.measures import Measure, to_rows, to_tables
from benchmarks.planted_faults import TOP_SHARE, Prepared, prepare
from benchmarks.report import write_report

PER_KIND = 25
MARKED = 3
MIN_DAYS = 25
_IDENTITY = {"carrier", "flight", "origin"}
CLOCK, SECONDS = "departure on a 12-hour clock", "air time in seconds"
BEFORE, MARKS, CONTROL = "before", "after, with three marks", "after, without marks"
KNOWN, KNOWN_AFTER = "before, cause known", "after, with three marks and the cause known"
WITHOUT = {KNOWN: BEFORE, KNOWN_AFTER: MARKS}
"""Methods without the cause known, of the same version."""

FLAGGED = "harmless rows flagged, share"
OWN = "other faults of the same flight flagged, share"
FOUND, FOUND_SAME, FOUND_TOP = "recall at the budget", "recall of the same kind", "recall in the top 1 %"


@dataclass(frozen=True)
class Month:
    """The held-out month with a harmless change and planted faults.

    Attributes:
        change: Kind of fault that is the same change.
        features: Features of all rows.
        kinds: Kind of each row's fault; null without one.
        harmless: Whether each row belongs to the flight with the harmless change.
    """

    change: str
    features: pl.DataFrame
    kinds: pl.Series
    harmless: pl.Series


def _in_another_form(change: str) -> pl.Expr:
    """Return the changed column of the harmless flight."""
    if change == SECONDS:
        return pl.col("air_time") * 60
    return pl.when(pl.col("dep_time") >= 1300).then(pl.col("dep_time") - 1200).otherwise("dep_time").alias("dep_time")


def make_month(prepared: Prepared, change: str, seed: int) -> Month:
    """Change one daily flight of the afternoon harmlessly, and plant faults into the other flights.

    Args:
        prepared: Flights, with the raw rows of the month.
        change: Kind of fault that is the same change.
        seed: Seed for the choice of the flight and of the faults.
    """
    names = [name for name in prepared.config.identity if name != prepared.config.event_time]
    flew = prepared.raw.drop_nulls(["dep_time", "arr_time", "arr_delay", "air_time"]).filter(pl.col("dep_time") >= 1300)
    daily = flew.group_by(names).agg(pl.col("event_time").dt.date().n_unique().alias("days"))
    daily = daily.filter(pl.col("days") >= MIN_DAYS).sort(names)
    chosen = daily.row(int(np.random.default_rng(seed).integers(daily.height)), named=True)
    is_chosen = pl.all_horizontal(pl.col(name) == chosen[name] for name in names)
    changed = _in_another_form(change)
    harmless = prepared.raw.filter(is_chosen).with_columns(changed).cast(prepared.raw.schema)
    faulty, kinds = plant(prepared.raw.filter(~is_chosen), prepared.routes, seed, PER_KIND)
    raw = pl.concat([harmless, faulty.select(harmless.columns)])
    return Month(
        change=change,
        features=build_features(raw, prepared.config, prepared.contract),
        kinds=pl.concat([pl.repeat(None, harmless.height, dtype=pl.String, eager=True), kinds]),
        harmless=pl.Series([True] * harmless.height + [False] * faulty.height),
    )


def false_alarms(month: Month, bundle: ModelBundle, dataset: Dataset) -> Mapping[str, list[str]]:
    """Return the first flagged rows of the harmless flight by day, and store the features of these days.

    Args:
        month: The month.
        bundle: Version that serves.
        dataset: Configuration and paths of the dataset.

    Raises:
        ValueError: The version flags too few of these rows.
    """
    score = bundle.score(month.features).score
    local = pl.col("event_time").dt.convert_time_zone(dataset.config.timezone)
    rows = month.features.with_columns(day=local.dt.date().cast(pl.String))
    flagged = rows.filter(month.harmless & pl.Series(score > bundle.calibration.threshold)).sort("event_time")
    if flagged.height < MARKED:
        raise ValueError(f"{flagged.height} rows of the harmless flight are flagged, fewer than {MARKED}; change seeds")
    marked: dict[str, list[str]] = {}
    for row_id, day in flagged.head(MARKED).select("row_id", "day").iter_rows():
        marked.setdefault(day, []).append(row_id)
    for day in marked:
        of_day = rows.filter(pl.col("day") == day).drop("day")
        write_parquet(dataset.paths.features(day), of_day.to_arrow(), {"rows": str(of_day.height)})
    return marked


def measure_known(
    month: Month,
    versions: Mapping[str, ModelBundle],
    prepared: Prepared,
    marked: Mapping[str, list[str]],
    seed: int,
) -> list[Measure]:
    """Measure what counts of the harmless flight after its cause is known for this flight.

    Args:
        month: The month.
        versions: Version that serves when the cause is marked, and the next one, by the name of the method.
        prepared: Flights, with the raw rows of the month.
        marked: False alarms by day.
        seed: Seed of the trial.
    """
    ids = pl.Series([row_id for row_ids in marked.values() for row_id in row_ids])
    harmless = month.features.filter(month.harmless)
    of_marks = harmless.filter(pl.col("row_id").is_in(ids.implode()))
    later = harmless.filter(harmless["event_time"] > of_marks["event_time"].max())
    faulty = _own_faults(month.change, later["row_id"], prepared, seed)
    measures, marks = [], list[Mark]()
    for number, (method, bundle) in enumerate(versions.items(), 1):
        alarms, flagged, of_faults = (_flagged(rows, bundle, number, prepared) for rows in (of_marks, later, faulty))
        marks = marks or [_false_alarm(row) for row in alarms]
        # Before the next version, a person takes the offer of the page. Then the marks are enough.
        valid = repeated_alarms(marks_by_row(marks)) if method == KNOWN else marks
        hidden = review([*alarms, *flagged], valid, sorted({row.day for row in flagged})).states
        # Each fault alone happens on its day.
        counted = [row for row in of_faults if row.row_id not in review([*alarms, row], valid, [row.day]).states]
        shares = {
            (method, FLAGGED): sum(row.row_id not in hidden for row in flagged) / later.height,
            (method, OWN): len(counted) / faulty.height,
            (WITHOUT[method], OWN): len(of_faults) / faulty.height,
        }
        measures += [Measure(month.change, name, metric, value, seed) for (name, metric), value in shares.items()]
    return measures


def _false_alarm(row: FlaggedRow) -> Mark:
    return Mark(
        kind=MarkKind.ROW,
        subject=row.row_id,
        state=MarkState.FALSE_ALARM,
        day=row.day,
        entity=row.entity,
        columns=row.columns,
        rows={row.row_id: row.day},
        sizes={"rows": 1, "score": row.score},
        model_version=row.model_version,
    )


def _flagged(features: pl.DataFrame, bundle: ModelBundle, version: int, prepared: Prepared) -> list[FlaggedRow]:
    """Return those rows that a version flags, with their causes."""
    scored = features.with_columns(score=pl.Series(bundle.score(features).score))
    rows = scored.filter(pl.col("score") > bundle.calibration.threshold)
    local = rows["event_time"].dt.convert_time_zone(prepared.config.timezone).dt.date().cast(pl.String)
    causes = map(cause_of, bundle.explain(rows)) if rows.height else []
    return [
        FlaggedRow(
            row_id=row_id,
            day=day,
            score=score,
            columns=columns,
            entity=entity_of(row_id, prepared.config),
            model_version=version,
        )
        for row_id, day, score, columns in zip(rows["row_id"], local, rows["score"], causes, strict=True)
    ]


def _own_faults(change: str, row_ids: pl.Series, prepared: Prepared, seed: int) -> pl.DataFrame:
    """Return rows of the harmless flight, in its other form, each with a fault of every other kind that can befall it.

    Faults of the identity make other flights of them and are left out.
    """
    built = build_features(prepared.raw, prepared.config, prepared.contract)
    harmless = prepared.raw.filter(built["row_id"].is_in(row_ids.implode())).with_columns(_in_another_form(change))
    measured = ["dep_time", "arr_time", "arr_delay", "air_time", "tailnum"]
    others = prepared.raw.drop_nulls(measured)
    generator, faulty = np.random.default_rng(seed), []
    for kind, (fault, can_befall) in FAULTS.items():
        for row in harmless.drop_nulls(measured).iter_rows(named=True) if kind != change else ():
            other = others.row(int(generator.integers(others.height)), named=True)
            if can_befall(row, other) and not (changes := fault(row, other, generator)).keys() & _IDENTITY:
                faulty.append(row | changes)
    rows = pl.DataFrame(faulty, schema=harmless.schema, infer_schema_length=None).cast(prepared.raw.schema)
    return build_features(rows, prepared.config, prepared.contract)


def measure(name: str, bundle: ModelBundle, month: Month, marked: Mapping[str, list[str]], seed: int) -> list[Measure]:
    """Measure one version on the month.

    Args:
        name: Name of the version.
        bundle: The version.
        month: The month.
        marked: False alarms by day.
        seed: Seed of the trial.
    """
    score = bundle.score(month.features).score
    flagged = score > bundle.calibration.threshold
    top = np.zeros(len(score), dtype=bool)
    top[np.argsort(-score, kind="stable")[: int(TOP_SHARE * len(score))]] = True
    times, marked_ids = month.features["event_time"], [row_id for row_ids in marked.values() for row_id in row_ids]
    last_mark = times.filter(month.features["row_id"].is_in(marked_ids)).max()
    later = (month.harmless & (times > last_mark)).to_numpy()
    planted = month.kinds.is_not_null().to_numpy()
    same = month.kinds.eq_missing(month.change).to_numpy()
    values = {
        FLAGGED: flagged[later].mean(),
        FOUND: flagged[planted].mean(),
        FOUND_SAME: flagged[same].mean(),
        FOUND_TOP: top[planted].mean(),
    }
    return [Measure(month.change, name, metric, float(value), seed) for metric, value in values.items()]


def run_seed(prepared: Prepared, seed: int) -> list[Measure]:
    """Train before the marks, after them, and without them; measure each."""
    training = prepared.config.training.model_copy(update={"seed": seed})
    dataset = Dataset(prepared.config.model_copy(update={"training": training}), prepared.paths)
    columns = feature_columns(prepared.config, prepared.contract)
    serving, _ = fit_bundle(dataset, columns, prepared.window)
    control, _ = fit_bundle(dataset, columns, prepared.window, previous=serving)
    measures = []
    for change in (CLOCK, SECONDS):
        month = make_month(prepared, change, seed)
        marked = false_alarms(month, serving, dataset)
        reviewed = Reviewed(false_alarms=marked)
        after, _ = fit_bundle(dataset, columns, prepared.window, previous=serving, reviewed=reviewed)
        measures += measure_known(month, {KNOWN: serving, KNOWN_AFTER: after}, prepared, marked, seed)
        for name, bundle in ((BEFORE, serving), (CONTROL, control), (MARKS, after)):
            measures += measure(name, bundle, month, marked, seed)
    return measures


def run(root: Path, seeds: Sequence[int], out: Path) -> None:
    """Run all seeds on a data folder, print the table and write the JSON.

    Args:
        root: Data folder.
        seeds: Seeds of the flight, the faults and the training.
        out: JSON file to write.
    """
    prepared = prepare(root)
    print(f"{prepared.raw.height:,} held-out rows, {PER_KIND * len(FAULTS)} of them faulty", flush=True)
    measures: list[Measure] = []
    for seed in seeds:
        measures += run_seed(prepared, seed)
        latest = [
            f"{each.task}, {each.method}: {each.metric} {each.value:.3f}" for each in measures if each.seed == seed
        ]
        print(f"seed {seed}: " + "; ".join(latest), flush=True)
    print(f"\n{to_tables(measures)}")
    write_report(out, "false_alarms", to_rows(measures))


def main() -> None:
    """Run the benchmark from the command line."""
    arguments = parser_with_data("false_alarms", __doc__, "0,1,2").parse_args()
    with data_folder(arguments.data) as folder:
        run(folder, arguments.seeds, arguments.out)


if __name__ == "__main__":
    main()
