"""Autoencoder pipelines on Dagster: from landed files to versioned latent tables and anomaly reports.

The public API is `read_latents`, which returns `Latents`.
"""

from typing import TYPE_CHECKING, Any

from ae_pipeline.common.version import __version__

if TYPE_CHECKING:
    from ae_pipeline.latents.read import Latents, read_latents

__all__ = ["Latents", "__version__", "read_latents"]


def __getattr__(name: str) -> Any:
    # Import lazily: importing a submodule must not load Delta Lake and pandas.
    if name in __all__:
        from ae_pipeline.latents import read

        return getattr(read, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
