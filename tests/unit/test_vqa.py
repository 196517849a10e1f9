"""Official VQA accuracy by a hand-worked table, the answer vocabulary, and the head's behaviour on small problems."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cmapkd.config.evaluation import VqaConfig
from cmapkd.errors import UserError
from cmapkd.evaluation import vqa

# Worked out by hand from the rules of the official script.
NORMAL_FORMS = [
    ("yes", "yes"),
    ("  Yes\n", "yes"),
    ("Two", "2"),
    ("none", "0"),
    ("ten", "10"),
    ("eleven", "eleven"),
    ("the dog", "dog"),
    ("a", ""),
    ("An Apple", "apple"),
    ("dont know", "don't know"),
    ("Dont", "don't"),
    ("couldnt've", "couldn't've"),
    ("couldn'tve", "couldn't've"),
    ("yall'd've", "y'all'd've"),
    ("twas", "'twas"),
    ("ows'at", "ows'at"),  # two apostrophes are missing: not in the table
    ("somebody'd", "somebodyd"),
    ("im", "im"),  # the table's "Im" is never met, words are lower-cased before
    ("shes", "shes"),
    ("let's", "let's"),
    ("black/white", "black white"),  # punctuation within a word becomes a space
    ("black / white", "black white"),  # next to a space it vanishes
    ("t-shirt", "t shirt"),
    ("t- shirt-x", "t shirtx"),  # one mark next to a space: all marks of its kind vanish
    ("1,000", "1000"),
    ("1,000-2", "10002"),  # one digit,digit: every mark of punctuation vanishes
    ("red, white", "red white"),
    ("red,white", "red white"),
    ("3.5", "3.5"),  # a period before a digit stays
    ("u.s.", "us"),
    ("10.", "10"),
    (".5", ".5"),
    ("what?", "what"),
    ("(left)", "left"),
    ("5'", "5'"),
    ("it's 5:30", "it's 5:30"),  # neither apostrophe nor colon counts as punctuation
    ("first\tsecond", "first second"),
    ("", ""),
]


@pytest.mark.parametrize(("answer", "form"), NORMAL_FORMS)
def test_normal_form(answer, form):
    assert vqa.normalise(answer) == form


@given(st.text())
def test_normal_form_of_anything_is_one_line_of_words(answer):
    form = vqa.normalise(answer)
    assert form == " ".join(form.split())


ACCURACIES = [
    # answer, annotators, accuracy: of n matches, n annotators see n - 1 others and 10 - n see n.
    ("yes", ["yes"] * 10, 1.0),
    ("no", ["yes"] * 10, 0.0),
    ("cat", ["cat"] + ["dog"] * 9, 0.3),  # 9/10 * 1/3
    ("cat", ["cat"] * 2 + ["dog"] * 8, 0.6),  # (2 * 1/3 + 8 * 2/3) / 10
    ("cat", ["cat"] * 3 + ["dog"] * 7, 0.9),  # (3 * 2/3 + 7 * 1) / 10
    ("cat", ["cat"] * 4 + ["dog"] * 6, 1.0),
    ("cat", ["cat"] * 9 + ["dog"], 1.0),
    ("The Cat.", ["cat"] * 3 + ["dog"] * 7, 0.9),  # they differ: both sides are normalised
    ("two", ["2"] * 2 + ["two"] * 2 + ["3"] * 6, 1.0),
    ("Yes", ["yes"] * 10, 0.0),  # they agree: nothing is normalised
    ("two", ["2"] * 10, 0.0),
    ("2 ", ["2\n"] * 10, 1.0),  # but always unwrapped
    ("the cat", ["the cat"] * 9 + ["the cat "], 1.0),  # agreement is judged after unwrapping
    ("cat", ["the cat"] * 10, 0.0),
    ("", ["a"] * 3 + ["dog"] * 7, 0.9),  # an article alone normalises to nothing
]


@pytest.mark.parametrize(("answer", "answers", "expected"), ACCURACIES)
def test_accuracy(answer, answers, expected):
    assert vqa.accuracy(answer, answers) == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.sampled_from("abc"), min_size=2, max_size=10), st.sampled_from("abcd"))
def test_accuracy_is_the_mean_over_leave_one_out_sets(answers, answer):
    answers = [f"w{a}" for a in answers]
    sets = itertools.combinations(answers, len(answers) - 1)
    expected = np.mean([min(1, others.count(f"w{answer}") / 3) for others in sets])
    assert vqa.accuracy(f"w{answer}", answers) == pytest.approx(expected, abs=1e-12)


def test_vocabulary():
    answers = [
        *[["Two"] * 6 + ["3"] * 4] * 5,
        *[["the dog"] * 10] * 4,
        *[["cat"] * 5 + ["dog"] * 5] * 4,  # a draw goes to the one given first
        *[["ox"] * 10] * 3,
        [*["2"] * 4, *["ox"] * 3, *["yak"] * 3],
    ]
    assert vqa.vocabulary(answers, 3) == ["2", "cat", "dog", "ox"]
    assert vqa.vocabulary(answers, 4) == ["2", "cat", "dog"]
    assert vqa.vocabulary(answers[::-1], 5) == ["2"]


def test_soft_targets():
    indices, values = vqa.soft_targets([["cat"] * 3 + ["dog"] * 7, ["The Dog"] * 10, ["yak"] * 10], ["dog", "cat"])
    dense = torch.zeros(3, 2).scatter_add_(1, indices, values)
    assert torch.allclose(dense, torch.tensor([[1.0, 0.9], [1.0, 0.0], [0.0, 0.0]]))


def test_ceiling():
    assert vqa.ceiling(["cat"] * 3 + ["dog"] * 7, {"cat"}) == pytest.approx(0.9)
    assert vqa.ceiling(["yak"] * 10, {"cat"}) == 0
    assert vqa.ceiling(["The Dog"] * 10, {"dog"}) == 0  # unanimous and not in normal form: no known answer matches


def scenes(count: int, seed: int, concepts: int = 6) -> vqa.QuestionSet:
    """Which of six concepts (needs the picture), and what colour grass has (the question gives it away)."""
    generator = torch.Generator().manual_seed(seed)
    prototypes = torch.randn(concepts + 2, 16, generator=torch.Generator().manual_seed(99))
    concept = torch.randint(concepts, (count,), generator=generator)
    images = torch.nn.functional.normalize(prototypes[concept] + 0.3 * torch.randn(count, 16, generator=generator), dim=1)
    texts = torch.nn.functional.normalize(prototypes[concepts:], dim=1)
    kind = torch.arange(count) % 2
    answers = [["green"] * 10 if k else [f"concept{c}"] * 8 + ["thing"] * 2 for k, c in zip(kind, concept, strict=True)]
    return vqa.QuestionSet(torch.arange(count), kind, images, texts, answers)


CONFIG = VqaConfig(train="d/train", test=["d/test"], min_count=5, epochs=10, batch_size=64, hidden=32)


def test_head_needs_the_picture_where_the_question_does_not_tell():
    train, test = scenes(600, 0), scenes(200, 1)
    words, [scores] = vqa.answer_questions(train, [test], CONFIG, seed=0)
    assert words == ["green", *words[1:]] and sorted(words[1:]) == [f"concept{c}" for c in range(6)]
    knows, blind = (np.reshape(part, (-1, 2)).mean(0) for part in (scores.head, scores.question_only))
    assert knows[0] > 0.95 and knows[1] == 1
    assert blind[0] < 0.35 and blind[1] == 1  # chance is 1/6
    assert (scores.ceiling == 1).all()


def test_head_is_a_function_of_its_arguments():
    train, test = scenes(200, 0), scenes(50, 1)
    heads = []
    for noise in (1, 2):
        torch.manual_seed(noise)  # the global generator must not matter, nor be moved
        state = torch.get_rng_state()
        heads.append(vqa.train_head(train, ["green", "concept0"], CONFIG, seed=3))
        assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(heads[0].parameters(), heads[1].parameters(), strict=True))
    other = vqa.train_head(train, ["green", "concept0"], CONFIG, seed=4)
    assert not torch.equal(heads[0].first.weight, other.first.weight)
    assert vqa.predict(heads[0], test, ["green", "concept0"], chunk=7) == vqa.predict(heads[1], test, ["green", "concept0"])


def test_towers_stay_frozen_and_gradients_are_not_needed_outside():
    train = scenes(100, 0)
    with torch.no_grad():
        head = vqa.train_head(train, ["green"], CONFIG, seed=0)
    assert not train.images.requires_grad and head.first.weight.requires_grad


def test_metrics():
    types = np.asarray(["yes/no", "yes/no", "other", "other"])
    scores = np.asarray([1.0, 0.0, 0.3, 0.9])
    found = vqa.vqa_metrics(scores, types)
    assert found == pytest.approx({"overall": 55, "yes_no": 50, "number": None, "other": 60, "questions": 4})
    assert vqa.vqa_metrics(scores, types, np.asarray([True, False, True, False]))["overall"] == pytest.approx(65)


def test_no_answer_is_frequent_enough():
    with pytest.raises(UserError, match=r"evaluation\.vqa\.min_count = 500.*no answer"):
        vqa.answer_questions(scores_of := scenes(20, 0), [scores_of], CONFIG.model_copy(update={"min_count": 500}), seed=0)
