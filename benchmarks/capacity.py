"""What a large deployment costs, from measured unit costs: 10,000 datasets with a day each, and 10 billion rows.

Costs of a dataset, a day, a tick and a row are those of `load.json` and `speed.json`, and those of a look into an
object store those of `hosts_store.json`. The sizes of files are measured here. Nothing of this size has run: the result
is an estimate that says which part needs more machines first.
"""

import argparse
import json
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ae_pipeline.latents.publish import publish
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.paths import DatasetPaths
from benchmarks import generated
from benchmarks.engines_project import Project
from benchmarks.report import format_table, write_report

_RESULTS = Path(__file__).parent / "results"
_COLUMNS, _CORES_OF_A_MACHINE, _SECONDS_OF_A_DAY = 32, 16, 86_400
_TICK_INTERVAL = 10
"""Seconds between two looks of a sensor."""

_DAYS_BETWEEN_TRAININGS = 7
_SMALL_DAYS, _SMALL_ROWS = 30, 1000
"""Days of a small dataset whose files are measured, and rows of each."""


@dataclass(frozen=True)
class Cost:
    """One line of the estimate.

    Attributes:
        part: What costs.
        unit: Cost of one unit, with its name.
        total: Cost of all units, with its name.
        machines: Machines of 16 cores that the part keeps busy all day, or None for storage.
    """

    part: str
    unit: str
    total: str
    machines: float | None


def load_figure(measure: str, figure: str) -> float:
    """Return the value of a measure of `load.json` at its largest size, for each unit of the size where it is a sum."""
    rows = json.loads((_RESULTS / "load.json").read_text(encoding="utf-8"))["rows"]
    sizes = [row for row in rows if (row["measure"], row["figure"]) == (measure, figure)]
    largest = max(sizes, key=lambda row: row["size"])
    return float(largest["value"]) / (largest["size"] if measure == "datasets" else 1)


def _seconds_at(size: str) -> dict[str, float]:
    """Return the seconds of both cores by stage, in `speed.json` at a number of rows."""
    rows = json.loads((_RESULTS / "speed.json").read_text(encoding="utf-8"))["rows"]
    of_time = [row for row in rows if str(row["table"]).startswith("growth of time by stage")]
    return {row["method"]: float(row["value"]) for row in of_time if row["metric"] == size}


def seconds_of_stages() -> dict[str, float]:
    """Return the seconds of both cores for each million rows by stage, in `speed.json` at its largest size."""
    return {stage: seconds / 10 for stage, seconds in _seconds_at("10M").items()}


def look_in_a_store() -> tuple[float, int]:
    """Return the seconds and requests of a look into an object store without news, at 1,000 days."""
    rows = json.loads((_RESULTS / "hosts_store.json").read_text(encoding="utf-8"))["rows"]
    (row,) = (row for row in rows if row["trial"] == "looks of a sensor")
    return float(row["look_s"]), int(row["listings"]) + int(row["other_requests"])


def bytes_of_a_day() -> dict[str, float]:
    """Return the bytes that a day of a small dataset leaves in each folder of the data."""
    with tempfile.TemporaryDirectory() as name:
        project = Project(Path(name), _SMALL_DAYS, _SMALL_ROWS)
        dataset = project.landed_in("data")
        project.build(dataset)
        publish(project.days, dataset, project.model(Path(name) / "bundle", dataset), 1, {})
        sizes = Counter[str]()
        for path in dataset.paths.root.rglob("*"):
            if path.is_file():
                sizes[path.relative_to(dataset.paths.root).parts[0]] += path.stat().st_size
    return {folder: size / _SMALL_DAYS for folder, size in sorted(sizes.items()) if size >= 100 * _SMALL_DAYS}


