"""The anomaly report: ranked rows of each day with explanations, and one page and one JSON file over all days."""

import datetime as dt
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import polars as pl

from ae_pipeline.bundle import Contribution, ModelBundle
from ae_pipeline.config import PipelineConfig
from ae_pipeline.errors import PublicationError
from ae_pipeline.latents.read import files_by_day, published_day
from ae_pipeline.storage import DatasetPaths, hash_json, read_facts, write_parquet, write_text

REPORT_VERSION = "1"
"""Raised when the same scores would give another report."""

SUMMARY_FORMAT = 1
"""Of summary.json; raised when a reader of before would stumble."""

_ALWAYS_SHOWN = 10
"""Rows of each day that are ranked at least, so that the ten strangest of all days are among them."""

_SCHEMA = {
    "row_id": pl.String(),
    "event_time": pl.Datetime("us", "UTC"),
    "score": pl.Float64(),
    "p_value": pl.Float64(),
    "is_anomaly": pl.Boolean(),
    "model_version": pl.Int64(),
    "because": pl.String(),
    "contributions": pl.List(
        pl.Struct({"column": pl.String(), "surprise": pl.Float64(), "actual": pl.String(), "expected": pl.String()})
    ),
}

_RANKED = ("row_id", "event_time", "score", "p_value", "is_anomaly", "model_version")
"""What a ranked row bears of the published one."""

Progress = Callable[[int, int, str], None]
"""Told (done, total, what) while a report is made."""


@dataclass(frozen=True)
class ReportDay:
    """A day's ranked rows.

    Attributes:
        day: ISO date, or `ALL_ROWS`.
        rows: Rows scored.
        flagged: Rows within the alert budget.
        content_hash: Of the ranked rows.
    """

    day: str
    rows: int
    flagged: int
    content_hash: str


@dataclass(frozen=True)
class RankedRow:
    """A row of the report."""

    row_id: str
    event_time: dt.datetime | None
    score: float
    p_value: float
    is_anomaly: bool
    because: str
    contributions: tuple[Contribution, ...]


@dataclass(frozen=True)
class Report:
    """What a report came to.

    Attributes:
        page: The HTML page over all days.
        summary: The same as JSON.
        alerts: Ranked rows of all days as Parquet.
        days: Days of this run.
        listed: Ranked rows over all days.
        rows: Rows scored on the days of this run.
        flagged: Flagged ones among them.
        strangest: Highest scores over all days.
    """

    page: Path
    summary: Path
    alerts: Path
    days: tuple[ReportDay, ...]
    listed: int
    rows: int
    flagged: int
    strangest: tuple[RankedRow, ...]


def build_report(
    days: Sequence[str],
    paths: DatasetPaths,
    bundle: ModelBundle,
    config: PipelineConfig,
    model_version: int,
    run_id: str,
    progress: Progress = lambda *_: None,
) -> Report:
    """Ranks and explains the strangest rows of days, and rewrites page and summary over all published days.

    A day's flagged rows are listed, up to report_rows of them, and its ten strangest where fewer are flagged.

    Args:
        days: Days to report on; they must be published.
        paths: The dataset's.
        bundle: The model that the table was scored with.
        config: How many rows to list; flags go by the budget that the model was calibrated for.
        model_version: Its version.
        run_id: MLflow run that made it.
        progress: Told while it works.

    Raises:
        PublicationError: A day has features and is not in the published table.
    """
    files = files_by_day(paths)
    # A table that has changed its model as a whole takes the report of all its days along.
    behind = {day for day, path in files.items() if not is_reported(day, path, paths, config)}
    everything_built = _report_days(sorted({*days, *behind}), files, paths, bundle, config, progress)
    built = [day for day in everything_built if day.day in set(days)]
    everything = _all_days(paths, set(files))
    alerts = paths.reports / "alerts.parquet"
    write_parquet(alerts, everything.to_arrow())
    strangest = _ranked(everything.head(config.alerts.report_rows))
    summary = _summary(paths, bundle, model_version, run_id, files, strangest)
    write_text(paths.reports / "summary.json", json.dumps(summary, indent=1, default=str))
    write_text(paths.reports / "report.html", _page(summary, strangest))
    return Report(
        paths.reports / "report.html",
        paths.reports / "summary.json",
        alerts,
        tuple(built),
        everything.height,
        sum(day.rows for day in built),
        sum(day.flagged for day in built),
        tuple(strangest),
    )


def is_reported(day: str, path: str | None, paths: DatasetPaths, config: PipelineConfig) -> bool:
    """Tells whether a day's ranked rows come from this file of the table."""
    return read_facts(_day_file(paths, day)).get("input_hash") == _input_hash(path, config)


def _input_hash(path: str | None, config: PipelineConfig) -> str:
    return hash_json([REPORT_VERSION, path, config.alerts.report_rows])


def _day_file(paths: DatasetPaths, day: str) -> Path:
    return paths.reports / "days" / f"{day}.parquet"


@dataclass(frozen=True)
class _Draft:
    """A day whose rows are ranked and not yet explained."""

    day: str
    input_hash: str
    scored: int
    flagged: int
    top: pl.DataFrame
    features: pl.DataFrame


