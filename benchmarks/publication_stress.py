"""Stress test of the latent table: concurrent readers, killed writers and concurrent writers.

The test uses a small dataset and models of two latent spaces. It has three trials:

- **readers**: 100 publications (promotions, new days, corrected days, rollbacks) while four processes read without a
  pause: pandas, polars, DuckDB and `read_latents`. Each read is compared with the features of that table version. It
  must return their rows in a single space.
- **kills**: a publishing process is killed (SIGKILL) at a random moment, fifty times. After each kill the table must
  equal its state before or after the publication. The next run must end with exactly the rows of the features.
- **races**: two processes publish at once, after both have read the same version. The loser must publish in a retry, or
  fail with a message where the table has moved to a newer model.
"""

import argparse
import dataclasses
import datetime as dt
import json
import multiprocessing
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from ae_pipeline.common.errors import PublicationError
from ae_pipeline.config.columns import ColumnType, FeatureColumn
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.features.split import cut_window
from ae_pipeline.latents.publish import publish
from ae_pipeline.latents.read import read_latents
from ae_pipeline.latents.table_update import TableUpdate
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.parquet import read_facts, write_parquet
from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.training.fit import fit_bundle
from benchmarks.report import Row, format_table, write_report

DATASET, FIRST_DAY, COLUMNS = "stress", dt.date(2024, 1, 1), ("a", "b", "c", "d")
READERS = ("pandas", "polars", "duckdb", "read_latents")
FEWEST_ROWS, MOST_ROWS = 200, 400

State = dict[str, int]
"""Number of rows of each published day."""


@dataclasses.dataclass(frozen=True)
class TrialFolder:
    """Folders of a trial.

    Attributes:
        root: Data folder.
        bundles: Folders of the two models, versions 1 and 2.
    """

    root: Path
    bundles: tuple[Path, Path]

    @property
    def paths(self) -> DatasetPaths:
        """Paths of the dataset."""
        return DatasetPaths(self.root, DATASET)

    @property
    def ledger(self) -> Path:
        """File with the expected content of each table version, one line per version."""
        return self.root / "ledger.jsonl"

    def write_day(self, day: str, rows: int, seed: int) -> None:
        """Write the features of a day."""
        rng = np.random.default_rng(seed)
        start = dt.datetime.fromisoformat(f"{day}T00:00:00+00:00")
        values = {name: rng.normal(size=rows) for name in COLUMNS}
        frame = pl.DataFrame(
            {
                "row_id": [f"{day}|{row}|{seed}" for row in range(rows)],
                "event_time": [start + dt.timedelta(minutes=row) for row in range(rows)],
                **values,
            },
            schema_overrides={"event_time": pl.Datetime("us", "UTC")},
        )
        write_parquet(self.paths.features(day), frame.to_arrow())

    def ids(self, days: Sequence[str]) -> set[str]:
        """Return the row identities in the features of some days."""
        return {row for day in days for row in pl.read_parquet(self.paths.features(day))["row_id"]}


def make(root: Path) -> TrialFolder:
    """Write forty days of features and train the two models on them."""
    trial = TrialFolder(root, (root / "model_1", root / "model_2"))
    config = PipelineConfig.model_validate(
        {
            "dataset": DATASET,
            "identity": ["row_id"],
            "event_time": "event_time",
            "start": FIRST_DAY.isoformat(),
            "model": {"latent_dim": 2, "hidden": [8]},
            "training": {"epochs": 2, "validation_days": 5, "calibration_days": 10, "device": "cpu"},
            "alerts": {"budget": 0.01, "evidence": ["columns", "latent", "row"]},
        }
    )
    days = [day_of(number) for number in range(40)]
    for number, day in enumerate(days):
        trial.write_day(day, FEWEST_ROWS, number)
    content = {day: read_facts(trial.paths.features(day))["content_hash"] for day in days}
    columns = [FeatureColumn(name, ColumnType.NUMBER) for name in COLUMNS]
    for seed, folder in enumerate(trial.bundles):
        seeded = config.model_copy(update={"training": config.training.model_copy(update={"seed": seed})})
        fit_bundle(Dataset(seeded, trial.paths), columns, cut_window(content, seeded))[0].save(folder)
    return trial


def day_of(number: int) -> str:
    """Return the day with a number, as an ISO date."""
    return (FIRST_DAY + dt.timedelta(days=number)).isoformat()


