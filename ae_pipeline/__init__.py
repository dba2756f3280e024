"""Autoencoder pipelines on Dagster: from landed files to versioned latent tables and anomaly reports."""

from typing import TYPE_CHECKING, Any

from ae_pipeline.common.version import __version__

if TYPE_CHECKING:
    from ae_pipeline.latents.read import Latents, read_latents

__all__ = ["Latents", "__version__", "read_latents"]


def __getattr__(name: str) -> Any:
    # Whoever imports a part of the package does not load readers of tables with it.
    if name in __all__:
        from ae_pipeline.latents import read

        return getattr(read, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
