"""The wheel: its files, and what it loads where there is no clone of the package."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ae_pipeline.cli.init import init

pytestmark = pytest.mark.slow

CLONE = Path(__file__).parents[2]
BUILD = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"
LOAD = """
import json
import ae_pipeline
from ae_pipeline.definitions import defs
from ae_pipeline.storage.project import find_project
project = find_project()
keys = defs().resolve_asset_graph().get_all_asset_keys()
print(json.dumps([ae_pipeline.__file__, str(project.defs), sorted({key.path[0] for key in keys})]))
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the content of the wheel, as `pip install` leaves it."""
    folder = tmp_path_factory.mktemp("wheel")
    source, target = folder / "source", folder / "site-packages"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=CLONE, capture_output=True, text=True, check=True).stdout
    for name in tracked.split("\0"):
        if name.startswith("ae_pipeline/") or name in {"pyproject.toml", "README.md", "LICENSE"}:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((CLONE / name).read_bytes())
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(folder)], cwd=source, capture_output=True, text=True, check=True
    )
    with zipfile.ZipFile(folder / done.stdout.splitlines()[-1]) as wheel:
        wheel.extractall(target)
    return target


def test_the_wheel_has_every_file_of_the_package(package: Path) -> None:
    source = package.parent / "source" / "ae_pipeline"
    expected = {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
    folder = package / "ae_pipeline"
    assert {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()} == expected
    assert len(expected) > 200


def test_the_wheel_loads_its_examples_and_a_project(package: Path, tmp_path: Path) -> None:
    assert init(tmp_path / "shop") == 0
    (tmp_path / "shop" / "defs" / "orders").mkdir()
    (tmp_path / "shop" / "defs" / "orders" / "defs.yaml").write_text(
        "type: ae_pipeline.orchestration.component.AutoencoderPipeline\nattributes: {dataset: orders, identity: [id]}\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AE_PIPELINE_")}
    environment["PYTHONPATH"] = str(package)
    processes = [
        subprocess.Popen([sys.executable, "-c", LOAD], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
        for folder in (tmp_path, tmp_path / "shop")
    ]
    module = str(package / "ae_pipeline" / "__init__.py")
    examples = str(package / "ae_pipeline" / "defs")
    assert [json.loads(process.communicate()[0].splitlines()[-1]) for process in processes] == [
        [module, examples, ["flights", "shuttle", "textures"]],
        [module, str(tmp_path / "shop" / "defs"), ["orders"]],
    ]
