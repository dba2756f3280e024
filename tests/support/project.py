"""A copy of the project with other datasets, and commands that run in it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.paths import DatasetPaths
from tests.support.shop import LOGS

SOURCE = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class ProjectCopy:
    """A copy of the package whose `defs` folder holds the datasets of a test.

    Attributes:
        root: Folder of the copy.
        settings: Attributes of each dataset's YAML, by name.
        data_folder: Name of the data folder below the root.
    """

    root: Path
    settings: Mapping[str, Mapping[str, Any]]
    data_folder: str = "data"

    @classmethod
    def create(cls, root: Path, settings: Mapping[str, Mapping[str, Any]], data_folder: str = "data") -> "ProjectCopy":
        """Copy the package below a folder, and write one `defs.yaml` for each dataset."""
        # With the bytecode, so that the first command does not compile the package again.
        shutil.copytree(SOURCE / "ae_pipeline", root / "ae_pipeline", ignore=shutil.ignore_patterns("defs"))
        shutil.copy(SOURCE / "pyproject.toml", root)
        home = root / "dagster_home"
        home.mkdir()
        (home / "dagster.yaml").write_text(yaml.safe_dump({"telemetry": {"enabled": False}, **LOGS}))
        for name, attributes in settings.items():
            folder = root / "ae_pipeline" / "defs" / name
            folder.mkdir(parents=True)
            component = {
                "type": "ae_pipeline.orchestration.component.AutoencoderPipeline",
                "attributes": {"dataset": name, **attributes},
            }
            (folder / "defs.yaml").write_text(yaml.safe_dump(component))
        return cls(root, settings, data_folder)

    @property
    def data(self) -> Path:
        """The data folder."""
        return self.root / self.data_folder

    def dataset(self, name: str) -> Dataset:
        """Return a dataset with its configuration and paths."""
        config = PipelineConfig.model_validate({"dataset": name, **self.settings[name]})
        return Dataset(config, DatasetPaths(self.data, name))

    def python(self, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Python code with the copied package and the copy's folders."""
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.root),
            "DAGSTER_HOME": str(self.root / "dagster_home"),
            "AE_PIPELINE_DATA": str(self.data),
            "AE_PIPELINE_MLRUNS": str(self.root / "mlruns"),
        }
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=self.root, check=False)
