"""What engines have in common, and the pools of threads and of worker processes."""

import logging
import os
import signal
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from logging.handlers import QueueHandler
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

from ae_pipeline.common.cores import cores
from ae_pipeline.common.errors import EngineError
from ae_pipeline.common.signals import watch_parent

T = TypeVar("T")
R = TypeVar("R")

Outcome = tuple[R, list[logging.LogRecord]]
"""A result, and the log records of the work."""

_IDLE_SECONDS = 60
"""Time after which an idle worker process ends."""


class LostWorkerError(EngineError):
    """A worker ended before its work did."""


class Pool(Protocol):
    """Where items of work are executed.

    Attributes:
        max_pending: Items that are submitted before the first one of them is needed.
    """

    max_pending: int

    def submit(self, work: Callable[[T], R], item: T) -> "Future[Outcome[R]]":
        """Start the work on an item."""

    def result(self, future: "Future[Outcome[R]]") -> Outcome[R]:
        """Wait for an item, and return its outcome or raise its error.

        Raises:
            LostWorkerError: The worker ended before the work, so that it can be submitted again.
        """

    def finish(self, futures: "Iterable[Future[Any]]") -> None:
        """Wait for those of these items that run; the others may be cancelled."""

    def stop(self, futures: "Iterable[Future[Any]]") -> None:
        """End the work on these items, because nobody waits for it."""


class ThreadPool:
    """Threads of this process. Logs need no transport, and no worker is lost.

    Args:
        threads: Number of threads.
    """

    def __init__(self, threads: int) -> None:
        self.max_pending = threads
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="engine")

    def submit(self, work: Callable[[T], R], item: T) -> "Future[Outcome[R]]":
        """Start the work on an item."""
        return self._executor.submit(lambda: (work(item), []))

    def result(self, future: "Future[Outcome[R]]") -> Outcome[R]:
        """Wait for an item, and return its outcome or raise its error."""
        return future.result()

    def finish(self, futures: "Iterable[Future[Any]]") -> None:  # noqa: ARG002
        """Start no more items, and wait for those that run."""
        self._executor.shutdown(cancel_futures=True)

    stop = finish  # a thread cannot be ended


class ProcessPool:
    """One worker process for each core. They stay for the next map, and end with this process.

    A worker uses one thread, so that all of them together use the cores of this process.
    """

    def __init__(self) -> None:
        self.max_pending = 2 * cores()
        self._executor = _worker_processes()

    def submit(self, work: Callable[[T], R], item: T) -> "Future[Outcome[R]]":
        """Start the work on an item."""
        try:
            future: Future[Outcome[R]] = self._executor.submit(call_with_logs, work, item)
        except BrokenProcessPool:
            self._executor = _worker_processes()
            future = self._executor.submit(call_with_logs, work, item)
        return future

    def result(self, future: "Future[Outcome[R]]") -> Outcome[R]:
        """Wait for an item, and return its outcome or raise its error."""
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise LostWorkerError(
                "a worker process ended before its work did, three times; most often the machine has too little memory "
                "for one worker on each core: set OMP_NUM_THREADS lower, or AE_PIPELINE_ENGINE=threads"
            ) from error

    def finish(self, futures: "Iterable[Future[Any]]") -> None:
        """Start no more items, and wait for those that run."""
        wait([future for future in futures if not future.cancel()])

    def stop(self, futures: "Iterable[Future[Any]]") -> None:  # noqa: ARG002
        """End all workers."""
        self._executor.shutdown(wait=True, kill_workers=True)


def _worker_processes() -> Any:
    from loky import get_reusable_executor

    return get_reusable_executor(
        max_workers=cores(),
        timeout=_IDLE_SECONDS,
        initializer=_prepare_worker,
        initargs=(os.getpid(),),
        env={"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"},
    )


def _prepare_worker(parent: int) -> None:
    """Prepare a worker process: the process that started it decides on signals, and the worker ends with it.

    Args:
        parent: Id of that process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all processes
    watch_parent(parent, lambda: os._exit(1))


def call_with_logs(work: Callable[[T], R], item: T) -> Outcome[R]:
    """Do the work on an item in a worker, and return its result with the records that it logged, from INFO up."""
    records: SimpleQueue[logging.LogRecord] = SimpleQueue()
    handler, root = QueueHandler(records), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        result = work(item)
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    return result, [records.get() for _ in range(records.qsize())]


def log_again(records: list[logging.LogRecord]) -> None:
    """Log records of a worker in this process."""
    for record in records:
        logger = logging.getLogger(record.name)
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)
