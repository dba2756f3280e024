"""A project in which the YAML of one dataset has an error, as Dagster and the command line show it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.commands import run_command
from tests.support.model_store import make_model_store
from tests.support.shop import ATTRIBUTES, DAYS, LOGS, orders_csv

BINARIES = Path(sys.executable).parent
PROJECT_ROOT = Path(__file__).parents[2]
TYPE = "ae_pipeline.orchestration.component.AutoencoderPipeline"
MESSAGE = "ae_pipeline/defs/figs/defs.yaml:5: attributes.exlude: unknown key; did you mean 'exclude'?"
TYPO = f"type: {TYPE}\nattributes:\n  dataset: figs\n  identity: [id]\n  exlude: [a]\n"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the dataset `orders`, whose files have landed, and the broken dataset `figs`."""
    root = tmp_path_factory.mktemp("project")
    ignored = shutil.ignore_patterns("flights", "shuttle", "textures")
    shutil.copytree(PROJECT_ROOT / "ae_pipeline", root / "ae_pipeline", ignore=ignored)
    for name in ("pyproject.toml", "workspace.yaml"):
        shutil.copy(PROJECT_ROOT / name, root)
    home, landing = root / "dagster_home", root / "data" / "landing" / "orders"
    home.mkdir()
    (home / "dagster.yaml").write_text(yaml.safe_dump({"telemetry": {"enabled": False}, **LOGS}))
    landing.mkdir(parents=True)
    for day in DAYS:
        (landing / f"{day}.csv").write_text(orders_csv(day))
    write(root, "orders", yaml.safe_dump({"type": TYPE, "attributes": ATTRIBUTES}))
    write(root, "figs", TYPO)
    make_model_store(root / "mlruns")
    return root


def write(root: Path, folder: str, text: str) -> None:
    """Write the YAML of a dataset."""
    path = root / "ae_pipeline" / "defs" / folder / "defs.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


def environment(root: Path) -> dict[str, str]:
    """Return the environment variables of a command in the project."""
    return {
        **os.environ,
        "DAGSTER_HOME": str(root / "dagster_home"),
        "AE_PIPELINE_DATA": str(root / "data"),
        "AE_PIPELINE_MLRUNS": str(root / "mlruns"),
        "PATH": f"{BINARIES}{os.pathsep}{os.environ['PATH']}",
        "VIRTUAL_ENV": str(BINARIES.parent),
        "PYTHONPATH": str(root),
        "NO_COLOR": "1",
    }


def run(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the project."""
    return run_command(*command, environment=environment(root), folder=root)


def test_the_broken_dataset_is_a_short_error(project: Path) -> None:
    done = run(project, "ae-pipeline", "run", "figs")
    assert done.returncode == 1
    assert done.stderr == f"\nConfigError: 'figs' is not loaded: {MESSAGE}\n"


def test_list_shows_every_dataset_before_and_after_its_first_run(project: Path) -> None:
    done = run(project, "ae-pipeline", "list")
    assert done.returncode == 1
    assert [line.split() for line in done.stdout.splitlines()[1:]] == [["orders", "never", "ran"]]
    assert done.stderr == f"figs: not loaded: {MESSAGE}\n"
    ran = run(project, "ae-pipeline", "run", "orders")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stderr.splitlines().count(f"Not loaded: {MESSAGE}") == 1
    assert "Traceback" not in ran.stderr
    done = run(project, "ae-pipeline", "list")
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "dataset  version  newest day  rows  state",
        f"orders         1  {DAYS[-1]}   960  serving",
    ]
    rolled_back = run(project, "ae-pipeline", "rollback", "orders", "1", "--why", "a test")
    assert (rolled_back.returncode, rolled_back.stderr) == (0, f"Not loaded: {MESSAGE}\n")


def test_list_ends_with_0_if_every_file_can_be_loaded(project: Path) -> None:
    figs = project / "ae_pipeline" / "defs" / "figs"
    figs.rename(project / "figs")
    try:
        done = run(project, "ae-pipeline", "list")
    finally:
        (project / "figs").rename(figs)
    assert (done.returncode, done.stderr) == (0, "")


def test_list_imports_neither_torch_nor_mlflow(project: Path) -> None:
    code = (
        "import sys; from ae_pipeline.cli.datasets import list_datasets; list_datasets();"
        "print([name for name in ('torch', 'mlflow', 'deltalake', 'pandas') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(project), cwd=project, check=False)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TYPO, "'exlude' was unexpected"),
        (TYPO.replace("exlude", "start: 2024-01-01 #"), "start=2024-01-01 needs event_time"),
        (TYPO.replace("attributes:", "attributes: ["), "expected ',' or ']'"),
        ("", "ae_pipeline/defs/figs/defs.yaml: the file is empty"),
        (yaml.safe_dump({"type": TYPE, "attributes": ATTRIBUTES}), "neither is loaded"),
        (TYPO.replace("AutoencoderPipeline", "AutoPipeline"), "AutoPipeline"),
    ],
    ids=["unknown key", "contradiction", "syntax", "empty", "one name twice", "unknown type"],
)
def test_dg_check_defs_fails_with_the_error(project: Path, text: str, message: str) -> None:
    write(project, "figs", text)
    try:
        done = run(project, "dg", "check", "defs")
    finally:
        write(project, "figs", TYPO)
    assert done.returncode == 1, done.stdout + done.stderr
    assert message in done.stdout + done.stderr


def test_dagster_shows_the_error_and_all_other_datasets(project: Path) -> None:
    done = run(project, "dg", "list", "defs", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr.splitlines().count(f"not loaded: {MESSAGE}") == 1
    assets = {asset["asset_key"]: asset for asset in json.loads(done.stdout)["assets"]}
    stages = ("raw_data", "features", "autoencoder", "champion", "latent_features", "anomaly_report")
    assert set(assets) == {"figs/load_error", *(f"orders/{stage}" for stage in stages)}
    assert MESSAGE in assets["figs/load_error"]["description"]
    assert assets["figs/load_error"]["kinds"] == ["error"]


def test_materializing_the_placeholder_fails_with_the_error(project: Path) -> None:
    done = run(project, "dg", "launch", "--assets", "figs/load_error")
    assert done.returncode != 0
    assert MESSAGE in done.stdout + done.stderr
