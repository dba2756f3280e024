"""Damage each kind of state, and see whether it is served, found and repaired.

A small dataset is published. In each case one file of its state is truncated, overwritten with noise, deleted, or gets
one flipped bit, with its modification time kept. Then `ae-pipeline run` runs, then the command that its message names
if it failed, then `ae-pipeline run` again. The latent table is compared with the undamaged one after each step.
"""

import argparse
import contextlib
import io
import itertools
import json
import multiprocessing
import os
import random
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from benchmarks.report import Row, format_table, write_report

DATASET = "orders"
DAMAGES = ("truncated", "garbled", "deleted", "flipped")

_COMMAND = re.compile(r"`ae-pipeline ((?:doctor|run|rollback)[^`]*)`")


@dataclass(frozen=True)
class Kind:
    """A kind of state.

    Attributes:
        name: Name of the kind.
        pattern: Files of the project that belong to it; the first one, in the order of names, is damaged.
        newest: Whether to damage the last one instead.
    """

    name: str
    pattern: str
    newest: bool = False

    def file(self, project: Path) -> Path:
        """Return the file of a project that is damaged."""
        files = sorted(path for path in project.glob(self.pattern) if path.is_file())
        if not files:
            raise FileNotFoundError(f"no file of {project} matches {self.pattern}")
        return files[-1 if self.newest else 0]


KINDS = (
    Kind("ledger", f"data/staging/{DATASET}/ledger.json"),
    Kind("staged copy", f"data/staging/{DATASET}/files/*.parquet"),
    Kind("moved identities", f"data/staging/{DATASET}/moved.json"),
    Kind("quarantine", f"data/quarantine/{DATASET}/*.parquet"),
    Kind("raw_data", f"data/raw/{DATASET}/*.parquet"),
    Kind("features", f"data/features/{DATASET}/*.parquet"),
    Kind("schema contract", f"data/contracts/{DATASET}.yaml"),
    Kind("latent file", f"data/latents/{DATASET}/v*/*/*.parquet"),
    Kind("newest commit", f"data/latents/{DATASET}/_delta_log/*.json", newest=True),
    Kind("first commit", f"data/latents/{DATASET}/_delta_log/*.json"),
    Kind("data contract", f"data/latents/{DATASET}/_contract/contract.yaml"),
    Kind("list of files", f"data/latents/{DATASET}/_symlink_format_manifest/manifest"),
    Kind("digests of the table", f"data/latents/{DATASET}/_contract/digests.json"),
    Kind("weights", "mlruns/artifacts/**/bundle/weights.safetensors"),
    Kind("manifest", "mlruns/artifacts/**/bundle/bundle.json"),
    Kind("model store", "mlruns/mlflow.db"),
    Kind("Dagster's runs", "dagster_home/history/runs.db"),
    Kind("Dagster's events", "dagster_home/history/runs/index.db"),
    Kind("Dagster's schedules", "dagster_home/schedules/schedules.db"),
    Kind("history", f"data/history/{DATASET}.jsonl"),
    Kind("alerts", f"data/history/{DATASET}.alerts.jsonl"),
    Kind("report page", f"data/reports/{DATASET}/report.html"),
    Kind("report context", f"data/reports/{DATASET}/report.context.json"),
    Kind("summary", f"data/reports/{DATASET}/summary.json"),
    Kind("drift", f"data/reports/{DATASET}/drift.parquet"),
    Kind("anomalies", f"data/reports/{DATASET}/alerts.parquet"),
    Kind("ranked day", f"data/reports/{DATASET}/days/*.parquet"),
    Kind("day page", f"data/reports/{DATASET}/days/*.html"),
    Kind("script cache", "data/cache/*.js"),
)


