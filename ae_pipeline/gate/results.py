"""The result of a rule of the gate."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """Result of one rule for one challenger.

    Attributes:
        rule: Name of the rule.
        passed: Whether the challenger meets the rule.
        figure: Measured value; NaN if nothing was compared.
        threshold: Limit of the rule.
        message: Value and limit as a sentence.
    """

    rule: str
    passed: bool
    figure: float
    threshold: float
    message: str


def not_compared(rule: str, threshold: float, reason: str) -> GateResult:
    """Return the result of a rule that passes because nothing can be compared."""
    return GateResult(
        rule=rule, passed=True, figure=float("nan"), threshold=threshold, message=f"not compared: {reason}"
    )
