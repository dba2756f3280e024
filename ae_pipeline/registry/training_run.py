"""One training's run: parameters, metrics, pictures, what it learnt from, and the version that it registers."""

import json
import time
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr
from importlib import metadata
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunStatus, RunTag
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import AnyType
from mlflow.utils.validation import MAX_DATASET_SCHEMA_SIZE

import ae_pipeline
from ae_pipeline.common.errors import StorageError
from ae_pipeline.config.columns import ColumnType
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.registry.names import CHALLENGER, CHAMPION

if TYPE_CHECKING:
    from PIL import Image

    from ae_pipeline.detector.facts import Epoch
    from ae_pipeline.registry.store import TrackedVersion, Tracker

_FLUSH_SECONDS = 5.0
_SERVED_WITH = ("numpy", "pandas", "polars", "pyarrow", "pydantic", "pyyaml", "safetensors", "torch")
_PACKAGE = Path(ae_pipeline.__file__).parent
_SERVING = _PACKAGE / "registry" / "pyfunc_model.py"
_NOTE = "mlflow.note.content"
"""Tag of a run: its description, Markdown."""

# MLflow's datetime refuses times that bear a zone, as those of features do.
_ANY = AnyType()  # type: ignore[no-untyped-call]
_TYPES: dict[ColumnType, DataType | AnyType] = {
    ColumnType.INTEGER: DataType.double,  # pandas makes floats of whole numbers with gaps
    ColumnType.NUMBER: DataType.double,
    ColumnType.CLOCK_HHMM: DataType.double,
    ColumnType.BOOLEAN: DataType.boolean,
    ColumnType.TIMESTAMP: _ANY,
    ColumnType.DATE: _ANY,
    ColumnType.IMAGE: DataType.binary,
}


