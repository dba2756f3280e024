"""The encoder of a dataset: for images, or for table columns."""

from collections.abc import Sequence
from typing import Annotated, Any

import polars as pl
from pydantic import Field, TypeAdapter

from ae_pipeline.config.columns import FeatureColumn
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.encoding.image_encoder import ImageEncoder, fit_image_encoder
from ae_pipeline.encoding.table_encoder import TableEncoder
from ae_pipeline.encoding.table_fitting import fit_table_encoder

Encoder = TableEncoder | ImageEncoder
"""A fitted encoder of features."""

_ADAPTER: TypeAdapter[Encoder] = TypeAdapter(Annotated[Encoder, Field(discriminator="kind")])


def fit_encoder(config: PipelineConfig, features: pl.DataFrame, columns: Sequence[FeatureColumn]) -> Encoder:
    """Fit an encoder on the rows of the training window.

    Args:
        config: Section `images`, the scaling of the inputs and the time zone.
        features: Training rows.
        columns: Features and their types.

    Raises:
        TrainingError: No column or image is usable.
    """
    if config.images is not None:
        return fit_image_encoder(features, columns, config.images.column, config.scaling)
    declared = {*config.columns, *config.derive}
    event_time = config.model.event_time
    return fit_table_encoder(
        features, columns, config.scaling, config.timezone, event_time=event_time, declared=declared
    )


def context_width(encoder: Encoder) -> int:
    """Return the number of the last inputs that are context: read by the network, but not reconstructed."""
    return encoder.width - encoder.target_width if isinstance(encoder, TableEncoder) else 0


def read_encoder(manifest: Any) -> Encoder:
    """Return the encoder that a `model_dump` describes.

    Raises:
        ValidationError: The manifest does not describe an encoder.
    """
    return _ADAPTER.validate_python(manifest)
