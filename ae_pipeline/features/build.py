"""Build features from raw rows: cleaned and derived columns that do not depend on a model."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from ae_pipeline.common.errors import ConfigError, StorageError
from ae_pipeline.common.text import first_line
from ae_pipeline.config.columns import MINUTES_PER_DAY, RESERVED_COLUMNS, ColumnType, FeatureColumn
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.features.split import LABEL, USABLE, split_columns
from ae_pipeline.ingestion.contract import SchemaContract
from ae_pipeline.ingestion.image_days import rows_at_once
from ae_pipeline.ingestion.raw import DayResult
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.files import atomic_write
from ae_pipeline.storage.hashing import hash_json
from ae_pipeline.storage.parquet import read_facts, write_parquet
from ae_pipeline.storage.parquet_parts import ParquetParts
from ae_pipeline.storage.paths import DatasetPaths

FEATURES_VERSION = "2"
"""Version of the feature code. Increase it when the same raw rows would give other features."""


_FEATURE_TYPES = {ColumnType.TEXT: ColumnType.CATEGORY, ColumnType.DECIMAL: ColumnType.NUMBER}


def feature_columns(config: PipelineConfig, contract: SchemaContract) -> tuple[FeatureColumn, ...]:
    """Return the features of a dataset: the columns of the contract without excluded ones, then the derived columns.

    The event time has the reserved name `event_time`, text becomes a category, and a decimal a number. Columns that the
    label uses, and columns derived from them, are not features, because they would reveal the label to the model.
    Columns of the identity are marked: a model leaves them out if they are unique.

    Args:
        config: Configuration of the dataset.
        contract: Schema contract of the dataset.

    Raises:
        ConfigError: A derived column has the name of a landed one, label, where or split_by names an unknown column, or
            a column has the name of the one that `training.where` adds.
    """
    if duplicates := sorted(config.derive.keys() & contract.columns.keys()):
        raise ConfigError(
            f"derive defines column {duplicates[0]!r}, which the files of {config.dataset!r} already have; choose "
            "another name"
        )
    _check_column_names(config, contract)
    withheld = {*config.exclude, *label_columns(config)}
    columns = [
        FeatureColumn(
            name,
            _FEATURE_TYPES.get(rule.type, rule.type),
            rule.shape,
            is_identity=name in config.identity,
            is_unique=config.identity == (name,),
        )
        for name, rule in contract.columns.items()
        if name not in withheld and name != config.event_time
    ]
    if config.event_time and not withheld & {config.event_time, "event_time"}:
        columns.append(FeatureColumn("event_time", ColumnType.TIMESTAMP))
    columns += [FeatureColumn(name, ColumnType.NUMBER) for name in config.derive if name not in withheld]
    _check_usable(config, columns)
    return tuple(columns)


def _check_column_names(config: PipelineConfig, contract: SchemaContract) -> None:
    available = (*contract.columns, *config.derive, "row_id", "event_time")
    conditions = (("label", config.label), ("training.where", config.training.where))
    used = [(key, _names_in(condition)) for key, condition in conditions]
    for key, names in (*used, ("split_by", config.training.split_by)):
        if unknown := [name for name in names if name not in available]:
            raise ConfigError(
                f"{key} names column {unknown[0]!r}, which {config.dataset!r} does not have; choose one of "
                f"{', '.join(dict.fromkeys(available))}"
            )


def _check_usable(config: PipelineConfig, columns: Sequence[FeatureColumn]) -> None:
    if config.training.where and USABLE in {*(column.name for column in columns), *split_columns(config)}:
        raise ConfigError(
            f"{config.dataset!r} has a column {USABLE!r}, the name of the column that training.where adds to the "
            "features; rename it in the files or in derive, or list it under exclude and leave it out of split_by"
        )


def _names_in(expression: str | None) -> list[str]:
    """Return the columns in an SQL expression; none if it is not valid SQL."""
    try:
        return pl.sql_expr(expression).meta.root_names() if expression else []
    except pl.exceptions.PolarsError:
        return []


def label_columns(config: PipelineConfig) -> set[str]:
    """Return the columns that the label uses directly or through derived columns, and the columns derived from them."""
    columns = set(_names_in(config.label))
    for name, expression in reversed(config.derive.items()):
        columns |= set(_names_in(expression)) if name in columns else set()
    for name, expression in config.derive.items():  # a derived column can use those above it
        columns |= {name} if columns & set(_names_in(expression)) else set()
    return columns


def build_features(raw: pl.DataFrame, config: PipelineConfig, contract: SchemaContract) -> pl.DataFrame:
    """Return cleaned and derived columns of raw rows.

    Times are UTC; `derive` and `label` see them in the time zone of the dataset. Numbers and decimals become float64,
    so that days with and without gaps have the same types; `raw_data` keeps the exact values. Timestamps get
    microseconds. Clocks become minutes after midnight, with 2400 as 0. Whitespace around text is removed, and empty
    text becomes missing. Derived numbers that are not finite become missing.

    Args:
        raw: Raw rows with `row_id` and `event_time`.
        config: Configuration with excluded and derived columns, and the label.
        contract: Schema contract with the types of the raw columns.

    Returns:
        One row per raw row with `row_id`, `event_time`, the columns of `feature_columns` and those of `split_columns`.
        With a label there is also `is_known_anomaly`: true for known anomalies, false for other rows, null if unknown.
        With `training.where` there is also `is_for_training`.

    Raises:
        ConfigError: A derived column, the label or `training.where` cannot be computed.
    """
    cleaned = raw.with_columns(
        *(_clean(name, rule.type) for name, rule in contract.columns.items() if name not in RESERVED_COLUMNS)
    ).with_columns(pl.selectors.datetime(time_zone="*").dt.convert_time_zone(config.timezone))
    for name, expression in config.derive.items():
        try:
            value = pl.sql_expr(expression).cast(pl.Float64)
            cleaned = cleaned.with_columns(pl.when(value.is_finite()).then(value).alias(name))
        except pl.exceptions.PolarsError as error:
            raise ConfigError(
                f"derive: {name}: {expression!r} cannot be computed on {config.dataset!r}: {first_line(error)}; "
                "correct the expression"
            ) from error
    names = [column.name for column in feature_columns(config, contract)]
    selected = dict.fromkeys(("row_id", "event_time", *names, *split_columns(config)))
    conditions = (("label", config.label, LABEL), ("training.where", config.training.where, USABLE))
    features = cleaned.select(
        *selected, *(_condition(key, text, cleaned, config).alias(name) for key, text, name in conditions if text)
    )
    return features.with_columns(pl.selectors.datetime(time_zone="*").dt.convert_time_zone("UTC"))


def with_exact_values(features: pl.DataFrame, raw: pl.DataFrame) -> pl.DataFrame:
    """Return features in which integers and decimals have their raw values, which people are shown.

    Args:
        features: Features, in which numbers are float64.
        raw: Raw values of the same rows, in the same order.
    """
    exact = (
        name
        for name, dtype in raw.schema.items()
        if dtype.is_numeric() and not dtype.is_float() and features.schema.get(name) == pl.Float64
    )
    # A time of day is minutes as a feature, and HHMM as a raw value.
    same = [name for name in exact if raw[name].cast(pl.Float64).equals(features[name], check_names=False)]
    return features.with_columns(raw[name] for name in same)


def _condition(key: str, expression: str, rows: pl.DataFrame, config: PipelineConfig) -> pl.Series:
    try:
        values = rows.with_columns(pl.sql_expr(expression).alias(LABEL))[LABEL]
    except pl.exceptions.PolarsError as error:
        raise ConfigError(
            f"{key}={expression!r} cannot be computed on {config.dataset!r}: {first_line(error)}; correct the "
            "expression"
        ) from error
    if values.dtype != pl.Boolean:
        raise ConfigError(
            f'{key}={expression!r} has type {values.dtype}, not Boolean; write a condition, such as "anomaly = 1"'
        )
    return values


def _clean(name: str, kind: ColumnType) -> pl.Expr:
    value = pl.col(name)
    match kind:
        case ColumnType.CLOCK_HHMM:
            return ((value // 100 * 60 + value % 100) % MINUTES_PER_DAY).cast(pl.Float64).alias(name)
        case ColumnType.INTEGER | ColumnType.NUMBER | ColumnType.DECIMAL:
            return value.cast(pl.Float64)
        case ColumnType.TIMESTAMP:
            return value.dt.cast_time_unit("us")
        case ColumnType.TEXT | ColumnType.CATEGORY:
            text = value.str.strip_chars()
            return pl.when(text != "").then(text).alias(name)
        case _:
            return value


def features_input_hash(day: str, dataset: Dataset, contract: SchemaContract) -> str | None:
    """Return a hash of everything that the features of a day are made from, or None if the day has no raw rows.

    Args:
        day: ISO date, or `ALL_ROWS`.
        dataset: Dataset of the day.
        contract: Current schema contract.
    """
    config = dataset.config
    raw_facts = read_facts(dataset.paths.raw(day))
    if not raw_facts:
        return None
    settings: list[object] = [
        config.exclude,
        sorted(config.derive.items()),
        config.event_time,
        *config.timezone_setting(),
    ]
    if config.label or split_columns(config):  # conditional, so that datasets without labels keep their hash
        settings += [config.label, split_columns(config)]
    if config.training.where:
        settings.append(config.training.where)
    return hash_json([FEATURES_VERSION, raw_facts["content_hash"], contract.fingerprint, settings])


def build_features_day(day: str, dataset: Dataset, contract: SchemaContract) -> DayResult:
    """Write the features of a day, unless the file is up to date.

    Args:
        day: ISO date, or `ALL_ROWS`.
        dataset: Dataset of the day.
        contract: Current schema contract.

    Raises:
        StorageError: The day has no raw rows.
        ConfigError: A derived column or the label cannot be computed.
    """
    config, paths = dataset.config, dataset.paths
    input_hash = features_input_hash(day, dataset, contract)
    if input_hash is None:
        raise StorageError(f"raw_data of {config.dataset!r} has no partition {day}; materialize it first")
    target = paths.features(day)
    facts = read_facts(target)
    if facts.get("input_hash") == input_hash:
        return DayResult(day=day, rows=int(facts["rows"]), content_hash=facts["content_hash"], built=False)
    if _images_are_copied(config, contract):
        content_hash, rows = _write_with_images(target, paths.raw(day), config, contract, {"input_hash": input_hash})
    else:
        features = build_features(pl.read_parquet(paths.raw(day), glob=False), config, contract)
        content_hash, rows = write_parquet(target, features.to_arrow(), {"input_hash": input_hash}), features.height
    return DayResult(day=day, rows=rows, content_hash=content_hash, built=True)


def _images_are_copied(config: PipelineConfig, contract: SchemaContract) -> bool:
    """Return whether features have images, and no expression reads them."""
    expressions = (*config.derive.values(), config.label, config.training.where)
    used = {name for expression in expressions for name in _names_in(expression)}
    return (
        bool(contract.images.keys() - {*config.exclude, *label_columns(config)}) and not contract.images.keys() & used
    )


def _write_with_images(
    target: Path, raw: Path, config: PipelineConfig, contract: SchemaContract, facts: dict[str, str]
) -> tuple[str, int]:
    """Write the features of a day with images, of which a part is in memory at once.

    Args:
        target: File to write.
        raw: File with the raw rows.
        config: Configuration of the dataset.
        contract: Schema contract of the dataset.
        facts: Facts of the file.

    Returns:
        Content hash and number of rows.
    """
    schema = pl.scan_parquet(raw, glob=False).collect_schema()
    others = pl.read_parquet(raw, columns=[name for name in schema if name not in contract.images], glob=False)
    placeholders = (pl.lit(None, schema[name]).alias(name) for name in contract.images)
    features = build_features(others.with_columns(*placeholders).select(*schema), config, contract)
    images = [name for name in features.columns if name in contract.images]
    # To read ahead would have the whole file in memory.
    with atomic_write(target) as temporary, pq.ParquetFile(raw, pre_buffer=False) as file:
        parts, start = ParquetParts(temporary, hashed=True), 0
        for batch in file.iter_batches(max(1, rows_at_once(contract) // 4), columns=images):
            table = features.slice(start, batch.num_rows).to_arrow()
            start += batch.num_rows
            for name in images:
                index = table.column_names.index(name)
                table = table.set_column(index, table.schema.field(index), batch.column(name))
            parts.add(table)
        if features.is_empty():
            parts.add(features.to_arrow())
        parts.finish(facts)
    return parts.content_hash, parts.rows


def content_days(paths: DatasetPaths) -> list[str]:
    """Return the names of the files of features, including damaged ones."""
    return sorted(path.stem for path in paths.features("_").parent.glob("[!.]*.parquet"))


def features_content(dataset: Dataset) -> dict[str, tuple[str, int]]:
    """Return content hash and number of rows of each day that has features."""
    config, paths = dataset.config, dataset.paths
    facts = {day: read_facts(paths.features(day)) for day in content_days(paths) if config.has_day(day)}
    return {day: (fact["content_hash"], int(fact["rows"])) for day, fact in facts.items() if fact}
