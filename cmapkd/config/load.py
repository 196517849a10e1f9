"""Reading an experiment: YAML, `base:` of runs, and messages that name key, value, reason and the nearest spelling."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from cmapkd.config.schema import DEFAULT_SCHEDULES, ExperimentConfig
from cmapkd.errors import UserError, nearest


def load_experiment(path: str | Path) -> ExperimentConfig:
    """Read and check an experiment file.

    Raises:
        UserError: naming every wrong key at once, with value, reason and the nearest valid spelling.
    """
    path = Path(path)
    try:
        text = path.read_text()
    except OSError as error:
        raise UserError(key=str(path), reason=f"cannot be read ({error.strerror})", fix="name an existing experiment file") from None
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(key=str(path), reason=f"is not valid YAML: {error}", fix="check indentation and quotes there") from None
    if not isinstance(content, dict):
        raise UserError(key=str(path), reason="holds no keys", fix="start from a copy of config/mini.yaml")
    return parse_experiment(content, origin=str(path))


def parse_experiment(content: Mapping[str, Any], origin: str = "configuration") -> ExperimentConfig:
    """Check a configuration that was read already (as Snakemake's merged `config`)."""
    content = json.loads(json.dumps(dict(content)))  # plain copies: Snakemake hands over its own dictionary classes
    if isinstance(content.get("runs"), dict):
        content["runs"] = _resolve_bases(content["runs"], origin)
    if isinstance(content.get("schedules"), dict):
        defaults = {name: [stage.model_dump(mode="json") for stage in stages] for name, stages in DEFAULT_SCHEDULES.items()}
        content["schedules"] = {**defaults, **content["schedules"]}
    try:
        return ExperimentConfig.model_validate(content)
    except ValidationError as error:
        raise _explain(error, origin) from None


def _resolve_bases(runs: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Replace `base: <run>` by that run's keys; the run's own keys win, mappings are merged key by key."""
    resolved: dict[str, Any] = {}

    def resolve(name: str, chain: tuple[str, ...]) -> Any:
        if name in chain:
            raise UserError(key=f"{origin}: runs.{name}.base", value=" -> ".join((*chain, name)), reason="is a circle", fix="break it")
        run = runs[name]
        if not isinstance(run, dict) or "base" not in run:
            return run
        base = run["base"]
        if base not in runs:
            raise UserError(
                key=f"{origin}: runs.{name}.base", value=base, reason="names no run", fix=nearest(str(base), [str(key) for key in runs])
            )
        own = {key: value for key, value in run.items() if key != "base"}
        return _merge(resolve(base, (*chain, name)), own)

    for name in runs:
        resolved[name] = resolve(name, ())
    return resolved


def _merge(base: Any, override: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(override, dict):
        return override
    return {**base, **{key: _merge(base.get(key), value) for key, value in override.items()}}


def _explain(error: ValidationError, origin: str) -> UserError:
    lines = [_line(detail) for detail in error.errors()]
    reason = "is refused:\n" + "\n".join(f"  - {line}" for line in lines)
    return UserError(key=origin, reason=reason, fix="config/README.md lists every key with its type, default and unit")


def _line(detail: ErrorDetails) -> str:
    # Members of a discriminated union carry their tag in the location: it is no key of the file.
    model, keys = _model_at(detail["loc"])
    key = ".".join(keys) or "the experiment"
    value, kind, context = detail["input"], detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden" and model is not None:
        return f"{key} = {value!r}: unknown key; {nearest(keys[-1], list(model.model_fields))}"
    if kind == "missing":
        return f"{key}: required, and missing"
    if kind in ("union_tag_invalid", "literal_error"):
        expected = str(context.get("expected_tags", context.get("expected", ""))).replace(" or ", ", ")
        known = [word.strip().strip("'") for word in expected.split(",")]
        tag = str(context.get("discriminator", "")).strip("'")
        given = value.get(tag) if isinstance(value, dict) else value
        where = f"{key}.{tag}" if tag else key
        return f"{where} = {given!r}: not one of {', '.join(known)}; {nearest(str(given), known)}"
    if kind == "union_tag_not_found":
        tag = str(context.get("discriminator", "")).strip("'")
        return f"{key}.{tag}: required, and missing"
    shown = f" = {value!r}" if not isinstance(value, dict) else ""
    return f"{key}{shown}: {detail['msg'].removeprefix('Value error, ')}"


def _model_at(location: tuple[int | str, ...]) -> tuple[type[BaseModel] | None, list[str]]:
    """The model that holds the last key of ``location``, and the location without the tags of unions."""
    from typing import get_args, get_origin

    keys: list[str] = []
    here: Any = ExperimentConfig
    parent: type[BaseModel] | None = None
    for part in location:
        candidates = [c for c in _flatten(here) if isinstance(c, type) and issubclass(c, BaseModel)]
        if len(candidates) > 1 and isinstance(part, str):
            tagged = [c for c in candidates if part in _literals(c)]
            if tagged:
                here = tagged[0]
                continue
        keys.append(str(part))
        model = candidates[0] if candidates else None
        if model is not None:
            parent = model
            field = model.model_fields.get(str(part))
            here = field.annotation if field is not None else None
        else:
            arguments = get_args(here)
            mapping = get_origin(here) is dict and len(arguments) == 2
            here = arguments[1] if mapping else (arguments[0] if arguments else None)
    return parent, keys


def _flatten(annotation: Any) -> list[Any]:
    from types import UnionType
    from typing import Annotated, Union, get_args, get_origin

    origin = get_origin(annotation)
    if origin is Annotated:
        return _flatten(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [leaf for member in get_args(annotation) for leaf in _flatten(member)]
    return [annotation]


def _literals(model: type[BaseModel]) -> set[str]:
    from typing import Literal, get_args, get_origin

    found: set[str] = set()
    for field in model.model_fields.values():
        if get_origin(field.annotation) is Literal:
            found.update(str(value) for value in get_args(field.annotation))
    return found