def damage(path: Path, how: str, seed: int) -> None:
    """Damage a file.

    Args:
        path: File to damage.
        how: One of `DAMAGES`.
        seed: Seed of the noise and of the position of a flipped bit.
    """
    rng, stat = random.Random(seed), path.stat()
    content = bytearray(path.read_bytes())
    match how:
        case "truncated":
            content = content[: len(content) * 2 // 3]
        case "garbled":
            content = bytearray(rng.randbytes(len(content)))
        case "deleted":
            path.unlink()
            return
        case _:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


class Project:
    """A project with the dataset `orders`, in a folder that stays the same, because databases contain its path.

    Args:
        root: Folder for the project and its undamaged copy.
    """

    def __init__(self, root: Path) -> None:
        self.folder, self._copy = root / "project", root / "copy"

    def prepare(self) -> None:
        """Land files, publish them, write a page of a day and an alert, and keep a copy."""
        from tests.support.shop import DAYS, orders_csv

        landing = self.folder / "data" / "landing" / DATASET
        landing.mkdir(parents=True)
        for index, day in enumerate(DAYS):
            text = orders_csv(day) + (f",{day}T01:00:00Z,1,DE,1\n" if index < 2 else "")  # without an identity
            path = landing / f"orders_{day}.csv"
            path.write_text(text, encoding="utf-8")
            os.utime(path, (time.time() - 7200 + index,) * 2)
        home = self.folder / "dagster_home"
        home.mkdir()
        (home / "dagster.yaml").write_text(yaml.safe_dump({"telemetry": {"enabled": False}}))
        for arguments in (["run", DATASET], ["page", DATASET, DAYS[0]], ["run", DATASET]):
            code, output = self.call(arguments)
            if code:
                raise RuntimeError(f"{arguments} failed: {output}")
        alerts = self.folder / "data" / "history" / f"{DATASET}.alerts.jsonl"
        if not alerts.exists():
            self._in_process(_raise_alert, self.folder)
        shutil.copytree(self.folder, self._copy)

    def restore(self) -> None:
        """Restore the undamaged project."""
        shutil.rmtree(self.folder)
        shutil.copytree(self._copy, self.folder)

    def call(self, arguments: Sequence[str]) -> tuple[int, str]:
        """Run `ae-pipeline` in a process of its own, and return exit status and output."""
        answer: tuple[int, str] = self._in_process(_main, list(arguments))
        return answer

    def table(self) -> pl.DataFrame | str:
        """Return the rows of the table without model version and latent space, or why they cannot be read."""
        answer: pl.DataFrame | str = self._in_process(_read_table, self.folder / "data")
        return answer

    def _in_process(self, function: Callable[[Any], Any], argument: Any) -> Any:
        """Call a function in a process that is forked, so that it need not import everything again."""
        environment = {
            "DAGSTER_HOME": str(self.folder / "dagster_home"),
            "AE_PIPELINE_DATA": str(self.folder / "data"),
            "AE_PIPELINE_MLRUNS": str(self.folder / "mlruns"),
        }
        context = multiprocessing.get_context("fork")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_send, args=(sender, function, argument, environment))
        process.start()
        sender.close()
        try:
            answer = receiver.recv()
        except EOFError:
            answer = (-1, "Traceback: the process died")
        process.join()
        return answer


