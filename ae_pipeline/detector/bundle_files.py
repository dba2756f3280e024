"""Files of a bundle: a JSON manifest and tensors, and the hash of both."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ae_pipeline.common.errors import BundleError
from ae_pipeline.detector.tensors import Tensors
from ae_pipeline.storage.hashing import hash_json

MANIFEST, WEIGHTS = "bundle.json", "weights.safetensors"


def read_files(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return manifest and tensors of a bundle of any format.

    Raises:
        BundleError: A file is missing or damaged.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS, device="cpu")
    except FileNotFoundError as error:
        missing = Path(str(error.filename or WEIGHTS)).name
        raise BundleError(
            f"{folder} is not a model bundle: it has no {missing}; train a new model, or name the directory that holds "
            f"{MANIFEST} and {WEIGHTS}"
        ) from error
    except (ValueError, OSError, SafetensorError) as error:
        raise BundleError(f"cannot read the bundle in {folder} ({error}); train a new model") from error
    if not isinstance(manifest, dict):
        raise BundleError(
            f"cannot read the bundle in {folder} ({MANIFEST} does not hold a JSON object); train a new model"
        )
    return manifest, tensors


def fingerprint_of(manifest: Mapping[str, Any], tensors: Tensors) -> str:
    """Return a hash of manifest and tensors."""
    return hash_json([manifest, {name: _digest(value) for name, value in tensors.items()}])


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
