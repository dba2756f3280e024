"""The data contract beside a latent table: what its readers may rely on, in the Open Data Contract Standard."""

import datetime as dt
from collections.abc import Mapping
from typing import Any

import jinja2
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

from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.latent_space.names import axes_name, latent_space_name
from ae_pipeline.latents.files import TableFiles
from ae_pipeline.latents.layout import latent_schema

CONTRACT, PAGE = "_contract/contract.yaml", "_contract/contract.md"

_STANDARD = "v3.1.0"

_LOGICAL = {
    "string": ("string", "string"),
    "timestamp[us, tz=UTC]": ("timestamp", "timestamp"),
    "date32[day]": ("date", "date"),
    "float": ("number", "float"),
    "double": ("number", "double"),
    "bool": ("boolean", "boolean"),
    "int64": ("integer", "long"),
}
"""Logical type of the standard and type of Delta, by the type of Arrow."""


def build_contract(
    config: PipelineConfig, bundle: ModelBundle, model_version: int, files: TableFiles
) -> OpenDataContractStandard:
    """Writes the contract of a table that holds the rows of a model; `renew` gives it its version.

    Args:
        config: The pipeline's as it is now.
        bundle: The model that serves.
        model_version: Its version.
        files: Of the table.
    """
    name, space = f"{config.dataset}_latents", latent_space_name(model_version, bundle.fingerprint)
    teams = [owner.removeprefix("team:") for owner in config.owners if owner.startswith("team:")]
    people = [owner for owner in config.owners if not owner.startswith("team:")]
    reader = f"deltalake.DeltaTable({files.location!r})"
    return OpenDataContractStandard(
        apiVersion=_STANDARD,
        kind="DataContract",
        id=name,
        name=name,
        status="active",
        dataProduct=config.dataset,
        description=Description(
            purpose=config.description.strip() or None,
            usage=f"Read it as a Delta Lake table, such as {reader}.to_pandas(). One version of the table is one state "
            "of all its rows; read everything that belongs together from one version.",
            limitations="Rows of two latent spaces must not be compared, unless their axes bear the same name: all "
            "rows of a version are of one space.",
        ),
        team=Team(
            name=", ".join(teams) or None,
            members=[TeamMember(username=person, role="owner") for person in people] or None,
        ),
        servers=[_server(files)],
        schema=[
            SchemaObject(
                name=name,
                physicalName=config.dataset,
                physicalType="delta",
                logicalType="object",
                description="Latents and scores, one row for each row of features.",
                dataGranularityDescription=f"One row for each {', '.join(config.identity)}.",
                properties=_columns(config, bundle),
                quality=_rules(bundle),
            )
        ],
        slaDefaultElement=f"{name}.event_time" if config.is_daily else None,
        slaProperties=[
            *([_sla("latency", config.fresh_hours, "h")] if config.fresh_hours else []),
            _sla("retention", config.latents.retention_days, "d"),
        ],
        customProperties=[
            CustomProperty(property="latentSpace", value=space),
            CustomProperty(property="modelVersion", value=model_version),
            CustomProperty(
                property="latentAxes",
                value=axes_name(bundle, model_version),
                description="Spaces with the same axes go on in one another.",
            ),
        ],
    )


def _server(files: TableFiles) -> Server:
    if files.is_folder:
        return Server(server="table", type="local", format="delta", path=files.location)
    return Server(server="table", type=files.location.split(":")[0], format="delta", location=files.location)


def _sla(name: str, value: str | int, unit: str | None = None) -> ServiceLevelAgreementProperty:
    return ServiceLevelAgreementProperty(property=name, value=value, unit=unit)


def _columns(config: PipelineConfig, bundle: ModelBundle) -> list[SchemaProperty]:
    described = {
        "row_id": f"Identity of the row: {', '.join(config.identity)}.",
        "event_time": "When it happened, UTC." if config.is_daily else "Empty: the rows have no time.",
        "date": "Day of it, UTC." if config.is_daily else "Empty: the rows have no time.",
        "score": "Surprise of the row: the higher, the stranger.",
        "p_value": "Share of rows like those of the calibration days that score as high.",
        "is_anomaly": f"Whether p_value lies within the alert budget of {bundle.config.alerts.budget:g}.",
        "model_version": "Version of the registered model; all rows bear the same.",
        "latent_space": "Whose axes the latents are told in; all rows bear the same.",
    }
    units = {"score": "nats", "p_value": "share of rows", "event_time": "microseconds, UTC"}
    limits = {"p_value": {"minimum": 0, "maximum": 1}, "model_version": {"minimum": 1}}
    key = ["row_id", "date"] if config.is_daily else ["row_id"]
    columns = []
    for field in latent_schema(bundle.model.latent_dim):
        logical, physical = _LOGICAL[str(field.type)]
        unit = units.get(field.name) or ("units of its axis" if field.name.startswith("z_") else None)
        columns.append(
            SchemaProperty(
                name=field.name,
                logicalType=logical,
                physicalType=physical,
                required=not field.nullable or (config.is_daily and field.name in {"event_time", "date"}),
                primaryKey=True if field.name in key else None,
                primaryKeyPosition=key.index(field.name) + 1 if field.name in key else None,
                description=described.get(field.name, "Latent of the row on this axis."),
                logicalTypeOptions=limits.get(field.name),
                customProperties=[CustomProperty(property="unit", value=unit)] if unit else None,
            )
        )
    return columns


