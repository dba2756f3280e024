"""Kinds of autoencoder on their tasks: ae_pipeline compared with common alternatives.

The tasks are defects on photographed brick, latents of handwritten digits, noise removal, and anomalies of the
shuttle's sensors. ae_pipeline uses the public functions of the package: `fit_bundle` fits a bundle from a
configuration, and the bundle scores, encodes and denoises. The module of each task defines the training data. No method
is fitted or selected with test data.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from benchmarks import defects, denoising, digits, shuttle
from benchmarks.measures import Measure, to_rows, to_tables
from benchmarks.report import write_report

TASKS: Mapping[str, Callable[[Sequence[int]], Iterator[Measure]]] = {
    "textures": defects.measure,
    "digits": digits.measure,
    "noise": denoising.measure,
    "shuttle": shuttle.measure,
}
"""Function that measures each group of tasks."""

PEERS = ("pyod", "scikit-learn", "scikit-image")


def run(tasks: Sequence[str], seeds: Sequence[int], out: Path) -> None:
    """Measure tasks with all seeds, print the tables and write the JSON."""
    measures: list[Measure] = []
    for task in tasks:
        started = time.perf_counter()
        task_measures = list(TASKS[task](seeds))
        print(f"{task}: {time.perf_counter() - started:.0f} s\n\n{to_tables(task_measures)}\n", flush=True)
        measures += task_measures
    write_report(out, "models", to_rows(measures), PEERS)


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.models", description=__doc__)
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated numbers (default: %(default)s)")
    parser.add_argument("--tasks", default=",".join(TASKS), help="comma-separated tasks (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    tasks = arguments.tasks.split(",")
    if unknown := sorted(set(tasks) - TASKS.keys()):
        parser.error(f"--tasks contains {unknown[0]!r}; choose from {', '.join(TASKS)}")
    torch.set_num_threads(1)  # two threads are slower for networks of this size
    run(tasks, [int(seed) for seed in arguments.seeds.split(",")], arguments.out)


if __name__ == "__main__":
    main()
