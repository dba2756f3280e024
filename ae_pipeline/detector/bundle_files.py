"""Files of a bundle: a JSON manifest and tensors, and the hash of both."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ae_pipeline.common.errors import BundleError
from ae_pipeline.config.influence import keys_without_effect_on_rows
from ae_pipeline.detector.tensors import Tensors
from ae_pipeline.storage.hashing import hash_json

MANIFEST, WEIGHTS = "bundle.json", "weights.safetensors"

NOT_COUNTED = "not_in_fingerprint"
"""Key of the manifest with the dotted keys that its fingerprint leaves out.

A bundle names them itself, so that its fingerprint stays when another version of the package leaves out others.
"""

LEFT_OUT = {NOT_COUNTED: [*(f"config.{key}" for key in keys_without_effect_on_rows()), "contract.on_delete"]}
"""Entry of a manifest with its keys that cannot change a row."""


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
    """Return a hash of the tensors and of the manifest, without the keys that the manifest leaves out.

    Bundles up to format 11 leave out none.
    """
    left_out = manifest.get(NOT_COUNTED)
    keys = [NOT_COUNTED, *map(str, left_out)] if isinstance(left_out, list) else []
    counted = _without(manifest, [key.split(".") for key in keys])
    return hash_json([counted, {name: _digest(value) for name, value in tensors.items()}])


def _without(values: Mapping[str, Any], keys: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return nested values without some keys, each of which is a path."""
    below: dict[str, list[Sequence[str]]] = {}
    for first, *rest in keys:
        below.setdefault(first, []).append(rest)
    return {
        name: _without(value, below[name]) if name in below and isinstance(value, dict) else value
        for name, value in values.items()
        if [] not in below.get(name, [])
    }


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
