"""Cases of `benchmarks.campaign`: full disks, read-only folders, locked databases.

Disks are file systems in memory, which only root can mount; without it these cases are left out and say so.
"""

import contextlib
import math
import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path

from benchmarks.campaign_deployment import COMPLETE, DATASET, Case, Deployment, Outcome, allowed

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

_LOCKED_SECONDS = 15.0
"""Time in which a command names a locked database, on an idle machine."""

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


def _case_under(name: str, fault: Fault, texts: tuple[str, ...], seconds: float = math.inf) -> Case:
    """Return a case that runs the dataset while a fault lasts. A run may succeed if it never met the fault.

    Args:
        name: Name of the case.
        fault: Makes the fault in the folder of the deployment, and takes it back.
        texts: Texts of which the message has one: a path or a variable.
        seconds: Time in which the command ends on an idle machine.
    """

    def run(deployment: Deployment) -> Outcome:
        deployment.land_change()
        began = time.monotonic()
        with fault(deployment.root):
            process = deployment.start("run", DATASET)
            printed, _ = process.communicate()
            taken = time.monotonic() - began
        last = printed.rstrip().splitlines()[-1] if printed.strip() else ""
        named = process.returncode == 0 or (process.returncode == 1 and any(text in printed for text in texts))
        counts = {
            "tracebacks": printed.count("Traceback") + printed.count("Stack Trace"),
            "late": int(not named) + int(taken > allowed(seconds)),
        }
        return Outcome(counts, f"status {process.returncode}: {last[:200]}", taken)

    return Case(name, COMPLETE, run)


def _below(name: str, fault: Callable[..., AbstractContextManager[None]], *options: int) -> Fault:
    """Return a fault of a path below the folder of a deployment."""
    return lambda root: fault(root / name, *options)


def fault_cases() -> list[Case]:
    """Return the cases of locked databases, and those of disks and folders if this user may mount file systems."""
    table = [
        _case_under(f"database locked: {name}", _below(name, _locked), (Path(name).name,), _LOCKED_SECONDS)
        for name in DATABASES
    ]
    if os.geteuid() != 0:
        print("cases of full disks and read-only folders need root, which mounts file systems; they are left out")
        return table
    for name, free in MOMENTS:
        fault = _below(name, _small_disk, free)
        table.append(_case_under(f"disk full: {name} with {free} kB left", fault, ("no space left",)))
    for name, variable in FOLDERS.items():
        table.append(_case_under(f"read-only: {name}", _below(name, _read_only), (variable,)))
    return table
