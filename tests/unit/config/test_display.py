"""Titles, units and codes of columns."""

from pathlib import Path

import polars as pl
import pytest

from ae_pipeline.common.text import plural
from ae_pipeline.config.columns import ColumnDisplay, ColumnType
from ae_pipeline.config.display import PLAIN, ColumnNames, combination, count_rejected, noun_of_rows
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.explanation import CONTRIBUTIONS, Contribution, because
from ae_pipeline.ingestion.contract import ColumnRule, SchemaContract, save_contract
from ae_pipeline.ingestion.entries import no_valid_row
from ae_pipeline.ingestion.names import column_names
from ae_pipeline.lifecycle.ingest import rows_on_days
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.paths import DatasetPaths

NAMES = ColumnNames(
    {
        "carrier": ColumnDisplay(title="airline", codes={"AA": "American Airlines", "AA or B": "Both"}),
        "mode": ColumnDisplay.model_validate({"codes": {1: "idle", 2: "run", 3: "run"}}),
        "late": ColumnDisplay.model_validate({"codes": {True: "yes", False: "no"}}),
        "air_time": ColumnDisplay(unit="minutes"),
        "state": ColumnDisplay(codes={"NY": "MA", "MA": "Massachusetts", "VT": "VT"}),
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
        ("state", "NY", "MA (NY)"),  # MA is a code, too
        ("state", "MA", "Massachusetts"),
        ("state", "VT", "VT"),
        ("air_time", "1,234", "1,234 minutes"),
        ("air_time", "missing (else 50)", "missing (else 50 minutes)"),
        ("air_time", "17:45", "17:45"),
    ],
)
def test_values_are_shown_under_their_names(column: str, text: str, shown: str) -> None:
    assert NAMES.value(column, text) == shown
    assert PLAIN.value(column, text) == text


@pytest.mark.parametrize(("images", "nouns"), [(None, "rows"), ({}, "images"), ({"patch": 8}, "patches")])
def test_rows_are_called_what_they_are(images: dict[str, int] | None, nouns: str, tmp_path: Path) -> None:
    identity = ("file", "top", "left") if images else ("file",)
    model = {"architecture": "dense" if images is None else "conv", "latent_dim": 4}
    config = PipelineConfig.model_validate({"dataset": "parts", "identity": identity, "images": images, "model": model})
    assert plural(noun_of_rows(config)) == nouns
    assert column_names(Dataset(config, DatasetPaths(tmp_path, "parts"))).rows == nouns
    assert rows_on_days(1, 1, config) == f"1 {noun_of_rows(config)}"
    assert rows_on_days(1200, 1, config) == f"1,200 {nouns}"
    # An image that cannot be cut into patches is in quarantine as a whole.
    one, many = (
        ("1 patch or image", "20 patches or images") if nouns == "patches" else (f"1 {nouns[:-1]}", f"20 {nouns}")
    )
    assert (count_rejected(1, config), count_rejected(20, config)) == (one, many)
    refused = no_valid_row(20, "image: shape", config)
    assert refused == f"none of its 20 {nouns} satisfies the schema contract; the first one: image: shape"


def test_columns_of_the_pipeline_have_titles() -> None:
    assert (NAMES.title("event_time"), NAMES.title("row_id"), NAMES.title("carrier")) == (
        "event time",
        "row",
        "airline",
    )
    own = ColumnNames({"event_time": ColumnDisplay(title="departure")})
    assert own.title("event_time") == "departure"


def test_a_combination_is_named_by_its_columns_not_by_its_text() -> None:
    names = ColumnNames(
        {
            "port": ColumnDisplay(title="gate", codes={"A × mode 1": "the first one", "code 7": "wrong"}),
            "mode": ColumnDisplay(title="way", codes={"1": "fast"}),
        }
    )
    pairs = (("port", "A × mode 1"), ("port code", "7"), ("mode", "1"))  # the texts of columns and values overlap
    text = f"{combination(pairs)}: never together in 12 counted rows"
    shown = names.value("categories", text, pairs)
    assert shown == "gate the first one × port code 7 × way fast: never together in 12 counted rows"
    assert PLAIN.value("categories", text, pairs) == text
    assert names.value("categories", text) == text  # of a report of an earlier release
    part = Contribution("categories", 9.0, text, "about 4", pairs)
    assert because([part], names) == f"categories is {shown}, expected about 4"
    parts = [Contribution("a", 5.0, "1", "2"), part]
    stored = pl.Series([[each.record()] for each in parts], dtype=CONTRIBUTIONS)
    assert [Contribution.from_record(*each) for each in stored.to_list()] == parts


@pytest.mark.parametrize(
    ("display", "column", "title"),
    [
        ({"origin": "dest"}, "origin", "dest (origin)"),  # a column that only the schema contract knows
        ({"origin": "dest"}, "dest", "dest"),
        ({"origin": "port", "hub": "port"}, "origin", "port (origin)"),
        ({"origin": "des"}, "origin", "des"),  # the start of a name is none
        ({"load": "latent"}, "load", "latent (load)"),  # a part of a score
        ({"load": "event time"}, "load", "event time (load)"),
        ({"event_time": "event time"}, "event_time", "event time"),
        ({"origin": "origin"}, "origin", "origin"),
    ],
)
def test_a_title_that_names_something_else_does_not_stand_alone(
    display: dict[str, str], column: str, title: str
) -> None:
    titles = {name: ColumnDisplay(title=text) for name, text in display.items()}
    assert ColumnNames(titles, {"origin", "dest", "load"}).title(column) == title


def test_the_schema_contract_says_which_titles_are_names(tmp_path: Path) -> None:
    config = PipelineConfig.model_validate(
        {"dataset": "a", "identity": ["id"], "display": {"x": {"title": "y"}}, "derive": {"z": "x + y"}}
    )
    dataset = Dataset(config, DatasetPaths(tmp_path, "a"))
    assert column_names(dataset).title("x") == "y"
    columns = {name: ColumnRule(type=ColumnType.NUMBER) for name in ("id", "x", "y")}
    save_contract(SchemaContract(dataset="a", columns=columns), dataset.paths.contract, "a test")
    assert column_names(dataset).title("x") == "y (x)"
    assert set(column_names(dataset).columns) == {"id", "x", "y", "z"}
    dataset.paths.contract.write_text("columns: [")
    assert column_names(dataset).title("x") == "y"
