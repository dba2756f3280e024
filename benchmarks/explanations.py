"""Whether explanations name the right thing: the column of a planted fault, and the place of a planted defect.

Flights: in copies of December's raw rows, which no model has seen, one column each is made faulty. Of the rows that the
bundle flags, counted is how many have a guilty column first, or among the first three, of what `explain` names. Guilty
are the faulty column, what is derived from it, and what it adds up with: a scheduled time and a delay give the actual
time. `latent` is no column, and naming it is a miss; beside it stands the count with `latent` passed over.

Textures: AUROC by pixel of the residual map against the box of a defect planted into brick, over defective patches.
"""

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import roc_auc_score

from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.detector.detector import Contribution
from ae_pipeline.features.build import build_features, feature_columns
from ae_pipeline.training.fit import fit_bundle
from benchmarks import defects, planted_faults
from benchmarks.column_faults import SINGLE, guilty_columns, plant_columns
from benchmarks.frames import fit_images, image_frame
from benchmarks.planted_faults import TOP_SHARE, Prepared
from benchmarks.report import Row, format_table, write_report
from benchmarks.textures import DEFECTS, Pixels, Values

NAMED = 3
ALL = "all"
FLAGGED, TOP = "flagged", "top 1 %"
FORM = "ae_pipeline ConvAE"


class Figure(NamedTuple):
    """One value, as it stands in the JSON.

    Attributes:
        task: `flights` or `textures`.
        kind: Of fault or defect, or `all`.
        seed: Of the planting and of the network.
        metric: What was measured.
        value: A share, a count or an AUROC.
        rows: How many rows or patches it rests on.
    """

    task: str
    kind: str
    seed: int
    metric: str
    value: float
    rows: int


class Answer(NamedTuple):
    """What was said of one planted row.

    Attributes:
        kind: Of its fault.
        named: What made it strange, the strangest first.
    """

    kind: str
    named: Sequence[Contribution]


def rank(named: Sequence[Contribution], guilty: Collection[str], skipped: Collection[str] = ()) -> int | None:
    """Gives the place of the first guilty column among those named, from 1; None where there is none.

    Args:
        named: The strangest first.
        guilty: Columns that are right to blame.
        skipped: What takes no place.
    """
    columns = [part.column for part in named if part.column not in skipped]
    return next((index for index, column in enumerate(columns, 1) if column in guilty), None)


def figures_of(answers: Sequence[Answer], guilty: Mapping[str, Collection[str]], seed: int, line: str) -> list[Figure]:
    """Counts how often a guilty column was named first and among the first `NAMED`, over all kinds and by kind.

    Beside it: how often the faulty column itself was first, and what stood first where no guilty one did.

    Args:
        answers: Of the rows that reached the line.
        guilty: By kind of fault.
        seed: Of the planting.
        line: Which the rows reached.
    """
    found: list[Figure] = []
    for kind in (ALL, *guilty):
        chosen = [answer for answer in answers if kind in {ALL, answer.kind}]
        if not chosen:
            continue
        itself = sum(answer.named[0].column == SINGLE[answer.kind].column for answer in chosen)
        found.append(Figure("flights", kind, seed, f"{line}: itself first", itself / len(chosen), len(chosen)))
        for message, skipped in (("", ()), (", latent skipped", ("latent",))):
            ranks = [rank(answer.named, guilty[answer.kind], skipped) for answer in chosen]
            for metric, least in (("first", 1), (f"top {NAMED}", NAMED)):
                hits = sum(index is not None and index <= least for index in ranks)
                name = f"{line}: {metric}{message}"
                found.append(Figure("flights", kind, seed, name, hits / len(chosen), len(chosen)))
        instead = Counter(a.named[0].column for a in chosen if rank(a.named, guilty[a.kind]) != 1)
        found += [
            Figure("flights", kind, seed, f"{line}: first was {column}", count, len(chosen))
            for column, count in instead.most_common()
        ]
    return found


def measure_flights(prepared: Prepared, seed: int) -> list[Figure]:
    """Fits the shipped configuration and judges it, all with the same seed."""
    training = prepared.config.training.model_copy(update={"seed": seed})
    config = prepared.config.model_copy(update={"training": training})
    bundle, _ = fit_bundle(config, feature_columns(config, prepared.contract), prepared.window, prepared.paths)
    return judge_flights(bundle, prepared, seed)


