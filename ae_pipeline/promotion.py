"""The gate: which challenger may serve."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from ae_pipeline.bundle import ModelBundle
from ae_pipeline.detector import Detector
from ae_pipeline.errors import BundleError, TrainingError
from ae_pipeline.faults import plant_faults
from ae_pipeline.preprocessing.image_encoder import ImageEncoder, pixels
from ae_pipeline.preprocessing.table_encoder import Matrix
from ae_pipeline.preprocessing.window import GATE, PARTS, Window
from ae_pipeline.scoring.calibration import departure
from ae_pipeline.service_config import GateConfig
from ae_pipeline.storage import ALL_ROWS, DatasetPaths
from ae_pipeline.training import TrainingResult

MOST_DEPARTURE = 0.1
"""Gap between the scores of new days and those of the calibration that counts as drift, beyond what chance makes."""

MIN_SPREAD = 1e-3
"""Spread of a latent column, relative to the widest, below which it counts as collapsed."""

_GATE_ROWS = 20_000
"""Rows of the gate's days that are looked at, at most: many enough for shares of a hundredth."""

_COMMON = 0.99
"""A planted fault is found when it scores higher than this share of the gate's rows."""

_TRIMMED = 0.95
"""Share of a column's errors that their mean is taken of, without the greatest: a wild value is no fault of a model."""

_NEGLIGIBLE = 0.01
"""An error is told from none from this share of a column's spread on, and of categories from this share of rows on."""

Errors = dict[str, float]
"""Reconstruction error of each column, in its unit; of a category the share of rows that are wrong."""


@dataclass(frozen=True)
class Verdict:
    """One rule of the gate and how a challenger fared.

    Attributes:
        rule: Its name.
        passed: Whether it is kept.
        figure: What was measured.
        threshold: What it was held against.
        words: The same as a sentence.
    """

    rule: str
    passed: bool
    figure: float
    threshold: float
    words: str


@dataclass(frozen=True)
class Shown:
    """What a model shows on the gate's rows.

    Attributes:
        errors: Of its reconstructions.
        departure: Of its scores from those of its calibration.
        chance: What chance alone makes of a departure, once in a hundred times.
        found: Share of planted faults that it finds; NaN where none could be planted.
        faults: How many were planted.
    """

    errors: Errors
    departure: float
    chance: float
    found: float
    faults: int


def gate_rows(window: Window, champion: Window | None, paths: DatasetPaths) -> pl.DataFrame:
    """Reads the rows that neither of two models was fitted on, up to 20,000 of them, drawn by a hash of the identity.

    Args:
        window: Of the challenger.
        champion: Of the version that serves; its own gate's days may have come before.
        paths: The dataset's.

    Returns:
        The rows; none where all days of the gate lie within the other's window, or the gate has none. Without event
        time those that the other was fitted on are left out: other rows or settings may have cut it elsewhere.
    """
    last = champion.days[-1] if champion else ""
    days = window.gate if window.gate == (ALL_ROWS,) else tuple(day for day in window.gate if day > last)
    if not days:
        return pl.DataFrame()
    own = Window(window.train, (), (), "", window.split_by, window.only_normal, days)
    try:
        rows = own.rows(GATE, paths)
    except TrainingError:  # of few rows without event time, or of days of nothing but anomalies, none may be left
        return pl.DataFrame()
    if champion and days == (ALL_ROWS,):
        rows = rows.filter(~pl.col("row_id").is_in(_seen(champion, paths).implode()))
    if rows.height > _GATE_ROWS:
        drawn = rows["row_id"].hash(seed=1).arg_sort().head(_GATE_ROWS).sort()
        rows = rows[drawn]
    return rows


def _seen(window: Window, paths: DatasetPaths) -> pl.Series:
    """Lists the rows of now that a model without event time was fitted on, by its own cut."""
    found = [pl.Series("row_id", [], pl.String)]
    for part in PARTS:
        try:
            found.append(window.rows(part, paths, ["row_id"])["row_id"])
        except TrainingError:  # none is left of that part
            continue
    return pl.concat(found)


def show(bundle: ModelBundle, rows: pl.DataFrame, faulty: pl.DataFrame) -> Shown:
    """Measures a model on the gate's rows.

    Args:
        bundle: The model.
        rows: Of `gate_rows`, n > 0.
        faulty: Of `plant_faults`; the same for both models.

    Raises:
        BundleError: The rows lack a column that the model needs.
    """
    scores = bundle.latents_and_scores(rows)[1]
    found = float("nan")
    if faulty.height:
        mark = np.quantile(scores, _COMMON)
        found = float((bundle.latents_and_scores(faulty)[1] > mark).mean())
    calibrated = bundle.calibration.scores
    return Shown(
        reconstruction_errors(bundle, rows),
        departure(scores, calibrated),
        _chance(len(scores), len(calibrated)),
        found,
        faulty.height,
    )


