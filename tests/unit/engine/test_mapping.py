"""The map over items by threads and worker processes: order, errors, logs, lost workers and interrupts."""

import logging
import os
import pickle
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from ae_pipeline.common import errors
from ae_pipeline.common.cores import cores
from ae_pipeline.common.errors import ConfigError, EngineError, StorageError
from ae_pipeline.engine.mapping import engine_map

ENGINES = ("threads", "processes")


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each engine that needs no library beside the package."""
    monkeypatch.setenv("AE_PIPELINE_ENGINE", request.param)
    return str(request.param)


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes."""
    monkeypatch.setenv("AE_PIPELINE_ENGINE", "processes")


def _touch(item: tuple[Path, int]) -> int:
    folder, number = item
    time.sleep(0.02 * (5 - number % 5))
    (folder / f"{number}").touch()
    if number == 3:
        raise StorageError("item 3 fails; correct it")
    return number * number


def _die_first(marker: Path) -> int:
    if marker.suffix == ".dies" and not marker.exists():
        marker.touch()
        os._exit(9)
    return os.getpid()


def _die(_: int) -> None:
    os._exit(9)


def _log(number: int) -> int:
    logging.getLogger("ae_pipeline.test").warning("item %d is odd", number)
    logging.getLogger("ae_pipeline.test").debug("not shown")
    return number


def _facts(_: int) -> tuple[int, int, str]:
    return os.getpid(), cores(), os.environ.get("POLARS_MAX_THREADS", "")


def test_results_are_in_order(engine: str, tmp_path: Path) -> None:
    items = [(tmp_path, number) for number in (9, 0, 1, 2, 4, 5, 6, 7, 8)]
    assert list(engine_map(_touch, items, threads=3)) == [81, 0, 1, 4, 16, 25, 36, 49, 64]
    assert list(engine_map(_touch, [], threads=3)) == []


def test_an_error_starts_no_more_items(engine: str, tmp_path: Path) -> None:
    items = ((tmp_path, number) for number in range(100))
    with pytest.raises(StorageError, match=r"^item 3 fails; correct it$"):
        list(engine_map(_touch, items, threads=2))
    written = len(list(tmp_path.iterdir()))
    assert 4 <= written <= 4 + 2 * 2 * cores()
    time.sleep(0.2)
    assert len(list(tmp_path.iterdir())) == written


def test_only_a_few_items_are_ahead_of_the_consumer(engine: str, tmp_path: Path) -> None:
    with closing(engine_map(_touch, ((tmp_path, number) for number in range(10, 100)), threads=2)) as results:
        assert next(results) == 100
    assert len(list(tmp_path.iterdir())) <= 2 + 2 * cores()


@pytest.mark.usefixtures("processes")
def test_worker_processes_use_one_core_each() -> None:
    facts = set(engine_map(_facts, range(8)))
    assert {fact[1:] for fact in facts} == {(1, "1")}
    assert os.getpid() not in {fact[0] for fact in facts}
    assert len(facts) <= cores()


@pytest.mark.usefixtures("processes")
def test_workers_stay_for_a_consumer_that_counts_its_results() -> None:
    workers = set()
    for _ in range(2):
        with closing(engine_map(_facts, range(4))) as results:
            workers |= {next(results)[0] for _ in range(4)}
    assert len(workers) <= cores()


@pytest.mark.usefixtures("processes")
def test_logs_of_workers_are_logged_here(caplog: pytest.LogCaptureFixture) -> None:
    assert list(engine_map(_log, [1, 3])) == [1, 3]
    assert [record.getMessage() for record in caplog.records] == ["item 1 is odd", "item 3 is odd"]


@pytest.mark.usefixtures("processes")
def test_work_of_a_killed_worker_is_done_again(tmp_path: Path) -> None:
    items = [tmp_path / name for name in ("a", "b.dies", "c", "d", "e.dies", "f")]
    assert len(list(engine_map(_die_first, items))) == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.dies", "e.dies"]


@pytest.mark.usefixtures("processes")
def test_work_that_kills_its_workers_is_an_error() -> None:
    with pytest.raises(EngineError, match=r"a worker process ended .* three times.* set OMP_NUM_THREADS lower"):
        list(engine_map(_die, [1, 2, 3]))
    assert list(engine_map(abs, [-1, -2])) == [1, 2]


@pytest.mark.usefixtures("processes")
def test_an_interrupt_ends_the_workers() -> None:
    def interrupted() -> None:
        with closing(engine_map(time.sleep, [0.01, 30, 30, 30, 30])) as results:
            next(results)

    started = time.monotonic()
    thread = threading.Thread(target=interrupted)
    thread.start()
    thread.join(20)
    assert time.monotonic() - started < 15


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="the test finds processes in /proc, which Linux has")
def test_workers_end_with_the_process_that_started_them() -> None:
    code = (
        "import os, time\n"
        "from ae_pipeline.engine.mapping import engine_map\n"
        "print(*engine_map(os.path.realpath, ['/proc/self']), flush=True)\n"
        "time.sleep(60)\n"
    )
    environment = {**os.environ, "AE_PIPELINE_ENGINE": "processes", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        worker = Path(process.stdout.readline().strip())
        assert worker.exists()
        assert worker.name != str(process.pid)
        process.kill()
        process.wait()
        deadline = time.monotonic() + 10
        while worker.exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.mark.parametrize("value", ["dask", "Threads", "2"])
def test_other_engines_are_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("AE_PIPELINE_ENGINE", value)
    with pytest.raises(ConfigError, match=f"AE_PIPELINE_ENGINE is '{value}'.*threads, processes, ray"):
        list(engine_map(abs, [1]))


@pytest.mark.parametrize(
    "kind", [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, Exception)]
)
def test_errors_come_back_from_workers_as_they_are(kind: type[Exception]) -> None:
    error = pickle.loads(pickle.dumps(kind("rule, value, remedy")))
    assert (type(error), str(error)) == (kind, "rule, value, remedy")
