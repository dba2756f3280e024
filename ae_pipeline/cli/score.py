"""`ae-pipeline score`: scores of the rows of a file, which need not have landed."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from ae_pipeline.cli.project import Project
from ae_pipeline.common.errors import ConfigError
from ae_pipeline.common.escape import spreadsheet_text
from ae_pipeline.common.text import align, one_in, pluralize, printable

if TYPE_CHECKING:
    import polars as pl

    from ae_pipeline.detector.bundle import ModelBundle
    from ae_pipeline.detector.raw_rows import RawScores
    from ae_pipeline.registry.versions import TrackedVersion
    from ae_pipeline.storage.dataset import Dataset

_SHOWN = 10
"""Rows with the highest scores, and rejected rows, that are printed."""

_SUFFIXES = (".csv", ".jsonl", ".parquet")


def score(name: str, file: Path, version: int | None, out: Path | None) -> int:
    """Score the rows of a file, print the highest scores, and write all results; return the exit status.

    Args:
        name: Dataset whose model scores.
        file: File with rows as they land.
        version: Version of the model; the one that serves by default.
        out: File for the scores; rejected rows go to a file beside it.

    Raises:
        PipelineError: The file cannot be read, its columns are others than those of the dataset, or there is no model.
    """
    from ae_pipeline.ingestion.landing_folder import landing_folder

    if out is not None and out.suffix.lower() not in _SUFFIXES:
        raise ConfigError(f"--out {out} has no known suffix; choose one of {', '.join(_SUFFIXES)}")
    if out is not None and file.resolve() in {out.resolve(), _rejected_beside(out).resolve()}:
        raise ConfigError(f"--out {out} would overwrite the rows to score; choose another file")
    project = Project.load()
    dataset = project.dataset(name)
    tracked, bundle = _model(project, dataset, version)
    days = (dataset.config.start, dataset.config.end)
    scores = bundle.score_raw(file, landing=landing_folder(dataset), days=days)
    print("\n".join(_lines(scores, dataset, tracked.version)))
    if out is not None:
        for path in _write(scores, out):
            print(f"Written: {path}")
    return 0


def _model(project: Project, dataset: "Dataset", version: int | None) -> "tuple[TrackedVersion, ModelBundle]":
    from ae_pipeline.lifecycle.publish import load_champion
    from ae_pipeline.registry.bundles import load_bundle

    if version is None:
        return load_champion(dataset.name, project.tracker)
    known = {each.version: each for each in project.tracker.versions(dataset.name)}
    if version not in known:
        numbers = ", ".join(map(str, sorted(known))) or "none"
        raise ConfigError(f"{dataset.name!r} has no version {version}; choose one of {numbers}")
    return known[version], load_bundle(project.tracker, known[version])


def _lines(scores: "RawScores", dataset: "Dataset", version: int) -> list[str]:
    """Return the highest-scoring rows with their reasons, rejected rows, and a summary."""
    from ae_pipeline.ingestion.names import column_names
    from ae_pipeline.reports.reasons import reason_of, reworded

    lines, names = [], column_names(dataset)
    if scores.scored.height:
        top = scores.scored.sort("score", descending=True).head(_SHOWN)
        cells = [
            (
                f"{row['row_number']:,}",
                printable(row["row_id"], is_line=True),
                f"{row['score']:,.2f}",
                f"{row['p_value']:.2g} ({one_in(row['p_value'])})",
                printable(reason_of(reworded(row, names), is_marked=row["is_anomaly"]), is_line=True),
            )
            for row in top.iter_rows(named=True)
        ]
        lines += align([("row", "row_id", "score", "p_value", "reason"), *cells], right={"row", "score", "p_value"})
    rejected = scores.rejected.head(_SHOWN).iter_rows(named=True)
    lines += [f"row {row['row_number']:,} rejected: {printable(row['reason'], is_line=True)}" for row in rejected]
    if (more := scores.rejected.height - _SHOWN) > 0:
        lines.append(f"and {more:,} more rejected {names.rows}")
    flagged = int(scores.scored["is_anomaly"].sum())
    summary = f"{pluralize(scores.rows, names.row)}: {scores.scored.height:,} scored under version {version} of "
    return [*lines, f"{summary}{dataset.name!r}, {flagged:,} flagged; {scores.rejected.height:,} rejected"]


def _rejected_beside(out: Path) -> Path:
    return out.with_name(f"{out.stem}.rejected{out.suffix}")


def _write(scores: "RawScores", out: Path) -> list[Path]:
    """Write scores, and rejected rows if there are any, and return the paths."""
    rejected = _rejected_beside(out)
    rejected.unlink(missing_ok=True)  # of an earlier call
    _write_table(scores.scored, out)
    if not scores.rejected.height:
        return [out]
    _write_table(scores.rejected, rejected)
    return [out, rejected]


def _write_table(table: "pl.DataFrame", path: Path) -> None:
    import polars as pl

    from ae_pipeline.storage.files import atomic_write

    with atomic_write(path) as temporary:
        match path.suffix.lower():
            case ".parquet":
                table.write_parquet(temporary)
            case ".jsonl":
                table.write_ndjson(temporary)
            case _:
                nested = [name for name, dtype in table.schema.items() if dtype.is_nested()]
                as_json = (pl.Series(name, [_json(value) for value in table[name]], dtype=pl.String) for name in nested)
                cells = table.with_columns(*as_json)
                safe = pl.col(pl.String).map_elements(spreadsheet_text, return_dtype=pl.String)
                cells.with_columns(safe).write_csv(temporary)


def _json(values: "pl.Series") -> str:
    return json.dumps(values.to_list(), ensure_ascii=False)
