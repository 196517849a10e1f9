"""The npm packages that Emoji Scenes is made of: versions, SHA-256 of each tarball, licences and who to credit.

A new version is one changed line here; the digest is that of the tarball which ``npm pack NAME@VERSION`` writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Package:
    """One pinned npm package. ``family``: drawings that may be copies of one another share it and are never split apart."""

    name: str
    version: str
    sha256: str
    licence: str
    attribution: str
    kind: Literal["drawings", "labels", "keywords"]
    family: str = ""

    @property
    def spec(self) -> str:
        """What ``npm pack`` is asked for."""
        return f"{self.name}@{self.version}"

    @property
    def filename(self) -> str:
        """The tarball's name as npm chooses it: ``@scope/name`` becomes ``scope-name``."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


def _drawings(name: str, version: str, sha256: str, licence: str, attribution: str, family: str) -> Package:
    return Package(f"@iconify-json/{name}", version, sha256, licence, attribution, "drawings", family)


PACKAGES: tuple[Package, ...] = (
    _drawings(
        "noto", "1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        "Apache-2.0", "Noto Emoji, Google Inc.", "noto",
    ),
    # Many objects of version 1 were carried over into today's Noto, hence one family; the same for EmojiOne.
    _drawings(
        "noto-v1", "1.2.5", "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
        "Apache-2.0", "Noto Emoji (v1), Google Inc.", "noto",
    ),
    _drawings(
        "twemoji", "1.2.5", "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        "CC-BY-4.0", "Twemoji, Twitter, Inc. and other contributors", "twemoji",
    ),
    _drawings(
        "openmoji", "1.2.29", "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5",
        "CC-BY-SA-4.0", "OpenMoji, HfG Schwäbisch Gmünd and contributors", "openmoji",
    ),
    _drawings(
        "fluent-emoji-flat", "1.2.6", "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        "MIT", "Fluent Emoji Flat, Microsoft Corporation", "fluent",
    ),
    _drawings(
        "emojione", "1.2.3", "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
        "CC-BY-4.0", "EmojiOne (Emojitwo), EmojiTwo contributors", "emojione",
    ),
    _drawings(
        "emojione-v1", "1.2.3", "6641d59d48a42823fdc2b84e7427e9f302944eb98d2c7d94d6e67c139e7b37b3",
        "CC-BY-SA-4.0", "EmojiOne (v1), JoyPixels, Inc.", "emojione",
    ),
    _drawings(
        "fxemoji", "1.2.2", "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef",
        "Apache-2.0", "FxEmojis, Mozilla", "fxemoji",
    ),
    _drawings(
        "streamline-emojis", "1.2.4", "5dac87c876b322500989828c5823143e0100d78881627a2e4081a4b897cbfdbc",
        "CC-BY-4.0", "Streamline Emojis, Streamline", "streamline",
    ),
    Package(
        "emojibase-data", "17.0.0", "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
        "MIT", "Emojibase, Miles Johnson; labels from Unicode CLDR (Unicode-3.0)", "labels",
    ),
    Package(
        "cldr-annotations-full", "48.2.0", "28576e51225deb51e3ddd734b0f824a0079682cb5d8c27faa9f68149317a14d1",
        "Unicode-3.0", "Unicode CLDR annotations, Unicode, Inc.", "keywords",
    ),
)  # fmt: skip
