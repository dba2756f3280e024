"""Lists identifiers that the project's vocabulary replaces by a standard term: `python tests/contract/vocabulary.py PATH…`."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

REPLACED = frozenset(
    """
    ahead anchor_to apart before bent chance Coder ColumnTails crowd departure departure_by_chance density discoveries drawn
    drifted explained found how_many inherit Intake knots least_alive least_explained listed marginal_tails members
    most_condition most_departure most_lost most_worse own Pace Pass place pull screens Shown Sparingly spots spread
    surprise take_in tell there told told_of turn typical upkeep Verdict views words
    Anchor Axes
    """.split()
)
"""Names that meant two things, or something that the field calls otherwise; see docs/glossary.md."""

FORMATS = frozenset({"reports/summary.py"})
"""Modules whose field names are keys of a published file format."""


def replaced_names(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and name of each identifier of a module that has a standard term."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [getattr(node, field, None) for field in ("id", "attr", "name", "arg", "asname")]
        names += [
            part for alias in [getattr(node, "module", None)] if isinstance(alias, str) for part in alias.split(".")
        ]
        for name in names:
            if isinstance(name, str) and (name.lstrip("_") in REPLACED or name.lstrip("_").startswith("tell_")):
                yield getattr(node, "lineno", 0), name


def modules(root: Path) -> list[Path]:
    """Return the modules below a folder, or the one module, without those of a file format."""
    paths = [root] if root.is_file() else sorted(root.rglob("*.py"))
    return [path for path in paths if not any(path.as_posix().endswith(name) for name in FORMATS)]


if __name__ == "__main__":
    count = 0
    for argument in sys.argv[1:]:
        for path in modules(Path(argument)):
            for line, name in replaced_names(path):
                print(f"{path}:{line}: {name}")
                count += 1
    sys.exit(count > 0)
