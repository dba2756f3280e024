"""A project of one's own: its files, its datasets, and what Dagster loads from it."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ae_pipeline.cli.demo import DEMOS
from ae_pipeline.cli.main import main
from ae_pipeline.definitions import load_project
from ae_pipeline.ingestion.callables import load_callable

CLONE = Path(__file__).resolve().parents[3]
ORDERS: dict[str, Any] = {"dataset": "orders", "identity": ["id"], "source": {"callable": "defs.orders.fetch:rows"}}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project in the working directory, as the command creates it."""
    for name in ("AE_PIPELINE_DEFS", "AE_PIPELINE_DATA", "AE_PIPELINE_MLRUNS", "DAGSTER_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    assert main(["init", "My Shop"]) == 0
    monkeypatch.chdir(tmp_path / "My Shop")
    yield tmp_path / "My Shop"
    for name in [name for name in sys.modules if name.partition(".")[0] == "defs"]:
        del sys.modules[name]


def test_a_project_has_all_files_and_no_dataset(project: Path) -> None:
    written = {path.relative_to(project).as_posix() for path in project.rglob("*") if path.is_file()}
    settings = {"pyproject.toml", "workspace.yaml", "Makefile", "README.md", ".gitignore", ".dagster/dagster.yaml"}
    settings |= {"defs/__init__.py"}
    assert written == settings
    assert 'name = "my-shop"' in (project / "pyproject.toml").read_text()
    assert (project / ".dagster/dagster.yaml").read_bytes() == (CLONE / ".dagster" / "dagster.yaml").read_bytes()
    ours, theirs = (yaml.safe_load((root / "workspace.yaml").read_text()) for root in (CLONE, project))
    assert ours == theirs
    for _ in range(2):
        loaded = load_project()
        assert (dict(loaded.configs), loaded.broken) == ({}, ())
        (project / "defs" / "__init__.py").unlink(missing_ok=True)  # an empty folder is one too


def test_the_datasets_of_a_project_are_loaded(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = project / "given.csv"
    data.write_text("id,price\n" + "".join(f"{number},{number / 7}\n" for number in range(50)))
    assert main(["new", "prices", "--yes", str(data)]) == 0
    folder = project / "defs" / "orders"
    folder.mkdir()
    document = {"type": "ae_pipeline.orchestration.component.AutoencoderPipeline", "attributes": ORDERS}
    (folder / "defs.yaml").write_text(yaml.safe_dump(document))
    (folder / "fetch.py").write_text("def rows(day):\n    return None\n")
    loaded = load_project()
    assert (sorted(loaded.configs), loaded.broken) == (["orders", "prices"], ())
    workspace = (loaded.definitions.resources or {})["workspace"]
    paths = workspace.paths("prices")
    assert (paths.root, paths.project) == (project / "data", project)
    assert [path.name for path in paths.landing.iterdir()] == ["given.csv"]
    assert load_callable(ORDERS["source"]["callable"], "orders")("2024-01-01") is None
    capsys.readouterr()
    assert main(["list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["dataset", "orders", "prices"]


def test_an_example_comes_with_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(DEMOS, "shuttle", lambda folder: folder.mkdir(parents=True) or 1)
    assert main(["init", str(tmp_path / "shop"), "--example", "shuttle"]) == 0
    assert "then `ae-pipeline run shuttle`" in capsys.readouterr().out
    shipped = CLONE / "ae_pipeline" / "defs" / "shuttle" / "defs.yaml"
    assert (tmp_path / "shop" / "defs" / "shuttle" / "defs.yaml").read_bytes() == shipped.read_bytes()
    assert (tmp_path / "shop" / "data" / "landing" / "shuttle").is_dir()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["."], "has pyproject.toml, workspace.yaml"),
        (["new", "--example", "orders"], "there is no example 'orders'; choose among flights, textures, shuttle"),
    ],
)
def test_what_exists_is_not_overwritten(
    project: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (project / "Makefile").write_text("mine")
    assert main(["init", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert (project / "Makefile").read_text() == "mine"
    assert not (project / "new").exists()


def test_a_folder_that_python_cannot_import_is_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, message in {"my-defs": "it is no identifier", "yaml": "the name 'yaml' belongs to"}.items():
        (project.parent / "other" / name).mkdir(parents=True)
        monkeypatch.setenv("AE_PIPELINE_DEFS", str(project.parent / "other" / name))
        assert main(["list"]) == 1
        assert message in capsys.readouterr().err
