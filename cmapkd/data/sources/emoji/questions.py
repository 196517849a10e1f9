"""Questions about a scene in VQAv2 form: ten answers each, types yes/no, number and other.

Every kind of question is balanced so that the question alone says little: `is there ...?` is yes half of the time, and the
things that are not there are drawn as those that are (from another scene of the same stratum); numbers asked for are spread
evenly over what can be shown. How much the question alone does say is measured by ``question_only``.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from cmapkd.data.sample import AnswerType, Question
from cmapkd.data.sources.emoji.captions import relation
from cmapkd.data.sources.emoji.compose import BACKGROUNDS, FILLING, STRATA, Composer, Scene
from cmapkd.data.sources.emoji.language import Noun

ANSWERS = 10
# How many of the ten disagree, drawn evenly: as people do on easy questions, never so many that the majority is in doubt. Fewer
# where an answer is one of a handful: three who say "yes" already earn a wrong "yes" 0.9 by the official formula.
DISSENT: dict[AnswerType, tuple[int, ...]] = {
    "yes/no": (0, 0, 0, 0, 0, 1),
    "number": (0, 0, 0, 1),
    "other": (0, 0, 0, 1, 1, 2, 3),
}
# Share of the scenes with 1, 2, 3 or 4 of a thing in which its number is asked: evens out how frequent they are.
ASK_NUMBER = {1: 0.3, 2: 0.75, 3: 1.0, 4: 1.0}
ASK_NUMBER_OF_ONE = 0.4  # the same for a lone small thing
TRIES = 50  # other scenes looked at for something that is not there; only a stratum of one concept needs them all
RARER = 0.3  # share of the second question of a type
Asked = tuple[str, AnswerType, str, Sequence[str]]  # question, type, answer, plausible other answers
Ask = Callable[[Scene, random.Random], Asked | None]


class Interviewer:
    """Asks about the scenes of one split. ``keywords`` and ``classes``: by hexcode, as for captions."""

    def __init__(
        self, composer: Composer, keywords: Mapping[str, Sequence[str]], classes: Mapping[str, str], count: int, first_id: int
    ) -> None:
        self.composer, self.nouns, self.count, self.first_id = composer, composer.nouns, count, first_id
        self.keywords, self.classes = keywords, classes

    def ask(self, scene: Scene) -> list[Question]:
        """``count`` different questions, their types as even as the scene allows."""
        rng = scene.random("questions")
        lone = len(scene.objects) == 1
        kinds: list[tuple[Ask, Ask]] = [
            (self._is_there, self._is_background),
            (self._what, self._kind) if lone else (self._what_is_where, self._background),
            (self._how_many_of, self._how_many)
            if scene.stratum == "complex"
            else (self._one_thing if scene.stratum == "fine" else self._where, self._background),
        ]
        # Rotating by the scene's turn within its stratum gives each type its share even with one question a scene.
        turn = (scene.index // len(STRATA)) % len(kinds)
        order = kinds[turn:] + kinds[:turn]
        asked: dict[str, Asked] = {}
        for attempt in range(8 * self.count):
            if len(asked) == self.count:
                break
            ask, rarer = order[attempt % len(order)]
            one = (rarer if rng.random() < RARER else ask)(scene, rng)
            if one is not None:
                asked.setdefault(one[0], one)
        first = self.first_id + scene.index * 8
        return [
            Question(question, ten_answers(answer, others, rng, DISSENT[kind]), kind, first + number)
            for number, (question, kind, answer, others) in enumerate(asked.values())
        ]

    def _is_there(self, scene: Scene, rng: random.Random) -> Asked:
        present = sorted({placed.hexcode for placed in scene.objects})
        hexcode, answer = rng.choice(present), "yes"
        if rng.random() < 0.5:
            for _ in range(TRIES):
                other = self.composer.scene(rng.randrange(2**20) * len(STRATA) + scene.index % len(STRATA))
                drawn = rng.choice(sorted({placed.hexcode for placed in other.objects}))
                if drawn not in present:
                    hexcode, answer = drawn, "no"
                    break
        return self.nouns[hexcode].is_there(), "yes/no", answer, ["no" if answer == "yes" else "yes"]

    def _is_background(self, scene: Scene, rng: random.Random) -> Asked:
        colour, answer = scene.background, "yes"
        if rng.random() < 0.5:
            colour, answer = rng.choice([name for name in BACKGROUNDS if name != scene.background]), "no"
        return f"is the background {colour}?", "yes/no", answer, ["no" if answer == "yes" else "yes"]

    def _what(self, scene: Scene, rng: random.Random) -> Asked:
        hexcode = scene.objects[0].hexcode
        others = [*self.keywords[hexcode][:2], self.classes[hexcode]]
        return "what is this?", "other", self.nouns[hexcode].label, others

    def _kind(self, scene: Scene, rng: random.Random) -> Asked:
        hexcode = scene.objects[0].hexcode
        return (
            "what kind of thing is this?",
            "other",
            self.classes[hexcode],
            [self.nouns[hexcode].label, *self.keywords[hexcode][:1]],
        )

    def _background(self, scene: Scene, rng: random.Random) -> Asked:
        names = list(BACKGROUNDS)
        near = names[(names.index(scene.background) + 1) % len(names)]
        return "what color is the background?", "other", scene.background, [f"light {scene.background}", near]

    def _where(self, scene: Scene, rng: random.Random) -> Asked | None:
        placed = scene.objects[0]
        if placed.place == FILLING:
            return None
        if placed.place == "center":
            others = ["middle"]
        else:
            others = [f"{placed.place} corner" if " " in placed.place else f"{placed.place} side", "center"]
        return f"where is {self.nouns[placed.hexcode].definite()}?", "other", placed.place, others

    def _what_is_where(self, scene: Scene, rng: random.Random) -> Asked | None:
        """Only where exactly one thing fits: the asked-about thing occurs once, and one thing lies in that direction."""
        counts = Counter(placed.hexcode for placed in scene.objects)
        found: list[Asked] = []
        for b in scene.objects:
            by_direction: dict[str, list[str]] = defaultdict(list)
            for a in scene.objects:
                how = relation(a, b) if a is not b else None
                if how is not None:
                    by_direction[how].append(a.hexcode)
            for how, hexcodes in by_direction.items():
                if counts[b.hexcode] == 1 and len(set(hexcodes)) == 1:
                    question = f"what is {how} {self.nouns[b.hexcode].definite()}?"
                    found.append((question, "other", self.nouns[hexcodes[0]].label, [self.classes[hexcodes[0]], "nothing"]))
        return rng.choice(found) if found else None

    def _how_many(self, scene: Scene, rng: random.Random) -> Asked:
        number = len(scene.objects)
        return "how many things are there?", "number", str(number), [str(number + 1), str(max(1, number - 1))]

    def _one_thing(self, scene: Scene, rng: random.Random) -> Asked | None:
        if len(scene.objects) > 1:
            return self._background(scene, rng)
        return self._how_many(scene, rng) if rng.random() < ASK_NUMBER_OF_ONE else self._where(scene, rng)

    def _how_many_of(self, scene: Scene, rng: random.Random) -> Asked | None:
        counts = Counter(placed.hexcode for placed in scene.objects)
        most = max(counts.values())
        hexcode = rng.choice(sorted(hexcode for hexcode, count in counts.items() if count == most))
        noun: Noun = self.nouns[hexcode]
        if noun.kind != "count" or rng.random() >= ASK_NUMBER[most]:
            return None
        return f"how many {noun.plural()} are there?", "number", str(most), [str(most + 1), str(max(0, most - 1))]


def ten_answers(answer: str, others: Sequence[str], rng: random.Random, dissents: Sequence[int]) -> list[str]:
    """Ten people's answers in random order: most say ``answer``, one of ``dissents`` something plausible instead."""
    plausible = [other for other in others if other != answer]
    dissent = rng.choice(dissents) if plausible else 0
    answers = [answer] * (ANSWERS - dissent) + [rng.choice(plausible) for _ in range(dissent)]
    rng.shuffle(answers)
    return answers


