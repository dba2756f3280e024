"""Empty model stores."""

import tempfile
from functools import cache
from pathlib import Path

from ae_pipeline.registry.store import Tracker


@cache
def _empty_database() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        tracker = Tracker(Path(folder))
        tracker.open()
        assert tracker.database is not None
        return tracker.database.read_bytes()


def make_model_store(folder: Path) -> Path:
    """Write an empty model store into a folder, unless it has one, and return the folder.

    MLflow creates a database in 68 migrations, which take seconds. So a process creates one, and copies it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    database = folder / "mlflow.db"
    if not database.exists():
        database.write_bytes(_empty_database())
    return folder
