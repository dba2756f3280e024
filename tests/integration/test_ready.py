"""The readiness check of code servers."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ae_pipeline.cli.main import main

pytestmark = pytest.mark.slow

GOOD = "import dagster as dg\ndefs = dg.Definitions()\n"
BROKEN = "import dagster as dg\n\n@dg.definitions\ndef defs():\n    raise ValueError('the volume is not mounted')\n"


@pytest.fixture
def sockets(tmp_path: Path) -> Iterator[dict[str, Path]]:
    """Sockets of two code servers, one of which could not load its definitions."""
    result, processes = {}, []
    for name, text in {"good": GOOD, "broken": BROKEN}.items():
        (tmp_path / f"{name}.py").write_text(text)
        result[name] = tmp_path / name
        target = ["--python-file", tmp_path / f"{name}.py", "--socket", result[name], "--lazy-load-user-code"]
        command = [sys.executable, "-m", "dagster", "api", "grpc", *map(str, target)]
        home = tmp_path / f"home_{name}"  # two processes cannot create one database at the same time
        home.mkdir()
        environment = {**os.environ, "DAGSTER_HOME": str(home)}
        nothing = subprocess.DEVNULL
        processes.append(subprocess.Popen(command, env=environment, stdout=nothing, stderr=nothing))
    yield result
    for process in processes:
        process.terminate()
        process.wait(30)


def test_only_a_loaded_location_is_ready(
    sockets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def ask(socket: Path) -> tuple[int, str]:
        status = main(["ready", "--socket", str(socket)])
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    wait_until_they_listen(sockets)
    assert ask(sockets["good"]) == (0, f"Ready: {sockets['good']} has loaded 1 repository.\n")
    status, message = ask(sockets["broken"])
    assert status == 1
    assert "could not load the definitions: ValueError: the volume is not mounted; correct it" in message
    status, message = ask(tmp_path / "nothing")
    assert (status, f"no code server answers at {tmp_path / 'nothing'}; start it" in message) == (1, True)


def wait_until_they_listen(sockets: dict[str, Path]) -> None:
    """Wait until Dagster's own check, which a location that could not be loaded passes too, is content."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    for socket in sockets.values():
        with grpc.insecure_channel(f"unix:{socket}") as channel:
            request = health_pb2.HealthCheckRequest(service="DagsterApi")
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=120, wait_for_ready=True)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
