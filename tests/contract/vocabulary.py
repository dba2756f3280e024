"""Lists identifiers that a standard term replaces: `python tests/contract/vocabulary.py PATH…`."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

REPLACED = frozenset(
    """
    ahead Anchor anchor_to apart Axes before bent chance Coder ColumnTails crowd density departure departure_by_chance
    discoveries drawn drifted explained found how_many inherit Intake knots least_alive least_explained listed
    marginal_tails members most_condition most_departure most_lost most_worse own Pace Pass place pull screens Shown
    Sparingly spots spread surprise take_in tell there told told_of turn typical upkeep Verdict views words
    """.split()  # noqa: SIM905
)
"""Names with two meanings, and names for what the field calls something else; docs/glossary.md has the terms."""

FORMATS = frozenset({"reports/summary.py"})
"""Modules whose field names are keys of a published file format."""


def replaced_names(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and name of each identifier of a module that a standard term replaces."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [getattr(node, field, None) for field in ("id", "attr", "name", "arg", "asname")]
        module = getattr(node, "module", None)
        names += module.split(".") if isinstance(module, str) else []
        for name in names:
            bare = name.lstrip("_") if isinstance(name, str) else ""
            if bare in REPLACED or bare.startswith("tell_"):
                yield getattr(node, "lineno", 0), bare


def modules(root: Path) -> list[Path]:
    """Return the modules below a folder, without those of a file format."""
    paths = [root] if root.is_file() else sorted(root.rglob("*.py"))
    return [path for path in paths if not any(path.as_posix().endswith(name) for name in FORMATS)]


if __name__ == "__main__":
    lines = [
        f"{path}:{line}: {name}"
        for argument in sys.argv[1:]
        for path in modules(Path(argument))
        for line, name in replaced_names(path)
    ]
    print("\n".join(lines) or "no replaced name")  # noqa: T201
    sys.exit(bool(lines))
