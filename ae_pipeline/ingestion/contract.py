"""The schema contract of a dataset: inferred once from what landed, then frozen in a YAML file that people edit."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Self

import polars as pl
import yaml
from pydantic import Field, ValidationError, model_validator

from ae_pipeline.common.errors import SchemaError
from ae_pipeline.config.columns import ColumnType, ImageShape
from ae_pipeline.config.model import Section
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.storage.files import write_text
from ae_pipeline.storage.hashing import hash_json

POLARS_TYPES: Mapping[ColumnType, pl.DataType] = {
    ColumnType.INTEGER: pl.Int64(),
    ColumnType.NUMBER: pl.Float64(),
    ColumnType.BOOLEAN: pl.Boolean(),
    ColumnType.CATEGORY: pl.String(),
    ColumnType.TEXT: pl.String(),
    ColumnType.CLOCK_HHMM: pl.Int64(),
    ColumnType.TIMESTAMP: pl.Datetime("us", "UTC"),
    ColumnType.DATE: pl.Date(),
    ColumnType.IMAGE: pl.Binary(),
}
"""What a contract's type is in memory and in staged, raw and feature files.

An image is the raw bytes of its height × width × channels values: row by row, channels last, little endian.
"""


class ColumnRule(Section):
    """What a column's values must be."""

    type: ColumnType
    required: bool = Field(default=False, description="A missing value sends the row to quarantine.")
    optional: bool = Field(default=False, description="A file may come without this column; its values are missing.")
    null_values: tuple[str, ...] = Field(default=(), description="Texts that mean missing, beside the empty one.")
    format: str | None = Field(default=None, description="How a timestamp or date is written (strftime).")
    minimum: float | None = Field(default=None, description="Least value allowed.")
    maximum: float | None = Field(default=None, description="Greatest value allowed.")
    allowed: tuple[str, ...] | None = Field(default=None, description="The only texts allowed.")
    shape: ImageShape | None = Field(default=None, description="What each image of the column is.")

    @model_validator(mode="after")
    def _bounds_fit(self) -> Self:
        if (self.minimum is not None or self.maximum is not None) and not POLARS_TYPES[self.type].is_numeric():
            raise ValueError(f"minimum and maximum do not go with type {self.type.value}; leave them out")
        return self

    @model_validator(mode="after")
    def _shape_fits(self) -> Self:
        if self.type == ColumnType.IMAGE and self.shape is None:
            raise ValueError(
                "type image needs shape; give 'shape: {height: …, width: …, channels: …, dtype: …}', where dtype is "
                "uint8, uint16 or float32"
            )
        if self.type != ColumnType.IMAGE and self.shape is not None:
            raise ValueError(f"shape={self.shape} goes with type image, got {self.type.value}; leave it out")
        if self.type == ColumnType.IMAGE and (self.null_values or self.format or self.allowed is not None):
            raise ValueError("null_values, format and allowed do not go with type image; leave them out")
        return self


class SchemaContract(Section):
    """Columns of a dataset and the rule of each."""

    dataset: str
    columns: Annotated[dict[str, ColumnRule], Field(min_length=1)]

    @property
    def fingerprint(self) -> str:
        """Changes whenever a rule does."""
        # Without the shapes that are not there, so that contracts of before there were images keep theirs.
        rules = {
            name: rule.model_dump(mode="json", exclude=None if rule.shape else {"shape"})
            for name, rule in self.columns.items()
        }
        return hash_json({"dataset": self.dataset, "columns": rules})

    @property
    def images(self) -> dict[str, ImageShape]:
        """Image columns and what their images are."""
        return {name: rule.shape for name, rule in self.columns.items() if rule.shape}

    @property
    def polars_schema(self) -> dict[str, pl.DataType]:
        """Column types in memory."""
        return {name: POLARS_TYPES[rule.type] for name, rule in self.columns.items()}


