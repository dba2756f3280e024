"""Explanations: whether they name the column of a planted fault, and show the position of a planted defect.

Flights: one column is made faulty in each copy of a raw row of December, which no model has seen. Among the rows that
the bundle flags, the benchmark counts how often `explain` names a guilty column first or among the first three. Guilty
columns are the faulty column, columns derived from it, and columns that determine each other: a scheduled time and a
delay determine the actual time. `latent` is not a column, so naming it is a miss. A second count ignores `latent`. A
third one accepts a combination of categories with the faulty column among the first two reasons.

Textures: AUROC by pixel of the residual map against the bounding box of a defect planted into brick, over defective
patches.
"""

import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import roc_auc_score

from ae_pipeline.config.service import Evidence
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.detector.explanation import Contribution
from ae_pipeline.features.build import build_features, feature_columns
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.training.fit import fit_bundle
from benchmarks import defects, planted_faults
from benchmarks.column_faults import SINGLE, guilty_columns, plant_columns
from benchmarks.command_line import data_folder, parser_with_data
from benchmarks.frames import fit_images, image_frame
from benchmarks.planted_faults import TOP_SHARE, Prepared
from benchmarks.report import Row, format_table, write_report
from benchmarks.textures import DEFECTS, Pixels, Values

NAMED = 3
ALL = "all"
COMBINED = "first, or in the combination"
FLAGGED, TOP = "flagged", "top 1 %"
FORM = "ae_pipeline ConvAE"


class Figure(NamedTuple):
    """One value of the JSON.

    Attributes:
        task: `flights` or `textures`.
        kind: Kind of fault or defect, or `all`.
        seed: Seed of the planting and of the network.
        metric: Name of the metric.
        value: Share, count or AUROC.
        rows: Number of rows or patches behind the value.
    """

    task: str
    kind: str
    seed: int
    metric: str
    value: float
    rows: int


class Answer(NamedTuple):
    """Explanation of one planted row.

    Attributes:
        kind: Kind of its fault.
        named: Contributions to its score, the largest first.
    """

    kind: str
    named: Sequence[Contribution]


def rank(named: Sequence[Contribution], guilty: Collection[str], skipped: Collection[str] = ()) -> int | None:
    """Return the rank of the first guilty column, from 1, or None.

    Args:
        named: Contributions, the largest first.
        guilty: Columns that may be blamed.
        skipped: Names that do not count as a rank.
    """
    columns = [part.column for part in named if part.column not in skipped]
    return next((position for position, column in enumerate(columns, 1) if column in guilty), None)


def is_in_combination(named: Sequence[Contribution], column: str) -> bool:
    """Return whether one of the first two contributions is a combination of categories that has the column."""
    texts = [part.actual for part in named[:2] if part.column == Evidence.CATEGORIES]
    return any(part.startswith(f"{column} ") for text in texts for part in text.split(" × "))


def figures_of(answers: Sequence[Answer], guilty: Mapping[str, Collection[str]], seed: int, line: str) -> list[Figure]:
    """Count how often a guilty column is named first and among the first `NAMED`, over all kinds and by kind.

    Also count how often the faulty column itself is first, how often a combination with it is among the first two, and
    which other names are first.

    Args:
        answers: Explanations of the rows that reached the threshold.
        guilty: Guilty columns by kind of fault.
        seed: Seed of the planting.
        line: Name of the threshold that the rows reached.
    """
    figures: list[Figure] = []
    for kind in (ALL, *guilty):
        chosen = [answer for answer in answers if kind in {ALL, answer.kind}]
        if not chosen:
            continue
        itself = sum(answer.named[0].column == SINGLE[answer.kind].column for answer in chosen)
        figures.append(Figure("flights", kind, seed, f"{line}: itself first", itself / len(chosen), len(chosen)))
        either = sum(
            rank(answer.named, guilty[answer.kind]) == 1 or is_in_combination(answer.named, SINGLE[answer.kind].column)
            for answer in chosen
        )
        figures.append(Figure("flights", kind, seed, f"{line}: {COMBINED}", either / len(chosen), len(chosen)))
        for suffix, skipped in (("", ()), (", latent skipped", ("latent",))):
            ranks = [rank(answer.named, guilty[answer.kind], skipped) for answer in chosen]
            for metric, least in (("first", 1), (f"top {NAMED}", NAMED)):
                hits = sum(position is not None and position <= least for position in ranks)
                name = f"{line}: {metric}{suffix}"
                figures.append(Figure("flights", kind, seed, name, hits / len(chosen), len(chosen)))
        instead = Counter(a.named[0].column for a in chosen if rank(a.named, guilty[a.kind]) != 1)
        figures += [
            Figure("flights", kind, seed, f"{line}: first was {column}", count, len(chosen))
            for column, count in instead.most_common()
        ]
    return figures


def measure_flights(prepared: Prepared, seed: int) -> list[Figure]:
    """Fit the shipped configuration and evaluate it, with one seed for both."""
    training = prepared.config.training.model_copy(update={"seed": seed})
    config = prepared.config.model_copy(update={"training": training})
    bundle, _ = fit_bundle(Dataset(config, prepared.paths), feature_columns(config, prepared.contract), prepared.window)
    return evaluate_flights(bundle, prepared, seed)


