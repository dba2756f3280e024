"""Map over files and days by the engine that `AE_PIPELINE_ENGINE` selects."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from ae_pipeline.common.errors import ConfigError
from ae_pipeline.engine.pools import LostWorkerError, Outcome, Pool, ProcessPool, ThreadPool, log_again

T = TypeVar("T")
R = TypeVar("R")

VARIABLE = "AE_PIPELINE_ENGINE"

_ATTEMPTS = 3
"""How often an item is submitted whose worker ended."""


class Engine(StrEnum):
    """Where the work on files and days is done."""

    THREADS = "threads"
    PROCESSES = "processes"
    RAY = "ray"


def selected_engine() -> Engine:
    """Return the engine that `AE_PIPELINE_ENGINE` selects; threads by default.

    Raises:
        ConfigError: The variable has another value.
    """
    value = os.environ.get(VARIABLE) or Engine.THREADS
    try:
        return Engine(value)
    except ValueError:
        raise ConfigError(f"{VARIABLE} is {value!r}, which is no engine; set it to {', '.join(Engine)}") from None


def engine_map(work: Callable[[T], R], items: Iterable[T], *, threads: int = 1) -> Generator[R]:
    """Apply a function to each item by the selected engine, and yield the results in order.

    At most a few items for each worker are ahead of the consumer. If one fails, no further item is submitted, and those
    that run are finished before the error is raised. After an interrupt, worker processes and tasks are ended. A
    function whose worker was killed is called again, so repeating it must be safe.

    Args:
        work: Function. Worker processes and Ray need one that can be pickled, with results that can be pickled.
        items: Its arguments.
        threads: Number of items at once with the engine `threads`. With 1, this thread does the work.

    Raises:
        ConfigError: The variable names no engine, or its library is not installed.
        EngineError: The engine does not answer, or an item lost its worker three times.

    Examples:
        >>> list(engine_map(abs, [-1, 2, -3], threads=2))
        [1, 2, 3]
    """
    engine = selected_engine()
    if engine is Engine.THREADS and threads == 1:
        yield from map(work, items)
        return
    yield from _in_order(_pool(engine, threads), work, items)


def _pool(engine: Engine, threads: int) -> Pool:
    match engine:
        case Engine.THREADS:
            return ThreadPool(threads)
        case Engine.PROCESSES:
            return ProcessPool()
        case Engine.RAY:
            from ae_pipeline.engine.ray_pool import RayPool

            return RayPool()


@dataclass
class _Pending(Generic[T, R]):
    """An item whose result is not needed yet."""

    item: T
    future: "Future[Outcome[R]]"
    attempts: int = 1


def _in_order(pool: Pool, work: Callable[[T], R], items: Iterable[T]) -> Generator[R]:
    pending: deque[_Pending[T, R]] = deque()
    end = pool.stop
    try:
        for item in items:
            pending.append(_Pending(item, pool.submit(work, item)))
            if len(pending) > pool.max_pending:
                yield _first_result(pool, work, pending)
        while pending:
            result = _first_result(pool, work, pending)
            if not pending:
                end = pool.finish  # before the last result: a consumer that counts may ask for no more
            yield result
        end = pool.finish
    except Exception:
        end = pool.finish  # nothing may write after the caller has given up
        raise
    finally:
        end([each.future for each in pending])


def _first_result(pool: Pool, work: Callable[[T], R], pending: deque[_Pending[T, R]]) -> R:
    while True:
        try:
            result, records = pool.result(pending[0].future)
        except LostWorkerError:
            if pending[0].attempts == _ATTEMPTS:
                raise
            for each in pending:  # one lost worker breaks the items of all
                if each.future.done() and isinstance(each.future.exception(), BrokenProcessPool):
                    each.future, each.attempts = pool.submit(work, each.item), each.attempts + 1
        else:
            pending.popleft()
            log_again(records)
            return result
