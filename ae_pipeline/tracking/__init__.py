"""MLflow: one run for each training, and the registry of versions. The only importer of mlflow beside serving.py."""

import logging
import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")  # no run may wait for a network
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

for _chatty in (
    "mlflow.store.db.utils",
    "mlflow.tracking._model_registry.client",
    "mlflow.utils.requirements_utils",
    "alembic",
):
    logging.getLogger(_chatty).setLevel(logging.ERROR)

CHALLENGER, CHAMPION = "challenger", "champion"
"""Aliases in the registry: the newest trained version, and the one that serves."""

GATE_TAG = "gate"
"""Tag of a version: the gate's verdict. Its training sets it last; one without it was cut short."""
