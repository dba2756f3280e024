"""Explanations of anomaly scores: which columns, or which part of an image, contribute most."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from ae_pipeline.common.text import plural
from ae_pipeline.config.display import PLAIN, Category, ColumnNames, noun_of_rows
from ae_pipeline.config.service import Evidence
from ae_pipeline.detector.categories import Description, describe_combinations
from ae_pipeline.detector.detector import Detector
from ae_pipeline.detector.imputation import counted_parts, impute, move_event_time
from ae_pipeline.encoding.event_time import EVENT_TIME
from ae_pipeline.encoding.table_encoder import TableEncoder
from ae_pipeline.models.base import AutoEncoderOutput
from ae_pipeline.models.image_loss import ImageLoss

Array = npt.NDArray[np.float64]

CONTRIBUTIONS = pl.List(
    pl.Struct(
        {
            "column": pl.String(),
            "surprise": pl.Float64(),
            "actual": pl.String(),
            "expected": pl.String(),
            "categories": pl.List(pl.Struct({"column": pl.String(), "value": pl.String()})),
        }
    )
)
"""Type of a column with the contributions of each row; see `Contribution.record`."""


_MIN_SURPRISAL, _MIN_SHARE = 4.6, 0.3
"""Contributions that an explanation names: nats, and share of the first contribution."""

_MAX_CANDIDATES = 24
"""Upper limit on the columns of a row that are tried, so that the cost does not grow with the width of a table."""


@dataclass(frozen=True)
class Contribution:
    """One part of the score of a row.

    Attributes:
        column: Name of a feature column. For images, `image`, `spot`, the patch with the highest score, or `flat`, the
            patch with the least contrast. `latent`, `ensemble` or `row` if the row is anomalous as a whole, and
            `categories` for categories that rarely occur together.
        surprisal: Nats. For a column, its own surprisal plus the decrease of all other surprisal after the column is
            imputed, given that the columns listed before it are imputed. Otherwise −ln of the tail probability.
        actual: Actual value, as text.
        expected: Value that the model expects, as text.
        categories: Columns and values of a rare combination; empty for other parts.

    Examples:
        >>> Contribution("load", surprisal=7.5, actual="30.1", expected="2.9").record()
        {'column': 'load', 'surprise': 7.5, 'actual': '30.1', 'expected': '2.9'}
    """

    column: str
    surprisal: float
    actual: str
    expected: str
    categories: tuple[Category, ...] = ()

    def record(self) -> dict[str, Any]:
        """Return the contribution as files store it, with the surprisal under its key of format 3, `surprise`."""
        categories = [{"column": column, "value": value} for column, value in self.categories]
        return {
            "column": self.column,
            "surprise": self.surprisal,
            "actual": self.actual,
            "expected": self.expected,
            **({"categories": categories} if categories else {}),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Contribution":
        """Return the contribution that `record` stored; one of an earlier release has no categories."""
        categories = tuple((each["column"], each["value"]) for each in record.get("categories") or ())
        return cls(record["column"], record["surprise"], record["actual"], record["expected"], categories)


def because(parts: Sequence[Contribution], names: ColumnNames = PLAIN) -> str:
    """Return an explanation as text: the first contribution, and all that are large.

    A contribution is large if it has at least 30% of the first one, and at least 4.6 nats (a tail probability of 1%).

    Args:
        parts: Contributions, the largest first.
        names: How the text names columns.
    """
    large = [part for part in parts if part.surprisal >= max(_MIN_SURPRISAL, _MIN_SHARE * parts[0].surprisal)]
    return "; ".join(
        f"{names.title(part.column)} is {names.value(part.column, part.actual, part.categories)}, "
        f"expected {names.value(part.column, part.expected)}"
        for part in large or parts[:1]
    )


def explain(detector: Detector, features: pl.DataFrame, limit: int = 3) -> list[list[Contribution]]:
    """Return the parts that contribute most to the score of each row, highest first.

    For tables these are columns, and `latent` or `ensemble` if the row is anomalous as a whole; see `explain_rows`. For
    images these are `spot`, the patch with the highest score, `flat`, the one with the least contrast, and `image`.

    Args:
        detector: Fitted detector.
        features: A few rows with the fitted columns.
        limit: Upper limit on the number of contributions of a row.

    Raises:
        BundleError: A column is missing or has another type.
    """

    def explain_batch(rows: pl.DataFrame) -> list[list[Contribution]]:
        return explain_rows(detector, rows, limit)

    batches = detector.network.map_small(explain_batch, features, f"{plural(noun_of_rows(detector.config))} explained")
    return [contributions for batch in batches for contributions in batch]


def explain_rows(detector: Detector, rows: pl.DataFrame, limit: int) -> list[list[Contribution]]:
    """Return the contributions to the score of each row, highest first.

    One wrong value also distorts the reconstruction of other columns. So each column is imputed in turn, and the column
    whose imputation removes the most surprisal comes first. That column stays imputed while the next one is searched
    for.

    `latent` or `ensemble` comes before the columns if it is beyond its 99 % quantile and determines the score, and
    imputing the first column leaves more than half of its surprisal: then no single column explains the row. If
    `categories` determines the score, it comes after the first column, because it says what that column contradicts. A
    column whose value is the expected one is not named.

    Args:
        detector: Fitted detector.
        rows: One batch of rows with the fitted columns.
        limit: Upper limit on the number of contributions of a row.
    """
    x = detector.network.encode_batch(rows)
    output = detector.network.forward(x)
    surprisal = detector.surprisal(output, x)
    if isinstance(detector.encoder, TableEncoder):
        by_part, remaining = _explain_by_column(detector, rows, x, surprisal, limit)
    else:
        by_part, remaining = _explain_images(detector, x, output, surprisal), surprisal
    remaining = np.where([[bool(parts)] for parts in by_part], remaining, np.inf)
    of_whole_row = _explain_whole_rows(detector, surprisal, remaining, _row_descriptions(detector, x, output))
    of_all_values = surprisal[:, detector.part_index(Evidence.ROW)]
    return [
        _in_order(first, parts)[:limit] or [_of_all_values(float(nats))]
        for first, parts, nats in zip(of_whole_row, by_part, of_all_values, strict=True)
    ]


def _in_order(of_whole_row: Sequence[Contribution], parts: Sequence[Contribution]) -> list[Contribution]:
    """Return the contributions of a row in the order to name them. A combination follows the column that it is about.

    Args:
        of_whole_row: Contributions of the row as a whole, and of a combination of categories.
        parts: Contributions of columns.
    """
    first = [contribution for contribution in of_whole_row if contribution.column != Evidence.CATEGORIES]
    second = [contribution for contribution in of_whole_row if contribution.column == Evidence.CATEGORIES]
    return [*first, *parts[:1], *second, *parts[1:]]


def _of_all_values(nats: float) -> Contribution:
    """Return the contribution of a row of which no column and no other measure stands out."""
    text = f"{nats:,.1f} nats of unusualness over all its values"
    return Contribution(Evidence.ROW.value, nats, text, f"{_MIN_SURPRISAL} nats at most in 99 %")


def _row_descriptions(
    detector: Detector, x: torch.Tensor, output: AutoEncoderOutput
) -> dict[Evidence, Sequence[Description]]:
    """Return how each row is described, for each kind of evidence about the whole row."""
    usual = f"{detector.tails.quantiles[detector.part_index(Evidence.LATENT), -1]:,.1f} times at most in 99 %"
    distances = detector.mahalanobis(output.latents).cpu().numpy()
    descriptions: dict[Evidence, Sequence[Description]] = {
        Evidence.LATENT: [
            Description(f"{each:,.1f} times the usual distance from those of training", usual) for each in distances
        ]
    }
    if detector.ensemble is not None:
        usual_total = float(detector.tails.quantiles[detector.part_index(Evidence.ENSEMBLE), -1])
        texts = detector.ensemble.governing(x, usual_total)
        descriptions[Evidence.ENSEMBLE] = [Description(*each) for each in texts]
    if detector.cooccurrence is not None:
        descriptions[Evidence.CATEGORIES] = describe_combinations(detector, x.cpu().numpy())
    return descriptions


def _explain_whole_rows(
    detector: Detector,
    surprisal: Array,
    remaining: Array,
    descriptions: Mapping[Evidence, Sequence[Description]],
) -> list[list[Contribution]]:
    """Return the contributions of `latent`, `ensemble` and `categories` for rows whose score they determine.

    If the first column explains it, only `categories` is named.

    Args:
        detector: Fitted detector.
        surprisal: Surprisal of each part, (n, parts).
        remaining: Surprisal of each part after the first column is imputed, (n, parts); infinite for rows of which no
            column is named.
        descriptions: Description of each row, by evidence.
    """
    scores = detector.combine(surprisal)
    contributions: list[list[Contribution]] = [[] for _ in scores]
    for evidence in (evidence for evidence in descriptions if evidence in detector.config.alerts.evidence):
        index = detector.part_index(evidence)
        score_alone = detector.combine(np.where(np.arange(surprisal.shape[1]) == index, surprisal, 0.0))
        determines_score = (score_alone >= scores) & (surprisal[:, index] >= _MIN_SURPRISAL)
        if evidence != Evidence.CATEGORIES:
            determines_score &= remaining[:, index] > surprisal[:, index] / 2
        for row in np.flatnonzero(determines_score):
            text = descriptions[evidence][int(row)]
            contributions[row].append(Contribution(evidence.value, float(surprisal[row, index]), **text._asdict()))
    return contributions


def _explain_by_column(
    detector: Detector, rows: pl.DataFrame, x: torch.Tensor, surprisal: Array, limit: int
) -> tuple[list[list[Contribution]], Array]:
    """Return the columns that contribute most to each row, and the surprisal after the first one is imputed.

    Args:
        detector: Fitted detector of a table.
        rows: Features of n rows.
        x: The same rows encoded, (n, width).
        surprisal: Surprisal of each part, (n, parts).
        limit: Upper limit on the number of columns of a row.
    """
    encoder, names = cast("TableEncoder", detector.encoder), detector.loss.columns
    row_index = np.arange(len(x))
    contributions: list[list[Contribution]] = [[] for _ in row_index]
    is_imputed = np.zeros((len(x), len(names)), dtype=np.bool_)
    remaining, lowest = surprisal, np.full(len(x), np.inf)
    for step in range(min(limit, len(names))):
        removed = _removed_surprisal(detector, x, surprisal, is_imputed)
        best = removed.argmax(axis=1)
        most = removed[row_index, best]
        moved = move_event_time(detector, rows, x, surprisal) if step == 0 and encoder.context else None
        is_moved = np.zeros(len(x), dtype=np.bool_)
        output, x = impute(detector, x, encoder.groups == best[:, np.newaxis], _is_rare(detector, surprisal))
        if moved is not None:
            is_moved = moved.removed > np.maximum(most, _MIN_SURPRISAL)
            most = np.where(is_moved, moved.removed, most)
            x = torch.where(torch.from_numpy(is_moved).to(x.device).unsqueeze(1), moved.x, x)
            output = detector.network.forward(x)
        surprisal = detector.surprisal(output, x)
        remaining = surprisal if step == 0 else remaining
        expected = detector.network.double_loss.to_scale(output.output).cpu().numpy()
        # Two columns can mask each other: after the first one is imputed, the second one can remove more than it did.
        lowest = np.minimum(lowest, most)
        is_imputed[row_index[~is_moved], best[~is_moved]] = True
        for index, row in enumerate(rows.iter_rows(named=True)):
            name = names[best[index]]
            text = encoder.describe(row, expected[index], name)
            if moved is not None and is_moved[index]:
                name = EVENT_TIME
                text = encoder.speak(name, row[name]), encoder.speak(name, moved.times[index])
            if not _is_expected(*text):
                contributions[index].append(Contribution(name, float(lowest[index]), *text))
    return contributions, remaining


def _is_expected(actual: str, expected: str) -> bool:
    """Return whether a value is the expected one, as far as people can tell.

    >>> _is_expected("JFK", "JFK (92%)"), _is_expected("missing", "missing (else 299)"), _is_expected("3.1", "3.2")
    (True, True, False)
    """
    return actual == expected or expected.startswith(f"{actual} (")


def _removed_surprisal(
    detector: Detector, x: torch.Tensor, surprisal: Array, is_imputed: npt.NDArray[np.bool_]
) -> Array:
    """Return the surprisal that imputing each column removes, (n, columns); −∞ for columns that are not tried.

    The surprisal of the column itself counts in full, and that of the row as `counted_parts` says.
    """
    encoder, column_count = cast("TableEncoder", detector.encoder), is_imputed.shape[1]
    row_index = np.arange(len(x))
    is_counted, is_rare = counted_parts(detector), _is_rare(detector, surprisal)
    removed = np.full(is_imputed.shape, -np.inf)
    of_columns = np.where(is_imputed, -np.inf, surprisal[:, :column_count])
    for candidate in np.argsort(-of_columns, axis=1, kind="stable")[:, :_MAX_CANDIDATES].T:
        mask = encoder.groups == candidate[:, np.newaxis]
        decrease = surprisal - detector.surprisal(*impute(detector, x, mask, is_rare))
        removed[row_index, candidate] = (
            surprisal[row_index, candidate] + decrease[:, is_counted].sum(axis=1) - decrease[row_index, candidate]
        )
    removed[is_imputed] = -np.inf
    return removed


def _is_rare(detector: Detector, surprisal: Array) -> npt.NDArray[np.bool_]:
    """Return which rows have a rare combination of categories, (n,), given the surprisal of each part, (n, parts)."""
    if detector.cooccurrence is None:
        return np.zeros(len(surprisal), dtype=np.bool_)
    is_rare: npt.NDArray[np.bool_] = surprisal[:, detector.part_index(Evidence.CATEGORIES)] >= _MIN_SURPRISAL
    return is_rare


def _explain_images(
    detector: Detector, x: torch.Tensor, output: AutoEncoderOutput, surprisal: Array
) -> list[list[Contribution]]:
    """Return the contributions of the whole image and of its patches, highest first."""
    expected = detector.network.double_loss.to_scale(output.output)
    by_image = [
        _explain_image(detector, surprisal[index], expected[index : index + 1], x[index : index + 1])
        for index in range(len(x))
    ]
    return [sorted(parts, key=lambda part: -part.surprisal) for parts in by_image]


def _explain_image(detector: Detector, surprisal: Array, expected: torch.Tensor, x: torch.Tensor) -> list[Contribution]:
    """Return the contributions of one image, (1, channels, height, width), and of its patches."""
    loss, row = cast("ImageLoss", detector.network.double_loss), detector.part_index(Evidence.ROW)
    quantiles = detector.tails.quantiles[:, -1]
    scores = loss.patch_scores(expected, x)
    usual = [f"{quantile:,.1f} times at most in 99 %" for quantile in quantiles]
    location = "row {}, column {}".format(*loss.highest_patch(scores))
    highest, mean = float(scores.max()), float(scores.mean())
    parts = [
        Contribution("spot", float(surprisal[0]), f"{highest:,.1f} times the usual residual at {location}", usual[0]),
        Contribution("image", float(surprisal[row]), f"{mean:,.1f} times the usual residual", usual[row]),
    ]
    if "flat" in loss.columns:
        flat = loss.flat_scores(x)
        ratio, lowest = (
            f"{loss.contrast_ratio(score):.2f} times" for score in (float(flat.max()), float(quantiles[1]))
        )
        text = f"{ratio} the contrast of the flattest 1 % at row {{}}, column {{}}".format(*loss.highest_patch(flat))
        parts.append(Contribution("flat", float(surprisal[1]), text, f"{lowest} at least in 99 %"))
    return parts
