"""The MLflow run of one training: parameters, metrics, plots, input data, and the version that it registers."""

import json
import time
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import replace
from importlib import metadata
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunStatus, RunTag
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import AnyType
from mlflow.utils.validation import MAX_DATASET_SCHEMA_SIZE

from ae_pipeline.common.errors import StorageError
from ae_pipeline.config.columns import ColumnType
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.registry.digests import digest_tags
from ae_pipeline.registry.names import CHALLENGER, CHAMPION
from ae_pipeline.registry.versions import TrackedVersion, newest_version_of_run, version_by_alias

if TYPE_CHECKING:
    from PIL import Image

    from ae_pipeline.detector.facts import Epoch

_FLUSH_SECONDS = 5.0
"""Time after which buffered metrics of epochs are written."""

_METRICS_PER_CALL = 900
"""Metrics in one call; MLflow accepts 1,000."""

_SERVING_PACKAGES = ("numpy", "pandas", "pillow", "polars", "pyarrow", "pydantic", "pyyaml", "safetensors", "torch")
_PACKAGE = Path(__file__).parents[1]
_PYFUNC_MODEL = _PACKAGE / "registry" / "pyfunc_model.py"
NOTE_TAG = "mlflow.note.content"
"""Tag with the description of a run or an experiment, Markdown."""

# MLflow's datetime type rejects timestamps with a time zone, and its boolean type turns missing values into False.
_ANY = AnyType()  # type: ignore[no-untyped-call]
_TYPES: dict[ColumnType, DataType | AnyType] = {
    ColumnType.INTEGER: DataType.double,  # pandas has integers with missing values as floats
    ColumnType.NUMBER: DataType.double,
    ColumnType.CLOCK_HHMM: DataType.double,
    ColumnType.BOOLEAN: _ANY,
    ColumnType.TIMESTAMP: _ANY,
    ColumnType.DATE: _ANY,
    ColumnType.IMAGE: DataType.binary,
}


