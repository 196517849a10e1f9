"""Which concepts are kept, and which of their drawings each split may use, so that nothing of a test is seen in training.

1. A picture that two concepts share pixel for pixel is dropped.
2. Concepts that are variants of one another form a component: by kind (clock faces, hearts, moons, arrows, ...), where one
   label contains the other (tiger, tiger face), and where two or more style families draw them nearly alike. At most
   ``COMPONENT_LIMIT`` concepts of a component are kept.
3. Drawings of one concept that are of one style family, or near-duplicates of one another, form a style; the ``concepts``
   concepts with the most styles are kept.
4. Whole components are held out for `test_concept`. Of every other concept one style goes to `validation` and another one to
   `test_render`, the rest to `train`. A held-out drawing that nearly equals a training drawing of *any* concept is dropped.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cmapkd.data.sources.emoji.catalogue import Catalogue, Concept
from cmapkd.data.sources.emoji.render import Picture, near_duplicates
from cmapkd.errors import UserError

SPLITS = ("train", "validation", "test_render", "test_concept")
COMPONENT_LIMIT = 4  # concepts of one component: more of them (24 clock faces) cannot be told apart at 32 px
MINIMUM_STYLES = 3  # two for training, one held out
MINIMUM_CONCEPTS = 4  # of a split: a complex scene shows up to four different ones
ABSTRACT_GROUPS = frozenset({"smileys-emotion", "symbols"})

# Sub-groups whose members are variants of one sign, and words that mark variants across sub-groups.
_ONE_COMPONENT = frozenset({"heart", "arrow", "geometric", "av-symbol", "cat-face", "monkey-face"})
_ONE_COMPONENT |= {"music", "punctuation", "math"}
_MARKERS = ("clock", "moon", "hourglass", "mailbox", "speaker", "book", "lock", "yen", "dollar", "euro", "pound")


@dataclass(frozen=True)
class Partition:
    """The kept concepts in emoji order, their component numbers, and split -> hexcode -> pictures."""

    concepts: dict[str, Concept]
    component: dict[str, int]
    pictures: dict[str, dict[str, list[Picture]]]
    report: dict[str, Any]


def partition(
    catalogue: Catalogue, labels: dict[str, str], pictures: dict[str, Picture], *, concepts: int, held_out: float, seed: int
) -> Partition:
    """Split the rendered drawings. ``labels``: hexcode -> plain English label of every concept that may be used.

    Raises:
        UserError: fewer usable concepts than ``concepts``.
    """
    usable, shared = _without_shared_pictures(catalogue, labels, pictures)
    component = _components(usable, labels, {h: catalogue.concepts[h].subgroup for h in usable})
    styles = {hexcode: _styles(drawn) for hexcode, drawn in usable.items()}
    kept = _best_covered(catalogue, styles, component, concepts)
    component = {hexcode: component[hexcode] for hexcode in kept}
    unseen = _held_out_concepts(catalogue, kept, component, held_out, seed)
    split = _distribute(kept, unseen, styles, seed)
    dropped = _drop_near_training(split)
    for name, drawn in split.items():
        if len(drawn) < MINIMUM_CONCEPTS:
            raise UserError(
                key="data.held_out_concepts" if name == "test_concept" else "data.concepts",
                value=held_out if name == "test_concept" else concepts,
                reason=f"split {name!r} has {len(drawn)} concepts, and a scene shows up to {MINIMUM_CONCEPTS} different ones",
                fix="more concepts, or another share of held-out ones",
            )
    report = {
        "concepts": len(kept),
        "components": len(set(component.values())),
        "concepts_per_split": {name: len(drawn) for name, drawn in split.items()},
        "drawings_per_split": {name: sum(map(len, drawn.values())) for name, drawn in split.items()},
        "dropped_pictures_shared_by_concepts": shared,
        "dropped_held_out_pictures_close_to_training": dropped,
    } | _residue(split, component)
    return Partition({h: catalogue.concepts[h] for h in kept}, component, split, report)


def _without_shared_pictures(
    catalogue: Catalogue, labels: dict[str, str], pictures: dict[str, Picture]
) -> tuple[dict[str, list[Picture]], int]:
    owners: dict[str, set[str]] = defaultdict(set)
    for picture in pictures.values():
        owners[picture.exact].add(picture.drawing.hexcode)
    usable: dict[str, list[Picture]] = {}
    shared = 0
    for hexcode in sorted(labels, key=lambda h: catalogue.concepts[h].order):
        drawn = [pictures[drawing.id] for drawing in catalogue.drawings[hexcode] if drawing.id in pictures]
        own = [picture for picture in drawn if len(owners[picture.exact]) == 1]
        shared += len(drawn) - len(own)
        if own:
            usable[hexcode] = own
    return usable, shared


class _Union:
    """Union-find over hashable items; the representative is the smallest item, so results do not depend on order."""

    def __init__(self, items: Iterable[Any]) -> None:
        self.parent = {item: item for item in items}

    def find(self, item: Any) -> Any:
        while self.parent[item] != item:
            self.parent[item] = self.parent[self.parent[item]]
            item = self.parent[item]
        return item

    def join(self, a: Any, b: Any) -> None:
        a, b = sorted((self.find(a), self.find(b)))
        self.parent[b] = a


def _components(usable: dict[str, list[Picture]], labels: dict[str, str], subgroups: dict[str, str]) -> dict[str, int]:
    union = _Union(usable)
    first: dict[str, str] = {}
    for hexcode in usable:
        keys = [subgroups[hexcode]] if subgroups[hexcode] in _ONE_COMPONENT else []
        keys += [f"word {marker}" for marker in _MARKERS if marker in labels[hexcode].replace("-", " ").split()]
        for key in keys:
            union.join(first.setdefault(key, hexcode), hexcode)
    words = {hexcode: frozenset(labels[hexcode].lower().replace("-", " ").split()) for hexcode in usable}
    for small in usable:
        for large in usable:
            if words[small] < words[large]:
                union.join(small, large)
    by_set: dict[str, list[Picture]] = defaultdict(list)
    for drawn in usable.values():
        for picture in drawn:
            by_set[picture.drawing.id.partition("/")[0]].append(picture)
    alike: dict[tuple[str, str], set[str]] = defaultdict(set)
    for members in by_set.values():
        for i, j in zip(*np.nonzero(np.triu(near_duplicates(members, members), 1)), strict=True):
            a, b = sorted((members[i].drawing.hexcode, members[j].drawing.hexcode))
            alike[a, b].add(members[i].drawing.family)
    for (a, b), families in sorted(alike.items()):
        if a != b and len(families) >= 2:
            union.join(a, b)
    numbers: dict[str, int] = {}
    return {hexcode: numbers.setdefault(union.find(hexcode), len(numbers)) for hexcode in usable}


def _styles(drawn: list[Picture]) -> list[list[Picture]]:
    """Groups of one concept's drawings that are of one family or near-duplicates (also through a third one)."""
    union = _Union(range(len(drawn)))
    alike = near_duplicates(drawn, drawn)
    for i in range(len(drawn)):
        for j in range(i):
            if alike[i, j] or drawn[i].drawing.family == drawn[j].drawing.family:
                union.join(i, j)
    groups: dict[int, list[Picture]] = defaultdict(list)
    for i, picture in enumerate(drawn):
        groups[union.find(i)].append(picture)
    return list(groups.values())


