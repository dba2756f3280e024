"""Work spread over the cores: pieces of it in order, each computed by one thread alone."""

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import lru_cache
from itertools import chain, islice
from typing import TypeVar

import torch
from threadpoolctl import ThreadpoolController

T = TypeVar("T")
R = TypeVar("R")


def cores() -> int:
    """Counts the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def parallel_map(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Does some work on each item, on as many threads as there are cores; gives the results in the items' order.

    Each piece is computed by one thread, whatever the number of cores, so that its result does not depend on them. Few
    pieces are begun before their results are asked for, so that memory does not grow with their number.

    Args:
        work: What releases the interpreter's lock, as numpy and torch do.
        items: What to do it on; a single one is done by the thread that asks for it.
    """

    def piece(item: T) -> R:
        torch.set_num_threads(1)  # of this thread
        return work(item)

    left = iter(items)
    first = list(islice(left, 2))
    previous = torch.get_num_threads()
    with _alone:
        try:
            if len(first) < 2 or cores() == 1:
                yield from map(piece, chain(first, left))
                return
            waiting: deque[Future[R]] = deque()
            for item in chain(first, left):
                waiting.append(_pool().submit(piece, item))
                if len(waiting) > cores():
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            torch.set_num_threads(previous)


def prefetch(items: Iterable[T]) -> Generator[T]:
    """Makes the next item on a thread of its own while one is at work on the last; closed, it waits for that thread."""
    made = iter(items)
    end = object()
    with ThreadPoolExecutor(1) as maker:
        coming = maker.submit(next, made, end)
        while (item := coming.result()) is not end:
            coming = maker.submit(next, made, end)
            yield item  # type: ignore[misc]


class _Limits:
    """One thread for each product of matrices while anybody is at work, and as many as before after that."""

    def __init__(self) -> None:
        self._lock, self._users, self._limits = threading.Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                _keeper().submit(self._limit).result()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                _keeper().submit(self._limits.close).result()

    def _limit(self) -> None:
        self._limits.enter_context(_controller().limit(limits=1, user_api="blas"))


_alone = _Limits()


@lru_cache(maxsize=1)
def _controller() -> ThreadpoolController:
    return ThreadpoolController()  # looks through all libraries that are loaded, which takes milliseconds


@lru_cache(maxsize=1)
def _keeper() -> ThreadPoolExecutor:
    """The thread that sets limits and takes them back: of several, only one at a time is listened to."""
    return ThreadPoolExecutor(1, thread_name_prefix="limits")


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(cores(), thread_name_prefix="spread")
