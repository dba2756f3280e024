"""Rules that tell a challenger that has become blind from one that has adapted to a changed world.

A model becomes blind if bad rows enter its calibration: its threshold rises above faults that the version that serves
flags. A changed world raises the scores of normal rows instead. So the rules count a planted fault only if the same row
without the fault is not flagged.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import polars as pl

from ae_pipeline.common.errors import BundleError
from ae_pipeline.common.text import plural, pluralize
from ae_pipeline.config.display import noun_of_rows
from ae_pipeline.config.service import GateConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.features.split import GATE, Window
from ae_pipeline.gate.planted_faults import plant_kinds
from ae_pipeline.gate.results import GateResult, not_compared
from ae_pipeline.gate.sight import MIN_FAULTS, Seen, see, within_budget
from ae_pipeline.gate.sign_flip import sign_flip_p_value
from ae_pipeline.scoring.budget import is_over_budget
from ae_pipeline.storage.dataset import Dataset

Array = npt.NDArray[np.float64]

BLINDNESS_RULES = (
    "faults_found_at_budget",
    "each_kind_found_at_budget",
    "alerts_still_found",
    "threshold_in_line",
    "rankings_agree",
)
"""Names of the rules of this module."""

_MIN_ALERTS = 5
"""Recent alerts that a comparison needs."""

_IN_CALM_ROWS = "planted faults in {} that the version that serves does not flag"

_CHANCE = 0.01
"""Probability with which two equal models may differ as much in a kind of fault by chance."""


@dataclass(frozen=True)
class RecentAlerts:
    """Rows that the version that serves flags on days over its budget, of the newest days.

    Attributes:
        rows: Features of the flagged rows.
        scores: Their scores under the version that serves, shape (n,).
        days: Number of these days.
        of_days: Number of days that were looked at.
        has_changed: Whether these days hold more rows than a screening may leave out: the data itself has changed.
    """

    rows: pl.DataFrame
    scores: Array
    days: int
    of_days: int
    has_changed: bool


NO_ALERTS = RecentAlerts(pl.DataFrame(), np.empty(0), 0, 0, has_changed=False)
"""No recent alert, for a comparison without a history."""


def recent_alerts(window: Window, champion: ModelBundle, dataset: Dataset) -> RecentAlerts:
    """Return the alerts of the calibration days and the gate's days that are over their budget.

    Alerts on days within their budget are not compared: most are the expected false alerts, in which two good models
    differ. They count where these days together are over the budget.

    Args:
        window: Days of each part, before any screening.
        champion: Version that serves.
        dataset: Configuration and paths of the dataset.

    Returns:
        The alerts; none without days, or if the model cannot score the rows.
    """
    max_share = dataset.config.training.max_screened_share or 1.0
    budget = champion.calibration.budget
    days = () if window.is_by_row else tuple(dict.fromkeys((*window.calibration, *window.gate)))
    flagged: dict[bool, list[pl.DataFrame]] = {True: [], False: []}
    scores: dict[bool, list[Array]] = {True: [], False: []}
    rows_of: dict[bool, list[int]] = {True: [], False: []}
    for day in days:
        of_day, scores_of_day, count = list[pl.DataFrame](), [np.empty(0)], 0
        for rows in replace(window, gate=(day,)).batches(GATE, dataset.paths):
            try:
                scored = champion.score(rows)
            except BundleError:  # a column of the model no longer exists
                return NO_ALERTS
            count += rows.height
            of_day.append(rows.filter(pl.Series(scored.is_anomaly)))
            scores_of_day.append(scored.score[scored.is_anomaly])
        is_over = is_over_budget(count, sum(map(len, scores_of_day)), budget)
        flagged[is_over] += of_day
        scores[is_over] += scores_of_day
        rows_of[is_over].append(count)
    over_days, over, rest = len(rows_of[True]), sum(rows_of[True]), sum(rows_of[False])
    alerts, alert_scores = flagged[True], scores[True]
    if is_over_budget(rest, sum(map(len, scores[False])), budget):  # a few faulty rows on each of many days
        alerts, alert_scores = alerts + flagged[False], alert_scores + scores[False]
        over_days = len(days)
    return RecentAlerts(
        pl.concat(alerts, how="diagonal") if alerts else pl.DataFrame(),
        np.concatenate([np.empty(0), *alert_scores]),
        over_days,
        len(days),
        has_changed=over > max_share * (over + rest),
    )


def compare_sight(
    challenger: ModelBundle, champion: ModelBundle, rows: pl.DataFrame, alerts: RecentAlerts, config: GateConfig
) -> tuple[GateResult, ...]:
    """Compare what a challenger and the version that serves see.

    Args:
        challenger: Model that would be promoted.
        champion: Model that serves.
        rows: Rows from `gate_rows`, at least one.
        alerts: Alerts from `recent_alerts`.
        config: Thresholds of the rules.

    Raises:
        BundleError: The rows lack a column that a model needs.
    """
    faults = plant_kinds(rows, (challenger.encoder, champion.encoder))
    seen, champion_seen = (see(bundle, rows, faults) for bundle in (challenger, champion))
    champion_seen = within_budget(champion_seen, champion.calibration.budget)
    screening = challenger.facts.screening
    if screening is not None and "calibration" in screening.changed:
        alerts = replace(alerts, has_changed=True)
    return (
        faults_found_at_budget(seen, champion_seen, config.max_recall_drop),
        each_kind_found_at_budget(seen, champion_seen, config.max_recall_drop),
        alerts_still_found(challenger, alerts, champion_seen.threshold, config.min_alert_agreement),
        threshold_in_line(seen, champion_seen, config.max_threshold_rise),
        rankings_agree(seen, champion_seen, config.min_rank_agreement),
    )


def faults_found_at_budget(challenger: Seen, champion: Seen, max_recall_drop: float) -> GateResult:
    """Check that the challenger flags about as many planted faults at its alert budget as the champion, or more.

    Args:
        challenger: What the challenger sees.
        champion: What the champion sees of the same faults.
        max_recall_drop: Difference by which the share of flagged faults may be lower.
    """
    rule, kinds = "faults_found_at_budget", sorted(champion.faults)
    recall, of_champion = challenger.recall(kinds), champion.recall(kinds)
    if np.isnan(of_champion):
        return not_compared(
            rule, 0.0, f"there are fewer than {MIN_FAULTS} {_IN_CALM_ROWS.format(plural(champion.noun))}"
        )
    limit = max(of_champion - max_recall_drop, 0.0)
    by_kind = ", ".join(f"{kind} {challenger.recall([kind]):.0%} ({champion.recall([kind]):.0%})" for kind in kinds)
    message = (
        f"it flags {recall:.1%} of the planted faults; at least {limit:.1%} must be; the version that serves flags "
        f"{of_champion:.1%}; by kind: {by_kind}"
    )
    return GateResult(rule=rule, passed=recall >= limit, figure=recall, threshold=limit, message=message)


def each_kind_found_at_budget(challenger: Seen, champion: Seen, max_recall_drop: float) -> GateResult:
    """Check that the challenger flags about as many planted faults of each kind as the champion, or more.

    Over all kinds together, a better network can hide that its threshold is too high: it gains faults that are easy to
    flag, and loses others. The same faults are compared one by one, in rows that the champion does not flag without
    them. A fault counts for the challenger only if it does not flag that row either.

    A loss counts if it is above the limit and chance does not explain it. Chance is tested against no difference, not
    against the limit. Faults of one column rise and fall together, so the test takes the columns as groups: a kind in
    fewer than seven columns never breaks the rule. In the other kinds each fault is a group of its own.

    Args:
        challenger: What the challenger sees.
        champion: What the champion sees of the same faults.
        max_recall_drop: Difference by which the share of flagged faults of a kind may be lower.
    """
    rule, drops = "each_kind_found_at_budget", list[tuple[bool, float, str]]()
    for kind in sorted(champion.faults):
        is_new = champion.is_new[kind]
        if is_new.sum() < MIN_FAULTS:
            continue
        ours, theirs = (seen.finds(kind)[is_new] for seen in (challenger, champion))
        groups = champion.columns[kind][is_new] if kind in champion.columns else None
        drop = float(theirs.mean() - ours.mean())
        is_lost = drop > max_recall_drop and sign_flip_p_value(theirs.astype(int) - ours, groups) < _CHANCE
        drops.append((is_lost, drop, f"{100 * drop:.1f}, in the kind {kind} {ours.mean():.1%} ({theirs.mean():.1%})"))
    if not drops:
        return not_compared(
            rule, max_recall_drop, f"no kind has {MIN_FAULTS} {_IN_CALM_ROWS.format(plural(champion.noun))}"
        )
    is_lost, drop, figures = max(drops, key=lambda each: each[:2])  # a loss that counts comes before one by chance
    message = (
        f"of no kind of planted fault may it flag {100 * max_recall_drop:g} percentage points less than the version "
        f"that serves; the largest difference{' that chance does not explain' if is_lost else ''} is {figures}"
        f"{', which chance can explain' if drop > max_recall_drop and not is_lost else ''}"
    )
    return GateResult(rule=rule, passed=not is_lost, figure=drop, threshold=max_recall_drop, message=message)


def alerts_still_found(challenger: ModelBundle, alerts: RecentAlerts, threshold: float, min_share: float) -> GateResult:
    """Check that the challenger still flags enough of the recent alerts of the version that serves.

    Args:
        challenger: Model that would be promoted.
        alerts: Alerts from `recent_alerts`.
        threshold: Threshold of the version that serves; see `within_budget`.
        min_share: Share of the alerts that the challenger must flag.
    """
    rule = "alerts_still_found"
    if alerts.has_changed:
        reason = f"the data has changed: {alerts.days} of the newest {alerts.of_days} days are over the alert budget"
        return not_compared(rule, min_share, reason)
    is_above = alerts.scores > threshold
    if is_above.sum() < _MIN_ALERTS:
        return not_compared(rule, min_share, "no recent day is over the alert budget of the version that serves")
    rows = alerts.rows.filter(pl.Series(is_above))
    flagged = pluralize(rows.height, noun_of_rows(challenger.config))
    share = float(challenger.score(rows).is_anomaly.mean())
    message = (
        f"it flags {share:.1%} of the {flagged} that the version that serves flags on the "
        f"{pluralize(alerts.days, 'recent day')} over its budget; at least {min_share:.1%} must be"
    )
    return GateResult(rule=rule, passed=share >= min_share, figure=share, threshold=min_share, message=message)


def threshold_in_line(challenger: Seen, champion: Seen, max_rise: float) -> GateResult:
    """Check that the threshold of the challenger has not risen much, on the scale of the champion's scores.

    The scores of two models have different scales. So the rule asks which threshold the champion would need to flag as
    many of the same rows and planted faults.

    Args:
        challenger: What the challenger sees.
        champion: What the champion sees of the same rows.
        max_rise: Nats by which that threshold may be above the champion's own.
    """
    rule = "threshold_in_line"
    ours, theirs = _same_rows(challenger, champion)
    if len(theirs) < MIN_FAULTS:
        few = f"fewer than {MIN_FAULTS} {plural(champion.noun)} unflagged"
        reason = f"the version that serves leaves {few}, with the faults in them"
        return not_compared(rule, max_rise, reason)
    count = int((ours > challenger.threshold).sum())
    descending = np.sort(theirs)[::-1]
    rise = float(descending[min(count, len(descending) - 1)]) - champion.threshold
    message = (
        f"the version that serves would flag as many {plural(champion.noun)} and planted faults with a threshold "
        f"{abs(rise):.2f} nats {'above' if rise > 0 else 'below'} its own; it may be at most {max_rise:g} nats above"
    )
    return GateResult(rule=rule, passed=rise <= max_rise, figure=rise, threshold=max_rise, message=message)


def rankings_agree(challenger: Seen, champion: Seen, min_agreement: float) -> GateResult:
    """Check that the scores of both models rank rows and planted faults in a similar order.

    Args:
        challenger: What the challenger sees.
        champion: What the champion sees of the same rows.
        min_agreement: Lowest Spearman correlation of the scores.
    """
    from scipy.stats import rankdata

    rule = "rankings_agree"
    ours, theirs = _same_rows(challenger, champion)
    if len(theirs) < MIN_FAULTS or np.ptp(ours) == 0 or np.ptp(theirs) == 0:
        return not_compared(rule, min_agreement, f"too few {plural(champion.noun)} have different scores")
    agreement = float(np.corrcoef(rankdata(ours), rankdata(theirs))[0, 1])
    message = (
        f"the rank correlation of its scores with those of the version that serves is {agreement:.2f}; it must be "
        f"{min_agreement:g} or more"
    )
    return GateResult(
        rule=rule, passed=agreement >= min_agreement, figure=agreement, threshold=min_agreement, message=message
    )


def _same_rows(challenger: Seen, champion: Seen) -> tuple[Array, Array]:
    """Return the scores of both models for the rows that the champion does not flag, and for the faults in them."""
    is_calm, is_new = champion.rows <= champion.threshold, champion.is_new
    ours, theirs = (
        np.concatenate([seen.rows[is_calm], *(seen.faults[kind][is_new[kind]] for kind in sorted(is_new))])
        for seen in (challenger, champion)
    )
    return ours, theirs
