"""Deprecated location of the component, for `defs.yaml` files written before version 0.2."""

import warnings

from ae_pipeline.orchestration.component import AutoencoderPipeline as _AutoencoderPipeline


class AutoencoderPipeline(_AutoencoderPipeline):
    """Deprecated name of `ae_pipeline.orchestration.component.AutoencoderPipeline`."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        warnings.warn(
            "type ae_pipeline.component.AutoencoderPipeline is deprecated and will be removed in version 0.3; write "
            "type: ae_pipeline.orchestration.component.AutoencoderPipeline in the defs.yaml",
            DeprecationWarning,
            stacklevel=2,
        )
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
