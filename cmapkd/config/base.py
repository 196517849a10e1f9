"""Base of every configuration class: unknown keys are errors, descriptions are mandatory documentation."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic import Field as PydanticField


class Config(BaseModel):
    """A frozen section of an experiment. Unknown keys are refused, so a misspelt key never becomes a silent default."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), validate_default=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Search:
    """The range in which ``cmapkd tune`` looks for a key's value, on a logarithmic scale if ``log``."""

    low: float
    high: float
    log: bool = True


def Field(  # noqa: N802 - stands in for pydantic's
    default: Any = ..., *, unit: str | None = None, search: Search | None = None, **keywords: Any
) -> Any:
    """``pydantic.Field`` with a ``unit`` and a ``search`` range, which end up in ``config/README.md`` and the JSON schema."""
    extra = {"unit": unit, "search": asdict(search) if search is not None else None}
    if any(value is not None for value in extra.values()):
        keywords["json_schema_extra"] = {key: value for key, value in extra.items() if value is not None}
    return PydanticField(default, **keywords)