def _report_days(
    days: Sequence[str],
    files: Mapping[str, str],
    paths: DatasetPaths,
    bundle: ModelBundle,
    config: PipelineConfig,
    progress: Progress,
) -> list[ReportDay]:
    """Ranks the rows of each day that needs it, explains those of all days together, and writes a file for each."""
    known: dict[str, ReportDay] = {}
    drafts: list[_Draft] = []
    for done, day in enumerate(days):
        progress(done, len(days), "days ranked")
        input_hash = _input_hash(files.get(day), config)
        facts = read_facts(_day_file(paths, day))
        if facts.get("input_hash") == input_hash:
            known[day] = ReportDay(day, int(facts["scored"]), int(facts["flagged"]), facts["content_hash"])
        else:
            drafts.append(_rank(day, input_hash, files.get(day), paths, config.alerts.report_rows))
    # Together, since explaining one row costs nearly what explaining a thousand does.
    explained = iter(bundle.explain(pl.concat([draft.features for draft in drafts])) if drafts else [])
    for draft in drafts:
        parts = [next(explained) for _ in range(draft.top.height)]
        ranked = draft.top.with_columns(
            because=pl.Series([_because(row) for row in parts], dtype=pl.String),
            contributions=pl.Series([[asdict(part) for part in row] for row in parts], dtype=_SCHEMA["contributions"]),
        )
        facts = {"input_hash": draft.input_hash, "scored": str(draft.scored), "flagged": str(draft.flagged)}
        content_hash = write_parquet(_day_file(paths, draft.day), ranked.select(*_SCHEMA).to_arrow(), facts)
        known[draft.day] = ReportDay(draft.day, draft.scored, draft.flagged, content_hash)
    return [known[day] for day in days]


def _rank(day: str, input_hash: str, path: str | None, paths: DatasetPaths, report_rows: int) -> _Draft:
    features = pl.read_parquet(paths.features(day))
    if path is None:
        if features.height:
            raise PublicationError(
                f"{day} of {paths.dataset!r} is not in the published table; materialize latent_features first"
            )
        empty = pl.DataFrame(schema={name: _SCHEMA[name] for name in _RANKED})
        return _Draft(day, input_hash, 0, 0, empty, features)
    scored = published_day(path, paths).select(*_RANKED)
    flagged = int(scored["is_anomaly"].sum())
    count = min(max(flagged, _ALWAYS_SHOWN), report_rows, scored.height)
    # Highest score first; of equal ones the identity decides, so that the order is always the same.
    top = scored.sort(["score", "row_id"], descending=[True, False]).head(count)
    rows = top.select("row_id").join(features, on="row_id", how="left", maintain_order="left")
    return _Draft(day, input_hash, scored.height, flagged, top, rows.select(features.columns))


def _because(parts: Sequence[Contribution]) -> str:
    telling = [part for part in parts if part.surprise >= max(4.6, 0.3 * parts[0].surprise)] or parts[:1]
    return "; ".join(f"{part.column} is {part.actual}, expected {part.expected}" for part in telling)


def _all_days(paths: DatasetPaths, published: set[str]) -> pl.DataFrame:
    reported = [path for path in sorted((paths.reports / "days").glob("[!.]*.parquet")) if path.stem in published]
    frames = [pl.read_parquet(path) for path in reported]
    rows = pl.concat([pl.DataFrame(schema=_SCHEMA), *frames])
    return rows.sort(["score", "row_id"], descending=[True, False])


def _ranked(rows: pl.DataFrame) -> list[RankedRow]:
    return [
        RankedRow(
            row["row_id"],
            row["event_time"],
            row["score"],
            row["p_value"],
            row["is_anomaly"],
            row["because"],
            tuple(Contribution(**part) for part in row["contributions"]),
        )
        for row in rows.iter_rows(named=True)
    ]


def _summary(
    paths: DatasetPaths,
    bundle: ModelBundle,
    model_version: int,
    run_id: str,
    files: dict[str, str],
    strangest: Sequence[RankedRow],
) -> dict[str, Any]:
    by_day: list[dict[str, Any]] = []
    for day in sorted(files):
        facts = read_facts(_day_file(paths, day))
        if facts:
            by_day.append({"day": day, "rows": int(facts["scored"]), "flagged": int(facts["flagged"])})
    rows, flagged = sum(entry["rows"] for entry in by_day), sum(entry["flagged"] for entry in by_day)
    budget = bundle.config.alerts.budget
    return {
        "format": SUMMARY_FORMAT,
        "dataset": paths.dataset,
        "model_version": model_version,
        "mlflow_run": run_id,
        "latent_space": next(iter(files.values())).split("/")[0] if files else None,
        "rows": rows,
        "flagged": flagged,
        "budget": budget,
        "expected_alerts": rows * budget,
        "score_threshold": bundle.calibration.threshold,
        "calibration_rows": len(bundle.calibration.scores),
        "train_days": [bundle.window.train[0], bundle.window.train[-1]],
        "calibration_days": [bundle.window.calibration[0], bundle.window.calibration[-1]],
        "columns": bundle.columns,
        "columns_left_out": {entry.column: entry.reason for entry in bundle.encoder.left_out},
        "days": by_day,
        "strangest": [asdict(row) for row in strangest[:50]],
        "files": {"alerts": "alerts.parquet", "days": "days/", "page": "report.html"},
    }


def _page(summary: dict[str, Any], strangest: Sequence[RankedRow]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ae_pipeline", "reports"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    worst = sorted(summary["days"], key=lambda entry: (-entry["flagged"], entry["day"]))[:10]
    highest = max((entry["flagged"] for entry in summary["days"]), default=0)
    return environment.get_template("report.html.j2").render(
        summary=summary, strangest=strangest, worst=worst, highest=max(highest, 1), share=_share(summary)
    )


def _share(summary: dict[str, Any]) -> float:
    return float(np.divide(summary["flagged"], max(summary["rows"], 1)))
