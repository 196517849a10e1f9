"""Data sources, registered by the name that an experiment's ``source:`` key gives. One file in this package per source."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

from cmapkd.config.sources import SourceConfig
from cmapkd.data.sample import Sample
from cmapkd.data.sources.fetched import FetchedFile
from cmapkd.errors import UserError, nearest


class Source(Protocol):
    """Where samples come from. ``samples`` yields the same samples, byte for byte, each time it is called."""

    name: str
    config: SourceConfig

    def fetch(self) -> list[FetchedFile]:
        """Bring every file that the source needs into the cache and verify it; nothing is fetched twice."""
        ...

    def splits(self) -> list[str]:
        """Names of the splits, training first."""
        ...

    def samples(self, split: str) -> Iterator[Sample]:
        """Every sample of ``split`` in its order."""
        ...

    def classes(self) -> tuple[list[str], list[str]] | None:
        """Zero-shot class names and prompt templates (each with one ``{}``), or ``None`` when the source has none."""
        ...

    def provenance(self) -> list[dict[str, Any]]:
        """One record for each upstream file: name, version, sha256, licence, attribution."""
        ...

    def leakage(self) -> dict[str, Any]:
        """What was checked between the splits and what residue was found; JSON-able."""
        ...


Factory = Callable[[Any, Path], Source]
FactoryT = TypeVar("FactoryT", bound=Callable[..., Any])
_FACTORIES: dict[str, Factory] = {}


def register_source(name: str) -> Callable[[FactoryT], FactoryT]:
    """Class decorator: make ``name`` a source. A name that is taken is refused."""

    def register(factory: FactoryT) -> FactoryT:
        if name in _FACTORIES:
            raise ValueError(f"the data source {name!r} is registered twice")
        _FACTORIES[name] = factory
        return factory

    return register


def source_names() -> list[str]:
    """The registered names, sorted."""
    _import_all()
    return sorted(_FACTORIES)


def build_source(config: SourceConfig, cache: Path) -> Source:
    """The source that ``config.source`` names; ``cache`` is the directory that its downloads are kept in.

    Raises:
        UserError: no source of that name is registered.
    """
    _import_all()
    name = str(getattr(config, "source", ""))
    if name not in _FACTORIES:
        raise UserError(key="data.source", value=name, reason="no such data source", fix=nearest(name, sorted(_FACTORIES)))
    return _FACTORIES[name](config, Path(cache))


def _import_all() -> None:
    """Import every module of this package, so that a new source is one new file and no edit here."""
    import importlib
    import pkgutil

    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
