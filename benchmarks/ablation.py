"""Measure the effect of each part of the score: `benchmarks.detection` without a part, or with one part alone.

All variants of a set, protocol and seed share one fit, because the parts are fitted independently.
"""

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from ae_pipeline.config.service import Evidence
from ae_pipeline.detector.detector import Detector
from ae_pipeline.scoring.combination import SETTINGS, Combination, fit_combination
from ae_pipeline.scoring.ensemble import MEASURES
from ae_pipeline.scoring.tails import fit_tails
from benchmarks.detection import fit_detector_on, frame_of
from benchmarks.labelled_sets import PROTOCOLS, FloatArray, Table, cap_rows, find_sets, make_task, read_set
from benchmarks.report import Row, format_table, write_report

WHOLE = "as shipped"


def variants(detector: Detector, train: FloatArray, test: FloatArray) -> Iterator[tuple[str, FloatArray]]:
    """Yield each variant of the score with its scores of the test rows; both arrays have shape (n, columns)."""
    surprisal = detector.surprisal_of(detector.latents_and_losses(frame_of(test))[1])
    yield WHOLE, detector.combine(surprisal)
    present = {
        Evidence.COLUMNS,
        Evidence.LATENT,
        Evidence.ROW,
        *([Evidence.ENSEMBLE] if detector.ensemble is not None else []),
        *([Evidence.CATEGORIES] if detector.cooccurrence is not None else []),
    }
    for part in (each for each in Evidence if each in present):
        alerts = detector.config.alerts.model_copy(update={"evidence": (part,)})
        config = detector.config.model_copy(update={"alerts": alerts})
        yield f"evidence {part.value} alone", replace(detector, config=config).combine(surprisal)
    if detector.ensemble is None:
        return
    yield from ensemble_variants(detector, train, test)


def ensemble_variants(detector: Detector, train: FloatArray, test: FloatArray) -> Iterator[tuple[str, FloatArray]]:
    """Yield each variant of the ensemble with its scores of the test rows.

    Args:
        detector: Detector with an ensemble.
        train: Rows that the detector was fitted on, (n, columns).
        test: Rows to score, (m, columns).
    """
    ensemble = detector.ensemble
    assert ensemble is not None
    known, each = (
        ensemble.tails(ensemble.measures(torch.from_numpy(detector.encoder.encode(frame_of(rows)))))
        for rows in (train, test)
    )
    setting = SETTINGS[detector.config.training.contamination]

    def of(weights: Sequence[float], factor: float = setting.novelty_factor) -> FloatArray:
        changed = replace(setting, weights=tuple(weights), novelty_factor=factor)
        scores: FloatArray = fit_combination(known, changed)(each).numpy()
        return scores

    for index, name in enumerate(MEASURES):
        yield f"ensemble without {name}", of([weight * (index != at) for at, weight in enumerate(setting.weights)])
    yield "ensemble without novelty", of(setting.weights, 0.0)
    yield "ensemble without second tails", _on_first_tails(known, each, fit_combination(known, setting))
    yield "ensemble of decision 0008", Combination.of_format_8()(each[:, :5]).numpy()
    for index, name in enumerate(MEASURES):
        yield f"{name} alone", each[:, index].numpy()
    yield "ensemble, weights alike", of([float(weight > 0) for weight in setting.weights])
    yield "ensemble, highest of the measures", each.amax(1).numpy()


def _on_first_tails(known: Tensor, each: Tensor, combination: Combination) -> FloatArray:
    """Return the score of `combination` with the surprisals as they are, without tails of the rows that look normal."""
    weights = torch.from_numpy(combination.weights)
    start, factor = combination.novelty
    tails = fit_tails((known @ weights[1:].T).numpy())
    novelty = tails(each @ weights[1:].T)[:, 0]
    scores: FloatArray = (each @ weights[0] + factor * (novelty - start).clamp(min=0.0)).numpy()
    return scores


def run(folder: Path, seeds: Sequence[int], out: Path, resume: bool = False) -> None:
    """Measure all variants on all sets of a folder, print the table and write the JSON after each fit.

    Args:
        folder: Folder with the files of the sets.
        seeds: Seeds to measure with.
        out: JSON file to write.
        resume: Keep the results in `out`, and measure only what they lack.
    """
    rows: list[Row] = json.loads(out.read_text(encoding="utf-8"))["rows"] if resume and out.exists() else []
    known = {(row["set"], row["protocol"], row["seed"]) for row in rows}
    for seed in seeds:
        for path in find_sets(folder):
            missing = [protocol for protocol in PROTOCOLS if (path.stem, protocol, seed) not in known]
            table = cap_rows(read_set(path), seed)
            if not missing or not table.is_anomaly.any() or table.is_anomaly.all():
                continue
            for protocol in missing:
                rows += evaluate(table, protocol, seed)
            write_report(out, "ablation", rows, ("scikit-learn",))
            print(f"{path.stem}, seed {seed} done", flush=True)
    print(f"\n{describe(rows)}")


def evaluate(table: Table, protocol: str, seed: int) -> list[Row]:
    """Return the figures of each variant on a capped set under a protocol."""
    task = make_task(table, protocol, seed)
    rows: list[Row] = []
    for method, score in variants(fit_detector_on(task.train, seed), task.train, task.test):
        auroc, ap = roc_auc_score(task.truth, score), average_precision_score(task.truth, score)
        figures = {"auroc": round(float(auroc), 6), "ap": round(float(ap), 6)}
        rows.append({"set": table.name, "protocol": protocol, "method": method, "seed": seed, **figures})
    return rows


def describe(rows: Sequence[Row]) -> str:
    """Return a table of the means over sets and seeds of each variant."""
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = []
        for protocol in PROTOCOLS:
            matches = [row for row in rows if row["method"] == method and row["protocol"] == protocol]
            cells += [f"{statistics.mean(float(row[figure]) for row in matches):.4f}" for figure in ("auroc", "ap")]
        lines.append([str(method), *cells])
    return format_table(["score", *(f"{p} {f}" for p in PROTOCOLS for f in ("AUROC", "AP"))], lines)


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__)
    parser.add_argument("data", type=Path, metavar="DATA_DIR", help="folder of .npz files")
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated numbers (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--resume", action="store_true", help="keep the results in --out, and measure what is missing")
    arguments = parser.parse_args()
    if not find_sets(arguments.data):
        parser.error(f"{arguments.data} contains no .npz file; name a folder of sets")
    torch.set_num_threads(1)
    run(arguments.data, [int(seed) for seed in arguments.seeds.split(",")], arguments.out, arguments.resume)


if __name__ == "__main__":
    main()
