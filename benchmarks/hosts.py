"""Publications of several hosts to one table: an object store and a PostgreSQL server between them, on this machine.

A host is a process with a data folder of its own. In the trial `folder`, all of them share one, with its table and its
lock files, and nothing is in the object store. In each round all of them publish at once, each a corrected day or a
new one, and in every fifth round under another model. After the round the table must have every row once, and the list
of files and the data contract must describe its newest version. The trial runs with the locks of the server, and with
lock files, which the hosts do not share. The trial `kills` kills processes that hold a lock, while another one waits.
The object store has the API of S3, or that of Azure or Google Cloud (`--store`).
"""

import argparse
import json
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ae_pipeline.common.errors import PipelineError
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.latents.publish import publish
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.lock_kinds import LOCKS_VARIABLE
from ae_pipeline.storage.locks import dataset_lock, locks
from ae_pipeline.storage.paths import DatasetPaths
from benchmarks.cloud_stores import STORES
from benchmarks.hosts_look import describe, look
from benchmarks.publication_stress import DATASET, FEWEST_ROWS, TrialFolder, day_of, make
from benchmarks.report import Row, write_report
from benchmarks.stores import BUCKET, postgres_server

_FIRST_DAYS = 8
"""Days of the table before the first round."""

_WAIT_SECONDS = 3.0
"""Time that a process waits for a lock before its holder is killed."""

HOLDER = """
import sys, time
from pathlib import Path
from ae_pipeline.storage.locks import dataset_lock, locks
from ae_pipeline.storage.paths import DatasetPaths
with locks().hold(dataset_lock(DatasetPaths(Path(sys.argv[1]), sys.argv[2]))):
    print("held", flush=True)
    time.sleep(60)
"""
"""Program that holds the lock of a dataset; its arguments are the data folder and the dataset."""


