"""Measure the effect of each part of the score: `benchmarks.detection` without a part, or with one part alone.

All variants of a set, protocol and seed share one fit, because the parts are fitted independently.
"""

import argparse
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from ae_pipeline.config.service import Evidence
from ae_pipeline.detector.detector import Detector
from ae_pipeline.scoring.combination import SETTINGS, fit_combination
from ae_pipeline.scoring.ensemble import MEASURES
from benchmarks.detection import fit_detector_on, frame_of
from benchmarks.labelled_sets import PROTOCOLS, FloatArray, cap_rows, find_sets, make_task, read_set
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
    ensemble, encode = detector.ensemble, detector.encoder.encode
    known, each = (
        ensemble.tails(ensemble.measures(torch.from_numpy(encode(frame_of(rows))))) for rows in (train, test)
    )
    setting = SETTINGS[detector.config.training.contamination]
    for index, name in enumerate(MEASURES):
        weights = tuple(weight * (index != other) for other, weight in enumerate(setting.weights))
        yield f"ensemble without {name}", fit_combination(known, replace(setting, weights=weights))(each).numpy()
    yield "ensemble without novelty", fit_combination(known, replace(setting, novelty_factor=0.0))(each).numpy()
    for index, name in enumerate(MEASURES):
        yield f"{name} alone", each[:, index].numpy()
    alike = tuple(float(weight > 0) for weight in setting.weights)
    yield "ensemble, weights alike", fit_combination(known, replace(setting, weights=alike))(each).numpy()
    yield "ensemble, highest of the measures", each.amax(1).numpy()


def run(folder: Path, seeds: Sequence[int], out: Path) -> None:
    """Measure all variants on all sets of a folder, print the table and write the JSON."""
    rows: list[Row] = []
    for path in find_sets(folder):
        for seed in seeds:
            table = cap_rows(read_set(path), seed)
            if not table.is_anomaly.any():
                continue
            for protocol in PROTOCOLS:
                task = make_task(table, protocol, seed)
                for method, score in variants(fit_detector_on(task.train, seed), task.train, task.test):
                    figures = {
                        "auroc": round(float(roc_auc_score(task.truth, score)), 6),
                        "ap": round(float(average_precision_score(task.truth, score)), 6),
                    }
                    rows.append({"set": path.stem, "protocol": protocol, "method": method, "seed": seed, **figures})
        write_report(out, "ablation", rows, ("scikit-learn",))
        print(f"{path.stem} done", flush=True)
    print(f"\n{describe(rows)}")


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
    arguments = parser.parse_args()
    if not find_sets(arguments.data):
        parser.error(f"{arguments.data} contains no .npz file; name a folder of sets")
    torch.set_num_threads(1)
    run(arguments.data, [int(seed) for seed in arguments.seeds.split(",")], arguments.out)


if __name__ == "__main__":
    main()
