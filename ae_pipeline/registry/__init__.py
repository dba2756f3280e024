"""Experiment tracking and model registry on MLflow, and the history of promotions."""

import logging
import os

# MLflow reads these variables when it is imported. Telemetry would let a run wait for a network.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

for _name in (
    "mlflow.tracking._model_registry.client",
    "mlflow.utils.requirements_utils",
    "alembic",
):
    logging.getLogger(_name).setLevel(logging.ERROR)
# It logs each error of the database with a traceback, and raises it as well.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
