"""English for concepts: plain labels, articles, plurals, keywords worth saying, and names of the sub-groups.

CLDR labels name characters, not pictures ("cooking" is a frying pan), so the few that would mislead are replaced. Rules cover
the regular cases; the word lists below are what a reading of every label showed to be irregular.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

LABELS = {
    "american football": "football", "aerial tramway": "cable car", "barber pole": "barber's pole",
    "beaming face with smiling eyes": "beaming face", "bowling": "bowling ball", "camping": "campsite",
    "children crossing": "children-crossing sign", "cityscape at dusk": "city at dusk", "collision": "explosion",
    "computer disk": "minidisc", "construction": "construction barrier", "cooking": "frying pan",
    "dashing away": "puff of air", "dizzy": "dizzy star", "e-mail": "e-mail envelope",
    "face savoring food": "face licking its lips", "flag in hole": "golf flag", "foggy": "foggy city",
    "globe showing Americas": "globe of the Americas", "globe showing Asia-Australia": "globe of Asia",
    "globe showing Europe-Africa": "globe of Europe", "hot springs": "hot spring", "hundred points": "hundred mark",
    "houses": "group of houses", "ice cream": "bowl of ice cream", "joker": "joker card",
    "leaf fluttering in wind": "leaf in the wind", "light rail": "light rail train", "metro": "metro train",
    "mount fuji": "Mount Fuji", "national park": "park landscape", "new moon": "dark moon",
    "night with stars": "starry night", "no bicycles": "no-bicycles sign", "no entry": "no-entry sign",
    "no littering": "no-littering sign", "no mobile phones": "no-phones sign", "no pedestrians": "no-pedestrians sign",
    "no smoking": "no-smoking sign", "non-potable water": "no-drinking-water sign",
    "rolling on the floor laughing": "rolling laughing face", "restroom": "restroom sign", "seat": "airplane seat",
    "sport utility vehicle": "SUV", "station": "train station", "Statue of Liberty": "statue of liberty",
    "sweat droplets": "droplets", "tennis": "tennis ball", "umbrella with rain drops": "umbrella in the rain",
    "wedding": "wedding chapel", "ZZZ": "sleep sign", "children": "children sign", "cinema": "film sign",
    "fireworks": "firework", "sparkles": "group of sparkles", "hourglass done": "hourglass",
    "hourglass not done": "flowing hourglass", "musical notes": "group of notes", "milky way": "galaxy",
    "locked": "closed padlock",
    "unlocked": "open padlock", "high voltage": "high-voltage sign", "plus": "plus sign", "minus": "minus sign",
    "wireless": "wireless sign", "customs": "customs sign", "airplane departure": "departing airplane",
    "airplane arrival": "arriving airplane",
}  # fmt: skip

# Sub-group slug -> name of one member; the zero-shot classes, and the answers to "what kind of thing is this?".
SUBGROUPS = {
    "face-smiling": "happy face", "face-affection": "loving face", "face-tongue": "playful face",
    "face-hand": "gesturing face", "face-neutral-skeptical": "doubtful face", "face-sleepy": "drowsy face",
    "face-unwell": "sick face", "face-hat": "face wearing a hat", "face-glasses": "face wearing glasses",
    "face-concerned": "troubled face", "face-negative": "menacing face", "face-costume": "fantasy creature",
    "cat-face": "cat expression", "monkey-face": "monkey gesture", "heart": "heart symbol", "emotion": "emotion symbol",
    "animal-mammal": "mammal", "animal-bird": "bird", "animal-amphibian": "amphibian", "animal-reptile": "reptile",
    "animal-marine": "sea animal", "animal-bug": "bug", "plant-flower": "flower", "plant-other": "plant",
    "food-fruit": "fruit", "food-vegetable": "vegetable", "food-prepared": "dish", "food-asian": "Asian dish",
    "food-marine": "seafood", "food-sweet": "dessert", "drink": "drink", "dishware": "tableware", "place-map": "map",
    "place-geographic": "landscape", "place-building": "building", "place-religious": "religious building",
    "place-other": "city sight", "transport-ground": "land vehicle", "transport-water": "water vehicle",
    "transport-air": "air vehicle", "hotel": "hotel item", "time": "clock", "sky-weather": "weather symbol",
    "event": "festive object", "award-medal": "award", "sport": "sports item", "game": "game",
    "arts-crafts": "art supply", "clothing": "piece of clothing", "sound": "sound sign", "music": "music symbol",
    "musical-instrument": "musical instrument", "phone": "phone device", "computer": "electronic device",
    "light-video": "light or video device", "book-paper": "printed paper", "money": "money item", "mail": "mail item",
    "writing": "writing tool", "office": "office supply", "lock": "lock or key", "tool": "hand tool",
    "science": "scientific instrument", "medical": "medical item", "household": "household item",
    "other-object": "other object", "transport-sign": "public sign", "warning": "warning sign", "arrow": "arrow",
    "religion": "religious symbol", "zodiac": "zodiac sign", "av-symbol": "player button", "gender": "gender symbol",
    "math": "math symbol", "punctuation": "punctuation mark", "currency": "currency symbol",
    "other-symbol": "miscellaneous symbol", "geometric": "shape",
}  # fmt: skip

# Characters, not pictures: their labels describe nothing that is drawn.
EXCLUDED_SUBGROUPS = frozenset({"alphanum", "keycap"})

_MASS = frozenset(
    {"bacon", "bread", "broccoli", "butter", "custard", "falafel", "fire", "fog", "garlic", "honey", "ice", "oden", "popcorn"}
    | {
        "sake",
        "salt",
        "soap",
        "spaghetti",
        "sushi",
        "thread",
        "yarn",
        "ice hockey",
        "bubble tea",
        "cooked rice",
        "curry rice",
        "dim sum",
        "ginger root",
        "money with wings",
        "shaved ice",
        "toilet paper",
    }
)
_PLURAL = frozenset({
    "beans", "blueberries", "cherries", "chopsticks", "clinking beer mugs", "clinking glasses", "droplets",
    "french fries", "glasses", "goggles", "grapes", "headphones", "jeans", "olives", "paw prints",
    "revolving hearts", "scissors", "shorts", "skis", "socks", "sunglasses", "two hearts", "gloves", "eyes",
    "clinking beer glasses", "linked paperclips", "control knobs", "clockwise vertical arrows", "crossed swords", "flags",
    "crossed flags", "carp streamers", "chains", "nesting dolls", "maracas", "ballet shoes", "bubbles", "masks",
    "performing arts", "footprints", "peanuts", "pancakes", "Japanese dolls", "admission tickets",
    "flower playing cards", "briefs", "woman's clothes", "shopping bags", "prayer beads", "film frames", "books",
    "bookmark tabs", "card index dividers", "antenna bars",
})  # fmt: skip
_NAMES = frozenset(
    {"Mount Fuji", "Aries", "Taurus", "Gemini", "Cancer", "Leo", "Virgo", "Libra", "Scorpio", "Sagittarius", "Capricorn"}
    | {"Aquarius", "Pisces", "Ophiuchus"}
)
_CONSONANT_SOUND = re.compile(r"uni(?!m|n)|use|uk|eu|ewe|one\b|once|ufo|u-", re.IGNORECASE)
_VOWEL_SOUND = re.compile(r"hour|honest|heir|herb\b|x-ray|sos\b|suv\b", re.IGNORECASE)
_IRREGULAR = {
    "mouse": "mice", "ox": "oxen", "tooth": "teeth", "die": "dice", "man": "men", "woman": "women", "child": "children",
    "goose": "geese", "fish": "fish", "blowfish": "blowfish", "jellyfish": "jellyfish", "sheep": "sheep", "deer": "deer",
    "squid": "squid", "bison": "bison", "shrimp": "shrimp", "leaf": "leaves", "wolf": "wolves", "knife": "knives",
    "shelf": "shelves", "loaf": "loaves", "scarf": "scarves", "potato": "potatoes", "tomato": "tomatoes",
    "mango": "mangoes", "volcano": "volcanoes", "tornado": "tornadoes", "mosquito": "mosquitoes", "buffalo": "buffalo",
    "cactus": "cacti", "ewe": "ewes", "SUV": "SUVs",
}  # fmt: skip
_AFTER_HEAD = re.compile(r" (with|of|in|on|over|behind|without|for|at|and|showing|but) ")
NUMBERS = ("zero", "one", "two", "three", "four")


def article(phrase: str) -> str:
    """``a`` or ``an`` before ``phrase``, by sound: an owl, a unicorn, an hourglass."""
    vowel = phrase[:1].lower() in "aeiou" and not _CONSONANT_SOUND.match(phrase)
    return "an" if vowel or _VOWEL_SOUND.match(phrase) else "a"


@dataclass(frozen=True)
class Noun:
    """A concept's label with its grammar: ``count`` (an owl, two owls), ``plural`` (grapes), ``mass`` (rice), ``name``."""

    label: str
    kind: Literal["count", "plural", "mass", "name"]

    @property
    def words(self) -> int:
        """Number of words of the label."""
        return len(self.label.split())

    @property
    def indefinite(self) -> str:
        """``an owl``, ``grapes``, ``cooked rice``, ``Mount Fuji``."""
        return f"{article(self.label)} {self.label}" if self.kind == "count" else self.label

    def described(self, adjective: str) -> str:
        """``a large owl``, ``large grapes``; a name takes no adjective."""
        if self.kind == "name":
            return self.label
        return f"{article(adjective)} {adjective} {self.label}" if self.kind == "count" else f"{adjective} {self.label}"

    def plural(self) -> str:
        """The plural of a ``count`` noun: its head is inflected, ``faces with tears of joy``."""
        match = _AFTER_HEAD.search(self.label)
        head, tail = (self.label[: match.start()], self.label[match.start() :]) if match else (self.label, "")
        before, space, last = head.rpartition(" ")
        return f"{before}{space}{_plural_word(last)}{tail}"

    def counted(self, count: int) -> str:
        """``an owl`` for one, ``two owls`` for more."""
        return self.indefinite if count == 1 else f"{NUMBERS[count]} {self.plural()}"

    def is_there(self) -> str:
        """The question after its presence."""
        return f"are there {self.label}?" if self.kind == "plural" else f"is there {self.indefinite}?"

    def definite(self) -> str:
        """``the owl``; a name takes no article."""
        return self.label if self.kind == "name" else f"the {self.label}"


