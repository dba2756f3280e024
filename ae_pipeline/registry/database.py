"""The SQLite database of a local model store: checked, restored or created before MLflow opens it."""

import logging
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import sqlalchemy

from ae_pipeline.common.errors import StorageError
from ae_pipeline.storage.files import atomic_write
from ae_pipeline.storage.sqlite import copy_database, is_empty, require_unlocked, sqlite_damage

logger = logging.getLogger(__name__)


def prepare_database(database: Path, backup: Path) -> None:
    """Restore a database that is missing from its backup, or create it.

    Args:
        database: File of the database.
        backup: Copy of it; it need not exist.

    Raises:
        StorageError: The database is damaged, another program holds its lock, or it cannot be written.
    """
    if damage := sqlite_damage(database):
        raise StorageError(
            f"the database of the model store, {database}, is damaged ({damage}); `ae-pipeline doctor --repair` "
            "moves it aside and restores the state after the last training, decision or rollback"
        )
    require_unlocked(database)
    if not is_empty(database):
        return
    if backup.exists() and not sqlite_damage(backup):
        logger.warning(f"the database of the model store, {database}, is missing; its backup is restored")
        copy_database(backup, database)
    else:
        _create(database)


def _create(path: Path) -> None:
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
