"""The MLflow model that serves a bundle. MLflow loads it from this file, so nothing is pickled."""

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import polars as pl
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from ae_pipeline.common.errors import BundleError
from ae_pipeline.config.columns import ColumnType
from ae_pipeline.detector.bundle import ModelBundle


class BundleModel(PythonModel):
    """Score features with the bundle that was logged beside this file."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the bundle. MLflow calls this once."""
        self.bundle = ModelBundle.load(Path(context.artifacts["bundle"]))

    def predict(self, context: PythonModelContext, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:  # noqa: ARG002
        """Score features, or remove their noise.

        Args:
            context: Unused. The bundle is already loaded.
            model_input: Features, one row for each row to score. Columns that the model was not fitted on are ignored.
            params: `use`: `score` (the default) or `denoise`.

        Returns:
            One row for each row of the input, with its index. For `score`: columns `z_000`, …, `score`, `p_value` and
            `is_anomaly`. For `denoise`: the fitted columns as the network reconstructs them.

        Raises:
            BundleError: A column is missing or has another type, or `use` has another value.
        """
        use = (params or {}).get("use", "score")
        if use not in {"score", "denoise"}:
            raise BundleError(f"use={use!r} is not a use of this model; choose score or denoise")
        times = {c.name for c in self.bundle.encoder.inputs if c.type in {ColumnType.TIMESTAMP, ColumnType.DATE}}
        time_columns = sorted(times & set(model_input.columns))
        model_input = model_input.assign(**{name: pd.to_datetime(model_input[name], utc=True) for name in time_columns})
        # pandas gives integers with missing values as floats; the encoder reads both.
        flags = {c.name for c in self.bundle.encoder.columns if c.type == ColumnType.BOOLEAN}
        names = [name for name in model_input if name in self.bundle.columns]
        others = [name for name in names if name not in flags]
        features = pl.from_pandas(model_input[others]) if others else pl.DataFrame()
        features = features.with_columns(_flags(name, model_input[name]) for name in names if name in flags)
        features = features.select(names)
        if use == "denoise":
            return self.bundle.denoise(features).to_pandas().set_index(model_input.index)
        scored = self.bundle.score(features)
        columns: dict[str, Any] = {f"z_{index:03d}": values for index, values in enumerate(scored.latents.T)}
        columns |= {"score": scored.score, "p_value": scored.p_value, "is_anomaly": scored.is_anomaly}
        return pd.DataFrame(columns, index=model_input.index)


def _flags(name: str, values: "pd.Series[Any]") -> pl.Series:
    """Return booleans, which pandas has as objects, numbers or booleans, with None where a value is missing."""
    missing = values.isna()
    if wrong := [value for value in values[~missing] if value not in (True, False)]:
        raise BundleError(
            f"column {name!r} holds {wrong[0]!r}, which is no boolean; give true, false or a missing value"
        )
    flags = [None if is_missing else bool(value) for value, is_missing in zip(values, missing, strict=True)]
    return pl.Series(name, flags, dtype=pl.Boolean)


mlflow.models.set_model(BundleModel())
