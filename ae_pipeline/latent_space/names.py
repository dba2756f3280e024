"""Names of latent spaces and of their axes."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ae_pipeline.detector.bundle import ModelBundle


def latent_space_name(model_version: int, fingerprint: str) -> str:
    """Return the name of a model's latent space, such as `v3_04f3a1b0`.

    The fingerprint keeps names unique: another model store starts to count versions at 1 again.

    Args:
        model_version: Version of the registered model.
        fingerprint: Fingerprint of its bundle.

    Examples:
        >>> latent_space_name(3, "04f3a1b0c2d4e6f8")
        'v3_04f3a1b0'
    """
    return f"v{model_version}_{fingerprint[:8]}"


def axes_name(bundle: "ModelBundle", model_version: int) -> str:
    """Return the name of the axes of a model's latents, which is the name of the first latent space with these axes."""
    alignment = bundle.facts.alignment
    return (alignment and alignment.axes) or latent_space_name(model_version, bundle.fingerprint)
