"""`ae-pipeline list`: the datasets of the project and their state."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ae_pipeline.cli.project import load_folder
from ae_pipeline.common.errors import PipelineError
from ae_pipeline.common.text import align

if TYPE_CHECKING:
    from ae_pipeline.orchestration.resources import Workspace
    from ae_pipeline.storage.dataset import Dataset

_HEADER = ("dataset", "version", "newest day", "rows", "state")


def list_datasets() -> int:
    """Print each dataset with its state, then each file that cannot be loaded; return 1 if there is one."""
    loaded = load_folder()
    workspace: Workspace = (loaded.definitions.resources or {})["workspace"]
    rows = [_state(workspace.dataset(loaded.configs[name])) for name in sorted(loaded.configs)]
    print("\n".join(align([_HEADER, *rows], right={"version", "rows"})))
    if not rows:
        print("The defs folder has no dataset that can be loaded.")
    for broken in loaded.broken:
        print(f"{', '.join(broken.datasets) or broken.group}: not loaded: {broken.message}", file=sys.stderr)
    return 1 if loaded.broken else 0


def _state(dataset: "Dataset") -> tuple[str, ...]:
    """Return name, version that serves, newest day, rows of raw_data, and what else there is to say."""
    from ae_pipeline.ingestion.ledger import Ledger
    from ae_pipeline.storage.paths import ALL_ROWS
    from ae_pipeline.storage.session import refresh

    try:
        refresh(dataset.paths)
        ledger = Ledger.load(dataset.paths.ledger)
        version = _serving_version(dataset)
        days = [day for day in ledger.days if dataset.config.has_day(day)]
        rows = _rows(dataset.paths.raw(day) for day in days)
    except (PipelineError, OSError) as error:
        return dataset.name, "", "", "", f"its state cannot be read: {' '.join(str(error).split())}"
    if not ledger.files and version is None:
        return dataset.name, "", "", "", "never ran"
    newest = "" if not days or days == [ALL_ROWS] else days[-1]
    notes = ["no version serves"] if version is None else []
    notes += [f"{len(ledger.refused):,} files refused"] if ledger.refused else []
    return dataset.name, "" if version is None else str(version), newest, f"{rows:,}", "; ".join(notes) or "serving"


def _serving_version(dataset: "Dataset") -> int | None:
    """Return the version that serves by the history, because importing MLflow takes seconds."""
    from ae_pipeline.registry.history import Change, history

    served = [entry.version for entry in history(dataset.paths) if entry.change != Change.REJECTED]
    return served[-1] if served else None


def _rows(files: "Iterable[Path]") -> int:
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(file).num_rows for file in files if file.exists())
