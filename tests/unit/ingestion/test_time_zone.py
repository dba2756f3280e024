"""Days, local times and changes of the clocks in the time zone of a dataset."""

import datetime as dt
import logging
from collections import Counter
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
import pytest

from ae_pipeline.ingestion.contract import load_contract
from ae_pipeline.ingestion.fingerprints import rule_fingerprints
from ae_pipeline.ingestion.local_time import start_of_day
from tests.support.datasets import HEADER, TODAY, LandedDataset, frame, line, make_dataset, parquet

NEW_YORK = {"timezone": "America/New_York"}


def half_hours(zone: str, first: dt.date, days: int) -> list[dt.datetime]:
    """Return instants every half hour over whole local days, in UTC."""
    start, end = (
        dt.datetime.combine(first + dt.timedelta(days=n), dt.time(), ZoneInfo(zone)).astimezone(dt.UTC)
        for n in (0, days)
    )
    return [start + dt.timedelta(minutes=30 * n) for n in range(int((end - start) / dt.timedelta(minutes=30)))]


def days_of(dataset: LandedDataset) -> dict[str, int]:
    """Return the number of raw rows of each day."""
    ingested = dataset.ingest()
    return {day: dataset.raw(ingested, day).height for day in ingested.ledger.days}


def instants(*texts: str) -> list[tuple[dt.datetime]]:
    """Return times in UTC, as rows of one column."""
    return [(dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC),) for text in texts]


@pytest.mark.parametrize(
    ("zone", "first", "rows"),
    [
        ("America/New_York", "2024-03-09", [48, 46, 48]),  # 23 hours
        ("America/New_York", "2024-11-02", [48, 50, 48]),  # 25 hours
        ("Asia/Kolkata", "2024-03-09", [48, 48, 48]),  # half an hour beside the hour
        ("Australia/Lord_Howe", "2024-04-06", [48, 49, 48]),  # the clocks change by half an hour
        ("America/Sao_Paulo", "2018-11-03", [48, 46, 48]),  # 00:00 does not exist
        ("America/Sao_Paulo", "2018-02-16", [48, 50, 48]),  # 23:00 to 24:00 occurs twice
        ("Pacific/Apia", "2011-12-29", [48, 0, 48]),  # a whole day does not exist
    ],
)
def test_instants_are_in_their_local_day(tmp_path: Path, zone: str, first: str, rows: list[int]) -> None:
    date = dt.date.fromisoformat(first)
    times = half_hours(zone, date, len(rows))
    dataset = make_dataset(tmp_path, timezone=zone, start="2011-01-01", end="2024-12-31")
    lines = "".join(line(n, time.isoformat()) for n, time in enumerate(times))
    dataset.land("a.csv", HEADER + lines)
    expected = {(date + dt.timedelta(days=n)).isoformat(): count for n, count in enumerate(rows) if count}
    assert days_of(dataset) == expected
    assert dataset.quarantine() == []
    assert sorted(dataset.rows("event_time")) == [(time,) for time in times]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_times_without_a_zone_are_local_times(tmp_path: Path, kind: str) -> None:
    dataset = make_dataset(tmp_path, **NEW_YORK)
    texts = ["2024-01-15T23:30:00", "2024-07-15T00:10:00"]
    if kind == "csv":
        dataset.land("a.csv", HEADER + "".join(line(n, text) for n, text in enumerate(texts)))
    else:
        dataset.land("a.parquet", parquet(frame(0, 1, time=[dt.datetime.fromisoformat(text) for text in texts])))
    assert days_of(dataset) == {"2024-01-15": 1, "2024-07-15": 1}
    assert dataset.rows("event_time") == instants("2024-01-16T04:30", "2024-07-15T04:10")


def test_other_time_columns_are_local_times_too(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, **NEW_YORK)
    dataset.land("a.csv", "id,time,paid\n1,2024-01-15T12:00:00Z,2024-01-15 08:00:00\n")
    assert dataset.rows("paid") == instants("2024-01-15T13:00")


def test_a_dataset_without_event_time_has_local_times(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, event_time=None, start=None, end=None, **NEW_YORK)
    dataset.land("a.csv", "id,paid\n1,2024-01-15 08:00:00\n")
    assert dataset.rows("paid") == instants("2024-01-15T13:00")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_time_that_the_clocks_skip_is_quarantined(tmp_path: Path, kind: str) -> None:
    dataset = make_dataset(tmp_path, **NEW_YORK)
    texts = ["2024-03-10T01:59:00", "2024-03-10T02:30:00", "2024-03-10T03:00:00"]
    if kind == "csv":
        dataset.land("a.csv", HEADER + "".join(line(n, text) for n, text in enumerate(texts, 1)))
    else:
        dataset.land("a.parquet", parquet(frame(1, 2, 3, time=[dt.datetime.fromisoformat(text) for text in texts])))
    assert dataset.rows("event_time") == instants("2024-03-10T06:59", "2024-03-10T07:00")
    ((_, _, rule, reason),) = dataset.quarantine()
    assert rule == "time: skipped by the clocks"
    assert "02:30:00" in reason
    assert "does not exist in America/New_York, because the clocks were set forward; correct it at the source" in reason


