"""Settings that are proposed for a new dataset from its rows."""

import datetime as dt
import random
from typing import Any

import polars as pl
import pytest

from ae_pipeline.ingestion.proposal.propose import Proposal, propose

TODAY = dt.date(2025, 6, 1)
START = dt.datetime(2025, 1, 1)


def table(rows: int = 400, **columns: Any) -> pl.DataFrame:
    """Return texts as a CSV file holds them. A column is a list, or a function of the number of the row."""
    values = {
        name: [None if (value := column(index)) is None else str(value) for index in range(rows)]
        for name, column in columns.items()
    }
    return pl.DataFrame(values, schema=dict.fromkeys(values, pl.String()))


def hour(index: int) -> str:
    """Return a time on one of many days, two hours after the one before."""
    return f"{START + dt.timedelta(hours=2 * index):%Y-%m-%d %H:%M:%S}"


def noise(index: int) -> float:
    """Return a number that no other row has."""
    return round(random.Random(index).gauss(100, 5), 6)


def proposal(rows: int = 400, **columns: Any) -> Proposal:
    """Return the proposal for a table."""
    return propose(table(rows, **columns), TODAY)


def live(choices: Any) -> dict[str, Any]:
    """Return the values of the choices that are set."""
    return {name: choice.value for name, choice in choices.items() if choice.is_live}


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"value": noise, "order_id": lambda i: 10**19 + i}, ["order_id"]),
        ({"code": lambda i: f"A{i:04d}", "id": lambda i: i}, ["id"]),
        ({"row": lambda i: i, "value": noise}, ["row"]),
        ({"n": lambda i: i + 1, "value": noise}, ["n"]),
        ({"part": lambda i: f"X-{i:05d}", "value": noise}, ["part"]),
        ({"iata": lambda i: "".join(chr(65 + i // 26**k % 26) for k in range(3)), "value": noise}, ["iata"]),
        ({"at": hour, "value": noise}, ["at"]),
        ({"at": lambda i: hour(i // 4), "station": lambda i: "NESW"[i % 4], "value": noise}, ["at", "station"]),
        (
            {"at": lambda i: hour(i // 8), "flight_no": lambda i: i % 4, "origin": lambda i: "AB"[i % 8 // 4]},
            ["at", "flight_no", "origin"],
        ),
        ({"value": noise}, []),  # unique by chance
        ({"id": lambda i: i // 2, "value": noise}, []),
        ({"id": lambda i: i or None, "value": noise}, []),
        ({"at": lambda i: hour(i // 4), "name": lambda i: f"name {i}"}, []),
        ({"number_of_items": lambda i: i * 3, "value": noise}, []),
    ],
)
def test_identity_is_the_smallest_set_that_names_and_values_allow(columns: Any, expected: list[str]) -> None:
    assert proposal(**columns).identity.value == expected


def test_exact_repeats_do_not_spoil_an_identity() -> None:
    rows = table(id=lambda i: i, value=noise)
    assert propose(pl.concat([rows, rows[:5]]), TODAY).identity.value == ["id"]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"at": hour}, "at"),
        ({"updated_at": hour, "created_at": hour}, "created_at"),
        ({"date": lambda i: hour(i)[:10]}, "date"),
        ({"pickup": hour, "dropoff": hour}, "pickup"),
        ({"date_of_birth": lambda i: hour(i * 500)[:10]}, None),
        ({"at": lambda i: hour(i) if i % 10 else None}, None),
        ({"at": lambda i: hour(i // 300)}, None),
        ({"at": lambda i: hour(i // 4 * 40)}, None),
        ({"date": lambda i: (START - dt.timedelta(days=7 * i)).date()}, None),
        ({"month": lambda i: (START - dt.timedelta(days=31 * i)).date()}, None),
        ({"at": lambda i: hour(0)}, None),
        ({"text": lambda i: f"note {i}"}, None),
    ],
)
def test_event_time_is_the_time_of_the_row(columns: Any, expected: str | None) -> None:
    assert live(proposal(**columns).days).get("event_time") == expected


def test_days_come_from_the_data() -> None:
    days = proposal(at=hour).days
    assert live(days) == {"event_time": "at", "start": dt.date(2025, 1, 1), "end": dt.date(2025, 2, 3)}
    assert days["event_time"].reason == "a time in every row, on 34 days"
    young = propose(table(at=hour), dt.date(2025, 2, 20)).days
    assert "end" not in young


@pytest.mark.parametrize(
    ("odd", "key", "day", "where"),
    [
        ("1900-01-01 00:00:00", "start", dt.date(2025, 1, 1), "before"),
        ("2999-12-31 00:00:00", "end", dt.date(2025, 2, 3), "after"),
    ],
)
def test_times_that_stand_for_missing_ones_do_not_count(odd: str, key: str, day: dt.date, where: str) -> None:
    days = proposal(at=lambda i: odd if i in {3, 7} else hour(i)).days
    assert days[key].value == day
    assert f"but for 2 rows far {where} it, which go to quarantine" in days[key].reason


def test_zone_is_told() -> None:
    assert live(propose(table(at=hour), TODAY).days).get("timezone") is None
    offset = proposal(at=lambda i: f"{hour(i)}+02:00").days["timezone"]
    assert not offset.is_live
    assert offset.reason.startswith("the times carry +02:00; write")
    typed = pl.DataFrame({"at": pl.Series([START + dt.timedelta(hours=i) for i in range(400)])}).with_columns(
        pl.col("at").dt.replace_time_zone("America/New_York", non_existent="null", ambiguous="earliest")
    )
    days = propose(typed, TODAY).days
    zone = days["timezone"]
    assert (days["start"].value, days["end"].value) == (dt.date(2025, 1, 1), dt.date(2025, 1, 17))
    assert (zone.value, zone.is_live) == ("America/New_York", True)


def test_order_of_day_and_month_is_asked() -> None:
    result = proposal(created=lambda i: f"{i % 12 + 1:02d}/{i % 11 + 1:02d}/2025", value=noise)
    choice = result.columns["created"]
    assert not choice.is_live
    assert choice.value == {"type": "date", "format": "%d/%m/%Y"}
    assert choice.reason.startswith("or '%m/%d/%Y': no value shows which of day and month comes first")
    assert any(note.startswith("created may be the event_time") for note in result.notes)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"dep_time": lambda i: i % 24 * 100 + i % 60}, {"dep_time": "clock_hhmm"}),
        ({"wait_time": lambda i: i % 90}, {}),
        ({"store_nr": lambda i: i % 7}, {"store_nr": "category"}),
        ({"zip": lambda i: 10000 + i % 50}, {"zip": "category"}),
        ({"shop": lambda i: i % 50}, {"shop": "category"}),
        ({"shop": lambda i: i % 150}, {}),
        ({"store_flag": lambda i: i % 2}, {}),
        ({"customer_id": lambda i: i}, {}),
        ({"item_count": lambda i: i % 7}, {}),
        ({"ts": lambda i: 1_700_000_000 + 7200 * i}, {"ts": {"type": "timestamp", "format": "epoch_s"}}),
        ({"ts": lambda i: 1_700_000_000_000 + 7_200_000 * i}, {"ts": {"type": "timestamp", "format": "epoch_ms"}}),
        ({"price": lambda i: 1_700_000_000 + 7200 * i}, {}),
    ],
)
def test_types_that_values_do_not_show_are_declared(columns: Any, expected: dict[str, Any]) -> None:
    assert live(proposal(value=noise, **columns).columns) == expected


def test_numbers_since_1970_can_be_the_event_time() -> None:
    days = live(proposal(ts=lambda i: 1_700_000_000 + 7200 * i).days)
    assert days == {"event_time": "ts", "start": dt.date(2023, 11, 14), "end": dt.date(2023, 12, 18)}


def test_columns_that_tell_rows_apart_are_excluded() -> None:
    result = proposal(id=lambda i: i, session_id=lambda i: f"s{i // 2}x{i}", shop=lambda i: i % 5, value=noise)
    assert list(result.exclude) == ["id", "session_id"]
    assert result.exclude["session_id"].reason == "400 values in 400 rows, too many to learn"


def test_reserved_names_are_left_out() -> None:
    result = proposal(at=hour, score=noise, value=noise)
    assert "the pipeline uses its name" in result.exclude["score"].reason
    assert result.identity.value == ["at"]


@pytest.mark.parametrize(
    ("columns", "expected", "is_live"),
    [
        ({"is_fraud": lambda i: int(i % 50 == 0)}, "is_fraud = 1", True),
        ({"fraud": lambda i: "true" if i % 50 == 0 else "false"}, "fraud = TRUE", True),
        ({"Label": lambda i: "attack" if i % 50 == 0 else "it's fine"}, "Label = 'attack'", True),
        ({"label": lambda i: ("normal", "dos", "probe")[min(i % 30, 2)]}, "label <> 'normal'", True),
        ({"anomaly 1": lambda i: int(i % 50 == 0)}, '"anomaly 1" = 1', True),
        ({"is_spam": lambda i: int(i % 3 > 0)}, "is_spam = 1", True),
        ({"label": lambda i: i % 2}, "label = ", False),
        ({"class": lambda i: int(i % 50 == 0)}, "class = 1", False),
        ({"price": lambda i: int(i % 50 == 0)}, None, False),
        ({"label": noise}, None, False),
    ],
)
def test_label_is_the_rarer_value(columns: Any, expected: str | None, is_live: bool) -> None:
    label = proposal(value=noise, **columns).label
    if label is None:
        assert expected is None
        return
    assert expected is not None
    assert (str(label.value)[: len(expected)], label.is_live) == (expected, is_live)
