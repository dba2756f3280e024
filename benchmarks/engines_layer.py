"""The price of the layer in one process, for `benchmarks.engines`."""

import os
import statistics
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TypeVar
from unittest import mock

from ae_pipeline.engine.mapping import VARIABLE, Engine
from benchmarks.engines_project import Project

T = TypeVar("T")
R = TypeVar("R")

_LAYERED = ("ae_pipeline.ingestion.raw.engine_map", "ae_pipeline.lifecycle.ingest.engine_map")
"""Where a run in one process goes through the layer. Its publication does not."""


def _direct(work: Callable[[T], R], items: Iterable[T], *, threads: int = 1) -> Generator[R]:
    """Do the work without the layer: by this thread, or by threads of a plain executor."""
    if threads == 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(threads) as executor:
        yield from executor.map(work, items)


def measure_layer(project: Project, rounds: int) -> dict[str, float]:
    """Build raw rows and features in one process through the layer and without it, by turns.

    Args:
        project: Days to build.
        rounds: How often each way is measured. The time of the processor counts, so that other programs on the machine
            count little, and the median of the ratios of all rounds.
    """
    os.environ[VARIABLE] = Engine.THREADS
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for number in range(2 * rounds + 2):
        is_layered = bool((number + number // 2) % 2)  # who is first changes from round to round
        with ExitStack() as stack:
            for name in () if is_layered else _LAYERED:
                stack.enter_context(mock.patch(name, _direct))
            dataset = project.landed_in(f"layer_{number}")
            began = time.process_time()
            project.build(dataset)
            if number > 1:  # the first round warms up
                seconds[is_layered].append(time.process_time() - began)
    ratios = [layered / direct for layered, direct in zip(seconds[True], seconds[False], strict=True)]
    return {
        "rounds": rounds,
        "without the layer, core s": statistics.median(seconds[False]),
        "with the layer, core s": statistics.median(seconds[True]),
        "with / without": statistics.median(ratios),
    }
