"""Two-dimensional convolutions on the CPU: float64 in small blocks, and float32 with channels last."""

import itertools
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


class UpsampledConv2d(Conv2d):
    """Nearest upsampling, then a convolution of 3×3 with zero padding. Its parameters are those of `nn.Conv2d`.

    Where the size doubles, the pixels of a square of 2×2 outputs differ in how the kernel lies over them: four kernels
    of 2×2 on the small image give the same outputs. In float64 on the CPU these are used. They need less than half of
    the products, and the upsampled image, which is many times larger than the cache, is never built.

    Args:
        inputs: Channels of the images.
        outputs: Channels of the outputs.
        size: Rows and columns after upsampling.
    """

    def __init__(self, inputs: int, outputs: int, size: tuple[int, int]) -> None:
        super().__init__(inputs, outputs, 3, padding=1)
        self.size = size

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name of the base class
        """Return the convolution of the upsampled images, shape (n, channels, *size)."""
        height, width = input.shape[2:]
        if input.device.type != "cpu" or input.dtype != torch.float64 or self.size != (2 * height, 2 * width):
            return super().forward(functional.interpolate(input, self.size))
        output = input.new_empty(len(input), self.out_channels, height, 2, width, 2)
        kernels = torch.einsum("aiy,bjx,ocyx->abocij", _OVERLAP, _OVERLAP, self.weight).flatten(0, 2)
        bias = None if self.bias is None else self.bias.repeat(4)
        for images, rows, values in blocks(input, kernels, bias, padding=(1, 1)):
            parts = values.unflatten(1, (2, 2, self.out_channels))
            for down, right in itertools.product((0, 1), repeat=2):
                top, bottom = max(rows.start, down), min(rows.stop, height + down)
                part = parts[:, down, right, :, top - rows.start : bottom - rows.start, right : width + right]
                output[images, :, top - down : bottom - down, down, :, right] = part
        return output.flatten(4, 5).flatten(2, 3)


_OVERLAP = torch.tensor([[[1.0, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], dtype=torch.float64)
"""Which of the three pixels under a kernel are which of the two small pixels, for even and odd outputs."""


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
