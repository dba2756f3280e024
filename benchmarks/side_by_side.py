"""The report beside that of Evidently, on the same year of flights: time to make, size, time to open, and answers.

Both reports are made from the features of a dataset that `make run` has brought up. Evidently compares the days after
the training window with the window. It runs in an environment of its own, because it needs other versions of packages:

    python -m venv evidently && evidently/bin/pip install evidently "pandas<3" pyarrow
    python -m benchmarks.side_by_side flights --evidently evidently/bin/python

A question counts as answered if the visible text of the page has the part that answers it. The parts are below, so that
everybody can check them.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ae_pipeline.cli.project import Project
from ae_pipeline.latents.read import published_days
from ae_pipeline.lifecycle.publish import load_table_model
from ae_pipeline.reports.build import build_report
from benchmarks.report import Row, format_table, write_report

_EVIDENTLY = """
import json, sys, time
started = time.monotonic()
import pandas as pd
from importlib.metadata import version
from evidently import Report
from evidently.presets import DataDriftPreset, DataSummaryPreset
imported = time.monotonic()
task = json.loads(sys.stdin.read())
read = lambda paths: pd.concat([pd.read_parquet(path) for path in paths]).drop(columns=["row_id"])
window, days = read(task["window"]), read(task["days"])
loaded = time.monotonic()
snapshot = Report([DataDriftPreset(), DataSummaryPreset()]).run(days, window)
snapshot.save_html(task["page"])
print(json.dumps({"make": time.monotonic() - loaded, "load": loaded - imported, "import": imported - started,
                  "version": version("evidently"), "rows": len(days), "reference": len(window)}))
"""

QUESTIONS: dict[str, tuple[str, str]] = {
    "Are the newest days like the training window?": ("Days after the training window", "Dataset Drift"),
    "Which columns have drifted?": ("Column drift", "Data Drift Summary"),
    "How are the values of each column distributed?": ("", "most common"),
    "Are values missing?": ("Completeness", "missing"),
    "Are rows missing?": ("are usual on this weekday", ""),
    "On which days of the year was something wrong?": ("Days to look at first", ""),
    "Which rows are anomalous?": ("Most anomalous rows", ""),
    "Why is a row anomalous?": ("because", ""),
    "What do anomalous rows have in common?": ("Causes", ""),
    "Does one entity come again and again?": ("Entities with several flagged rows", ""),
    "Which model scored the rows, and is it calibrated?": ("Calibration", ""),
    "Who was alerted of what?": ("Alerts", ""),
}
"""Each question, with the text that answers it on our page and on Evidently's; empty if nothing does."""


def main() -> int:
    """Make both reports, measure them, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="a dataset with a published table")
    parser.add_argument("--evidently", type=Path, required=True, help="Python of an environment with Evidently")
    parser.add_argument("--out", type=Path, help="file for the results, JSON")
    options = parser.parse_args()
    project = Project.load(opens_instance=False)
    with TemporaryDirectory() as folder:
        pages = {"ae-pipeline": _ours(project, options.dataset)}
        pages["Evidently"] = _evidently(project, options.dataset, options.evidently, Path(folder) / "evidently.html")
        rows: list[Row] = []
        for name, (page, facts) in pages.items():
            opened = _open(page, 0 if name == "ae-pipeline" else 1)
            rows.append({"report": name, **facts, "bytes": page.stat().st_size, **opened})
    header = ["", *(str(row["report"]) for row in rows)]
    shown = [(str(key), *(str(row.get(key, "")) for row in rows)) for key in rows[0] if key != "report"]
    sys.stdout.write(format_table(header, shown) + "\n")
    if options.out:
        write_report(options.out, "side_by_side", rows, packages=["vl-convert-python", "altair"])
    return 0


def _ours(project: Project, name: str) -> tuple[Path, dict[str, Any]]:
    """Make the page over all published days, and rank the newest one: the others are ranked, as every morning."""
    dataset = project.dataset(name)
    version, bundle = load_table_model(dataset, project.tracker)
    days = sorted(published_days(dataset.paths))
    started = time.monotonic()
    report = build_report([days[-1]], dataset, bundle, version.version, version.run_id)
    seconds = time.monotonic() - started
    rows = json.loads(report.summary.read_text(encoding="utf-8"))["rows"]
    return report.page, {"version": "", "rows": rows, "days": len(days), "make_seconds": round(seconds, 1)}


def _evidently(project: Project, name: str, python: Path, page: Path) -> tuple[Path, dict[str, Any]]:
    dataset = project.dataset(name)
    _, bundle = load_table_model(dataset, project.tracker)
    last = bundle.window.days[-1]
    days = sorted(published_days(dataset.paths))
    task = {
        "window": [str(dataset.paths.features(day)) for day in days if day <= last],
        "days": [str(dataset.paths.features(day)) for day in days if day > last],
        "page": str(page),
    }
    done = subprocess.run(
        [python, "-W", "ignore", "-c", _EVIDENTLY],
        input=json.dumps(task),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "DO_NOT_TRACK": "1", "PYTHONPATH": ""},
    )
    facts = json.loads(done.stdout.splitlines()[-1])
    return page, {
        "version": facts["version"],
        "rows": facts["rows"] + facts["reference"],
        "days": len(days),
        "make_seconds": round(facts["make"], 1),
    }


def _open(page: Path, index: int) -> dict[str, Any]:
    """Open a page in a browser three times, and return the times, its height and the questions that it answers."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("there is no chromium; install it")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        seconds = []
        for _ in range(3):
            view = browser.new_page(viewport={"width": 1280, "height": 900})
            view.set_default_timeout(120_000)
            started = time.monotonic()
            view.goto(page.as_uri())
            view.wait_for_function("document.querySelectorAll('svg, canvas').length > 3")
            view.wait_for_load_state("networkidle")
            seconds.append(time.monotonic() - started)
            height = view.evaluate("document.documentElement.scrollHeight")
            text = view.inner_text("body")
            view.close()
        browser.close()
    answers = {question: bool(parts[index]) and parts[index] in text for question, parts in QUESTIONS.items()}
    return {
        "open_seconds": round(min(seconds), 2),
        "height_pixels": height,
        "answered": sum(answers.values()),
        **{question: "yes" if answer else "no" for question, answer in answers.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
