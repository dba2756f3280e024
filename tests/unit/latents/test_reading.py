"""Readers of the latent table: `read_latents`, and other tools."""

import ast
import datetime as dt
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable
from deltalake.transaction import AddAction

import ae_pipeline
from ae_pipeline import Latents, read_latents
from ae_pipeline.common.errors import PublicationError
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.latent_space.names import latent_space_name
from ae_pipeline.latents.files import TableFiles
from ae_pipeline.latents.layout import latent_schema, read_features, score_batch, write_file
from ae_pipeline.latents.publish import Publication, publish
from ae_pipeline.latents.read import (
    current_files,
    published_days,
)
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.paths import DatasetPaths
from tests.support.latents import (
    path_of_day,
    publish_days,
    table,
)
from tests.support.sensors import Fitted

pytestmark = pytest.mark.usefixtures("own_files")


def test_the_documented_code_reads_all_rows(dataset: Fitted, first: Publication) -> None:
    root = Path(__file__).parents[3]
    readme = (root / "README.md").read_text(encoding="utf-8")
    reference = (root / "docs" / "reference" / "tables-and-files.md").read_text(encoding="utf-8")
    section = reference.split("## Read the latent table")[1].split("## ")[0]
    short, *_ = re.findall(r"```python\n(.*?)```", readme.split("## Read the table")[1], re.DOTALL)
    (plain, by_package) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names: dict[str, Any] = {"ae_pipeline": ae_pipeline}
    results = []
    short, plain = (code.replace("data/latents/flights", dataset.paths.latents) for code in (short, plain))
    by_package = by_package.replace('("flights"', f'("sensors", data={str(dataset.paths.root)!r}').replace(
        "2013-", "2024-"
    )
    for code in (short, plain, by_package):
        for line in ast.parse(code).body:
            if isinstance(line, ast.Expr):
                results += [eval(compile(ast.Expression(line.value), "docs", "eval"), names)]
            else:
                exec(compile(ast.Module([line], []), "docs", "exec"), names)
    assert len(names["latents"]) == 240
    assert [len(rows) for rows in results[:4]] == [240] * 4
    assert results[4] == (first.latent_space, 1, first.table_version)
    assert names["earlier"].arrow.num_rows == 240