def evaluate_flights(bundle: ModelBundle, prepared: Prepared, seed: int) -> list[Figure]:
    """Plant faults into the held-out month and measure the explanations of those that a bundle detects."""
    config = bundle.config
    month = bundle.score(build_features(prepared.raw, config, prepared.contract)).score
    planted = plant_columns(prepared.raw, prepared.routes, seed)
    features = build_features(planted.rows, config, prepared.contract)
    scored = bundle.score(features)
    reached = {FLAGGED: scored.is_anomaly, TOP: scored.score >= np.sort(month)[-int(TOP_SHARE * len(month))]}
    either = np.flatnonzero(np.any(list(reached.values()), axis=0)).tolist()
    # One name more than counted, so that NAMED names remain without `latent`.
    named = bundle.explain(features[either], NAMED + 1)
    answers = {row: Answer(planted.kinds[row], parts) for row, parts in zip(either, named, strict=True)}
    guilty = {kind: guilty_columns(fault.column, config) for kind, fault in SINGLE.items()}
    figures: list[Figure] = []
    for line, has_reached in reached.items():
        for kind in (ALL, *SINGLE):
            of_kind = has_reached[[kind in {ALL, other} for other in planted.kinds]]
            figures.append(Figure("flights", kind, seed, f"{line}: share", float(of_kind.mean()), len(of_kind)))
        figures += figures_of([answers[row] for row in np.flatnonzero(has_reached).tolist()], guilty, seed, line)
    return figures


def boxes(planted: Pixels, clean: Pixels) -> npt.NDArray[np.bool_]:
    """Return masks of the smallest axis-aligned box around the changed pixels of each patch, (n, height, width)."""
    marked = np.zeros(planted.shape, dtype=np.bool_)
    for box, differs in zip(marked, planted != clean, strict=True):
        rows, columns = np.nonzero(differs)
        if len(rows):
            box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    return marked


def figures_of_maps(maps: Mapping[str, tuple[Values, npt.NDArray[np.bool_]]], seed: int) -> Iterator[Figure]:
    """Yield the AUROC by pixel over all kinds and by kind: the mean over patches, and over all pixels together.

    Args:
        maps: Residuals of the pixels and masks of the boxes, both (n, height, width), by kind of defect. Patches
            without a box do not count.
        seed: Seed of the planting.
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
    """Fit a network on brick like `benchmarks.defects`, and compare its residual maps with planted defects."""
    setting = defects.prepare(seed)
    model, training = defects.FORMS[FORM]
    sections = ({**defects.MODEL, **model}, {**defects.TRAIN, **training})
    bundle = fit_images(setting.training, seed, *sections, setting.tiles, defects.ALERTS)
    maps = {}
    for kind in DEFECTS:
        pictures = bundle.pictures(image_frame(setting.anomalous[kind]))
        if pictures is None:
            raise TypeError("the bundle returned no pictures for image patches; fit it on an image column")
        maps[kind] = (pictures.residual, boxes(setting.anomalous[kind], setting.clean))
    return list(figures_of_maps(maps, seed))


def describe(figures: Sequence[Figure]) -> str:
    """Return tables of the figures over all seeds, weighted by their number of rows."""
    tables = [_flights_table(figures, line) for line in (FLAGGED, TOP)] if _of(figures, "flights") else []
    tables += [_misses_table(figures), _textures_table(figures)]
    return "\n\n".join(table for table in tables if table)


def _flights_table(figures: Sequence[Figure], line: str) -> str:
    counted = ("first", f"top {NAMED}")
    metrics = ["share", *counted, *(f"{metric}, latent skipped" for metric in counted), "itself first", COMBINED]
    lines = []
    for kind in (ALL, *SINGLE):
        cells = [_pooled(figures, kind, f"{line}: {metric}") for metric in metrics]
        shares = [f"{value:.1%}" if rows else "" for value, rows in cells]
        column = SINGLE[kind].column if kind in SINGLE else ""
        lines.append([kind, column, str(cells[0][1]), f"{cells[1][1]}", *shares[1:]])
    return format_table([f"guilty column named, {line}", "column", "planted", "rows", *metrics[1:]], lines)


def _misses_table(figures: Sequence[Figure]) -> str:
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


def _textures_table(figures: Sequence[Figure]) -> str:
    textures = _of(figures, "textures")
    metrics = list(dict.fromkeys(figure.metric for figure in textures))
    lines = []
    for kind in dict.fromkeys(figure.kind for figure in textures):
        cells = [_pooled(textures, kind, metric) for metric in metrics]
        lines.append([kind, str(cells[0][1]), *(f"{value:.3f}" for value, _ in cells)])
    return format_table(["residual map compared with box", "patches", *metrics], lines) if lines else ""


def _of(figures: Sequence[Figure], task: str) -> list[Figure]:
    return [figure for figure in figures if figure.task == task]


def _pooled(figures: Sequence[Figure], kind: str, metric: str) -> tuple[float, int]:
    """Return the mean over seeds, weighted by rows, and the number of rows."""
    chosen = [figure for figure in figures if (figure.kind, figure.metric) == (kind, metric)]
    rows = sum(figure.rows for figure in chosen)
    return sum(figure.value * figure.rows for figure in chosen) / max(rows, 1), rows


def to_rows(figures: Sequence[Figure]) -> list[Row]:
    """Return a flat row for each figure."""
    return [{**figure._asdict(), "value": round(figure.value, 6)} for figure in figures]


def run(tasks: Sequence[str], root: Path, seeds: Sequence[int], out: Path) -> None:
    """Measure tasks with all seeds, print the tables and write the JSON."""
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
    """Run the benchmark from the command line."""
    parser = parser_with_data("explanations", __doc__, "0,1,2")
    parser.add_argument("--tasks", default="flights,textures", help="comma-separated tasks (default: %(default)s)")
    arguments = parser.parse_args()
    tasks = arguments.tasks.split(",")
    if unknown := sorted(set(tasks) - {"flights", "textures"}):
        parser.error(f"--tasks contains {unknown[0]!r}; choose from flights, textures")
    torch.set_num_threads(1)  # two threads are slower for networks of this size
    with data_folder(arguments.data) as folder:
        run(tasks, folder, arguments.seeds, arguments.out)


if __name__ == "__main__":
    main()
