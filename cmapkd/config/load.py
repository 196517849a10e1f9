"""Reading an experiment: YAML, `extends:`, `base:` of runs; messages name key, value, reason and the nearest spelling."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from cmapkd import commands
from cmapkd.config.extend import extended, inherited, rooted
from cmapkd.config.schedules import DEFAULT_SCHEDULES
from cmapkd.config.schema import ExperimentConfig
from cmapkd.config.tuning import find_tuned, tuned_values
from cmapkd.errors import UserError, nearest, nearest_path
from cmapkd.plain_yaml import parse_yaml, read_yaml

LARGEST = 100_000  # values of an experiment; that of mini has 756 with every default written out
PLANNED = "planned.yaml"  # beside the experiments, and none
DEEPEST = 40  # no key of an experiment is nested deeper; YAML's aliases can make a mapping hold itself
MOST = 50  # wrong keys that a message lists
SHOWN = 100  # characters of a wrong value that a message repeats
_WHOLE, _NUMBER, _MAPPING = "must be a whole number", "must be a number", "must be a mapping of keys to values"
_REASONS = {  # pydantic's kind of error -> words for it; what is missing here keeps pydantic's own words
    "int_type": _WHOLE,
    "int_parsing": _WHOLE,
    "int_parsing_size": _WHOLE,
    "int_from_float": _WHOLE,
    "float_type": _NUMBER,
    "float_parsing": _NUMBER,
    "finite_number": "must be finite",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text (numbers and dates as text need quotes)",
    "string_too_short": "must not be empty",
    "string_pattern_mismatch": "must be `<dataset>/<split>`",  # references to splits are the only pattern of the schema
    "dict_type": _MAPPING,
    "model_type": _MAPPING,
    "model_attributes_type": _MAPPING,
    "tuple_type": "must be a list, as in [a, b]",
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "too_short": "needs at least {min_length} of them",
    "too_long": "holds {actual_length}, at most {max_length} are allowed",
}


def load_experiment(path: str | Path, *, tuning: Collection[str] | None = None) -> ExperimentConfig:
    """Read and check an experiment file.

    Args:
        path: of the file.
        tuning: runs whose settings are about to be searched: only what they are based on starts from the file that the key
            `tuned` names, as a search does not start from its own result.

    Raises:
        UserError: naming every wrong key at once, with value, reason and the nearest valid spelling.
    """
    path = Path(path)
    content = _read(path)
    return parse_experiment(content, origin=str(path), directory=path.parent, tuning=tuning)


def load_edited(path: str | Path, changes: Sequence[str]) -> ExperimentConfig:
    """The experiment of a file with some keys set to other values, each as ``runs.CMAPKD.weights.intra=5``.

    Raises:
        UserError: a change without a key or a value, or one that the experiment does not allow.
    """
    path = Path(path)
    content = _read(path)
    for change in changes:
        name, _, value = change.partition("=")
        keys = name.split(".")
        if not value or not all(keys):
            raise UserError(
                key="--change", value=change, reason="is not of the form KEY=VALUE", fix="e.g. training.global_batch=64"
            )
        place = content
        for key in keys[:-1]:
            place[key] = dict(place[key]) if isinstance(place.get(key), dict) else {}
            place = place[key]
        place[keys[-1]] = parse_yaml(value, f"--change {name}", fix="quote the value: --change 'KEY=VALUE'")
    return parse_experiment(content, origin=f"{path} with {', '.join(changes)}", directory=path.parent)


def inherited_keys(path: str | Path) -> str | None:
    """Describe in one line what an experiment file takes over from the file that it extends; None if it extends none."""
    path = Path(path)
    content = _plain(_read(path), str(path), ())
    return inherited(content, str(path), path.parent, lambda base: _plain(_read(base), str(base), ()))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_yaml(path)
    except OSError as error:
        raise UserError(key=str(path), reason=f"cannot be read ({error.strerror})", fix=_other_file(path)) from None
    if not isinstance(content, dict):
        raise UserError(key=str(path), reason="holds no keys", fix="start from a copy of config/mini.yaml")
    return content


def _other_file(path: Path) -> str:
    """What may be meant by a file that is not there: one of the same name in the project, or the nearest in spelling."""
    root = commands.project()
    if root is not None and not path.is_absolute() and (root / path).is_file():
        return f"name it from here: {commands.shown(root / path)}"
    places = (root / "config", root / "results", root / "docs" / "results") if root is not None else ()
    files = [file for place in places for pattern in ("*.yaml", "*/experiment.yaml") for file in sorted(place.glob(pattern))]
    hint = nearest_path(path, _may_be_experiment, map(commands.shown, files))
    return hint or "name an experiment file: a clone of this repository has some in config/"


def _may_be_experiment(file: Path) -> bool:
    return file.suffix == ".yaml" and file.name != PLANNED and file.is_file()


def parse_experiment(
    content: Mapping[str, Any],
    origin: str = "configuration",
    *,
    directory: Path | None = None,
    tuning: Collection[str] | None = None,
) -> ExperimentConfig:
    """Check a configuration that was read already (as Snakemake's merged `config`).

    Args:
        content: the keys of an experiment.
        origin: what messages call it.
        directory: of the experiment file, where its keys `extends` and `tuned` are looked up before the repository.
        tuning: as in `load_experiment`.

    Raises:
        UserError: as in `load_experiment`.
    """
    if _outgrows(content):
        reason = f"holds more than {LARGEST:,} values once its YAML aliases (*name) are written out"
        raise UserError(key=origin, reason=reason, fix="no experiment is that large: write out the few values that are meant")
    plain: dict[str, Any] = _plain(content, origin, ())
    plain = rooted(extended(plain, origin, directory, lambda path: _plain(_read(path), str(path), ())), origin)
    if isinstance(plain.get("runs"), dict):
        eligible = plain["runs"] if tuning is None else _based_on(tuning, plain["runs"])
        if eligible and isinstance(plain.get("tuned"), str):
            found = tuned_values(plain["tuned"], eligible, origin, directory)
            plain["runs"] = {name: _tuned(run, *found[name]) if name in found else run for name, run in plain["runs"].items()}
        plain["runs"] = _resolve_bases(plain["runs"], origin)
    if isinstance(name := plain.get("tuned"), str) and name and not name.startswith(("~", "$")):
        places = find_tuned(name, origin, directory)
        plain["tuned"] = str(next((place for place in places if place.is_file()), places[-1]).absolute())
    if isinstance(plain.get("schedules"), dict):
        defaults = {name: [stage.model_dump(mode="json") for stage in stages] for name, stages in DEFAULT_SCHEDULES.items()}
        plain["schedules"] = {**defaults, **plain["schedules"]}
    try:
        return ExperimentConfig.model_validate(plain)
    except ValidationError as error:
        raise _explain(error, origin) from None


def effective_text(content: Mapping[str, Any]) -> str:
    """The file that is kept with results: an experiment's keys with every default written out."""
    text = "# Written by the workflow: the experiment with all defaults and overrides.\n"
    return text + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _outgrows(content: Any) -> bool:
    """Whether there are more than `LARGEST` values, each counted as often as it is referred to.

    A few lines of aliases of aliases stand for billions of values; counting stops at the limit.
    """
    waiting, seen = [(content, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        seen += 1
        if seen > LARGEST:
            return True
        if depth <= DEEPEST and isinstance(value, Mapping | list | tuple):  # what is deeper has an error of its own
            waiting += [(entry, depth + 1) for entry in (value.values() if isinstance(value, Mapping) else value)]
    return False


def _plain(value: Any, origin: str, location: tuple[str, ...]) -> Any:
    """Plain dictionaries and lists (Snakemake hands over classes of its own), with text as keys."""
    key = f"{origin}: {'.'.join(location)}" if location else origin
    if len(location) > DEEPEST:
        raise UserError(key=key, reason=f"is nested deeper than {DEEPEST} levels", fix="does a YAML alias (*name) hold itself?")
    if isinstance(value, Mapping):
        result = {}
        for name, entry in value.items():
            if isinstance(name, bool) or not isinstance(name, str | int):
                raise UserError(
                    key=key, value=name, reason="is no text, but stands as a key", fix=f"write it in quotes: '{name}'"
                )
            if str(name) in result:
                raise UserError(key=key, value=name, reason="is given twice: as a number and as text", fix="give it once")
            result[str(name)] = _plain(entry, origin, (*location, str(name)))
        return result
    if isinstance(value, list | tuple):
        return [_plain(entry, origin, (*location, str(index))) for index, entry in enumerate(value)]
    if value is None or isinstance(value, str | int | float):
        return value
    raise UserError(
        key=key, value=str(value), reason=f"is a {type(value).__name__}, which no key takes", fix="write it in quotes"
    )


def _based_on(names: Collection[str], runs: Mapping[str, Any]) -> dict[str, Any]:
    """Runs that ``names`` start from by `base:`, directly or not, themselves apart."""
    found: dict[str, Any] = {}
    waiting = list(names)
    while waiting:
        run = runs.get(waiting.pop())
        base = run.get("base") if isinstance(run, dict) else None
        if isinstance(base, str) and base in runs and base not in found and base not in names:
            found[base] = runs[base]
            waiting.append(base)
    return found


def _tuned(own: Mapping[str, Any], found: Mapping[str, Any], start: Mapping[str, Any]) -> dict[str, Any]:
    """A run's keys with the values found for them: where it gives none, or the one that the search started from.

    Another value was given since, and wins. Before `base:` is resolved, so that ablations inherit what was found.
    """
    result = dict(own)
    for key, value in found.items():
        if isinstance(value, Mapping):
            inner = result.get(key, {})
            if isinstance(inner, Mapping):
                result[key] = _tuned(inner, value, start.get(key, {}))
        elif key not in own or own[key] == start.get(key):
            result[key] = value
    return result


def _resolve_bases(runs: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Replace `base: <run>` by that run's keys; the run's own keys win, mappings are merged key by key."""

    resolved: dict[str, Any] = {}

    def resolve(name: str) -> None:
        chain: list[str] = []  # from the run to the one that has no base, or was resolved before
        while name not in resolved:
            run = runs[name]
            chain.append(name)
            if not isinstance(run, dict) or "base" not in run:
                break
            key, base = f"{origin}: runs.{name}.base", run["base"]
            if not isinstance(base, str) or base not in runs:
                raise UserError(key=key, value=base, reason="names no run", fix=nearest(str(base), list(runs)))
            if base in chain:
                circle = " -> ".join((*chain, base)) if len(chain) < 10 else f"of {len(chain)} runs"
                raise UserError(
                    key=key, value=base, reason=f"is a circle: {circle}", fix="give one of them a `method` and no `base`"
                )
            name = base
        for below in reversed(chain):
            run = runs[below]
            if isinstance(run, dict) and "base" in run:
                own = {key: value for key, value in run.items() if key != "base"}
                resolved[below] = _merge(resolved[run["base"]], own)
            else:
                resolved[below] = run

    for name in runs:
        resolve(name)
    return {name: resolved[name] for name in runs}


def _merge(base: Any, override: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(override, dict):
        return override
    return {**base, **{key: _merge(base.get(key), value) for key, value in override.items()}}


def _explain(error: ValidationError, origin: str) -> UserError:
    details = error.errors()
    # A list whose entries are wrong counts as too short as well, which would only mislead.
    causes = {detail["loc"][:-1] for detail in details if detail["loc"]}
    lines = [_line(detail) for detail in details if detail["type"] != "too_short" or detail["loc"] not in causes]
    more = [f"and {len(lines) - MOST} more"] if len(lines) > MOST else []
    reason = "is refused:\n" + "\n".join(f"  - {line}" for line in [*lines[:MOST], *more])
    return UserError(key=origin, reason=reason, fix="config/README.md lists every key with its type, default and unit")


def _line(detail: ErrorDetails) -> str:
    """One wrong key: `key = value: reason; nearest spelling`."""
    model, keys = _model_at(detail["loc"])
    key = ".".join(keys)
    value, kind, context = detail["input"], detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden" and model is not None:
        known = list(model.model_fields) + (["base"] if keys[0] == "runs" and len(keys) == 3 else [])
        return f"{key} = {_shown(value)}: unknown key; {nearest(keys[-1], known)}"
    if kind == "missing":
        if isinstance(detail["loc"][-1], int):
            return f"{'.'.join(keys[:-1])} = {_shown(value)}: needs at least {int(keys[-1]) + 1} of them"
        return f"{key}: required, and missing"
    if kind in ("union_tag_invalid", "union_tag_not_found", "literal_error"):
        expected = context.get("expected_tags", context.get("expected", "")).replace(" or ", ", ")
        options = [word.strip().strip("'") for word in expected.split(",")]
        tag = context.get("discriminator", "").strip("'")
        where = f"{key}.{tag}" if tag else key
        if kind == "union_tag_not_found":
            return f"{where}: required, and missing"
        given = value.get(tag) if isinstance(value, dict) else value
        return f"{where} = {_shown(given)}: not one of {', '.join(options)}; {nearest(str(given), options)}"
    # Only our own words are a format: a message of the schema repeats names of the user, which may hold braces.
    reason = _REASONS[kind].format(**context) if kind in _REASONS else detail["msg"].removeprefix("Value error, ")
    if not key:  # a combination of keys: the message names them
        return reason
    return f"{key}: {reason}" if isinstance(value, dict) and value else f"{key} = {_shown(value)}: {reason}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _model_at(location: tuple[int | str, ...]) -> tuple[type[BaseModel] | None, list[str]]:
    """The model that holds the last key of ``location``, and the location as a user sees it.

    Members of a discriminated union carry their tag in the location, and keys of a mapping the word ``[key]``: both are
    no keys of the file.
    """
    keys: list[str] = []
    here: Any = ExperimentConfig
    parent: type[BaseModel] | None = None
    for part in location:
        if part == "[key]":
            continue
        members = _members(here)
        models = [member for member in members if isinstance(member, type) and issubclass(member, BaseModel)]
        tagged = [model for model in models if part in _literals(model)] if len(models) > 1 else []
        if tagged:
            here = tagged[0]
            continue
        keys.append(str(part))
        if models:
            parent = models[0]
            field = parent.model_fields.get(str(part))
            here = field.annotation if field is not None else None
        else:
            arguments = next((get_args(member) for member in members if get_args(member)), (None,))
            here = arguments[-1] if get_origin(members[0]) is dict else arguments[0]
    return parent, keys


def _members(annotation: Any) -> list[Any]:
    """The types that an annotation allows."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [leaf for member in get_args(annotation) for leaf in _members(member)]
    return [annotation]


def _literals(model: type[BaseModel]) -> set[Any]:
    """Every value of the model's `Literal` fields of one value, i.e. its tag."""
    annotations = [field.annotation for field in model.model_fields.values()]
    return {get_args(a)[0] for a in annotations if get_origin(a) is Literal and len(get_args(a)) == 1}
