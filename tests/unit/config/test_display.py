"""Titles, units and codes of columns."""

import pytest

from ae_pipeline.config.columns import ColumnDisplay
from ae_pipeline.config.display import PLAIN, ColumnNames

NAMES = ColumnNames(
    {
        "carrier": ColumnDisplay(title="airline", codes={"AA": "American Airlines", "AA or B": "Both"}),
        "mode": ColumnDisplay.model_validate({"codes": {1: "idle", 2: "run", 3: "run"}}),
        "late": ColumnDisplay.model_validate({"codes": {True: "yes", False: "no"}}),
        "air_time": ColumnDisplay(unit="minutes"),
    }
)


@pytest.mark.parametrize(
    ("column", "text", "shown"),
    [
        ("carrier", "AA", "American Airlines"),
        ("carrier", "B6", "B6"),
        ("carrier", "AA (61%) or UA (30%)", "American Airlines (61%) or UA (30%)"),
        ("carrier", "UA (61%) or AA (30%)", "UA (61%) or American Airlines (30%)"),
        ("carrier", "AA or B (95%)", "Both (95%)"),
        ("carrier", "missing (else AA)", "missing (else American Airlines)"),
        ("mode", "1", "idle"),
        ("mode", "2", "run (2)"),
        ("mode", "3 (90%)", "run (3) (90%)"),
        ("late", "true", "yes"),
        ("air_time", "1,234", "1,234 minutes"),
        ("air_time", "missing (else 50)", "missing (else 50 minutes)"),
        ("air_time", "17:45", "17:45"),
        (
            "categories",
            "carrier AA × mode 1: never together in 12 counted rows",
            "airline American Airlines × mode idle",
        ),
        ("categories", "dest HNL × carrier B6: together in 2 of 12 counted rows", "dest HNL × airline B6"),
    ],
)
def test_values_are_shown_under_their_names(column: str, text: str, shown: str) -> None:
    counts = text[text.index(": ") :] if column == "categories" else ""
    assert NAMES.value(column, text) == shown + counts
    assert PLAIN.value(column, text) == text


def test_columns_of_the_pipeline_have_titles() -> None:
    assert (NAMES.title("event_time"), NAMES.title("row_id"), NAMES.title("carrier")) == (
        "event time",
        "row",
        "airline",
    )
    own = ColumnNames({"event_time": ColumnDisplay(title="departure")})
    assert own.title("event_time") == "departure"
