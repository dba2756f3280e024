"""The kinds of autoencoder at what they are for: ae_pipeline beside what its users would otherwise take.

Defects on photographed brick, latents of handwritten digits, noise removal, and anomalies of the shuttle's sensors.
Ours goes the package's own way, from a configuration by `fit_bundle` to a bundle that scores, encodes and denoises. The
modules of the tasks say who learns from what; nothing is fitted or chosen with the test part of any.
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
"""What measures each group of tasks."""

PEERS = ("pyod", "scikit-learn", "scikit-image")


def run(tasks: Sequence[str], seeds: Sequence[int], out: Path) -> None:
    """Measures tasks with all seeds, prints the tables and writes the JSON."""
    measures: list[Measure] = []
    for task in tasks:
        started = time.perf_counter()
        found = list(TASKS[task](seeds))
        print(f"{task}: {time.perf_counter() - started:.0f} s\n\n{to_tables(found)}\n", flush=True)
        measures += found
    write_report(out, "models", to_rows(measures), PEERS)


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.models", description=__doc__)
    parser.add_argument("--seeds", default="0,1,2", help="numbers, parted by commas (default: %(default)s)")
    parser.add_argument("--tasks", default=",".join(TASKS), help="some of these (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    tasks = arguments.tasks.split(",")
    if unknown := sorted(set(tasks) - TASKS.keys()):
        parser.error(f"--tasks names {unknown[0]!r}, which is none of {', '.join(TASKS)}")
    torch.set_num_threads(1)  # of networks this small, two threads wait for one another
    run(tasks, [int(seed) for seed in arguments.seeds.split(",")], arguments.out)


if __name__ == "__main__":
    main()
