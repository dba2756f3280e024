"""The variants of the ablation on labelled sets, and what a run resumes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("pyod")

from ae_pipeline.config.model import Contamination
from ae_pipeline.scoring.combination import SETTINGS, fit_combination
from ae_pipeline.scoring.ensemble import MEASURES
from benchmarks import ablation
from benchmarks.detection import fit_detector_on, frame_of
from benchmarks.labelled_sets import FloatArray


def make_rows(count: int, seed: int) -> FloatArray:
    """Return rows of three columns, of which the last is the sum of the others with some noise."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, 3))
    rows[:, 2] += rows[:, 0] + rows[:, 1]
    return rows


@pytest.mark.slow
def test_variants_hold_the_shipped_ensemble_and_one_without_each_part() -> None:
    train, test = make_rows(300, 0), 2.0 * make_rows(100, 1)
    detector = fit_detector_on(train, 3)
    assert detector.ensemble is not None
    scores = dict(ablation.variants(detector, train, test))
    np.testing.assert_allclose(scores[ablation.WHOLE], detector.latents_and_scores(frame_of(test))[1], rtol=1e-6)
    encoded, known = (torch.from_numpy(detector.encoder.encode(frame_of(rows))) for rows in (test, train))
    whole, surprisal = detector.ensemble(encoded).numpy(), detector.ensemble.tails(detector.ensemble.measures(known))
    # Each variant fits the combination again. The shipped one must come out the same.
    shipped = fit_combination(surprisal, SETTINGS[Contamination.UNKNOWN])
    np.testing.assert_allclose(shipped(detector.ensemble.tails(detector.ensemble.measures(encoded))).numpy(), whole)
    for part in (*MEASURES, "novelty", "second tails"):
        assert not np.allclose(scores[f"ensemble without {part}"], whole), part
    each = np.stack([scores[f"{name} alone"] for name in MEASURES], 1)
    np.testing.assert_allclose(scores["ensemble of decision 0008"], each[:, :5] @ [1.0, 1.0, 2.0, 0.5, 0.75])
    # Below 3.5 nats the novelty counts nothing, so that only the weights remain without the second tails.
    calm = (each[:, :2] < 1.0).all(1)
    assert calm.sum() > 5
    weights = [1.0, 1.5, 2.0, 0.25, 0.75, 1.0, 0.5]
    np.testing.assert_allclose(scores["ensemble without second tails"][calm], (each @ weights)[calm])


def test_a_resumed_run_measures_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, measured = np.random.default_rng(0), list[tuple[str, int]]()
    for name in ("a", "b"):
        np.savez(tmp_path / f"{name}.npz", X=rng.normal(size=(40, 2)), y=np.arange(40) % 4 == 0)
    np.savez(tmp_path / "calm.npz", X=rng.normal(size=(40, 2)), y=np.zeros(40, dtype=int))

    def variants(detector: int, _: FloatArray, test: FloatArray) -> list[tuple[str, FloatArray]]:
        return [("as shipped", test[:, 0] * detector)]

    def fit(train: FloatArray, seed: int) -> int:
        measured.append((f"{len(train)}", seed))
        return 1

    monkeypatch.setattr(ablation, "variants", variants)
    monkeypatch.setattr(ablation, "fit_detector_on", fit)
    out = tmp_path / "ablation.json"
    ablation.run(tmp_path, [0], out)
    assert measured == [("15", 0), ("40", 0)] * 2
    first = json.loads(out.read_text())["rows"]
    assert [(row["set"], row["protocol"], row["seed"]) for row in first] == [
        (name, protocol, 0) for name in ("a", "b") for protocol in ("one-class", "contaminated")
    ]
    out.write_text(json.dumps({"rows": first[:-1]}))
    measured.clear()
    ablation.run(tmp_path, [0, 1], out, resume=True)
    assert measured == [("40", 0), *[("15", 1), ("40", 1)] * 2]
    rows = json.loads(out.read_text())["rows"]
    assert rows[:4] == first
    assert len(rows) == 8