def _best_covered(
    catalogue: Catalogue, styles: dict[str, list[list[Picture]]], component: dict[str, int], count: int
) -> list[str]:
    def rank(hexcode: str) -> tuple[int, int, int]:
        return (-len(styles[hexcode]), -sum(map(len, styles[hexcode])), catalogue.concepts[hexcode].order)

    used: Counter[int] = Counter()
    kept: list[str] = []
    for hexcode in sorted((h for h in styles if len(styles[h]) >= MINIMUM_STYLES), key=rank):
        if len(kept) < count and used[component[hexcode]] < COMPONENT_LIMIT:
            used[component[hexcode]] += 1
            kept.append(hexcode)
    if len(kept) < count:
        raise UserError(
            key="data.concepts",
            value=count,
            reason=f"only {len(kept)} concepts have at least {MINIMUM_STYLES} drawing styles and a plain English label",
            fix=f"ask for at most {len(kept)}",
        )
    return sorted(kept, key=lambda hexcode: catalogue.concepts[hexcode].order)


def _held_out_concepts(
    catalogue: Catalogue, kept: Sequence[str], component: dict[str, int], share: float, seed: int
) -> set[str]:
    """Whole components, in proportion from abstract and concrete concepts, none that would empty a sub-group of training."""
    members: dict[int, list[str]] = defaultdict(list)
    for hexcode in kept:
        members[component[hexcode]].append(hexcode)
    left = Counter(catalogue.concepts[hexcode].subgroup for hexcode in kept)
    abstract = {h: catalogue.concepts[h].group in ABSTRACT_GROUPS for h in kept}
    budget = {kind: round(share * sum(value == kind for value in abstract.values())) for kind in (True, False)}
    order = sorted(members)
    random.Random(f"{seed}/held-out concepts").shuffle(order)
    unseen: set[str] = set()
    for number in order:
        group = members[number]
        taken = Counter(catalogue.concepts[hexcode].subgroup for hexcode in group)
        kinds = Counter(abstract[hexcode] for hexcode in group)
        if all(budget[kind] >= n for kind, n in kinds.items()) and all(left[name] > n for name, n in taken.items()):
            unseen.update(group)
            left.subtract(taken)
            for kind, n in kinds.items():
                budget[kind] -= n
    return unseen


