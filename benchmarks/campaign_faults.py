"""Cases of `benchmarks.campaign`: full disks, read-only folders, locked databases, and runs side by side.

Disks are file systems in memory, which only root can mount; without it these cases are left out and say so.
"""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path

from benchmarks.campaign import DATASET, Case, Deployment, Outcome

FOLDERS = {"data": "AE_PIPELINE_DATA", "mlruns": "AE_PIPELINE_MLRUNS", "home": "DAGSTER_HOME"}
"""Folders of a deployment, and the variable that each has in messages."""

MOMENTS = (
    ("data", 0),
    ("data", 8),
    ("data", 32),
    ("data", 128),
    ("mlruns", 0),
    ("mlruns", 64),
    ("mlruns", 256),
    ("home", 0),
    ("home", 64),
    ("home", 256),
)
"""Folder whose disk gets full, and the space that is left before in kB: each ends a run at another moment."""

DATABASES = ("mlruns/mlflow.db", "home/history/runs.db", "home/history/runs/index.db")

_SPARE_KB = 64_000
"""Size of a disk beyond the files on it, in kB."""


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


Fault = Callable[[Path], AbstractContextManager[None]]
"""A fault that lasts while its context does, of a deployment in a folder."""


@contextlib.contextmanager
def _small_disk(folder: Path, free_kb: int) -> Iterator[None]:
    """Move a folder to a disk of its own that has some space left, and back to its place afterwards."""
    aside = folder.with_name(f"{folder.name}.aside")
    folder.rename(aside)
    folder.mkdir()
    used = sum(path.lstat().st_size for path in aside.rglob("*")) // 1024
    _mount("-t", "tmpfs", "-o", f"size={2 * used + _SPARE_KB}k", "tmpfs", str(folder))
    try:
        shutil.copytree(aside, folder, symlinks=True, dirs_exist_ok=True)
        fill = folder / "fill"
        with fill.open("wb") as file, contextlib.suppress(OSError):
            file.write(b"\0" * max(shutil.disk_usage(folder).free - free_kb * 1024, 0))
        yield
        fill.unlink()
    finally:
        shutil.rmtree(aside)
        shutil.copytree(folder, aside, symlinks=True)
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()
        aside.rename(folder)


@contextlib.contextmanager
def _read_only(folder: Path) -> Iterator[None]:
    _mount("--bind", str(folder), str(folder))
    _mount("-o", "remount,ro,bind", str(folder))
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def _locked(database: Path) -> Iterator[None]:
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield


def _land_change(deployment: Deployment) -> None:
    """Change a number in several landed files, so that each stage has work."""
    for path in sorted((deployment.root / "data" / "landing" / DATASET).iterdir())[-12:]:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        head, *fields = lines[0].rstrip().split(","), *(line.rstrip().split(",") for line in lines[1:])
        column = head.index("distance")
        for values in fields:
            values[column] = str(int(float(values[column] or 0)) + 1)
        path.write_text("\n".join(",".join(values) for values in (head, *fields)) + "\n", encoding="utf-8")
        future = time.time() + 1
        os.utime(path, (future, future))


def _case_under(fault: Fault, names: tuple[str, ...]) -> Case:
    """Return a case that runs the dataset while a fault lasts. A run may succeed if it never met the fault.

    Args:
        fault: Makes the fault in the folder of the deployment, and takes it back.
        names: Texts of which the message has one: a path or a variable.
    """

    def case(deployment: Deployment) -> Outcome:
        _land_change(deployment)
        began = time.monotonic()
        with fault(deployment.root):
            process = deployment.start("run", DATASET)
            printed, _ = process.communicate()
        seconds = time.monotonic() - began
        last = printed.rstrip().splitlines()[-1] if printed.strip() else ""
        named = process.returncode == 0 or (process.returncode == 1 and any(name in printed for name in names))
        counts = {
            "tracebacks": printed.count("Traceback") + printed.count("Stack Trace"),
            "late": int(not named),
        }
        return Outcome(counts, f"status {process.returncode}: {last[:60]}", seconds)

    return case


def beside_daemon_case(deployment: Deployment) -> Outcome:
    """Run the command while the daemon runs the same dataset; none may double or lose rows."""
    _land_change(deployment)
    with deployment.serving() as (_, api):
        run_id = api.launch(f"{DATASET}_publish", sorted(deployment.rows))
        began = time.monotonic()
        process = deployment.start("run", DATASET)
        printed, _ = process.communicate()
        status = api.wait_for_end(run_id, 120)
    counts = {"tracebacks": printed.count("Traceback"), "blocked": int(process.returncode != 0)}
    return Outcome(counts, f"status {process.returncode}, {status.lower()}", time.monotonic() - began)


def two_commands_case(deployment: Deployment) -> Outcome:
    """Run the command twice at once; the second one waits and finds nothing to do."""
    _land_change(deployment)
    began = time.monotonic()
    processes = [deployment.start("run", DATASET) for _ in range(2)]
    printed = [process.communicate()[0] for process in processes]
    counts = {
        "tracebacks": sum(text.count("Traceback") for text in printed),
        "blocked": sum(process.returncode != 0 for process in processes),
    }
    trained = sum(f"{DATASET}_train" in text for text in printed)
    return Outcome(counts, f"{trained} of them trained", time.monotonic() - began)


def _below(name: str, fault: Callable[..., AbstractContextManager[None]], *options: int) -> Fault:
    """Return a fault of a path below the folder of a deployment."""
    return lambda root: fault(root / name, *options)


def _fault_cases() -> list[tuple[str, Case]]:
    table = [(f"database locked: {name}", _case_under(_below(name, _locked), (Path(name).name,))) for name in DATABASES]
    if os.geteuid() != 0:
        print("cases of full disks and read-only folders need root, which mounts file systems; they are left out")
        return table
    for name, free in MOMENTS:
        case = _case_under(_below(name, _small_disk, free), ("no space left",))
        table.append((f"disk full: {name} with {free} kB left", case))
    for name, variable in FOLDERS.items():
        table.append((f"read-only: {name}", _case_under(_below(name, _read_only), (variable,))))
    return table


CASES: list[tuple[str, Case]] = [
    *_fault_cases(),
    ("a command beside the daemon", beside_daemon_case),
    ("two commands at once", two_commands_case),
]
"""Cases by name."""
