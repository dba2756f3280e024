"""The schema contract of a dataset: a YAML file that is inferred once and then edited by people."""

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self

import polars as pl
from pydantic import Field, ValidationError, model_validator

from ae_pipeline.common.errors import SchemaError
from ae_pipeline.common.text import pluralize
from ae_pipeline.config.columns import RESERVED_COLUMNS, ColumnType, ImageShape, ValueFormat, check_value_format
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.config.section import Section
from ae_pipeline.config.source import Dialect, ImagesConfig
from ae_pipeline.storage.files import write_text
from ae_pipeline.storage.hashing import hash_json

POLARS_TYPES: Mapping[ColumnType, pl.DataType] = {
    ColumnType.INTEGER: pl.Int64(),
    ColumnType.NUMBER: pl.Float64(),
    ColumnType.DECIMAL: pl.Decimal(38, 0),
    ColumnType.BOOLEAN: pl.Boolean(),
    ColumnType.CATEGORY: pl.String(),
    ColumnType.TEXT: pl.String(),
    ColumnType.CLOCK_HHMM: pl.Int64(),
    ColumnType.TIMESTAMP: pl.Datetime("us", "UTC"),
    ColumnType.DATE: pl.Date(),
    ColumnType.IMAGE: pl.Binary(),
}
"""Data type of each contract type in memory and in staged and raw files, see also `ColumnRule.dtype`.

An image is stored as the bytes of its height × width × channels values: row by row, channels last, little endian.
"""


_LATER_KEYS = {"shape", "scale", "precision", "decimal", "thousands", "prefix", "suffix", "true_values", "false_values"}
"""Keys that the first contracts did not have. Without a value they do not change the fingerprint."""


_FIRST_KEYS = ("type", "required", "optional", "null_values", "format")
"""Keys of a rule that come first in the file, in this order."""


class ColumnRule(ValueFormat):
    """The rule for the values of a column. A row that violates it goes to quarantine."""

    type: ColumnType = Field(
        description="Type of the values. `clock_hhmm` is a time of day as an integer, such as 1745."
    )
    required: bool = Field(
        default=False, description="Whether every row must have a value. By default values may be missing."
    )
    optional: bool = Field(
        default=False,
        description="Whether a file may lack this column; its values are then missing. By default such a file is "
        "refused.",
    )
    minimum: float | None = Field(default=None, description="Smallest valid number. By default there is no limit.")
    maximum: float | None = Field(default=None, description="Largest valid number. By default there is no limit.")
    allowed: tuple[str, ...] | None = Field(
        default=None, description="All valid texts. By default every text is valid."
    )
    shape: ImageShape | None = Field(
        default=None, description="Shape of every image: height, width, channels and dtype. Required for type `image`."
    )

    @property
    def dtype(self) -> pl.DataType:
        """Data type of the values in memory and in staged and raw files."""
        if self.type == ColumnType.DECIMAL:
            return pl.Decimal(38, self.scale or 0)
        if self.type == ColumnType.TIMESTAMP and self.precision == "ns":
            return pl.Datetime("ns", "UTC")
        return POLARS_TYPES[self.type]

    @model_validator(mode="after")
    def _format_fits(self) -> Self:
        check_value_format(self, self.type)
        return self

    @model_validator(mode="after")
    def _bounds_fit(self) -> Self:
        if (self.minimum is not None or self.maximum is not None) and not POLARS_TYPES[self.type].is_numeric():
            raise ValueError(f"minimum and maximum are for numbers, got type {self.type.value}; remove them")
        return self

    @model_validator(mode="after")
    def _shape_fits(self) -> Self:
        if self.type == ColumnType.IMAGE and self.shape is None:
            raise ValueError(
                "type image needs shape; give 'shape: {height: …, width: …, channels: …, dtype: …}', where dtype is "
                "uint8, uint16 or float32"
            )
        if self.type != ColumnType.IMAGE and self.shape is not None:
            raise ValueError(f"shape={self.shape} is for type image, got type {self.type.value}; remove it")
        if self.type == ColumnType.IMAGE and (self.null_values or self.format or self.allowed is not None):
            raise ValueError("null_values, format and allowed are not for type image; remove them")
        return self


class OnDelete(StrEnum):
    """What happens to the rows of a landed file that is deleted."""

    KEEP = "keep"
    WITHDRAW = "withdraw"