def _rules(bundle: ModelBundle) -> list[DataQuality]:
    floats = [f.name for f in latent_schema(bundle.model.latent_dim) if str(f.type) in {"float", "double"}]
    finite = " AND ".join(f"ABS({name}) <= 3.4028235e38" for name in floats)
    budget = bundle.config.alerts.budget
    return [
        _rule("values_are_finite", "No latent, score or p-value is infinite or NaN.", f"NOT ({finite})"),
        _rule(
            "flags_keep_the_budget",
            "A row is flagged where its p-value lies within the alert budget, and nowhere else.",
            f"is_anomaly <> (p_value <= {budget!r})",
        ),
        _quality(
            "identity_stands_once_a_day",
            "No identity stands twice on a day.",
            "COUNT(*)",
            0,
            of="(SELECT row_id, date FROM ${object} GROUP BY row_id, date HAVING COUNT(*) > 1) AS repeated",
        ),
        _quality("one_space", "All rows are of one latent space.", "COUNT(DISTINCT latent_space)", 1),
    ]


def _rule(name: str, description: str, broken: str) -> DataQuality:
    return _quality(name, description, "COUNT(*)", 0, of=f"${{object}} WHERE {broken}")


def _quality(name: str, description: str, counted: str, expected: int, of: str = "${object}") -> DataQuality:
    query = "SELECT " + counted + " FROM " + of  # noqa: S608 - of names of our own
    return DataQuality.model_validate(
        {"name": name, "description": description, "type": "sql", "query": query, "mustBe": expected}
    )


def broken_rules(contract: OpenDataContractStandard, rows: pl.DataFrame) -> list[str]:
    """Holds rows of the table against its contract: required, limits, and the rules of its quality.

    Args:
        contract: Of the table.
        rows: One or more of its files.

    Returns:
        A sentence for each rule that they break.
    """
    (table,) = contract.schema_ or []
    broken: list[str] = []
    for column in table.properties or []:
        name, values = str(column.name), rows[str(column.name)]
        limits = column.logicalTypeOptions or {}
        outside = pl.Series([False]).new_from_index(0, rows.height)
        if "minimum" in limits:
            outside |= values < limits["minimum"]
        if "maximum" in limits:
            outside |= values > limits["maximum"]
        counts = {
            f"column {name!r} is required and missing": values.null_count() if column.required else 0,
            f"column {name!r} lies outside {limits}": int(outside.sum()),
        }
        broken += [f"{message} in {count:,} rows" for message, count in counts.items() if count]
    with pl.SQLContext(rows=rows) as context:
        for rule in table.quality or []:
            found = context.execute(str(rule.query).replace("${object}", "rows"), eager=True).item()
            if found != rule.mustBe:
                broken.append(f"{rule.name} counts {found:,} and not {rule.mustBe:,} ({rule.description})")
    return broken


def described(contract: OpenDataContractStandard) -> dict[str, str | None]:
    """Gives what each column of the table is, with its unit."""
    columns = [column for table in contract.schema_ or [] for column in table.properties or []]
    message = {str(column.name): (column.description, _unit(column)) for column in columns}
    return {name: f"{text} In {unit}." if unit else text for name, (text, unit) in message.items()}


def read_contract(files: TableFiles) -> OpenDataContractStandard | None:
    """Reads the contract beside a table, or gives None where there is none yet."""
    text = files.read_text(CONTRACT)
    return OpenDataContractStandard.from_string(text) if text is not None else None


