"""The data contract of a latent table: what its readers can rely on, in the Open Data Contract Standard."""

import polars as pl
from open_data_contract_standard.model import (
    CustomProperty,
    DataQuality,
    Description,
    OpenDataContractStandard,
    SchemaObject,
    SchemaProperty,
    Server,
    ServiceLevelAgreementProperty,
    Team,
    TeamMember,
)

from ae_pipeline.common.text import pluralize
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.latent_space.names import axes_name, latent_space_name
from ae_pipeline.latents.files import TableFiles
from ae_pipeline.latents.layout import latent_schema

CONTRACT, PAGE = "_contract/contract.yaml", "_contract/contract.md"
"""Paths of the contract and of its page, relative to the table."""

_STANDARD = "v3.1.0"

_TYPES = {
    "string": ("string", "string"),
    "timestamp[us, tz=UTC]": ("timestamp", "timestamp"),
    "date32[day]": ("date", "date"),
    "float": ("number", "float"),
    "double": ("number", "double"),
    "bool": ("boolean", "boolean"),
    "int64": ("integer", "long"),
}
"""Logical type of the standard and type of Delta Lake, by Arrow type."""

_NO_TIME = "Always null, because the rows of this dataset have no event time."


def build_contract(
    config: PipelineConfig, bundle: ModelBundle, model_version: int, files: TableFiles
) -> OpenDataContractStandard:
    """Return the contract of a table with the rows of a model. It has no version yet: `update_contract` sets it.

    Args:
        config: Current configuration of the dataset.
        bundle: Champion.
        model_version: Version of the champion.
        files: Files of the table.
    """
    name, space = f"{config.dataset}_latents", latent_space_name(model_version, bundle.fingerprint)
    teams = [owner.removeprefix("team:") for owner in config.owners if owner.startswith("team:")]
    people = [owner for owner in config.owners if not owner.startswith("team:")]
    return OpenDataContractStandard(
        apiVersion=_STANDARD,
        kind="DataContract",
        id=name,
        name=name,
        status="active",
        dataProduct=config.dataset,
        description=Description(
            purpose=config.description.strip() or None,
            usage=files.usage,
            limitations="All rows of a version belong to one latent space. Combine latents of two latent spaces only "
            "if both have the same latent axes. If the latent axes change, refit every model that you fitted on the "
            "latents.",
        ),
        team=Team.model_validate(
            {
                "name": ", ".join(teams) or None,
                "members": [TeamMember(username=person, role="owner") for person in people] or None,
            }
        ),
        servers=[_server(files)],
        schema=[
            SchemaObject(
                name=name,
                physicalName=config.dataset,
                physicalType="delta",
                logicalType="object",
                description="Latents and anomaly scores that an autoencoder computed, one row for each row of the "
                "dataset. The latents of a row are the numbers into which the autoencoder compresses it.",
                dataGranularityDescription=f"One row for each {', '.join(config.identity) or 'landed row'}.",
                properties=_columns(config, bundle),
                quality=_rules(bundle),
            )
        ],
        slaDefaultElement=f"{name}.event_time" if config.is_daily else None,
        slaProperties=[
            *([sla("latency", config.fresh_hours, "h")] if config.fresh_hours else []),
            sla("retention", config.latents.retention_days, "d"),
        ],
        customProperties=[
            CustomProperty(property="latentSpace", value=space),
            CustomProperty(property="modelVersion", value=model_version),
            CustomProperty(
                property="latentAxes",
                value=axes_name(bundle, model_version),
                description="Name of the axes of the latents. Latent spaces with the same axes can be combined.",
            ),
        ],
    )


def sla(name: str, value: str | int, unit: str | None = None) -> ServiceLevelAgreementProperty:
    """Return one property of the service level agreement."""
    return ServiceLevelAgreementProperty(property=name, value=value, unit=unit)


def _server(files: TableFiles) -> Server:
    if files.is_folder:
        return Server(server="table", type="local", format="delta", path=files.location)
    return Server(server="table", type=files.location.split(":")[0], format="delta", location=files.location)