def reconstruction_errors(detector: Detector, rows: pl.DataFrame) -> Errors:
    """Measures how far a model's reconstructions are off, column by column, in the columns' own units.

    Of a number or a clock (minutes, the short way round) the mean distance, without the greatest twentieth; of a
    category the share of rows where another one is likelier; of images the mean distance of pixels. A value that is
    missing, or of which the model says so, is no part of it.

    Args:
        detector: The model.
        rows: Features, n > 0.
    """
    expected = detector.encoder.decode(detector.reconstruct(rows), rows)
    if isinstance(detector.encoder, ImageEncoder):
        name, shape = detector.encoder.name, detector.encoder.image
        images, shown = (pixels(frame[name], shape).astype(np.float64) for frame in (rows, expected))
        return {name: float(np.abs(images - shown).mean())}
    errors: Errors = {}
    for column in detector.encoder.columns:
        actual, made = rows[column.name], expected[column.name]
        if actual.dtype.is_temporal():
            continue  # its parts are not decoded
        if column.is_category:
            errors[column.name] = float(actual.ne_missing(made).to_numpy().mean())
            continue
        gap = np.abs((actual.cast(pl.Float64) - made.cast(pl.Float64)).drop_nulls().drop_nans().to_numpy())
        if column.is_clock:
            gap = np.minimum(gap % 1440, 1440 - gap % 1440)
        kept = np.sort(gap)[: math.ceil(_TRIMMED * len(gap))]
        if len(kept):
            errors[column.name] = float(kept.mean())
    return errors


def judge(
    challenger: ModelBundle, champion: ModelBundle | None, rows: pl.DataFrame, why_not: str, config: GateConfig
) -> tuple[Verdict, ...]:
    """Lets a challenger face the version that serves on rows that neither was fitted on.

    Args:
        challenger: The model that would serve.
        champion: The one that does, None where none can be compared with.
        rows: Of `gate_rows`.
        why_not: Why none can, for a person.
        config: The thresholds.

    Returns:
        Verdicts of reconstruction, calibration and planted faults. Where nothing can be compared they pass, and say so.
    """
    rules = ("reconstruction_no_worse", "calibration_no_worse", "planted_faults_found")
    limits = (1 + config.most_worse, config.most_departure, 0.0)
    if rows.is_empty():
        why_not = "no row lies after the days that both were fitted on"
    elif champion is not None:
        try:
            champion.encoder.encode(rows.head(1))  # a column that it needs may be gone
            faulty = plant_faults(rows, champion.encoder)
            shown = show(challenger, rows, faulty), show(champion, rows, faulty)
        except BundleError as error:
            why_not = str(error)
        else:
            return (
                reconstruction_no_worse(shown[0].errors, shown[1].errors, spreads(rows, champion), config.most_worse),
                calibration_no_worse(*shown, config.most_departure),
                planted_faults_found(*shown, config.most_lost),
            )
    return tuple(
        Verdict(rule, True, float("nan"), limit, f"not compared: {why_not}")
        for rule, limit in zip(rules, limits, strict=True)
    )


def spreads(rows: pl.DataFrame, champion: ModelBundle) -> dict[str, float]:
    """Gives the spread of each column of numbers, in its unit: over a model's window, or these rows where it is wider.

    A column may stay the same over all days of the gate, and an error be negligible all the same.
    """
    found = {known.name: known.spread for known in champion.reference if not known.is_category}
    for column in rows.select(pl.selectors.numeric()):
        spread = column.cast(pl.Float64).std()
        if isinstance(spread, float):
            found[column.name] = max(spread, found.get(column.name, 0.0))
    return found


def reconstruction_no_worse(
    challenger: Errors, champion: Errors, spread: dict[str, float], most_worse: float
) -> Verdict:
    """The challenger reconstructs the columns that both see about as well as the version that serves, or better.

    Each column's error is divided by the other's, which takes the unit away; the geometric mean of these quotients
    weighs a column that is twice as good as much as one that is twice as bad.

    Args:
        challenger: Its errors.
        champion: Errors of the version that serves.
        spread: Of columns of numbers, by which negligible errors are told.
        most_worse: Share by which the mean may exceed 1.
    """
    rule, most = "reconstruction_no_worse", 1 + most_worse
    shared = sorted(challenger.keys() & champion.keys())
    if not shared:
        return Verdict(rule, True, float("nan"), most, "not compared: the two models see no column in common")
    floors = {name: _NEGLIGIBLE * spread.get(name, 1.0) + 1e-300 for name in shared}
    quotients = {name: (challenger[name] + floors[name]) / (champion[name] + floors[name]) for name in shared}
    figure = math.exp(sum(map(math.log, quotients.values())) / len(quotients))
    worst = max(quotients, key=lambda name: quotients[name])
    words = (
        f"over {len(shared)} columns its error is {figure:.3f} times that of the version that serves, at most "
        f"{most:g} allowed; the worst is {worst} with {challenger[worst]:.4g} where the other has {champion[worst]:.4g}"
    )
    return Verdict(rule, figure <= most, figure, most, words)


