"""Runs of several hosts with one dataset in an object store: ranges side by side, and interrupted runs of each job.

The object store is moto's server with the API of S3, and PostgreSQL has the locks, on this machine. A host is a process
with an empty working copy, which executes one run of Dagster. It has imported its libraries before the clock starts.

In the first trial, 100 days of flights land as objects. The sensor requests a run for each month, and all of them work
at the same time. One run over all days does the same, once in an object store and once in a folder. The files of raw
rows and features must have the same names and bytes. In the other trials, a host is killed at a random time while it
builds ranges beside another host, trains, or publishes. The next run, on an empty host, must end the work.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ae_pipeline.cli.demo import land_flights
from ae_pipeline.storage.lock_kinds import LOCKS_VARIABLE
from benchmarks.hosts_kills import Kills
from benchmarks.hosts_look import describe
from benchmarks.hosts_site import Site, context
from benchmarks.hosts_store import BUCKET, built, flights_attributes, rows_of
from benchmarks.report import Row, write_report
from benchmarks.stores import postgres_server, s3_environment, s3_request, s3_server


def try_ranges(root: Path, files: Sequence[Path]) -> Row:
    """Build the days of flights in one run for each month at the same time, and in one run over all days.

    Args:
        root: Folder for working copies.
        files: Landed files.
    """
    whole = flights_attributes()
    cut = {**whole, "scale": {"days_per_run": 31, "runs_at_once": 64}}
    folder = Site(root / "folder", whole, str(root / "folder" / "data"))
    one = Site(root / "one", whole, f"s3://{BUCKET}/one")
    many = Site(root / "many", cut, f"s3://{BUCKET}/many")
    seconds = dict[str, float]()
    for name, site in (("folder", folder), ("one_run", one)):
        site.land(files)
        site.run("first", "intake")
        (request,) = site.ranges()
        seconds[name] = site.run("second", "ingest", request.tags)
    many.land(files)
    many.run("first", "intake")
    requests = many.ranges()
    begin = context.Event()
    hosts = [many.start(f"range_{number}", "ingest", each.tags, begin) for number, each in enumerate(requests)]
    began = time.perf_counter()
    begin.set()
    for host in hosts:
        host.join()
    seconds["at_once"] = time.perf_counter() - began
    expected, paths = folder.dataset().paths, many.dataset().paths
    identities, rows = rows_of(expected), rows_of(paths)
    return {
        "trial": "ranges side by side",
        "days": len(files),
        "hosts": len(hosts),
        "failed": sum(host.exitcode != 0 for host in hosts),
        "rows_lost": len(identities.keys() - rows.keys()),
        "rows_doubled": sum(count > 1 for count in rows.values()),
        "files": len(built(expected)),
        "files_that_differ": len(set(built(expected).items()) ^ set(built(paths).items())),
        "files_of_one_run_that_differ": len(set(built(expected).items()) ^ set(built(one.dataset().paths).items())),
        "requests_left": len(many.ranges()),
        **{f"{name}_s": round(value, 1) for name, value in seconds.items()},
    }


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hosts_runs", description=__doc__)
    parser.add_argument("--days", type=int, default=100, help="days of flights")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    names = ("ranges", "kills_of_ranges", "kills_of_trainings", "kills_of_publications")
    parser.add_argument("--trials", nargs="+", default=names, choices=names, help="others keep their rows in the file")
    options = parser.parse_args()
    heavy = ["benchmarks.hosts_runs", "ae_pipeline.lifecycle.publish", "ae_pipeline.lifecycle.train", "mlflow"]
    context.set_forkserver_preload([*heavy, "ae_pipeline.lifecycle.report"])
    results: list[Row] = json.loads(options.out.read_text())["rows"] if options.out and options.out.exists() else []
    with tempfile.TemporaryDirectory() as name, s3_server() as port, postgres_server() as url:
        root = Path(name)
        os.environ.update(s3_environment(port))
        os.environ.update({LOCKS_VARIABLE: url.render_as_string(hide_password=False)})
        assert s3_request(port, "PUT", f"/{BUCKET}") == 200
        land_flights(root / "landed")
        files = sorted((root / "landed").iterdir())
        kills = Kills(root, files, options.kills)
        trials: dict[str, Callable[[], Row]] = {
            "ranges": partial(try_ranges, root, files[: options.days]),
            "kills_of_ranges": kills.of_ranges,
            "kills_of_trainings": kills.of_trainings,
            "kills_of_publications": kills.of_publications,
        }
        for trial in options.trials:
            row = trials[trial]()
            print(describe([row]), flush=True)
            results = [*(each for each in results if each["trial"] != row["trial"]), row]
            if options.out:
                write_report(options.out, "hosts_runs", results, ("obstore", "moto", "psycopg2-binary"))


if __name__ == "__main__":
    main()
