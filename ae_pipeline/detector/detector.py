"""Detector: a fitted network and the statistics that turn its losses into anomaly scores."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from ae_pipeline.common.device import device_turn
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.config.service import Evidence
from ae_pipeline.detector.network import FittedNetwork
from ae_pipeline.encoding.blocks import Matrix
from ae_pipeline.encoding.encoder import Encoder
from ae_pipeline.encoding.table_encoder import TableEncoder
from ae_pipeline.models.base import AutoEncoder, AutoEncoderOutput
from ae_pipeline.models.losses import ReconstructionLoss
from ae_pipeline.scoring.blocks import blocks
from ae_pipeline.scoring.cooccurrence import Cooccurrence
from ae_pipeline.scoring.ensemble import Ensemble
from ae_pipeline.scoring.mahalanobis import MahalanobisDistance
from ae_pipeline.scoring.tails import TailCalibrator

Array = npt.NDArray[np.float64]

_ENSEMBLE_PENALTY = 100
"""Bonferroni factor of columns, latent and row if an ensemble scores too: each may cause 1 % of the false alarms."""

_LAYERS_AT_ONCE = 4
"""Layers whose outputs are in the cache at the same time, as wide as the widest one."""


@dataclass(frozen=True, kw_only=True)
class Detector:
    """A fitted network with the statistics that turn its losses into scores.

    A row has one loss for each of `loss.columns`, and one for each kind of evidence about the whole row: the distance
    of its latent, its total loss and, for tables, the ensemble and the rarest combination of categories. These are the
    parts of a score. The tails turn each of
    them into surprisal, −ln of a tail probability, in nats.

    Attributes:
        network: Encoder, autoencoder and loss.
        config: Configuration of the pipeline that fitted it.
        mean_input: Mean of the encoded training rows, (…), float32.
        mahalanobis: Distance of a latent from the latents of the training rows.
        ensemble: Scores that do not use the network; None for images, or if the configuration leaves it out.
        tails: Tail calibration of each part.
        cooccurrence: Counts of combinations of categories; None for images, if the configuration leaves them out, or if
            no two categorical columns depend on each other.
    """

    network: FittedNetwork
    config: PipelineConfig
    mean_input: Matrix
    mahalanobis: MahalanobisDistance
    ensemble: Ensemble | None
    tails: TailCalibrator
    cooccurrence: Cooccurrence | None = None

    @property
    def encoder(self) -> Encoder:
        """Encoder of the network."""
        return self.network.encoder

    @property
    def model(self) -> AutoEncoder:
        """Autoencoder of the network."""
        return self.network.model

    @property
    def loss(self) -> ReconstructionLoss:
        """Loss of the network."""
        return self.network.loss

    @property
    def needs_ensemble(self) -> bool:
        """Whether the configuration asks for an ensemble."""
        return isinstance(self.encoder, TableEncoder) and Evidence.ENSEMBLE in self.config.alerts.evidence

    @property
    def part_count(self) -> int:
        """Number of parts of a score."""
        return len(self.loss.columns) + len(self._row_evidence)

    def part_index(self, evidence: Evidence) -> int:
        """Return the index of a kind of evidence about the whole row among the parts."""
        return len(self.loss.columns) + self._row_evidence.index(evidence)

    @property
    def _row_evidence(self) -> tuple[Evidence, ...]:
        fitted = {Evidence.ENSEMBLE: self.ensemble, Evidence.CATEGORIES: self.cooccurrence}
        return (Evidence.LATENT, Evidence.ROW, *(kind for kind, measure in fitted.items() if measure is not None))

    def latents_and_scores(self, features: pl.DataFrame) -> tuple[Matrix, Array]:
        """Return latents and scores of n rows.

        Args:
            features: Rows with the fitted columns.

        Returns:
            Latents, (n, latent_dim), float32, and scores in nats, (n,); see `combine`.

        Raises:
            BundleError: A column is missing or has another type.
        """

        def score_batch(rows: pl.DataFrame) -> tuple[Matrix, Array]:
            x = self.network.encode_batch(rows)
            with device_turn(x.device):
                latents, scores = self.score_encoded(x)
                return latents.float().cpu().numpy(), scores.cpu().numpy()

        none = np.empty((0, self.model.latent_dim), np.float32), np.empty(0)
        latents, scores = zip(none, *self.network.map_batches(score_batch, features), strict=True)
        return np.concatenate(latents), np.concatenate(scores)

    def scores(self, batches: Iterable[pl.DataFrame]) -> Array:
        """Return the scores of all rows of some batches, in nats, (n,). Only a few batches are in memory at a time.

        Raises:
            BundleError: A column is missing or has another type.
        """

        def score_batch(rows: pl.DataFrame) -> Array:
            x = self.network.encode_batch(rows)
            with device_turn(x.device):
                scores: Array = self.score_encoded(x)[1].cpu().numpy()
                return scores

        slices = chain.from_iterable(map(self.network.batches, batches))
        return np.concatenate([np.empty(0), *self.network.map_all(score_batch, slices)])

    def latents_and_losses(self, features: pl.DataFrame) -> tuple[Array, Array]:
        """Return latents and losses of n rows.

        Args:
            features: Rows with the fitted columns.

        Returns:
            Latents, (n, latent_dim), float64, and the loss of each part, (n, parts): of each of `loss.columns`, then
            the Mahalanobis distance of the latent, the total loss and, if there are any, the score of the ensemble and
            the measure of the rarest combination of categories.

        Raises:
            BundleError: A column is missing or has another type.
        """

        def of_batch(rows: pl.DataFrame) -> tuple[Array, Array]:
            x = self.network.encode_batch(rows)
            with device_turn(x.device):
                latents, losses = self._latents_and_losses(x)
                return latents.cpu().numpy(), losses.cpu().numpy()

        none = np.empty((0, self.model.latent_dim)), np.empty((0, self.part_count))
        latents, losses = zip(none, *self.network.map_batches(of_batch, features), strict=True)
        return np.concatenate(latents), np.concatenate(losses)

    @torch.inference_mode()
    def score_encoded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return latents, (n, latent_dim), and scores in nats, (n,), of one batch of encoded rows, on their device.

        Args:
            x: Encoded rows in float64 on the device of the model, (n, …).
        """
        latents, losses = self._latents_and_losses(x)
        # Surprisal that cannot raise a score above 0 is not looked up.
        count = len(self.loss.columns)
        of_columns = math.log(max(count, 1)) + self._penalty if Evidence.COLUMNS in self._used else np.inf
        thresholds = np.where(np.arange(self.part_count) < count, of_columns, 0.0)
        return latents, self._combined(self.tails(losses, thresholds))

    @torch.inference_mode()
    def _latents_and_losses(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return latents and losses of one batch, in blocks whose activations of the network fit into the cache.

        Batches of images have that size already.
        """
        latents, losses = [], []
        for rows in blocks(x, _LAYERS_AT_ONCE * self.network.widest_layer) if x.dim() == 2 else [x]:
            output = self.network.forward(rows)
            latents.append(output.latents)
            losses.append(self._network_losses(output, rows))
        return torch.cat(latents), self._all_losses(torch.cat(losses), x)

    @torch.inference_mode()
    def losses(self, output: AutoEncoderOutput, x: Tensor) -> Tensor:
        """Return the loss of each part, (n, parts), for inputs and what the network returned for them."""
        return self._all_losses(self._network_losses(output, x), x)

    def _network_losses(self, output: AutoEncoderOutput, x: Tensor) -> Tensor:
        losses = self.network.double_loss.parts(output, x)
        return torch.cat([losses[:, :-1], self.mahalanobis(output.latents).unsqueeze(1), losses[:, -1:]], 1)

    def _all_losses(self, losses: Tensor, x: Tensor) -> Tensor:
        measures = [measure for measure in (self.ensemble, self.cooccurrence) if measure is not None]
        return torch.cat([losses, *(measure(x).unsqueeze(1) for measure in measures)], 1)

    def surprisal(self, output: AutoEncoderOutput, x: Tensor) -> Array:
        """Return the surprisal of each part, (n, parts), for inputs and what the network returned for them."""
        surprisal: Array = self.tails(self.losses(output, x)).cpu().numpy()
        return surprisal

    def surprisal_of(self, losses: Array) -> Array:
        """Return the surprisal of each part, (n, parts), for losses of `latents_and_losses`."""
        surprisal: Array = self.tails(torch.from_numpy(losses)).numpy()
        return surprisal

    def combine(self, surprisal: Array) -> Array:
        """Return the score of each row: the highest surprisal of its parts after a Bonferroni correction.

        The maximum over k columns is corrected by ln k. If an ensemble scores too, the other kinds of evidence are
        corrected by another ln 100 (weighted Bonferroni, Genovese et al. 2006). Over many datasets the ensemble ranks
        best, and the others find what it cannot see, such as a single impossible value.

        Args:
            surprisal: Surprisal of each part, nats, (n, parts).

        Returns:
            Scores in nats, (n,), 0 or more.
        """
        scores: Array = self._combined(torch.from_numpy(surprisal)).numpy()
        return scores

    def _combined(self, surprisal: Tensor) -> Tensor:
        count, scores = len(self.loss.columns), surprisal.new_zeros(len(surprisal))
        for evidence in self._used:
            if evidence == Evidence.COLUMNS:
                values = surprisal[:, :count].amax(1).clamp(min=0.0) - math.log(count)
            else:
                values = surprisal[:, self.part_index(evidence)]
            correction = 0.0 if evidence == Evidence.ENSEMBLE else self._penalty
            scores = torch.maximum(scores, values - correction)
        return scores

    @property
    def _used(self) -> tuple[Evidence, ...]:
        """Evidence that the configuration asks for and the detector has."""
        return tuple(each for each in (Evidence.COLUMNS, *self._row_evidence) if each in self.config.alerts.evidence)

    @property
    def _penalty(self) -> float:
        """Nats by which evidence other than the ensemble is corrected if the ensemble scores too."""
        return math.log(_ENSEMBLE_PENALTY) if Evidence.ENSEMBLE in self._used else 0.0