def _plural_word(word: str) -> str:
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if re.search(r"(s|x|z|ch|sh)$", word):
        return word + "es"
    return word[:-1] + "ies" if re.search(r"[^aeiou]y$", word) else word + "s"


def noun(label: str) -> Noun:
    """The grammar of a plain label."""
    if label in _NAMES:
        return Noun(label, "name")
    if label in _PLURAL:
        return Noun(label, "plural")
    return Noun(label, "mass" if label in _MASS else "count")


def plain_label(label: str, subgroup: str) -> str | None:
    """The label to say, or ``None`` for concepts that plain English words do not describe."""
    if subgroup in EXCLUDED_SUBGROUPS:
        return None
    said = LABELS.get(label, label).replace("’", "'")
    said = re.sub(r"^(\S+) o'clock$", r"clock at \1", re.sub(r"^(\w+-thirty)$", r"clock at \1", said))
    return said if re.fullmatch(r"[A-Za-z' -]+", said) else None


def class_name(subgroup: str) -> str:
    """Name of one member of a sub-group."""
    return SUBGROUPS.get(subgroup, subgroup.replace("-", " "))


# Keywords that say nothing of the picture: chat slang, moods of the moment, parts of idioms.
_UNSPOKEN = frozenset(
    """
    about action adorbs again agree american app arrived away awesome baa back bae bathing billionaire bless born bowl
    break bright bro call cavities chilling choo class clearly close colada comfortable comic contact country cubical
    date dating decisions definitely dinner direct dizzy done down dreams drive drove drugs drunk dung early easy else
    embarrassed entertainment epic european excited fail faithful fall family fast feels first fish fleek flipper flu
    fml food for forgot fresh front full fun game gang gay genderqueer glbt glbtq good gotta haha hail happy heart
    hehe hitched hole home hot hours hrs ily impressed improvement job keep late lesbian lgbt lgbtq lgbtqia like lit
    litaf lmao lol lots love lover lucky mad made mai maze millionaire miss morning move muah munch natural nature
    nervous new next nooo not now off omg one ornithology outdoors over pass perfect pina please pride queer rad
    resort restaurant rofl roflcopter roflmao school secret settle sexy shade shopping side simple slay smh some sow
    spin spinning sportutility start stealth strat strike style suburban suburbia super swag sweet tai tail tale talk
    taurus than thing think time tmi tool tooth trans transgender trip triumph true truth twisted under upset vampire
    vitamin waiting watch way weekend whatever where whew who win won woohoo work yolo you young yup zoo
    """.split()  # noqa: SIM905 - a list of two hundred quoted words is harder to read
)


def spoken_keywords(keywords: Sequence[str], label: str, kind: str, limit: int = 4) -> tuple[str, ...]:
    """Keywords that add something: one or two lower-case words, none sharing a stem with the label, its class or each other."""
    said = {_stem(word) for word in f"{label} {kind}".replace("-", " ").split()}
    chosen: list[str] = []
    for keyword in sorted(keywords, key=lambda word: (word.count(" "), -len(word), word)):
        stems = {_stem(word) for word in keyword.replace("-", " ").split()}
        if keyword in _UNSPOKEN or not re.fullmatch(r"[a-z]{3,}( [a-z]{3,})?", keyword):
            continue
        if not any(a.startswith(b) or b.startswith(a) for a in stems for b in said):
            chosen.append(keyword)
            said |= stems
    return tuple(chosen[:limit])


def _stem(word: str) -> str:
    """Crude on purpose: cherries and cherry, smiling and smile must meet."""
    word = word.lower().replace("'", "")
    for ending in ("ies", "ing", "es", "ed", "s", "y", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


def listing(parts: Sequence[str], last: str = "and") -> str:
    """``a, b and c``."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {last} {parts[-1]}"