def test_a_skipped_midnight_is_quarantined_and_its_day_is_not(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, timezone="America/Sao_Paulo", start="2018-01-01")
    dataset.land("a.csv", HEADER + line(1, "2018-11-04T00:00:00") + line(2, "2018-11-04T01:00:00"))
    assert days_of(dataset) == {"2018-11-04": 1}
    assert [rule for _, _, rule, _ in dataset.quarantine()] == ["time: skipped by the clocks"]


def test_a_text_that_is_no_time_keeps_its_own_reason(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, **NEW_YORK)
    dataset.declare(id={"type": "integer"}, time={"type": "timestamp"})
    dataset.land("a.csv", "id,time\n1,soon\n2,2024-03-10T02:30:00\n3,2024-03-10T04:30:00\n")
    dataset.ingest()
    assert [rule for _, _, rule, _ in dataset.quarantine()] == ["time: timestamp", "time: skipped by the clocks"]


def test_a_repeated_time_is_the_earlier_one_and_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = make_dataset(tmp_path, **NEW_YORK)
    times = ["2024-11-03T00:30:00", "2024-11-03T01:30:00", "2024-11-03T01:45:00", "2024-11-03T02:30:00"]
    dataset.land("a.csv", HEADER + "".join(line(n, text) for n, text in enumerate(times)))
    with caplog.at_level(logging.INFO, logger="ae_pipeline"):
        rows = dataset.rows("event_time")
    assert rows == instants("2024-11-03T04:30", "2024-11-03T05:30", "2024-11-03T05:45", "2024-11-03T07:30")
    (message,) = [record.message for record in caplog.records if "occur twice" in record.message]
    assert message.startswith("2 values of 'time' occur twice in America/New_York, because the clocks were set back")


def test_repeated_times_with_offsets_stay_apart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = make_dataset(tmp_path, identity=["time"], **NEW_YORK)
    dataset.land("a.csv", HEADER + line(1, "2024-11-03T01:30:00-04:00") + line(2, "2024-11-03T01:30:00-05:00"))
    with caplog.at_level(logging.INFO, logger="ae_pipeline"):
        assert sorted(dataset.rows("id")) == [(1,), (2,)]
    assert not any("occur twice" in record.message for record in caplog.records)


