"""A tiny stand-in for the npm packages of Emoji Scenes: patterned squares in iconify's JSON format, made by the tests."""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

from cmapkd.data.sources.emoji.packages import Package

FAMILIES = ("ink", "wax", "oil", "gouache", "chalk")
# Two concrete groups, faces and symbols; "owl" and "young owl" are one component by name.
WORDS = {
    ("animals-nature", "animal-bird"): ["owl", "young owl", "ibis", "wren", "finch", "robin", "kite", "swan"],
    ("animals-nature", "animal-mammal"): ["ewe", "ox", "mouse", "wolf", "otter", "badger", "stoat", "lynx"],
    ("food-drink", "food-fruit"): ["cherries", "plum", "fig", "quince", "orange fruit", "medlar", "peach", "lime"],
    ("smileys-emotion", "face-smiling"): ["glad face", "merry face", "jolly face", "cheery face", "elated face", "amused face"],
    ("symbols", "warning"): ["stop sign", "toll sign", "fog sign", "ice sign", "ford sign", "gust sign"],
}
CONCEPTS = [(group, subgroup, label) for (group, subgroup), labels in WORDS.items() for label in labels]


def pattern(seed: str) -> str:
    """An SVG body: sixteen coloured squares, unlike those of any other seed."""
    rng = random.Random(seed)
    cells = [(x, y, f"#{rng.randrange(16**6):06x}") for y in range(4) for x in range(4)]
    return "".join(f'<path fill="{fill}" d="M{8 * x} {8 * y}h8v8h-8z"/>' for x, y, fill in cells)


def tarball(directory: Path, package: Package, members: dict[str, Any]) -> Package:
    """Write a package's tarball into ``directory``; the package with its real digest."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            data = json.dumps(content).encode()
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    directory.mkdir(parents=True, exist_ok=True)
    (directory / package.filename).write_bytes(buffer.getvalue())
    sha256 = hashlib.sha256(buffer.getvalue()).hexdigest()
    return Package(package.name, package.version, sha256, package.licence, "the tests", package.kind, package.family)


def write_packages(cache: Path) -> tuple[Package, ...]:
    """A cache with every package in place, so that nothing is fetched."""
    codes = {label: f"1F{600 + number:03d}" for number, (_, _, label) in enumerate(CONCEPTS)}
    groups = list(dict.fromkeys(group for group, _, _ in CONCEPTS))
    subgroups = list(dict.fromkeys(subgroup for _, subgroup, _ in CONCEPTS))
    data = [
        {
            "label": label, "hexcode": codes[label], "emoji": chr(int(codes[label], 16)), "order": order,
            "group": groups.index(group), "subgroup": subgroups.index(subgroup), "tags": ["tag"],
        }
        for order, (group, subgroup, label) in enumerate(CONCEPTS)
    ]  # fmt: skip
    packages = []
    for family in FAMILIES:
        icons = {
            label.replace(" ", "-"): {"body": pattern(f"{family}/{label}")}
            for number, (_, _, label) in enumerate(CONCEPTS)
            # The last family draws only two of three concepts, so coverage differs.
            if family != FAMILIES[-1] or number % 3
        }
        # `plum` and `fig` share one picture in one family: neither may keep it.
        if family == "oil":
            icons["fig"] = icons["plum"]
        # A drawing with text depends on fonts, one with a reference could leave the file.
        if family == "wax":
            icons["lynx"] = {"body": '<text x="3" y="9">lynx</text>'}
            icons["stoat"] = {"body": '<image href="https://example.org/stoat.png"/>'}
        # Three sets give code points, the others only names.
        by_code = FAMILIES.index(family) < 3
        characters = {codes[label].lower(): label.replace(" ", "-") for _, _, label in CONCEPTS} if by_code else {}
        packages.append(
            tarball(
                cache,
                Package(f"@iconify-json/{family}", "1.0.0", "", "MIT", "", "drawings", family),
                {"icons.json": {"icons": icons, "width": 32, "height": 32}, "chars.json": characters},
            )
        )
    numbered = lambda names: {str(number): name for number, name in enumerate(names)}  # noqa: E731
    empty: dict[str, Any] = {
        f"en/shortcodes/{name}.json": {} for name in ("cldr", "emojibase", "joypixels", "github", "iamcal")
    }
    packages.append(
        tarball(
            cache,
            Package("emojibase-data", "1.0.0", "", "MIT", "", "labels"),
            {
                "en/data.json": data,
                "meta/groups.json": {"groups": numbered(groups), "subgroups": numbered(subgroups)},
                "meta/unicode-names.json": {},
            }
            | empty,
        )
    )
    annotations = {
        chr(int(codes[label], 16)): {"default": [label.split()[-1], "feathered", "feather", "wild", "rural", "lol"]}
        for _, _, label in CONCEPTS
    }
    packages.append(
        tarball(
            cache,
            Package("cldr-annotations-full", "1.0.0", "", "Unicode-3.0", "", "keywords"),
            {"annotations/en/annotations.json": {"annotations": {"annotations": annotations}}},
        )
    )
    return tuple(packages)
