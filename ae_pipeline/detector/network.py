"""FittedNetwork: encoder, network and loss that were trained together; encodes, reconstructs and removes noise."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from ae_pipeline.common.parallel import parallel_map
from ae_pipeline.encoding.encoder import Encoder
from ae_pipeline.encoding.table_encoder import Matrix, TableEncoder
from ae_pipeline.models.base import AutoEncoder, AutoEncoderOutput, rows_at_once
from ae_pipeline.models.image_loss import ImageLoss
from ae_pipeline.models.losses import ReconstructionLoss

_LOOKED_INTO = 1024
"""Rows that are explained or drawn at once, at most."""


@dataclass(frozen=True)
class Pictures:
    """What a person looks at of n images.

    Attributes:
        image: As the network sees it, on the scale 0 to 1, (n, height, width, channels).
        reconstruction: What the network makes of it, likewise.
        residual: How far the residual around each pixel is from the usual, 1 on average of normal images,
            (n, height, width).
    """

    image: npt.NDArray[np.float64]
    reconstruction: npt.NDArray[np.float64]
    residual: npt.NDArray[np.float64]


@dataclass(frozen=True)
class FittedNetwork:
    """What training gives.

    Attributes:
        encoder: Features to what the network sees.
        model: The network, in evaluation mode.
        loss: Of reconstructions, by `loss.columns`, which scores are attributed to.
    """

    encoder: Encoder
    model: AutoEncoder
    loss: ReconstructionLoss

    def encode(self, features: pl.DataFrame) -> Matrix:
        """Maps n rows of features to latents, (n, latent_dim), float32."""
        network = self._exact[0]

        @torch.inference_mode()
        def latents(rows: pl.DataFrame) -> Matrix:
            found: Matrix = network.encode(self._encoded(rows)).float().cpu().numpy()
            return found

        return np.concatenate(
            [np.empty((0, self.model.latent_dim), np.float32), *parallel_map(latents, self._slices(features))]
        )

    def reconstruct(self, features: pl.DataFrame) -> npt.NDArray[np.float64]:
        """Gives what the network makes of n rows, on the scale of the encoded inputs, (n, …)."""
        loss = self._exact[1]

        def expected(rows: pl.DataFrame) -> npt.NDArray[np.float64]:
            found: npt.NDArray[np.float64] = loss.to_scale(self._pass(self._encoded(rows)).output).cpu().numpy()
            return found

        return np.concatenate([np.empty((0, *self.encoder.shape)), *parallel_map(expected, self._slices(features))])

    def denoise(self, features: pl.DataFrame) -> pl.DataFrame:
        """Puts what the network makes of n rows in place of their fitted columns, in the columns' own terms.

        A network that has learnt with corruption, or whose latent space is too narrow for noise, keeps what columns or
        pixels have in common and drops the rest. Dates, event times and unknown categories stay as they are.

        Raises:
            BundleError: A column is missing or of another type.
        """
        return features.with_columns(self.encoder.decode(self.reconstruct(features), features).get_columns())

    def pictures(self, features: pl.DataFrame) -> Pictures | None:
        """Gives image, reconstruction and residual map of n rows, few of them; None where rows are no images."""
        if isinstance(self.encoder, TableEncoder):
            return None
        loss = cast("ImageLoss", self._exact[1])
        channels, height, width = self.encoder.shape
        shown = [[np.empty((0, height, width, channels))] * 2]
        residuals = [np.empty((0, height, width))]
        for x in map(self._encoded, self._few(features)):
            output = self._pass(x).output
            shown.append([self.encoder.to_unit(images.cpu().numpy()) for images in (x, output)])
            residuals.append(loss.patch_scores(output, x, to_the_edge=True).cpu().numpy())
        images, reconstructions = (np.concatenate(part) for part in zip(*shown, strict=True))
        return Pictures(images, reconstructions, np.concatenate(residuals))

    @cached_property
    def _exact(self) -> tuple[AutoEncoder, ReconstructionLoss]:
        """Network and loss in float64.

        In float32 a row's output depends on the rows beside it by 1e-7, which fine scales and steep tails enlarge to
        more than 1e-5 of a score.
        """
        model, loss = copy.deepcopy(self.model), copy.deepcopy(self.loss)
        return model.double().eval().requires_grad_(False), loss.double().eval().requires_grad_(False)

    def _slices(self, features: pl.DataFrame) -> Iterator[pl.DataFrame]:
        return features.iter_slices(rows_at_once(self.encoder.shape))

    def _encoded(self, rows: pl.DataFrame) -> torch.Tensor:
        device = next(self.model.parameters()).device
        return torch.from_numpy(self.encoder.encode(rows)).to(device).double()

    def _few(self, features: pl.DataFrame) -> Iterator[pl.DataFrame]:
        """Cuts rows so that much can be tried on each."""
        return features.iter_slices(min(rows_at_once(self.encoder.shape), _LOOKED_INTO))

    def _pass(self, batch: torch.Tensor) -> AutoEncoderOutput:
        with torch.inference_mode():
            passed: AutoEncoderOutput = self._exact[0](batch)
        return passed