class Writer:
    """Change features and the table like a deployment, and track the expected content of the table.

    Args:
        folder: Folders of the trial.
        seed: Seed of the changes.
    """

    def __init__(self, folder: TrialFolder, seed: int) -> None:
        self.folder, self._random = folder, random.Random(seed)
        self.bundles = [ModelBundle.load(path) for path in folder.bundles]
        self.version, self.state, self._seed = 1, State(), 1000

    def change(self, kind: str) -> tuple[int, list[str]]:
        """Change the features for a kind of publication; return the model version and the days to publish."""
        if kind in {"promotion", "rollback"}:
            return 3 - self.version, [sorted(self.state)[-1]]
        day = day_of(len(self.state)) if kind == "new day" else self._random.choice(sorted(self.state))
        self._seed += 1
        self.folder.write_day(day, self._random.randint(FEWEST_ROWS, MOST_ROWS), self._seed)
        return self.version, [day]

    def publish(self, version: int, days: Sequence[str]) -> int:
        """Publish days and return the version of the table."""
        done = publish(
            days,
            Dataset(self.bundles[version - 1].config, self.folder.paths),
            self.bundles[version - 1],
            version,
            {},
        )
        return done.table_version

    def done(self, version: int, days: Sequence[str]) -> None:
        """Record a successful publication."""
        self.version = version
        for day in days:
            self.state[day] = int(read_facts(self.folder.paths.features(day))["rows"])


def _read(reader: str, folder: TrialFolder) -> tuple[int, int, int, str]:
    """Read the table once; return its version, number of rows, number of spaces, and one of the spaces."""
    from deltalake import DeltaTable

    if reader == "read_latents":
        latents = read_latents(DATASET, data=folder.root, columns=["row_id", "latent_space"])
        spaces = pa.compute.unique(latents.arrow["latent_space"]).to_pylist()
        return latents.table_version, latents.arrow.num_rows, len(spaces), str(spaces[0])
    table = DeltaTable(folder.paths.latents)
    uris = table.file_uris()
    if reader == "polars":
        frame = pl.scan_delta(table).select("row_id", "latent_space").collect()
        names = frame["latent_space"].unique().to_list()
        return table.version(), frame.height, len(names), names[0]
    if reader == "pandas":
        import pandas as pd

        rows = pd.read_parquet(uris, columns=["row_id", "latent_space"])  # type: ignore[call-overload] # the stubs lack lists
        names = list(rows["latent_space"].unique())
        return table.version(), len(rows), len(names), names[0]
    import duckdb

    counted = "count(row_id), count(distinct latent_space), min(latent_space)"
    relation = duckdb.read_parquet(uris).aggregate(counted)
    ((count, distinct, space),) = relation.fetchall()
    return table.version(), count, distinct, space


def _keep_reading(reader: str, folder: TrialFolder, stop: Any, total: Any, out: Path) -> None:
    lines = []
    while not stop.is_set():
        try:
            lines.append(["read", *_read(reader, folder)])
        except Exception as error:  # noqa: BLE001 - every exception of a reader counts as a failed read
            lines.append(["failed", type(error).__name__, str(error)[:200], 0, ""])
        with total.get_lock():
            total.value += 1
    out.write_text(json.dumps(lines))