def _distribute(
    kept: Sequence[str], unseen: set[str], styles: dict[str, list[list[Picture]]], seed: int
) -> dict[str, dict[str, list[Picture]]]:
    split: dict[str, dict[str, list[Picture]]] = {name: {} for name in SPLITS}
    for hexcode in kept:
        groups = sorted(styles[hexcode], key=lambda group: group[0].drawing.id)
        if hexcode in unseen:
            split["test_concept"][hexcode] = [picture for group in groups for picture in group]
            continue
        random.Random(f"{seed}/styles/{hexcode}").shuffle(groups)
        split["test_render"][hexcode] = groups[0]
        # With three styles training needs two: then validation and test share the held-out drawing, which is reported.
        split["validation"][hexcode] = groups[1] if len(groups) > MINIMUM_STYLES else groups[0]
        training = groups[2:] if len(groups) > MINIMUM_STYLES else groups[1:]
        split["train"][hexcode] = [picture for group in training for picture in group]
    return split


def _drop_near_training(split: dict[str, dict[str, list[Picture]]]) -> dict[str, int]:
    training = [picture for drawn in split["train"].values() for picture in drawn]
    dropped = {}
    for name in SPLITS[1:]:
        before = sum(map(len, split[name].values()))
        clean: dict[str, list[Picture]] = {}
        for hexcode, drawn in split[name].items():
            close = near_duplicates(drawn, training).any(axis=1)
            if own := [drawn[i] for i in np.flatnonzero(~close)]:
                clean[hexcode] = own
        split[name] = clean
        dropped[name] = before - sum(map(len, clean.values()))
    return dropped


def _residue(split: dict[str, dict[str, list[Picture]]], component: dict[str, int]) -> dict[str, Any]:
    """Overlaps between training and every held-out split, counted on what is really used."""

    def flat(name: str) -> list[Picture]:
        return [picture for drawn in split[name].values() for picture in drawn]

    def styles(name: str) -> set[tuple[str, str]]:
        return {(picture.drawing.hexcode, picture.drawing.family) for picture in flat(name)}

    training = flat("train")
    exact = {picture.exact for picture in training}
    overlap: dict[str, Any] = {}
    for name in SPLITS[1:]:
        held = flat(name)
        overlap[name] = {
            "identical_pictures": sum(picture.exact in exact for picture in held),
            "near_duplicate_pictures": int(near_duplicates(held, training).any(axis=1).sum()),
            "look_alike_pictures": int(near_duplicates(held, training, factor=1.5).any(axis=1).sum()),
            "pictures": len(held),
            "concept_and_family_pairs": len(styles(name) & styles("train")),
            "concepts": len(set(split[name]) & set(split["train"])),
        }
    seen = {component[hexcode] for hexcode in split["train"]}
    overlap["test_concept"]["components"] = len({component[h] for h in split["test_concept"]} & seen)
    both = {p.drawing.id for p in flat("validation")} & {p.drawing.id for p in flat("test_render")}
    return {"overlap_with_train": overlap, "drawings_in_validation_and_test_render": len(both)}
