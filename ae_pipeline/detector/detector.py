"""Detector: a fitted network and what its losses mean; says how strange a row is, and why."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch.nn.functional import one_hot

from ae_pipeline.common.parallel import parallel_map
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.config.service import Evidence
from ae_pipeline.detector.network import FittedNetwork
from ae_pipeline.encoding.table_encoder import BlockKind, Matrix, TableEncoder
from ae_pipeline.models.base import AutoEncoderOutput
from ae_pipeline.models.image_loss import ImageLoss
from ae_pipeline.scoring.ensemble import Ensemble
from ae_pipeline.scoring.mahalanobis import MahalanobisDistance
from ae_pipeline.scoring.tails import TailCalibrator

Array = npt.NDArray[np.float64]

_REPAIRS = 4
"""Passes that bring a column from its typical value to the one that fits the rest of the row."""

_SUSPECTS = 24
"""Columns of a row that are tried at most: explaining it costs the same however many it has."""

_CHANCES = 100
"""The share of false alarms that columns, latent and row may each cause beside the ensemble is one in so many."""


@dataclass(frozen=True)
class Contribution:
    """One part of a row's score.

    Attributes:
        column: Of the features; of images `image`, the whole, or `spot`, its strangest window; or `latent` or
            `ensemble`, where the row is strange as a whole.
        surprisal: Of a column its own, and by how much that of all else falls with a fitting value in its place, once
            the columns before it are mended; otherwise −ln of the share of rows that are as strange there. Nats.
        actual: Its value.
        expected: What the model makes of the row otherwise.
    """

    column: str
    surprisal: float
    actual: str
    expected: str

    def record(self) -> dict[str, str | float]:
        """Return the contribution as files store it, with the surprisal under its key of format 3, `surprise`."""
        return {"column": self.column, "surprise": self.surprisal, "actual": self.actual, "expected": self.expected}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Contribution":
        """Return the contribution that `record` stored."""
        return cls(record["column"], record["surprise"], record["actual"], record["expected"])


@dataclass(frozen=True)
class Detector(FittedNetwork):
    """A fitted network, and from its losses to a score.

    Attributes:
        config: Under which it was fitted.
        mean_input: Mean of the encoded training rows, (…).
        mahalanobis: How far latents lie from those of the training rows.
        ensemble: Further measures of how unusual a row is; None for images.
        tails: From losses and distances to surprise, for each of `loss.columns`, then latent, row and ensemble.
    """

    config: PipelineConfig
    mean_input: Matrix
    mahalanobis: MahalanobisDistance
    ensemble: Ensemble | None
    tails: TailCalibrator

    def latents_and_scores(self, features: pl.DataFrame) -> tuple[Matrix, Array]:
        """Gives latents, (n, latent_dim), float32, and scores, nats, (n,): see `combine`; the higher, the stranger.

        Raises:
            BundleError: A column is missing or of another type.
        """

        def scored(rows: pl.DataFrame) -> tuple[Matrix, Array]:
            latents, losses = self._latents_and_losses(rows)
            return latents.astype(np.float32), self._score(losses)

        none = np.empty((0, self.model.latent_dim), np.float32), np.empty(0)
        latents, scores = zip(none, *parallel_map(scored, self._slices(features)), strict=True)
        return np.concatenate(latents), np.concatenate(scores)

    def scores(self, batches: Iterable[pl.DataFrame]) -> Array:
        """Gives the scores of many rows, nats, (n,), of which few are in memory at a time.

        Raises:
            BundleError: A column is missing or of another type.
        """

        def scored(rows: pl.DataFrame) -> Array:
            return self._score(self._latents_and_losses(rows)[1])

        slices = chain.from_iterable(map(self._slices, batches))
        return np.concatenate([np.empty(0), *parallel_map(scored, slices)])

    def latents_and_losses(self, features: pl.DataFrame) -> tuple[Array, Array]:
        """Gives what scores are made of, with the latents, (n, latent_dim), float64.

        Args:
            features: The fitted columns, n rows.

        Returns:
            Latents, and the loss of each of `loss.columns`, the latent's distance, the row's loss and, where there is
            one, the ensemble's sum, (n, columns + 2 or 3).
        """
        none = np.empty((0, self.model.latent_dim)), np.empty((0, self.parts))
        latents, losses = zip(none, *parallel_map(self._latents_and_losses, self._slices(features)), strict=True)
        return np.concatenate(latents), np.concatenate(losses)

    def _latents_and_losses(self, rows: pl.DataFrame) -> tuple[Array, Array]:
        batch = self._encoded(rows)
        passed = self._pass(batch)
        return passed.latents.cpu().numpy(), self._losses(passed, batch)

    @property
    def has_ensemble(self) -> bool:
        """Whether the score rests on an ensemble too."""
        return isinstance(self.encoder, TableEncoder) and Evidence.ENSEMBLE in self.config.alerts.evidence

    @property
    def _whole(self) -> tuple[Evidence, ...]:
        """What stands behind the columns in losses and surprises."""
        return (Evidence.LATENT, Evidence.ROW, *((Evidence.ENSEMBLE,) if self.ensemble else ()))

    @property
    def parts(self) -> int:
        """How many columns losses and surprises have."""
        return len(self.loss.columns) + len(self._whole)

    def _place(self, part: Evidence) -> int:
        return len(self.loss.columns) + self._whole.index(part)

    def combine(self, surprisal: Array) -> Array:
        """Makes one score of a row's surprise: the highest of its strangest column and of what it is as a whole.

        Of k columns the strangest is held against k chances to be strange, so that all are on one scale (Bonferroni).
        Beside the ensemble each of the others is held against `_CHANCES` more (weighted Bonferroni, Genovese et al.
        2006): over many datasets it ranks best, and they tell what it cannot see, such as a single impossible value.

        Args:
            surprisal: Of each of the parts, nats, (n, parts).

        Returns:
            Shape (n,).
        """
        evidence, count = self.config.alerts.evidence, len(self.loss.columns)
        whole = {part: surprisal[:, self._place(part)] for part in self._whole}
        of_all = {Evidence.COLUMNS: surprisal[:, :count].max(axis=1, initial=0.0) - np.log(count), **whole}
        found = {part: value for part, value in of_all.items() if part in evidence}
        others = np.log(_CHANCES) if Evidence.ENSEMBLE in found else 0.0
        weighed = [value - others * (part != Evidence.ENSEMBLE) for part, value in found.items()]
        highest: Array = np.max(weighed, axis=0, initial=0.0)
        return highest

    def _score(self, losses: Array) -> Array:
        """Makes scores of losses, of which only what can raise a score above 0 is looked at."""
        evidence = self.config.alerts.evidence
        others = np.log(_CHANCES) if self.ensemble is not None and Evidence.ENSEMBLE in evidence else 0.0
        columns = np.log(max(len(self.loss.columns), 1)) + others if Evidence.COLUMNS in evidence else np.inf
        least = np.where(np.arange(self.parts) < len(self.loss.columns), columns, 0.0)
        return self.combine(self.tails(losses, least))

    def explain(self, features: pl.DataFrame, columns: int = 3) -> list[list[Contribution]]:
        """Says for each row what made it strange, the strangest first: columns, or the spot and the whole of an image.

        One odd value spoils what the network makes of the others. So each column is tried with the value that fits the
        rest of the row in its place: the one that is to blame takes the others' surprise along. It is mended so before
        the next is looked for. Of many columns the strangest are tried.
        Where the score is that of the latent or of the ensemble, and mending the first column leaves more than half of
        it, this is said first: the row is an unusual whole.

        Args:
            features: The rows, few of them.
            columns: How many to name at most.
        """

        def explanations(rows: pl.DataFrame) -> list[list[Contribution]]:
            return self._explained(rows, columns)

        return [row for part in parallel_map(explanations, self._few(features)) for row in part]

    def _explained(self, rows: pl.DataFrame, columns: int) -> list[list[Contribution]]:
        batch = self._encoded(rows)
        passed = self._pass(batch)
        surprisal, far = self._surprisal(passed, batch), self.mahalanobis(passed.latents.cpu().numpy())
        if isinstance(self.encoder, TableEncoder):
            named, left = self._of_columns(rows, batch, surprisal, columns)
        else:
            expected, each = self._exact[1].to_scale(passed.output), range(len(batch))
            images = [self._of_image(surprisal[i], expected[i : i + 1], batch[i : i + 1]) for i in each]
            named, left = [sorted(parts, key=lambda part: -part.surprisal) for parts in images], surprisal
        usual = f"{self.tails.quantiles[self._place(Evidence.LATENT), -1]:.1f} times at most in 99 %"
        said = {Evidence.LATENT: [(f"{d:.1f} times the usual distance from those of training", usual) for d in far]}
        if self.ensemble is not None:
            said[Evidence.ENSEMBLE] = self.ensemble.governing(batch.cpu().numpy())
        whole = self._of_whole(surprisal, left, said)
        return [[*first, *parts][:columns] for first, parts in zip(whole, named, strict=True)]

    def _of_whole(
        self, surprisal: Array, left: Array, said: Mapping[Evidence, Sequence[tuple[str, str]]]
    ) -> list[list[Contribution]]:
        """Names what each row is as a whole where the score is that of it, also with its worst column mended.

        Args:
            surprisal: Of the parts, (n, parts).
            left: The same with the worst column mended.
            said: What it is and what was expected, by evidence and row.
        """
        scores = self.combine(surprisal)
        found: list[list[Contribution]] = [[] for _ in scores]
        for part in (part for part in said if part in self.config.alerts.evidence):
            index = self._place(part)
            alone = self.combine(np.where(np.arange(surprisal.shape[1]) == index, surprisal, 0.0))
            governs = (alone >= scores) & (left[:, index] > surprisal[:, index] / 2)
            for i in np.flatnonzero(governs):
                found[i].append(Contribution(part.value, float(surprisal[i, index]), *said[part][int(i)]))
        return found

    def _of_columns(
        self, rows: pl.DataFrame, batch: torch.Tensor, surprisal: Array, columns: int
    ) -> tuple[list[list[Contribution]], Array]:
        """Names columns of each row, and gives what surprise, (n, parts), is left once the first is mended."""
        encoder, names = cast("TableEncoder", self.encoder), self.loss.columns
        counted = np.arange(self.parts) != self._place(Evidence.ROW)
        each = np.arange(len(batch))
        explanations: list[list[Contribution]] = [[] for _ in range(len(batch))]
        mended, left = np.zeros((len(batch), len(names)), dtype=np.bool_), surprisal
        most = np.full(len(batch), np.inf)
        for step in range(min(columns, len(names))):
            blame = np.full(mended.shape, -np.inf)
            own = np.where(mended, -np.inf, surprisal[:, : len(names)])
            for index in np.argsort(-own, axis=1, kind="stable")[:, :_SUSPECTS].T:
                fall = surprisal - self._surprisal(*self._mend(batch, encoder.groups == index[:, np.newaxis]))
                blame[each, index] = surprisal[each, index] + fall[:, counted].sum(axis=1) - fall[each, index]
            blame[mended] = -np.inf
            best = blame.argmax(axis=1)
            passed, batch = self._mend(batch, encoder.groups == best[:, np.newaxis])
            surprisal = self._surprisal(passed, batch)
            expected = self._exact[1].to_scale(passed.output).cpu().numpy()
            left = surprisal if step == 0 else left
            # Two that hide each other: mended first, the one shows how odd the other is.
            most = np.minimum(most, blame[each, best])
            mended[each, best] = True
            for i, row in enumerate(rows.iter_rows(named=True)):
                name = names[best[i]]
                explanations[i].append(Contribution(name, float(most[i]), *encoder.describe(row, expected[i], name)))
        return explanations, left

    def _mend(self, batch: torch.Tensor, own: npt.NDArray[np.bool_]) -> tuple[AutoEncoderOutput, torch.Tensor]:
        """Puts into a column the value that fits the rest of each row.

        From the typical value of training on, what the network gives is its next input (as Rezende et al. 2014 fill
        in missing values): the mean of all rows seldom goes with this one, and would spoil the other columns anew. Of
        categories it ends as the likeliest: a row has one, and nothing in between.

        Args:
            batch: Encoded rows, (n, width).
            own: Places of the column, (width,), or of one for each row, (n, width).

        Returns:
            What the network makes of the mended rows, and these.
        """
        places = torch.from_numpy(own).to(batch.device)
        mended = torch.where(places, torch.from_numpy(self.mean_input).to(batch), batch)
        for _ in range(_REPAIRS):
            mended = torch.where(places, self._exact[1].to_scale(self._pass(mended).output), mended)
        mended = torch.where(places, self._settled(mended), mended)
        return self._pass(mended), mended

    def _settled(self, x: torch.Tensor) -> torch.Tensor:
        """Puts the likeliest category in place of the probability of each."""
        settled = x.clone()
        for block in cast("TableEncoder", self.encoder).blocks:
            own = x[:, block.start : block.stop]
            if block.kind == BlockKind.CATEGORICAL:
                settled[:, block.start : block.stop] = one_hot(own.argmax(1), block.width).to(x)
            elif block.kind == BlockKind.BINARY:
                settled[:, block.start : block.stop] = own.round().clamp(0, 1)
        return settled

    def _of_image(self, surprisal: Array, expected: torch.Tensor, x: torch.Tensor) -> list[Contribution]:
        loss = cast("ImageLoss", self._exact[1])
        patch_scores = loss.patch_scores(expected, x)
        row = self._place(Evidence.ROW)
        usual = [f"{quantile:.1f} times at most in 99 %" for quantile in self.tails.quantiles[:, -1]]
        index = "row {}, column {}".format(*loss.highest_patch(expected, x))
        return [
            Contribution(
                "spot", float(surprisal[0]), f"{patch_scores.max():.1f} times the usual residual at {index}", usual[0]
            ),
            Contribution(
                "image", float(surprisal[row]), f"{patch_scores.mean():.1f} times the usual residual", usual[row]
            ),
        ]

    def _surprisal(self, passed: AutoEncoderOutput, x: torch.Tensor) -> Array:
        """Gives the surprise of each part, (n, parts), for a pass and its inputs."""
        return self.tails(self._losses(passed, x))

    def _losses(self, passed: AutoEncoderOutput, x: torch.Tensor) -> Array:
        losses = self._exact[1].parts(passed, x).cpu().numpy()
        parts = [losses[:, :-1], self.mahalanobis(passed.latents.cpu().numpy()), losses[:, -1]]
        if self.ensemble is not None:
            parts.append(self.ensemble(x.cpu().numpy()))
        return np.column_stack(parts)
