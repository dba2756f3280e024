"""Which project a command works on, and which folders it has."""

from pathlib import Path

import pytest

from ae_pipeline import read_latents
from ae_pipeline.common.errors import ConfigError
from ae_pipeline.orchestration.resources import Workspace
from ae_pipeline.storage import project as module
from ae_pipeline.storage.environment import FOLDERS, project_folders
from ae_pipeline.storage.location import dataset_paths
from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.storage.project import ProjectFolder, find_project, own_project

CLONE = Path(__file__).resolve().parents[3]
OURS = "root_module = 'defs'\ndefs_module = 'defs'\ncode_location_target_module = 'ae_pipeline.definitions'\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, without variables that name folders."""
    for name in ("AE_PIPELINE_DEFS", *FOLDERS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("name", "table"), [("dg.toml", "project"), ("pyproject.toml", "tool.dg.project")])
def test_a_project_is_found_from_below(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, table: str) -> None:
    (folder / name).write_text(f"[{table}]\n{OURS}")
    (folder / "defs" / "orders").mkdir(parents=True)
    monkeypatch.chdir(folder / "defs" / "orders")
    assert own_project() == ProjectFolder(folder, folder / "defs", "defs")
    expected = {"AE_PIPELINE_DATA": "data", "AE_PIPELINE_MLRUNS": "mlruns", "DAGSTER_HOME": ".dagster"}
    assert project_folders() == {variable: folder / default for variable, default in expected.items()}


@pytest.mark.parametrize(
    "settings",
    ["", "[tool.dg.project]\nroot_module = 'other'\n", "[tool.dg.project]\nroot_module = 'ae_pipeline'\n", "tool = 1"],
)
def test_a_project_of_others_is_not_ours(folder: Path, settings: str) -> None:
    (folder / "pyproject.toml").write_text(settings)
    found = find_project()
    assert found == ProjectFolder(CLONE, CLONE / "ae_pipeline" / "defs", "ae_pipeline.defs")
    assert found.has_examples


def test_the_variable_names_a_folder_without_a_project(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "etc" / "datasets").mkdir(parents=True)
    monkeypatch.setenv("AE_PIPELINE_DEFS", "etc/datasets")
    assert own_project() == ProjectFolder(folder / "etc", folder / "etc" / "datasets", "datasets")
    assert not own_project().has_examples
    monkeypatch.setenv("AE_PIPELINE_DEFS", "missing")
    with pytest.raises(ConfigError, match="AE_PIPELINE_DEFS=missing: there is no such folder"):
        own_project()


def test_an_installed_package_has_its_examples_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = folder / "site-packages" / "ae_pipeline"
    monkeypatch.setattr(module, "_PACKAGE", package)
    assert find_project() == ProjectFolder(folder, package / "defs", "ae_pipeline.defs", is_own=False)
    with pytest.raises(ConfigError, match=r"there is no project in .*; create one with `ae-pipeline init FOLDER`"):
        own_project()


def test_a_damaged_configuration_is_named(folder: Path) -> None:
    (folder / "dg.toml").write_text("[project\n")
    with pytest.raises(ConfigError, match=r"dg\.toml is no valid TOML: .*; correct it"):
        find_project()


@pytest.mark.parametrize("name", ["AE_PIPELINE_MLRUNS", "DAGSTER_HOME"])
@pytest.mark.parametrize("value", ["s3://bucket/data", "gs://bucket", "az://c/data", "file:///srv/data", "S3:/bucket"])
def test_an_address_is_no_folder(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"{name}={value}: only a folder of this machine can be used here"):
        project_folders()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("value", ["ftp://host/latents", "s3:/bucket", "http://host", "S3://bucket"])
def test_tables_are_in_a_folder_or_an_object_store(folder: Path, value: str) -> None:
    with pytest.raises(ConfigError, match=f"AE_PIPELINE_TABLES={value}: '.*' is no object store; give a folder, or an"):
        read_latents("orders", tables=value)
    assert DatasetPaths(folder, "orders", "abfss://container/latents/").latents == "abfss://container/latents/orders"
    assert DatasetPaths(folder, "orders", "tables").latents == str(folder / "tables" / "orders")


def test_resources_and_readers_refuse_an_address(folder: Path) -> None:
    workspace = Workspace(data_folder="hdfs://bucket", mlflow_folder="s3://bucket")
    with pytest.raises(ConfigError, match="s3://bucket: only a folder of this machine"):
        workspace.tracker()
    for refused in (lambda: workspace.paths("orders"), lambda: read_latents("orders", data="hdfs://bucket")):
        with pytest.raises(
            ConfigError, match=r"AE_PIPELINE_DATA=hdfs://bucket: no folder .*Supported are s3://, gs://, "
        ):
            refused()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("value", ["ftp://host/data", "s3:/bucket", "S3://bucket", "s3://", "s3://b//c", "file:///srv"])
def test_data_are_in_a_folder_or_a_supported_object_store(
    folder: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("AE_PIPELINE_DATA", value)
    with pytest.raises(ConfigError, match=r"AE_PIPELINE_DATA=.*: no folder of this machine, and no address of a supp"):
        project_folders()
    assert list(folder.iterdir()) == []


def test_data_in_an_object_store_have_a_working_copy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AE_PIPELINE_DATA", "gs://bucket/a b/")
    monkeypatch.setenv("AE_PIPELINE_SCRATCH", str(folder / "scratch"))
    paths = dataset_paths("orders")
    assert paths.root.parent == folder / "scratch"
    assert paths.root.name.startswith("gs-bucket-a-b-")
    assert project_folders()["AE_PIPELINE_DATA"] == paths.root
    assert (paths.store, paths.latents) == ("gs://bucket/a b", "gs://bucket/a b/latents/orders")
    assert dataset_paths("orders", tables="s3://tables").latents == "s3://tables/orders"
    assert dataset_paths("orders", "gs://bucket/a-b").root != paths.root
    monkeypatch.delenv("AE_PIPELINE_SCRATCH")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    assert dataset_paths("orders").root.parent == folder / "ae_pipeline"
