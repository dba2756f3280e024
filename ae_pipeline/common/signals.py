"""SIGINT and SIGTERM: noticed at once, deferred in critical sections, and never without an effect."""

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import NoReturn, Self

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

GRACE_SECONDS = 1.2
"""Time that a process has to stop at a safe point. Then it exits as if it was killed, which loses no data either."""

_CRITICAL_SECONDS = 10.0
"""Time that a critical section may take at most before the process exits anyway."""

_WATCH_SECONDS = 1.0
"""Time between two looks of a process at the one that started it."""

_critical = threading.Event()


class Stopped(KeyboardInterrupt):
    """The process was asked to stop.

    Args:
        signum: Signal that asked for it.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def raise_stopped(signum: int, _: FrameType | None) -> None:
    """Raise `Stopped` in the main thread: the handler of both signals.

    Raises:
        Stopped: Always.
    """
    # It would log the interrupt of a close as an error with a traceback, and raises it as well.
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
    raise Stopped(signum)


@contextmanager
def critical_section() -> Iterator[list[int]]:
    """Defer SIGINT and SIGTERM until the end of a short section that must not be interrupted halfway.

    Yields:
        Signals that arrived. Signals that are still in the list at the end are raised then. Elsewhere than in the main
        thread, which alone executes handlers, nothing is deferred.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread() or _critical.is_set():
        yield received
        return
    previous = {each: signal.signal(each, lambda signum, _: received.append(signum)) for each in STOP_SIGNALS}
    _critical.set()
    try:
        yield received
    finally:
        _critical.clear()
        for each, handler in previous.items():
            signal.signal(each, handler if handler is not None else signal.SIG_DFL)
    if received:
        signal.raise_signal(received[0])


@contextmanager
def signals_raised() -> Iterator[None]:
    """Raise `Stopped` on SIGINT and SIGTERM meanwhile, in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {each: signal.signal(each, raise_stopped) for each in STOP_SIGNALS}
    try:
        yield
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler if handler is not None else signal.SIG_DFL)


def watch_parent(parent: int, on_end: Callable[[], object]) -> None:
    """Call a function, in a thread, as soon as the process that started this one has ended, also by SIGKILL.

    Args:
        parent: Id of that process.
        on_end: Function that ends this process.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_SECONDS)
        on_end()

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


class SignalWatch:
    """Ends this process if it goes on after a signal: Python's handlers wait while native code executes.

    Use it as a context manager, in the main thread. Inside of another watch it does nothing.

    Args:
        before_exit: Function to call with the signal before the process exits late, in a thread.
        grace: Time to stop, in seconds.

    Attributes:
        received: First signal that arrived; None before that.
    """

    _current: "SignalWatch | None" = None

    def __init__(self, before_exit: Callable[[int], None] = lambda _: None, grace: float = GRACE_SECONDS) -> None:
        self.received: int | None = None
        self._before_exit, self._grace = before_exit, grace
        self._ended, self._owns = threading.Event(), False

    def __enter__(self) -> Self:
        """Start to watch."""
        if threading.current_thread() is threading.main_thread() and SignalWatch._current is None:
            self._owns, SignalWatch._current = True, self
            self._reader, self._writer = socket.socketpair()
            self._writer.setblocking(False)
            self._print_unraisable, sys.unraisablehook = sys.unraisablehook, self._on_unraisable
            self._previous = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
            self._thread = threading.Thread(target=self._watch, name="signal-watch", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        """Stop to watch."""
        if self._owns:
            self._close()

    def _close(self) -> None:
        self._ended.set()
        sys.unraisablehook = self._print_unraisable
        signal.set_wakeup_fd(self._previous)
        with suppress(OSError):
            self._writer.send(b"\0")
        self._thread.join(timeout=1)
        self._reader.close()
        self._writer.close()
        SignalWatch._current = None

    def _on_unraisable(self, unraisable: "sys.UnraisableHookArgs") -> None:
        """Print nothing about an interrupt that a finalizer has swallowed: this watch ends the process.

        Interrupts are no `Exception`, also that of Dagster. The thread of the watch may not have seen the signal yet.
        """
        if isinstance(unraisable.exc_value, Exception | SystemExit | GeneratorExit):
            self._print_unraisable(unraisable)

    def _watch(self) -> None:
        while not self._ended.is_set():
            for number in self._reader.recv(64):
                if number in STOP_SIGNALS and self.received is None:
                    self.received = number
                    if not self._ended.wait(self._grace):
                        exit_late(number, self._before_exit, self._ended)


def stop_signal() -> int | None:
    """Return the first signal that a watch of this process has seen, or None."""
    return SignalWatch._current.received if SignalWatch._current else None


def end_process(signum: int) -> NoReturn:
    """End this process now, with the exit status of a signal."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(128 + signum)


def exit_late(signum: int, before_exit: Callable[[int], None], ended: threading.Event) -> None:
    """End this process with the exit status of a signal, unless it ends or leaves a critical section in time.

    Args:
        signum: Signal that counts as the reason.
        before_exit: Function to call first; its errors do not matter.
        ended: Set where the process stops by itself.
    """
    end, was_critical = time.monotonic() + _CRITICAL_SECONDS, _critical.is_set()
    while _critical.is_set() and time.monotonic() < end:
        if ended.wait(0.05):
            return
    if ended.wait(GRACE_SECONDS if was_critical else 0):
        return
    with suppress(Exception):
        before_exit(signum)
    os._exit(128 + signum)
