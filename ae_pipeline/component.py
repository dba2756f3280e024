"""Deprecated location of the component, for `defs.yaml` files of version 0.1."""

from ae_pipeline.common.deprecation import warn_deprecated
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.orchestration.component import AutoencoderPipeline as _AutoencoderPipeline


class AutoencoderPipeline(_AutoencoderPipeline):
    """Deprecated name of `ae_pipeline.orchestration.component.AutoencoderPipeline`."""

    def __init__(self, config: PipelineConfig) -> None:
        old, new = (f"{cls.__module__}.{cls.__qualname__}" for cls in (type(self), _AutoencoderPipeline))
        warn_deprecated(f"type: {old}", f"type: {new}", f"the defs.yaml of {config.dataset!r}")
        super().__init__(config)
