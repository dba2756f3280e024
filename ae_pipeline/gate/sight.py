"""What a model sees: its scores of rows, and of faults planted into them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import polars as pl

from ae_pipeline.config.display import noun_of_rows
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.gate.planted_faults import Faults

Array = npt.NDArray[np.float64]

_OVER_ALERTING = 5
"""Multiple of the alert budget up to which a model that flags too much counts as having too low a threshold."""

MIN_FAULTS = 50
"""Planted faults that a comparison needs."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a model sees of rows without a fault and of faults planted into them.

    Attributes:
        threshold: Threshold of the model, in nats.
        rows: Scores of the rows, shape (n,).
        faults: Scores of the faults of each kind, shape (m,).
        originals: Scores of the rows that these faults were planted into, shape (m,).
        columns: Column of each fault, shape (m,), of the kinds that change one column.
        noun: What messages call a row.
    """

    threshold: float
    rows: Array
    faults: Mapping[str, Array]
    originals: Mapping[str, Array]
    columns: Mapping[str, npt.NDArray[np.str_]] = field(default_factory=dict)
    noun: str = "row"

    @property
    def is_new(self) -> dict[str, npt.NDArray[np.bool_]]:
        """Which faults of each kind are in a row that the model does not flag without the fault."""
        return {kind: scores <= self.threshold for kind, scores in self.originals.items()}

    def finds(self, kind: str) -> npt.NDArray[np.bool_]:
        """Return which faults of a kind the model flags, in a row that it does not flag without the fault."""
        return (self.faults[kind] > self.threshold) & self.is_new[kind]

    def recall(self, kinds: Sequence[str]) -> float:
        """Return the share of the faults that the model flags, of those in rows that it does not flag without them."""
        is_flagged = [self.finds(kind)[self.is_new[kind]] for kind in kinds]
        flags = np.concatenate([np.empty(0, np.bool_), *is_flagged])
        return float(flags.mean()) if len(flags) >= MIN_FAULTS else float("nan")


def see(bundle: ModelBundle, rows: pl.DataFrame, faults: Mapping[str, Faults]) -> Seen:
    """Return what a model sees.

    Args:
        bundle: The model.
        rows: Rows without a fault.
        faults: Faults planted into these rows, by kind.

    Raises:
        BundleError: The rows lack a column that the model needs.
    """
    scores = bundle.latents_and_scores(rows)[1]
    by_id = pl.DataFrame({"row_id": rows["row_id"], "score": scores}).unique("row_id", keep="first")
    return Seen(
        threshold=bundle.calibration.threshold,
        rows=scores,
        faults={kind: bundle.latents_and_scores(faulty.rows)[1] for kind, faulty in faults.items()},
        originals={
            kind: faulty.rows.select("row_id")
            .join(by_id, on="row_id", how="left", maintain_order="left")["score"]
            .to_numpy()
            for kind, faulty in faults.items()
        },
        columns={kind: faulty.columns for kind, faulty in faults.items() if faulty.columns is not None},
        noun=noun_of_rows(bundle.config),
    )


def within_budget(seen: Seen, budget: float) -> Seen:
    """Return what a model sees with a threshold that keeps its budget, if it flags a little more than that.

    A model that flags up to five times its budget has a threshold that is too low for the present rows. Without the
    correction, no challenger with a right threshold could follow it. A model that flags more than that sees faulty rows
    or a changed world, and keeps its threshold.

    Args:
        seen: What the model sees.
        budget: Its alert budget.
    """
    share = float((seen.rows > seen.threshold).mean())
    if not budget < share <= _OVER_ALERTING * budget:
        return seen
    return replace(seen, threshold=max(seen.threshold, float(np.quantile(seen.rows, 1 - budget))))
