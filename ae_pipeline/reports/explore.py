"""Pages to explore a dataset, made when they are asked for: scores by day, columns, and single rows."""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import polars as pl

from ae_pipeline.common.errors import BundleError, ConfigError, StorageError
from ae_pipeline.common.text import abbreviate
from ae_pipeline.config.columns import ColumnType
from ae_pipeline.config.display import ColumnNames
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.encoding.event_time import EVENT_TIME
from ae_pipeline.encoding.table_encoder import TableEncoder
from ae_pipeline.features.split import LABEL
from ae_pipeline.ingestion.contract import contract_in_force
from ae_pipeline.ingestion.names import column_names
from ae_pipeline.latents.read import PublishedDay, published_day, published_days
from ae_pipeline.reports.charts import with_excess
from ae_pipeline.reports.column_values import MAX_DAYS, MAX_ROWS, read_column
from ae_pipeline.reports.explore_charts import VersionMark, column_charts, score_days_chart, score_quantiles
from ae_pipeline.reports.page import render_page
from ae_pipeline.reports.ranking import features_of
from ae_pipeline.reports.summary import read_summary
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.parquet import read_facts, whole
from ae_pipeline.storage.paths import ALL_ROWS

UNSHOWN = {ColumnType.IMAGE}
"""Types without a page of their own."""


@dataclass(frozen=True)
class Explored:
    """A published dataset to explore.

    Attributes:
        dataset: Configuration and paths of the dataset.
    """

    dataset: Dataset

    @cached_property
    def files(self) -> dict[str, PublishedDay]:
        """Published days with rows, by day."""
        return {day: file for day, file in published_days(self.dataset.paths).items() if file}

    @cached_property
    def summary(self) -> Mapping[str, Any]:
        """Content of `summary.json`.

        Raises:
            ConfigError: There is no report.
        """
        summary = read_summary(self.dataset.paths)
        if not summary:
            raise ConfigError(f"{self.dataset.name!r} has no report; run `ae-pipeline run {self.dataset.name}` first")
        return summary

    @cached_property
    def types(self) -> dict[str, ColumnType]:
        """Types of the columns of the newest features, as the schema contract has them, in their order."""
        config, paths = self.dataset.config, self.dataset.paths
        rules = contract_in_force(paths.contract, config).columns if paths.contract.exists() else {}
        newest = next((day for day in sorted(self.files, reverse=True) if read_facts(paths.features(day))), None)
        schema = pl.scan_parquet(whole(paths.features(newest)), glob=False).collect_schema() if newest else {}
        names = [name for name in schema if name not in {"row_id", "event_time", LABEL, config.event_time}]
        return {name: rules[name].type if name in rules else _type_of(schema[name]) for name in names}

    @cached_property
    def drift(self) -> pl.DataFrame:
        """Effects of the columns by day, from `drift.parquet`; empty without it."""
        path = self.dataset.paths.reports / "drift.parquet"
        if not read_facts(path):
            return pl.DataFrame()
        return pl.read_parquet(whole(path), glob=False).filter(pl.col("part") == "column")

    @cached_property
    def names(self) -> ColumnNames:
        """How the pages name columns."""
        return column_names(self.dataset)

    @property
    def window(self) -> list[str]:
        """Days of the training."""
        first, last = self.summary["train_days"]
        return [day for day in self.files if first <= day <= last] if self.dataset.config.is_daily else []


def _type_of(dtype: pl.DataType) -> ColumnType:
    if dtype.is_numeric():
        return ColumnType.NUMBER
    return ColumnType.TIMESTAMP if dtype.is_temporal() else ColumnType.CATEGORY


