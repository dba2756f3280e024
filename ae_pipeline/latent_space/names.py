"""Names of latent spaces and of their axes."""

from ae_pipeline.detector.bundle import ModelBundle


def latent_space_name(model_version: int, fingerprint: str) -> str:
    """Names the latent space of a model: its version, and its fingerprint, since another store counts from 1 again."""
    return f"v{model_version}_{fingerprint[:8]}"


def axes_name(bundle: ModelBundle, model_version: int) -> str:
    """Names the axes that a model's latents are told in: the space that had them first."""
    alignment = bundle.facts.alignment
    return (alignment and alignment.axes) or latent_space_name(model_version, bundle.fingerprint)
