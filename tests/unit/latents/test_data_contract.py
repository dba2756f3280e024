"""The data contract beside the table: of the standard, true of the rows, with a version that readers can go by."""

import dataclasses
import datetime as dt
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import jsonschema
import polars as pl
import pyarrow as pa
import pytest
import yaml
from deltalake import DeltaTable
from open_data_contract_standard.model import OpenDataContractStandard

from ae_pipeline.common.errors import PublicationError
from ae_pipeline.config.service import LatentsConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.detector.facts import AlignmentFacts
from ae_pipeline.latent_space.names import latent_space_name
from ae_pipeline.latents import publish as publication
from ae_pipeline.latents.data_contract import CONTRACT, PAGE, broken_rules, described, read_contract
from ae_pipeline.latents.files import TableFiles
from ae_pipeline.latents.layout import score_day
from ae_pipeline.latents.publish import publish
from ae_pipeline.storage.dataset import Dataset
from tests.support.sensors import Fitted


def published(dataset: Fitted, bundle: ModelBundle | None = None, version: int = 1, **settings: Any) -> str:
    config = dataset.config.model_copy(update=settings)
    result = publish(dataset.days[-3:], Dataset(config, dataset.paths), bundle or dataset.bundle, version, {})
    assert result.contract is not None
    return result.contract


def contract_of(dataset: Fitted) -> OpenDataContractStandard:
    found = read_contract(TableFiles(dataset.paths.latents))
    assert found is not None
    return found


def rows_of(dataset: Fitted) -> pl.DataFrame:
    return pl.read_delta(dataset.paths.latents)


def told(dataset: Fitted, name: str) -> Any:
    return {entry.property: entry.value for entry in contract_of(dataset).customProperties or []}.get(name)


def going_on(bundle: ModelBundle, axes: str) -> ModelBundle:
    """The same model, said to be aligned to some axes."""
    alignment = AlignmentFacts(
        previous=1,
        axes_of=1,
        axes=axes,
        is_aligned=True,
        is_compatible=True,
        explained_variance=1.0,
        affine=1.0,
        condition=1.0,
        neighbors=1.0,
        score_shift=0.0,
    )
    return dataclasses.replace(bundle, facts=bundle.facts.model_copy(update={"alignment": alignment}))


class TestContent:
    def test_it_is_of_the_standard(self, dataset):
        published(dataset, owners=("team:ops", "ada@example.org"), description="Readings of sensors.")
        written = yaml.safe_load((Path(dataset.paths.latents) / CONTRACT).read_text())
        jsonschema.validate(written, json.loads(OpenDataContractStandard.json_schema()))
        assert written["team"] == {"name": "ops", "members": [{"username": "ada@example.org", "role": "owner"}]}
        assert written["description"]["purpose"] == "Readings of sensors."
        assert (written["status"], written["version"]) == ("active", "1.0.0")
        slas = {sla["property"]: (sla["value"], sla.get("unit")) for sla in written["slaProperties"]}
        assert slas == {"latency": (48, "h"), "retention": (90, "d")}

    def test_it_names_every_column_with_its_type_and_no_other(self, dataset):
        published(dataset)
        (table,) = contract_of(dataset).schema_ or []
        fields = {field.name: field.type.type for field in DeltaTable(dataset.paths.latents).schema().fields}
        assert {column.name: column.physicalType for column in table.properties or []} == fields
        assert all(column.description for column in table.properties or [])

    def test_another_engine_finds_its_rules_kept_too(self, dataset):
        published(dataset)
        (table,) = contract_of(dataset).schema_ or []
        rows = rows_of(dataset).to_arrow()
        for rule in table.quality or []:
            query = str(rule.query).replace("${object}", "rows")
            assert duckdb.sql(query).fetchall() == [(rule.mustBe,)], rule.name
        assert rows.num_rows == 180

    def test_screens_tell_what_a_column_is_and_its_unit(self, dataset):
        published(dataset)
        message = described(contract_of(dataset))
        assert message["score"] == "Surprise of the row: the higher, the stranger. In nats."
        assert all(message.values())

    def test_a_page_tells_a_person_the_same(self, dataset):
        published(dataset, description="Readings of sensors.")
        page = (Path(dataset.paths.latents) / PAGE).read_text()
        for message in ("Readings of sensors.", "contract 1.0.0", "| z_002 | float | units of its axis | yes |"):
            assert message in page
        assert "None: this is the first." in page


