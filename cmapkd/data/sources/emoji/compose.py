"""What a scene shows, as a pure function of (seed, split, index), and its picture.

Strata take turns: index % 4. `simple` one large concrete thing; `complex` two to four; `fine` one or two at a quarter to a
third of the side; `abstract` one large symbol or emotion. So that captions tell scenes apart, a lone object's look (background
colour and place) is dealt like cards: scene after scene of the same concept takes the next card of a shuffled deck, and no look
comes twice before all have come once. Concepts are dealt the same way, so all are equally frequent.
"""

from __future__ import annotations

import io
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image

from cmapkd.data.sources.emoji.language import Noun
from cmapkd.data.sources.emoji.render import Picture

STRATA = ("simple", "complex", "fine", "abstract")
BACKGROUNDS = {
    "white": (250, 250, 250), "gray": (168, 170, 174), "red": (238, 108, 108), "pink": (255, 186, 210),
    "orange": (255, 190, 120), "yellow": (255, 240, 140), "green": (170, 226, 160), "blue": (158, 200, 250),
    "purple": (206, 172, 240), "brown": (186, 150, 122),
}  # fmt: skip
TINT_JITTER = 8  # levels of 255 by which a tint varies, so that its exact value is no name tag
PLACES = {
    "top left": (0.0, 0.0), "top": (0.5, 0.0), "top right": (1.0, 0.0),
    "left": (0.0, 0.5), "center": (0.5, 0.5), "right": (1.0, 0.5),
    "bottom left": (0.0, 1.0), "bottom": (0.5, 1.0), "bottom right": (1.0, 1.0),
}  # fmt: skip
FILLING = "filling"  # the place of an object that fills the picture
LARGE, HUGE = 0.58, 0.9  # share of the side
SMALL = (0.25, 0.29, 0.33)
# Layouts of complex scenes: side of an object, and the place of each.
LAYOUTS: dict[int, tuple[tuple[float, tuple[str, ...]], ...]] = {
    2: (
        (0.47, ("left", "right")), (0.47, ("top", "bottom")),
        (0.47, ("top left", "bottom right")), (0.47, ("top right", "bottom left")),
    ),
    3: ((0.45, ("top left", "top right", "bottom")), (0.45, ("top", "bottom left", "bottom right"))),
    4: ((0.44, ("top left", "top right", "bottom left", "bottom right")),),
}  # fmt: skip
# How many of each concept, dealt in turn: half of the scenes without copies, and 2, 3 and 4 things about equally often, so that
# "how many things are there?" has no favourite answer.
PARTITIONS: tuple[tuple[int, ...], ...] = (
    *[(1, 1)] * 5, *[(1, 1, 1)] * 3, *[(1, 1, 1, 1)] * 2, *[(2,)] * 2, (2, 1), (2, 1, 1), *[(3,)] * 2, (3, 1), *[(4,)] * 3,
)  # fmt: skip


@dataclass(frozen=True)
class Placed:
    """One object: concept, drawing, side [share of the picture's], place name and centre [shares, rightwards and down]."""

    hexcode: str
    drawing: str
    side: float
    place: str
    x: float
    y: float


@dataclass(frozen=True)
class Scene:
    """Everything that is drawn and said follows from this. ``tint``: (R, G, B)."""

    split: str
    index: int
    stratum: str
    background: str
    tint: tuple[int, int, int]
    objects: tuple[Placed, ...]
    seed: int

    def random(self, purpose: str) -> random.Random:
        """A generator of its own for each purpose: changing how questions are asked changes no caption."""
        return random.Random(f"{self.seed}/{self.split}/{self.index}/{purpose}")


