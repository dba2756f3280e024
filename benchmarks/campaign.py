"""Kill, stop, terminate and reboot a running deployment, and count what was lost, doubled, promoted or left behind.

The deployment has a small sample of the flights. The servers of `ae-pipeline ui` and the commands are real processes.
After each case the dataset is brought up to date, and compared with what has landed. Several cases execute side by
side, each in a deployment of its own. The JSON file is written after each case, and `--resume` goes on from it.
"""

import argparse
import json
import multiprocessing
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from subprocess import SubprocessError
from typing import Any

from benchmarks.campaign_clock import clock_cases
from benchmarks.campaign_deployment import Case, Deployment, Outcome, first_traceback, kill_descendants
from benchmarks.campaign_faults import fault_cases
from benchmarks.campaign_stops import run_cases, stop_cases
from benchmarks.report import Row, format_table, write_report

FIGURES = ("lost", "doubled", "changed", "promoted", "blocked", "tracebacks", "leftovers", "late")
"""What each case counts; all must be 0."""

DAYS, ROWS = 28, 80
"""Landed days, and rows of each."""

_deployments: dict[str, Deployment] = {}
"""The deployment of this process, by its folder."""


def cases(kills: int, seed: int) -> list[Case]:
    """Return all cases."""
    return [*run_cases(), *fault_cases(), *clock_cases(), *stop_cases(kills, seed)]


def run_case(case: Case, deployment: Deployment) -> dict[str, Any]:
    """Run a case, then the rest of its work, and return what was found as a row."""
    deployment.begin(case.state)
    outcome, finished, failed = Outcome(), "", ""
    try:
        outcome = case.run(deployment)
        finished = deployment.finish()
    except (RuntimeError, OSError, SubprocessError, AssertionError, LookupError, ValueError) as error:
        failed = f"; {type(error).__name__}: {error}"
        kill_descendants()
    counts, left = dict.fromkeys(FIGURES, 0), deployment.leftovers()
    note = outcome.note + failed + first_traceback(finished) + (f"; left: {', '.join(left)}" if left else "")
    further = {
        "tracebacks": finished.count("Traceback"),
        "leftovers": len(left),
        "blocked": len(deployment.active_runs()) + bool(failed),
    }
    for part in (outcome.counts, further, {} if failed else deployment.compare()):
        for figure, count in part.items():
            counts[figure] += count
    return {"case": case.name, "note": note, "seconds": round(outcome.seconds, 1), **counts}


def _run_named(name: str, kills: int, seed: int, folder: str) -> dict[str, Any]:
    """Run a case in this process of the pool, which has a deployment of its own."""
    if folder not in _deployments:
        _deployments[folder] = Deployment(Path(tempfile.mkdtemp(dir=folder)) / "deployment", DAYS, ROWS)
    (case,) = (each for each in cases(kills, seed) if each.name == name)
    return run_case(case, _deployments[folder])


def _rows_so_far(path: Path) -> dict[str, dict[str, Any]]:
    return {row["case"]: row for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign, print and write its table; return 1 if a figure is not 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file for the table, written after each case")
    parser.add_argument("--resume", action="store_true", help="keep the cases that the file has, and run the others")
    parser.add_argument("--again", action="store_true", help="with --resume: run the cases of --only again")
    parser.add_argument("--jobs", type=int, default=2, help="cases that run side by side; 2 by default")
    parser.add_argument("--kills", type=int, default=60, help="number of signals to a command; 60 by default")
    parser.add_argument("--only", default="", help="run the cases whose name matches this regular expression")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments of the kills")
    chosen = parser.parse_args(arguments)
    if chosen.resume and not chosen.out:
        parser.error("--resume needs --out, the file to go on from")
    by_name = _rows_so_far(chosen.out) if chosen.resume and chosen.out.exists() else {}
    names = [case.name for case in cases(chosen.kills, chosen.seed)]
    due = [name for name in names if re.search(chosen.only, name) and (chosen.again or name not in by_name)]
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        # In sessions of their own, processes of the cases do not see a Ctrl-C that stops the campaign.
        ProcessPoolExecutor(chosen.jobs, context, initializer=os.setsid) as pool,
    ):
        futures = [pool.submit(_run_named, name, chosen.kills, chosen.seed, folder) for name in due]
        try:
            for future in as_completed(futures):
                row = future.result()
                by_name[row["case"]] = row
                print(row, flush=True)
                if chosen.out:
                    write_report(chosen.out, "campaign", _sorted(by_name, names), ("dagster", "mlflow", "deltalake"))
        finally:
            pool.shutdown(cancel_futures=True)  # otherwise an error waits until all cases have run
    rows = _sorted(by_name, names)
    header = ("case", "note", "seconds", *FIGURES)
    print("\n" + format_table(header, [[str(row[column]) for column in header] for row in rows]))
    return int(any(row[figure] for row in rows for figure in FIGURES))


def _sorted(by_name: dict[str, dict[str, Any]], names: list[str]) -> list[Row]:
    return [by_name[name] for name in names if name in by_name]


if __name__ == "__main__":
    sys.exit(main())
