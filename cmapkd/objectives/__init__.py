"""Methods: one file each, named as in an experiment's `runs`, registered by its class.

A file is imported only when its method is used, so that an edit to one method concerns the runs of that method alone.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TypeVar

from cmapkd.errors import UserError, nearest
from cmapkd.objectives.base import Objective, Surroundings, TeacherOutputs, Terms

__all__ = ["Objective", "Surroundings", "TeacherOutputs", "Terms", "build", "known", "register"]

_REGISTRY: dict[str, type[Objective]] = {}
_Class = TypeVar("_Class", bound=type[Objective])


def register(name: str) -> Callable[[_Class], _Class]:
    """Class decorator: make an objective known under ``name``, which must be its file's name too."""

    def decorate(cls: _Class) -> _Class:
        if name in _REGISTRY and _REGISTRY[name] is not cls:
            raise ValueError(f"the method {name!r} is registered twice: {_REGISTRY[name].__module__} and {cls.__module__}")
        if cls.__module__.rpartition(".")[2] != name:
            raise ValueError(f"the method {name!r} must live in objectives/{name}.py, not in {cls.__module__}")
        _REGISTRY[name] = cls
        return cls

    return decorate


def known() -> list[str]:
    """Names of all methods, from their files."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in ("__init__", "base"))


def build(name: str, surroundings: Surroundings) -> Objective:
    """The objective of a method.

    Raises:
        UserError: no such method.
    """
    if name not in known():
        raise UserError(key="method", value=name, reason="is no registered method", fix=nearest(name, known()))
    import_module(f"cmapkd.objectives.{name}")
    return _REGISTRY[name](surroundings)
