"""Concepts (what an emoji means) and their drawings, matched between data sets by code point or by name.

Labels, groups and sub-groups come from emojibase, keywords from CLDR. A drawing set either maps code points to its drawings
(iconify's ``chars.json``) or only names them; names are looked up among all names that emojibase, Unicode and the other sets
use for a code point, from the most to the least reliable list, and a name that means two things in a list is not used.
People, body parts and flags are left out: skin and gender variants are too alike, and flags too small, to tell apart at 32 px.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cmapkd.data.sources.emoji.fetch import read_json
from cmapkd.data.sources.emoji.packages import Package
from cmapkd.data.sources.fetched import FetchedFile

EXCLUDED_GROUPS = frozenset({"people-body", "component", "flags"})
SHORTCODES = ("cldr", "emojibase", "joypixels", "github", "iamcal")  # most to least literal


@dataclass(frozen=True)
class Drawing:
    """One SVG of one concept: ``body`` is the inside of the ``<svg>`` element, on a ``width`` x ``height`` view box."""

    id: str  # "<set>/<name>", unique
    hexcode: str
    family: str
    body: str
    width: float
    height: float
    left: float = 0.0
    top: float = 0.0


@dataclass(frozen=True)
class Concept:
    """One meaning: hexcode without variation selectors, English label, group and sub-group slugs, raw keywords."""

    hexcode: str
    label: str
    group: str
    subgroup: str
    keywords: tuple[str, ...]
    order: int


@dataclass(frozen=True)
class Catalogue:
    """Every concept, and every drawing of each, in a fixed order."""

    concepts: Mapping[str, Concept]
    drawings: Mapping[str, tuple[Drawing, ...]]

    def families(self, hexcode: str) -> set[str]:
        """Style families that draw ``hexcode``."""
        return {drawing.family for drawing in self.drawings[hexcode]}


def read_catalogue(packages: Sequence[Package], files: Sequence[FetchedFile]) -> Catalogue:
    """Parse the verified tarballs (``files`` belong to ``packages``, in the same order)."""
    labels = keywords = None
    sets: list[tuple[Package, dict[str, Any], dict[str, str]]] = []
    for package, file in zip(packages, files, strict=True):
        if package.kind == "labels":
            labels = read_json(
                file,
                "en/data.json",
                "meta/groups.json",
                "meta/unicode-names.json",
                *(f"en/shortcodes/{name}.json" for name in SHORTCODES),
            )
        elif package.kind == "keywords":
            (keywords,) = read_json(file, "annotations/en/annotations.json")
        else:
            icons, characters = read_json(file, "icons.json", "chars.json")
            sets.append((package, icons, characters))
    if labels is None or keywords is None:
        raise ValueError("the packages need one of kind 'labels' and one of kind 'keywords'")
    return build_catalogue(labels, keywords, sets)


def build_catalogue(
    labels: Sequence[Any], keywords: Mapping[str, Any], sets: Sequence[tuple[Package, dict[str, Any], dict[str, str]]]
) -> Catalogue:
    """``labels``: emojibase's data, groups, Unicode names and short codes; ``sets``: (package, icons.json, chars.json) each."""
    data, groups, unicode_names, *shortcodes = labels
    annotations = keywords["annotations"]["annotations"]
    concepts: dict[str, Concept] = {}
    for entry in data:
        if "group" not in entry or groups["groups"][str(entry["group"])] in EXCLUDED_GROUPS:
            continue
        annotation = annotations.get(entry["emoji"]) or annotations.get(entry["emoji"].replace("\ufe0f", "")) or {}
        hexcode = canonical(entry["hexcode"])
        concepts[hexcode] = Concept(
            hexcode=hexcode,
            label=entry["label"],
            group=groups["groups"][str(entry["group"])],
            subgroup=groups["subgroups"][str(entry["subgroup"])],
            keywords=tuple(annotation.get("default") or entry.get("tags") or ()),
            order=int(entry["order"]),
        )
    names = _names(data, unicode_names, shortcodes, sets)
    drawings: dict[str, list[Drawing]] = {hexcode: [] for hexcode in concepts}
    for package, icons, characters in sets:
        for name, hexcode in sorted(_match(icons, characters, names).items()):
            if hexcode in concepts and (drawing := _drawing(package, icons, name, hexcode)) is not None:
                drawings[hexcode].append(drawing)
    kept = {hexcode: concept for hexcode, concept in concepts.items() if drawings[hexcode]}
    return Catalogue(kept, {hexcode: tuple(drawings[hexcode]) for hexcode in kept})


