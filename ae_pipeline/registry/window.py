"""The window that a registered training started from."""

from functools import lru_cache

import mlflow
from mlflow.exceptions import MlflowException

from ae_pipeline.registry.store import Tracker
from ae_pipeline.registry.versions import TrackedVersion

WINDOW_FILE = "window.json"
"""Artifact of a training's run: the days of each part of its window, and their content when it began."""


def window_content(tracker: Tracker, version: TrackedVersion) -> dict[str, tuple[str, int]] | None:
    """Return content hash and rows of each day of features when a version was trained; None if that is not known.

    Args:
        tracker: The model store.
        version: A registered version.
    """
    _ = tracker.client  # sets the tracking URI that mlflow.artifacts reads
    try:
        return _content(tracker.uri, version.run_id)
    except (MlflowException, OSError, KeyError, ValueError):  # removed, or written by something else
        return None


@lru_cache(maxsize=16)
def _content(uri: str, run_id: str) -> dict[str, tuple[str, int]]:  # noqa: ARG001 - a run id belongs to one store
    # Not download_artifacts, which leaves a temporary folder for each process.
    content = mlflow.artifacts.load_dict(f"runs:/{run_id}/{WINDOW_FILE}")["content"]
    return {str(day): (str(digest), int(rows)) for day, (digest, rows) in content.items()}
