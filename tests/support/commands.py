"""Command lines in processes of their own, which need not import the libraries again."""

import atexit
import json
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

_FORK = """
import gc, importlib, json, os, sys

# Importing takes longer than most commands. No pool of threads of these libraries starts before it is used.
import altair, dagster._cli, dagster_dg_cli.cli, deltalake, sklearn.ensemble, torch._dynamo
import mlflow.store.tracking.sqlalchemy_store

MODULES = {"ae-pipeline": "ae_pipeline.cli.main", "dagster": "dagster._cli", "dg": "dagster_dg_cli.cli"}
# Else a child visits all objects of the libraries when it collects garbage, at the latest when it ends. On one core,
# a short command takes 1 second instead of 4.
gc.freeze()
for line in sys.stdin:
    request = json.loads(line)
    if not (child := os.fork()):
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()

# The child ends as any program does: with its messages, its exit handlers and a wait for its threads.
for stream, name in enumerate((os.devnull, *request["outputs"])):
    os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), stream)
os.chdir(request["folder"])
os.environ.clear()
os.environ.update(request["environment"])
sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
sys.argv = request["command"]
sys.exit(importlib.import_module(MODULES[sys.argv[0]]).main())
"""


@cache
def _forks() -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", _FORK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(process.communicate)
    return process


def run_command(*command: str, environment: Mapping[str, str], folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run a command line in a process that is forked from one that has imported the libraries.

    Args:
        command: `ae-pipeline`, `dagster` or `dg`, and its arguments.
        environment: All its environment variables.
        folder: Its working directory. If this package, or a copy of it, is there, it is imported from there.
    """
    process = _forks()
    assert process.stdin is not None
    assert process.stdout is not None
    with TemporaryDirectory() as temporary:
        outputs = [Path(temporary, name) for name in ("stdout", "stderr")]
        request = {
            "command": command,
            "environment": dict(environment),
            "folder": str(folder),
            "outputs": [str(path) for path in outputs],
        }
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        status = int(process.stdout.readline())
        stdout, stderr = (path.read_text() for path in outputs)
    return subprocess.CompletedProcess(command, status, stdout, stderr)