def scores_page(dataset: Dataset, marks: Sequence[VersionMark] = (), note: str = "") -> str:
    """Return the page with the scores by day and all columns.

    Args:
        dataset: Configuration and paths of the dataset.
        marks: Versions of the model.
        note: Why versions are missing.

    Raises:
        ConfigError: There is no report.
    """
    explored = Explored(dataset)
    days = sorted(explored.files)[-MAX_DAYS:]
    charts = []
    if dataset.config.is_daily and days:
        quantiles = pl.concat([_quantiles_of(day, explored) for day in days])
        charts.append(score_days_chart(quantiles, explored.summary["score_threshold"], marks))
    left_out = explored.summary["columns_left_out"]
    columns = [
        {
            "name": name,
            "title": explored.names.label(name),
            "type": kind.value,
            "has_page": kind not in UNSHOWN,
            "left_out": left_out.get(name, ""),
        }
        | _drift_of(name, explored)
        for name, kind in explored.types.items()
    ]
    return render_explored("explore.html.j2", explored, charts=charts, columns=columns, days=days, note=note)


def _quantiles_of(day: str, explored: Explored) -> pl.DataFrame:
    scores = published_day(explored.files[day], explored.dataset.paths, ["score"])
    return score_quantiles(scores.with_columns(day=pl.lit(day)))


def _drift_of(name: str, explored: Explored) -> dict[str, Any]:
    """Return on how many days a column has drifted, and what its newest drift is."""
    if explored.drift.is_empty():
        return {"drift_days": 0, "newest": "", "newest_day": ""}
    with_drift = explored.drift.filter((pl.col("name") == name) & (pl.col("words") != "")).sort("day")
    newest = with_drift.row(-1, named=True) if with_drift.height else {"words": "", "day": ""}
    return {"drift_days": with_drift.height, "newest": newest["words"], "newest_day": newest["day"]}


def column_page(name: str, dataset: Dataset) -> str | None:
    """Return the page of a column; None if the features have no such column, or if it is an image.

    Args:
        name: Name of the column.
        dataset: Configuration and paths of the dataset.

    Raises:
        ConfigError: There is no report.
    """
    explored = Explored(dataset)
    kind = explored.types.get(name)
    if kind is None or kind in UNSHOWN:
        return None
    days = sorted(explored.files)
    column = read_column(name, days, explored.window, kind, dataset.config.timezone, dataset.paths)
    if column.is_category:
        shown = {value: explored.names.value(name, value) for value in column.values["value"].drop_nulls().unique()}
        column = replace(column, values=column.values.with_columns(pl.col("value").replace(shown)))
    drift = explored.drift.filter(pl.col("name") == name) if explored.drift.height else explored.drift
    drift = drift.filter(pl.col("day").is_in(column.days)).sort("day") if drift.height else drift
    title = explored.names.label(name)
    nouns = explored.names.rows
    charts = column_charts(replace(column, name=title), kind, drift, dataset.config.drift, nouns) if column.days else []
    names = [(each, explored.names.title(each)) for each, other in explored.types.items() if other not in UNSHOWN]
    worst = with_excess(drift, dataset.config.drift).sort("excess", "day").tail(1) if drift.height else drift
    return render_explored(
        "column.html.j2",
        explored,
        charts=charts,
        column=name,
        title=title,
        type=kind.value,
        names=names,
        days=column.days,
        worst=worst.row(0, named=True) if worst.height and worst["excess"][0] >= 1 else None,
        max_rows=MAX_ROWS,
        left_out=explored.summary["columns_left_out"].get(name, ""),
    )


