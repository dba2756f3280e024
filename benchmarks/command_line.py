"""Arguments that benchmarks share: seeds, a data folder to keep, and the JSON file."""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def read_seeds(text: str) -> list[int]:
    """Return the numbers of comma-separated numbers and inclusive ranges, such as `0..4,7`."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dots, last = part.partition("..")
        seeds += range(int(first), int(last) + 1) if dots else [int(first)]
    return seeds


def parser_with_data(name: str, description: str | None, seeds: str) -> argparse.ArgumentParser:
    """Return a parser of `--seeds`, `--data` and `--out`.

    Args:
        name: Module of the benchmark, below `benchmarks`.
        description: What the benchmark does.
        seeds: Default of `--seeds`; see `read_seeds`.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    help_of_seeds = f"numbers and ranges, such as 0..4,7 (default: {seeds})"
    parser.add_argument("--seeds", type=read_seeds, default=read_seeds(seeds), help=help_of_seeds)
    parser.add_argument("--data", type=Path, help="data folder to keep and reuse (default: a temporary folder)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    return parser


@contextmanager
def data_folder(kept: Path | None) -> Iterator[Path]:
    """Yield the folder to keep, or a temporary one."""
    if kept:
        yield kept
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
