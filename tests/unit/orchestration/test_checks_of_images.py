"""Checks in Dagster of datasets whose rows are images or patches."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
from PIL import Image

from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.gate.results import GateResult
from ae_pipeline.lifecycle import publish
from ae_pipeline.orchestration.assets.features import build_features
from ae_pipeline.orchestration.assets.latent_features import build_latent_features
from ae_pipeline.orchestration.assets.raw_data import build_raw_data
from ae_pipeline.orchestration.resources import RunLock, Workspace

WHOLE: dict[str, Any] = {"dataset": "parts", "identity": ["file"], "images": {}, "model": {"architecture": "conv"}}
PATCHES: dict[str, Any] = {
    **WHOLE,
    "identity": ["file", "top", "left"],
    "images": {"patch": 8},
    "model": {"architecture": "dense"},
}


def checks_of(settings: dict[str, Any], assets: Any, root: Path) -> dict[str, str | None]:
    """Materialize assets with one image, and return the description of each check."""
    config = PipelineConfig.model_validate(settings)
    workspace = Workspace(data_folder=str(root / "data"), mlflow_folder=str(root / "mlruns"))
    landing = workspace.paths(config.dataset).landing
    landing.mkdir(parents=True)
    content = io.BytesIO()
    Image.linear_gradient("L").resize((16, 16)).save(content, "PNG")
    (landing / "a.png").write_bytes(content.getvalue())
    built = [build(config) for build in assets]
    result = dg.materialize(built, resources={"workspace": workspace, "run_lock": RunLock(workspace=workspace)})
    return {check.check_name: check.description for check in result.get_asset_check_evaluations()}


@pytest.mark.parametrize(
    ("settings", "quarantine", "kept"),
    [
        (WHOLE, "0 of 1 image of these files is in quarantine", "1 image of features, 1 of raw_data"),
        (PATCHES, "0 of 4 patches or images of these files are in quarantine", "4 patches of features, 4 of raw_data"),
    ],
)
def test_checks_count_images_or_patches(settings: dict[str, Any], quarantine: str, kept: str, tmp_path: Path) -> None:
    checks = checks_of(settings, [build_raw_data, build_features], tmp_path)
    assert checks["quarantine_share"] == quarantine
    assert checks["rows_kept"] == kept


@pytest.mark.parametrize(
    ("settings", "kept"), [(WHOLE, "1 image in the table, 1 of features"), (PATCHES, "1 patch in the table, 1 of")]
)
def test_the_check_of_the_table_counts_images_or_patches(
    settings: dict[str, Any], kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = ("latents_not_collapsed", "calibration_holds")
    collapse, calibration = (
        GateResult(rule=rule, passed=True, figure=1.0, threshold=0.0, message="") for rule in rules
    )
    latents = SimpleNamespace(
        publication=SimpleNamespace(latent_space="a", table_version=1, contract="1.0.0", days=()),
        files=SimpleNamespace(address=lambda *_: "table", full_path=lambda *_: "page"),
        version=SimpleNamespace(version=1, run_id="run"),
        days=[],
        rows=1,
        expected_rows=1,
        flagged=0,
        collapse=collapse,
        calibration=calibration,
        is_collapsed=False,
        bundle=SimpleNamespace(model=SimpleNamespace(latent_dim=2)),
        contract=None,
    )
    monkeypatch.setattr(publish, "publish_latents", lambda *_, **__: latents)
    monkeypatch.setattr("ae_pipeline.latents.data_contract.described", lambda _: {})
    checks = checks_of(settings, [build_latent_features], tmp_path)
    assert (checks["rows_kept"] or "").startswith(kept)
