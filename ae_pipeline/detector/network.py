"""FittedNetwork: an encoder, an autoencoder and a loss that were trained together."""

import copy
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from ae_pipeline.common.device import device_errors, device_turn, prepare, shrinking
from ae_pipeline.common.parallel import parallel_map
from ae_pipeline.common.progress import ProgressLogger
from ae_pipeline.encoding.blocks import Matrix
from ae_pipeline.encoding.encoder import Encoder
from ae_pipeline.encoding.table_encoder import TableEncoder
from ae_pipeline.models.base import AutoEncoder, AutoEncoderOutput, rows_at_once
from ae_pipeline.models.image_loss import ImageLoss
from ae_pipeline.models.losses import ReconstructionLoss

R = TypeVar("R")

logger = logging.getLogger(__name__)

_PROGRESS_SECONDS = 10.0
"""Time after which the work on many batches logs how far it is."""

_MAX_BATCH_ROWS = 1024
"""Upper limit on the rows of a batch that is explained or rendered."""

_MAX_CPU_ROWS = 8192
"""Upper limit on the rows of a batch on the CPU, whose encoded rows stay in the cache."""

_MAX_CPU_OUTPUTS = 2**21
"""Upper limit on the outputs of a layer for a batch of images on the CPU, 16 MiB in float64. Arrays of more than 32 MiB
are new pages of memory each time, which takes longer than the layer. Smaller ones have more calls.
"""


@dataclass(frozen=True)
class Pictures:
    """Images, their reconstructions and their residual maps.

    Attributes:
        image: Network inputs on the scale 0 to 1, (n, height, width, channels).
        reconstruction: Network outputs on the same scale, (n, height, width, channels).
        residual: Heat of each pixel, a multiple of the usual residual, (n, height, width); see `ImageLoss.heat`.
        hottest: Top and left of the window with the highest heat, (n, 2).
    """

    image: npt.NDArray[np.float64]
    reconstruction: npt.NDArray[np.float64]
    residual: npt.NDArray[np.float64]
    hottest: npt.NDArray[np.int64]


