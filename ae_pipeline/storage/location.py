"""Where the data of a project is: a folder of this machine, or an object store with a working copy on this machine."""

import hashlib
import os
import re
from pathlib import Path

from ae_pipeline.common.errors import ConfigError
from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.storage.project import find_project, local_folder

DATA_VARIABLE, SCRATCH_VARIABLE = "AE_PIPELINE_DATA", "AE_PIPELINE_SCRATCH"
"""Environment variables that select the data, and the folder of working copies."""

_SCHEMES = ("s3", "gs", "az")
"""Object stores that replace an object only if it has a given version."""


def data_location(data: str | os.PathLike[str] | None = None) -> str:
    """Return the path of the data folder, or the address of the object store that has the data.

    Args:
        data: Path or address; by default `AE_PIPELINE_DATA`, or `data` in the project.

    Raises:
        ConfigError: It is an address of another kind.
    """
    value = str(data or os.environ.get(DATA_VARIABLE) or find_project().root / "data")
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/", value)
    if match is None:
        return value
    address = value.rstrip("/")
    if re.fullmatch(rf"({'|'.join(_SCHEMES)})://[^/]+(/[^/]+)*", address):
        return address
    known = ", ".join(f"{scheme}://" for scheme in _SCHEMES)
    raise ConfigError(
        f"{DATA_VARIABLE}={value}: no folder of this machine, and no address of a supported object store; give a path, "
        f"or an address such as s3://bucket/prefix. Supported are {known}"
    )


def data_folder(data: str | os.PathLike[str] | None = None) -> Path:
    """Return the data folder on this machine: for an object store, the folder of its working copy.

    Args:
        data: Path or address; see `data_location`.
    """
    location = data_location(data)
    return _working_folder(location) if "://" in location else Path(location)


def dataset_paths(
    dataset: str, data: str | os.PathLike[str] | None = None, tables: str | None = None, project: Path = Path()
) -> DatasetPaths:
    """Return the paths of a dataset.

    Args:
        dataset: Name of the dataset.
        data: Path or address; see `data_location`.
        tables: Folder or object store of the latent tables; by default `latents` beside the other data.
        project: Folder of the project.

    Raises:
        ConfigError: `data` is an address of another kind.
    """
    location, folder = data_location(data), data_folder(data).resolve()
    if "://" not in location:
        return DatasetPaths(folder, dataset, tables, project)
    return DatasetPaths(folder, dataset, tables or f"{location}/latents", project, location)


def reader_paths(dataset: str, data: str | os.PathLike[str] | None, tables: str | None) -> DatasetPaths:
    """Return the paths of a dataset for a reader, who works in any folder.

    Args:
        dataset: Name of the dataset.
        data: Path or address; by default `AE_PIPELINE_DATA`, or `data` in the working directory.
        tables: Folder or object store of the latent tables; by default `AE_PIPELINE_TABLES` if `data` is not given, or
            `latents` beside the other data.

    Raises:
        ConfigError: `data` is an address of another kind.
    """
    tables = tables or (None if data else os.environ.get("AE_PIPELINE_TABLES"))
    return dataset_paths(dataset, data or os.environ.get(DATA_VARIABLE) or "data", tables)


def _working_folder(address: str) -> Path:
    """Return the folder of the working copy of an object store, with a readable name that no other address has."""
    value = os.environ.get(SCRATCH_VARIABLE)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ae_pipeline"
    scratch = local_folder(value, SCRATCH_VARIABLE) if value else cache
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", address)
    return scratch / f"{readable}-{hashlib.sha256(address.encode()).hexdigest()[:8]}"
