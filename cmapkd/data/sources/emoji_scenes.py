"""Emoji Scenes: pictures composed of openly licensed emoji drawings, with captions, classes and questions.

Real pictures and real text that come inside npm packages, small enough for a laptop. The drawings are never committed; the
build fetches them (``emoji/fetch.py``), matches them to concepts (``catalogue``), splits them without leakage (``splits``) and
composes scenes that are pure functions of (seed, split, index) (``compose``, ``captions``, ``questions``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from cmapkd.config.sources import EmojiScenesConfig
from cmapkd.data.sample import Question, Sample
from cmapkd.data.sources import register_source
from cmapkd.data.sources.emoji.captions import captions
from cmapkd.data.sources.emoji.catalogue import Catalogue, read_catalogue
from cmapkd.data.sources.emoji.compose import BACKGROUNDS, Composer, Painter, Scene
from cmapkd.data.sources.emoji.fetch import fetch
from cmapkd.data.sources.emoji.language import class_name, noun, plain_label, spoken_keywords
from cmapkd.data.sources.emoji.packages import PACKAGES, Package
from cmapkd.data.sources.emoji.questions import Interviewer, question_only
from cmapkd.data.sources.emoji.render import render_all
from cmapkd.data.sources.emoji.splits import ABSTRACT_GROUPS, SPLITS, Partition, partition
from cmapkd.data.sources.fetched import FetchedFile
from cmapkd.errors import UserError, nearest

TEMPLATES = (
    "{}",
    "one {}",
    "the {}",
    "a picture of the {}",
    "a drawing of one {}",
    "an emoji of the {}",
    "a large {}",
    "large {}, center",
    *(f"{{}} on {colour}" for colour in BACKGROUNDS),
    *(f"{{}}, {colour} background" for colour in BACKGROUNDS),
)
QUESTION_IDS = 10**8  # question ids of a split start at its number times this


@register_source("emoji_scenes")
class EmojiScenes:
    """The source; nothing is fetched or rendered before it is needed.

    Args:
        config: sizes, counts and the seed.
        cache: directory that the tarballs are kept in.
        packages: other packages than the pinned ones, for tests.
    """

    name = "emoji_scenes"

    def __init__(self, config: EmojiScenesConfig, cache: Path, packages: tuple[Package, ...] = PACKAGES) -> None:
        self.config, self.cache, self.packages = config, Path(cache), packages

    def fetch(self) -> list[FetchedFile]:
        """Fetch and verify every package; what is in the cache is only verified."""
        return fetch(self.packages, self.cache)

    def splits(self) -> list[str]:
        """``train``, ``validation``, ``test_render``, ``test_concept``."""
        return list(SPLITS)

    def size(self, split: str) -> int:
        """Number of scenes of ``split``."""
        if split not in SPLITS:
            raise UserError(key="split", value=split, reason="emoji_scenes has no such split", fix=nearest(split, SPLITS))
        return int(getattr(self.config, split))

    def samples(self, split: str) -> Iterator[Sample]:
        """Every sample of ``split`` in order."""
        return (self.sample(split, index) for index in range(self.size(split)))

    def sample(self, split: str, index: int) -> Sample:
        """One sample, the same bytes whenever and in whatever order it is asked for."""
        scene = self.scene(split, index)
        concepts = list(dict.fromkeys(placed.hexcode for placed in scene.objects))
        return Sample(
            key=f"{index:06d}",
            image=self._painter.png(scene),
            extension="png",
            captions=self.captions(scene),
            stratum=scene.stratum,
            label=self._label[concepts[0]] if len(scene.objects) == 1 else None,
            questions=self.questions(scene),
            meta={
                "background": scene.background,
                "concepts": [self._nouns[hexcode].label for hexcode in concepts],
                "objects": [asdict(placed) for placed in scene.objects],
            },
        )

    def scene(self, split: str, index: int) -> Scene:
        """The plan of one scene, without its picture."""
        return self._composers[split].scene(index)

    def captions(self, scene: Scene) -> list[str]:
        """Five captions of a planned scene."""
        return captions(scene, self._nouns, self._keywords, self._class_names)

    def questions(self, scene: Scene) -> list[Question]:
        """The questions about a planned scene."""
        return self._interviewers[scene.split].ask(scene)

    def classes(self) -> tuple[list[str], list[str]]:
        """Names of the kept concepts' sub-groups, and prompt templates."""
        return list(self._classes), list(TEMPLATES)

    def provenance(self) -> list[dict[str, Any]]:
        """The pinned packages."""
        return [
            {
                "name": package.name,
                "version": package.version,
                "sha256": package.sha256,
                "licence": package.licence,
                "attribution": package.attribution,
                "family": package.family or None,
            }
            for package in self.packages
        ]

    def leakage(self) -> dict[str, Any]:
        """Overlaps between splits, repeated captions, and what questions say without their picture [%]."""
        asked: dict[str, list[Question]] = {}
        repeated: dict[str, dict[str, float]] = {}
        for split in SPLITS:
            scenes = [self.scene(split, index) for index in range(self.size(split))]
            said = [self.captions(scene) for scene in scenes]
            asked[split] = [question for scene in scenes for question in self.questions(scene)]
            sets = Counter(frozenset(five) for five in said)
            single = Counter(caption for five in said for caption in five)
            repeated[split] = {
                "scenes_with_a_repeated_caption_set": round(sum(n for n in sets.values() if n > 1) / max(1, len(said)), 5),
                "captions_that_fit_another_scene": round(
                    sum(n for n in single.values() if n > 1) / max(1, sum(single.values())), 5
                ),
            }
        return self._partition.report | {
            "captions": repeated,
            "question_only_accuracy": {split: question_only(asked["train"], asked[split]) for split in SPLITS[1:]},
        }

    @cached_property
    def _catalogue(self) -> Catalogue:
        return read_catalogue(self.packages, self.fetch())

    @cached_property
    def _partition(self) -> Partition:
        catalogue = self._catalogue
        labels = {
            hexcode: label
            for hexcode, concept in catalogue.concepts.items()
            if (label := plain_label(concept.label, concept.subgroup)) is not None
        }
        # Only concepts that have a chance of being kept are rendered: best covered first, with room for those that fall out.
        ranked = sorted(
            labels, key=lambda h: (-len(catalogue.families(h)), -len(catalogue.drawings[h]), catalogue.concepts[h].order)
        )
        room = max(2 * self.config.concepts, self.config.concepts + 100)
        labels = {hexcode: labels[hexcode] for hexcode in ranked[:room]}
        drawings = [drawing for hexcode in labels for drawing in catalogue.drawings[hexcode]]
        return partition(
            catalogue,
            labels,
            render_all(drawings, self.config.render_size),
            concepts=self.config.concepts,
            held_out=self.config.held_out_concepts,
            seed=self.config.seed,
        )

    @cached_property
    def _nouns(self) -> dict[str, Any]:
        return {
            hexcode: noun(plain_label(concept.label, concept.subgroup) or concept.label)
            for hexcode, concept in self._partition.concepts.items()
        }

    @cached_property
    def _class_names(self) -> dict[str, str]:
        return {hexcode: class_name(concept.subgroup) for hexcode, concept in self._partition.concepts.items()}

    @cached_property
    def _classes(self) -> list[str]:
        return list(dict.fromkeys(self._class_names.values()))

    @cached_property
    def _label(self) -> dict[str, int]:
        return {hexcode: self._classes.index(name) for hexcode, name in self._class_names.items()}

    @cached_property
    def _keywords(self) -> dict[str, tuple[str, ...]]:
        return {
            hexcode: spoken_keywords(concept.keywords, self._nouns[hexcode].label, self._class_names[hexcode])
            for hexcode, concept in self._partition.concepts.items()
        }

    @cached_property
    def _composers(self) -> dict[str, Composer]:
        concepts = self._partition.concepts
        abstract = {hexcode for hexcode, concept in concepts.items() if concept.group in ABSTRACT_GROUPS}
        return {
            split: Composer(split, pictures, self._nouns, abstract, self.config.seed)
            for split, pictures in self._partition.pictures.items()
        }

    @cached_property
    def _interviewers(self) -> dict[str, Interviewer]:
        return {
            split: Interviewer(
                composer, self._keywords, self._class_names, self.config.questions_per_scene, number * QUESTION_IDS
            )
            for number, (split, composer) in enumerate(self._composers.items())
        }

    @cached_property
    def _painter(self) -> Painter:
        drawn = [picture for split in self._partition.pictures.values() for own in split.values() for picture in own]
        return Painter({picture.drawing.id: picture for picture in drawn}, self.config.image_size)
