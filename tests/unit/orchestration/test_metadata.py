"""Metadata of materializations."""

import pytest

from ae_pipeline.config.columns import ColumnType
from ae_pipeline.ingestion.contract import ColumnRule
from ae_pipeline.orchestration.metadata import _rule_message


@pytest.mark.parametrize(("limit", "text"), [(20240101.0, "20240101"), (0.1, "0.1"), (-1234567.25, "-1234567.25")])
def test_limits_of_a_column_keep_their_digits(limit: float, text: str) -> None:
    rule = ColumnRule(type=ColumnType.NUMBER, minimum=limit)
    assert _rule_message(rule) == f"Type number; at least {text}."