def judge_flights(bundle: ModelBundle, prepared: Prepared, seed: int) -> list[Figure]:
    """Plants faults into the held-out month and measures what a bundle names for those that it finds."""
    config = bundle.config
    month = bundle.score(build_features(prepared.raw, config, prepared.contract)).score
    planted = plant_columns(prepared.raw, prepared.routes, seed)
    features = build_features(planted.rows, config, prepared.contract)
    scored = bundle.score(features)
    reached = {FLAGGED: scored.is_anomaly, TOP: scored.score >= np.sort(month)[-int(TOP_SHARE * len(month))]}
    either = np.flatnonzero(np.any(list(reached.values()), axis=0)).tolist()
    # One more than counts, so that as many are left where `latent` takes no place.
    explained = bundle.explain(features[either], NAMED + 1)
    answers = {index: Answer(planted.kinds[index], parts) for index, parts in zip(either, explained, strict=True)}
    guilty = {kind: guilty_columns(fault.column, config) for kind, fault in SINGLE.items()}
    found: list[Figure] = []
    for line, has_reached in reached.items():
        for kind in (ALL, *SINGLE):
            of_kind = has_reached[[kind in {ALL, other} for other in planted.kinds]]
            found.append(Figure("flights", kind, seed, f"{line}: share", float(of_kind.mean()), len(of_kind)))
        found += figures_of([answers[index] for index in np.flatnonzero(has_reached).tolist()], guilty, seed, line)
    return found


def boxes(planted: Pixels, clean: Pixels) -> npt.NDArray[np.bool_]:
    """Marks the smallest upright box around what differs of each patch, (n, height, width)."""
    found = np.zeros(planted.shape, dtype=np.bool_)
    for box, differs in zip(found, planted != clean, strict=True):
        rows, columns = np.nonzero(differs)
        if len(rows):
            box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    return found


def figures_of_maps(maps: Mapping[str, tuple[Values, npt.NDArray[np.bool_]]], seed: int) -> Iterator[Figure]:
    """Gives the AUROC by pixel, as the mean over patches and of all their pixels together, over all kinds and by kind.

    Args:
        maps: By kind of defect: residual of each pixel, and whether it lies in the box, both (n, height, width);
            patches without a box do not count.
        seed: Of the planting.
    """
    together = {ALL: tuple(np.concatenate(parts) for parts in zip(*maps.values(), strict=True))}
    for kind, (residuals, marked) in {**together, **maps}.items():
        defective = marked.any((1, 2))
        pixels = [(box.ravel(), residual.ravel()) for box, residual in zip(marked, residuals, strict=True) if box.any()]
        mean = float(np.mean([roc_auc_score(box, residual) for box, residual in pixels]))
        pooled = float(roc_auc_score(marked[defective].ravel(), residuals[defective].ravel()))
        yield Figure("textures", kind, seed, "AUROC by pixel, mean of patches", mean, len(pixels))
        yield Figure("textures", kind, seed, "AUROC by pixel, pooled", pooled, len(pixels))


def measure_textures(seed: int) -> list[Figure]:
    """Fits a network on brick as `benchmarks.defects` does, and holds its residual maps against planted defects."""
    setting = defects.prepare(seed)
    model, training = defects.FORMS[FORM]
    sections = ({**defects.MODEL, **model}, {**defects.TRAIN, **training})
    bundle = fit_images(setting.training, seed, *sections, setting.tiles, defects.ALERTS)
    maps = {}
    for kind in DEFECTS:
        pictures = bundle.pictures(image_frame(setting.strange[kind]))
        if pictures is None:
            raise TypeError("patches are images, and the bundle has no pictures of them")
        maps[kind] = (pictures.residual, boxes(setting.strange[kind], setting.clean))
    return list(figures_of_maps(maps, seed))


def describe(figures: Sequence[Figure]) -> str:
    """Lays out the figures of all seeds together, each weighing as many rows as it rests on."""
    tables = [_tell_flights(figures, line) for line in (FLAGGED, TOP)] if _of(figures, "flights") else []
    tables += [_tell_instead(figures), _tell_textures(figures)]
    return "\n\n".join(table for table in tables if table)