class Composer:
    """Scenes of one split from its pictures (hexcode -> drawings) and what may be said of them."""

    def __init__(
        self, split: str, pictures: Mapping[str, Sequence[Picture]], nouns: Mapping[str, Noun], abstract: set[str], seed: int
    ) -> None:
        self.split, self.pictures, self.nouns, self.seed = split, pictures, nouns, seed
        known = sorted(pictures)
        short = [hexcode for hexcode in known if nouns[hexcode].words <= 2]
        self.pools = {
            "simple": [hexcode for hexcode in known if hexcode not in abstract] or known,
            "abstract": [hexcode for hexcode in known if hexcode in abstract] or known,
            "fine": known,
            # A caption names all objects of a scene in some twelve words: only concepts with short names can be together.
            "together": short if len(short) >= 4 else known,
        }
        self.pools["copies"] = [h for h in self.pools["together"] if nouns[h].kind == "count"] or self.pools["together"]
        self._round = lru_cache(maxsize=4096)(self._shuffled_pool)
        self._deck = lru_cache(maxsize=4096)(self._shuffled_deck)
        self._partitions = list(PARTITIONS)
        random.Random(f"{seed}/{split}/partitions").shuffle(self._partitions)

    def scene(self, index: int) -> Scene:
        """The ``index``-th scene; needs no other scene."""
        stratum = STRATA[index % len(STRATA)]
        rng = random.Random(f"{self.seed}/{self.split}/{index}/scene")
        turn = index // len(STRATA)
        if stratum == "complex":
            background, objects = self._together(turn, rng)
        elif stratum == "fine" and turn % 2:
            background, objects = rng.choice(list(BACKGROUNDS)), self._small_pair(rng)
        else:
            background, objects = self._alone(stratum, turn // 2 if stratum == "fine" else turn, rng)
        jitter = rng.randint(-TINT_JITTER, TINT_JITTER)
        red, green, blue = (min(255, max(0, level + jitter)) for level in BACKGROUNDS[background])
        return Scene(self.split, index, stratum, background, (red, green, blue), tuple(objects), self.seed)

    def _shuffled_pool(self, name: str, kind: str, number: int) -> list[str]:
        pool = list(self.pools[name])
        random.Random(f"{self.seed}/{self.split}/{kind}/round {number}").shuffle(pool)
        return pool

    def _shuffled_deck(self, kind: str, hexcode: str, looks: int) -> list[tuple[str, int]]:
        deck = [(background, look) for background in BACKGROUNDS for look in range(looks)]
        random.Random(f"{self.seed}/{self.split}/{kind}/{hexcode}").shuffle(deck)
        return deck

    def _deal(self, pool: str, kind: str, turn: int, looks: int) -> tuple[str, str, int]:
        """Concept, background and look number of the ``turn``-th scene of a kind."""
        number, position = divmod(turn, len(self.pools[pool]))
        hexcode = self._round(pool, kind, number)[position]
        deck = self._deck(kind, hexcode, looks)
        background, look = deck[number % len(deck)]
        return hexcode, background, look

    def _alone(self, stratum: str, turn: int, rng: random.Random) -> tuple[str, list[Placed]]:
        places = list(PLACES) if stratum == "fine" else [*PLACES, FILLING]
        hexcode, background, look = self._deal(stratum, stratum, turn, len(places))
        place = places[look]
        side = rng.choice(SMALL) if stratum == "fine" else HUGE if place == FILLING else LARGE
        return background, [self._place(hexcode, side, place, rng)]

    def _small_pair(self, rng: random.Random) -> list[Placed]:
        hexcodes = rng.sample(self.pools["together"], 2)
        places = rng.sample(list(PLACES), 2)
        side = rng.choice(SMALL)
        return [self._place(h, side, place, rng) for h, place in zip(hexcodes, _reading_order(places), strict=True)]

    def _together(self, turn: int, rng: random.Random) -> tuple[str, list[Placed]]:
        number, card = divmod(turn, len(self._partitions))
        partition = self._partitions[card]
        layouts = LAYOUTS[sum(partition)]
        if len(partition) == 1:
            # Copies of one concept and nothing else have few looks: dealt, like lone objects.
            before = self._partitions[:card].count(partition)
            turn_of_kind = number * self._partitions.count(partition) + before
            first, background, look = self._deal("copies", f"copies {partition[0]}", turn_of_kind, len(layouts))
            side, places = layouts[look]
        else:
            first = rng.choice(self.pools["copies"] if partition[0] > 1 else self.pools["together"])
            background, (side, places) = rng.choice(list(BACKGROUNDS)), rng.choice(layouts)
        others = rng.sample([hexcode for hexcode in self.pools["together"] if hexcode != first], len(partition) - 1)
        hexcodes = [h for h, count in zip([first, *others], partition, strict=True) for _ in range(count)]
        rng.shuffle(hexcodes)
        # Copies are one drawing: "two owls" that look alike are easier to see as two than two styles of owl.
        drawings = {h: rng.choice(self.pictures[h]).drawing.id for h in sorted(set(hexcodes))}
        return background, [self._place(h, side, place, rng, drawings[h]) for h, place in zip(hexcodes, places, strict=True)]

    def _place(self, hexcode: str, side: float, place: str, rng: random.Random, drawing: str | None = None) -> Placed:
        room = 1 - side
        across, down = PLACES["center" if place == FILLING else place]
        shake = 0.0 if place == FILLING else min(0.03, room / 4)

        def centre(share: float) -> float:
            return min(1 - side / 2, max(side / 2, side / 2 + room * share + rng.uniform(-shake, shake)))

        chosen = drawing or rng.choice(self.pictures[hexcode]).drawing.id
        return Placed(hexcode, chosen, side, place, round(centre(across), 4), round(centre(down), 4))


def _reading_order(places: Sequence[str]) -> list[str]:
    return sorted(places, key=lambda place: (PLACES[place][1], PLACES[place][0]))


class Painter:
    """Scenes to PNG bytes; every drawing is resized once for each side it is used at."""

    def __init__(self, pictures: Mapping[str, Picture], image_size: int) -> None:
        self.pictures, self.image_size = pictures, image_size
        self._resized = lru_cache(maxsize=20000)(self._resize)

    def _resize(self, drawing: str, side: int) -> Image.Image:
        # PIL resizes RGBA with premultiplied alpha, so transparent pixels lend no colour to the edge.
        return self.pictures[drawing].image.resize((side, side), Image.Resampling.LANCZOS)

    def paint(self, scene: Scene) -> Image.Image:
        """The picture, RGB, side ``image_size``."""
        size = self.image_size
        canvas = Image.new("RGB", (size, size), scene.tint)
        for placed in scene.objects:
            side = max(1, round(placed.side * size))
            drawing = self._resized(placed.drawing, side)
            left, top = (min(size - side, max(0, round(centre * size - side / 2))) for centre in (placed.x, placed.y))
            canvas.paste(drawing, (left, top), drawing)
        return canvas

    def png(self, scene: Scene) -> bytes:
        """The picture as PNG; the same bytes for the same scene."""
        buffer = io.BytesIO()
        self.paint(scene).save(buffer, format="PNG", compress_level=6)
        return buffer.getvalue()
