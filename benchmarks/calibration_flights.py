"""Alert budgets on flights in random order: rows with categories, which the sets of `benchmarks.calibration` lack.

Each seed draws 10,000 random flights of the year. Half of them train the model, a quarter of that half as validation
rows. A quarter calibrates it, with their combinations of categories counted as in a training. The last quarter is the
test. Rows in random order are exchangeable, so the law of `benchmarks.calibration` applies to the flagged rows.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import torch

from ae_pipeline.features.build import feature_columns
from ae_pipeline.training.fit import fit_detector
from ae_pipeline.training.tails import counting, leaving_one_out
from benchmarks.calibration import Case, describe, evaluate
from benchmarks.command_line import data_folder, parser_with_data
from benchmarks.labelled_sets import MOST_ROWS
from benchmarks.planted_faults import HELD_OUT_FROM, Prepared, prepare
from benchmarks.report import write_report

NAME = "flights, random order"


def try_seed(prepared: Prepared, rows: pl.DataFrame, seed: int) -> list[Case]:
    """Fit a detector on random flights and evaluate all budgets.

    Args:
        prepared: Flights as prepared by the stages of the pipeline.
        rows: Features of all days.
        seed: Seed of the sample, its order and the network.
    """
    chosen = rows.sample(MOST_ROWS, seed=seed, shuffle=True)
    quarter = MOST_ROWS // 4
    parts = [2 * quarter - quarter // 2, quarter // 2, quarter, quarter]
    starts = [sum(parts[:index]) for index in range(len(parts))]
    train, validation, held_out, test = (chosen.slice(*part) for part in zip(starts, parts, strict=True))
    training = prepared.config.training.model_copy(update={"seed": seed, "device": "cpu"})
    config = prepared.config.model_copy(update={"training": training})
    fitted, _ = fit_detector(config, feature_columns(config, prepared.contract), train, validation)
    if fitted.cooccurrence is None:
        raise ValueError("the model counts no combinations of categories; leave `alerts.evidence` at its default")
    counted = counting(fitted, [held_out])
    scores = leaving_one_out(counted).latents_and_scores(held_out)[1]
    return list(evaluate(NAME, seed, scores, counted.latents_and_scores(test)[1]))


def run(root: Path, seeds: Sequence[int], out: Path) -> None:
    """Evaluate all seeds, print the tables and write the JSON, again after each seed."""
    prepared = prepare(root)
    folder = prepared.paths.features(HELD_OUT_FROM).parent
    rows = pl.concat([pl.read_parquet(path) for path in sorted(folder.glob("*.parquet"))], how="diagonal")
    cases: list[Case] = []
    for seed in seeds:
        started = time.perf_counter()
        cases += try_seed(prepared, rows, seed)
        write_report(out, "calibration_flights", [case.row() for case in cases], ("scipy",))
        print(f"seed {seed}, {time.perf_counter() - started:.0f} s", flush=True)
    print(f"\n{describe(cases)}")


def main() -> None:
    """Run the benchmark from the command line."""
    arguments = parser_with_data("calibration_flights", __doc__, "0..39").parse_args()
    torch.set_num_threads(1)  # two threads are slower for networks of this size
    with data_folder(arguments.data) as folder:
        run(folder, arguments.seeds, arguments.out)


if __name__ == "__main__":
    main()
