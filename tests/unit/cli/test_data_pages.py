"""Home page, data contract and marks at the server of the data folder: what is shown, and who may change what."""

import datetime as dt
import html
import json
import os
import re
import shutil
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import quote, urlencode

import polars as pl
import pytest
from mlflow.exceptions import MlflowException
from starlette.testclient import TestClient

from ae_pipeline.cli.data_files import data_app
from ae_pipeline.cli.guard import Guard, access
from ae_pipeline.cli.mark import MarkOptions
from ae_pipeline.cli.mark import mark as cli_mark
from ae_pipeline.cli.summary import verdict_line
from ae_pipeline.common.errors import BundleError, ConfigError, StorageError
from ae_pipeline.common.text import one_in
from ae_pipeline.config.columns import ColumnDisplay
from ae_pipeline.features.split import LABEL
from ae_pipeline.gate.blindness import RecentAlerts
from ae_pipeline.ingestion.ledger import LandedFile, Ledger
from ae_pipeline.latents.files import TableFiles
from ae_pipeline.latents.read import published_day, published_days
from ae_pipeline.lifecycle.alerts import alert_broken_contract
from ae_pipeline.lifecycle.feedback import mark_and_show, reviewed_rows, without_false_alarms
from ae_pipeline.lifecycle.promote import PASSED, RUN
from ae_pipeline.lifecycle.published_facts import PublishedFacts
from ae_pipeline.lifecycle.report import ReportedDays
from ae_pipeline.lifecycle.version_pages import version_marks
from ae_pipeline.monitoring.daily_drift import DayDrift
from ae_pipeline.monitoring.feedback import FlaggedRow, Mark, MarkKind, MarkState, marks_of
from ae_pipeline.monitoring.feedback_precision import precision_by_version
from ae_pipeline.monitoring.verdict import DayAssessment
from ae_pipeline.registry.history import Change, HistoryEntry, record
from ae_pipeline.registry.names import GATE_TAG, LAST_DAY_TAG, PUBLISHED_TAG
from ae_pipeline.registry.store import Tracker
from ae_pipeline.registry.versions import TrackedVersion
from ae_pipeline.reports.build import build_report
from ae_pipeline.reports.day_pages import day_page
from ae_pipeline.reports.explore import row_page
from ae_pipeline.reports.files import record_report_file
from ae_pipeline.reports.page import is_current, refresh_operations
from ae_pipeline.reports.review import MarkRequest, cause_key, entity_of, flagged_rows, read_ranked
from ae_pipeline.scoring.drift import Effect, Part
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.parquet import read_facts, write_parquet
from tests.support.reports import Text, as_dataset, published, reported
from tests.support.sensors import Fitted, sensor_config

ORIGIN, TOKEN = "http://127.0.0.1:8000", "correct-horse-battery"