def load_contract(path: Path) -> SchemaContract:
    """Reads a contract.

    Raises:
        SchemaError: The file is not a contract.
    """
    try:
        return SchemaContract.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SchemaError(
            f"the schema contract {path} is not YAML: {error}; mend it, or move it away to have one inferred anew"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        index = ".".join(str(part) for part in first["loc"])
        raise SchemaError(
            f"the schema contract {path} breaks a rule at {index}: {first['msg']}, got "
            f"{first['input']!r}; mend it, or move it away to have one inferred anew"
        ) from error


def save_contract(contract: SchemaContract, path: Path, origin: str) -> None:
    """Writes a contract with a head that tells a person what it is."""
    body = contract.model_dump(mode="json", exclude_defaults=True)
    head = (
        f"# Schema contract of {contract.dataset!r}, inferred once from {origin}.\n"
        "# It is yours to edit: a row that breaks it goes to quarantine with a reason, and a file with other columns\n"
        "# is refused. After an edit the landed files are read again by the next run.\n"
        "# type: integer, number, boolean, category, clock_hhmm, timestamp, date, text or image; further words a\n"
        "# column may bear: required, optional (may be absent), null_values, format, minimum, maximum, allowed; an\n"
        "# image bears shape: {height, width, channels, dtype}, where dtype is uint8, uint16 or float32.\n"
    )
    write_text(path, head + yaml.safe_dump(body, sort_keys=False, default_flow_style=None, width=110))


def check_names(names: Sequence[str], config: PipelineConfig) -> None:
    """Holds the columns that the settings name against those that there are.

    Raises:
        SchemaError: The settings name a column that there is not.
    """
    wanted = {*config.identity, *config.columns, *config.exclude, *([config.event_time] if config.event_time else [])}
    wanted |= {config.images.column} if config.images else set()
    if unknown := sorted(wanted - set(names)):
        raise SchemaError(
            f"the configuration of {config.dataset!r} names column {unknown[0]!r}, which no landed file "
            f"has; the files have {', '.join(names)}"
        )


def contract_in_force(path: Path, config: PipelineConfig) -> SchemaContract:
    """Reads a contract and holds it against the settings, since either may have been edited after it was inferred.

    Identity and event time are required whatever the file says: a row without them would collapse into another. So are
    images, without which there is nothing to look at.

    Raises:
        SchemaError: The file is no contract, the settings name a column that it does not have, the event time is no
            time in it, or its images are not those of the settings.
    """
    contract = load_contract(path)
    check_names(list(contract.columns), config)
    _check_images(contract, config, path)
    keys = keys_of(contract, config)
    if config.event_time and contract.columns[config.event_time].type not in {ColumnType.TIMESTAMP, ColumnType.DATE}:
        raise SchemaError(
            f"event_time={config.event_time!r} of {config.dataset!r} is "
            f"{contract.columns[config.event_time].type.value} in the schema contract, not a timestamp or date; change "
            "its type there, or name another column"
        )
    always = {"required": True, "optional": False}
    rules = {name: rule.model_copy(update=always) if name in keys else rule for name, rule in contract.columns.items()}
    return contract.model_copy(update={"columns": rules})


def keys_of(contract: SchemaContract, config: PipelineConfig) -> set[str]:
    """Names the columns that no row can do without: identity, event time, images."""
    return {*config.identity, *contract.images, *([config.event_time] if config.event_time else [])}


def _check_images(contract: SchemaContract, config: PipelineConfig, path: Path) -> None:
    wanted = config.images.column if config.images else None
    anew = f"move {path} away to have it inferred anew"
    if wanted is not None and wanted not in contract.images:
        raise SchemaError(
            f"images of {config.dataset!r} are in column {wanted!r}, which the schema contract says is "
            f"{contract.columns[wanted].type.value}; {anew}"
        )
    if others := sorted(contract.images.keys() - {wanted}):
        raise SchemaError(
            f"column {others[0]!r} is an image in the schema contract of {config.dataset!r}, and images of the YAML "
            f"names {'no column' if wanted is None else repr(wanted)}; name it there, or {anew}"
        )
    patch = config.images.patch if config.images else None
    if wanted and patch and (contract.images[wanted].height, contract.images[wanted].width) != (patch, patch):
        raise SchemaError(
            f"patch={patch} of images gives {config.dataset!r} rows of {patch}×{patch} pixels, and the schema contract "
            f"says {contract.images[wanted]}; change one of them, or {anew}"
        )
