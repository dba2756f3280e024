"""Base of all sections of `defs.yaml`."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator

from ae_pipeline.common.deprecation import warn_deprecated


class Section(BaseModel):
    """Base of all sections of the YAML: immutable, and an unknown key is an error.

    Attributes:
        renamed_keys: Deprecated keys of the section, and the key that replaces each.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {}

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _accept_renamed_keys(cls, values: Any) -> Any:
        if not isinstance(values, dict) or cls.renamed_keys.keys().isdisjoint(values):
            return values
        accepted = dict(values)
        for old, new in cls.renamed_keys.items():
            if old not in values:
                continue
            if new in values:
                raise ValueError(
                    f"{old}={values[old]!r} and {new}={values[new]!r} are the same setting; keep {new} and remove {old}"
                )
            warn_deprecated(old, new, f"section {cls.__name__.removesuffix('Config').lower()} of the YAML")
            accepted[new] = accepted.pop(old)
        return accepted