def try_readers(folder: TrialFolder, publications: int, reads: int) -> list[Row]:
    """Publish while other processes read."""
    context = multiprocessing.get_context("spawn")
    writer = Writer(folder, 0)
    for number in range(5):
        writer.done(1, [day_of(number)])
    expected = {writer.publish(1, sorted(writer.state)): (sum(writer.state.values()), 1)}
    stop, total = context.Event(), context.Value("l", 0)
    outs = {reader: folder.root / f"{reader}.json" for reader in READERS}
    processes = [
        context.Process(target=_keep_reading, args=(reader, folder, stop, total, out)) for reader, out in outs.items()
    ]
    for process in processes:
        process.start()
    kinds = ["new day", "corrected day", "promotion", "corrected day", "rollback"]
    made: Counter[str] = Counter()
    for number in range(publications):
        while total.value < reads * number // publications:
            time.sleep(0.002)
        kind = kinds[number % len(kinds)]
        version, days = writer.change(kind)
        table_version = writer.publish(version, days)
        writer.done(version, days)
        expected[table_version] = (sum(writer.state.values()), version)
        made[kind] += 1
    while total.value < reads:
        time.sleep(0.01)
    stop.set()
    for process in processes:
        process.join(60)
    rows: list[Row] = []
    for reader, out in outs.items():
        entries = json.loads(out.read_text())
        succeeded = [entry[1:] for entry in entries if entry[0] == "read"]
        mixed = sum(spaces != 1 for _, _, spaces, _ in succeeded)
        wrong = sum(
            (count, int(space[1:].split("_")[0])) != expected.get(version, (None, None))
            for version, count, _, space in succeeded
        )
        rows.append(
            {
                "trial": "readers",
                "reader": reader,
                "reads": len(entries),
                "failed": len(entries) - len(succeeded),
                "mixed": mixed,
                "wrong": wrong,
                "versions_seen": len({entry[0] for entry in succeeded}),
                "publications": publications,
                **{f"publications_{kind.replace(' ', '_')}": count for kind, count in made.items()},
            }
        )
    return rows


def _publish_alone(folder: TrialFolder, version: int, days: Sequence[str], started: Any, gate: Any, out: Any) -> None:
    bundle = ModelBundle.load(folder.bundles[version - 1])

    gates, write = [] if gate is None else [gate], TableUpdate.write

    def write_and_wait(update: TableUpdate, planned: Any) -> Any:
        written = write(update, planned)
        if gates:  # not in a retry
            gates.pop().wait(30)  # both processes have read the table
        return written

    TableUpdate.write = write_and_wait  # type: ignore[method-assign,assignment]
    started.set()
    try:
        publish(days, Dataset(bundle.config, folder.paths), bundle, version, {})
        out.put("published")
    except PublicationError as error:
        out.put(str(error))


def _look(folder: TrialFolder, out: Any) -> None:
    latents = read_latents(DATASET, data=folder.root, columns=["row_id"])
    out.put((latents.model_version, latents.arrow["row_id"].to_pylist()))


class _Children:
    """Child processes with preloaded imports, which share no threads with this process."""

    def __init__(self, folder: TrialFolder) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["ae_pipeline.latents.publish", "ae_pipeline.training.fit"])
        self.folder = folder

    def publishing(self, version: int, days: Sequence[str], gate: Any = None) -> tuple[Any, Any, Any]:
        started, out = self._context.Event(), self._context.Queue()
        arguments = (self.folder, version, list(days), started, gate, out)
        process = self._context.Process(target=_publish_alone, args=arguments)
        process.start()
        return process, started, out

    def publish(self, version: int, days: Sequence[str]) -> str:
        process, _, out = self.publishing(version, days)
        outcome: str = out.get(timeout=60)
        process.join(60)
        return outcome

    def look(self) -> tuple[int, list[str]]:
        out = self._context.Queue()
        process = self._context.Process(target=_look, args=(self.folder, out))
        process.start()
        content: tuple[int, list[str]] = out.get(timeout=60)
        process.join(60)
        return content

    def barrier(self) -> Any:
        return self._context.Barrier(2)


def _publication_seconds(children: _Children, version: int, days: Sequence[str]) -> float:
    process, started, out = children.publishing(version, days)
    started.wait(60)
    began = time.perf_counter()
    out.get(timeout=60)
    seconds = time.perf_counter() - began
    process.join(60)
    return seconds


