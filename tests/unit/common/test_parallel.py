"""Work spread over threads: in order, each piece by one thread alone, few ahead of who asks for them."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from ae_pipeline.common import parallel
from ae_pipeline.common.parallel import parallel_map, prefetch


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "cores", lambda: 2)


class TestSpread:
    @pytest.mark.parametrize("count", [0, 1, 2, 7, 40])
    def test_results_come_in_the_order_of_the_items(self, count):
        def slowly(item: int) -> int:
            time.sleep(0.002 * (item % 3))
            return item * item

        assert list(parallel_map(slowly, range(count))) == [item * item for item in range(count)]

    def test_two_threads_work_at_once(self):
        meeting = threading.Barrier(2, timeout=10)
        assert list(parallel_map(lambda item: meeting.wait() * 0 + item, range(4))) == [0, 1, 2, 3]

    def test_each_piece_is_computed_by_one_thread_and_the_caller_has_its_own_again(self):
        previous = torch.get_num_threads()
        assert list(parallel_map(lambda _: torch.get_num_threads(), range(5))) == [1] * 5
        assert list(parallel_map(lambda _: torch.get_num_threads(), range(1))) == [1]
        assert torch.get_num_threads() == previous

    def test_products_of_matrices_keep_to_one_thread_whoever_asks(self):
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

    def test_few_pieces_are_begun_before_they_are_asked_for(self):
        begun: list[int] = []
        results = parallel_map(lambda item: begun.append(item) or item, iter(range(1000)))
        assert next(results) == 0
        time.sleep(0.05)
        assert len(begun) < 8
        results.close()

    def test_an_error_reaches_who_asks(self):
        def fail(item: int) -> int:
            if item == 3:
                raise ValueError("no luck")
            return item

        results = parallel_map(fail, range(6))
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ValueError, match="no luck"):
            next(results)
        assert list(parallel_map(fail, range(3))) == [0, 1, 2]

    def test_products_of_matrices_are_the_same_bytes_as_of_one_thread(self):
        rows = np.random.default_rng(0).normal(size=(8, 300, 200))
        alone = [next(parallel_map(lambda part: part @ part.T, [part])) for part in rows]
        for one, other in zip(alone, parallel_map(lambda part: part @ part.T, rows), strict=True):
            assert one.tobytes() == other.tobytes()


class TestAhead:
    def test_items_come_in_order(self):
        assert list(prefetch(range(50))) == list(range(50))
        assert list(prefetch([])) == []

    def test_the_next_one_is_made_while_one_is_at_work(self):
        made: list[int] = []

        def items():
            for item in range(5):
                made.append(item)
                yield item

        found = prefetch(items())
        assert next(found) == 0
        deadline = time.monotonic() + 10
        while len(made) < 2 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert made == [0, 1]
        found.close()

    def test_an_error_comes_after_the_items_before_it(self):
        def items():
            yield 1
            raise OSError("the disk is gone")

        found = prefetch(items())
        assert next(found) == 1
        with pytest.raises(OSError, match="the disk is gone"):
            next(found)
