"""The encoder that a dataset calls for: of its images, or of its columns."""

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
"""Features to what a network sees, and back."""

_ANY: TypeAdapter[Encoder] = TypeAdapter(Annotated[Encoder, Field(discriminator="kind")])


def fit_encoder(config: PipelineConfig, features: pl.DataFrame, columns: Sequence[FeatureColumn]) -> Encoder:
    """Fits an encoder on the rows of the training window, and on no others.

    Args:
        config: Whether rows are images, and how inputs are scaled.
        features: Training rows.
        columns: Features and their types.

    Raises:
        TrainingError: There is nothing to learn from.
    """
    if config.images is not None:
        return fit_image_encoder(features, columns, config.images.column, config.scaling)
    return fit_table_encoder(features, columns, config.scaling)


def read_encoder(manifest: Any) -> Encoder:
    """Makes an encoder of what its `model_dump` gave.

    Raises:
        ValidationError: It is no encoder.
    """
    return _ANY.validate_python(manifest)