class TestRules:
    @pytest.mark.parametrize(
        ("column", "value", "message"),
        [
            ("row_id", None, "column 'row_id' is required and missing in 1 rows"),
            ("row_id", "twice", "identity_stands_once_a_day counts 1 and not 0"),
            ("p_value", 1.5, "column 'p_value' lies outside .* in 1 rows"),
            ("p_value", -0.1, "column 'p_value' lies outside .* in 1 rows"),
            ("z_001", float("nan"), "values_are_finite counts 1 and not 0"),
            ("score", float("-inf"), "values_are_finite counts 1 and not 0"),
            ("is_anomaly", None, "column 'is_anomaly' is required and missing in 1 rows"),
            ("latent_space", "v2_other", "one_space counts 2 and not 1"),
            ("event_time", None, "column 'event_time' is required and missing in 1 rows"),
        ],
    )
    def test_a_row_that_breaks_one_is_told(self, dataset, column, value, message):
        published(dataset)
        rows, contract = rows_of(dataset), contract_of(dataset)
        assert broken_rules(contract, rows) == []
        index = 1 if value == "twice" else 0
        given = rows[column][0] if value == "twice" else value
        spoilt = rows.with_row_index("place").with_columns(
            pl.when(pl.col("place") == index).then(pl.lit(given)).otherwise(pl.col(column)).alias(column)
        )
        assert any(re.search(message, found) for found in broken_rules(contract, spoilt))

    def test_a_flag_beyond_the_budget_is_told(self, dataset):
        published(dataset)
        wrong = rows_of(dataset).with_columns(~pl.col("is_anomaly"))
        (found,) = broken_rules(contract_of(dataset), wrong)
        assert found.startswith("flags_keep_the_budget counts 180 and not 0")

    def test_rows_that_break_it_are_not_published(self, dataset, monkeypatch):
        published(dataset)
        previous = rows_of(dataset)

        def doubled(bundle: ModelBundle, version: int, features: Path) -> Iterator[pa.Table]:
            for rows in score_day(bundle, version, features):
                names = rows["row_id"].to_pylist()
                yield rows.set_column(0, rows.schema.field(0), pa.array([names[0], *names[:-1]]))

        monkeypatch.setattr(publication, "score_day", doubled)
        with pytest.raises(PublicationError, match=r"contract of the table: identity_stands_once_a_day"):
            publish(dataset.days[-4:], Dataset(dataset.bundle.config, dataset.paths), dataset.bundle, 1, {})
        assert rows_of(dataset).equals(previous)


