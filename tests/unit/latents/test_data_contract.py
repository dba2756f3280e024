"""The data contract of the latent table: standard, content, rules and versions."""

import dataclasses
import datetime as dt
import json
import re
from pathlib import Path
from typing import Any

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
from ae_pipeline.latents import table_update
from ae_pipeline.latents.contract_versions import read_contract
from ae_pipeline.latents.data_contract import CONTRACT, PAGE, described, violations
from ae_pipeline.latents.files import TableFiles
from ae_pipeline.latents.layout import score_batch
from ae_pipeline.latents.log import DIGESTS
from ae_pipeline.latents.publish import publish
from ae_pipeline.storage.dataset import Dataset
from tests.support.latents import query_with_duckdb
from tests.support.sensors import Fitted

STANDARD = OpenDataContractStandard.json_schema()  # type: ignore[no-untyped-call]


def publish_days(dataset: Fitted, bundle: ModelBundle | None = None, version: int = 1, **settings: Any) -> str:
    config = dataset.config.model_copy(update=settings)
    result = publish(dataset.days[-3:], Dataset(config, dataset.paths), bundle or dataset.bundle, version, {})
    assert result.contract is not None
    return result.contract


def contract_of(dataset: Fitted) -> OpenDataContractStandard:
    contract = read_contract(TableFiles(dataset.paths.latents))
    assert contract is not None
    return contract


def rows_of(dataset: Fitted) -> pl.DataFrame:
    return pl.read_delta(dataset.paths.latents)


def custom_property(dataset: Fitted, name: str) -> Any:
    return {entry.property: entry.value for entry in contract_of(dataset).customProperties or []}.get(name)


def with_axes(bundle: ModelBundle, axes: str) -> ModelBundle:
    """Return the same model with the facts of an alignment to some axes."""
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
    def test_it_conforms_to_the_standard(self, dataset: Fitted) -> None:
        publish_days(dataset, owners=("team:ops", "ada@example.org"), description="Readings of sensors.")
        written = yaml.safe_load((Path(dataset.paths.latents) / CONTRACT).read_text())
        jsonschema.validate(written, json.loads(STANDARD))
        assert written["team"] == {"name": "ops", "members": [{"username": "ada@example.org", "role": "owner"}]}
        assert written["description"]["purpose"] == "Readings of sensors."
        assert (written["status"], written["version"]) == ("active", "1.0.0")
        slas = {sla["property"]: (sla["value"], sla.get("unit")) for sla in written["slaProperties"]}
        assert slas == {"latency": (48, "h"), "retention": (90, "d")}

    def test_it_has_every_column_with_its_type_and_no_other(self, dataset: Fitted) -> None:
        publish_days(dataset)
        (table,) = contract_of(dataset).schema_ or []
        fields = {field.name: field.type.type for field in DeltaTable(dataset.paths.latents).schema().fields}
        assert {column.name: column.physicalType for column in table.properties or []} == fields
        assert all(column.description for column in table.properties or [])

    def test_another_engine_can_evaluate_its_rules(self, dataset: Fitted) -> None:
        publish_days(dataset)
        (table,) = contract_of(dataset).schema_ or []
        rows = rows_of(dataset).to_arrow()
        assert rows.num_rows == 180
        assert len(table.quality or []) == 4
        for rule in table.quality or []:
            query = str(rule.query).replace("${object}", "rows")
            assert query_with_duckdb(query, rows=rows).item() == rule.mustBe, rule.name

    def test_it_describes_each_column_with_its_unit(self, dataset: Fitted) -> None:
        publish_days(dataset)
        descriptions = described(contract_of(dataset))
        assert str(descriptions["score"]).startswith("Anomaly score of the row: a higher score is more anomalous.")
        assert str(descriptions["score"]).endswith("Unit: nats.")
        assert descriptions["z_002"] == (
            "Latent 2 of the row: its coordinate on axis 2 of the latent space. Unit: arbitrary."
        )
        assert descriptions["row_id"] == "Identity of the row: the value of serial."
        assert list(descriptions) == rows_of(dataset).columns
        assert all(descriptions.values())

    def test_the_page_has_the_content_of_the_contract(self, dataset: Fitted) -> None:
        publish_days(dataset, description="Readings of sensors.", owners=("team:ops", "ada@example.org"))
        page = (Path(dataset.paths.latents) / PAGE).read_text()
        for text in (
            "Readings of sensors.",
            "data contract 1.0.0",
            "| owner | ops, ada@example.org |",
            "| z_002 | float | arbitrary | yes |",
        ):
            assert text in page
        assert "None. This is the first latent space of the table." in page
        (table,) = contract_of(dataset).schema_ or []
        assert [rule.name for rule in table.quality or [] if str(rule.description) not in page] == []


