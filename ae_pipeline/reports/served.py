"""Pages that the server of the data folder makes when they are asked for: home, marks and data contract."""

import datetime as dt
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import markupsafe
import numpy as np
import polars as pl
import yaml

from ae_pipeline.common.text import short_number
from ae_pipeline.config.display import noun_of_rows
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.features.split import LABEL
from ae_pipeline.ingestion.names import column_names
from ae_pipeline.latents.files import TableFiles
from ae_pipeline.latents.read import open_table, published_day, published_days
from ae_pipeline.monitoring.feedback import FlaggedRow, MarkKind, MarkState, marks_of
from ae_pipeline.reports.page import page_environment
from ae_pipeline.reports.ranking import as_rows
from ae_pipeline.reports.review import MarkRequest, Offer, cause_key, flagged_rows, offer_of, read_ranked
from ae_pipeline.reports.summary import read_summary
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.parquet import read_facts, whole
from ae_pipeline.storage.paths import ALL_ROWS, DatasetPaths

_CONTRACT = "_contract/contract.yaml"

_TREND_DAYS, _SAMPLE_DAYS, _SAMPLE_ROWS, _CORRELATES, _ENTITIES = 60, 14, 20_000, 3, 5

EXPLAINED = {
    MarkState.REAL: "An anomaly that matters. It counts, and the next training leaves it out.",
    MarkState.KNOWN: "You know about it. Counts and alerts leave it out until it happens again or grows.",
    MarkState.FALSE_ALARM: "Nothing is wrong with it. Counts leave it out, and the next training learns it.",
    MarkState.CLEARED: "Take earlier marks back.",
}
"""What each state means, as the page says it."""


def home_page(
    datasets: Mapping[str, DatasetPaths], configs: Mapping[str, PipelineConfig], addresses: Mapping[str, str]
) -> str:
    """Return the page with all datasets and their verdicts.

    Args:
        datasets: Paths of each dataset.
        configs: Configuration of each dataset; lacks those that the project no longer has.
        addresses: Addresses of `dagster` and `mlflow`, as they are now; may lack servers.
    """
    entries = [_home_entry(name, paths, configs.get(name)) for name, paths in sorted(datasets.items())]
    return _render("home.html.j2", entries=entries, addresses=addresses)


def _home_entry(name: str, paths: DatasetPaths, config: PipelineConfig | None) -> dict[str, Any]:
    summary = read_summary(paths) or {}
    # A summary of an earlier version lacks some keys.
    days = [{**entry, "state": entry.get("state") or ""} for entry in summary.get("days", []) if entry["rows"]][
        -_TREND_DAYS:
    ]
    verdict = summary.get("verdict")
    pages = sorted(path.stem for path in (paths.reports / "days").glob("[!.]*.html"))
    return {
        "name": name,
        "description": config.description if config else "",
        "noun": noun_of_rows(config) if config else "row",
        "verdict": verdict and {"state": None, "since": "", **verdict},
        "refused": summary.get("refused", ""),
        "version": summary.get("model_version"),
        "days": days,
        "highest": max([1, *(entry["flagged"] for entry in days)]),
        "pages": pages[-7:],
        "updated": _time_of(paths.reports / "alerts.parquet"),  # marks and alerts change the summary, too
        "newest": days[-1]["day"] if days and days[-1]["day"] != ALL_ROWS else "",
        "is_served": config is not None,
        "has_report": (paths.reports / "report.html").exists(),
        # An object store may not answer, and this page must. The page of the contract asks it.
        "has_contract": not (table := TableFiles(paths.latents)).is_folder or table.has(_CONTRACT),
    }


def _time_of(path: Path) -> str:
    """Return when a file was written, in UTC; empty without the file."""
    try:
        written = path.stat().st_mtime
    except FileNotFoundError:
        return ""
    return f"{dt.datetime.fromtimestamp(written, dt.UTC):%Y-%m-%d %H:%M}"


