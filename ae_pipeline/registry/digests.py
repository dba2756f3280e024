"""Digests of a registered bundle, as tags of its version and of its run."""

from pathlib import Path

from ae_pipeline.common.errors import BundleError
from ae_pipeline.detector.bundle_files import MANIFEST, WEIGHTS
from ae_pipeline.storage.integrity import file_digest

DIGEST_TAG = "sha256."
"""Prefix of the tags of a version and of its run with the digests of its files."""


def digest_tags(folder: Path) -> dict[str, str]:
    """Return the tags of a version with the SHA-256 of its manifest and its weights.

    Args:
        folder: Folder of the bundle.

    Raises:
        BundleError: A file is missing.
    """
    digests = {name: file_digest(folder / name) for name in (MANIFEST, WEIGHTS)}
    if missing := [name for name, digest in digests.items() if digest is None]:
        raise BundleError(f"{folder} is not a model bundle: it has no {missing[0]}; train a new model")
    return {f"{DIGEST_TAG}{name}": str(digest) for name, digest in digests.items()}
