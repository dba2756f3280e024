"""What users come for, from the home page to the end, on the served pages."""

import datetime as dt
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import ae_pipeline
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.latents.publish import publish
from ae_pipeline.lifecycle.feedback import reviewed_rows
from ae_pipeline.lifecycle.promote import PASSED, RollbackRequest, roll_back
from ae_pipeline.monitoring.feedback import MarkState, marks_of, review
from ae_pipeline.registry.names import GATE_TAG
from ae_pipeline.registry.versions import TrackedVersion
from ae_pipeline.reports.build import build_report
from ae_pipeline.reports.review import flagged_rows, read_ranked
from ae_pipeline.storage.parquet import write_parquet
from ae_pipeline.training.fit import fit_bundle
from tests.support.missing import needs_chromium
from tests.support.reports import as_dataset, published, reported
from tests.support.sensors import NO_ENSEMBLE, Fitted, sensor_config, with_config
from tests.support.served import TOKEN, Versions, follow_by_keyboard, serious, served_page

pytest.importorskip("playwright.sync_api", reason="pages in a browser: pip install '.[dev]'")
pytestmark = needs_chromium


def test_an_engineer_compares_two_versions_and_rolls_back(
    fitted: Fitted, other_bundle: ModelBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = fitted.at(tmp_path / "data")
    published(project, project.days[-3:])
    reported(project, project.days[-3:])
    dataset, bundles = as_dataset(project), {2: other_bundle, 3: fitted.bundle}
    store = Versions([TrackedVersion("sensors", number, "run", {GATE_TAG: PASSED}) for number in bundles], serving=3)
    for module in ("comparison", "promote"):
        monkeypatch.setattr(f"ae_pipeline.lifecycle.{module}.load_bundle", lambda _, each, *__: bundles[each.version])
    with served_page(dataset, store) as page:
        page.goto(f"/?token={TOKEN}")
        follow_by_keyboard(page, "Explore")
        page.wait_for_selector("text=Versions")
        follow_by_keyboard(page, "Versions")
        assert page.locator("tr:has(.state)").inner_text().startswith("3")
        follow_by_keyboard(page, "with version 3")
        page.wait_for_selector("h1:has-text('What version 2 would flag that version 3 does not')")
        counts = [int(text) for text in page.locator("tr:has-text('flagged of') td").all_inner_texts()]
        rows = pl.concat([project.features(day) for day in project.days[-7:]])
        assert counts == [int(bundles[number].score(rows).is_anomaly.sum()) for number in (2, 3)]
        assert page.evaluate("document.documentElement.scrollWidth") <= 380
        assert serious(page) == []
        page.click("text=Versions of sensors")
        command = page.inner_text("code:has-text('rollback')")
        assert command == "ae-pipeline rollback sensors VERSION --why REASON"
        request = RollbackRequest(version=2, why="version 3 flags too much", who="Ada", even_if_rejected=False)
        roll_back(dataset, store, request, {})
        page.reload()
        assert page.locator("tr:has(.state)").inner_text().startswith("2")
        newest = page.locator("h2:has-text('History') + div tbody tr").first.inner_text()
        assert "Ada" in newest
        assert "version 3 flags too much" in newest
        assert serious(page) == []
        assert page.problems == []
    table = ae_pipeline.read_latents("sensors", data=project.paths.root).pandas()
    assert set(table["model_version"]) == {2}


def test_an_analyst_opens_the_contract_and_reads_the_table(
    fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = fitted.at(tmp_path / "data")
    published(project, project.days[-3:])
    reported(project, project.days[-3:])
    with served_page(as_dataset(project)) as page:
        page.goto(f"/?token={TOKEN}")
        assert serious(page) == []
        follow_by_keyboard(page, "Data contract")
        page.wait_for_selector("h1:has-text('data contract')")
        columns = page.locator("table").first.locator("tbody tr td:first-child").all_inner_texts()
        sample = page.locator("h2:has-text('Sample') + div tbody tr").first.locator("td").all_inner_texts()
        code = page.inner_text("pre")
        assert page.evaluate("document.documentElement.scrollWidth") <= 380
        assert serious(page) == []
        assert page.problems == []
    monkeypatch.setenv("AE_PIPELINE_DATA", str(project.paths.root))
    *statements, expression = code.splitlines()
    names: dict[str, Any] = {}
    exec("\n".join(statements), names)
    table = eval(expression, names)
    assert list(table.columns) == columns
    assert len(table) == sum(project.features(day).height for day in project.days[-3:])
    assert sample[columns.index("row_id")] in set(table["row_id"])


def with_machine(project: Fitted, day: str) -> None:
    """Let a machine be in hot service once a day, at the same time: rare, but nothing is wrong with it."""
    first, rows = project.days[-5], project.features(day)
    usual = project.features(first).tail(1)
    of_machine = usual.with_columns(
        row_id=pl.lit(f"M 7|{day}"),
        event_time=pl.col("event_time") + (dt.date.fromisoformat(day) - dt.date.fromisoformat(first)),
        mode=pl.lit("service"),
        temperature=95.0,
    )
    write_parquet(project.paths.features(day), pl.concat([rows.head(-1), of_machine]).to_arrow(), {"input_hash": day})


def test_three_false_alarms_of_a_machine_leave_out_its_later_rows(fitted: Fitted, tmp_path: Path) -> None:
    """A training learns the three rows, and the machine can stay flagged. One click leaves it out until it grows."""
    quick = {**fitted.config.training.model_dump(), "epochs": 6}
    config = sensor_config(
        identity=("serial", "measured_at"), training=quick, alerts={"budget": 0.01, "evidence": NO_ENSEMBLE}
    )
    project = replace(fitted.at(tmp_path / "data"), bundle=with_config(fitted.bundle, config))
    dataset, (*days, tomorrow) = as_dataset(project), project.days[-5:]
    for day in days:
        with_machine(project, day)
    published(project, days)
    reported(project, days)
    with served_page(dataset) as page:
        page.goto(f"/?token={TOKEN}")
        page.click("h2 a")
        for day in days[-3:]:
            page.fill("#search", f"M 7|{day}")
            page.click("#rows > tbody:not([hidden]) .open")
            page.click("#rows > tbody:not([hidden]) .mark a")
            assert page.locator("#offer").is_hidden()
            page.check("input[value=false_alarm]")
            page.fill("input[name=who]", "ana")
            page.click("#mark button")
            page.wait_for_selector("#result:has-text('Saved: false alarm, 1 row')")
            if day != days[-1]:
                page.click("text=Back to the report")
        page.wait_for_selector("#offer:has-text('3 rows of M 7')")
        assert page.evaluate("document.documentElement.scrollWidth") <= 380
        assert serious(page) == []
        page.click("#offer button")
        page.wait_for_selector("#result:has-text('Saved: known')")
        assert page.locator("#offer").is_hidden()
        assert page.problems == []

        reviewed = reviewed_rows(project.paths)
        assert reviewed.false_alarms == {day: [f"M 7|{day}"] for day in days[-3:]}
        trained, _ = fit_bundle(dataset, fitted.columns, fitted.window, previous=project.bundle, reviewed=reviewed)
        with_machine(project, tomorrow)
        publish_next(project, trained, [*days, tomorrow])
        rows = flagged_rows(read_ranked(project.paths), config)
        states = review(rows, marks_of(project.paths), project.days).states
        of_machine = [row for row in rows if row.entity == "M 7"]
        assert {states.get(row.row_id) for row in of_machine} <= {MarkState.KNOWN, MarkState.FALSE_ALARM}
        verdict = json.loads((project.paths.reports / "summary.json").read_text())["verdict"]
        assert verdict["hidden"] == sum(row.day == tomorrow for row in of_machine)
        page.goto("/")
        assert verdict["words"] in page.inner_text(".assessment")


def publish_next(project: Fitted, bundle: ModelBundle, days: list[str]) -> None:
    """Publish and report days with the next version of the model."""
    publish(days, as_dataset(project), bundle, 4, {})
    build_report(days, as_dataset(project), bundle, 4, "run")
