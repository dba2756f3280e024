"""Measure the effect of each kind of evidence on planted faults of flights: `benchmarks.planted_faults` without it.

One fit of a seed has all kinds of evidence. Each variant scores the held-out month with some of them, at the tails and
counts of that fit. The numbers of the sets of `benchmarks.ablation` have no categories, so that only flights can tell
what combinations of categories add.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ae_pipeline.config.service import Evidence
from ae_pipeline.features.build import build_features, feature_columns
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.training.fit import fit_bundle
from benchmarks.command_line import data_folder, parser_with_data
from benchmarks.faults import FAULTS, plant
from benchmarks.planted_faults import PER_KIND, Prepared, count_hits, prepare
from benchmarks.report import Row, format_table, write_report

ALL = "all"


def variants(shipped: Sequence[Evidence]) -> Mapping[str, tuple[Evidence, ...]]:
    """Return the kinds of evidence of each variant, by its name: as shipped, without each kind, and each kind alone."""
    others = [each for each in Evidence if each not in shipped]
    return {
        "as shipped": tuple(shipped),
        **{f"without {left.value}": tuple(each for each in shipped if each != left) for left in shipped},
        **{f"with {added.value}": (*shipped, added) for added in others},
        **{f"{alone.value} alone": (alone,) for alone in Evidence},
    }


def run_seed(prepared: Prepared, seed: int) -> list[Row]:
    """Fit one model with all kinds of evidence, and count the planted rows that each variant finds."""
    shipped = prepared.config.alerts.evidence
    training = prepared.config.training.model_copy(update={"seed": seed})
    alerts = prepared.config.alerts.model_copy(update={"evidence": tuple(Evidence)})
    config = prepared.config.model_copy(update={"training": training, "alerts": alerts})
    raw, kinds = plant(prepared.raw, prepared.routes, seed, PER_KIND)
    bundle, _ = fit_bundle(Dataset(config, prepared.paths), feature_columns(config, prepared.contract), prepared.window)
    detector = bundle.detector
    surprisal = detector.surprisal_of(detector.latents_and_losses(build_features(raw, config, prepared.contract))[1])
    rows: list[Row] = []
    for variant, evidence in variants(shipped).items():
        used = config.model_copy(update={"alerts": alerts.model_copy(update={"evidence": evidence})})
        hits = count_hits(replace(detector, config=used).combine(surprisal), kinds)
        by_kind = {ALL: sum(hits.values()) / len(hits), **hits}
        rows += [
            {"variant": variant, "seed": seed, "kind": kind, "recall_top_1pct": round(hit_count / PER_KIND, 6)}
            for kind, hit_count in by_kind.items()
        ]
    return rows


def describe(rows: Sequence[Row]) -> str:
    """Return a table of the mean recall over seeds of each variant: of all kinds, and of each kind."""
    kinds = [ALL, *FAULTS]
    recalls: dict[tuple[object, object], list[float]] = {}
    for row in rows:
        recalls.setdefault((row["variant"], row["kind"]), []).append(float(row["recall_top_1pct"]))
    lines = [
        [str(variant), *(f"{statistics.mean(recalls[variant, kind]):.0%}" for kind in kinds)]
        for variant in dict.fromkeys(row["variant"] for row in rows)
    ]
    return format_table(["recall in the top 1 %", *kinds], lines)


def run(root: Path, seeds: Sequence[int], out: Path) -> None:
    """Run all seeds on a data folder, print the table and write the JSON, again after each seed."""
    prepared = prepare(root)
    rows: list[Row] = []
    for seed in seeds:
        rows += run_seed(prepared, seed)
        write_report(out, "ablation_flights", rows, ("scikit-learn",))
        print(f"seed {seed} done", flush=True)
    print(f"\n{describe(rows)}")


def main() -> None:
    """Run the benchmark from the command line."""
    arguments = parser_with_data("ablation_flights", __doc__, "0,1,2").parse_args()
    torch.set_num_threads(1)  # two threads are slower for networks of this size
    with data_folder(arguments.data) as folder:
        run(folder, arguments.seeds, arguments.out)


if __name__ == "__main__":
    main()
