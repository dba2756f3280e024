"""Two-dimensional convolutions on the CPU: float64 in small blocks, and float32 with channels last."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

_BLOCK_ELEMENTS = 2**17
"""Upper limit on the unfolded values of a block, 1 MiB in float64: they stay in the cache of a core."""


class Conv2d(nn.Conv2d):
    """A convolution with zero padding that is fast on the CPU. Its parameters are those of `nn.Conv2d`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name of the base class
        """Return the convolution, shape (n, channels, rows, columns)."""
        if input.device.type != "cpu":
            return super().forward(input)
        if input.dtype != torch.float64:
            return super().forward(input.contiguous(memory_format=torch.channels_last))
        rows, columns = (int(side) for side in self.padding)
        stride, padding = self.stride[0], (rows, columns)
        size = output_size(input, self.weight, stride=stride, padding=padding)
        output = input.new_empty(len(input), self.out_channels, *size)
        for block in blocks(input, self.weight, self.bias, stride=stride, padding=padding):
            output[block.images, :, block.rows] = block.values
        return output


class Block(NamedTuple):
    """Outputs of a convolution for some of the images and some of the rows of windows.

    Attributes:
        images: Images of the block.
        rows: Rows of windows of the block.
        values: Outputs, shape (images, outputs, rows, columns).
    """

    images: slice
    rows: slice
    values: Tensor


def blocks(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1, padding: tuple[int, int] = (0, 0)
) -> Iterator[Block]:
    """Yield the outputs of `functional.conv2d`, in float64 on the CPU for a few images or rows of windows at a time.

    There, torch unfolds the windows of all images at once, which takes more than a gigabyte for one image of
    1,024 × 1,536 pixels and 16 channels. In blocks that fit into the cache it is also several times faster.

    Args:
        x: Images, shape (n, channels, height, width).
        weight: Kernels, shape (outputs, channels, rows, columns).
        bias: Offset of each output.
        stride: Step between windows.
        padding: Rows and columns of zeros at each edge.
    """
    height, width = output_size(x, weight, stride=stride, padding=padding)
    side, (above, beside) = weight.shape[2], padding
    of_row = math.prod(weight.shape[1:]) * width
    is_whole = x.device.type != "cpu" or x.dtype != torch.float64
    rows = height if is_whole else max(1, _BLOCK_ELEMENTS // of_row)
    images = max(1, len(x) if is_whole else _BLOCK_ELEMENTS // (of_row * height))
    for first in range(0, len(x), images):
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            start, end = top * stride - above, (bottom - 1) * stride + side - above
            inputs = x[first : first + images, :, max(start, 0) : end]
            inputs = functional.pad(inputs, (beside, beside, max(-start, 0), max(end - x.shape[2], 0)))
            values = functional.conv2d(inputs, weight, bias, stride)
            yield Block(slice(first, first + images), slice(top, bottom), values)


def output_size(x: Tensor, weight: Tensor, *, stride: int = 1, padding: tuple[int, int] = (0, 0)) -> tuple[int, int]:
    """Return rows and columns of the windows of images, for kernels of a shape; see `blocks`."""
    sizes = zip(x.shape[2:], padding, weight.shape[2:], strict=True)
    rows, columns = ((size + 2 * edge - side) // stride + 1 for size, edge, side in sizes)
    return rows, columns