def mark_page(request: MarkRequest, back: str, dataset: Dataset, nonce: str) -> str:
    """Return the page on which a person marks a row, a cause or a day.

    Args:
        request: Subject of the mark; its state does not matter.
        back: Path of the page to return to.
        dataset: Configuration and paths of the dataset.
        nonce: Value that allows the script of the page to run.

    Raises:
        ConfigError: There is no report.
    """
    ranked = read_ranked(dataset.paths)
    rows = flagged_rows(ranked, dataset.config)
    if request.kind == MarkKind.ROW:
        rows = [row for row in rows if row.row_id == request.subject]
    elif request.kind == MarkKind.CAUSE:
        rows = [row for row in rows if cause_key(row.columns) == request.subject and request.day in {"", row.day}]
    else:
        rows = [row for row in rows if row.day == request.subject]
    entities, names = _entities(request, rows), column_names(dataset)
    if request.kind == MarkKind.CAUSE and request.entity:
        rows = [row for row in rows if row.entity == request.entity]
    chosen = {row.row_id for row in rows[:_ENTITIES]}
    reasons = [
        (row.row_id, row.score, row.reason_as(names))
        for row in as_rows(ranked.filter(pl.col("row_id").is_in(chosen)), dataset.config.timezone)
    ]
    offer = offer_of(rows[0].entity, rows[0].columns, dataset) if rows and _is_of_entity(request) else None
    days = {entry["day"]: entry for entry in (read_summary(dataset.paths) or {}).get("days", [])}
    subject = request.subject
    if request.kind == MarkKind.CAUSE:
        subject = ", ".join(map(names.title, rows[0].columns)) if rows else subject.replace("+", ", ")
    return _render(
        "mark.html.j2",
        dataset=dataset.name,
        request=request,
        kind=names.row if request.kind == MarkKind.ROW else request.kind.value,
        noun=names.row,
        subject=subject,
        rows=len(rows),
        reasons=reasons,
        entities=entities,
        day=days.get(request.subject) if request.kind == MarkKind.DAY else None,
        marks=[
            each for each in marks_of(dataset.paths) if (each.kind, each.subject) == (request.kind, request.subject)
        ],
        states=EXPLAINED,
        offer=offer_json(offer),
        back=back,
        nonce=nonce,
    )


def _is_of_entity(request: MarkRequest) -> bool:
    return request.kind == MarkKind.ROW or bool(request.kind == MarkKind.CAUSE and request.entity)


def offer_json(offer: Offer | None) -> dict[str, Any] | None:
    """Return an offer as the page of marks reads it; None without one."""
    if offer is None:
        return None
    request = {name: value for name, value in asdict(offer.request).items() if value and name != "who"}
    return {
        "message": f"{offer.message}.",
        "label": f"Treat it as known for {offer.request.entity}",
        "request": request,
    }


def _entities(request: MarkRequest, rows: Sequence[FlaggedRow]) -> list[tuple[str, int]]:
    """Return the entities that a mark of a cause may be restricted to, with their rows; that of the request always."""
    if request.kind != MarkKind.CAUSE:
        return []
    counts = Counter(row.entity for row in rows if row.entity)
    entities = {entity: count for entity, count in counts.most_common(_ENTITIES) if count > 1}
    if request.entity:
        entities[request.entity] = counts[request.entity]
    return list(entities.items())


