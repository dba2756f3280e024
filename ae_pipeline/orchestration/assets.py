"""All assets of a dataset."""

import dagster as dg

from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.orchestration.data_assets import features, raw_data
from ae_pipeline.orchestration.model_assets import autoencoder, champion
from ae_pipeline.orchestration.product_assets import anomaly_report, latent_features
from ae_pipeline.orchestration.stages import build_asset

_BODIES = {
    "raw_data": raw_data,
    "features": features,
    "autoencoder": autoencoder,
    "champion": champion,
    "latent_features": latent_features,
    "anomaly_report": anomaly_report,
}


def build_assets(config: PipelineConfig) -> list[dg.AssetsDefinition]:
    """Builds the six assets."""
    return [build_asset(config, stage, make(config)) for stage, make in _BODIES.items()]