@pytest.fixture(scope="module")
def prepared(fitted: Fitted, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A report over five days with seven anomalous rows on the newest. Tests must not change it."""
    dataset = fitted.at(tmp_path_factory.mktemp("pages") / "data")
    days = dataset.days[-5:]
    strange = (
        dataset.features(days[-1])
        .with_row_index("i")
        .with_columns(load=pl.when(pl.col("i").is_between(10, 16)).then(-pl.col("load") * 9).otherwise("load"))
    )
    write_parquet(dataset.paths.features(days[-1]), strange.drop("i").to_arrow(), {"input_hash": "changed"})
    published(dataset, days)
    reported(dataset, days)
    return as_dataset(dataset)


@pytest.fixture
def dataset(prepared: Dataset, tmp_path: Path) -> Dataset:
    """A copy of the report that a test may mark."""
    shutil.copytree(prepared.paths.root, tmp_path / "data")
    return replace(prepared, paths=replace(prepared.paths, root=tmp_path / "data"))


def client_of(dataset: Dataset, tracker: Tracker | None = None) -> TestClient:
    """Return a browser that has opened the printed address."""
    app = Guard(data_app(dataset.paths.root, {dataset.name: dataset}, tracker), access(TOKEN, 8000, ORIGIN))
    client = TestClient(app, base_url=ORIGIN, headers={"Accept": "text/html"})
    assert client.get(f"/?token={TOKEN}").status_code == 200
    return client


def summary_of(dataset: Dataset) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((dataset.paths.reports / "summary.json").read_text())
    return found


def test_a_cause_is_marked_and_the_report_leaves_it_out(dataset: Dataset) -> None:
    client = client_of(dataset)
    before = summary_of(dataset)["verdict"]
    assert before["state"] == "wrong"
    assert [reason["kind"] for reason in before["reasons"]] == ["over_budget"]
    rows = [row for row in flagged_rows(read_ranked(dataset.paths), dataset.config) if row.day == before["day"]]
    assert len(rows) >= 7
    for cause in {cause_key(row.columns) for row in rows}:
        query = urlencode({"kind": "cause", "subject": cause, "day": before["day"], "back": "//evil.test"})
        form = client.get(f"/mark/sensors?{query}")
        assert form.status_code == 200
        assert "evil" not in form.text
        body = {"kind": "cause", "subject": cause, "day": before["day"], "state": "known", "note": "<b>", "who": "ana"}
        reported = dt.datetime(2024, 5, 6, 7, 8, tzinfo=dt.UTC).timestamp()
        os.utime(dataset.paths.reports / "alerts.parquet", (reported, reported))  # a mark does not change it
        answer = client.post("/mark/sensors", json=body, headers={"Origin": ORIGIN})
        assert answer.json()["message"].startswith("Saved: known,")
    after = summary_of(dataset)["verdict"]
    assert (after["state"], after["hidden"], after["reasons"]) == ("calm", len(rows), [])
    days = summary_of(dataset)["days"]
    assert days[-1]["state"] == "calm"
    others = [each["day"] for each in days if each["state"] != "calm"]
    assert after["since"] == next(each["day"] for each in days if each["day"] > max(others, default=""))
    assert before["since"] == before["day"]
    page = (dataset.paths.reports / "report.html").read_text()
    assert after["words"] in page
    assert "&lt;b&gt;" in page
    assert '<span class="small state">known</span>' in page
    assert not is_current(dataset.paths)  # the next run takes the marks into pages of days and checks
    assert client.get("/feedback/sensors/marks.parquet").status_code == 200
    assert client.get("/feedback/sensors/marks.jsonl").status_code == 404
    home = client.get("/").text
    assert after["words"] in home
    assert 'href="contract/sensors"' in home
    first, last = (summary_of(dataset)["days"][index]["day"] for index in (0, -1))
    states = [day["state"].replace(" ", "-") for day in summary_of(dataset)["days"]]
    assert re.findall(r'<rect x="\d+" width="3" y="[\d.]+" height="[\d.]+" class="([a-z-]+)"><title>', home) == states
    assert re.search(rf'<div class="small ends".*{first}.*{last}', home)  # the axis of the trend
    assert f"Last updated 2024-05-06 07:08 UTC; the newest day with rows is {last}." in home


def test_an_entity_that_is_asked_for_is_chosen(prepared: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"a": 7, "b": 6, "c": 5, "d": 4, "e": 3, "f": 2, "alone": 1}
    rows = [
        FlaggedRow(row_id=f"{entity}{index}", day="2024-01-01", score=9.0, columns=("load",), entity=entity)
        for entity, size in sizes.items()
        for index in range(size)
    ]
    monkeypatch.setattr("ae_pipeline.reports.served.flagged_rows", lambda *_: rows)
    client = client_of(prepared)
    for entity, words in (("f", "2 rows"), ("alone", "1 row"), ("gone", "0 rows"), ("a", "7 rows"), ("", "")):
        page = client.get(f"/mark/sensors?{urlencode({'kind': 'cause', 'subject': 'load', 'entity': entity})}").text
        chosen = f'<option value="{entity}" selected>only {entity} ({words})</option>'
        assert (chosen in page) == bool(entity)
        assert f"{words or '28 rows'}.</p>".replace(" row", " flagged row") in page
        assert page.count("<option") == (6 if entity in {"", "a"} else 7)
        assert f"&#34;entity&#34;: &#34;{entity}&#34;" in page


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 403),
        ({"Origin": "http://evil.test"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ORIGIN, "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": ORIGIN, "Content-Type": "text/plain"}, 415),
        ({"Origin": ORIGIN, "Cookie": "none=1"}, 401),
    ],
)
def test_a_page_of_another_site_marks_nothing(prepared: Dataset, headers: dict[str, str], status: int) -> None:
    dataset, client = prepared, client_of(prepared)
    body = json.dumps({"kind": "day", "subject": summary_of(dataset)["verdict"]["day"], "state": "known"})
    if "Cookie" in headers:
        client.cookies.clear()
    answer = client.post("/mark/sensors", content=body, headers={"Content-Type": "application/json", **headers})
    assert answer.status_code == status
    assert marks_of(dataset.paths) == []


def test_rows_that_the_report_does_not_list_can_be_marked(dataset: Dataset) -> None:
    client = client_of(dataset)
    day = summary_of(dataset)["verdict"]["day"]
    ranked = read_ranked(dataset.paths)
    rows = published_day(published_days(dataset.paths)[day], dataset.paths).sort("row_id")
    usual = rows.filter(~pl.col("is_anomaly"), ~pl.col("row_id").is_in(ranked["row_id"].to_list()))["row_id"][0]
    flagged = rows.filter("is_anomaly")["row_id"][0]
    path = dataset.paths.reports / "alerts.parquet"
    write_parquet(path, ranked.filter(pl.col("row_id") != flagged).to_arrow(), read_facts(path))
    answers = [
        client.post("/mark/sensors", json={"kind": "row", "subject": row, "state": state}, headers={"Origin": ORIGIN})
        for row, state in ((flagged, "known"), (usual, "known"), (usual, "real"), (usual, "cleared"))
    ]
    assert [answer.status_code for answer in answers] == [200, 422, 200, 200]
    assert "is not flagged, so it cannot be known; a row that is not flagged" in answers[1].json()["message"]
    marks = marks_of(dataset.paths)
    assert [(mark.subject, mark.rows, mark.model_version > 0) for mark in marks] == [
        (flagged, {flagged: day}, True),
        (usual, {usual: day}, False),
        (usual, {usual: day}, False),
    ]
    query = urlencode({"kind": "row", "subject": usual})
    assert "a row that the report does not list as flagged" in client.get(f"/mark/sensors?{query}").text
    assert [(each.real, each.known) for each in precision_by_version(marks)] == [(0, 1)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": "fine"}, "it is one of real, known"),
        ({"subject": "2020-01-01"}, "has no day '2020-01-01'"),
        ({"kind": "row", "subject": "nothing"}, "has no row 'nothing'"),
        ({"kind": "cause", "subject": "nothing"}, "has no cause 'nothing'"),
        ({"note": "x" * 501}, "note has 501 characters; use at most 500"),
        ({"other": "x"}, "a mark has no field 'other'"),
        ({"subject": ""}, "a mark needs subject"),
        ({"rows": ["a"]}, "a JSON object of texts"),
    ],
)
def test_a_mark_of_nothing_says_what_is_wrong(prepared: Dataset, change: dict[str, Any], message: str) -> None:
    dataset, client = prepared, client_of(prepared)
    body = {"kind": "day", "subject": summary_of(dataset)["verdict"]["day"], "state": "known", **change}
    answer = client.post("/mark/sensors", json=body, headers={"Origin": ORIGIN})
    assert answer.status_code == 422
    assert message in answer.json()["message"]
    assert marks_of(dataset.paths) == []
    assert client.post("/mark/other", json=body, headers={"Origin": ORIGIN}).status_code == 404
    assert client.post("/mark/sensors", content="[" * 20_000, headers={**JSON, "Origin": ORIGIN}).status_code == 413


JSON = {"Content-Type": "application/json"}


def test_an_object_store_that_does_not_answer_leaves_the_home_page(prepared: Dataset) -> None:
    away = replace(prepared, paths=replace(prepared.paths, tables="s3://nowhere/latents"))

    def fail(*_: object, **__: object) -> None:
        raise OSError("connection refused")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ae_pipeline.latents.files.DeltaTable.is_deltatable", fail)
        patch.setattr(TableFiles, "has", fail)
        client = client_of(away)
        assert 'href="contract/sensors"' in client.get("/").text
        answer = client.get("/contract/sensors")
    assert answer.status_code == 503
    assert "<p>the object store of s3://nowhere/latents/sensors does not answer" in answer.text


def test_the_contract_shows_figures_and_correlates(
    prepared: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("whole days with images do not fit into the memory of the server")

    monkeypatch.setattr(pl, "read_parquet", fail)
    client = client_of(prepared)
    page = client.get("/contract/sensors")
    assert page.status_code == 200
    assert "<code>z_000</code>" in page.text
    assert "load (" in page.text
    # The contract was written where the table was published. The page says where it is now.
    moved = shutil.copytree(prepared.paths.root, tmp_path / "moved")
    there = replace(prepared, paths=replace(prepared.paths, root=moved))
    text = html.unescape(client_of(there).get("/contract/sensors").text)
    assert f"DeltaTable({str(moved / 'latents' / 'sensors')!r})" in text
    assert str(prepared.paths.root) not in text
    assert client.get("/contract/other").status_code == 404


def test_pages_say_which_landed_files_are_refused(dataset: Dataset) -> None:
    client = client_of(dataset)

    def shown(refused: dict[str, str]) -> tuple[str, ...]:
        entry = LandedFile(size=1, modified_ns=1, sha256="0", landed_ns=1, contract="c", staged=None)
        ledger = Ledger({name: replace(entry, refused=reason) for name, reason in refused.items()})
        alert_broken_contract(ledger, None, dataset, "run")
        pages = [client.get(path).text for path in ("/", "/reports/sensors/report.html")]
        return (*map(html.unescape, pages), verdict_line(dataset), str(summary_of(dataset)["refused"]))

    assert all("refused" not in text.split("<script")[0] for text in shown({}))
    home, report, line, words = shown({"a<b>.csv": "it has no rows"})
    assert words == "the landed file a<b>.csv is refused: it has no rows"
    assert "The landed file a<b>.csv is refused: it has no rows." in home
    assert "The landed file a<b>.csv is refused: it has no rows." in report
    assert line.endswith(f"; {words}")
    *_, words = shown({"a.csv": "it has no rows", "b.csv": "it is empty"})
    assert words == "2 landed files are refused, the first one a.csv: it has no rows"
    refresh_operations(dataset)  # such as after a mark, which knows nothing of files
    assert summary_of(dataset)["refused"] == words
    *_, words = shown({})
    assert words == ""


def mark_of_newest_day(dataset: Dataset) -> Mark:
    day = summary_of(dataset)["verdict"]["day"]
    request = MarkRequest(kind=MarkKind.DAY, subject=day, state=MarkState.KNOWN, who="ana")
    return mark_and_show(request, dataset)


def test_a_mark_of_a_day_reaches_checks_and_later_pages(dataset: Dataset, fitted: Fitted) -> None:
    day = summary_of(dataset)["verdict"]["day"]
    earlier = next(row for row in flagged_rows(read_ranked(dataset.paths), dataset.config) if row.day < day)
    request = MarkRequest(kind=MarkKind.ROW, subject=earlier.row_id, state=MarkState.REAL)
    mark_and_show(request, dataset)  # the pages of later days are written again too
    page = day_page(day, dataset, fitted.bundle, 3)
    page.write_text("old")
    record_report_file(page, dataset.paths)  # so that it does not count as damaged
    build_report([earlier.day, day], dataset, fitted.bundle, 3, "run")
    assert page.read_text() != "old"
    mark_of_newest_day(dataset)
    report = build_report([earlier.day, day], dataset, fitted.bundle, 3, "run")
    flagged = next(each.flagged for each in report.days if each.day == day)
    assert report.hidden == flagged >= 7
    effect = Effect(part=Part.COLUMN, name="load", psi=2.0, is_drift=True, message="shifted")
    drift = DayDrift(day=day, is_after=True, rows=60, effects=(effect,), is_judged=True)
    version = cast(TrackedVersion, None)
    checks = ReportedDays(report=replace(report, drift=(drift,)), version=version, budget=0.01, days=(day,))
    assert [each.day for each in checks.drifting] == [day]
    assert checks.drift_message.startswith(f"1 of 1 day after the training window has drifted; {day}: ")
    elsewhere = replace(checks, report=replace(report, drift=(replace(drift, day="2000-01-01"),)))
    assert elsewhere.drift_message.endswith("after the training window; 1 day of the table is")
    alike = replace(checks, report=replace(report, drift=(replace(drift, effects=()),)))
    assert alike.drift_message == "1 day after the training window is like it"
    checks = replace(checks, report=replace(checks.report, known_drift=frozenset({day})))
    assert checks.drifting == []
    assert checks.drift_message == (
        "0 days after the training window are like it; the drift of 1 more is known or a false alarm"
    )
    assert not checks.is_over_budget


def days_on_page(dataset: Dataset) -> list[str]:
    """The bars of the page over all days, the sentence that counts them, and the listed days with their reasons."""
    page = (dataset.paths.reports / "report.html").read_text()
    whole = page[page.index('<svg class="year"') : page.index('<details class="calendar">')]
    return [re.sub(" (data-)?href=", " href=", line) for line in whole.splitlines()]  # a page is a link once it exists


def test_a_mark_gives_the_verdicts_that_the_next_report_gives(dataset: Dataset, fitted: Fitted) -> None:
    before, day = days_on_page(dataset), summary_of(dataset)["verdict"]["day"]
    mark_of_newest_day(dataset)
    at_once, shown = summary_of(dataset), days_on_page(dataset)
    wrong = [each["day"] for each in at_once["days"] if each["state"] == "wrong"]
    assert day not in wrong
    assert any(f'class="marked" data-day="{day}"' in line for line in before)
    assert any(f'class="whole" data-day="{day}"' in line for line in shown)
    assert f", {len(wrong)} {'is' if len(wrong) == 1 else 'are'} wrong" in "".join(shown)
    build_report([day], dataset, fitted.bundle, 3, "run")
    later = summary_of(dataset)
    assert shown == days_on_page(dataset)
    assert (at_once["verdict"], at_once["days"]) == (later["verdict"], later["days"])
    assert at_once["verdict"]["since"]


def test_the_pages_beside_a_day_tell_its_new_verdict(dataset: Dataset, fitted: Fitted) -> None:
    before, day = (summary_of(dataset)["days"][index]["day"] for index in (-2, -1))
    page = day_page(before, dataset, fitted.bundle, 3)
    page.write_text("old")
    record_report_file(page, dataset.paths)
    build_report([day], dataset, fitted.bundle, 3, "run")
    assert f'href="{day}.html"' in page.read_text()


def test_a_mark_made_while_a_report_is_built_is_not_lost(dataset: Dataset, fitted: Fitted) -> None:
    assert is_current(dataset.paths)
    day = summary_of(dataset)["verdict"]["day"]
    build_report([day], dataset, fitted.bundle, 3, "run", on_assessed=lambda _: None)
    assert is_current(dataset.paths)

    def mark_meanwhile(_: Mapping[str, DayAssessment]) -> None:
        mark_of_newest_day(dataset)

    build_report([day], dataset, fitted.bundle, 3, "run", on_assessed=mark_meanwhile)
    assert not is_current(dataset.paths)
    build_report([day], dataset, fitted.bundle, 3, "run")
    assert is_current(dataset.paths)


@pytest.mark.parametrize("kind", ["missing", "earlier"])
def test_ranked_rows_that_cannot_be_read_hinder_no_refresh(dataset: Dataset, kind: str) -> None:
    mark_of_newest_day(dataset)
    path = dataset.paths.reports / "alerts.parquet"
    if kind == "earlier":
        write_parquet(path, pl.read_parquet(path).drop("boxes").to_arrow())
        with pytest.raises(ConfigError, match="without boxes; `ae-pipeline run sensors` builds it again"):
            read_ranked(dataset.paths)
    else:
        path.unlink()
    verdict = summary_of(dataset)["verdict"]
    (dataset.paths.reports / "report.html").write_text("old")
    record_report_file(dataset.paths.reports / "report.html", dataset.paths)
    refresh_operations(dataset)
    assert (dataset.paths.reports / "report.html").read_text() != "old"
    assert verdict["day"] == summary_of(dataset)["verdict"]["day"]


def test_marks_reach_the_training(dataset: Dataset) -> None:
    day = summary_of(dataset)["verdict"]["day"]
    first, second, *_ = flagged_rows(read_ranked(dataset.paths), dataset.config)
    for kind, subject, state in (
        (MarkKind.ROW, first.row_id, MarkState.REAL),
        (MarkKind.ROW, second.row_id, MarkState.FALSE_ALARM),
        (MarkKind.DAY, day, MarkState.FALSE_ALARM),
    ):
        mark_and_show(MarkRequest(kind=kind, subject=subject, state=state, who="ana"), dataset)
    reviewed = reviewed_rows(dataset.paths)
    assert (reviewed.real, reviewed.false_alarms) == ({first.day: [first.row_id]}, {second.day: [second.row_id]})
    assert (reviewed.real_days, reviewed.usual_days) == ([], [day])
    rows = pl.DataFrame({"row_id": [first.row_id, second.row_id, "other"]})
    assert reviewed.without_marked(rows)["row_id"].to_list() == ["other"]
    alerts = without_false_alarms(RecentAlerts(rows, rows["row_id"].hash().to_numpy(), 1, 1, False), reviewed)
    assert alerts.rows["row_id"].to_list() == [first.row_id, "other"]
    assert len(alerts.scores) == 2
    assert summary_of(dataset)["feedback"] == [
        {"version": 3, "real": 1, "known": 0, "false_alarms": 1, "precision": 0.5}
    ]


def test_three_false_alarms_of_an_entity_offer_to_leave_out_its_later_rows(
    dataset: Dataset, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row for row in flagged_rows(read_ranked(dataset.paths), dataset.config) if row.columns == ("load",)]
    rows = [replace(row, entity="M 1") for row in rows]
    assert len(rows) >= 5
    monkeypatch.setattr("ae_pipeline.reports.review.flagged_rows", lambda *_: rows)
    monkeypatch.setattr("ae_pipeline.reports.served.flagged_rows", lambda *_: rows)
    client = client_of(dataset)

    def post(**fields: str) -> Any:
        return client.post("/mark/sensors", json={"who": "ana", **fields}, headers={"Origin": ORIGIN}).json()

    first, second, third, later, *_ = (row.row_id for row in rows)
    for row_id in (first, second):
        assert post(kind="row", subject=row_id, state="false_alarm")["offer"] is None
    offer = post(kind="row", subject=third, state="false_alarm")["offer"]
    assert offer["message"].startswith(
        "3 rows of M 1 with a cause like load are false alarms. Later ones can stay flagged"
    )
    form = client.get(f"/mark/sensors?{urlencode({'kind': 'row', 'subject': later})}").text
    assert "Treat it as known for M 1" in form
    monkeypatch.setattr("ae_pipeline.cli.mark.Project.load", lambda **_: SimpleNamespace(dataset=lambda _: dataset))
    cli_mark("sensors", MarkOptions(state="false-alarm", row=third, who="ana"))
    printed = capsys.readouterr().out
    assert "ae-pipeline mark sensors known --cause=load --entity='M 1'" in printed
    verdict = summary_of(dataset)["verdict"]
    assert f"\n{verdict['day']}: {verdict['state']} since" in printed
    assert post(**offer["request"])["offer"] is None
    (of_entity,) = (mark for mark in marks_of(dataset.paths) if mark.kind == MarkKind.CAUSE)
    assert (of_entity.state, of_entity.entity, of_entity.note) == (MarkState.KNOWN, "M 1", "3 false alarms")
    assert set(of_entity.rows) == {row.row_id for row in rows}
    learned = [row_id for row_ids in reviewed_rows(dataset.paths).false_alarms.values() for row_id in row_ids]
    assert set(learned) == {first, second, third}  # the next training learns them still
    assert "Treat it as known" not in client.get(f"/mark/sensors?{urlencode({'kind': 'row', 'subject': later})}").text
    assert post(kind="row", subject=later, state="real")["offer"] is None


def test_an_entity_is_the_identity_without_the_time() -> None:
    flights = sensor_config(identity=("carrier", "measured_at", "origin"))
    assert entity_of("UA|2013-01-01|EWR", flights) == "UA|EWR"
    assert entity_of("UA|a|2013-01-01|EWR", flights) == ""  # a value has a vertical bar
    assert entity_of("100001", sensor_config()) == ""


def test_a_report_that_is_missing_is_named(fitted: Fitted) -> None:
    with pytest.raises(ConfigError, match="has no report, so nothing can be marked"):
        read_ranked(fitted.paths)


def test_columns_scores_and_latents_are_explored(prepared: Dataset, fitted: Fitted) -> None:
    client, newest = client_of(prepared), summary_of(prepared)["verdict"]["day"]
    overview = client.get("/explore/sensors")
    assert overview.headers["content-security-policy"].startswith("sandbox allow-scripts")
    assert 'href="/explore/sensors/column/load"' in overview.text
    assert "site" in overview.text
    scores = chart_of(overview.text, "score_days")
    (quantiles, threshold) = scores["datasets"].values()
    assert threshold == [{"at": fitted.bundle.calibration.threshold}]
    assert {row["day"] for row in quantiles} == set(fitted.days[-5:])
    page = client.get("/explore/sensors/column/load").text
    by_day = {row["day"]: row for row in chart_of(page, "median")["datasets"]["values_0"]}
    load = pl.read_parquet(prepared.paths.features(newest))["load"]
    assert by_day[newest]["median"] == pytest.approx(load.median())
    assert "median" not in client.get("/explore/sensors/column/mode").text.lower().split("<script")[0]
    latents = client.get("/explore/sensors/latents").text
    content = json.loads(latents.split('id="content">')[1].split("</script>")[0])
    assert content["names"][:4] == ["row_id", "day", "score", "is_anomaly"]
    assert len(content["rows"]) == sum(day["rows"] for day in summary_of(prepared)["days"])
    for missing, message in (
        ("/explore/other", "there is no dataset 'other'; choose among sensors"),
        ("/contract/other", "there is no dataset 'other'; choose among sensors"),
        ("/mark/other?kind=row&subject=x", "there is no dataset 'other'; choose among sensors"),
        ("/explore/sensors/column/other", "there is no page of a column 'other'; the page Explore lists the columns"),
        ("/explore/sensors/row?id=x", "there is no row 'x' on day ''; name both, as the links of a report do"),
        ("/versions/sensors", "there is nothing at this address; follow a link from the page of all datasets"),
        ("/reports/other.html", "there is nothing at this address; follow a link from the page of all datasets"),
    ):
        answer = client.get(missing, headers={"Accept": "application/json"})
        assert (answer.status_code, answer.json()) == (404, {"message": message})
        page = client.get(missing)
        assert page.status_code == 404
        assert message in html.unescape(page.text)
        assert '<a href="/">All datasets</a>' in page.text


def test_features_may_have_the_names_of_the_latent_table(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["day", "score", "label", LABEL, "z_000", "it's [a] \\"]
    for path in dataset.paths.features("_").parent.glob("*.parquet"):
        rows = pl.read_parquet(path).with_columns(pl.lit(index).alias(name) for index, name in enumerate(names))
        write_parquet(path, rows.with_columns(pl.col(LABEL) > 0).to_arrow(), {"input_hash": "named"})
    monkeypatch.setattr("ae_pipeline.reports.explore_latents._EXPLORED_ROWS", 40)
    client = client_of(dataset)
    page = client.get("/explore/sensors/latents")
    assert page.status_code == 200
    content = json.loads(page.text.split('id="content">')[1].split("</script>")[0])
    titles = dict(zip(content["names"], zip(*content["rows"], strict=True), strict=True))
    assert len(titles) == len(content["names"])
    assert (set(titles["label (feature)"]), set(titles["label"])) == ({2}, {"true"})
    assert (set(titles["day (feature)"]), set(titles["score (feature)"]), set(titles[names[-1]])) == ({0}, {1}, {5})
    assert set(titles["day"]) == {day["day"] for day in summary_of(dataset)["days"]}
    assert content["fields"] == {"row_id": "f0", "day": "f1", "score": "f2", "is_anomaly": "f3"}
    assert content["has_row_pages"]
    assert sum(titles["is_anomaly"]) >= 7  # flagged rows first
    usual = [row for row, flag in zip(titles["day"], titles["is_anomaly"], strict=True) if not flag]
    assert max(map(usual.count, set(usual))) - min(map(usual.count, set(usual))) <= 2  # evenly spaced
    assert 20 <= len(content["rows"]) <= 40


def chart_of(page: str, name: str) -> dict[str, Any]:
    text = page.split(f'id="chart-{name}-spec">')[1].split("</script>", maxsplit=1)[0]
    chart: dict[str, Any] = json.loads(text)
    return chart


def test_a_row_shows_all_columns_actual_and_reconstructed(prepared: Dataset, fitted: Fitted) -> None:
    day = summary_of(prepared)["verdict"]["day"]
    strange = read_ranked(prepared.paths).row(0, named=True)
    page = row_page(strange["row_id"], day, prepared, fitted.bundle) or ""
    (features,) = pl.read_parquet(prepared.paths.features(day)).filter(pl.col("row_id") == strange["row_id"]).to_dicts()
    text = Text(page).text
    for column in fitted.bundle.columns:
        assert column in text
    assert cast("Any", fitted.bundle.encoder).speak("load", features["load"]) in text
    assert f"{strange['score']:.2f}" in text
    assert f'href="/mark/sensors?kind=row&amp;subject={quote(strange["row_id"], safe="/")}&amp;back=' in page
    assert row_page("nothing", day, prepared, fitted.bundle) is None
    assert row_page(strange["row_id"], "2020-01-01", prepared, fitted.bundle) is None


def test_all_pages_name_columns_by_their_titles_and_units(dataset: Dataset, fitted: Fitted) -> None:
    codes = ColumnDisplay(codes={mode: f"mode {mode}" for mode in fitted.features(fitted.days[0])["mode"].unique()})
    display = {"load": ColumnDisplay(title="motor load", unit="kW"), "power": ColumnDisplay(unit="W"), "mode": codes}
    dataset = replace(dataset, config=dataset.config.model_copy(update={"display": display}))
    day, client = summary_of(dataset)["verdict"]["day"], client_of(dataset)
    strange = read_ranked(dataset.paths).filter(pl.col("because").str.starts_with("load is")).row(0, named=True)
    (first, *_), row_id = strange["contributions"], strange["row_id"]
    spoken = f"motor load is {first['actual']} kW, expected {first['expected']} kW"
    page = Text(day_page(day, dataset, fitted.bundle, 3).read_text()).text
    assert spoken in page  # the reason
    rarity = f"{strange['p_value']:.2g} {one_in(strange['p_value'])}"
    assert rarity in page
    assert f"motor load {first['column']}{first['actual']} kW{first['expected']} kW" in page  # the parts of the score
    assert re.search(r"Values: .*motor load -?[\d.]+ kW, .*power -?[\d.]+ W", page)
    assert re.search(r"\n\d+motor load", page)  # the causes
    overview = client.get("/explore/sensors").text
    assert '<a href="/explore/sensors/column/load">motor load (kW)</a> <code class="small">load</code>' in overview
    column = client.get("/explore/sensors/column/load").text
    assert "<h1>motor load (kW) of sensors</h1>" in column
    assert chart_of(column, "median")["layer"][0]["encoding"]["y"]["title"] == "motor load (kW)"
    latents = client.get("/explore/sensors/latents").text
    assert ">motor load (kW)</option>" in latents
    content = json.loads(latents.split('id="content">')[1].split("</script>")[0])
    assert "load" in content["names"]  # of the file to download
    of_row = Text(row_page(row_id, day, dataset, fitted.bundle) or "").text
    assert f"motor load load{first['actual']} kW" in of_row
    assert rarity in of_row
    assert re.search(r"\nmodemode \w+", of_row)
    mark = Text(client.get(f"/mark/sensors?{urlencode({'kind': 'row', 'subject': row_id})}").text).text
    assert spoken in mark
    assert "motor load (" in client.get("/contract/sensors").text


def test_a_row_whose_features_were_built_again_says_so(dataset: Dataset, fitted: Fitted) -> None:
    row = read_ranked(dataset.paths).row(0, named=True)
    day = summary_of(dataset)["verdict"]["day"]
    path = dataset.paths.features(day)
    rows = pl.read_parquet(path)
    write_parquet(path, rows.drop("load").to_arrow(), {"input_hash": "without a column"})
    with pytest.raises(BundleError, match="no longer have load; they were built again"):
        row_page(row["row_id"], day, dataset, fitted.bundle)
    write_parquet(path, rows.filter(pl.col("row_id") != row["row_id"]).to_arrow(), {"input_hash": "without a row"})
    with pytest.raises(StorageError, match=f"no longer have row '{row['row_id']}'; they were built again"):
        row_page(row["row_id"], day, dataset, fitted.bundle)


class Registry(Tracker):
    """A model store with versions of a test, whose runs have their names as last days."""

    def __init__(self, versions: Sequence[TrackedVersion]) -> None:
        super().__init__(Path("nowhere"))
        self.listed, self.asked = versions, 0

    def versions(self, dataset: str) -> list[TrackedVersion]:
        return list(self.listed)

    def facts_of_runs(self, dataset: str) -> dict[str, tuple[dict[str, str], dict[str, float]]]:
        self.asked += 1
        return {each.run_id: ({LAST_DAY_TAG: each.run_id}, {}) for each in self.versions(dataset)}


def test_versions_are_shown_without_asking_for_each_run(prepared: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    day, earlier = summary_of(prepared)["verdict"]["day"], summary_of(prepared)["days"][0]["day"]
    passed = {GATE_TAG: PASSED}
    versions = [TrackedVersion("sensors", number, earlier, passed) for number in range(1, 31)]
    versions += [
        TrackedVersion("sensors", 31, "run", {**passed, LAST_DAY_TAG: day}),
        TrackedVersion("sensors", 32, "run", {GATE_TAG: "rejected", LAST_DAY_TAG: day}),
    ]
    registry = Registry(versions[::-1])
    marks = version_marks(prepared, registry)
    assert [(mark.version, mark.day) for mark in marks] == [*((number, earlier) for number in range(1, 31)), (31, day)]
    assert registry.asked == 1
    assert '"version":"v31"' in client_of(prepared, registry).get("/explore/sensors").text
    monkeypatch.setattr(Tracker, "version", lambda *_: None)
    monkeypatch.setattr(Tracker, "experiment", lambda *_: "1")
    assert f"{earlier}</td>" in client_of(prepared, registry).get("/versions/sensors").text
    assert registry.asked == 3


def test_the_page_of_any_day_is_drawn_when_it_is_asked_for(
    dataset: Dataset, fitted: Fitted, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third, *_ = (day["day"] for day in summary_of(dataset)["days"])
    report = (dataset.paths.reports / "report.html").read_text()
    assert f'<a data-href="days/{first}.html">{first[8:]}</a>' in report
    version = TrackedVersion("sensors", 3, "run", {})
    monkeypatch.setattr("ae_pipeline.lifecycle.publish.load_table_model", lambda *_: (version, fitted.bundle))
    client, folder = client_of(dataset, Registry([version])), dataset.paths.reports / "days"
    drawn = client.get(f"/reports/sensors/days/{second}.html")
    assert drawn.status_code == 200
    assert drawn.headers["content-security-policy"].startswith("sandbox allow-scripts")
    assert f"sensors on {second}" in drawn.text
    verdicts = {entry["day"]: entry["state"] for entry in summary_of(dataset)["days"]}
    pill = f'<span class="small state {verdicts[first].replace(" ", "-")}">{verdicts[first]}</span>'
    assert f'<p class="served" hidden><a class="d" href="{first}.html">← {first}</a> {pill}' in drawn.text
    assert f'<a class="d" href="{third}.html">{third} →</a>' in drawn.text
    assert list(folder.glob("*.html")) == []  # later runs would have to renew it
    stored = day_page(second, dataset, fitted.bundle, 3).read_text()
    assert client.get(f"/reports/sensors/days/{second}.html").text == stored == drawn.text
    assert f'<a href="days/{second}.html">{second[8:]}</a>' in (dataset.paths.reports / "report.html").read_text()
    none = client.get("/reports/sensors/days/1999-01-01.html")
    assert none.status_code == 404
    assert "&#x27;1999-01-01&#x27; has no report" in none.text
    for missing in (f"/reports/other/days/{second}.html", "/reports/sensors/days/x.html", f"/reports/x/{second}.html"):
        assert client.get(missing).status_code == 404
    assert client_of(dataset).get(f"/reports/sensors/days/{first}.html").status_code == 404  # no model store


def test_pages_that_wait_for_a_slow_one_leave_the_others_their_threads(
    prepared: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, end = threading.Event(), threading.Event()

    def slow(*_: object) -> str:
        begun.set()
        assert end.wait(60)
        return "slow"

    monkeypatch.setattr("ae_pipeline.lifecycle.version_pages.compare_page", slow)
    with client_of(prepared, Registry([])) as client, ThreadPoolExecutor(50) as pool:
        waiting = [pool.submit(client.get, "/versions/sensors/compare?new=1") for _ in range(45)]
        try:
            assert begun.wait(60)
            assert client.get("/explore/sensors").status_code == 200
            assert client.get("/").status_code == 200
            assert not any(each.done() for each in waiting)
        finally:
            end.set()
        assert {each.result().text for each in waiting} == {"slow"}


@pytest.mark.parametrize(
    ("query", "status", "message"),
    [
        ("new=9", 404, "has no version 9; choose among 1, 2"),
        ("new=1&old=0", 404, "has no version 0; choose among 1, 2"),
        ("new=" + "9" * 5000, 422, "name two versions, such as ?new=3&amp;old=2"),
        ("new=1&old=²", 422, "name two versions"),
        ("old=1", 422, "name two versions"),
    ],
)
def test_versions_that_do_not_exist_are_named_on_a_page(
    prepared: Dataset, monkeypatch: pytest.MonkeyPatch, query: str, status: int, message: str
) -> None:
    registry = Registry([TrackedVersion("sensors", number, "run", {}) for number in (1, 2)])
    monkeypatch.setattr(Tracker, "version", lambda self, *_: self.versions("sensors")[0])
    client = client_of(prepared, registry)
    answer = client.get(f"/versions/sensors/compare?{query}")
    assert answer.status_code == status
    assert message in answer.text
    assert answer.headers["content-type"].startswith("text/html")
    asked = client.get(f"/versions/sensors/compare?{query}", headers={"Accept": "application/json"})
    assert asked.json()["message"] in Text(answer.text).text


def test_scores_are_drawn_while_mlflow_does_not_answer(prepared: Dataset) -> None:
    class Client:
        def search_model_versions(self, _: str) -> None:
            raise MlflowException("<b>connection refused</b>")

    tracker = Tracker(Path("nowhere"), "http://127.0.0.1:9")
    tracker.__dict__["client"] = Client()
    client = client_of(prepared, tracker)
    page = client.get("/explore/sensors")
    assert page.status_code == 200
    note = "http://127.0.0.1:9, does not answer (&lt;b&gt;connection refused&lt;/b&gt;)"
    assert f"Versions are not marked: the model store, {note}" in page.text
    assert chart_of(page.text, "score_days")
    versions = client.get("/versions/sensors/compare?new=1&old=2")
    assert versions.status_code == 503
    assert note in versions.text


def test_flags_and_drift_of_earlier_versions_stay_known(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = summary_of(dataset)
    assert summary["model_version"] == 3
    with_rows = sum(day["rows"] > 0 for day in summary["days"])
    earlier = PublishedFacts(days=8, rows=4_000, flagged=36, days_after=5, days_with_drift=2)
    tags = {2: {PUBLISHED_TAG: earlier.model_dump_json()}, 4: {PUBLISHED_TAG: "{damaged"}}
    runs = {number: summary["mlflow_run"] if number == 3 else f"run {number}" for number in range(1, 6)}
    registry = Registry([TrackedVersion("sensors", number, run, {GATE_TAG: PASSED}) for number, run in runs.items()])
    facts: dict[str, Any] = {run: (tags.get(number, {}), {}) for number, run in runs.items()}
    monkeypatch.setattr(Registry, "facts_of_runs", lambda *_: facts)
    monkeypatch.setattr(Tracker, "version", lambda *_: registry.listed[2])
    monkeypatch.setattr(Tracker, "experiment", lambda *_: "1")
    of_history = [(number, runs[number]) for number in (1, 4)] + [(5, "another model store")]
    for (number, run), change in zip(of_history, (Change.PROMOTED, Change.ROLLED_BACK, Change.PROMOTED), strict=True):
        entry = HistoryEntry(
            at="2024-03-01T12:00:00", change=change, version=number, previous=None, who="us", why="so", runs={RUN: run}
        )
        record(dataset.paths, entry)
    page = client_of(dataset, registry).get("/versions/sensors").text
    rows = [
        re.sub("<[^>]+>", " ", row).split() for row in page.split("<tbody>")[1].split("</tbody>")[0].split("<tr>")[1:]
    ]
    shown = {int(row[0]): " ".join(row) for row in rows}
    assert "4.5 a day 0.90% of 4,000 2 of 5 after its window no marks" in shown[2]
    share = f"{summary['flagged'] / summary['rows']:.2%} of {summary['rows']:,}"
    assert f"{summary['flagged'] / with_rows:,.1f} a day {share}" in shown[3]
    assert "not recorded" in shown[1]
    assert "not recorded" in shown[4]
    assert "has not served" in shown[5]
