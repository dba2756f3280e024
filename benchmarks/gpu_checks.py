"""Checks of the benchmark on CUDA devices: agreement with the CPU, and the contract suite."""

import copy
import dataclasses
import importlib.util
import os
import re
import subprocess
import sys

import numpy as np
import polars as pl
import torch

from ae_pipeline.detector.detector import Detector
from ae_pipeline.detector.network import FittedNetwork
from benchmarks.figures import Measured


def compare_with_cpu(detector: Detector, rows: pl.DataFrame, name: str) -> list[Measured]:
    """Return how far latents, scores and flags on the device are from those on the CPU, and from a second time."""
    network = detector.network
    on_cpu = FittedNetwork(network.encoder, copy.deepcopy(network.model).cpu(), copy.deepcopy(network.loss).cpu())
    (z, first), (_, second) = detector.latents_and_scores(rows), detector.latents_and_scores(rows)
    other_z, other = dataclasses.replace(detector, network=on_cpu).latents_and_scores(rows)
    threshold = float(np.quantile(first, 0.99))
    is_tie = np.isclose(first, threshold, rtol=1e-9)
    differs = ((first > threshold) != (other > threshold)) & ~is_tie
    return [
        agreement(f"{name}: scores that are the same bytes twice", float(first.tobytes() == second.tobytes())),
        agreement(f"{name}: relative error of scores", float(np.max(np.abs(first - other) / np.maximum(other, 1e-3)))),
        agreement(f"{name}: error of latents (float32)", float(np.abs(z - other_z).max())),
        agreement(f"{name}: flags that differ, of {len(rows):,}", float(differs.sum())),
    ]


def agreement(what: str, value: float) -> Measured:
    """Return a figure of the table that compares devices."""
    return Measured("agreement of the device with itself and with the CPU", what, "value", value, 0, 0)


def run_contracts(device: torch.device, seconds: float) -> str:
    """Run the contract suite on the device for at most some seconds, and return its last line."""
    if importlib.util.find_spec("pytest") is None:
        return "pytest is not installed"
    command = [sys.executable, "-m", "pytest", "tests/contract/test_architectures.py", "-k", device.type]
    command += ["-p", "no:benchmark"]  # this plugin warns beside xdist, and warnings are errors
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(min(8, os.cpu_count() or 1))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=max(seconds, 10.0))
    except subprocess.TimeoutExpired:
        return f"not finished after {seconds:.0f} s; run `{' '.join(command[1:])}` alone"
    failed = re.findall(r"^(?:FAILED|ERROR) .*$", done.stdout, re.MULTILINE)[:40]
    return "\n".join([*(done.stdout.strip().splitlines()[-1:] or [done.stderr.strip()[-500:]]), *failed])


def counts_of_tests(outcome: str) -> list[Measured]:
    """Return how many tests passed and failed, from the summary of pytest; nothing if there is none.

    >>> [(each.method, each.value) for each in counts_of_tests("2 failed, 700 passed, 3 deselected in 9 s")]
    [('tests failed', 2.0), ('tests passed', 700.0)]
    """
    counts = re.findall(r"(\d+) (passed|failed|errors?)\b", outcome.splitlines()[0])
    return [Measured("contract suite", f"tests {what}", "value", float(count), 0, 0) for count, what in counts]
