"""Asset checks: each names its rule, the figure and the threshold."""

import dagster as dg


def spec(key: dg.AssetKey, name: str, rule: str) -> dg.AssetCheckSpec:
    """Declares a check by its rule in words."""
    return dg.AssetCheckSpec(name, asset=key, description=rule)


def check(
    key: dg.AssetKey,
    name: str,
    passed: bool,
    words: str,
    *,
    figure: float | None = None,
    threshold: float | None = None,
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
) -> dg.AssetCheckResult:
    """Gives the result of a check.

    Args:
        key: Of the asset.
        name: Of the check.
        passed: Whether the rule is kept.
        words: What was found.
        figure: What was measured.
        threshold: What it was held against.
        severity: How a broken rule shows; none of them stops the run, since good rows must go on.
    """
    figures = {name: float(value) for name, value in (("figure", figure), ("threshold", threshold)) if value is not None}
    return dg.AssetCheckResult(
        asset_key=key, check_name=name, passed=bool(passed), severity=severity, description=words, metadata=figures
    )
