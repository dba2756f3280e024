"""Page to explore the latents: rows as points with chosen axes, made when it is asked for."""

from collections.abc import Sequence
from typing import Any

import polars as pl

from ae_pipeline.common.text import plural
from ae_pipeline.config.display import noun_of_rows
from ae_pipeline.features.split import LABEL
from ae_pipeline.latents.read import published_day
from ae_pipeline.reports.explore import UNSHOWN, Explored, render_explored
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.parquet import detach, read_facts, whole

_EXPLORED_DAYS, _EXPLORED_ROWS, _MAX_POINTS = 60, 1_500, 45_000
"""Newest days whose rows the latent explorer shows, rows at most, and values of all rows at most."""

_MAX_FIELDS = 24
"""Latents, and columns of the features, that the latent explorer offers, each."""

_FEATURE = "feature "
"""Start of the names of features beside columns of the latent table, which features may be named like."""


def latents_page(dataset: Dataset) -> str:
    """Return the page on which latents, scores and columns of rows are compared, and rows are chosen.

    Args:
        dataset: Configuration and paths of the dataset.

    Raises:
        ConfigError: There is no report.
    """
    explored = Explored(dataset)
    days = sorted(explored.files)[-_EXPLORED_DAYS:]
    rows, total = _sampled_rows(explored, days)
    fields = {name: f"f{index}" for index, name in enumerate(rows.columns)}
    titles = _titles(rows.columns)
    labels = {name: _label(name, title, explored) for name, title in titles.items()}
    numbers = [name for name in rows.columns if rows[name].dtype.is_numeric()]
    latents = [name for name in numbers if name.startswith("z_")]
    axes = latents + [name for name in numbers if name not in latents]
    colors = ["score", *(name for name in fields if name not in {"score", "row_id"})]
    content = {
        "names": [titles[name] for name in rows.columns],
        "titles": [labels[name] for name in rows.columns],
        "numbers": [fields[name] for name in numbers],
        "fields": {name: fields[name] for name in ("row_id", "day", "score", "is_anomaly") if name in fields},
        "rows": [[_json(value) for value in row] for row in rows.iter_rows()],
        "threshold": explored.summary["score_threshold"],
        "noun": plural(noun_of_rows(explored.dataset.config)),
        "has_row_pages": not UNSHOWN & set(explored.types.values()),
    }
    return render_explored(
        "latents.html.j2",
        explored,
        charts=[{"name": "latents"}],
        content=content,
        axes=[(fields[name], labels[name]) for name in axes],
        colors=[(fields[name], labels[name]) for name in colors],
        rows=rows.height,
        total=total,
        days=days,
    )


def _titles(names: Sequence[str]) -> dict[str, str]:
    """Return the name that the page shows of each column; that of a feature named like another one is marked."""
    titles = {name: name for name in names if not name.startswith(_FEATURE)}
    if f"{_FEATURE}{LABEL}" in names:
        titles[f"{_FEATURE}{LABEL}"] = "label"
    shown = set(titles.values())
    for name in names:
        plain = name.removeprefix(_FEATURE)
        titles.setdefault(name, f"{plain} (feature)" if plain in shown else plain)
    return titles


def _label(name: str, title: str, explored: Explored) -> str:
    """Return the title and unit of a feature that has some, and the title of a latent; otherwise the shown name."""
    column = name.removeprefix(_FEATURE)
    if name != column:
        return explored.names.label(column) if column in explored.names.display else title
    return explored.names.latent(title)


def _sampled_rows(explored: Explored, days: Sequence[str]) -> tuple[pl.DataFrame, int]:
    """Return rows of the latent table with their features, flagged ones first; and how many rows the days have.

    Of one day after the other, no more rows are kept than the page may show.
    """
    paths, config = explored.dataset.paths, explored.dataset.config
    if not days:
        return pl.DataFrame(schema={"row_id": pl.String, "score": pl.Float64}), 0
    names = published_day(explored.files[days[0]], paths).columns
    wanted = ["row_id", "score", "is_anomaly", *[name for name in names if name.startswith("z_")][:_MAX_FIELDS]]
    columns = [name for name, kind in explored.types.items() if kind not in UNSHOWN][:_MAX_FIELDS]
    most = min(_EXPLORED_ROWS, _MAX_POINTS // (len(wanted) + 1 + len(columns)))
    flagged: list[pl.DataFrame] = []
    others: list[pl.DataFrame] = []
    total = seen = 0
    step = 1
    for day in days:
        rows = published_day(explored.files[day], paths, wanted)
        rows = rows.select("row_id", pl.lit(day).alias("day"), *wanted[1:])
        usual = rows.filter(~pl.col("is_anomaly"))
        flagged = [_highest([*flagged, rows.filter("is_anomaly")], most // 2)]
        others.append(detach(usual.gather_every(step, -seen % step)))
        total, seen = total + rows.height, seen + usual.height
        while sum(part.height for part in others) > 2 * most:
            others, step = [detach(pl.concat(others).gather_every(2))], 2 * step
    kept = pl.concat(others)
    kept = kept.gather_every(max(1, -(-kept.height // max(most - flagged[0].height, 1))))
    chosen = pl.concat([*flagged, kept])
    features = [
        _shown_features(group["row_id"], str(day), columns, explored) for (day,), group in chosen.group_by("day")
    ]
    keys = ["row_id", "day"]
    joined = chosen.join(pl.concat(features, how="diagonal_relaxed"), on=keys, how="left", maintain_order="left")
    return joined if config.is_daily else joined.drop("day"), total


def _highest(parts: Sequence[pl.DataFrame], most: int) -> pl.DataFrame:
    return detach(pl.concat(parts).sort("score", "row_id", descending=[True, False]).head(most))


def _shown_features(row_ids: pl.Series, day: str, columns: Sequence[str], explored: Explored) -> pl.DataFrame:
    """Return columns of the features of some rows of a day, with `_FEATURE` before their names."""
    path = explored.dataset.paths.features(day)
    keys = (pl.col("row_id"), pl.lit(day).alias("day"))
    if not read_facts(path):
        return row_ids.to_frame("row_id").select(keys)
    file = pl.scan_parquet(whole(path), glob=False)
    names = [name for name in file.collect_schema().names() if name in {*columns, LABEL}]
    wanted = file.filter(pl.col("row_id").is_in(row_ids.implode()))
    rows = wanted.select(*keys, *(pl.col(name).alias(f"{_FEATURE}{name}") for name in names)).collect()
    return rows.with_columns(
        pl.selectors.temporal().cast(pl.String),
        pl.selectors.boolean().cast(pl.String),
        pl.selectors.decimal().cast(pl.Float64),
    )


def _json(value: Any) -> Any:
    """Return a value of a point: numbers with six digits, which a page of thousands of them needs."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if abs(value) < float("inf") else None
    return value