def bytes_of_a_row() -> dict[str, float]:
    """Return the bytes of a row of numbers in the features and in the latent table."""
    with tempfile.TemporaryDirectory() as folder:
        paths = DatasetPaths(Path(folder), generated.DATASET)
        days = [generated.write_day(paths, index, _COLUMNS) for index in range(3)]
        bundle = generated.fitted(paths, _COLUMNS, ["columns"])
        publish(days, Dataset(bundle.config, paths), bundle, 1, {})
        rows = len(days) * generated.DAY_ROWS
        table = sum(path.stat().st_size for path in Path(paths.latents).rglob("*.parquet"))
        return {"features": sum(paths.features(day).stat().st_size for day in days) / rows, "latents": table / rows}


def estimate(datasets: int, rows: int) -> list[Cost]:
    """Return what datasets with a new day each, and rows of 32 numbers, cost in a day."""
    definitions, tick = load_figure("datasets", "definitions, CPU"), load_figure("datasets", "tick, CPU")
    new_day, stages, sizes = load_figure("days", "new day, CPU"), seconds_of_stages(), bytes_of_a_row()
    looks = _SECONDS_OF_A_DAY / _TICK_INTERVAL

    def machines(core_seconds: float) -> float:
        return core_seconds / _SECONDS_OF_A_DAY / _CORES_OF_A_MACHINE

    costs = [
        Cost("definitions", f"{definitions * 1e3:.0f} ms a dataset", f"{definitions * datasets:,.0f} s a load", None),
        Cost(
            f"ticks, every {_TICK_INTERVAL} s",
            f"{tick * 1e3:.0f} ms a dataset",
            f"{tick * datasets:,.0f} s a round",
            machines(tick * datasets * looks),
        ),
        Cost(
            "runs of a small new day",
            f"{new_day:.0f} core seconds a day",
            f"{new_day * datasets / 3600:,.0f} core hours",
            machines(new_day * datasets),
        ),
    ]
    look, requests = look_in_a_store()
    costs.append(
        Cost(
            f"looks into an object store, every {_TICK_INTERVAL} s",
            f"{look:.1f} s and {requests} requests a look",
            f"{requests * datasets / _TICK_INTERVAL:,.0f} requests a second",
            None,  # its time is mostly that of the store
        )
    )
    training = _seconds_at("0.3M")["autoencoder"] * 2
    costs.append(
        Cost(
            f"trainings on 300,000 rows, every {_DAYS_BETWEEN_TRAININGS} days",
            f"{training:.0f} core seconds a training",
            f"{training * datasets / _DAYS_BETWEEN_TRAININGS / 3600:,.0f} core hours",
            machines(training * datasets / _DAYS_BETWEEN_TRAININGS),
        )
    )
    for stage in ("raw_data", "features", "latent_features", "anomaly_report"):
        seconds = stages[stage] * 2 * rows / 1e6
        costs.append(
            Cost(
                f"rows: {stage}",
                f"{stages[stage] * 2:.1f} core seconds a million",
                f"{seconds / 3600:,.0f} core hours",
                machines(seconds),
            )
        )
    for name, size in sizes.items():
        costs.append(Cost(f"storage: {name}", f"{size:.0f} bytes a row", f"{size * rows / 1e12:.2f} TB", None))
    days = bytes_of_a_day()
    for name, size in [*days.items(), ("all folders", sum(days.values()))]:
        part = f"storage of a day of {_SMALL_ROWS:,} rows: {name}"
        costs.append(Cost(part, f"{size / 1e3:.0f} kB a day", f"{size * datasets / 1e9:.1f} GB", None))
    return costs


def main() -> None:
    """Print the estimate, and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--datasets", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=10_000_000_000)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    costs = estimate(chosen.datasets, chosen.rows)
    header = ("part", "unit cost", "in all", f"machines of {_CORES_OF_A_MACHINE} cores")
    lines = [(c.part, c.unit, c.total, "" if c.machines is None else f"{c.machines:.2f}") for c in costs]
    print(format_table(header, lines))
    if chosen.out:
        rows = [
            {"part": c.part, "unit cost": c.unit, "in all": c.total}
            | ({} if c.machines is None else {"machines": round(c.machines, 3)})
            for c in costs
        ]
        write_report(chosen.out, "capacity", rows)


if __name__ == "__main__":
    main()