class TestReading:
    @staticmethod
    def read(dataset: Fitted, **choice: Any) -> Latents:
        return read_latents("sensors", data=dataset.paths.root, **choice)

    def test_every_frame_has_all_rows_in_order(
        self, dataset: Fitted, days: tuple[str, ...], first: Publication
    ) -> None:
        latents, expected = self.read(dataset), table(dataset.paths)
        assert latents.latent_space == latent_space_name(1, dataset.bundle.fingerprint)
        assert (latents.model_version, latents.table_version) == (1, first.table_version)
        assert latents.polars()["event_time"].is_sorted()
        assert latents.polars().sort("event_time", "row_id").equals(expected)
        frame = latents.pandas()
        assert frame["score"].tolist() == latents.arrow["score"].to_pylist()
        assert frame.attrs == {"latent_space": latents.latent_space, "model_version": 1, "table_version": 1}

    @pytest.mark.parametrize("kind", ["text", "date", "time"])
    def test_start_is_included_and_end_is_excluded(
        self, dataset: Fitted, days: tuple[str, ...], first: Publication, kind: str
    ) -> None:
        conversions: dict[str, Callable[[str], dt.date | str]] = {
            "text": str,
            "date": dt.date.fromisoformat,
            "time": lambda day: dt.datetime.fromisoformat(f"{day}T02:00:00+02:00"),
        }
        given = conversions[kind]
        rows = self.read(dataset, start=given(days[1]), end=given(days[3])).polars()
        assert rows["date"].dt.to_string().unique().sort().to_list() == list(days[1:3])
        assert rows.height == 120
        assert self.read(dataset, start=given(days[3])).arrow.num_rows == 60
        assert self.read(dataset, end=given(days[1])).arrow.num_rows == 60
        assert self.read(dataset, end=given(days[0])).arrow.num_rows == 0

    def test_columns_are_in_the_requested_order(self, dataset: Fitted, first: Publication) -> None:
        assert self.read(dataset, columns=["score", "z_001"]).arrow.column_names == ["score", "z_001"]

    def test_an_earlier_space_is_read_from_its_last_version(
        self, dataset: Fitted, days: tuple[str, ...], first: Publication, wider_bundle: ModelBundle
    ) -> None:
        publish_days(dataset, dataset.days[:1])
        old = self.read(dataset)
        publish_days(dataset, days, wider_bundle, 2)
        new = self.read(dataset)
        assert (new.model_version, new.latent_space) == (2, latent_space_name(2, wider_bundle.fingerprint))
        assert "z_004" in new.arrow.column_names
        for choice in (1, old.latent_space):
            again = self.read(dataset, space=choice)
            assert again.arrow.equals(old.arrow)
            assert (again.latent_space, again.table_version) == (old.latent_space, old.table_version)
        publish_days(dataset, days, dataset.bundle, 1)
        assert self.read(dataset, space=1).table_version == self.read(dataset).table_version == old.table_version + 2

    def test_the_environment_can_set_the_data_folder(
        self, dataset: Fitted, first: Publication, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AE_PIPELINE_DATA", str(dataset.paths.root))
        assert read_latents("sensors").arrow.num_rows == 240

    def test_a_table_with_two_spaces_is_an_error(
        self, dataset: Fitted, days: tuple[str, ...], first: Publication, other_bundle: ModelBundle
    ) -> None:
        # No publication does this: a file of another space is added to the table.
        space = latent_space_name(2, other_bundle.fingerprint)
        path = path_of_day(days[0], "other", other_bundle.fingerprint, space)
        (batch,) = read_features(dataset.paths.features(days[0]))
        rows = score_batch(other_bundle, 2, batch, days[0])
        write_file([rows], {days[0]: "other"}, 3, path, TableFiles(dataset.paths.latents))
        delta = DeltaTable(dataset.paths.latents)
        added = AddAction(
            path, (Path(dataset.paths.latents) / path).stat().st_size, {}, 0, data_change=True, stats="{}"
        )
        delta.create_write_transaction([added], "append", latent_schema(3))
        with pytest.raises(PublicationError, match=rf"mixes the latent spaces v1_\w+ and {space}.*; restore"):
            self.read(dataset)

    @pytest.mark.parametrize(
        ("choice", "message"),
        [
            ({"space": 7}, r"have no latent space 7; choose among v1_\w+, or 'current'"),
            ({"space": "v9_x"}, r"have no latent space 'v9_x'; choose among v1_\w+"),
            ({"columns": ["score", "z_9"]}, r"have no column 'z_9'; choose among row_id, event_time"),
            ({"start": "July"}, r"'July' is not an ISO 8601 date or time; write it like 2013-07-04"),
        ],
    )
    def test_an_unknown_choice_is_an_error_with_the_known_ones(
        self, dataset: Fitted, first: Publication, choice: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(PublicationError, match=message):
            self.read(dataset, **choice)

    def test_a_missing_table_is_an_error_with_a_remedy(self, dataset: Fitted) -> None:
        with pytest.raises(PublicationError, match="is not a latent table; publish latents of 'sensors' first"):
            self.read(dataset)

    def test_rows_without_event_time_cannot_be_selected_by_time(self, undated: DatasetPaths) -> None:
        assert read_latents("frame", data=undated.root).arrow["row_id"].to_pylist() == [f"r{i}" for i in range(400)]
        with pytest.raises(PublicationError, match="'frame' have no event time; read them without start and end"):
            read_latents("frame", data=undated.root, start="2024-01-01")


class TestOtherTools:
    def test_a_restored_table_has_the_space_of_its_rows(
        self, dataset: Fitted, days: tuple[str, ...], first: Publication, other_bundle: ModelBundle
    ) -> None:
        publish_days(dataset, days, other_bundle, 2)
        DeltaTable(dataset.paths.latents).restore(first.table_version)
        latents = read_latents("sensors", data=dataset.paths.root)
        assert latents.model_version == 1
        assert latents.latent_space == latent_space_name(1, dataset.bundle.fingerprint)
        assert set(latents.polars()["model_version"]) == {1}

    def test_a_compacted_table_is_an_error_with_a_remedy(
        self, dataset: Fitted, days: tuple[str, ...], first: Publication
    ) -> None:
        DeltaTable(dataset.paths.latents).optimize.compact()
        for ask in (lambda: published_days(dataset.paths), lambda: publish_days(dataset, dataset.days[-5:])):
            with pytest.raises(
                PublicationError, match="is in the table, but no publication wrote it; restore the previous"
            ):
                ask()
        assert read_latents("sensors", data=dataset.paths.root).arrow.num_rows == 240

    def test_a_missing_current_file_is_an_error_with_a_remedy(
        self, dataset: Fitted, days: tuple[str, ...], first: Publication
    ) -> None:
        (Path(dataset.paths.latents) / current_files(dataset.paths)[0]).unlink()
        with pytest.raises(PublicationError, match=r"a file of version 1 .* is missing; materialize latent_features"):
            read_latents("sensors", data=dataset.paths.root)

    def test_a_relative_folder_is_in_the_working_directory(
        self, dataset: Fitted, days: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.chdir(tmp_path)
        paths = DatasetPaths(dataset.paths.root, "sensors", "tables")
        publish(days, Dataset(dataset.bundle.config, paths), dataset.bundle, 1, {})
        assert paths.latents == str(tmp_path / "tables" / "sensors")
        assert TableFiles(paths.latents).address().startswith("file:///")
