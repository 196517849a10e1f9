"""Base of every configuration class: unknown keys are errors, descriptions are mandatory documentation."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic import Field as PydanticField


class Config(BaseModel):
    """A frozen section of an experiment. Unknown keys are refused, so a misspelt key never becomes a silent default."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), validate_default=True, allow_inf_nan=False)


def Field(default: Any = ..., *, unit: str | None = None, **keywords: Any) -> Any:  # noqa: N802 - stands in for pydantic's
    """``pydantic.Field`` with a ``unit``, which ends up in ``config/README.md`` and in the JSON schema."""
    if unit is not None:
        keywords["json_schema_extra"] = {"unit": unit}
    return PydanticField(default, **keywords)
