"""Arrays as files return them, and tensor functions as functions of arrays."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ae_pipeline.scoring.neighbors import nearest_neighbors

Array = npt.NDArray[Any]


def copied(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return contiguous copies of arrays with the same values, types and shapes, as after a file round trip."""
    flat = {name: np.frombuffer(bytearray(value.tobytes()), value.dtype) for name, value in arrays.items()}
    return {name: value.reshape(arrays[name].shape) for name, value in flat.items()}


def apply(part: Callable[[Tensor], Tensor], rows: Array, device: str = "cpu") -> Array:
    """Return what a part returns for rows on a device, as an array."""
    values: Array = part(torch.from_numpy(np.ascontiguousarray(rows)).to(device)).cpu().numpy()
    return values


def nearest(rows: Array, references: Array) -> Array:
    """Return the distances to the nearest references, shape (n,)."""
    return apply(nearest_neighbors(torch.from_numpy(references), [len(references)]), rows)[:, 0]