def _send(sender: Any, function: Callable[[Any], Any], argument: Any, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    sender.send(function(argument))
    sender.close()


def _main(arguments: list[str]) -> tuple[int, str]:
    from ae_pipeline.cli.main import main

    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            code = main(arguments)
        except BaseException:  # noqa: BLE001 - every traceback counts
            traceback.print_exc(file=output)
            code = -1
    return code, output.getvalue()


def _raise_alert(folder: Path) -> None:
    from ae_pipeline.monitoring.alerts import Alert, AlertEvent
    from ae_pipeline.storage.jsonl import add_line

    alert = Alert(event=AlertEvent.RUN_FAILED, key="an example", message="an example")
    add_line(folder / "data" / "history" / f"{DATASET}.alerts.jsonl", alert.record())


def _read_table(data: Path) -> pl.DataFrame | str:
    from ae_pipeline.common.errors import PipelineError
    from ae_pipeline.latents.read import read_latents

    try:
        rows = read_latents(DATASET, data=data).polars()
    except PipelineError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - readers may fail on a damaged table, and must not return wrong rows
        return f"{type(error).__name__}: {error}"
    return rows.drop("model_version", "latent_space").sort("row_id")


@contextlib.contextmanager
def definitions() -> Iterator[None]:
    """Let the command line load a project with the dataset `orders`, whose folders are in the environment."""
    import dagster as dg
    from dagster.components.testing import create_defs_folder_sandbox

    import ae_pipeline.cli.project
    from ae_pipeline.config.pipeline import PipelineConfig
    from ae_pipeline.orchestration import console
    from ae_pipeline.orchestration.component import AutoencoderPipeline
    from ae_pipeline.orchestration.defs_folder import DefsFolder
    from ae_pipeline.orchestration.resources import RunLock, Workspace
    from tests.support.shop import ATTRIBUTES

    component = f"{AutoencoderPipeline.__module__}.{AutoencoderPipeline.__name__}"
    yaml_file = {"type": component, "attributes": {**ATTRIBUTES, "max_quarantine_share": 0.5}}
    with create_defs_folder_sandbox() as sandbox:
        sandbox.scaffold_component(component_cls=AutoencoderPipeline, defs_path=DATASET, defs_yaml_contents=yaml_file)
        with sandbox.build_all_defs() as built:

            def load() -> DefsFolder:
                workspace = Workspace(
                    data_folder=os.environ["AE_PIPELINE_DATA"], mlflow_folder=os.environ["AE_PIPELINE_MLRUNS"]
                )
                resources = dg.Definitions(
                    resources={"workspace": workspace, "run_lock": RunLock(workspace=workspace)},
                    executor=dg.in_process_executor,
                    loggers={"console": console.line_logger},
                )
                config = PipelineConfig.model_validate(yaml_file["attributes"])
                return DefsFolder(dg.Definitions.merge(built, resources), {DATASET: config})

            original = ae_pipeline.cli.project.load_folder
            ae_pipeline.cli.project.load_folder = load
            try:
                yield
            finally:
                ae_pipeline.cli.project.load_folder = original


def run_case(project: Project, kind: Kind, how: str, expected: pl.DataFrame, seed: int) -> Row:
    """Damage one kind of state, run what a person would run, and return what happened."""
    project.restore()
    path = kind.file(project.folder)
    damage(path, how, seed)
    steps: list[str] = []
    outputs: list[str] = []
    is_wrong = False

    def call(arguments: Sequence[str]) -> tuple[int, str]:
        nonlocal is_wrong
        code, output = project.call(arguments)
        steps.append(f"{arguments[0]} {code}")
        outputs.append(output)
        table = project.table()
        # A table that cannot be read is not served; one with other rows is, if the command said that all is well.
        is_wrong = is_wrong or (code == 0 and isinstance(table, pl.DataFrame) and not table.equals(expected))
        return code, output

    code, output = call(["run", DATASET])
    if code:
        named = [match[1] for match in _COMMAND.finditer(output)]
        command = next((each for each in named if each.startswith("doctor")), named[0] if named else "")
        if command:
            call(command.replace("…", "damage").split())
        code, output = call(["run", DATASET])
    table = project.table()
    same = isinstance(table, pl.DataFrame) and table.equals(expected)
    checked, examination = project.call(["doctor", DATASET])
    if checked:  # such as a damaged version that no longer serves
        steps.append("doctor")
        project.call(["doctor", DATASET, "--repair"])
        checked, examination = project.call(["doctor", DATASET])
    return {
        "state": kind.name,
        "damage": how,
        "steps": ", ".join(steps),
        "served_wrong": is_wrong,
        "traceback": any("Traceback" in output for output in outputs),
        "repaired": code == 0,
        "same_table": same,
        "whole": checked == 0,
        "message": _message(outputs[0]) if steps[0] != "run 0" else "",
        "left": "" if checked == 0 else examination.strip()[-400:],
    }


def _message(output: str) -> str:
    lines = [line for line in output.strip().splitlines() if re.match(r"\w*Error: ", line)]
    return (lines or output.strip().splitlines()[-1:] or [""])[-1][:300]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases and print a table; the exit status is 1 if a case misses the goal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", help="kinds of state, separated by commas; all by default")
    parser.add_argument("--damages", help="damages, separated by commas; all by default")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    names = options.kinds.split(",") if options.kinds else [kind.name for kind in KINDS]
    damages = options.damages.split(",") if options.damages else DAMAGES
    rows = measure([kind for kind in KINDS if kind.name in names], damages)
    header = ("state", "damage", "steps", "served_wrong", "traceback", "repaired", "same_table", "whole")
    print(format_table(header, [[str(row[name]) for name in header] for row in rows]))
    missed = [row for row in rows if is_missed(row)]
    print(f"{len(rows)} cases, {len(missed)} missed the goal.")
    if options.out:
        write_report(options.out, "corruption", rows)
    return 1 if missed else 0


def is_missed(row: Row) -> bool:
    """Return whether a case was served wrong, ended in a traceback, or was not repaired with the same table."""
    return bool(row["served_wrong"] or row["traceback"]) or not (row["repaired"] and row["same_table"] and row["whole"])


def measure(kinds: Sequence[Kind], damages: Sequence[str], root: Path | None = None) -> list[Row]:
    """Return the result of each case.

    Args:
        kinds: Kinds of state to damage.
        damages: How to damage them.
        root: Folder for the project; a temporary one by default.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as temporary, definitions():
        import altair  # noqa: F401 - before the processes fork, so that each of them need not import it
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
        import sklearn.ensemble  # noqa: F401

        import ae_pipeline.cli.doctor
        import ae_pipeline.cli.summary
        import ae_pipeline.latents.read
        import ae_pipeline.lifecycle.train
        import ae_pipeline.orchestration.runs  # noqa: F401

        project = Project(root or Path(temporary))
        project.prepare()
        expected = project.table()
        if isinstance(expected, str):
            raise TypeError(expected)
        rows = []
        for seed, (how, kind) in enumerate(itertools.product(damages, kinds)):
            started = time.monotonic()
            row = run_case(project, kind, how, expected, seed)
            rows.append(row)
            verdict = "MISSED" if is_missed(row) else "ok"
            line = json.dumps({**row, "seconds": round(time.monotonic() - started)}, ensure_ascii=False)
            print(f"{verdict:<7}{line}", file=sys.stderr, flush=True)
        return rows


if __name__ == "__main__":
    sys.exit(main())