class TrainingRun:
    """An open MLflow run of a training.

    Args:
        client: MLflow client of the store.
        dataset: Name of the registered model, which is the name of the dataset.
        run_id: Id of the run.
    """

    def __init__(self, client: MlflowClient, dataset: str, run_id: str) -> None:
        self.client, self.dataset, self.run_id = client, dataset, run_id
        self._buffer: list[Metric] = []
        self._flushed_at = time.monotonic()

    def rename(self, name: str) -> None:
        """Give the run a new name."""
        self.client.update_run(self.run_id, name=name)

    def log_params(self, params: Mapping[str, Any], tags: Mapping[str, str] | None = None) -> None:
        """Log parameters and tags in one call.

        MLflow never changes a parameter. A retry continues its run, and what it logs with another value, because of
        another configuration or other data, becomes a tag with the name of the parameter.
        """
        logged = self.client.get_run(self.run_id).data.params
        texts = {key: str(value)[:6000] for key, value in params.items()}
        changed = {key: text for key, text in texts.items() if logged.get(key, text) != text}
        self.client.log_batch(
            self.run_id,
            params=[Param(key, text) for key, text in texts.items() if key not in changed],
            tags=[RunTag(key, value) for key, value in {**changed, **(tags or {})}.items()],
        )

    def log_epoch(self, epoch: "Epoch") -> None:
        """Log the losses of an epoch. Short epochs are written several at a time.

        The learning rate follows from parameters, and each schedule ends with the same one.
        """
        self.log_metrics({"train_loss": epoch.train_loss, "validation_loss": epoch.validation_loss}, epoch.number)
        if time.monotonic() - self._flushed_at > _FLUSH_SECONDS:
            self.flush()

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Add metrics to the buffer that `flush` writes."""
        now = int(time.time() * 1000)
        self._buffer += [Metric(key, float(value), now, step) for key, value in metrics.items()]

    def flush(self) -> None:
        """Write the buffered metrics."""
        for start in range(0, len(self._buffer), _METRICS_PER_CALL):
            self.client.log_batch(self.run_id, metrics=self._buffer[start : start + _METRICS_PER_CALL])
        self._buffer.clear()
        self._flushed_at = time.monotonic()

    def log_picture(self, picture: "Image.Image", name: str) -> None:
        """Log an image as PNG."""
        with TemporaryDirectory() as folder:
            picture.save(Path(folder) / name, "PNG", optimize=True)
            self.client.log_artifact(self.run_id, str(Path(folder) / name))

    def log_data(self, name: str, digest: str, location: str, rows: Mapping[str, int], bundle: ModelBundle) -> None:
        """Log the training data as the input of the run.

        Args:
            name: Name of the dataset.
            digest: Hash of the training window and its content.
            location: URI of the folder with the features.
            rows: Number of rows, by part of the training window.
            bundle: Bundle whose columns make up the schema.
        """
        schema = json.dumps({"mlflow_colspec": _inputs(bundle).to_dict()})
        profile = json.dumps(
            {"num_rows": sum(rows.values()), **{f"{part}_rows": count for part, count in rows.items()}}
        )
        # A schema that is too long is left out; the model's signature has it too.
        short_schema = schema if len(schema) <= MAX_DATASET_SCHEMA_SIZE else None
        data = Dataset(name, digest[:36], "local", json.dumps({"uri": location}), short_schema, profile)
        self.client.log_inputs(
            self.run_id, datasets=[DatasetInput(data, [InputTag("mlflow.data.context", "training")])]
        )

    def describe(self, version: TrackedVersion, note: str, card: str) -> None:
        """Log the model card, and set the description of the run and of the version.

        Args:
            version: Version that this run registered.
            note: Short description, Markdown; cut after 5,000 characters.
            card: Model card, Markdown.
        """
        self.client.log_text(self.run_id, card, "model_card.md")
        self.client.set_tag(self.run_id, NOTE_TAG, note[:5000])
        self.client.update_model_version(self.dataset, str(version.version), description=note[:5000])

    def log_json(self, value: Any, name: str) -> None:
        """Log a value as a JSON file."""
        self.client.log_dict(self.run_id, value, name)

    def register(self, bundle: ModelBundle) -> TrackedVersion:
        """Log the bundle as a pyfunc model without pickle, and register it as the challenger.

        An earlier version of the same run is deleted afterwards, so that a retry leaves one version. The champion is
        never deleted.

        Raises:
            StorageError: MLflow did not register the model.
        """
        self.flush()
        previous = newest_version_of_run(self.client, self.dataset, self.run_id)
        nested = mlflow.active_run() is not None
        # MLflow prints the name of the new version to stderr, not to its loggers. Errors are still raised.
        quiet = redirect_stderr(StringIO())
        with TemporaryDirectory() as folder, mlflow.start_run(self.run_id, nested=nested), quiet:
            bundle.save(Path(folder) / "bundle")
            digests = digest_tags(Path(folder) / "bundle")
            # The signature is given, so MLflow needs no input example to infer it from.
            warnings.filterwarnings("ignore", message=".*input example was not provided.*")
            mlflow.pyfunc.log_model(
                name="model",
                python_model=str(_PYFUNC_MODEL),
                artifacts={"bundle": str(Path(folder) / "bundle")},
                signature=_signature(bundle),
                # The code is logged with the model: the project's name on a public index may belong to another project.
                code_paths=[str(_PACKAGE)],
                pip_requirements=[f"{name}=={metadata.version(name)}" for name in _SERVING_PACKAGES],
                registered_model_name=self.dataset,
            )
        registered = newest_version_of_run(self.client, self.dataset, self.run_id)
        if registered is None:
            raise StorageError(
                f"MLflow did not register the model of run {self.run_id}; check the log of MLflow and run again"
            )
        # In two places, so that a damaged tag refuses no whole bundle.
        self.client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in digests.items()])
        for key, value in digests.items():
            self.client.set_model_version_tag(self.dataset, str(registered.version), key, value)
        self.client.set_registered_model_alias(self.dataset, CHALLENGER, str(registered.version))
        champion = version_by_alias(self.client, self.dataset, CHAMPION)
        if previous and previous.version not in {registered.version, champion.version if champion else None}:
            self.client.delete_model_version(self.dataset, str(previous.version))
        # Registering has ended the MLflow run, but the training continues.
        self.client.update_run(self.run_id, status=RunStatus.to_string(RunStatus.RUNNING))
        return replace(registered, tags={**registered.tags, **digests})


def _inputs(bundle: ModelBundle) -> Schema:
    columns: list[ColSpec | TensorSpec] = [
        ColSpec(_TYPES.get(column.type, DataType.string), column.name, required=False)
        for column in bundle.encoder.inputs
    ]
    return Schema(columns)


def _signature(bundle: ModelBundle) -> ModelSignature:
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.float, f"z_{index:03d}") for index in range(bundle.model.latent_dim)
    ]
    outputs += [
        ColSpec(DataType.double, "score"),
        ColSpec(DataType.double, "p_value"),
        ColSpec(DataType.boolean, "is_anomaly"),
    ]
    use = ParamSchema([ParamSpec("use", DataType.string, "score")])
    return ModelSignature(_inputs(bundle), Schema(outputs), use)