@dataclass(frozen=True)
class FittedNetwork:
    """An encoder, an autoencoder and a loss that were trained together.

    Attributes:
        encoder: Encoder of features into network inputs.
        model: Autoencoder, in evaluation mode.
        loss: Reconstruction loss, with one part for each of `loss.columns`.
    """

    encoder: Encoder
    model: AutoEncoder
    loss: ReconstructionLoss

    def encode(self, features: pl.DataFrame) -> Matrix:
        """Return the latents of n rows, (n, latent_dim), float32.

        Raises:
            BundleError: A column is missing or has another type.
        """
        model = self.double_model

        @torch.inference_mode()
        def latents_of(rows: pl.DataFrame) -> Matrix:
            x = self.encode_batch(rows)
            with device_turn(x.device):
                latents: Matrix = model.encode(x).float().cpu().numpy()
                return latents

        none = np.empty((0, self.model.latent_dim), np.float32)
        return np.concatenate([none, *self.map_batches(latents_of, features)])

    def reconstruct(self, features: pl.DataFrame) -> npt.NDArray[np.float64]:
        """Return the reconstructions of n rows on the scale of the network inputs, (n, …).

        Raises:
            BundleError: A column is missing or has another type.
        """
        loss = self.double_loss

        def reconstruction_of(rows: pl.DataFrame) -> npt.NDArray[np.float64]:
            x = self.encode_batch(rows)
            with device_turn(x.device):
                reconstruction: npt.NDArray[np.float64] = loss.to_scale(self.forward(x).output).cpu().numpy()
                return reconstruction

        none = np.empty((0, *self.encoder.shape))
        return np.concatenate([none, *self.map_batches(reconstruction_of, features)])

    def denoise(self, features: pl.DataFrame) -> pl.DataFrame:
        """Return n rows with the fitted columns replaced by their reconstructions, in the units of the columns.

        A network that was trained with corruption, or whose latent space is too narrow for noise, keeps what columns
        or pixels have in common and drops the rest. Dates, event times and unknown categories do not change.

        Raises:
            BundleError: A column is missing or has another type.
        """
        return features.with_columns(self.encoder.decode(self.reconstruct(features), features).get_columns())

    def residual_maps(self, rows: pl.DataFrame) -> npt.NDArray[np.float64]:
        """Return the residual maps of one batch of images, (n, height, width); see `Pictures.residual`.

        Raises:
            BundleError: A column is missing or has another type.
        """
        x = self.encode_batch(rows)
        loss = cast("ImageLoss", self.double_loss)
        maps: npt.NDArray[np.float64] = loss.heat(self.forward(x).output, x).cpu().numpy()
        return maps

    def images(self, features: pl.DataFrame) -> npt.NDArray[Any]:
        """Return the images of a few rows as the model reads them, (n, height, width, channels), from 0 to 1.

        Raises:
            BundleError: A column is missing or has another type.
        """
        assert not isinstance(self.encoder, TableEncoder)
        encoder = self.encoder
        channels, height, width = encoder.shape
        parts = [encoder.to_unit(self.encode_batch(rows).cpu().numpy()) for rows in self.small_batches(features)]
        return np.concatenate([np.empty((0, height, width, channels)), *parts])

    def pictures(self, features: pl.DataFrame) -> Pictures | None:
        """Return image, reconstruction and residual map of a few rows, or None for tables.

        Raises:
            BundleError: A column is missing or has another type.
        """
        if isinstance(self.encoder, TableEncoder):
            return None
        encoder, loss = self.encoder, cast("ImageLoss", self.double_loss)

        def pictures_of(rows: pl.DataFrame) -> tuple[npt.NDArray[Any], ...]:
            x = self.encode_batch(rows)
            output = self.forward(x).output
            heat, hottest = loss.heat_and_windows(output, x)
            images = (encoder.to_unit(images.cpu().numpy()) for images in (x, output))
            return (*images, heat.cpu().numpy(), hottest.cpu().numpy())

        channels, height, width = encoder.shape
        image, of_pixels = np.empty((0, height, width, channels)), np.empty((0, height, width))
        parts: list[tuple[npt.NDArray[Any], ...]] = [(image, image, of_pixels, np.empty((0, 2), np.int64))]
        parts += self.map_all(pictures_of, self.small_batches(features))
        return Pictures(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    @cached_property
    def double_model(self) -> AutoEncoder:
        """Copy of the autoencoder in float64.

        In float32, the output of a row depends on the other rows of its batch by 1e-7. Fine scales and steep tails
        enlarge this difference to more than 1e-5 of a score.
        """
        prepare(self.device)
        return copy.deepcopy(self.model).double().eval().requires_grad_(False)

    @cached_property
    def widest_layer(self) -> int:
        """Highest number of outputs that a layer has for one row."""
        if len(self.encoder.shape) == 1:
            return max(len(weights) for weights in self.model.parameters())
        sizes, model = [1], copy.deepcopy(self.model).cpu()  # hooks on the model would also see other threads
        for layer in model.modules():
            if not any(layer.children()):
                layer.register_forward_hook(lambda _, __, output: sizes.append(output.numel()))
        with torch.inference_mode():
            model(torch.zeros(1, *self.encoder.shape, device="cpu"))
        return max(sizes)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.model.parameters()).device

    @cached_property
    def double_loss(self) -> ReconstructionLoss:
        """Copy of the loss in float64, see `double_model`."""
        return copy.deepcopy(self.loss).double().eval().requires_grad_(False)

    def batches(self, features: pl.DataFrame) -> Iterator[pl.DataFrame]:
        """Yield the rows in batches whose network activations fit into memory."""
        return features.iter_slices(self._batch_rows)

    def map_batches(self, work: Callable[[pl.DataFrame], R], features: pl.DataFrame) -> Iterator[R]:
        """Apply work to the rows in batches, on all cores, and yield the results in order.

        Where the memory of a CUDA device runs out, the batch is divided. Long work logs how far it is.

        Raises:
            DeviceError: The device failed, or has too little memory for one row.
        """
        total = -(-features.height // self._batch_rows)
        yield from self._logged(self.map_all(work, self.batches(features)), total, "batches of rows evaluated")

    def map_small(self, work: Callable[[pl.DataFrame], R], features: pl.DataFrame, noun: str) -> Iterator[R]:
        """Apply work to the rows in `small_batches`, like `map_batches`; `noun` says what the log counts."""
        total = -(-features.height // self._small_rows)
        yield from self._logged(self.map_all(work, self.small_batches(features)), total, f"batches of {noun}")

    def _logged(self, results: Iterable[R], total: int, noun: str) -> Iterator[R]:
        progress = ProgressLogger(logger, _PROGRESS_SECONDS)
        for done, result in enumerate(results, start=1):
            yield result
            progress.update(done, total, noun)

    def map_all(self, work: Callable[[pl.DataFrame], R], batches: Iterable[pl.DataFrame]) -> Iterator[R]:
        """Apply work to batches, like `map_batches`."""
        with device_errors():
            # Before the threads start, each of which would make its own copy.
            _ = self.double_model, self.double_loss, self.widest_layer
            for results in parallel_map(lambda rows: shrinking(work, rows), batches):
                yield from results

    def small_batches(self, features: pl.DataFrame) -> Iterator[pl.DataFrame]:
        """Yield the rows in batches of at most 1024 rows, for work that needs many forward passes."""
        return features.iter_slices(self._small_rows)

    @property
    def _small_rows(self) -> int:
        return min(self._batch_rows, _MAX_BATCH_ROWS)

    @property
    def _batch_rows(self) -> int:
        rows = rows_at_once(self.encoder.shape, self.device)
        if self.device.type != "cpu":
            return rows
        is_table = len(self.encoder.shape) == 1
        return min(rows, _MAX_CPU_ROWS if is_table else max(1, _MAX_CPU_OUTPUTS // self.widest_layer))

    def encode_batch(self, rows: pl.DataFrame) -> torch.Tensor:
        """Return the network inputs of a batch, (n, …), float64, on the device of the model.

        Raises:
            BundleError: A column is missing or has another type.
        """
        device = self.device
        if device.type == "cuda":  # from pinned memory, the copy runs while other threads encode
            pinned = torch.zeros(len(rows), *self.encoder.shape, dtype=torch.float32, device="cpu", pin_memory=True)
            self.encoder.encode(rows, into=pinned.numpy())
            return pinned.to(device, non_blocking=True).double()
        return torch.from_numpy(self.encoder.encode(rows)).double()

    def forward(self, x: torch.Tensor) -> AutoEncoderOutput:
        """Return the output of the network for a batch of inputs, in float64 and without gradients."""
        with torch.inference_mode():
            output: AutoEncoderOutput = self.double_model(x)
        return output
