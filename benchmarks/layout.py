"""Size and reading times of the published table, compared with plain `DataFrame.to_parquet` of the same rows.

The flights of 2013 (336,776 rows, 365 days) are encoded into 32 latents and published. pandas writes the same rows with
its defaults, as one file and as one file per day. Replacing a day in place requires one file per day. The benchmark
reads all latents, one latent, and all latents of one week. It reads the table as the documentation shows. Times are
medians. The order of the layouts rotates from round to round.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import polars as pl
import pyarrow.compute as pc
import torch
from deltalake import DeltaTable

from ae_pipeline.features.build import feature_columns, features_content
from ae_pipeline.features.split import cut_window
from ae_pipeline.latents.publish import publish
from ae_pipeline.latents.read import current_files
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.training.fit import fit_bundle
from benchmarks.planted_faults import prepare
from benchmarks.report import Row, format_table, write_report

LATENTS = 32
WEEK = (pd.Timestamp("2013-06-10", tz="UTC"), pd.Timestamp("2013-06-17", tz="UTC"))
OURS, ONE_FILE, BY_DAY = "published table", "to_parquet, one file", "to_parquet by day"

Z = [f"z_{index:03d}" for index in range(LATENTS)]

Read = Callable[[], int]
"""Function that reads data and returns the number of rows."""


def publish_flights(data: Path, root: Path) -> DatasetPaths:
    """Publish the flights under a model of 32 latents. One epoch is enough, because only the layout matters."""
    prepared = prepare(data)
    model = prepared.config.model.model_copy(update={"latent_dim": LATENTS})
    training = prepared.config.training.model_copy(update={"epochs": 1})
    config = prepared.config.model_copy(update={"model": model, "training": training})
    content = {day: digest for day, (digest, rows) in features_content(Dataset(config, prepared.paths)).items() if rows}
    bundle, _ = fit_bundle(
        Dataset(config, prepared.paths), feature_columns(config, prepared.contract), cut_window(content, config)
    )
    paths = DatasetPaths(prepared.paths.root, prepared.paths.dataset, str(root))
    publish(sorted(content), Dataset(bundle.config, paths), bundle, 1, {})
    return paths


def write_plainly(paths: DatasetPaths, folder: Path) -> tuple[Path, Path]:
    """Write the rows of the table with the defaults of pandas: as one file, and as one file per day."""
    frame = DeltaTable(paths.latents).to_pandas().sort_values(["event_time", "row_id"], ignore_index=True)
    one, by_day = folder / "all.parquet", folder / "days"
    frame.to_parquet(one)
    by_day.mkdir()
    for day, rows in frame.groupby(frame["date"].astype(str)):
        rows.to_parquet(by_day / f"{day}.parquet")
    return one, by_day


def readers(paths: DatasetPaths, one: Path, by_day: Path) -> Mapping[tuple[str, str], Mapping[str, Read]]:
    """Return the readers of each layout, by content and engine."""
    import duckdb

    location, days = paths.latents, str(by_day / "*.parquet")
    low, high = WEEK
    within = (pl.col("event_time") >= low.to_pydatetime()) & (pl.col("event_time") < high.to_pydatetime())
    filters = [("event_time", ">=", low), ("event_time", "<", high)]
    chosen = (pc.field("event_time") >= low) & (pc.field("event_time") < high)
    where = f"event_time >= '{low.isoformat()}' and event_time < '{high.isoformat()}'"

    def table() -> DeltaTable:
        return DeltaTable(location)

    def duck(files: str | list[str], columns: Sequence[str], *, of_week: bool = False) -> int:
        relation = duckdb.read_parquet(files)
        relation = relation.filter(where) if of_week else relation
        return int(relation.project(", ".join(columns)).to_arrow_table().num_rows)

    by_content: dict[tuple[str, str], Mapping[str, Read]] = {}

    def add(what: str, columns: list[str]) -> None:
        by_content[what, "pandas"] = {
            OURS: lambda: len(pd.read_parquet(table().file_uris(), columns=columns)),  # type: ignore[call-overload]
            ONE_FILE: lambda: len(pd.read_parquet(one, columns=columns)),
            BY_DAY: lambda: len(pd.read_parquet(by_day, columns=columns)),
        }
        by_content[what, "polars"] = {
            OURS: lambda: pl.scan_delta(location).select(columns).collect().height,
            ONE_FILE: lambda: pl.scan_parquet(one).select(columns).collect().height,
            BY_DAY: lambda: pl.scan_parquet(days).select(columns).collect().height,
        }
        by_content[what, "DuckDB"] = {
            OURS: lambda: duck(table().file_uris(), columns),
            ONE_FILE: lambda: duck(str(one), columns),
            BY_DAY: lambda: duck(days, columns),
        }

    add("all latents", Z)
    add("one latent", Z[:1])
    by_content["one week", "pandas"] = {
        OURS: lambda: len(table().to_pyarrow_dataset().to_table(Z, filter=chosen).to_pandas()),
        ONE_FILE: lambda: len(pd.read_parquet(one, columns=Z, filters=filters)),
        BY_DAY: lambda: len(pd.read_parquet(by_day, columns=Z, filters=filters)),
    }
    by_content["one week", "polars"] = {
        OURS: lambda: pl.scan_delta(location).filter(within).select(Z).collect().height,
        ONE_FILE: lambda: pl.scan_parquet(one).filter(within).select(Z).collect().height,
        BY_DAY: lambda: pl.scan_parquet(days).filter(within).select(Z).collect().height,
    }
    by_content["one week", "DuckDB"] = {
        OURS: lambda: duck(table().file_uris(), Z, of_week=True),
        ONE_FILE: lambda: duck(str(one), Z, of_week=True),
        BY_DAY: lambda: duck(days, Z, of_week=True),
    }
    return by_content


def measure(ways: Mapping[str, Read], rounds: int) -> dict[str, float]:
    """Return the median seconds of each layout, after a warm-up read."""
    if len({read() for read in ways.values()}) != 1:
        raise ValueError(f"the layouts {', '.join(ways)} return different numbers of rows; all must hold the same rows")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            started = time.perf_counter()
            ways[name]()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def compare(data: Path, rounds: int) -> list[Row]:
    """Write all layouts and measure them."""
    results: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        paths = publish_flights(data, root / "tables")
        one, by_day = write_plainly(paths, root)
        sizes = {
            OURS: sum((Path(paths.latents) / path).stat().st_size for path in current_files(paths)),
            ONE_FILE: one.stat().st_size,
            BY_DAY: sum(path.stat().st_size for path in by_day.iterdir()),
        }
        results += [
            {"what": "size", "engine": "", "way": way, "MB": round(size / 1e6, 2)} for way, size in sizes.items()
        ]
        for (what, engine), ways in readers(paths, one, by_day).items():
            medians = measure(ways, rounds)
            results += [
                {"what": what, "engine": engine, "way": way, "ms": round(1000 * value, 2)}
                for way, value in medians.items()
            ]
    return results


def describe(results: Sequence[Row]) -> str:
    """Return a table of the figures and of the ratios of the plain files to the table."""
    keys = list(dict.fromkeys((str(row["what"]), str(row["engine"])) for row in results))
    lines = []
    for what, engine in keys:
        values = {
            str(row["way"]): float(row["MB" if "MB" in row else "ms"])
            for row in results
            if (row["what"], row["engine"]) == (what, engine)
        }
        unit = "MB" if what == "size" else "ms"
        cells = [f"{values[way]:,.1f} {unit}" for way in (OURS, ONE_FILE, BY_DAY)]
        ratios = [f"{values[way] / values[OURS]:.2f} ×" for way in (ONE_FILE, BY_DAY)]
        lines.append([f"{what} {engine}".strip(), *cells, *ratios])
    return format_table(["what", OURS, ONE_FILE, BY_DAY, "one file / table", "by day / table"], lines)


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layout", description=__doc__)
    parser.add_argument("--data", type=Path, help="data folder that keeps the prepared flights")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        results = compare(arguments.data or Path(root), arguments.rounds)
    write_report(arguments.out, "layout", results, ("deltalake", "duckdb", "pandas", "pyarrow"))
    print(describe(results))


if __name__ == "__main__":
    main()