def test_repeated_times_are_counted_where_the_offset_is_zero(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In the Azores, clocks go back from UTC to one hour behind it."""
    dataset = make_dataset(tmp_path, timezone="Atlantic/Azores")
    dataset.land("a.csv", HEADER + line(1, "2024-10-27T00:30:00"))
    with caplog.at_level(logging.INFO, logger="ae_pipeline"):
        assert dataset.rows("event_time") == instants("2024-10-27T00:30")
    assert any("1 values of 'time' occur twice" in record.message for record in caplog.records)


@pytest.mark.parametrize(
    ("zone", "date", "expected"),
    [
        ("America/New_York", "2024-03-10", "2024-03-10T05:00"),
        ("America/Sao_Paulo", "2018-11-04", "2018-11-04T03:00"),  # starts at 01:00
        ("Pacific/Apia", "2011-12-31", "2011-12-30T10:00"),
        ("Asia/Kolkata", "2024-03-10", "2024-03-09T18:30"),
        ("UTC", "2024-03-10", "2024-03-10T00:00"),
    ],
)
def test_a_day_starts_with_its_first_instant(zone: str, date: str, expected: str) -> None:
    start = pl.select(start_of_day(pl.lit(dt.date.fromisoformat(date)), zone)).item()
    assert start == dt.datetime.fromisoformat(expected).replace(tzinfo=dt.UTC)


@pytest.mark.parametrize(("zone", "date"), [("America/Sao_Paulo", "2018-11-04"), ("America/New_York", "2018-11-04")])
def test_a_date_as_event_time_is_its_own_day(tmp_path: Path, zone: str, date: str) -> None:
    dataset = make_dataset(tmp_path, timezone=zone, start="2018-01-01")
    dataset.land("a.csv", HEADER + line(1, date))
    assert days_of(dataset) == {date: 1}


def test_a_date_that_the_zone_skips_is_quarantined(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, timezone="Pacific/Apia", start="2011-01-01")
    dataset.land("a.csv", HEADER + line(1, "2011-12-29") + line(2, "2011-12-30") + line(3, "2011-12-31"))
    assert days_of(dataset) == {"2011-12-29": 1, "2011-12-31": 1}
    ((_, _, rule, reason),) = dataset.quarantine()
    assert rule == "time: skipped by the clocks"
    assert reason.startswith("time = 2011-12-30 does not exist in Pacific/Apia")


def test_first_and_last_day_are_local(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, start="2024-01-01", end="2024-01-31", **NEW_YORK)
    times = ["2024-01-01T04:59:00Z", "2024-01-01T05:00:00Z", "2024-02-01T04:59:00Z", "2024-02-01T05:00:00Z"]
    dataset.land("a.csv", HEADER + "".join(line(n, text) for n, text in enumerate(times)))
    assert dataset.ids() == [1, 2]
    rules = Counter(rule for _, _, rule, _ in dataset.quarantine())
    assert rules == {"time: before start": 1, "time: after the last day": 1}


def test_a_new_time_zone_rebuilds_every_day(tmp_path: Path) -> None:
    """A zone that is added later moves rows to other days, and no file keeps rows of the days before."""
    utc = make_dataset(tmp_path, start="2024-03-01", end="2024-03-02")
    utc.land("a.csv", HEADER + line(1, "2024-03-01T12:00:00Z") + line(2, "2024-03-02T03:00:00Z"))
    assert days_of(utc) == {"2024-03-01": 1, "2024-03-02": 1}
    local = make_dataset(tmp_path, start="2024-03-01", end="2024-03-02", **NEW_YORK)
    ingested = local.ingest()
    assert ingested.read == ("a.csv",)
    assert ingested.pending_days(local) == ["2024-03-01", "2024-03-02"]
    assert [local.raw(ingested, day).height for day in ("2024-03-01", "2024-03-02")] == [2, 0]


def test_files_of_days_that_a_dataset_lost_are_deleted(tmp_path: Path) -> None:
    longer = make_dataset(tmp_path, start="2024-03-01", end="2024-03-02")
    longer.land("a.csv", HEADER + line(1, "2024-03-01T12:00:00Z") + line(2, "2024-03-02T12:00:00Z"))
    assert days_of(longer) == {"2024-03-01": 1, "2024-03-02": 1}
    longer.paths.features("2024-03-02").parent.mkdir(parents=True)
    longer.paths.features("2024-03-02").write_bytes(b"features of that day")
    make_dataset(tmp_path, start="2024-03-01", end="2024-03-01").ingest()
    assert [path.stem for path in longer.paths.raw("_").parent.iterdir()] == ["2024-03-01"]
    assert list(longer.paths.features("_").parent.iterdir()) == []


def test_only_another_zone_than_utc_changes_the_fingerprint(tmp_path: Path) -> None:
    """Existing deployments do not read their files again, because they never set a zone."""
    fingerprints = []
    for settings in ({}, {"timezone": "UTC"}, NEW_YORK):
        dataset = make_dataset(tmp_path, **settings)
        dataset.declare(id={"type": "integer"}, time={"type": "timestamp"})
        contract = load_contract(dataset.paths.contract)
        fingerprints.append(rule_fingerprints(contract, dataset, TODAY).lasting)
    assert fingerprints[0] == fingerprints[1]
    assert fingerprints[2] != fingerprints[0]


def test_today_is_the_day_of_the_zone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Clock(dt.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Clock":
            return cls(2024, 3, 1, 2, tzinfo=dt.UTC).astimezone(tz)

    monkeypatch.setattr("ae_pipeline.config.pipeline.dt.datetime", Clock)
    assert make_dataset(tmp_path).config.today() == dt.date(2024, 3, 1)
    assert make_dataset(tmp_path, **NEW_YORK).config.today() == dt.date(2024, 2, 29)
    assert make_dataset(tmp_path, timezone="Pacific/Kiritimati").config.today() == dt.date(2024, 3, 1)


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("america/new_york", "America/New_York"),
        ("New York", "America/New_York"),
        ("Amerika/New_York", "America/New_York"),
        ("Berlin", "Europe/Berlin"),
        ("+02:00", "Europe/Berlin"),
        ("localtime", "Europe/Berlin"),
        ("", "Europe/Berlin"),
        ("../../etc/passwd", "Europe/Berlin"),
    ],
)
def test_an_unknown_zone_is_refused_with_a_valid_one(tmp_path: Path, name: str, suggestion: str) -> None:
    with pytest.raises(ValueError, match="is not an IANA time zone") as error:
        make_dataset(tmp_path, timezone=name)
    assert f"timezone={name!r} is not an IANA time zone; write a name such as {suggestion!r}" in str(error.value)