def contract_page(dataset: Dataset) -> str | None:
    """Return the data contract of the latent table as HTML, with figures of its newest days; None without a table.

    Args:
        dataset: Configuration and paths of the dataset.

    Raises:
        PublicationError: The table is damaged, or its object store does not answer.
    """
    if open_table(dataset.paths) is None:  # tried for seconds; reading a file is tried for minutes
        return None
    table = TableFiles(dataset.paths.latents)
    text = table.read_text(_CONTRACT)
    if text is None:
        return None
    contract = yaml.safe_load(text)
    contract["description"]["usage"] = table.usage  # the table may have moved since the contract was written
    published = published_days(dataset.paths)
    days = [day for day in sorted(published) if published[day]][-_SAMPLE_DAYS:]
    parts = [published_day(published[day], dataset.paths).head(_SAMPLE_ROWS // max(len(days), 1)) for day in days]
    rows = pl.concat(parts) if parts else pl.DataFrame()
    names = [column["name"] for column in contract["schema"][0]["properties"]]
    correlates = _correlates(rows, days, dataset)
    columns = [
        {
            **column,
            "unit": next(
                (each["value"] for each in column.get("customProperties", []) if each["property"] == "unit"), ""
            ),
            "figures": _figures(rows[column["name"]]) if column["name"] in rows.columns else None,
            "correlates": correlates.get(column["name"], ""),
        }
        for column in contract["schema"][0]["properties"]
    ]
    return _render(
        "contract.html.j2",
        dataset=dataset.name,
        contract=contract,
        columns=columns,
        names=names,
        rows=rows.height,
        days=days,
        daily=dataset.config.is_daily,
        sample=rows.head(5).select(name for name in names if name in rows.columns).rows(),
    )


def _figures(values: pl.Series) -> dict[str, str]:
    known = values.drop_nulls()
    if known.is_empty():
        shown = "–"
    elif values.dtype == pl.Boolean:
        shown = f"{known.sum():,} true, {known.len() - known.sum():,} false"
    else:
        shown = " to ".join(dict.fromkeys(map(_short, (known.min(), known.max()))))
    return {"range": shown, "nulls": f"{values.null_count():,}"}


def _short(value: object) -> str:
    if isinstance(value, float):
        return short_number(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def _correlates(rows: pl.DataFrame, days: Sequence[str], dataset: Dataset) -> dict[str, str]:
    """Return the columns of the features whose values go along most with each latent, by rank correlation."""
    known = [day for day in days if read_facts(dataset.paths.features(day))]
    if rows.is_empty() or not known:
        return {}
    features = pl.concat(
        [_numbers(rows["row_id"], dataset.paths.features(day)) for day in known], how="diagonal_relaxed"
    )
    numeric = [name for name in features.columns if name != "row_id"]
    joined = rows.join(features, on="row_id", how="inner", suffix="_of_features")
    strongest, names = {}, column_names(dataset)
    for latent in (name for name in rows.columns if name.startswith("z_")):
        strengths = []
        for name in numeric:
            pair = joined.select(pl.col(latent).alias("a"), pl.col(name).cast(pl.Float64).alias("b"))
            pair = pair.filter(pl.col("b").is_finite())
            if pair.height < 30 or pair["b"].n_unique() < 2 or pair["a"].n_unique() < 2:
                continue
            strengths.append((float(np.corrcoef(pair["a"].rank().to_numpy(), pair["b"].rank().to_numpy())[0, 1]), name))
        strengths.sort(key=lambda each: -abs(each[0]))
        strongest[latent] = ", ".join(f"{names.title(name)} ({value:+.2f})" for value, name in strengths[:_CORRELATES])
    return strongest


def _numbers(row_ids: pl.Series, path: Path) -> pl.DataFrame:
    """Read the numeric columns of some rows of the features, without the label. A whole day may have many images."""
    file = pl.scan_parquet(whole(path), glob=False)
    numeric = [name for name, dtype in file.collect_schema().items() if dtype.is_numeric() and name != LABEL]
    wanted = row_ids.to_frame("row_id").lazy()
    return file.select("row_id", *numeric).join(wanted, on="row_id", how="semi").collect()


def _render(template: str, **variables: Any) -> str:
    css = files("ae_pipeline").joinpath("reports").joinpath("page.css").read_text(encoding="utf-8")
    return page_environment().get_template(template).render(css=markupsafe.Markup(css), **variables)  # noqa: S704