def _tell_flights(figures: Sequence[Figure], line: str) -> str:
    counted = ("first", f"top {NAMED}")
    metrics = ["share", *counted, *(f"{metric}, latent skipped" for metric in counted), "itself first"]
    lines = []
    for kind in (ALL, *SINGLE):
        cells = [_pooled(figures, kind, f"{line}: {metric}") for metric in metrics]
        shares = [f"{value:.1%}" if rows else "" for value, rows in cells]
        column = SINGLE[kind].column if kind in SINGLE else ""
        lines.append([kind, column, str(cells[0][1]), f"{cells[1][1]}", *shares[1:]])
    return format_table([f"guilty column named, {line}", "column", "planted", "rows", *metrics[1:]], lines)


def _tell_instead(figures: Sequence[Figure]) -> str:
    counts: dict[str, Counter[str]] = {}
    start = f"{FLAGGED}: first was "
    for figure in _of(figures, "flights"):
        if figure.metric.startswith(start) and figure.kind != ALL:
            counts.setdefault(figure.kind, Counter())[figure.metric.removeprefix(start)] += int(figure.value)
    if not counts:
        return ""
    lines = [
        [kind, ", ".join(f"{column} {count}" for column, count in counts[kind].most_common())]
        for kind in SINGLE
        if kind in counts
    ]
    return format_table([f"named first instead, {FLAGGED}", "column and rows"], lines)


def _tell_textures(figures: Sequence[Figure]) -> str:
    found = _of(figures, "textures")
    metrics = list(dict.fromkeys(figure.metric for figure in found))
    lines = []
    for kind in dict.fromkeys(figure.kind for figure in found):
        cells = [_pooled(found, kind, metric) for metric in metrics]
        lines.append([kind, str(cells[0][1]), *(f"{value:.3f}" for value, _ in cells)])
    return format_table(["residual map against box", "patches", *metrics], lines) if lines else ""


def _of(figures: Sequence[Figure], task: str) -> list[Figure]:
    return [figure for figure in figures if figure.task == task]


def _pooled(figures: Sequence[Figure], kind: str, metric: str) -> tuple[float, int]:
    """Gives the mean over seeds, weighed by rows, and how many rows there were."""
    chosen = [figure for figure in figures if (figure.kind, figure.metric) == (kind, metric)]
    rows = sum(figure.rows for figure in chosen)
    return sum(figure.value * figure.rows for figure in chosen) / max(rows, 1), rows


def to_rows(figures: Sequence[Figure]) -> list[Row]:
    """Gives a flat row for each figure."""
    return [{**figure._asdict(), "value": round(figure.value, 6)} for figure in figures]


def run(tasks: Sequence[str], root: Path, seeds: Sequence[int], out: Path) -> None:
    """Measures tasks with all seeds, prints the tables and writes the JSON."""
    figures: list[Figure] = []
    started = time.perf_counter()
    prepared = planted_faults.prepare(root) if "flights" in tasks else None
    for seed in seeds:
        figures += measure_flights(prepared, seed) if prepared else []
        figures += measure_textures(seed) if "textures" in tasks else []
        print(f"seed {seed}: done after {time.perf_counter() - started:.0f} s", flush=True)
    print(f"\n{describe(figures)}")
    write_report(out, "explanations", to_rows(figures), ("scikit-learn", "scikit-image"))


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.explanations", description=__doc__)
    parser.add_argument("--seeds", default="0,1,2", help="numbers, parted by commas (default: %(default)s)")
    parser.add_argument("--tasks", default="flights,textures", help="one of these or both (default: %(default)s)")
    parser.add_argument("--data", type=Path, help="data folder to keep and use again (default: a temporary one)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    tasks, seeds = arguments.tasks.split(","), [int(seed) for seed in arguments.seeds.split(",")]
    if unknown := sorted(set(tasks) - {"flights", "textures"}):
        parser.error(f"--tasks names {unknown[0]!r}, which is none of flights, textures")
    torch.set_num_threads(1)  # of networks this small, two threads wait for one another
    if arguments.data:
        run(tasks, arguments.data, seeds, arguments.out)
        return
    with tempfile.TemporaryDirectory() as folder:
        run(tasks, Path(folder), seeds, arguments.out)


if __name__ == "__main__":
    main()