def try_kills(folder: TrialFolder, kills: int) -> list[Row]:
    """Kill publications at random moments."""
    children, writer, rng = _Children(folder), Writer(folder, 1), random.Random(2)
    days = [day_of(number) for number in range(12)]
    children.publish(1, days)
    writer.done(1, days)
    seconds = _publication_seconds(children, 2, days)  # a promotion takes the longest
    writer.done(2, days)
    counts: Counter[str] = Counter()
    lost = doubled = 0
    number = 0
    while counts["killed"] < kills:
        number += 1
        old_ids = folder.ids(sorted(writer.state))
        kind = ("promotion", "new day", "corrected day")[number % 3]
        version, wanted = writer.change(kind)
        days = sorted({*writer.state, *wanted})
        new_ids = folder.ids(days)
        process, started, _ = children.publishing(version, wanted)
        started.wait(60)
        time.sleep(rng.uniform(0, 1.2 * seconds))
        counts["killed" if process.is_alive() else "ended before"] += 1
        process.kill()
        process.join(60)
        serves, ids = children.look()
        if len(ids) == len(set(ids)) and (serves, set(ids)) in ((writer.version, old_ids), (version, new_ids)):
            counts["as after" if (serves, set(ids)) == (version, new_ids) else "as before"] += 1
        else:
            counts["not whole"] += 1
        outcome = children.publish(version, wanted)
        writer.done(version, wanted)
        serves, ids = children.look()
        counts["completed by the next run"] += (outcome, serves) == ("published", version)
        lost += len(new_ids - set(ids))
        doubled += len(ids) - len(set(ids))
        counts["rows that should not be there"] += len(set(ids) - new_ids)
    table = Path(folder.paths.latents)
    left = list(table.rglob(".*.tmp"))
    old = time.time() - 2 * 86_400
    for path in left:
        os.utime(path, (old, old))
    children.publish(writer.version, [sorted(writer.state)[-1]])
    still = list(table.rglob(".*.tmp"))
    return [
        {
            "trial": "kills",
            **{name.replace(" ", "_"): counts[name] for name in sorted(counts)},
            "not_whole": counts["not whole"],
            "rows_lost": lost,
            "rows_doubled": doubled,
            "half_written_files_left": len(left),
            "half_written_files_after_the_sweep": len(still),
            "publication_s": round(seconds, 3),
        }
    ]


def try_races(folder: TrialFolder, races: int) -> list[Row]:
    """Publish from two processes at once, after both have read the same version of the table."""
    children, writer = _Children(folder), Writer(folder, 3)
    days = [day_of(number) for number in range(8)]
    children.publish(1, days)
    writer.done(1, days)
    counts: Counter[str] = Counter()
    for _ in range(races):
        corrected = writer.change("corrected day")
        promoted = (3 - writer.version, days[-1:])
        gate = children.barrier()
        started = [children.publishing(*given, gate) for given in (promoted, corrected)]
        outcomes = [out.get(timeout=60) for _, _, out in started]
        for process, _, _ in started:
            process.join(60)
        won = [given for given, outcome in zip((promoted, corrected), outcomes, strict=True) if outcome == "published"]
        counts["both published"] += len(won) == 2
        counts["only the promotion"] += won == [promoted]
        counts["only the correction"] += won == [corrected]
        counts["said so"] += sum("another publication changed" in text and "run it again" in text for text in outcomes)
        # A loser retries by itself. It gives up where the table has moved to a newer model, which contains its days.
        version = promoted[0] if promoted in won else writer.version
        children.publish(version, corrected[1])
        writer.done(version, corrected[1])
        serves, ids = children.look()
        consistent = serves == version and len(ids) == len(set(ids)) and set(ids) == folder.ids(days)
        counts["not whole"] += not consistent
    return [{"trial": "races", "races": races, **{name.replace(" ", "_"): count for name, count in counts.items()}}]


def describe(results: Sequence[Row]) -> str:
    """Return a table of the readers, and a line for each other trial."""
    readers = [row for row in results if row["trial"] == "readers"]
    heads = ["reader", "reads", "failed", "mixed", "wrong", "versions_seen"]
    lines = [[str(row[head]) for head in heads] for row in readers]
    lines.append(["all", *(str(sum(int(row[head]) for row in readers)) for head in heads[1:-1]), ""])
    parts = [format_table([head.replace("_", " ") for head in heads], lines)]
    for row in results:
        if row["trial"] != "readers":
            counts = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in row.items() if name != "trial")
            parts.append(f"{row['trial']}: {counts}")
    return "\n\n".join(parts)


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.publication_stress", description=__doc__)
    parser.add_argument("--publications", type=int, default=100)
    parser.add_argument("--reads", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--races", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    results: list[Row] = []
    for trial, amounts in (
        (try_readers, (arguments.publications, arguments.reads)),
        (try_kills, (arguments.kills,)),
        (try_races, (arguments.races,)),
    ):
        with tempfile.TemporaryDirectory() as folder:
            results += trial(make(Path(folder)), *amounts)
            write_report(arguments.out, "publication_stress", results, ("deltalake", "duckdb", "pandas", "polars"))
    print(describe(results))


if __name__ == "__main__":
    main()