class TrainingRun:
    """One open MLflow run."""

    def __init__(self, tracker: "Tracker", dataset: str, run_id: str) -> None:
        self.tracker, self.dataset, self.run_id = tracker, dataset, run_id
        self._waiting: list[Metric] = []
        self._flushed = time.monotonic()

    def log_params(self, params: Mapping[str, Any], tags: Mapping[str, str] | None = None) -> None:
        """Logs parameters and tags in one call."""
        self.tracker.client.log_batch(
            self.run_id,
            params=[Param(key, str(value)[:6000]) for key, value in params.items()],
            tags=[RunTag(key, value) for key, value in (tags or {}).items()],
        )

    def log_epoch(self, epoch: "Epoch") -> None:
        """Logs an epoch's figures, several epochs at a time where they are short."""
        self.log_metrics(
            {
                "train_loss": epoch.train_loss,
                "validation_loss": epoch.validation_loss,
                "learning_rate": epoch.learning_rate,
            },
            epoch.number,
        )
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Keeps metrics for the next flush."""
        now = int(time.time() * 1000)
        self._waiting += [Metric(key, float(value), now, step) for key, value in metrics.items()]

    def flush(self) -> None:
        """Writes the metrics that wait."""
        for start in range(0, len(self._waiting), 900):  # the store takes 1,000 at a time
            self.tracker.client.log_batch(self.run_id, metrics=self._waiting[start : start + 900])
        self._waiting.clear()
        self._flushed = time.monotonic()

    def log_picture(self, picture: "Image.Image", name: str) -> None:
        """Logs a plot as PNG."""
        with TemporaryDirectory() as folder:
            picture.save(Path(folder) / name, "PNG", optimize=True)
            self.tracker.client.log_artifact(self.run_id, str(Path(folder) / name))

    def log_data(self, name: str, digest: str, location: str, rows: Mapping[str, int], bundle: ModelBundle) -> None:
        """Logs what was learnt from as the run's input.

        Args:
            name: Of the dataset.
            digest: Names the window and its content.
            location: Address of the folder that holds it.
            rows: By part of the window.
            bundle: Whose columns it has.
        """
        schema = json.dumps({"mlflow_colspec": _inputs(bundle).to_dict()})
        profile = json.dumps(
            {"num_rows": sum(rows.values()), **{f"{part}_rows": count for part, count in rows.items()}}
        )
        told = schema if len(schema) <= MAX_DATASET_SCHEMA_SIZE else None  # the signature has it too
        data = Dataset(name, digest[:36], "local", json.dumps({"uri": location}), told, profile)
        self.tracker.client.log_inputs(
            self.run_id, datasets=[DatasetInput(data, [InputTag("mlflow.data.context", "training")])]
        )

    def describe(self, version: "TrackedVersion", note: str, card: str) -> None:
        """Describes the run and its version in Markdown, and keeps the whole card beside the model.

        Args:
            version: Registered by this run.
            note: In short, at most 5,000 characters.
            card: The whole.
        """
        client = self.tracker.client
        client.log_text(self.run_id, card, "model_card.md")
        client.set_tag(self.run_id, _NOTE, note[:5000])
        client.update_model_version(self.dataset, str(version.version), description=note[:5000])

    def log_json(self, value: Any, name: str) -> None:
        """Logs a JSON file."""
        self.tracker.client.log_dict(self.run_id, value, name)

    def register(self, bundle: ModelBundle) -> "TrackedVersion":
        """Logs the bundle as a pyfunc model without pickle and registers it as the challenger.

        A version that this run has registered before is withdrawn after that, so that a retry does not leave two; the
        one that serves never is.
        """
        self.flush()
        previous = self.tracker.version_of_run(self.dataset, self.run_id)
        nested = mlflow.active_run() is not None
        # What it registers MLflow prints past its loggers, and what goes wrong it raises.
        quiet = redirect_stderr(StringIO())
        with TemporaryDirectory() as folder, mlflow.start_run(self.run_id, nested=nested), quiet:
            bundle.save(Path(folder) / "bundle")
            # The signature is given, so the example that MLflow would like to infer it from is not needed.
            warnings.filterwarnings("ignore", message=".*input example was not provided.*")
            mlflow.pyfunc.log_model(
                name="model",
                python_model=str(_SERVING),
                artifacts={"bundle": str(Path(folder) / "bundle")},
                signature=_signature(bundle),
                # The package travels with the model: its name on a public index may be somebody else's.
                code_paths=[str(_PACKAGE)],
                pip_requirements=[f"{name}=={metadata.version(name)}" for name in _SERVED_WITH],
                registered_model_name=self.dataset,
            )
        registered = self.tracker.version_of_run(self.dataset, self.run_id)
        if registered is None:
            raise StorageError(
                f"MLflow has not registered the model of run {self.run_id}; look at its log and run again"
            )
        self.tracker.set_alias(self.dataset, CHALLENGER, registered.version)
        champion = self.tracker.version(self.dataset, CHAMPION)
        if previous and previous.version not in {registered.version, champion.version if champion else None}:
            self.tracker.client.delete_model_version(self.dataset, str(previous.version))
        # Registering has closed the run; it ends when the training does.
        self.tracker.client.update_run(self.run_id, status=RunStatus.to_string(RunStatus.RUNNING))
        return registered


def _inputs(bundle: ModelBundle) -> Schema:
    columns: list[ColSpec | TensorSpec] = [
        ColSpec(_TYPES.get(column.type, DataType.string), column.name, required=False)
        for column in bundle.encoder.columns
    ]
    return Schema(columns)


def _signature(bundle: ModelBundle) -> ModelSignature:
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.float, f"z_{location:03d}") for location in range(bundle.model.latent_dim)
    ]
    outputs += [
        ColSpec(DataType.double, "score"),
        ColSpec(DataType.double, "p_value"),
        ColSpec(DataType.boolean, "is_anomaly"),
    ]
    use = ParamSchema([ParamSpec("use", DataType.string, "score")])
    return ModelSignature(_inputs(bundle), Schema(outputs), use)