class TestVersions:
    def test_new_days_and_repeated_publications_leave_it_as_it_is(self, dataset):
        published(dataset)
        text = (Path(dataset.paths.latents) / CONTRACT).read_text()
        assert (
            publish(dataset.days[-5:], Dataset(dataset.bundle.config, dataset.paths), dataset.bundle, 1, {}).contract
            == "1.0.0"
        )
        assert (Path(dataset.paths.latents) / CONTRACT).read_text() == text

    def test_a_model_with_the_same_axes_raises_the_second_number(self, dataset, other_bundle):
        published(dataset)
        axes = latent_space_name(1, dataset.bundle.fingerprint)
        after = going_on(other_bundle, axes)
        assert published(dataset, after, 2) == "1.1.0"
        (earlier,) = told(dataset, "earlierSpaces")
        assert (earlier["latentSpace"], earlier["latentAxes"], earlier["contractVersion"]) == (axes, axes, "1.0.0")
        assert told(dataset, "latentAxes") == axes

    def test_other_axes_raise_the_first_number_and_deprecate_the_old_contract(self, dataset, other_bundle):
        published(dataset)
        assert published(dataset, other_bundle, 2) == "2.0.0"
        files = TableFiles(dataset.paths.latents)
        old = OpenDataContractStandard.from_string(str(files.read_text("_contract/versions/1.0.0.yaml")))
        until = f"{dt.datetime.now(dt.UTC) + dt.timedelta(days=90):%Y-%m-%d}"
        assert old.status == "deprecated"
        assert [sla.value for sla in old.slaProperties or [] if sla.property == "endOfLife"] == [until]
        jsonschema.validate(yaml.safe_load(old.to_yaml()), json.loads(OpenDataContractStandard.json_schema()))
        (earlier,) = told(dataset, "earlierSpaces")
        assert earlier["readableUntil"] == until
        # Where the contract says that the old rows are, they are.
        frozen = pl.read_delta(dataset.paths.latents, version=earlier["tableVersion"])
        assert set(frozen["latent_space"]) == {earlier["latentSpace"]}
        assert f"| {earlier['latentSpace']} |" in str(files.read_text(PAGE))

    def test_another_retention_moves_the_days_that_were_told(self, dataset, other_bundle):
        published(dataset)
        published(dataset, other_bundle, 2)
        assert published(dataset, other_bundle, 2, latents=LatentsConfig(retention_days=7)) == "2.0.1"
        until = f"{dt.datetime.now(dt.UTC) + dt.timedelta(days=7):%Y-%m-%d}"
        (earlier,) = told(dataset, "earlierSpaces")
        text = str(TableFiles(dataset.paths.latents).read_text("_contract/versions/1.0.0.yaml"))
        old = OpenDataContractStandard.from_string(text)
        ends = [sla.value for sla in old.slaProperties or [] if sla.property == "endOfLife"]
        assert (earlier["readableUntil"], ends) == (until, [until])

    def test_other_columns_raise_the_first_number(self, dataset, wider_bundle):
        published(dataset)
        after = going_on(wider_bundle, latent_space_name(1, dataset.bundle.fingerprint))
        assert published(dataset, after, 2) == "2.0.0"

    def test_a_rollback_is_told_and_the_space_is_no_longer_an_earlier_one(self, dataset, other_bundle):
        published(dataset)
        published(dataset, other_bundle, 2)
        assert published(dataset) == "3.0.0"
        (earlier,) = told(dataset, "earlierSpaces")
        assert earlier["latentSpace"] == latent_space_name(2, other_bundle.fingerprint)

    def test_other_words_raise_the_third_number(self, dataset):
        published(dataset)
        assert published(dataset, owners=("team:night",)) == "1.0.1"
        assert published(dataset, owners=("team:night",), latents=LatentsConfig(retention_days=30)) == "1.0.2"

    def test_a_space_whose_rows_are_gone_is_no_longer_told(self, dataset, other_bundle):
        published(dataset)
        published(dataset, other_bundle, 2)
        path = Path(dataset.paths.latents) / CONTRACT
        until = told(dataset, "earlierSpaces")[0]["readableUntil"]
        today = told(dataset, "earlierSpaces")[0]["retiredOn"]
        path.write_text(path.read_text().replace(until, "2020-03-31").replace(today, "2020-01-01"))
        assert published(dataset, other_bundle, 2) == "2.0.1"
        assert told(dataset, "earlierSpaces") is None

    def test_a_run_that_ended_before_it_was_written_is_made_good_by_the_next(self, dataset, other_bundle, monkeypatch):
        published(dataset)

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(publication, "renew", killed)
        with pytest.raises(KeyboardInterrupt):
            published(dataset, other_bundle, 2)
        monkeypatch.undo()
        assert contract_of(dataset).version == "1.0.0"
        assert published(dataset, other_bundle, 2) == "2.0.0"
        assert told(dataset, "earlierSpaces")[0]["tableVersion"] == 1
