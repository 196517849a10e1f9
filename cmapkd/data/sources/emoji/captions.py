"""Five captions of a scene: at most ``MAXIMUM_WORDS`` words, the most informative first, each saying what tells scenes apart.

Short because the small experiment's text towers read 16 tokens; what is cut off there is place or colour, never the thing.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from cmapkd.data.sources.emoji.compose import FILLING, HUGE, PLACES, SMALL, Placed, Scene
from cmapkd.data.sources.emoji.language import NUMBERS, Noun, article, listing

CAPTIONS = 5
MAXIMUM_WORDS = 12


def captions(
    scene: Scene, nouns: Mapping[str, Noun], keywords: Mapping[str, Sequence[str]], classes: Mapping[str, str]
) -> list[str]:
    """Five different captions. ``keywords`` and ``classes`` (name of the kind of thing): by hexcode."""
    rng = scene.random("captions")
    if len(scene.objects) == 1:
        placed = scene.objects[0]
        candidates = _alone(scene, placed, nouns[placed.hexcode], keywords[placed.hexcode], classes[placed.hexcode], rng)
    else:
        candidates = _together(scene, nouns, rng)
    chosen: dict[str, None] = {}
    for forms in candidates:
        # The first form that is short enough and new; a label too long for all of them takes the shortest.
        fitting = [form for form in forms if len(form.split()) <= MAXIMUM_WORDS] or [min(forms, key=lambda f: len(f.split()))]
        new = next((form for form in fitting if form not in chosen), None)
        if new is not None:
            chosen[new] = None
        if len(chosen) == CAPTIONS:
            break
    return list(chosen)


def _where(place: str) -> str:
    """``at the top left``, ``in the center``, ``filling the picture``."""
    if place == FILLING:
        return "filling the picture"
    preposition = {"top": "at", "bottom": "at", "left": "on", "right": "on"}.get(place, "in")
    return f"{preposition} the {place}"


def _short(place: str) -> str:
    return "full size" if place == FILLING else place


def _alone(
    scene: Scene, placed: Placed, noun: Noun, keywords: Sequence[str], kind: str, rng: random.Random
) -> Iterator[list[str]]:
    colour, where, short = scene.background, _where(placed.place), _short(placed.place)
    size = "huge" if placed.side == HUGE else "tiny" if placed.side <= SMALL[-1] else "large"
    some = rng.sample(list(keywords), min(2, len(keywords)))
    yield [
        f"{noun.indefinite} {where} of {article(colour)} {colour} picture"
        if placed.place != FILLING
        else f"{noun.indefinite} filling {article(colour)} {colour} picture",
        f"{noun.indefinite} {where} on {colour}",
        f"{noun.label}, {short}, {colour}",
    ]
    yield [
        f"{noun.described(size)} on {article(colour)} {colour} background, {short}",
        f"{size} {noun.label} on {colour}, {short}",
    ]
    if len(some) == 2:
        yield [
            f"{noun.indefinite} ({some[0]}, {some[1]}) on {colour}, {short}",
            f"{noun.label}, {some[0]}, {colour}, {short}",
            f"{noun.label}, {colour}, {short}",
        ]
    if kind not in noun.label:
        yield [f"{article(kind)} {kind}, {noun.indefinite}, on {colour}, {short}", f"{kind}: {noun.label}, {colour}, {short}"]
    if some:
        yield [
            f"{some[0]}: {noun.described(size)} {where}, {colour} background",
            f"{size} {noun.label}, {some[0]}, {colour}, {short}",
        ]
    yield [f"{size} {noun.label} {where}, {colour} background", f"{size} {noun.label}, {short}, {colour} background"]
    yield [f"{noun.label}, {size}, {short}, on {colour}"]
    yield [f"{colour} background with {noun.indefinite}, {short}", f"{colour}: {noun.label}, {short}"]


def relation(a: Placed, b: Placed) -> str | None:
    """How ``a`` lies to ``b``: ``left of``, ``above``, ... or ``None`` where two directions would be equally true."""
    across = PLACES[b.place][0] - PLACES[a.place][0]
    down = PLACES[b.place][1] - PLACES[a.place][1]
    if abs(across) == abs(down):
        return None
    if abs(across) > abs(down):
        return "left of" if across > 0 else "right of"
    return "above" if down > 0 else "below"


def _bare(noun: Noun, count: int) -> str:
    return noun.label if count == 1 else f"{NUMBERS[count]} {noun.plural()}"


def _together(scene: Scene, nouns: Mapping[str, Noun], rng: random.Random) -> Iterator[list[str]]:
    colour, objects = scene.background, scene.objects
    counts = Counter(placed.hexcode for placed in objects)  # in reading order
    counted = [nouns[hexcode].counted(count) for hexcode, count in counts.items()]
    bare = [_bare(nouns[hexcode], count) for hexcode, count in counts.items()]
    small = scene.stratum == "fine"
    number = NUMBERS[len(objects)]
    places = [f"{nouns[placed.hexcode].label} {placed.place}" for placed in objects]
    yield [
        f"{listing(counted)} on {article(colour)} {colour} background",
        f"{listing(counted)} on {colour}",
        f"{', '.join(bare)} on {colour}",
    ]
    pairs = [(a, b) for a, b in combinations(objects, 2) if a.hexcode != b.hexcode]
    rng.shuffle(pairs)
    said = 0
    for a, b in pairs:
        if rng.random() < 0.5:
            a, b = b, a
        how, first, second = relation(a, b), nouns[a.hexcode], nouns[b.hexcode]
        if how is None or counts[a.hexcode] > 1 or counts[b.hexcode] > 1:
            continue
        if len(objects) == 2:
            yield [f"{first.indefinite} {how} {second.indefinite} on {colour}"]
        else:
            rest = [h for h in counts if h not in (a.hexcode, b.hexcode)]
            others = [nouns[h].counted(counts[h]) for h in rest]
            yield [
                f"{first.indefinite} {how} {second.indefinite}, with {listing(others)} on {colour}",
                f"{first.label} {how} {second.label}, {', '.join(_bare(nouns[h], counts[h]) for h in rest)}, {colour}",
                f"{first.label} {how} {second.label} on {colour}",
            ]
        said += 1
        if said == 2:
            break
    if len(counts) == 1:
        (hexcode,) = counts
        arrangement = listing([placed.place for placed in objects]) if len(objects) < 4 else "one in each corner"
        yield [f"{counted[0]}, {arrangement}, on {colour}"]
        yield [f"{number} of the same on {colour}: {nouns[hexcode].plural()}, {arrangement}", f"{bare[0]} on {colour}"]
        yield [f"{bare[0]} and nothing else, {colour} background, {arrangement}", f"{bare[0]}, {colour} background"]
        yield [f"{arrangement}: {bare[0]} on {colour}"]
        yield [f"{colour} background with {bare[0]}"]
    yield [f"{', '.join(places)}, on {colour}", f"{', '.join(places)}, {colour}", f"{', '.join(bare)}, {colour} background"]
    yield [
        f"{'tiny' if small else f'{number} things'}: {listing(bare)} on {colour}",
        f"{', '.join(bare)}, {colour}",
    ]
    backwards = counted[::-1]
    yield [
        f"{listing(backwards)}{', both tiny,' if small else ''} on {colour}",
        f"{', '.join(bare[::-1])} on {colour}",
    ]
    yield [f"{article(colour)} {colour} picture of {listing(counted)}", f"{colour} picture: {', '.join(bare)}"]
    yield [f"{listing(bare)}, {colour} background"]
