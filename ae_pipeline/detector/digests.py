"""Digests in the manifest of a bundle: of its weights, and of the manifest itself."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ae_pipeline.storage.hashing import hash_json

_DIGESTS = "digests"
"""Key of the manifest with its digests. It is no part of the model: the fingerprint does not depend on it."""


def with_digests(manifest: Mapping[str, Any], weights: Path) -> dict[str, Any]:
    """Return a manifest with the digest of its values and the SHA-256 of the written weights."""
    return {**manifest, _DIGESTS: {"manifest": hash_json(manifest), "weights": _sha256(weights)}}


def without_digests(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest without its digests, which are no part of the model."""
    return {key: value for key, value in manifest.items() if key != _DIGESTS}


def check_digests(manifest: Mapping[str, Any], weights: Path) -> None:
    """Compare manifest and weights with the digests in the manifest. Manifests of earlier versions have none.

    Args:
        manifest: JSON object of the manifest.
        weights: File with the weights.

    Raises:
        ValueError: A digest differs, so that a byte of the bundle has changed since it was saved.
    """
    if _DIGESTS not in manifest:
        return
    digests = manifest[_DIGESTS] if isinstance(manifest[_DIGESTS], dict) else {}
    if digests.get("manifest") != hash_json(without_digests(manifest)):
        raise ValueError("the manifest is not the one that was saved, because the digest of its values is another one")
    if digests.get("weights") != _sha256(weights):
        raise ValueError("the weights are not those that were saved, because their SHA-256 is another one")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
