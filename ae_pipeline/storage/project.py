"""The project: the folder in which datasets are defined, and below which runs write by default."""

import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ae_pipeline.common.errors import ConfigError

DEFS_VARIABLE = "AE_PIPELINE_DEFS"
"""Environment variable that selects the folder with the datasets."""

_PACKAGE = Path(__file__).resolve().parents[1]

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


_STORES = {"s3", "s3a", "gs", "az", "adl", "azure", "abfs", "abfss", "hdfs", "lakefs", "file"}
"""Schemes of object stores that the `deltalake` package opens."""


@dataclass(frozen=True)
class ProjectFolder:
    """A project on this machine.

    Attributes:
        root: Folder of the project, to which the paths of the YAML are relative.
        defs: Folder with the datasets.
        module: Name under which Python imports that folder.
        is_own: Whether somebody has made this project. Otherwise it has the examples that the package brings.
    """

    root: Path
    defs: Path
    module: str
    is_own: bool = True

    @property
    def has_examples(self) -> bool:
        """Whether its datasets are the examples that the package brings."""
        return self.defs == _PACKAGE / "defs"


def find_project() -> ProjectFolder:
    """Return the project of `AE_PIPELINE_DEFS`, of the working directory, or of the clone that has this package.

    A project is a folder with a `dg.toml` or `pyproject.toml` whose code location is this package. Without any, the
    result has the examples of the package, and its root is the working directory.

    Raises:
        ConfigError: `AE_PIPELINE_DEFS` names no folder, or a `dg.toml` or `pyproject.toml` is no TOML.
    """
    here = Path.cwd()
    if value := os.environ.get(DEFS_VARIABLE):
        defs = local_folder(value, DEFS_VARIABLE).resolve()
        if not defs.is_dir():
            raise ConfigError(f"{DEFS_VARIABLE}={value}: there is no such folder; create it, or correct the variable")
        root = next((each for each in defs.parents if _project_in(each)), defs.parent)
        return ProjectFolder(root, defs, ".".join(defs.relative_to(root).parts))
    projects = (project for folder in (here, *here.parents, _PACKAGE.parent) if (project := _project_in(folder)))
    return next(projects, ProjectFolder(here, _PACKAGE / "defs", "ae_pipeline.defs", is_own=False))


def own_project() -> ProjectFolder:
    """Return the project, for a command that needs one.

    Raises:
        ConfigError: There is none here.
    """
    project = find_project()
    if not project.is_own:
        raise ConfigError(
            f"there is no project in {project.root} or above it; create one with `ae-pipeline init FOLDER` and run the "
            f"command there, or set {DEFS_VARIABLE} to a folder with datasets"
        )
    return project


def local_folder(value: str | os.PathLike[str], name: str) -> Path:
    """Return the path of a folder of this machine.

    Args:
        value: Path of the folder.
        name: Setting that has the path, for the message.

    Raises:
        ConfigError: The value is an address, which would become a local folder named after its scheme.
    """
    if _URL.match(str(value)):
        raise ConfigError(
            f"{name}={value}: only a folder of this machine can be used here; give its path. The data can be in an "
            "object store by AE_PIPELINE_DATA, or the latent tables alone by AE_PIPELINE_TABLES"
        )
    return Path(value)


def table_prefix(value: str) -> str:
    """Return the folder or the prefix of an object store that has the latent tables.

    Raises:
        ConfigError: The value is an address of another kind.
    """
    scheme = value.partition(":/")[0] if _URL.match(value) else None
    if scheme and not (scheme in _STORES and value.startswith(f"{scheme}://")):
        raise ConfigError(
            f"AE_PIPELINE_TABLES={value}: {scheme!r} is no object store; give a folder, or an address such as "
            "s3://bucket/latents, gs://bucket/latents or az://container/latents"
        )
    return value


def _project_in(folder: Path) -> ProjectFolder | None:
    """Return the project whose configuration is in a folder, or None."""
    for name, keys in (("dg.toml", ("project",)), ("pyproject.toml", ("tool", "dg", "project"))):
        settings = _settings(folder / name, keys)
        root_module, target = settings.get("root_module"), settings.get("code_location_target_module")
        # A clone of this package is a project for its own code only.
        is_clone = root_module == "ae_pipeline" and folder / "ae_pipeline" == _PACKAGE
        if is_clone or target == "ae_pipeline.definitions":
            module = str(settings.get("defs_module") or f"{root_module}.defs")
            return ProjectFolder(folder, folder.joinpath(*module.split(".")), module)
    return None


def _settings(file: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    """Return a table of a TOML file, empty if there is none."""
    try:
        table: Any = tomllib.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is no valid TOML: {error}; correct it") from error
    for key in keys:
        table = table.get(key) if isinstance(table, dict) else None
    return table if isinstance(table, dict) else {}