def canonical(hexcode: str) -> str:
    """Upper case and without variation selectors, which sets use as they please: ``2764-fe0f`` is ``2764``."""
    return "-".join(part for part in hexcode.upper().split("-") if part != "FE0F")


def squash(name: str) -> str:
    """Letters and digits only: ``admission-tickets``, ``Admission tickets`` and ``admissiontickets`` are one name."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _names(
    data: Iterable[Mapping[str, Any]],
    unicode_names: Mapping[str, str],
    shortcodes: Iterable[Mapping[str, Any]],
    sets: Iterable[tuple[Package, dict[str, Any], dict[str, str]]],
) -> dict[str, str]:
    """Squashed name -> hexcode, or "" where the most reliable list that knows the name is of two minds about it."""
    lists: list[list[tuple[str, str]]] = [[(entry["label"], entry["hexcode"]) for entry in data]]
    used: list[tuple[str, str]] = []
    for _, icons, characters in sets:
        of_name = {name: hexcode for hexcode, name in characters.items()}
        used += of_name.items()
        for alias, target in icons.get("aliases", {}).items():
            if set(target) == {"parent"} and target["parent"] in of_name:
                used.append((alias, of_name[target["parent"]]))
    lists += [used, [(name, hexcode) for hexcode, name in unicode_names.items()]]
    for codes in shortcodes:
        lists.append([(n, hexcode) for hexcode, value in codes.items() for n in ([value] if isinstance(value, str) else value)])
    names: dict[str, str] = {}
    for pairs in lists:
        meanings: dict[str, set[str]] = {}
        for name, hexcode in pairs:
            meanings.setdefault(squash(name), set()).add(canonical(hexcode))
        for name, hexcodes in meanings.items():
            names.setdefault(name, next(iter(hexcodes)) if len(hexcodes) == 1 else "")
    return names


def _match(icons: Mapping[str, Any], characters: Mapping[str, str], names: Mapping[str, str]) -> dict[str, str]:
    """Icon name -> hexcode, for one set."""
    if characters:
        return {name: canonical(hexcode) for hexcode, name in sorted(characters.items()) if name in icons["icons"]}
    matched: dict[str, str] = {}
    for name in icons["icons"]:
        # Streamline numbers its alternatives (`pizza-1`, `pizza-2`).
        hexcode = names.get(squash(name)) or names.get(squash(re.sub(r"-\d$", "", name)))
        if hexcode:
            matched[name] = hexcode
    taken = set(matched.values())
    for alias, target in icons.get("aliases", {}).items():
        hexcode, parent = names.get(squash(alias), ""), target.get("parent")
        plain = set(target) == {"parent"} and parent in icons["icons"]  # not a turned or mirrored copy
        if plain and hexcode and hexcode not in taken and parent not in matched:
            matched[parent] = hexcode
            taken.add(hexcode)
    return matched


# Text would be set in whatever font a machine has, and a reference could leave the file: neither belongs in a reproducible set.
_UNSAFE = re.compile(r"<(text|image|foreignObject|script|style)\b|href=[\"'](?!#)|url\((?![\"']?#)", re.IGNORECASE)


def _drawing(package: Package, icons: Mapping[str, Any], name: str, hexcode: str) -> Drawing | None:
    icon = icons["icons"][name]
    if icon.get("hidden") or _UNSAFE.search(icon["body"]):
        return None

    def number(key: str, default: float) -> float:
        return float(icon.get(key, icons.get(key, default)))

    return Drawing(
        id=f"{package.name.rpartition('/')[2]}/{name}",
        hexcode=hexcode,
        family=package.family,
        body=icon["body"],
        width=number("width", 16),
        height=number("height", 16),
        left=number("left", 0),
        top=number("top", 0),
    )
