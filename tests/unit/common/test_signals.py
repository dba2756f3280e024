"""Signals in processes of their own: raised, deferred in critical sections, and never without an effect."""

import signal
import sqlite3
import subprocess
import sys
import time

import dagster as dg
import pytest
import sqlalchemy

from ae_pipeline.common.signals import SignalWatch, Stopped, critical_section, raise_stopped, signals_raised

_PREAMBLE = """
import os, signal, sys, threading, time
from ae_pipeline.common.signals import SignalWatch, Stopped, critical_section, end_process, signals_raised, stop_signal
"""


def _run(code: str, signum: int) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run code, send it a signal when it prints "ready", and return what it printed and how long it took."""
    process = subprocess.Popen([sys.executable, "-c", _PREAMBLE + code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    began = time.monotonic()
    process.send_signal(signum)
    output, _ = process.communicate(timeout=30)
    return subprocess.CompletedProcess([], process.returncode, output), time.monotonic() - began


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_raised_with_its_number(signum: int) -> None:
    with pytest.raises(Stopped) as raised, signals_raised():
        signal.raise_signal(signum)
    assert raised.value.signum == signum
    assert signal.getsignal(signal.SIGTERM) is not raise_stopped


def test_a_critical_section_ends_before_the_interrupt() -> None:
    done = []

    def work() -> None:
        with signals_raised(), critical_section() as signals:
            signal.raise_signal(signal.SIGTERM)
            done.append(list(signals))

    with pytest.raises(Stopped):
        work()
    assert done == [[signal.SIGTERM]]


def test_a_cleared_signal_is_not_raised() -> None:
    with signals_raised(), critical_section() as signals:
        signal.raise_signal(signal.SIGINT)
        assert signals == [signal.SIGINT]
        signals.clear()
    assert signals == []


def test_the_inner_of_two_critical_sections_raises_nothing() -> None:
    passed = []

    def work() -> None:
        with signals_raised(), critical_section():
            with critical_section():
                signal.raise_signal(signal.SIGINT)
            passed.append("inner")

    with pytest.raises(Stopped):
        work()
    assert passed == ["inner"]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_swallows_the_interrupt_is_ended(signum: int) -> None:
    code = """
with signals_raised(), SignalWatch(lambda number: print("late", number, flush=True)):
    ready = "ready"
    while True:
        try:
            print(ready, flush=True)
            ready = ""
            time.sleep(60)
        except KeyboardInterrupt:
            pass
"""
    done, seconds = _run(code, signum)
    assert done.returncode == 128 + signum
    assert f"late {int(signum)}\n" in done.stdout
    assert 1 < seconds < 4


def test_the_watch_lets_a_critical_section_end() -> None:
    code = """
with signals_raised(), SignalWatch():
    with critical_section() as signals:
        print("ready", flush=True)
        end = time.monotonic() + 2.5
        while time.monotonic() < end:
            time.sleep(0.1)
        print("whole", stop_signal(), flush=True)
"""
    done, _ = _run(code, signal.SIGTERM)
    assert done.stdout == "whole 15\n"
    assert done.returncode == 1  # Stopped, raised after the section


def test_a_thread_does_not_delay_the_end() -> None:
    code = """
with signals_raised(), SignalWatch():
    threading.Thread(target=time.sleep, args=(60,)).start()
    try:
        print("ready", flush=True)
        time.sleep(60)
    except Stopped:
        end_process(signal.SIGINT)
"""
    done, seconds = _run(code, signal.SIGINT)
    assert done.returncode == 130
    assert seconds < 4


def test_an_interrupt_while_a_database_is_closed_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Interrupted(sqlite3.Connection):
        def close(self) -> None:
            raise_stopped(signal.SIGINT, None)

    engine = sqlalchemy.create_engine(
        "sqlite://",
        poolclass=sqlalchemy.pool.NullPool,
        creator=lambda: sqlite3.connect(":memory:", factory=Interrupted),
    )
    with pytest.raises(Stopped):
        engine.connect().close()
    assert caplog.records == []


class _Finalized:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __del__(self) -> None:
        raise self.error


def test_an_interrupt_that_a_finalizer_swallows_is_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    printed: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: printed.append(unraisable.exc_type))
    with SignalWatch():
        for error in (KeyboardInterrupt(), Stopped(signal.SIGTERM), dg.DagsterExecutionInterruptedError()):
            _Finalized(error)
        assert printed == []
        _Finalized(ValueError())
    assert printed == [ValueError]
    _Finalized(KeyboardInterrupt())  # nothing would end the process
    assert printed == [ValueError, KeyboardInterrupt]