class TestRules:
    @pytest.mark.parametrize(
        ("column", "value", "message"),
        [
            ("row_id", None, "required column 'row_id' is null in 1 row$"),
            ("row_id", "twice", "identity_stands_once_a_day is 1 instead of 0"),
            ("p_value", 1.5, "column 'p_value' is outside .* in 1 row$"),
            ("p_value", -0.1, "column 'p_value' is outside .* in 1 row$"),
            ("z_001", float("nan"), "values_are_finite is 1 instead of 0"),
            ("score", float("-inf"), "values_are_finite is 1 instead of 0"),
            ("is_anomaly", None, "required column 'is_anomaly' is null in 1 row$"),
            ("latent_space", "v2_other", "one_space is 2 instead of 1"),
            ("event_time", None, "required column 'event_time' is null in 1 row$"),
        ],
    )
    def test_a_row_that_violates_a_rule_is_reported(
        self, dataset: Fitted, column: str, value: Any, message: str
    ) -> None:
        publish_days(dataset)
        rows, contract = rows_of(dataset), contract_of(dataset)
        assert violations(contract, rows) == []
        index = 1 if value == "twice" else 0
        given = rows[column][0] if value == "twice" else value
        invalid = rows.with_row_index("index").with_columns(
            pl.when(pl.col("index") == index).then(pl.lit(given)).otherwise(pl.col(column)).alias(column)
        )
        assert any(re.search(message, violation) for violation in violations(contract, invalid))

    def test_a_flag_that_contradicts_the_budget_is_reported(self, dataset: Fitted) -> None:
        publish_days(dataset)
        wrong = rows_of(dataset).with_columns(~pl.col("is_anomaly"))
        (violation,) = violations(contract_of(dataset), wrong)
        assert violation.startswith("flags_keep_the_budget is 180 instead of 0")

    def test_rows_that_violate_the_contract_are_not_published(
        self, dataset: Fitted, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        publish_days(dataset)
        previous = rows_of(dataset)

        def doubled(bundle: ModelBundle, version: int, batch: pa.RecordBatch, day: str) -> pa.Table:
            rows = score_batch(bundle, version, batch, day)
            names = rows["row_id"].to_pylist()
            return rows.set_column(0, rows.schema.field(0), pa.array([names[0], *names[:-1]]))

        monkeypatch.setattr(table_update, "score_batch", doubled)
        with pytest.raises(PublicationError, match=r"violates the data contract: identity_stands_once_a_day"):
            publish(dataset.days[-4:], Dataset(dataset.bundle.config, dataset.paths), dataset.bundle, 1, {})
        assert rows_of(dataset).equals(previous)


class TestVersions:
    def test_new_days_do_not_change_the_contract(self, dataset: Fitted) -> None:
        publish_days(dataset)
        text = (Path(dataset.paths.latents) / CONTRACT).read_text()
        assert (
            publish(dataset.days[-5:], Dataset(dataset.bundle.config, dataset.paths), dataset.bundle, 1, {}).contract
            == "1.0.0"
        )
        assert (Path(dataset.paths.latents) / CONTRACT).read_text() == text

    def test_a_model_with_the_same_axes_raises_the_second_number(
        self, dataset: Fitted, other_bundle: ModelBundle
    ) -> None:
        publish_days(dataset)
        axes = latent_space_name(1, dataset.bundle.fingerprint)
        after = with_axes(other_bundle, axes)
        assert publish_days(dataset, after, 2) == "1.1.0"
        (earlier,) = custom_property(dataset, "earlierSpaces")
        assert (earlier["latentSpace"], earlier["latentAxes"], earlier["contractVersion"]) == (axes, axes, "1.0.0")
        assert custom_property(dataset, "latentAxes") == axes

    def test_other_axes_raise_the_first_number(self, dataset: Fitted, other_bundle: ModelBundle) -> None:
        publish_days(dataset)
        assert publish_days(dataset, other_bundle, 2) == "2.0.0"
        files = TableFiles(dataset.paths.latents)
        old = OpenDataContractStandard.from_string(str(files.read_text("_contract/versions/1.0.0.yaml")))
        until = f"{dt.datetime.now(dt.UTC) + dt.timedelta(days=90):%Y-%m-%d}"
        assert old.status == "deprecated"
        assert [sla.value for sla in old.slaProperties or [] if sla.property == "endOfLife"] == [until]
        jsonschema.validate(yaml.safe_load(old.to_yaml()), json.loads(STANDARD))
        (earlier,) = custom_property(dataset, "earlierSpaces")
        assert earlier["readableUntil"] == until
        # The old rows are in the version of the table that the contract states.
        frozen = pl.read_delta(dataset.paths.latents, version=earlier["tableVersion"])
        assert set(frozen["latent_space"]) == {earlier["latentSpace"]}
        assert f"| {earlier['latentSpace']} |" in str(files.read_text(PAGE))

    def test_another_retention_changes_the_end_of_life(self, dataset: Fitted, other_bundle: ModelBundle) -> None:
        publish_days(dataset)
        publish_days(dataset, other_bundle, 2)
        assert publish_days(dataset, other_bundle, 2, latents=LatentsConfig(retention_days=7)) == "2.0.1"
        until = f"{dt.datetime.now(dt.UTC) + dt.timedelta(days=7):%Y-%m-%d}"
        (earlier,) = custom_property(dataset, "earlierSpaces")
        text = str(TableFiles(dataset.paths.latents).read_text("_contract/versions/1.0.0.yaml"))
        old = OpenDataContractStandard.from_string(text)
        ends = [sla.value for sla in old.slaProperties or [] if sla.property == "endOfLife"]
        assert (earlier["readableUntil"], ends) == (until, [until])

    def test_other_columns_raise_the_first_number(self, dataset: Fitted, wider_bundle: ModelBundle) -> None:
        publish_days(dataset)
        after = with_axes(wider_bundle, latent_space_name(1, dataset.bundle.fingerprint))
        assert publish_days(dataset, after, 2) == "2.0.0"

    def test_a_rollback_removes_the_space_from_the_earlier_ones(
        self, dataset: Fitted, other_bundle: ModelBundle
    ) -> None:
        publish_days(dataset)
        publish_days(dataset, other_bundle, 2)
        assert publish_days(dataset) == "3.0.0"
        (earlier,) = custom_property(dataset, "earlierSpaces")
        assert earlier["latentSpace"] == latent_space_name(2, other_bundle.fingerprint)

    def test_other_texts_raise_the_third_number(self, dataset: Fitted) -> None:
        publish_days(dataset)
        assert publish_days(dataset, owners=("team:night",)) == "1.0.1"
        assert publish_days(dataset, owners=("team:night",), latents=LatentsConfig(retention_days=30)) == "1.0.2"

    def test_an_expired_space_is_removed_from_the_earlier_ones(
        self, dataset: Fitted, other_bundle: ModelBundle
    ) -> None:
        publish_days(dataset)
        publish_days(dataset, other_bundle, 2)
        path = Path(dataset.paths.latents) / CONTRACT
        until = custom_property(dataset, "earlierSpaces")[0]["readableUntil"]
        today = custom_property(dataset, "earlierSpaces")[0]["retiredOn"]
        path.write_text(path.read_text().replace(until, "2020-03-31").replace(today, "2020-01-01"))
        (Path(dataset.paths.latents) / DIGESTS).unlink()  # otherwise the contract is restored
        assert publish_days(dataset, other_bundle, 2) == "2.0.1"
        assert custom_property(dataset, "earlierSpaces") is None

    def test_the_next_run_writes_a_contract_that_was_not_written(
        self, dataset: Fitted, other_bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        publish_days(dataset)

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("ae_pipeline.latents.publish.update_contract", killed)
        with pytest.raises(KeyboardInterrupt):
            publish_days(dataset, other_bundle, 2)
        monkeypatch.undo()
        assert contract_of(dataset).version == "1.0.0"
        assert publish_days(dataset, other_bundle, 2) == "2.0.0"
        assert custom_property(dataset, "earlierSpaces")[0]["tableVersion"] == 1