class SchemaContract(Section):
    """The columns of a dataset and the rule for each, and how its text files are written."""

    dataset: str = Field(description="Name of the dataset.")
    on_delete: OnDelete = Field(
        default=OnDelete.KEEP,
        description="What happens to the rows of a landed file that is deleted: `keep` keeps them, `withdraw` removes "
        "them, and builds their days again. If all files are missing, nothing is removed.",
    )
    columns: Annotated[dict[str, ColumnRule], Field(min_length=1, description="Rule of each column.")]
    dialects: tuple[Dialect, ...] = Field(
        default=(),
        description="Separator and encoding of the text files. A file with others is refused. By default every file is "
        "read as it shows.",
    )
    skipped: tuple[str, ...] = Field(
        default=(), description="Columns that are not read, such as those with nested or binary values."
    )

    @model_validator(mode="after")
    def _skipped_columns_have_no_rule(self) -> Self:
        if both := sorted({*self.skipped} & self.columns.keys()):
            raise ValueError(f"column {both[0]!r} has a rule and is skipped; remove it from columns or from skipped")
        return self

    @property
    def fingerprint(self) -> str:
        """Hash of all rules."""
        rules = {
            name: rule.model_dump(mode="json", exclude={key for key in _LATER_KEYS if getattr(rule, key) in (None, ())})
            for name, rule in self.columns.items()
        }
        # The same holds for the keys of files.
        of_files = self.model_dump(mode="json", include={"dialects", "skipped"}, exclude_defaults=True)
        return hash_json({"dataset": self.dataset, "columns": rules, **of_files})

    @property
    def images(self) -> dict[str, ImageShape]:
        """Image columns and the shape of their images."""
        return {name: rule.shape for name, rule in self.columns.items() if rule.shape}

    @property
    def polars_schema(self) -> dict[str, pl.DataType]:
        """Data type of each column in memory."""
        return {name: rule.dtype for name, rule in self.columns.items()}


