"""English of Emoji Scenes: articles, plurals, labels and keywords."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmapkd.data.sources.emoji.language import article, noun, plain_label, spoken_keywords


@pytest.mark.parametrize(
    ("label", "indefinite", "plural", "question"),
    [
        ("owl", "an owl", "owls", "is there an owl?"),
        ("ewe", "a ewe", "ewes", "is there a ewe?"),
        ("unicorn", "a unicorn", "unicorns", "is there a unicorn?"),
        ("umbrella", "an umbrella", "umbrellas", "is there an umbrella?"),
        ("hourglass", "an hourglass", "hourglasses", "is there an hourglass?"),
        ("one-piece swimsuit", "a one-piece swimsuit", "one-piece swimsuits", "is there a one-piece swimsuit?"),
        ("SUV", "an SUV", "SUVs", "is there an SUV?"),
        ("fox", "a fox", "foxes", "is there a fox?"),
        ("wolf", "a wolf", "wolves", "is there a wolf?"),
        ("cherry blossom", "a cherry blossom", "cherry blossoms", "is there a cherry blossom?"),
        ("strawberry", "a strawberry", "strawberries", "is there a strawberry?"),
        ("monkey", "a monkey", "monkeys", "is there a monkey?"),
        ("face with tears of joy", "a face with tears of joy", "faces with tears of joy", "is there a face with tears of joy?"),
        ("sheaf of rice", "a sheaf of rice", "sheafs of rice", "is there a sheaf of rice?"),
        ("tropical fish", "a tropical fish", "tropical fish", "is there a tropical fish?"),
    ],
)
def test_articles_and_plurals(label: str, indefinite: str, plural: str, question: str) -> None:
    thing = noun(label)
    assert (thing.indefinite, thing.plural(), thing.is_there()) == (indefinite, plural, question)
    assert thing.counted(2) == f"two {plural}"


def test_plural_mass_and_proper_nouns_take_no_article() -> None:
    assert noun("blueberries").indefinite == "blueberries" and noun("blueberries").is_there() == "are there blueberries?"
    assert noun("cooked rice").described("large") == "large cooked rice"
    assert noun("Mount Fuji").definite() == "Mount Fuji"
    assert article("orange picture") == "an" and article("European castle") == "a"


def test_labels_that_describe_nothing_are_left_out() -> None:
    assert plain_label("keycap: 6", "keycap") is None
    assert plain_label("Japanese “secret” button", "alphanum") is None
    assert plain_label("twelve o’clock", "time") == "clock at twelve"
    assert plain_label("cooking", "food-prepared") == "frying pan"


@given(
    st.lists(
        st.sampled_from(["cherry", "cherries", "berry", "berries", "red", "fruit", "fruits", "tree", "trees", "happy"]),
        unique=True,
    )
)
def test_keywords_repeat_nothing(words: list[str]) -> None:
    chosen = spoken_keywords(words, "cherries", "fruit")
    assert not {"cherry", "cherries", "fruit", "fruits", "happy"} & set(chosen)
    assert not ({"berries", "berry"} <= set(chosen) or {"tree", "trees"} <= set(chosen))
