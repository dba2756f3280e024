"""A whole deployment on several hosts, with all its real parts on this machine, beside the embedded setup.

PostgreSQL has Dagster's storage, the locks and the database of MLflow's server. moto's server, with the API of S3, has
the data, the models and the logs of runs. Dagster's code server and daemon are processes of their own. Each run is a
process with an empty data folder and, where the system allows it, a host name of its own.

In the trial `hosts`, 100 days of flights land as objects. The sensors request runs over ranges of days, which work
side by side. Then a training is launched, and the sensor publishes. `ae-pipeline run` does the same in a folder. The
files of raw rows, features and the latent table must have the same names and bytes. The trial `kills` kills holders of
the lock and runs of each job in that deployment. The trial `processes` does all of it with Dagster's default launcher,
whose runs are processes of the code server. The trial `ray` kills a node of a Ray cluster while it scores.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ae_pipeline.cli.demo import land_flights
from ae_pipeline.storage.location import DATA_VARIABLE
from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.storage.project import DEFS_VARIABLE
from benchmarks.hosts_control import DATASET, Control, as_figures
from benchmarks.hosts_deployment_kills import Kills
from benchmarks.hosts_look import describe
from benchmarks.hosts_ray import RayCluster, enter_own_network, has_own_network, kill_nodes
from benchmarks.hosts_stack import clean_environment, copy_instance, program, running_stack, write_datasets
from benchmarks.hosts_store import built, flights_attributes
from benchmarks.report import Row, write_report

_SLOWEST = ("next_run_slowest_s", "same_work_slowest_s")
_SUMMED = (
    *("killed_at_work", "ended_before_the_kill", "rows_lost", "rows_doubled", "rows_that_should_not_be_there"),
    *("other_model", "manifest_differs", "contract_differs", "files_that_differ"),
)
"""Figures of the kills of all trials."""

_RANGES = {"days_per_run": 31, "runs_at_once": 4}


@dataclass(frozen=True)
class Embedded:
    """What the embedded setup has made of the landed files.

    Attributes:
        root: Folder with its data.
        seconds: Time of `ae-pipeline run`.
    """

    root: Path
    seconds: float

    @property
    def paths(self) -> DatasetPaths:
        """Paths of the dataset."""
        return DatasetPaths(self.root / "data", DATASET)


def run_embedded(root: Path, attributes: Mapping[str, Any], landed: Sequence[Path]) -> Embedded:
    """Let files land in a folder, and bring it up to date by `ae-pipeline run`."""
    landing = DatasetPaths(root / "data", DATASET).landing
    landing.mkdir(parents=True)
    for path in landed:
        (landing / path.name).write_bytes(path.read_bytes())
    variables = {
        **clean_environment(),
        DEFS_VARIABLE: str(write_datasets(root, attributes)),
        DATA_VARIABLE: str(root / "data"),
        "AE_PIPELINE_MLRUNS": str(root / "models"),
        "DAGSTER_HOME": str(root / "home"),
    }
    copy_instance(root / "home")
    began = time.perf_counter()
    command = [program("ae-pipeline"), "run", DATASET]
    done = subprocess.run(command, env=variables, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return Embedded(root, time.perf_counter() - began)


def try_ranges(control: Control, landed: Sequence[Path], embedded: Embedded, launcher: str) -> Row:
    """Let all days land, train and publish, and compare the result with that of the embedded setup.

    Args:
        control: The deployment.
        landed: Landed files.
        embedded: What the embedded setup has made of them.
        launcher: How runs are launched, for the name of the trial.
    """
    control.land(landed)
    built_seconds = control.settle()
    control.launch("train")
    control.wait_for("train", 0.0)
    published_seconds = control.settle()
    counts = control.compare(embedded.paths, with_table=True)
    return {
        "trial": f"ranges, {launcher}",
        "days": len(landed),
        "runs": len(control.runs()),
        "ranges": len(control.runs("ingest")),
        "ranges_at_once": control.at_once("ingest"),
        "failed_runs": control.failed(),
        "files": len(built(embedded.paths)),
        **as_figures(counts),
        "metadata_of_one_host": control.local_metadata(),
        "built_s": round(built_seconds, 1),
        "trained_and_published_s": round(published_seconds, 1),
        "embedded_s": round(embedded.seconds, 1),
    }


def all_kills(rows: Sequence[Row]) -> Row:
    """Return the sum of the trials that kill."""
    trials = [row for row in rows if str(row["trial"]) in {"kills, hosts", "kills, processes", "kills, ray"}]
    slowest = {name: max((float(row.get(name, 0.0)) for row in trials), default=0.0) for name in _SLOWEST}
    summed = {name: sum(int(row.get(name, 0)) for row in trials) for name in _SUMMED}
    return {"trial": "kills, all", **summed, **slowest}


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hosts_deployment", description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="part of the kills")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    names = ("hosts", "kills", "processes", "ray")
    parser.add_argument("--trials", nargs="+", default=names, choices=names, help="others keep their rows in the file")
    parser.add_argument("--days", type=int, default=100, help="days that land; at least 40")
    parser.add_argument("--keep", type=Path, help="folder to work in, which stays")
    options = parser.parse_args()
    if "ray" in options.trials:
        enter_own_network()
        if not has_own_network():
            print("Ray will listen on the address of this machine, with a token, for lack of a network of its own")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that the servers end as well
    results: list[Row] = json.loads(options.out.read_text())["rows"] if options.out and options.out.exists() else []
    packages = ["dagster", "dagster-postgres", "mlflow", "moto", "obstore", "psycopg2-binary", "ray"]

    def add(rows: Sequence[Row]) -> None:
        nonlocal results
        print(describe(rows), flush=True)
        new = {row["trial"] for row in rows}
        results = [*(row for row in results if row["trial"] not in new), *rows]
        if options.out:
            write_report(options.out, "hosts_deployment", results, packages)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        root = options.keep or Path(name)
        land_flights(root / "landed")
        landed = sorted((root / "landed").iterdir())[: options.days]
        whole = {**flights_attributes(), "training": {"epochs": 2}}
        cut = {**whole, "scale": _RANGES}
        embedded = run_embedded(root / "embedded", cut, landed)
        launchers = {"hosts": "kills" in options.trials, "processes": "processes" in options.trials}
        for launcher, is_killed in launchers.items():
            if is_killed or launcher in options.trials:
                rounds = max(1, round({"hosts": 3, "processes": 1}[launcher] * options.share))
                with running_stack(root / launcher, cut, launcher) as stack:
                    control = Control(stack, cut)
                    add([try_ranges(control, landed, embedded, launcher)])
                    if is_killed:
                        add(Kills(stack, control, root / f"local_{launcher}", whole, landed).run(rounds))
        if "ray" in options.trials:
            clusters: list[RayCluster] = []
            with running_stack(
                root / "ray", cut, "hosts", lambda variables: RayCluster.running(root / "cluster", variables, clusters)
            ) as stack:
                kills = max(1, round(6 * options.share))
                add(kill_nodes(Control(stack, cut), clusters[0], landed, embedded.paths, kills))
        add([all_kills(results)])


if __name__ == "__main__":
    main()
