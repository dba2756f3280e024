"""Parallel map and prefetch: order of results, one thread per item, and bounded work ahead of the consumer."""

import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from ae_pipeline.common import parallel
from ae_pipeline.common.parallel import parallel_map, prefetch


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "cores", lambda: 2)


class TestParallelMap:
    @pytest.mark.parametrize("count", [0, 1, 2, 7, 40])
    def test_results_come_in_the_order_of_the_items(self, count: int) -> None:
        def slow_square(item: int) -> int:
            time.sleep(0.002 * (item % 3))
            return item * item

        assert list(parallel_map(slow_square, range(count))) == [item * item for item in range(count)]

    def test_two_threads_work_at_the_same_time(self) -> None:
        meeting = threading.Barrier(2, timeout=10)
        assert list(parallel_map(lambda item: meeting.wait() * 0 + item, range(4))) == [0, 1, 2, 3]

    def test_torch_uses_one_thread_and_then_as_many_as_before(self) -> None:
        previous = torch.get_num_threads()
        assert list(parallel_map(lambda _: torch.get_num_threads(), range(5))) == [1] * 5
        assert list(parallel_map(lambda _: torch.get_num_threads(), range(1))) == [1]
        assert torch.get_num_threads() == previous

    def test_blas_uses_one_thread_from_any_calling_thread(self) -> None:
        def blas_threads(_: int) -> set[int]:
            return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

        np.ones((4, 4)) @ np.ones((4, 4))
        previous = blas_threads(0)
        with threadpool_limits(limits=2, user_api="blas"):
            pass  # this thread has set limits before
        with ThreadPoolExecutor(1) as other:
            assert other.submit(lambda: list(parallel_map(blas_threads, range(3)))).result() == [{1}] * 3
        assert list(parallel_map(blas_threads, range(3))) == [{1}] * 3
        assert blas_threads(0) == previous

    def test_few_items_are_started_ahead_of_the_consumer(self) -> None:
        started: list[int] = []

        def record(item: int) -> int:
            started.append(item)
            return item

        results = parallel_map(record, iter(range(1000)))
        assert isinstance(results, Generator)
        assert next(results) == 0
        time.sleep(0.05)
        assert len(started) < 8
        results.close()

    def test_an_error_reaches_the_consumer(self) -> None:
        def fail(item: int) -> int:
            if item == 3:
                raise ValueError("no luck")
            return item

        results = parallel_map(fail, range(6))
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ValueError, match="no luck"):
            next(results)
        assert list(parallel_map(fail, range(3))) == [0, 1, 2]

    def test_matrix_products_have_the_same_bytes_as_in_one_thread(self) -> None:
        def gram(part: npt.NDArray[Any]) -> npt.NDArray[Any]:
            product: npt.NDArray[Any] = part @ part.T
            return product

        rows = np.random.default_rng(0).normal(size=(8, 300, 200))
        one_by_one = [next(parallel_map(gram, [part])).tobytes() for part in rows]
        assert [product.tobytes() for product in parallel_map(gram, rows)] == one_by_one


class TestPrefetch:
    def test_items_come_in_order(self) -> None:
        assert list(prefetch(range(50))) == list(range(50))
        assert list(prefetch([])) == []

    def test_the_next_item_is_computed_meanwhile(self) -> None:
        started: list[int] = []

        def items() -> Iterator[int]:
            for item in range(5):
                started.append(item)
                yield item

        results = prefetch(items())
        assert next(results) == 0
        deadline = time.monotonic() + 10
        while len(started) < 2 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert started == [0, 1]
        results.close()

    def test_an_error_comes_after_the_items_before_it(self) -> None:
        def items() -> Iterator[int]:
            yield 1
            raise OSError("the disk is gone")

        results = prefetch(items())
        assert next(results) == 1
        with pytest.raises(OSError, match="the disk is gone"):
            next(results)