class _Retries(logging.Handler):
    """Counts the retries of this process."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += "trying again" in record.getMessage()


def _host(root: Path, tables: str, bundles: Sequence[Path], tasks: Any, gate: Any, out: Any) -> None:
    """Publish what comes by a queue, together with the other hosts, until None comes."""
    models = [ModelBundle.load(path) for path in bundles]
    retries = _Retries()
    logging.getLogger("ae_pipeline").addHandler(retries)
    logging.getLogger("ae_pipeline").setLevel(logging.INFO)
    while (task := tasks.get()) is not None:
        version, days = task
        retries.count, bundle = 0, models[version - 1]
        gate.wait(60)
        started = time.perf_counter()
        try:
            publish(days, Dataset(bundle.config, DatasetPaths(root, DATASET, tables)), bundle, version, {})
            error = ""
        except (PipelineError, OSError) as raised:
            error = f"{type(raised).__name__}: {raised}"
        out.put((error, retries.count, time.perf_counter() - started))


def _name(kind: str, store: str) -> str:
    scheme = store.partition(":")[0]
    return f"publishers, {kind} locks" + (f", {scheme}://" if scheme != "s3" else "")


def try_publishers(trial: TrialFolder, kind: str, store: str, publishers: int, rounds: int) -> Row:
    """Let hosts publish at once, round by round.

    Args:
        trial: Features and models.
        kind: Kind of the locks, for the names of table and folders; the environment selects them. With `folder`, the
            hosts share a data folder.
        store: Address of a bucket, for other kinds than `folder`.
        publishers: Number of hosts.
        rounds: Number of rounds.
    """
    shared = trial.root.parent / kind / "shared" if kind == "folder" else None
    tables = f"{store}/{kind}" if shared is None else str(shared / "latents")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ae_pipeline.latents.publish", "ae_pipeline.training.fit"])
    gate, out = context.Barrier(publishers), context.Queue()
    roots = [shared or trial.root.parent / kind / f"host_{number}" for number in range(publishers)]
    for root in sorted(set(roots)):
        shutil.copytree(trial.paths.features("_").parent, DatasetPaths(root, DATASET).features("_").parent)
    queues = [context.Queue() for _ in roots]
    processes = [
        context.Process(target=_host, args=(root, tables, trial.bundles, queue, gate, out), daemon=True)
        for root, queue in zip(roots, queues, strict=True)
    ]
    for process in processes:
        process.start()
    published = [day_of(number) for number in range(_FIRST_DAYS)]
    bundle, version = ModelBundle.load(trial.bundles[0]), 1
    publish(published, Dataset(bundle.config, DatasetPaths(roots[0], DATASET, tables)), bundle, version, {})
    counts, seconds = Counter[str](), list[float]()
    for number in range(rounds):
        version = 1 + (number // 5) % 2
        days = [day_of((number * publishers + index) % 40) for index in range(publishers)]
        for index, day in enumerate(days):
            trial.write_day(day, FEWEST_ROWS, 1000 + number * publishers + index)
            for root in sorted(set(roots)):
                shutil.copyfile(trial.paths.features(day), DatasetPaths(root, DATASET).features(day))
        for queue, day in zip(queues, days, strict=True):
            queue.put((version, [day]))
        for error, retries, duration in (out.get(timeout=300) for _ in queues):
            counts["failed"] += bool(error)
            counts["retries"] += retries
            seconds.append(duration)
            if error:
                print(error, file=sys.stderr)
        published = sorted({*published, *days})
        counts += look(DATASET, tables, version, trial.ids(published))
    for queue in queues:
        queue.put(None)
    for process in processes:
        process.join(30)
    names = ("failed", "retries", "rows lost", "rows doubled", "rows that should not be there")
    checks = ("other model", "manifest differs", "contract differs")
    return {
        "trial": "publishers, one folder" if shared else _name(kind, store),
        "publishers": publishers,
        "rounds": rounds,
        **{name.replace(" ", "_"): counts[name] for name in (*names, *checks)},
        "median_s": round(sorted(seconds)[len(seconds) // 2], 2),
        "slowest_s": round(max(seconds), 2),
    }


def try_kills(root: Path, kind: str, kills: int) -> Row:
    """Kill processes that hold the lock of a dataset, and measure when another one has it that waits.

    Args:
        root: Data folder.
        kind: Kind of the locks, which the environment selects.
        kills: Number of kills.
    """
    lock, waits = dataset_lock(DatasetPaths(root, DATASET)), list[float]()
    for _ in range(kills):
        command = [sys.executable, "-c", HOLDER, str(root), DATASET]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            killed_at = list[float]()

            def kill(killed_at: list[float] = killed_at, process: Any = process) -> None:
                process.send_signal(signal.SIGKILL)
                killed_at.append(time.perf_counter())

            timer = threading.Timer(_WAIT_SECONDS, kill)  # this process waits by then
            timer.start()
            with locks().hold(lock):
                waits.append(time.perf_counter() - killed_at[0])
    return {"trial": f"kills of a holder, {kind} locks", "kills": kills, "slowest_s": round(max(waits), 3)}


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hosts", description=__doc__)
    parser.add_argument("--publishers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--kills", type=int, default=20)
    kinds = ["folder", "postgresql", "file"]
    parser.add_argument("--locks", nargs="+", default=kinds, choices=kinds)
    names = ["publishers", "kills"]
    parser.add_argument("--trials", nargs="+", default=names, choices=names, help="others keep their rows in the file")
    parser.add_argument("--store", default="s3", choices=list(STORES), help="API of the object store")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    results: list[Row] = json.loads(arguments.out.read_text())["rows"] if arguments.out.exists() else []

    def add(rows: Sequence[Row]) -> None:
        nonlocal results
        print(describe(rows), flush=True)
        kept = {f"kills of a holder, {kind} locks" for kind in kinds}
        kept |= {_name(kind, f"{scheme}://") for kind in kinds for scheme in STORES}
        kept = {*kept, "publishers, one folder"} - {row["trial"] for row in rows}
        results = [*(row for row in results if row["trial"] in kept), *rows]
        write_report(arguments.out, "hosts", results, ("deltalake", "obstore", "psycopg2-binary"))

    with tempfile.TemporaryDirectory() as name, STORES[arguments.store]() as server, postgres_server() as url:
        root = Path(name)
        os.environ.update(server.variables)
        store = server.make(BUCKET)
        trial = make(root / "trial") if "publishers" in arguments.trials else None
        for kind in arguments.locks:
            os.environ[LOCKS_VARIABLE] = url.render_as_string(hide_password=False) if kind == "postgresql" else "file"
            if trial:
                row = try_publishers(trial, kind, store, arguments.publishers, arguments.rounds)
                add([row if kind == "folder" else {**row, "server": server.name}])
            if "kills" in arguments.trials and kind != "folder":  # its locks are lock files as well
                add([try_kills(root / f"kills_{kind}", kind, arguments.kills)])


if __name__ == "__main__":
    main()
