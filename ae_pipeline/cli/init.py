"""`ae-pipeline init`: create a project that depends on this package."""

import re
import shlex
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import jinja2

from ae_pipeline.common.errors import ConfigError
from ae_pipeline.common.text import abbreviate
from ae_pipeline.common.version import __version__
from ae_pipeline.storage.files import make_folder, write_text

_INSTANCE = "dagster.yaml"
"""Name of the settings of Dagster's instance."""

_FILES = {
    "pyproject.toml": "pyproject.toml",
    "workspace.yaml": "workspace.yaml",
    "Makefile": "Makefile",
    "README.md": "README.md",
    "gitignore": ".gitignore",
    "__init__.py": "defs/__init__.py",
    _INSTANCE: f".dagster/{_INSTANCE}",
}
"""Path of each template in the project."""


def init(folder: Path, examples: Sequence[str] = ()) -> int:
    """Create a project in a folder, print what to do next, and return the exit status.

    Args:
        folder: Folder of the project. It may have other files.
        examples: Names of examples to add with their data.

    Raises:
        ConfigError: The folder has a project already, an example does not exist, or its data are not installed.
        StorageError: The folder cannot be written.
    """
    from ae_pipeline.cli.demo import DEMOS

    if unknown := sorted(set(examples) - set(DEMOS)):
        raise ConfigError(f"there is no example {unknown[0]!r}; choose among {', '.join(DEMOS)}")
    root = folder.resolve()
    targets = [*_FILES.values(), "dg.toml", *(f"defs/{name}/defs.yaml" for name in examples)]
    if existing := [name for name in targets if (root / name).exists()]:
        raise ConfigError(f"{root} has {abbreviate(existing)} already; choose another folder")
    name = re.sub(r"[^a-z0-9]+", "-", root.name.lower()).strip("-") or "project"
    for sub_folder in ("defs", "data/landing"):
        make_folder(root / sub_folder)
    for example in dict.fromkeys(examples):
        landing = root / "data" / "landing" / example
        if not landing.exists():
            DEMOS[example](landing)
        yaml = files("ae_pipeline").joinpath("defs", example, "defs.yaml").read_text(encoding="utf-8")
        write_text(root / "defs" / example / "defs.yaml", yaml)
    for template, target in _FILES.items():
        write_text(root / target, _render(template, name=name, version=__version__))
    first = f"ae-pipeline run {examples[0]}" if examples else "ae-pipeline new orders FILE…"
    print(f"Created the project {root}.\nNext: `cd {shlex.quote(str(folder))}`, then `{first}`. README.md shows more.")
    return 0


def make_dagster_home(home: Path) -> Path:
    """Write the default settings of Dagster's instance if the folder has none, and return the folder.

    Raises:
        StorageError: The folder cannot be written.
    """
    if not (home / _INSTANCE).exists():
        write_text(home / _INSTANCE, _render(_INSTANCE))
    return home


def _render(template: str, **values: str) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ae_pipeline.cli", "template"),
        autoescape=False,  # noqa: S701 - the files are no HTML
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template(f"{template}.j2").render(values)
