"""A new SQLite database of MLflow."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import sqlalchemy

from ae_pipeline.storage.files import atomic_write


def create_database(path: Path) -> None:
    """Create MLflow's tables in a file that appears in one step.

    MLflow creates them in dozens of transactions. After a kill between two of them, it can neither go on nor start.

    Args:
        path: File of the database.

    Raises:
        StorageError: The disk is full, or the folder cannot be written.
    """
    from mlflow.store.db import utils

    initialize: Any = utils._initialize_tables  # what the store of MLflow calls for an empty database
    with TemporaryDirectory() as folder:
        database = Path(folder, path.name)
        engine = sqlalchemy.create_engine(f"sqlite:///{database}")
        try:
            initialize(engine)
        finally:
            engine.dispose()
        with atomic_write(path) as temporary:
            shutil.copyfile(database, temporary)
