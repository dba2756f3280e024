"""`ae-pipeline withdraw` on a small project: rows leave all tables, stay away, and come back."""

import json

import polars as pl
import pytest

from ae_pipeline import read_latents
from ae_pipeline.cli.main import main
from ae_pipeline.cli.project import Project
from ae_pipeline.orchestration.sensors import landing_requests, rebuild_requests
from tests.support.shop import DAYS, ROWS, Shop


@pytest.fixture
def shop(serving_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """A project whose days, except the last, are published; the command line loads it."""
    project = Project(
        serving_shop.defs, serving_shop.workspace, {"orders": serving_shop.dataset}, serving_shop.instance
    )
    monkeypatch.setattr(Project, "load", lambda: project)
    return serving_shop


def published_rows(shop: Shop) -> int:
    """Return the number of rows of the newest published day in the latent table."""
    rows = pl.DataFrame(read_latents("orders", data=shop.paths.root).arrow)
    return rows.filter(pl.col("date").cast(pl.String) == DAYS[-2]).height


def test_a_day_is_withdrawn_and_brought_back(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    day = DAYS[-2]
    assert published_rows(shop) == ROWS
    assert main(["withdraw", "orders", day]) == 1
    assert "a withdrawal needs a reason" in capsys.readouterr().err
    assert main(["withdraw", "orders", day, "--why", "test data", "--yes"]) == 0
    assert f"`ae-pipeline withdraw orders {day} --undo` takes it back" in capsys.readouterr().out
    assert [pl.read_parquet(path(day)).height for path in (shop.paths.raw, shop.paths.features)] == [0, 0]
    assert published_rows(shop) == 0
    summary = json.loads((shop.paths.reports / "summary.json").read_text())
    assert (summary["verdict"]["day"], summary["rows"]) == (DAYS[-3], (len(DAYS) - 2) * ROWS)
    assert shop.requested(landing_requests) == "every landed file is read, and every day has its features"
    assert shop.requested(rebuild_requests) == "every day is published and reported on under version 1"
    assert main(["withdraw", "orders"]) == 0
    assert f"{day}  {ROWS} rows, withdrawn " in capsys.readouterr().out
    assert main(["withdraw", "orders", day, "--undo", "--yes"]) == 0
    assert published_rows(shop) == ROWS
    assert shop.requested(rebuild_requests) == "every day is published and reported on under version 1"
