"""Raw rows to features: cleaned and derived columns that depend on no model."""

import polars as pl

from ae_pipeline.common.errors import ConfigError, StorageError
from ae_pipeline.config.columns import MINUTES_PER_DAY, RESERVED_COLUMNS, ColumnType, FeatureColumn
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.features.split import LABEL, split_columns
from ae_pipeline.ingestion.contract import SchemaContract
from ae_pipeline.ingestion.raw import DayResult
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.hashing import hash_json
from ae_pipeline.storage.parquet import read_facts, write_parquet

FEATURES_VERSION = "1"
"""Raised when the same raw rows would give other features."""


def feature_columns(config: PipelineConfig, contract: SchemaContract) -> tuple[FeatureColumn, ...]:
    """Lists the features of a dataset: the contract's columns that are not excluded, then the derived ones.

    The event time is offered under its reserved name `event_time`; text counts as a category. What the label names is
    never offered, nor what is derived from it: a model would read the answer there.

    Raises:
        ConfigError: A derived column bears the name of another, or label or split_by names a column that is not there.
    """
    if doubled := sorted(config.derive.keys() & contract.columns.keys()):
        raise ConfigError(
            f"derive names column {doubled[0]!r}, which the files of {config.dataset!r} have; choose another name"
        )
    _check_named(config, contract)
    withheld = {*config.exclude, *_told_by_label(config)}
    columns = [
        FeatureColumn(name, ColumnType.CATEGORY if rule.type == ColumnType.TEXT else rule.type, rule.shape)
        for name, rule in contract.columns.items()
        if name not in withheld and name != config.event_time
    ]
    if config.event_time and not withheld & {config.event_time, "event_time"}:
        columns.append(FeatureColumn("event_time", ColumnType.TIMESTAMP))
    return (*columns, *(FeatureColumn(name, ColumnType.NUMBER) for name in config.derive if name not in withheld))


def _check_named(config: PipelineConfig, contract: SchemaContract) -> None:
    there = (*contract.columns, *config.derive, "row_id", "event_time")
    for word, names in (("label", _names_in(config.label)), ("split_by", config.training.split_by)):
        if unknown := [name for name in names if name not in there]:
            raise ConfigError(
                f"{word} names column {unknown[0]!r}, which {config.dataset!r} does not have; choose among "
                f"{', '.join(dict.fromkeys(there))}"
            )


def _names_in(expression: str | None) -> list[str]:
    """Lists the columns that an SQL expression names, none where it is not SQL."""
    try:
        return pl.sql_expr(expression).meta.root_names() if expression else []
    except pl.exceptions.PolarsError:
        return []


def _told_by_label(config: PipelineConfig) -> set[str]:
    """Lists the columns that the label names or is derived from, and the derived ones that build on any of them."""
    told = set(_names_in(config.label))
    for name, expression in reversed(config.derive.items()):
        told |= set(_names_in(expression)) if name in told else set()
    for name, expression in config.derive.items():  # in this order one builds on another
        told |= {name} if told & set(_names_in(expression)) else set()
    return told


def build_features(raw: pl.DataFrame, config: PipelineConfig, contract: SchemaContract) -> pl.DataFrame:
    """Cleans raw rows and derives columns.

    Numbers are float64, so that a day without gaps has the same types as one with gaps; clocks become minutes after
    midnight, 2400 among them as 0; text loses surrounding blanks, and empty text is missing; derived numbers that are
    not finite are missing.

    Args:
        raw: Raw rows with `row_id` and `event_time`.
        config: What to exclude and derive.
        contract: Types of the raw columns.

    Returns:
        `row_id`, `event_time` and the columns of `feature_columns`, row for row; further the columns by which a
        training is cut where they are not among these, and `is_known_anomaly` where the settings have a label: true for
        known anomalies, false for others, null where that is unknown.

    Raises:
        ConfigError: A derived column or the label cannot be computed.
    """
    cleaned = raw.with_columns(
        *(_clean(name, rule.type) for name, rule in contract.columns.items() if name not in RESERVED_COLUMNS)
    )
    for name, expression in config.derive.items():
        try:
            value = pl.sql_expr(expression).cast(pl.Float64)
            cleaned = cleaned.with_columns(pl.when(value.is_finite()).then(value).alias(name))
        except pl.exceptions.PolarsError as error:
            raise ConfigError(
                f"derive: {name}: {expression!r} cannot be computed on {config.dataset!r}: "
                f"{str(error).splitlines()[0]}; mend the expression"
            ) from error
    names = [column.name for column in feature_columns(config, contract)]
    wanted = dict.fromkeys(("row_id", "event_time", *names, *split_columns(config)))
    return cleaned.select(*wanted, *([_label(config.label, cleaned, config)] if config.label else []))


