"""Configuration that takes plain values only.

Dagster replaces `{env: NAME}` by the value of the environment variable in every field of a `dg.Config`. Whoever
launches a run could thus publish a secret: the reason of a rollback is written to the history, the report and MLflow.
"""

from collections.abc import Callable, Mapping
from enum import StrEnum
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, get_args

import dagster as dg
from dagster._config.errors import PostProcessingError
from pydantic import BaseModel, BeforeValidator, ValidationError


def plain_schema(model: type[BaseModel]) -> dict[str, dg.Field]:
    """Return a schema for the fields of a model in which `{env: NAME}` is an error before the run starts.

    Args:
        model: Model whose fields are text, whole numbers, flags or members of an enumeration.
    """
    schema: dict[str, dg.Field] = {}
    for name, field in model.model_fields.items():
        kinds = get_args(field.annotation) or (field.annotation,)
        (kind,) = (kind for kind in kinds if kind is not NoneType)
        plain: Any = _choice(kind) if issubclass(kind, StrEnum) else kind
        config: Any = dg.Noneable(plain) if NoneType in kinds else plain
        given = {} if field.is_required() else {"default_value": field.default}
        schema[name] = dg.Field(config, is_required=field.is_required(), description=field.description, **given)
    return schema


def _choice(kind: type[StrEnum]) -> dg.Enum:
    return dg.Enum(kind.__name__, [dg.EnumValue(member.value) for member in kind])


LaunchCheck = Callable[[Mapping[str, Any], str], str]
"""Returns why a launch is refused, from the values and from what the model says against them; empty if it is not."""


class CheckedSchema(dg.Shape):
    """A plain schema whose values are also validated when a run is launched, not only within the run.

    Args:
        model: Model that the values must fulfil.
        check: Further check, for example against the model store.
        name: What the check is about, such as the dataset. Dagster takes schemas with one key for the same, and would
            check each launch with the check of the first.
    """

    def __new__(cls, *_: object) -> "CheckedSchema":
        """Return a new schema: equal shapes are one object otherwise, which lacks the model."""
        schema = object.__new__(cls)
        schema._initialized = False
        return schema

    def __init__(self, model: type[BaseModel], check: LaunchCheck | None = None, name: str = "") -> None:
        super().__init__(plain_schema(model))  # type: ignore[no-untyped-call]
        if check:
            self.key = f"{self.key}.{name}"
        self._model = model
        self._check = check or (lambda _, refusal: refusal)

    def post_process(self, value: Any) -> Any:
        """Return the value if the model and the check accept it.

        Raises:
            PostProcessingError: They do not. Dagster then refuses the launch.
        """
        refusal = ""
        try:
            self._model.model_validate(value)
        except ValidationError as error:
            refusal = _message(error)
        if refusal := self._check(value, refusal):
            raise PostProcessingError(refusal)
        return value


def _message(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, each['loc']))}: {each['msg']}".removeprefix(": ").replace("Value error, ", "")
        for each in error.errors()
    )


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
