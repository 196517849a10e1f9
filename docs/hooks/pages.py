"""Pages of the site that lie elsewhere in the repository, links between all of them, and pages that the navigation forgot.

The repository is written to be read as it is, on a web page of its files or in an editor: links are relative to the file they
stand in. Here they are led to where the site has the same page. A link to a file that is no page takes the file along.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PAGES = {  # file of the repository -> its page
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "config/README.md": "configuration.md",
    "results/README.md": "results/files.md",
}
SECTIONS = {"data": "Data sets", "methods": "Methods", "results": "Results"}  # folder of docs/ -> section of the navigation
OTHERS = "Guides"
SHOWN = (".png", ".jpg", ".svg", ".pdf", ".html")  # browsers show these; other files get .txt, so that they are shown too
_FENCED = re.compile(r"(^ *(?P<fence>```+|~~~+).*?^ *(?P=fence) *$)", flags=re.DOTALL | re.MULTILINE)
# A link, whose text may hold code; or code, in which nothing is a link.
_LINK = re.compile(r"(?P<before>!?\[(?:[^\[\]]|\[[^\]]*\])*\]\()(?P<target>[^)\s]+)(?P<after>(?:\s+\"[^\"]*\")?\))|`[^`\n]+`")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside of ``docs/`` and the files that pages link to."""
    for source, uri in PAGES.items():
        files.append(File.generated(config, uri, content=(ROOT / source).read_text(encoding="utf-8")))
    sources = {uri: source for source, uri in PAGES.items()}
    for file in [*files.documentation_pages()]:
        if file.generated_by is not None and file.src_uri not in sources:
            continue
        source = sources.get(file.src_uri, f"docs/{file.src_uri}")
        for target in sorted({_resolve(source, link)[0] for link in _links(file.content_string)}):
            if target.startswith("cmapkd/") and target.endswith(".py"):
                continue  # the reference has it
            if _page(target) is None and (ROOT / target).is_file() and files.get_file_from_path(_taken(target)) is None:
                files.append(File.generated(config, _taken(target), content=(ROOT / target).read_bytes()))
    return files


def on_nav(nav: object, config: MkDocsConfig, files: Files) -> None:
    """Nothing may be left out: a page that ``_complete`` did not place would be found by search alone."""
    left = [file.src_uri for file in files.documentation_pages() if file.inclusion.is_in_nav() and file.page is None]
    if left:
        raise PluginError(f"no section of the navigation takes {', '.join(left)}: add it to mkdocs.yml")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put pages that mkdocs.yml does not name into the section of their folder, in alphabetical order."""
    config.nav = _complete(list(config.nav or []), sorted(_written(Path(config.docs_dir))))
    return config


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to where the site has their page."""
    uri = page.file.src_uri
    source = next((source for source, own in PAGES.items() if own == uri), f"docs/{uri}")

    def led(match: re.Match[str]) -> str:
        return match["before"] + _led(match["target"], source, uri) + match["after"] if match["target"] else match[0]

    return "".join(part if code else _LINK.sub(led, part) for part, code in _parts(markdown))


def _complete(nav: list[dict[str, Any]], written: list[str]) -> list[dict[str, Any]]:
    entries = [entry for section in nav for pages in section.values() for entry in pages]
    named = {uri for entry in entries for uri in (entry.values() if isinstance(entry, dict) else [entry])}
    for uri in written:
        if uri not in named:
            title = SECTIONS.get(uri.partition("/")[0], OTHERS)
            next(section for section in nav if title in section)[title].append(uri)
    return nav


def _written(docs: Path) -> Iterator[str]:
    """Pages of ``docs/``, as mkdocs names them."""
    for path in docs.rglob("*.md"):
        yield path.relative_to(docs).as_posix()


def _parts(markdown: str) -> Iterator[tuple[str, bool]]:
    """The text, cut into pieces, and whether a piece is a block of code: what looks like a link there is none."""
    end = 0
    for match in _FENCED.finditer(markdown):
        yield markdown[end : match.start()], False
        yield match[0], True
        end = match.end()
    yield markdown[end:], False


def _links(markdown: str) -> list[str]:
    found = [match["target"] for part, code in _parts(markdown) if not code for match in _LINK.finditer(part)]
    return [target for target in found if target and not _outside(target)]


def _outside(target: str) -> bool:
    return target.startswith("#") or re.match(r"[a-z][a-z0-9+.-]*:", target) is not None


def _resolve(source: str, target: str) -> tuple[str, str]:
    """File of the repository that a link in ``source`` leads to, and the place within it."""
    path, _, place = target.partition("#")
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), path)), f"#{place}" if place else ""


def _page(path: str) -> str | None:
    """The site's page (or picture) for a file of the repository."""
    if path in PAGES:
        return PAGES[path]
    return path.removeprefix("docs/") if path.startswith("docs/") and not re.search(r"/(metrics|paper)/", path) else None


def _taken(path: str) -> str:
    return f"files/{path}" if path.endswith(SHOWN) else f"files/{path}.txt"


def _led(target: str, source: str, uri: str) -> str:
    if _outside(target):
        return target
    path, place = _resolve(source, target)
    page = _page(path)
    if path.startswith("cmapkd/") and path.endswith(".py") and (ROOT / path).is_file():
        module = ".".join(Path(path).with_suffix("").parts)
        page, place = f"reference/{module.rpartition('.')[0]}.md", place or f"#{module}"
    if page is None and not (ROOT / path).is_file():
        raise PluginError(f"{source}: the link {target} leads to no file of the repository")
    return posixpath.relpath(page or _taken(path), posixpath.dirname(uri) or ".") + place
