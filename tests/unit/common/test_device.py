"""Turns of threads on a device."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from ae_pipeline.common.device import device_turn


@pytest.mark.parametrize(("name", "at_once"), [("cuda", 2), ("cpu", 4)])
def test_two_threads_at_once_have_a_turn_on_a_cuda_device(name: str, at_once: int) -> None:
    device, entered, left = torch.device(name), threading.Semaphore(0), threading.Event()

    def work(_: int) -> None:
        with device_turn(device):
            entered.release()
            assert left.wait(60)

    with ThreadPoolExecutor(4) as pool:
        results = pool.map(work, range(4))
        assert all(entered.acquire(timeout=60) for _ in range(at_once))
        assert not entered.acquire(timeout=0.2)
        left.set()
        list(results)
    assert all(entered.acquire(timeout=0) for _ in range(4 - at_once))