def load_contract(path: Path) -> SchemaContract:
    """Read a schema contract.

    Raises:
        SchemaError: The file is not a valid contract.
    """
    import yaml

    try:
        return SchemaContract.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SchemaError(
            f"the schema contract {path} is not valid YAML: {error}; correct it, or move it away to infer a new one, "
            f"or `ae-pipeline doctor {path.stem} --repair` restores the one that the last run used"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise SchemaError(
            f"the schema contract {path} is not valid at {key}: {first['msg']}, got {first['input']!r}; correct it, or "
            f"move it away to infer a new one, or `ae-pipeline doctor {path.stem} --repair` restores the one that the "
            "last run used"
        ) from error


def save_contract(contract: SchemaContract, path: Path, origin: str) -> None:
    """Write a schema contract, with comments that explain how to edit it.

    Args:
        contract: Contract to write.
        path: File to write.
        origin: What the contract was inferred from, such as `1,200 rows of 3 files`.
    """
    import yaml

    body = contract.model_dump(mode="json", exclude_defaults=True)
    body["columns"] = {
        name: {key: rule[key] for key in dict.fromkeys((*_FIRST_KEYS, *rule)) if key in rule}
        for name, rule in body["columns"].items()
    }
    comments = (
        f"# Schema contract of {contract.dataset!r}, inferred once from {origin}.\n"
        "# You can edit it. A row that violates it goes to quarantine with a reason, and a file with other columns is\n"
        "# refused. After an edit, the next run reads the landed files again.\n"
        "# type: integer, number, decimal, boolean, category, clock_hhmm, timestamp, date, text or image.\n"
        "# Other keys of a column: required, optional (files may lack it), null_values, format, minimum, maximum,\n"
        "# allowed, scale (of a decimal), precision (us or ns, of a timestamp), decimal, thousands, prefix and suffix\n"
        "# (of numbers), true_values and false_values. An image needs shape: {height, width, channels, dtype};\n"
        "# dtype is uint8, uint16 or float32.\n"
        "# on_delete: keep (the rows of a deleted file stay, the default) or withdraw (they are removed).\n"
    )
    if contract.dialects or contract.skipped:
        comments += (
            "# dialects: separator and encoding of the text files; a file with others is refused.\n"
            "# skipped: columns that are not read.\n"
        )
    write_text(path, comments + yaml.safe_dump(body, sort_keys=False, default_flow_style=None, width=110))


def check_names(names: Sequence[str], config: PipelineConfig) -> None:
    """Check that the columns in the configuration exist.

    Args:
        names: Columns of the landed files.
        config: Configuration of the dataset.

    Raises:
        SchemaError: The configuration names a column that no file has.
    """
    configured = {
        *config.identity,
        *config.columns,
        *config.exclude,
        *([config.event_time] if config.event_time else []),
    }
    configured |= {config.images.column} if config.images else set()
    if unknown := sorted(configured - set(names)):
        raise SchemaError(
            f"the configuration of {config.dataset!r} names column {unknown[0]!r}, which no landed file has; choose "
            f"one of {', '.join(names)}"
        )


def contract_in_force(path: Path, config: PipelineConfig) -> SchemaContract:
    """Read a schema contract and check that it fits the configuration. People can edit both after the inference.

    Identity, event time and images are required even if the file says otherwise: rows without an identity would replace
    one another, and a row without an image has no content.

    Args:
        path: File of the contract.
        config: Configuration of the dataset.

    Raises:
        SchemaError: The file is not a valid contract, lacks a column of the configuration, gives the event time another
            type, or has other images than the configuration.
    """
    contract = load_contract(path)
    known_unread = {*contract.skipped, *(RESERVED_COLUMNS - contract.columns.keys())}
    readable = tuple(name for name in config.exclude if name not in known_unread)
    check_names(list(contract.columns), config.model_copy(update={"exclude": readable}))
    _check_images(contract, config, path)
    keys = required_columns(contract, config)
    if config.event_time and contract.columns[config.event_time].type not in {ColumnType.TIMESTAMP, ColumnType.DATE}:
        raise SchemaError(
            f"event_time={config.event_time!r} of {config.dataset!r} is "
            f"{contract.columns[config.event_time].type.value} in the schema contract, not a timestamp or date; change "
            "its type there, or choose another column"
        )
    always = {"required": True, "optional": False}
    rules = {name: rule.model_copy(update=always) if name in keys else rule for name, rule in contract.columns.items()}
    # What the model does not see is no reason to refuse a file.
    unseen = {name for name in config.exclude if name in rules and not is_needed(name, config)}
    rules |= {name: rules[name].model_copy(update={"optional": True}) for name in unseen}
    return contract.model_copy(update={"columns": rules})


def required_columns(contract: SchemaContract, config: PipelineConfig) -> set[str]:
    """Return the columns that every row needs: identity, event time and images."""
    return {*config.identity, *contract.images, *([config.event_time] if config.event_time else [])}


def is_needed(column: str, config: PipelineConfig) -> bool:
    """Return whether the configuration uses a column, so that a file without readable values there is refused."""
    image = [config.images.column] if config.images else []
    named = {*config.identity, config.event_time, *config.columns, *config.training.split_by, *image}
    expressions = " ".join([*config.derive.values(), config.label or "", config.training.where or ""])
    return column in named or re.search(rf"(?<!\w){re.escape(column)}(?!\w)", expressions) is not None


def _check_images(contract: SchemaContract, config: PipelineConfig, path: Path) -> None:
    column = config.images.column if config.images else None
    remedy = f"move {path} away to infer a new contract"
    if column is not None and column not in contract.images:
        raise SchemaError(
            f"images.column={column!r} of {config.dataset!r} has type {contract.columns[column].type.value} in the "
            f"schema contract, not image; {remedy}"
        )
    if others := sorted(contract.images.keys() - {column}):
        raise SchemaError(
            f"column {others[0]!r} is an image in the schema contract of {config.dataset!r}, but images.column in the "
            f"YAML is {'not set' if column is None else repr(column)}; set it, or {remedy}"
        )
    if config.images and column:
        _check_shape(contract.images[column], config.images, config.dataset, remedy)


def _check_shape(shape: ImageShape, images: ImagesConfig, dataset: str, remedy: str) -> None:
    """Raise an error if the settings of images cannot give the shape in the schema contract."""
    size = (shape.height, shape.width)
    set_size = images.patch or images.crop or images.resize or size
    expected = (set_size, set_size) if isinstance(set_size, int) else set_size
    if images.pad and not images.patch:
        least = (images.pad, images.pad) if isinstance(images.pad, int) else images.pad
        expected = (max(expected[0], least[0]), max(expected[1], least[1]))
    # A number to resize to is that of the shorter side alone, and each image has its own longer side.
    has_longer_side = isinstance(images.resize, int) and not images.crop and not images.patch
    sides = [side == wanted for side, wanted in zip(size, expected, strict=True)]
    longer = [side >= wanted for side, wanted in zip(size, expected, strict=True)]
    fits = any(sides) and all(longer) if has_longer_side else all(sides)
    channels = {"grey": 1, "rgb": 3, "rgba": 4, None: shape.channels}[images.mode]
    if fits and channels == shape.channels:
        return
    keys = ("mode",) if fits else ("patch",) if images.patch else ("resize", "crop", "pad")
    settings = ", ".join(f"images.{key}={value}" for key in keys if (value := getattr(images, key)))
    pixels = f"{'×'.join(map(str, size if fits else expected))} pixels"
    pixels += ", or more on one side," if has_longer_side and not fits else ""
    raise SchemaError(
        f"{settings} gives {dataset!r} rows of {pixels} with {pluralize(channels, 'channel')}, but the schema contract "
        f"says {shape}; change one of them, or {remedy}"
    )