def row_page(row_id: str, day: str, dataset: Dataset, bundle: ModelBundle) -> str | None:
    """Return the page of a row with all columns, actual and reconstructed; None if no such row is published.

    Args:
        row_id: Identity of the row.
        day: ISO date, or `ALL_ROWS`.
        dataset: Configuration and paths of the dataset.
        bundle: Model that scored the published table.

    Raises:
        BundleError: The features lack a column that the model needs.
        StorageError: The features were built again without the row.
    """
    explored = Explored(dataset)
    day = day if dataset.config.is_daily else ALL_ROWS
    if day not in explored.files or not read_facts(dataset.paths.features(day)):
        return None
    row = published_day(explored.files[day], dataset.paths).filter(pl.col("row_id") == row_id)
    features = features_of(pl.Series("row_id", [row_id]), day, dataset.paths)
    if row.is_empty() or not isinstance(bundle.encoder, TableEncoder):
        return None
    rebuilt = f"they were built again after the publication, and `ae-pipeline run {dataset.name}` publishes them"
    if features.is_empty():
        raise StorageError(f"the features of {day} no longer have row {row_id!r}; {rebuilt}")
    if missing := [name for name in bundle.columns if name not in features.columns]:
        raise BundleError(f"the features of {day} no longer have {abbreviate(missing)}; {rebuilt}")
    return render_explored(
        "row.html.j2",
        explored,
        charts=[],
        row_id=row_id,
        day=day,
        published=row.row(0, named=True),
        latents=[(explored.names.latent(name), row[name][0]) for name in row.columns if name.startswith("z_")],
        columns=[_named(each, explored.names) for each in _compared(features, bundle, dataset.config.zone)],
        version=explored.summary["model_version"],
        threshold=bundle.calibration.threshold,
    )


def _compared(features: pl.DataFrame, bundle: ModelBundle, zone: dt.tzinfo) -> list[dict[str, Any]]:
    """Return actual and reconstructed values of all columns of a row, the most surprising ones first.

    Args:
        features: Features of the row.
        bundle: Model that scored it.
        zone: Time zone of the dataset.
    """
    encoder = bundle.encoder
    assert isinstance(encoder, TableEncoder)
    known = features.select(bundle.columns)
    decoded = bundle.denoise(known)
    # What is imputed last explains nothing that is left.
    parts = {part.column: part for part in bundle.explain(known, len(bundle.columns))[0] if part.surprisal > 0}
    fitted = [column.name for column in encoder.columns]
    compared: list[dict[str, Any]] = [
        {
            "name": name,
            "actual": encoder.speak(name, known[name][0]),
            "reconstructed": encoder.speak(name, decoded[name][0]),
            "expected": parts[name].expected if name in parts else "",
            "surprisal": parts[name].surprisal if name in parts else None,
        }
        for name in fitted
    ]
    others: list[dict[str, Any]] = [
        {
            "name": name,
            "actual": _as_text(features[name][0], zone),
            "reconstructed": "",
            "expected": parts[name].expected if name == EVENT_TIME and name in parts else "",
            "surprisal": parts[name].surprisal if name == EVENT_TIME and name in parts else None,
        }
        for name in features.columns
        if name not in {*fitted, "row_id", LABEL} and not features[name].dtype.is_nested()
    ]
    return sorted(compared + others, key=lambda each: -(each["surprisal"] or 0.0))


def _as_text(value: Any, zone: dt.tzinfo) -> str:
    """Return a value that the model does not read; a time in the time zone of the dataset."""
    if isinstance(value, dt.datetime) and value.tzinfo:
        local = value.astimezone(zone).replace(tzinfo=None)
        whole_minutes = not (local.second or local.microsecond)
        return local.isoformat(" ", "minutes" if whole_minutes else "auto")
    return "missing" if value is None else str(value)


def _named(compared: Mapping[str, Any], names: ColumnNames) -> dict[str, Any]:
    """Return a compared column with its title and the units of its values."""
    name = compared["name"]
    values = {key: names.value(name, compared[key]) for key in ("actual", "reconstructed", "expected")}
    return {**compared, **values, "title": names.title(name)}


def render_explored(template: str, explored: Explored, charts: Sequence[Any], **variables: Any) -> str:
    """Return a page to explore.

    Args:
        template: Name of the template.
        explored: The dataset.
        charts: Its charts.
        variables: More variables of the template.
    """
    dataset = explored.dataset
    shown = [each if isinstance(each, dict) else asdict(each) for each in charts]
    fixed = {"dataset": dataset.name, "daily": dataset.config.is_daily, "timezone": dataset.config.timezone}
    return render_page(template, {**fixed, "charts": shown, **variables}, dataset)