def majority(question: Question) -> str:
    """The most frequent of the ten answers."""
    return Counter(question.answers).most_common(1)[0][0]


def question_only(train: Iterable[Question], test: Iterable[Question]) -> dict[str, float]:
    """Accuracy [%] of always giving the answer that a question's text had most often in training (its type's, if unseen).

    VQA accuracy of an answer with m of ten matches, averaged over the ten leave-one-out sets:
    (m min(1, (m - 1) / 3) + (10 - m) min(1, m / 3)) / 10.
    """
    by_text: dict[str, Counter[str]] = defaultdict(Counter)
    by_type: dict[str, Counter[str]] = defaultdict(Counter)
    for question in train:
        by_text[question.question][majority(question)] += 1
        by_type[question.type][majority(question)] += 1
    scores: dict[str, list[float]] = defaultdict(list)
    for question in test:
        seen = by_text.get(question.question) or by_type.get(question.type)
        guess = min(seen.items(), key=lambda pair: (-pair[1], pair[0]))[0] if seen else ""
        m = question.answers.count(guess)
        score = (m * min(1.0, (m - 1) / 3) + (ANSWERS - m) * min(1.0, m / 3)) / ANSWERS if m else 0.0
        for key in (question.type, "overall"):
            scores[key].append(score)
    return {key: round(100 * sum(values) / len(values), 2) for key, values in sorted(scores.items())}
