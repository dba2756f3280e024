"""Parallel map over threads and prefetching, with results that do not depend on the number of cores."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import lru_cache
from itertools import chain, islice
from typing import TypeVar

from threadpoolctl import ThreadpoolController

from ae_pipeline.common.cores import cores

T = TypeVar("T")
R = TypeVar("R")


def parallel_map(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Apply a function to each item on as many threads as there are cores, and yield the results in order.

    One thread computes each item alone, without threads of torch or BLAS. The result therefore does not depend on the
    number of cores. The map runs at most one item per core ahead of the consumer, so that memory stays bounded.

    Args:
        work: Function that releases the global interpreter lock, as numpy and torch do.
        items: Its arguments. A single item is computed by the calling thread.

    >>> list(parallel_map(abs, [-1, 2, -3]))
    [1, 2, 3]
    """
    import torch

    def compute(item: T) -> R:
        torch.set_num_threads(1)  # applies to the current thread
        return work(item)

    remaining = iter(items)
    first = list(islice(remaining, 2))
    previous = torch.get_num_threads()
    with _single_threaded_blas:
        try:
            if len(first) < 2 or cores() == 1:
                yield from map(compute, chain(first, remaining))
                return
            pending: deque[Future[R]] = deque()
            for item in chain(first, remaining):
                pending.append(_pool().submit(compute, item))
                if len(pending) > cores():
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            torch.set_num_threads(previous)


def prefetch(items: Iterable[T]) -> Generator[T]:
    """Yield items, and compute the next one on another thread meanwhile.

    Closing the generator waits for that thread.

    >>> list(prefetch(range(3)))
    [0, 1, 2]
    """
    iterator = iter(items)
    end = object()
    with ThreadPoolExecutor(1) as executor:
        upcoming = executor.submit(next, iterator, end)
        while (item := upcoming.result()) is not end:
            upcoming = executor.submit(next, iterator, end)
            yield item  # type: ignore[misc]


class _BlasLimit:
    """Limit BLAS to one thread while at least one user is inside the context, and restore the limit after the last."""

    def __init__(self) -> None:
        self._lock, self._users, self._limits = threading.Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                _limiter().submit(self._limit).result()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                _limiter().submit(self._limits.close).result()

    def _limit(self) -> None:
        self._limits.enter_context(_controller().limit(limits=1, user_api="blas"))


_single_threaded_blas = _BlasLimit()


@lru_cache(maxsize=1)
def _controller() -> ThreadpoolController:
    return ThreadpoolController()  # cached: it inspects all loaded libraries, which takes milliseconds


@lru_cache(maxsize=1)
def _limiter() -> ThreadPoolExecutor:
    """Return the one thread that sets and restores limits. Limits of several threads would override one another."""
    return ThreadPoolExecutor(1, thread_name_prefix="blas_limit")


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(cores(), thread_name_prefix="parallel_map")
