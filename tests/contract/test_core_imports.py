"""The numeric core runs on a machine that has only the numeric libraries, such as a rented GPU server."""

import json
import os
import subprocess
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CORE = ("models", "training", "detector", "scoring", "encoding", "latent_space")
LIBRARIES = ("torch", "numpy", "polars", "pydantic", "scikit-learn", "safetensors")

SCRIPT = """
import importlib, json, pkgutil, sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder

absent, packages = set(json.loads(sys.argv[1])), json.loads(sys.argv[2])

class Present:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name.partition(".")[0] in absent else PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [BuiltinImporter, FrozenImporter, Present]

import numpy as np
import polars as pl

names = []
for package in packages:
    module = importlib.import_module(f"ae_pipeline.{package}")
    names += [found.name for found in pkgutil.walk_packages(module.__path__, f"ae_pipeline.{package}.")]
for name in names:
    importlib.import_module(name)

from ae_pipeline.config.columns import ColumnType, FeatureColumn
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.encoding.encoder import fit_encoder

rows = pl.DataFrame({"number": np.arange(700.0), "kind": ["high", "low"] * 350})
columns = [FeatureColumn("number", ColumnType.NUMBER), FeatureColumn("kind", ColumnType.CATEGORY)]
encoder = fit_encoder(PipelineConfig(dataset="core", identity=("id",)), rows, columns)
print(json.dumps({"modules": len(names), "row": encoder.encode(rows)[349].tolist()}))
"""


def test_core_needs_only_the_numeric_libraries() -> None:
    absent = sorted(_modules_that_no_core_library_needs())
    assert {"pyarrow", "deltalake", "yaml", "dagster", "mlflow", "PIL"} <= set(absent)
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(absent), json.dumps(CORE)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
        cwd=Path(__file__).parents[2],
    )
    assert result.returncode == 0, result.stderr
    printed = json.loads(result.stdout)
    assert printed["modules"] > 50
    median, *one_hot = printed["row"]
    assert abs(median) < 0.01
    assert sorted(one_hot) == [0, 0, 0, 0, 1]


def _modules_that_no_core_library_needs() -> set[str]:
    """Return the installed top-level modules that neither the core nor one of its libraries needs."""
    needed, remaining = set[str](), [canonicalize_name(name) for name in LIBRARIES]
    while remaining:
        name = remaining.pop()
        if name in needed:
            continue
        needed.add(name)
        requirements = map(Requirement, requires(name) or [])
        remaining += [
            canonicalize_name(one.name)
            for one in requirements
            if one.marker is None or one.marker.evaluate({"extra": ""})
        ]
    return {
        module
        for module, distributions in packages_distributions().items()
        if not {canonicalize_name(one) for one in distributions} & needed
        and module not in sys.stdlib_module_names
        and module != "ae_pipeline"
    }