def renew(
    contract: OpenDataContractStandard, files: TableFiles, last_versions: Mapping[str, int], now: dt.datetime
) -> OpenDataContractStandard:
    """Gives a contract its version and writes it, with a page to read, where it says something new.

    The version's first number rises when columns or the axes of the latents change, so that what was built on them
    must be built anew; the second when another model goes on with them, and the third with everything else. A contract
    whose first number has passed stays below `_contract/versions`, deprecated, with the day on which the rows of its
    space will be gone.

    Args:
        contract: As `build_contract` gives it.
        files: Of the table.
        last_versions: Newest version of the table in each latent space.
        now: The time, UTC.
    """
    previous = read_contract(files)
    if previous is None:
        return _write(contract, files, "1.0.0", [], now)
    retention = next(float(str(sla.value)) for sla in contract.slaProperties or [] if sla.property == "retention")
    space, old_space = _told(contract, "latentSpace"), _told(previous, "latentSpace")
    earlier = [entry for entry in _told(previous, "earlierSpaces", []) if entry["latentSpace"] != space]
    if space != old_space:
        retired = {
            "latentSpace": old_space,
            "modelVersion": _told(previous, "modelVersion"),
            "latentAxes": _told(previous, "latentAxes"),
            "contractVersion": previous.version,
            "tableVersion": last_versions.get(old_space),
            "retiredOn": f"{now:%Y-%m-%d}",
        }
        earlier = [retired, *(entry for entry in earlier if entry["latentSpace"] != old_space)]
    # By the retention as it is now, which is what the files are collected by.
    earlier = [{**entry, "readableUntil": _days_after(entry["retiredOn"], retention)} for entry in earlier]
    _tell_ends(files, earlier)
    earlier = [entry for entry in earlier if entry["readableUntil"] >= f"{now:%Y-%m-%d}"]
    major, minor, patch = map(int, str(previous.version).split("."))
    if _shape(contract) != _shape(previous) or _told(contract, "latentAxes") != _told(previous, "latentAxes"):
        _retire(previous, files, _days_after(f"{now:%Y-%m-%d}", retention))
        return _write(contract, files, f"{major + 1}.0.0", earlier, now)
    if space != old_space:
        return _write(contract, files, f"{major}.{minor + 1}.0", earlier, now)
    if _text(_with_spaces(contract, earlier)) != _text(previous):
        return _write(contract, files, f"{major}.{minor}.{patch + 1}", earlier, now)
    return previous


def _told(contract: OpenDataContractStandard, name: str, default: Any = None) -> Any:
    return next((entry.value for entry in contract.customProperties or [] if entry.property == name), default)


def _shape(contract: OpenDataContractStandard) -> list[tuple[str | None, ...]]:
    return [(c.name, c.physicalType) for table in contract.schema_ or [] for c in table.properties or []]


def _text(contract: OpenDataContractStandard) -> str:
    """Gives all that a contract says, but for its version and the time of that."""
    return contract.model_copy(update={"version": None, "contractCreatedTs": None}).to_yaml()


def _with_spaces(contract: OpenDataContractStandard, earlier: list[dict[str, Any]]) -> OpenDataContractStandard:
    if not earlier:
        return contract
    told = CustomProperty(
        property="earlierSpaces", value=earlier, description="Readable by their version of the table until the day."
    )
    return contract.model_copy(update={"customProperties": [*(contract.customProperties or []), told]})


def _days_after(day: str, days: float) -> str:
    return f"{dt.date.fromisoformat(day) + dt.timedelta(days=days):%Y-%m-%d}"


def _retire(contract: OpenDataContractStandard, files: TableFiles, until: str) -> None:
    slas = [sla for sla in contract.slaProperties or [] if sla.property != "endOfLife"]
    old = contract.model_copy(update={"status": "deprecated", "slaProperties": [*slas, _sla("endOfLife", until)]})
    files.write_text(_retired(contract.version), old.to_yaml())


def _retired(version: object) -> str:
    return f"_contract/versions/{version}.yaml"


def _tell_ends(files: TableFiles, earlier: list[dict[str, Any]]) -> None:
    """Mends the last day of contracts that were retired under another retention."""
    for entry in earlier:
        text = files.read_text(_retired(entry["contractVersion"]))
        if text is not None and entry["readableUntil"] not in text:
            _retire(OpenDataContractStandard.from_string(text), files, entry["readableUntil"])


def _write(
    contract: OpenDataContractStandard,
    files: TableFiles,
    version: str,
    earlier: list[dict[str, Any]],
    now: dt.datetime,
) -> OpenDataContractStandard:
    dated = {"version": version, "contractCreatedTs": f"{now:%Y-%m-%dT%H:%M:%SZ}"}
    contract = _with_spaces(contract, earlier).model_copy(update=dated)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ae_pipeline.latents", "."),
        autoescape=False,  # noqa: S701 - a page of Markdown, made of the YAML that the owner wrote
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    (table,) = contract.schema_ or []
    units = {str(c.name): _unit(c) for c in table.properties or []}
    page = environment.get_template("contract.md.j2").render(
        contract=contract, table=table, units=units, earlier=earlier, told=lambda name: _told(contract, name)
    )
    files.write_text(PAGE, page)
    files.write_text(CONTRACT, contract.to_yaml())
    return contract


def _unit(column: SchemaProperty) -> str:
    return str(next((entry.value for entry in column.customProperties or [] if entry.property == "unit"), ""))
