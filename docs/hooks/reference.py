"""The reference: one page for each sub-package, with every module that has a name without underscore.

mkdocstrings reads the sources without importing them, so neither torch nor a GPU is needed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PACKAGE = Path(__file__).parents[2] / "cmapkd"
TITLE = "Reference"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Name the pages in the navigation."""
    section = next(section for section in config.nav or [] if TITLE in section)
    section[TITLE].append({"Modules": [_uri(package) for package in packages()]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for package in packages():
        files.append(File.generated(config, _uri(package), content=render(package)))
    return files


def packages() -> list[Path]:
    """Folders of the package with at least one module of their own."""
    found = [PACKAGE, *(path for path in sorted(PACKAGE.rglob("*")) if (path / "__init__.py").is_file())]
    return [path for path in found if list(_modules(path))]


def render(package: Path) -> str:
    """A page: what each module is for, then its classes and functions."""
    modules = [(_name(path), _summary(path)) for path in _modules(package)]
    lines = [f"# {_name(package)}", "", "| module | what it is |", "|---|---|"]
    lines += [f"| [`{name}`](#{name}) | {summary} |" for name, summary in modules]
    for name, _ in modules:
        lines += ["", f"::: {name}"]
        if name == _name(package):
            lines += ["    options:", "      show_submodules: false"]
    return "\n".join(lines) + "\n"


def _modules(package: Path) -> Iterator[Path]:
    """Modules with a header: an empty ``__init__.py`` has nothing to say."""
    for path in sorted(package.glob("*.py"), key=lambda path: (path.name != "__init__.py", path.name)):
        if (path.name == "__init__.py" or not path.name.startswith("_")) and _summary(path):
            yield path.parent if path.name == "__init__.py" else path


def _summary(path: Path) -> str:
    """First sentence of a module's header, in one line."""
    file = path / "__init__.py" if path.is_dir() else path
    header = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(header.split("\n\n")[0].split()).replace("|", "\\|")


def _name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


def _uri(package: Path) -> str:
    return f"reference/{_name(package)}.md"