def _columns(config: PipelineConfig, bundle: ModelBundle) -> list[SchemaProperty]:
    descriptions = {
        "row_id": f"Identity of the row: {_identity(config)}.",
        "event_time": "Time of the event, UTC." if config.is_daily else _NO_TIME,
        "date": f"Day of event_time, {config.timezone}." if config.is_daily else _NO_TIME,
        "score": "Anomaly score of the row: a higher score is more anomalous. It is a surprisal, minus the natural "
        "logarithm of the estimated probability of a row that is at least as unusual.",
        "p_value": "Conformal p-value: the share of the calibration rows that score at least as high. A smaller value "
        "is more anomalous. Calibration rows are rows of the training window that the model was not fitted on.",
        "is_anomaly": f"Whether p_value is at most {bundle.calibration.budget:g}, the alert budget. The alert budget "
        "is the share of normal rows that may be flagged.",
        "model_version": "Version of the registered model that computed the row. It is the same in all rows.",
        "latent_space": "Name of the latent space that the latents belong to. It is the same in all rows.",
    }
    units = {"score": "nats", "p_value": "share of rows", "event_time": "microseconds, UTC"}
    limits = {"p_value": {"minimum": 0, "maximum": 1}, "model_version": {"minimum": 1}}
    key = ["row_id", "date"] if config.is_daily else ["row_id"]
    columns = []
    for field in latent_schema(bundle.model.latent_dim):
        logical, physical = _TYPES[str(field.type)]
        is_latent = field.name.startswith("z_")
        unit = "arbitrary" if is_latent else units.get(field.name)
        columns.append(
            SchemaProperty(
                name=field.name,
                logicalType=logical,
                physicalType=physical,
                required=not field.nullable or (config.is_daily and field.name in {"event_time", "date"}),
                primaryKey=True if field.name in key else None,
                primaryKeyPosition=key.index(field.name) + 1 if field.name in key else None,
                description=_latent_description(field.name) if is_latent else descriptions[field.name],
                logicalTypeOptions=limits.get(field.name),
                customProperties=[CustomProperty(property="unit", value=unit)] if unit else None,
            )
        )
    return columns


def _identity(config: PipelineConfig) -> str:
    if not config.identity:
        return "a hash of its values, and the number of its occurrence"
    if len(config.identity) == 1:
        return f"the value of {config.identity[0]}"
    return f"the values of {', '.join(config.identity)}, joined by a vertical bar"


def _latent_description(column: str) -> str:
    index = int(column.removeprefix("z_"))
    return f"Latent {index} of the row: its coordinate on axis {index} of the latent space."


def _rules(bundle: ModelBundle) -> list[DataQuality]:
    floats = [f.name for f in latent_schema(bundle.model.latent_dim) if str(f.type) in {"float", "double"}]
    finite = " AND ".join(f"ABS({name}) <= 3.4028235e38" for name in floats)
    budget = bundle.calibration.budget
    return [
        _row_rule("values_are_finite", "No latent, score or p-value is infinite or NaN.", f"NOT ({finite})"),
        _row_rule(
            "flags_keep_the_budget",
            f"is_anomaly is true if p_value is at most {budget:g}, the alert budget. Otherwise it is false.",
            f"is_anomaly <> (p_value <= {budget!r})",
        ),
        _rule(
            "identity_stands_once_a_day",
            "No row_id occurs more than once on the same date.",
            "COUNT(*)",
            0,
            source="(SELECT row_id, date FROM ${object} GROUP BY row_id, date HAVING COUNT(*) > 1) AS repeated",
        ),
        _rule("one_space", "All rows have the same latent_space.", "COUNT(DISTINCT latent_space)", 1),
    ]


def _row_rule(name: str, description: str, condition: str) -> DataQuality:
    """Return a rule that no row fulfills a condition."""
    return _rule(name, description, "COUNT(*)", 0, source=f"${{object}} WHERE {condition}")


def _rule(name: str, description: str, value: str, expected: int, source: str = "${object}") -> DataQuality:
    query = "SELECT " + value + " FROM " + source  # noqa: S608 - the parts are constants and names of columns
    return DataQuality.model_validate(
        {"name": name, "description": description, "type": "sql", "query": query, "mustBe": expected}
    )


def violations(contract: OpenDataContractStandard, rows: pl.DataFrame) -> list[str]:
    """Return the rules of the contract that rows violate: required columns, limits, and quality rules.

    Args:
        contract: Contract of the table.
        rows: Rows of one or more files of the table.

    Returns:
        A sentence for each violated rule.
    """
    (table,) = contract.schema_ or []
    messages: list[str] = []
    for column in table.properties or []:
        name, values = str(column.name), rows[str(column.name)]
        limits = column.logicalTypeOptions or {}
        outside = pl.Series([False]).new_from_index(0, rows.height)
        if "minimum" in limits:
            outside |= values < limits["minimum"]
        if "maximum" in limits:
            outside |= values > limits["maximum"]
        counts = {
            f"required column {name!r} is null": values.null_count() if column.required else 0,
            f"column {name!r} is outside {limits}": int(outside.sum()),
        }
        messages += [f"{message} in {pluralize(count, 'row')}" for message, count in counts.items() if count]
    with pl.SQLContext(rows=rows) as context:
        for rule in table.quality or []:
            value = context.execute(str(rule.query).replace("${object}", "rows"), eager=True).item()
            if value != rule.mustBe:
                messages.append(f"{rule.name} is {value:,} instead of {rule.mustBe:,} ({rule.description})")
    return messages


def described(contract: OpenDataContractStandard) -> dict[str, str | None]:
    """Return the description of each column of the table, with its unit."""
    columns = [column for table in contract.schema_ or [] for column in table.properties or []]
    texts = {str(column.name): (column.description, unit_of(column)) for column in columns}
    return {name: f"{text} Unit: {unit}." if unit else text for name, (text, unit) in texts.items()}


def unit_of(column: SchemaProperty) -> str:
    """Return the unit of a column, or an empty text if it has none."""
    return str(next((entry.value for entry in column.customProperties or [] if entry.property == "unit"), ""))
