"""Configuration that takes plain values only.

Dagster replaces `{env: NAME}` by the value of the environment variable in every field of a `dg.Config`. Whoever
launches a run could thus publish a secret: the reason of a rollback is written to the history, the report and MLflow.
"""

from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, get_args

import dagster as dg
from pydantic import BaseModel, BeforeValidator


def plain_schema(model: type[BaseModel]) -> dict[str, dg.Field]:
    """Return a schema for the fields of a model in which `{env: NAME}` is an error before the run starts.

    Args:
        model: Model whose fields are text, whole numbers or flags, each with a default.
    """
    schema: dict[str, dg.Field] = {}
    for name, field in model.model_fields.items():
        kinds = get_args(field.annotation) or (field.annotation,)
        (kind,) = (kind for kind in kinds if kind is not NoneType)
        config: Any = dg.Noneable(kind) if NoneType in kinds else kind
        schema[name] = dg.Field(config, default_value=field.default, is_required=False, description=field.description)
    return schema


def _validate(value: object) -> object:
    if value is not None and not isinstance(value, str):
        reason = "env: is not resolved here, so that no secret is published" if isinstance(value, dict) else repr(value)
        raise ValueError(f"it takes plain text, not {reason}")
    return value


if TYPE_CHECKING:
    PlainText = str
else:
    # For resources, which have no other kind of schema. Dagster passes a field of type `Any` on as it is.
    PlainText = Annotated[Any, BeforeValidator(_validate)]
