"""The landing folder: paths of the YAML are relative to the project's folder."""

from dataclasses import replace
from pathlib import Path

import pytest

from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.ingestion.landing_folder import landing_folder, list_landing
from ae_pipeline.orchestration.resources import Workspace
from ae_pipeline.storage.dataset import Dataset


def dataset(root: Path, path: str | None) -> Dataset:
    """Return a dataset of the project in a folder, whose data folder is elsewhere."""
    workspace = Workspace(
        data_folder=str(root / "state" / "data"),
        mlflow_folder=str(root / "mlruns"),
        project_folder=str(root / "project"),
    )
    source = {"path": path} if path else {}
    return workspace.dataset(PipelineConfig.model_validate({"dataset": "d", "identity": ["id"], "source": source}))


def test_a_relative_path_is_below_the_project(tmp_path: Path) -> None:
    assert landing_folder(dataset(tmp_path, "incoming/orders")) == tmp_path / "project" / "incoming" / "orders"


def test_an_absolute_path_stays(tmp_path: Path) -> None:
    assert landing_folder(dataset(tmp_path, "/mnt/orders")) == Path("/mnt/orders")


def test_without_a_path_files_land_in_the_data_folder(tmp_path: Path) -> None:
    assert landing_folder(dataset(tmp_path, None)) == tmp_path / "state" / "data" / "landing" / "d"


def test_a_folder_that_exists_only_below_the_data_folder_is_used_with_a_warning(tmp_path: Path) -> None:
    former = tmp_path / "state" / "data" / "incoming"
    former.mkdir(parents=True)
    with pytest.warns(
        DeprecationWarning, match=r"'incoming' in source\.path.*write '\.\./state/data/incoming' instead"
    ):
        assert landing_folder(dataset(tmp_path, "incoming")) == former
    (tmp_path / "project" / "incoming").mkdir(parents=True)
    assert landing_folder(dataset(tmp_path, "incoming")) == tmp_path / "project" / "incoming"


def test_the_new_path_of_the_warning_is_right(tmp_path: Path) -> None:
    former = tmp_path / "state" / "data" / "incoming"
    former.mkdir(parents=True)
    assert landing_folder(dataset(tmp_path, "../state/data/incoming")).resolve() == former


def test_the_default_project_is_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = replace(dataset(tmp_path, "incoming"), paths=replace(dataset(tmp_path, None).paths, project=Path()))
    (tmp_path / "incoming").mkdir()
    assert landing_folder(here).resolve() == tmp_path / "incoming"


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        (".ipynb_checkpoints", "the folder '.ipynb_checkpoints' is hidden"),
        (".Trash-1000/files", "the folder '.Trash-1000' is hidden"),
        ("a/.git", "the folder '.git' is hidden"),
        ("__MACOSX/b", "the folder '__MACOSX' belongs to archives of macOS"),
        ("@eaDir/a.csv", "the folder '@eaDir' belongs to a network storage"),
        ("$RECYCLE.BIN", "the folder '$RECYCLE.BIN' belongs to Windows"),
    ],
)
def test_files_in_hidden_and_foreign_folders_are_named_and_not_read(tmp_path: Path, folder: str, reason: str) -> None:
    shop = dataset(tmp_path, None)
    for name in ("a.csv", f"{folder}/b.csv"):
        path = landing_folder(shop) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("id\n1\n")
    found = list_landing(shop)
    assert list(found.files) == ["a.csv"]
    assert found.others[f"{folder}/b.csv"].startswith(reason)


def test_a_linked_folder_is_named(tmp_path: Path) -> None:
    shop, elsewhere = dataset(tmp_path, None), tmp_path / "elsewhere"
    for folder in (landing_folder(shop), elsewhere):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "a.csv").write_text("id\n1\n")
    (landing_folder(shop) / "linked").symlink_to(elsewhere)
    found = list_landing(shop)
    assert list(found.files) == ["a.csv"]
    assert found.others == {"linked": "it is a linked folder, which is not followed; copy it, or set source.path"}
