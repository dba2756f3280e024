"""A bundle of format 6, written by version 0.1: it loads with a warning and scores as before."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.detector.legacy_bundle import upgrade_tensors

FOLDER = Path(__file__).parents[2] / "data" / "bundle_format_6"
"""A bundle of format 6, rows that it scored, and the results of version 0.1."""


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    """Results of version 0.1 for the rows."""
    results: dict[str, Any] = json.loads((FOLDER / "expected.json").read_text())
    return results


@pytest.fixture(scope="module")
def bundle() -> ModelBundle:
    """The bundle, loaded by the present version."""
    with pytest.warns(DeprecationWarning, match="has format 6, whose reader will be removed in version 0.3") as caught:
        bundle = ModelBundle.load(FOLDER)
    assert len(caught) == 1  # its old keys are nobody's YAML
    return bundle


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    """Twenty rows, four of them changed."""
    return pl.read_parquet(FOLDER / "rows.parquet")


def test_it_keeps_its_fingerprint(bundle: ModelBundle, expected: dict[str, Any]) -> None:
    assert bundle.fingerprint == expected["fingerprint"]


def test_it_gives_the_scores_of_version_0_1(bundle: ModelBundle, rows: pl.DataFrame, expected: dict[str, Any]) -> None:
    scored = bundle.score(rows)
    assert len(scored.score) == 20
    np.testing.assert_allclose(scored.score, expected["score"], rtol=1e-9)
    np.testing.assert_array_equal(scored.p_value, expected["p_value"])
    np.testing.assert_allclose(scored.latents, expected["latents"], rtol=1e-5, atol=1e-6)


def test_it_gives_the_explanations_of_version_0_1(
    bundle: ModelBundle, rows: pl.DataFrame, expected: dict[str, Any]
) -> None:
    explanations = bundle.explain(rows.head(3))
    assert [[part.column for part in parts] for parts in explanations] == [
        [column for column, _ in parts] for parts in expected["explanations"]
    ]
    surprisal = [part.surprisal for parts in explanations for part in parts]
    np.testing.assert_allclose(surprisal, [nats for parts in expected["explanations"] for _, nats in parts], rtol=1e-9)


def test_its_facts_and_reference_are_read(bundle: ModelBundle) -> None:
    assert bundle.facts.rows == {"train": 120, "validation": 40, "calibration": 120}
    assert [epoch.number for epoch in bundle.facts.epochs] == [1, 2, 3, 4, 5, 6]
    assert {"load", "mode", "z_000", "score"} <= {distribution.name for distribution in bundle.reference}


def test_saved_again_it_has_format_12_and_the_same_scores(
    bundle: ModelBundle, rows: pl.DataFrame, tmp_path: Path
) -> None:
    bundle.save(tmp_path)
    manifest = json.loads((tmp_path / "bundle.json").read_text())
    assert manifest["format"] == 12
    assert ModelBundle.load(tmp_path).score(rows).score.tobytes() == bundle.score(rows).score.tobytes()
    # Format 9 had the same tensors. Format 8 had no `training.contamination` either.
    del manifest["digests"]
    (tmp_path / "bundle.json").write_text(json.dumps(manifest | {"format": 10}))
    assert ModelBundle.load(tmp_path).score(rows).score.tobytes() == bundle.score(rows).score.tobytes()
    del manifest["config"]["training"]["contamination"]
    (tmp_path / "bundle.json").write_text(json.dumps(manifest | {"format": 8}))
    assert ModelBundle.load(tmp_path).score(rows).score.tobytes() == bundle.score(rows).score.tobytes()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("typical", "mean_input"),
        ("density.mean", "mahalanobis.mean"),
        ("model.axes.matrix", "model.latent_transform.matrix"),
        ("ensemble.members.weight_0", "ensemble.denoising_ensemble.weight_0"),
        ("ensemble.views.spread", "ensemble.scalings.std"),
        ("ensemble.views.bent", "ensemble.scalings.asinh_mask"),
        ("ensemble.views.knots", "ensemble.scalings.quantiles"),
        ("tails.knots", "tails.quantiles"),
        ("ensemble.tails.knots", "ensemble.tails.quantiles"),
        ("model.encoder.0.weight", "model.encoder.0.weight"),
    ],
)
def test_tensors_get_their_new_names(old: str, new: str) -> None:
    assert list(upgrade_tensors({old: torch.zeros(1)})) == [new]