def _label(expression: str, rows: pl.DataFrame, config: PipelineConfig) -> pl.Series:
    try:
        label = rows.with_columns(pl.sql_expr(expression).alias(LABEL))[LABEL]
    except pl.exceptions.PolarsError as error:
        raise ConfigError(
            f"label={expression!r} cannot be computed on {config.dataset!r}: {str(error).splitlines()[0]}; mend the "
            "expression"
        ) from error
    if label.dtype != pl.Boolean:
        raise ConfigError(
            f'label={expression!r} gives {label.dtype} and not true or false; write a condition, such as "anomaly = 1"'
        )
    return label


def _clean(name: str, kind: ColumnType) -> pl.Expr:
    value = pl.col(name)
    match kind:
        case ColumnType.CLOCK_HHMM:
            return ((value // 100 * 60 + value % 100) % MINUTES_PER_DAY).cast(pl.Float64).alias(name)
        case ColumnType.INTEGER | ColumnType.NUMBER:
            return value.cast(pl.Float64)
        case ColumnType.TEXT | ColumnType.CATEGORY:
            text = value.str.strip_chars()
            return pl.when(text != "").then(text).alias(name)
        case _:
            return value


def features_input_hash(day: str, dataset: Dataset, contract: SchemaContract) -> str | None:
    """Changes when the day's raw rows or the settings would give other features; None where there are no raw rows."""
    config, paths = dataset.config, dataset.paths
    raw_facts = read_facts(paths.raw(day))
    if not raw_facts:
        return None
    settings: list[object] = [config.exclude, sorted(config.derive.items()), config.event_time]
    if config.label or split_columns(config):  # alone, so that days of before there were labels stay up to date
        settings += [config.label, split_columns(config)]
    return hash_json([FEATURES_VERSION, raw_facts["content_hash"], contract.fingerprint, settings])


def build_features_day(day: str, dataset: Dataset, contract: SchemaContract) -> DayResult:
    """Writes the features of a day, unless they are up to date.

    Raises:
        StorageError: The raw rows of the day are not there.
    """
    config, paths = dataset.config, dataset.paths
    input_hash = features_input_hash(day, dataset, contract)
    if input_hash is None:
        raise StorageError(f"raw_data of {config.dataset!r} has no {day}; materialize that partition first")
    target = paths.features(day)
    facts = read_facts(target)
    if facts.get("input_hash") == input_hash:
        return DayResult(day, int(facts["rows"]), facts["content_hash"], False)
    features = build_features(pl.read_parquet(paths.raw(day)), config, contract)
    content_hash = write_parquet(target, features.to_arrow(), {"input_hash": input_hash})
    return DayResult(day, features.height, content_hash, True)


def features_content(dataset: Dataset) -> dict[str, tuple[str, int]]:
    """Lists the dataset's days whose features are there, with content hash and rows."""
    config, paths = dataset.config, dataset.paths
    files = sorted(paths.features("_").parent.glob("[!.]*.parquet"))
    facts = {path.stem: read_facts(path) for path in files if config.has_day(path.stem)}
    return {day: (fact["content_hash"], int(fact["rows"])) for day, fact in facts.items() if fact}
