"""A published dataset keeps its rows until somebody accepts an edit that removes many of them."""

import polars as pl

from ae_pipeline.common.errors import PublicationError, RemovalError
from ae_pipeline.latents.read import read_latents
from ae_pipeline.orchestration.failures import caused_by
from ae_pipeline.orchestration.sensors import landing_requests, rebuild_requests
from ae_pipeline.orchestration.tags import ACCEPT_TAG
from tests.support.shop import DAYS, ROWS, Shop


def rows(shop: Shop) -> pl.DataFrame:
    """Return the rows of the table."""
    return read_latents("orders", data=shop.root / "data").polars()


def test_an_edited_rule_empties_the_table_only_if_it_is_accepted(serving_shop: Shop) -> None:
    shop, before = serving_shop, rows(serving_shop)
    text = shop.paths.contract.read_text()
    shop.paths.contract.write_text(text.replace("items: {type: integer", "items: {type: integer, maximum: 3"))
    assert shop.paths.contract.read_text() != text
    failed = shop.run("intake")
    count = len(DAYS[:-1]) * ROWS
    message = shop.failure_message(failed)
    assert f"of {count} rows" in message
    assert "rule 'items: maximum'" in message
    assert "`ae-pipeline run orders --accept-removal`" in message
    assert caused_by(RemovalError, failed.all_events)
    assert not caused_by(PublicationError, failed.all_events)
    assert shop.requested(rebuild_requests) == "every day is published and reported on under version 1"
    assert [each.split()[0] for each in shop.requested(landing_requests)] == ["orders_intake"]
    assert rows(shop).equals(before)

    job = shop.defs.resolve_job_def("orders_intake")
    assert shop._execute(job, {ACCEPT_TAG: "yes"}).success
    done = shop.run_requests(landing_requests) + shop.run_requests(rebuild_requests)
    assert [each.split()[0] for each in done] == ["orders_ingest", "orders_publish"]
    kept = rows(shop)
    assert 0 < kept.height < count / 2
    assert set(kept["row_id"]) < set(before["row_id"])
