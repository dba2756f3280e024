"""Does the latent table stay whole while it changes, when its writer is killed, and when two write at once?

A small dataset, models of two spaces, and three trials:

- **readers**: 100 publications (promotions, new days, corrected days, rollbacks) while four processes read without a
  pause: pandas, polars, DuckDB and `read_latents`. What a read gave is held against what the features of that very
  version of the table call for: its rows and its one space.
- **kills**: a process that publishes is killed (SIGKILL) at a random moment, fifty times. After each the table must be
  as before or as after, and the next run must end with exactly the rows of the features.
- **races**: two processes publish at once, both having looked at the same version. One must win, the other say so.
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
from collections.abc import Callable, Sequence
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
from ae_pipeline.storage.parquet import read_facts, write_parquet
from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.training.fit import fit_bundle
from benchmarks.report import Row, format_table, write_report

DATASET, FIRST_DAY, COLUMNS = "stress", dt.date(2024, 1, 1), ("a", "b", "c", "d")
READERS = ("pandas", "polars", "duckdb", "read_latents")
FEWEST_ROWS, MOST_ROWS = 200, 400

State = dict[str, int]
"""Rows of each published day."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a trial works.

    Attributes:
        root: Data folder.
        bundles: Folders of the two models, versions 1 and 2.
    """

    root: Path
    bundles: tuple[Path, Path]

    @property
    def paths(self) -> DatasetPaths:
        """Of the dataset."""
        return DatasetPaths(self.root, DATASET)

    @property
    def ledger(self) -> Path:
        """What each version of the table must hold, one line each."""
        return self.root / "ledger.jsonl"

    def write_day(self, day: str, rows: int, seed: int) -> None:
        """Writes the features of a day."""
        rng = np.random.default_rng(seed)
        start = dt.datetime.fromisoformat(f"{day}T00:00:00+00:00")
        values = {name: rng.normal(size=rows) for name in COLUMNS}
        frame = pl.DataFrame(
            {
                "row_id": [f"{day}|{index}|{seed}" for index in range(rows)],
                "event_time": [start + dt.timedelta(minutes=index) for index in range(rows)],
                **values,
            },
            schema_overrides={"event_time": pl.Datetime("us", "UTC")},
        )
        write_parquet(self.paths.features(day), frame.to_arrow())

    def ids(self, days: Sequence[str]) -> set[str]:
        """Identities that the features of some days have."""
        return {row for day in days for row in pl.read_parquet(self.paths.features(day))["row_id"]}


def make(root: Path) -> Place:
    """Writes forty days of features and trains the two models on them."""
    index = Place(root, (root / "model_1", root / "model_2"))
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
        index.write_day(day, FEWEST_ROWS, number)
    content = {day: read_facts(index.paths.features(day))["content_hash"] for day in days}
    columns = [FeatureColumn(name, ColumnType.NUMBER) for name in COLUMNS]
    for seed, folder in enumerate(index.bundles):
        seeded = config.model_copy(update={"training": config.training.model_copy(update={"seed": seed})})
        fit_bundle(seeded, columns, cut_window(content, seeded), index.paths)[0].save(folder)
    return index


def day_of(number: int) -> str:
    """Gives a day of the dataset."""
    return (FIRST_DAY + dt.timedelta(days=number)).isoformat()


class Writer:
    """Changes features and the table as a deployment does, and knows what the table must then hold.

    Args:
        place: Where.
        seed: Of the changes.
    """

    def __init__(self, index: Place, seed: int) -> None:
        self.location, self._random = index, random.Random(seed)
        self.bundles = [ModelBundle.load(folder) for folder in index.bundles]
        self.version, self.state, self._seed = 1, State(), 1000

    def change(self, kind: str) -> tuple[int, list[str]]:
        """Changes the features as a kind of publication calls for, and gives model version and days to publish."""
        if kind in {"promotion", "rollback"}:
            return 3 - self.version, [sorted(self.state)[-1]]
        day = day_of(len(self.state)) if kind == "new day" else self._random.choice(sorted(self.state))
        self._seed += 1
        self.location.write_day(day, self._random.randint(FEWEST_ROWS, MOST_ROWS), self._seed)
        return self.version, [day]

    def publish(self, version: int, days: Sequence[str], progress: Callable[..., None] = lambda *_: None) -> int:
        """Publishes, and gives the version of the table."""
        done = publish(days, self.location.paths, self.bundles[version - 1], version, {}, progress)
        return done.table_version

    def done(self, version: int, days: Sequence[str]) -> None:
        """Notes that a publication went well."""
        self.version = version
        for day in days:
            self.state[day] = int(read_facts(self.location.paths.features(day))["rows"])


def _read(reader: str, index: Place) -> tuple[int, int, int, str]:
    """Reads the table once: its version, its rows, how many spaces they are of, and one of these."""
    from deltalake import DeltaTable

    if reader == "read_latents":
        found = read_latents(DATASET, data=index.root, columns=["row_id", "latent_space"])
        spaces = pa.compute.unique(found.arrow["latent_space"]).to_pylist()
        return found.table_version, found.arrow.num_rows, len(spaces), str(spaces[0])
    table = DeltaTable(index.paths.latents)
    uris = table.file_uris()
    if reader == "polars":
        frame = pl.scan_delta(table).select("row_id", "latent_space").collect()
        names = frame["latent_space"].unique().to_list()
        return table.version(), frame.height, len(names), names[0]
    if reader == "pandas":
        import pandas as pd

        rows = pd.read_parquet(uris, columns=["row_id", "latent_space"])  # type: ignore[call-overload] # lists go too
        names = list(rows["latent_space"].unique())
        return table.version(), len(rows), len(names), names[0]
    import duckdb

    counted = "count(row_id), count(distinct latent_space), min(latent_space)"
    relation = duckdb.read_parquet(uris).aggregate(counted)
    ((count, distinct, space),) = relation.fetchall()
    return table.version(), count, distinct, space


def _keep_reading(reader: str, index: Place, stop: Any, total: Any, out: Path) -> None:
    lines = []
    while not stop.is_set():
        try:
            lines.append(["read", *_read(reader, index)])
        except Exception as error:  # noqa: BLE001 - whatever a reader meets is a failed read, and is counted
            lines.append(["failed", type(error).__name__, str(error)[:200], 0, ""])
        with total.get_lock():
            total.value += 1
    out.write_text(json.dumps(lines))


def try_readers(index: Place, publications: int, reads: int) -> list[Row]:
    """Publishes while others read."""
    context = multiprocessing.get_context("spawn")
    writer = Writer(index, 0)
    for number in range(5):
        writer.done(1, [day_of(number)])
    expected = {writer.publish(1, sorted(writer.state)): (sum(writer.state.values()), 1)}
    stop, total = context.Event(), context.Value("l", 0)
    outs = {reader: index.root / f"{reader}.json" for reader in READERS}
    processes = [
        context.Process(target=_keep_reading, args=(reader, index, stop, total, out)) for reader, out in outs.items()
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
        found = json.loads(out.read_text())
        whole = [entry[1:] for entry in found if entry[0] == "read"]
        mixed = sum(spaces != 1 for _, _, spaces, _ in whole)
        wrong = sum(
            (count, int(space[1:].split("_")[0])) != expected.get(version, (None, None))
            for version, count, _, space in whole
        )
        rows.append(
            {
                "trial": "readers",
                "reader": reader,
                "reads": len(found),
                "failed": len(found) - len(whole),
                "mixed": mixed,
                "wrong": wrong,
                "versions_seen": len({entry[0] for entry in whole}),
                "publications": publications,
                **{f"publications_{kind.replace(' ', '_')}": count for kind, count in made.items()},
            }
        )
    return rows


def _publish_alone(index: Place, version: int, days: Sequence[str], started: Any, gate: Any, out: Any) -> None:
    bundle = ModelBundle.load(index.bundles[version - 1])

    waited = gate is None

    def progress(*_: object) -> None:
        nonlocal waited
        if not waited:
            waited = True
            gate.wait(30)  # both have looked at the table

    started.set()
    try:
        publish(days, index.paths, bundle, version, {}, progress)
        out.put("published")
    except PublicationError as error:
        out.put(str(error))


def _look(index: Place, out: Any) -> None:
    found = read_latents(DATASET, data=index.root, columns=["row_id"])
    out.put((found.model_version, found.arrow["row_id"].to_pylist()))


class _Children:
    """Processes that have imported everything and share no threads with this one."""

    def __init__(self, index: Place) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["ae_pipeline.latents.publish", "ae_pipeline.training.fit"])
        self.location = index

    def publishing(self, version: int, days: Sequence[str], gate: Any = None) -> tuple[Any, Any, Any]:
        started, out = self._context.Event(), self._context.Queue()
        arguments = (self.location, version, list(days), started, gate, out)
        process = self._context.Process(target=_publish_alone, args=arguments)
        process.start()
        return process, started, out

    def publish(self, version: int, days: Sequence[str]) -> str:
        process, _, out = self.publishing(version, days)
        message: str = out.get(timeout=60)
        process.join(60)
        return message

    def look(self) -> tuple[int, list[str]]:
        out = self._context.Queue()
        process = self._context.Process(target=_look, args=(self.location, out))
        process.start()
        found: tuple[int, list[str]] = out.get(timeout=60)
        process.join(60)
        return found

    def barrier(self) -> Any:
        return self._context.Barrier(2)


def _lasting(children: _Children, version: int, days: Sequence[str]) -> float:
    process, started, out = children.publishing(version, days)
    started.wait(60)
    previous = time.perf_counter()
    out.get(timeout=60)
    seconds = time.perf_counter() - previous
    process.join(60)
    return seconds


def try_kills(index: Place, kills: int) -> list[Row]:
    """Kills publications at random moments."""
    children, writer, rng = _Children(index), Writer(index, 1), random.Random(2)
    days = [day_of(number) for number in range(12)]
    children.publish(1, days)
    writer.done(1, days)
    seconds = _lasting(children, 2, days)  # of a promotion, which takes the longest
    writer.done(2, days)
    counts: Counter[str] = Counter()
    lost = doubled = 0
    number = 0
    while counts["killed"] < kills:
        number += 1
        previous = index.ids(sorted(writer.state))
        kind = ("promotion", "new day", "corrected day")[number % 3]
        version, wanted = writer.change(kind)
        days = sorted({*writer.state, *wanted})
        after = index.ids(days)
        process, started, _ = children.publishing(version, wanted)
        started.wait(60)
        time.sleep(rng.uniform(0, 1.2 * seconds))
        counts["killed" if process.is_alive() else "ended before"] += 1
        process.kill()
        process.join(60)
        serves, ids = children.look()
        if len(ids) == len(set(ids)) and (serves, set(ids)) in ((writer.version, previous), (version, after)):
            counts["as after" if (serves, set(ids)) == (version, after) else "as before"] += 1
        else:
            counts["not whole"] += 1
        message = children.publish(version, wanted)
        writer.done(version, wanted)
        serves, ids = children.look()
        counts["completed by the next run"] += (message, serves) == ("published", version)
        lost += len(after - set(ids))
        doubled += len(ids) - len(set(ids))
        counts["rows that should not be there"] += len(set(ids) - after)
    table = Path(index.paths.latents)
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


def try_races(index: Place, races: int) -> list[Row]:
    """Lets two publish at once, both having looked at the same version of the table."""
    children, writer = _Children(index), Writer(index, 3)
    days = [day_of(number) for number in range(8)]
    children.publish(1, days)
    writer.done(1, days)
    counts: Counter[str] = Counter()
    for _ in range(races):
        corrected = writer.change("corrected day")
        promoted = (3 - writer.version, days[-1:])
        gate = children.barrier()
        started = [children.publishing(*given, gate) for given in (promoted, corrected)]
        message = [out.get(timeout=60) for _, _, out in started]
        for process, _, _ in started:
            process.join(60)
        won = [given for given, said in zip((promoted, corrected), message, strict=True) if said == "published"]
        counts["won by one"] += len(won) == 1
        counts["won by the promotion"] += won == [promoted]
        counts["said so"] += sum("another publication changed" in said and "run it again" in said for said in message)
        # The loser tries again, as it was told to; a promotion that came first has the correction with it.
        version = promoted[0] if won == [promoted] else writer.version
        children.publish(version, corrected[1])
        writer.done(version, corrected[1])
        serves, ids = children.look()
        whole = serves == version and len(ids) == len(set(ids)) and set(ids) == index.ids(days)
        counts["not whole"] += not whole
    return [{"trial": "races", "races": races, **{name.replace(" ", "_"): count for name, count in counts.items()}}]


def describe(found: Sequence[Row]) -> str:
    """Lays out what was found."""
    readers = [row for row in found if row["trial"] == "readers"]
    heads = ["reader", "reads", "failed", "mixed", "wrong", "versions_seen"]
    lines = [[str(row[head]) for head in heads] for row in readers]
    lines.append(["all", *(str(sum(int(row[head]) for row in readers)) for head in heads[1:-1]), ""])
    message = [format_table([head.replace("_", " ") for head in heads], lines)]
    for row in found:
        if row["trial"] != "readers":
            told = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in row.items() if name != "trial")
            message.append(f"{row['trial']}: {told}")
    return "\n\n".join(message)


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.publication_stress", description=__doc__)
    parser.add_argument("--publications", type=int, default=100)
    parser.add_argument("--reads", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--races", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    found: list[Row] = []
    for attempt, tried in (
        (try_readers, (arguments.publications, arguments.reads)),
        (try_kills, (arguments.kills,)),
        (try_races, (arguments.races,)),
    ):
        with tempfile.TemporaryDirectory() as folder:
            found += attempt(make(Path(folder)), *tried)
            write_report(arguments.out, "publication_stress", found, ("deltalake", "duckdb", "pandas", "polars"))
    print(describe(found))


if __name__ == "__main__":
    main()
