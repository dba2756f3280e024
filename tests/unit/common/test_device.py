"""Turns of threads on a device, and the precision of products."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ae_pipeline.common import device as device_module
from ae_pipeline.common.device import device_turn, full_float32

THREADS = 4


@pytest.mark.parametrize(("name", "at_once"), [("cuda:0", 2), ("cpu", THREADS)])
def test_two_threads_at_once_have_a_turn_on_a_cuda_device(name: str, at_once: int) -> None:
    device, entered, left = torch.device(name), threading.Semaphore(0), threading.Event()

    def work(_: int) -> None:
        with device_turn(device):
            entered.release()
            assert left.wait(60)

    with ThreadPoolExecutor(THREADS) as pool:
        results = pool.map(work, range(THREADS))
        assert all(entered.acquire(timeout=60) for _ in range(at_once))
        assert not entered.acquire(timeout=0.2)
        left.set()
        assert len(list(results)) == THREADS
    for _ in range(THREADS - at_once):
        assert entered.acquire(timeout=0)


def test_each_device_has_its_turns_and_an_error_gives_one_back() -> None:
    device = torch.device("cuda:1")
    for _ in range(3):
        with pytest.raises(ValueError, match="lost"), device_turn(device):
            raise ValueError("lost")
    with device_turn(device), device_turn(device), device_turn(torch.device("cuda:2")):
        turns = device_module._TURNS[device]
        assert not turns.acquire(blocking=False)


def test_products_keep_digits_with_versions_of_torch_that_lack_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = SimpleNamespace(allow_bf16_reduced_precision_reduction=True)
    monkeypatch.setattr(torch.backends, "cuda", SimpleNamespace(matmul=cuda))
    monkeypatch.setattr(torch.backends, "mkldnn", SimpleNamespace())
    torch.set_float32_matmul_precision("medium")
    try:
        with full_float32:
            inside = torch.get_float32_matmul_precision(), cuda.allow_bf16_reduced_precision_reduction
        after = torch.get_float32_matmul_precision(), cuda.allow_bf16_reduced_precision_reduction
    finally:
        torch.set_float32_matmul_precision("highest")
    assert (inside, after) == (("highest", False), ("medium", True))


def test_a_program_that_forbids_to_split_sums_finds_this_setting_again() -> None:
    settings: Any = torch.backends.cuda.matmul
    if not hasattr(settings, "allow_bf16_reduced_precision_reduction_split_k"):
        pytest.skip("this version of torch has no such setting; torch 2.10 and later have it")
    try:
        settings.allow_bf16_reduced_precision_reduction = (False, False)
        with full_float32:
            pass
        assert not settings.allow_bf16_reduced_precision_reduction_split_k
    finally:
        settings.allow_bf16_reduced_precision_reduction = True
