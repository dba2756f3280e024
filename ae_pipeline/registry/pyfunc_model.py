"""What MLflow runs to serve a bundle: loaded from code, so that nothing is pickled."""

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
    """Scores features with the bundle that was logged beside this file."""

    def load_context(self, context: PythonModelContext) -> None:
        """Loads the bundle, once."""
        self.bundle = ModelBundle.load(Path(context.artifacts["bundle"]))

    def predict(self, context: PythonModelContext, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:  # noqa: ARG002
        """Scores features, or removes their noise.

        Args:
            context: Unused, the bundle is loaded.
            model_input: Features, one row each; columns that the model was not fitted on are not looked at.
            params: `use`: score, or denoise.

        Returns:
            Row for row, on the index of the input: columns z_000 …, score, p_value and is_anomaly; or the fitted
            columns as the network reconstructs them.

        Raises:
            BundleError: A column is missing or of another type, or there is no such use.
        """
        use = (params or {}).get("use", "score")
        if use not in {"score", "denoise"}:
            raise BundleError(f"use={use!r} is not a use of this model; choose score or denoise")
        times = {c.name for c in self.bundle.encoder.columns if c.type in {ColumnType.TIMESTAMP, ColumnType.DATE}}
        here = sorted(times & set(model_input.columns))
        model_input = model_input.assign(**{name: pd.to_datetime(model_input[name], utc=True) for name in here})
        # Whole numbers with gaps come as floats from pandas; the encoder reads either.
        features = pl.from_pandas(model_input[[c for c in model_input if c in self.bundle.columns]])
        if use == "denoise":
            return self.bundle.denoise(features).to_pandas().set_index(model_input.index)
        scored = self.bundle.score(features)
        columns: dict[str, Any] = {f"z_{location:03d}": values for location, values in enumerate(scored.latents.T)}
        columns |= {"score": scored.score, "p_value": scored.p_value, "is_anomaly": scored.is_anomaly}
        return pd.DataFrame(columns, index=model_input.index)


mlflow.models.set_model(BundleModel())