def calibration_no_worse(challenger: Shown, champion: Shown, most_departure: float) -> Verdict:
    """The challenger's scores of the gate's rows lie as near to its calibration as the threshold or the other's do.

    Args:
        challenger: What it shows.
        champion: What the version that serves shows, which the same days may have taken from its calibration too.
        most_departure: Gap that is allowed whatever the other shows.
    """
    most = max(most_departure, champion.departure) + challenger.chance
    words = (
        f"shares of rows up to any score differ from those of its calibration by up to {challenger.departure:.3f}, at "
        f"most {most:.3f} allowed; those of the version that serves by {champion.departure:.3f}"
    )
    return Verdict("calibration_no_worse", challenger.departure <= most, challenger.departure, most, words)


def planted_faults_found(challenger: Shown, champion: Shown, most_lost: float) -> Verdict:
    """The challenger finds about as many planted faults as the version that serves, or more.

    Args:
        challenger: What it shows.
        champion: What the version that serves shows of the same faults.
        most_lost: By how much its share may be smaller.
    """
    rule = "planted_faults_found"
    if not challenger.faults:
        return Verdict(rule, True, float("nan"), 0.0, "not compared: no column has two values to plant a fault with")
    least = max(champion.found - most_lost, 0.0)
    words = (
        f"{challenger.found:.1%} of {challenger.faults} planted faults score higher than {_COMMON:.0%} of the rows, at "
        f"least {least:.1%} must; the version that serves finds {champion.found:.1%}"
    )
    return Verdict(rule, challenger.found >= least, challenger.found, least, words)


def finite_weights(bundle: ModelBundle) -> Verdict:
    """Every weight of the network is a finite number."""
    wrong = sum(int((~torch.isfinite(value)).sum()) for value in bundle.model.state_dict().values())
    return Verdict("finite_weights", wrong == 0, wrong, 0, f"{wrong:,} weights are not finite; none may be")


def loss_fell(result: TrainingResult) -> Verdict:
    """The validation loss is lower than before the first step."""
    return Verdict(
        "loss_fell",
        result.best_loss < result.first_loss,
        result.best_loss,
        result.first_loss,
        f"validation loss {result.best_loss:.4g} at epoch {result.best_epoch}, {result.first_loss:.4g} before it",
    )


def latents_not_collapsed(latents: Matrix, least: float = 0.5) -> Verdict:
    """All latents are finite, and enough of their columns vary from row to row.

    Args:
        latents: Of some rows, (n, latent_dim).
        least: Share of the columns that must.
    """
    if wrong := int((~np.isfinite(latents)).sum()):
        words = f"{wrong:,} latents are not finite; none may be"
        return Verdict("latents_not_collapsed", False, 0.0, least, words)
    spread = latents.std(axis=0) if len(latents) else np.zeros(latents.shape[1])
    alive = float((spread > MIN_SPREAD * max(float(spread.max(initial=0.0)), 1e-12)).mean())
    words = f"{alive:.0%} of {latents.shape[1]} latent columns vary; {'half' if least == 0.5 else f'{least:.0%}'} must"
    return Verdict("latents_not_collapsed", alive >= least, alive, least, words)


def calibration_holds(scores: npt.NDArray[np.float64], calibrated: npt.NDArray[np.float64]) -> Verdict:
    """Rows after the calibration days score like those of these days, which the alert budget rests on.

    It looks at all scores alike. Of the highest alone, which make alerts, the report's check `alert_budget` tells.

    Args:
        scores: Of rows of days after the window of the model, (n,).
        calibrated: Of the rows of the calibration days.
    """
    if not len(scores):
        return Verdict("calibration_holds", True, 0.0, MOST_DEPARTURE, "0 rows lie after the calibration days")
    gap = departure(scores, calibrated)
    most = MOST_DEPARTURE + _chance(len(scores), len(calibrated))
    words = f"{len(scores):,} rows after the calibration days: their shares up to any score differ by up to {gap:.3f}"
    verdict = "train anew to calibrate on newer days" if gap > most else "they are alike"
    return Verdict("calibration_holds", gap <= most, gap, most, f"{words}; {verdict}")


def is_promoted(verdicts: Sequence[Verdict]) -> bool:
    """A challenger serves when it keeps every rule."""
    return all(verdict.passed for verdict in verdicts)


def _chance(rows: int, others: int) -> float:
    """Gap that two samples of one distribution exceed once in a hundred times (Smirnov 1939)."""
    return 1.63 * math.sqrt(1 / rows + 1 / others)
