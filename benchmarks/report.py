"""Output of every benchmark: a table, and JSON that includes the environment."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from ae_pipeline.common.version import __version__
from ae_pipeline.storage.files import write_text

Row = Mapping[str, str | int | float]
"""One flat result."""

PACKAGES = ("numpy", "polars", "torch")


def environment(packages: Sequence[str]) -> dict[str, str | int | dict[str, str]]:
    """Return the machine and the versions of ae-pipeline, of `PACKAGES` and of further packages."""
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cpu_count": os.cpu_count() or 1,
        "python": platform.python_version(),
        "versions": {"ae-pipeline": __version__} | {name: version(name) for name in sorted({*PACKAGES, *packages})},
    }


def _processor() -> str:
    described = Path("/proc/cpuinfo")
    if described.exists():
        for line in described.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write_report(path: Path, name: str, rows: Sequence[Row], packages: Sequence[str] = ()) -> None:
    """Write the results of a benchmark as JSON, atomically.

    Args:
        path: File to write.
        name: Name of the benchmark.
        rows: Results.
        packages: Peers whose versions are recorded, by their PyPI names.
    """
    content = {"name": name, "environment": environment(packages), "rows": [dict(row) for row in rows]}
    write_text(path, json.dumps(content, indent=1) + "\n")


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with padded cells: the first column left-aligned, all others right-aligned."""
    widths = [max(3, *map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(_line(cells, widths) for cells in (header, rule, *rows))


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    return "| " + " | ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]) + " |"
