"""Visual question answering: the accuracy that a set defines, and a small head on the frozen towers.

Accuracy (Antol et al. 2015; the evaluation script of visualqa.org): an answer scores the mean over the ten leave-one-out sets
of annotators of ``min(1, matches / 3)``. Answers are stripped and unwrapped always, and normalised (punctuation, case, number
words, articles, contractions) *only when the ten annotators do not all say the same*. Written from those rules, with the
script's quirks. A question with one answer, as GQA and sets of medical images have them, is scored by exact match of normal
forms; the formula above would give it 0 whatever is answered (``cmapkd.data.answers`` says which accuracy a set has).

Head (after Teney et al. 2018 and the probes of CLIP that follow it): the answers that are the most common one of at least
``min_count`` training questions are classes; an MLP on ``[v; t; v * t]`` is trained with binary cross-entropy against soft
targets (an answer's accuracy). Adapted: v and t are the frozen model's own embeddings of picture and question, standardised by
training statistics. The question-only baseline is the same head with v zeroed: what the language alone gives away.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmapkd.config.evaluation import VqaConfig
from cmapkd.errors import UserError
from cmapkd.evaluation.retrieval import finite, full_precision

ANSWER_TYPES = {"yes/no": "yes_no", "number": "number", "other": "other"}

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBER_WORDS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS)}
_ARTICLES = {"a", "an", "the"}
# A spelling with exactly one apostrophe missing is mended. Words are lower-cased before, so the script's entries for "Im",
# "Id've" and "Ive" never apply and are left out.
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd've he's how'd
    he'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
    oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
    someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd
    where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all
    y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()  # noqa: SIM905 - plain words read better
_MENDED = {word[:i] + word[i + 1 :]: word for word in _CONTRACTIONS for i, letter in enumerate(word) if letter == "'"}
_MENDED["somebody'd"] = "somebodyd"  # as the script has it

_DIGIT_COMMA = re.compile(r"\d,\d")
_LONE_PERIOD = re.compile(r"\.(?!\d)")


def unwrap(answer: str) -> str:
    """An answer on one line without white space around it."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=1 << 16)
def normalise(answer: str) -> str:
    """The official normal form: punctuation, lower case, number words, articles, contractions."""
    answer = unwrap(answer)
    text = answer
    # The script asks these questions of the unchanged answer: one digit,digit anywhere deletes every mark of punctuation.
    joined = _DIGIT_COMMA.search(answer) is not None
    for mark in _PUNCTUATION:
        text = text.replace(mark, "" if joined or mark + " " in answer or " " + mark in answer else " ")
    text = _LONE_PERIOD.sub("", text)
    words = (_NUMBER_WORDS.get(word, word) for word in text.lower().split())
    return " ".join(_MENDED.get(word, word) for word in words if word not in _ARTICLES)


def accuracy(answer: str, answers: Sequence[str]) -> float:
    """Official accuracy in 0..1 of ``answer`` against the annotators' ``answers`` (ten in VQAv2).

    Against a single answer: 1 if both have the same normal form, else 0.
    """
    answer, given = unwrap(answer), [unwrap(one) for one in answers]
    if len(set(given)) > 1 or len(given) == 1:
        answer, given = normalise(answer), [normalise(one) for one in given]
    return _score(given.count(answer), len(given))


def _score(matches: int, annotators: int) -> float:
    """The accuracy in 0..1 of an answer that ``matches`` of ``annotators`` gave."""
    return float(matches) if annotators == 1 else _leave_one_out(matches, annotators)


def _leave_one_out(matches: int, annotators: int) -> float:
    """Mean over the sets of ``annotators - 1`` of min(1, matches in the set / 3), for two annotators or more."""
    without = matches * min(1.0, (matches - 1) / 3)  # an annotator who agrees is left out
    return (without + (annotators - matches) * min(1.0, matches / 3)) / annotators


def vocabulary(answers: Sequence[Sequence[str]], min_count: int) -> list[str]:
    """Normalised answers that are the most common one of at least ``min_count`` questions, most frequent first.

    ``answers`` holds the annotators' answers of each question. VQAv2's own "multiple choice answer" is the most common one too;
    equally common answers go to the one given first, equally frequent entries are sorted by spelling.
    """
    common = Counter(_most_common(given) for given in answers)
    return [answer for answer, count in sorted(common.items(), key=lambda item: (-item[1], item[0])) if count >= min_count]


def _most_common(answers: Sequence[str]) -> str:
    return Counter(map(normalise, answers)).most_common(1)[0][0]  # ties: first met, by Counter's insertion order


def soft_targets(answers: Sequence[Sequence[str]], words: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Sparse targets: (Q, K) indices into ``words`` and (Q, K) accuracies in 0..1 of each question's K or fewer known answers.

    Padded with index 0 and value 0. Training compares normal forms, whether or not the annotators agree.
    """
    place = {word: index for index, word in enumerate(words)}
    rows = []
    for given in answers:
        counts = Counter(map(normalise, given))
        rows.append([(place[word], _score(n, len(given))) for word, n in counts.items() if word in place])
    width = max(map(len, rows), default=0) or 1
    padded = [row + [(0, 0.0)] * (width - len(row)) for row in rows]
    return torch.tensor([[i for i, _ in row] for row in padded]), torch.tensor([[v for _, v in row] for row in padded])


def ceiling(answers: Sequence[str], known: set[str]) -> float:
    """The best official accuracy in 0..1 that any of the ``known`` answers reaches on one question."""
    return max((accuracy(word, answers) for word in {normalise(one) for one in answers} & known), default=0.0)


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """Questions about pictures whose embeddings are already known.

    Attributes:
        image: (Q,) row of ``images`` below that each question is about.
        text: (Q,) row of ``texts`` below that holds each question's embedding.
        images: (N, D) embeddings.
        texts: (T, D) embeddings of distinct texts, questions among them.
        answers: the annotators' answers of each question.
    """

    image: Tensor
    text: Tensor
    images: Tensor
    texts: Tensor
    answers: list[list[str]]

    def __len__(self) -> int:
        return len(self.answers)


class AnswerHead(nn.Module):
    """Two-layer MLP on ``[v; t; v * t]`` of standardised embeddings; one logit per answer.

    With ``blind=True`` v is zero, so that only the t block of the first matrix matters: the question-only baseline.
    """

    def __init__(self, train: QuestionSet, answers: int, hidden: int, *, blind: bool, generator: torch.Generator) -> None:
        super().__init__()
        self.blind = blind
        # Of the pictures and questions that are trained on, not of whatever else the tables hold.
        self.statistics = {
            "v": _statistics(train.images[train.image.unique()]),
            "t": _statistics(train.texts[train.text.unique()]),
        }
        width, device = train.texts.shape[1] * (1 if blind else 3), train.images.device
        self.first = nn.utils.skip_init(nn.Linear, width, hidden, device=device)
        self.last = nn.utils.skip_init(nn.Linear, hidden, answers, device=device)
        for layer, gain in ((self.first, 2.0), (self.last, 1.0)):
            # Drawn on the CPU from the head's own generator: equal on every device, and untouched by whatever ran before.
            weight = torch.randn(layer.weight.shape, generator=generator) * (gain / layer.in_features) ** 0.5
            layer.weight.data.copy_(weight)
            layer.bias.data.zero_()

    def standardise(self, questions: QuestionSet) -> QuestionSet:
        """The set with its tables of embeddings as this head expects them (done once, not for each question)."""
        (v_mean, v_scale), (t_mean, t_scale) = self.statistics["v"], self.statistics["t"]
        return replace(questions, images=(questions.images - v_mean) * v_scale, texts=(questions.texts - t_mean) * t_scale)

    def forward(self, v: Tensor, t: Tensor) -> Tensor:
        """Logits (B, A) of standardised embeddings of pictures (B, D) and questions (B, D)."""
        features = t if self.blind else torch.cat([v, t, v * t], dim=1)  # (B, 3D)
        logits: Tensor = self.last(F.relu(self.first(features)))
        return logits


def _statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and inverse standard deviation of each dimension; a constant dimension becomes zero."""
    deviation = features.std(0, correction=0)
    return features.mean(0), torch.where(deviation > 1e-6, 1 / deviation.clamp_min(1e-6), torch.zeros_like(deviation))


def train_head(train: QuestionSet, words: Sequence[str], config: VqaConfig, *, seed: int, blind: bool = False) -> AnswerHead:
    """Fit a head in fp32 on frozen embeddings; a pure function of its arguments (its own generator, no global state)."""
    generator = torch.Generator().manual_seed(seed)
    device = train.images.device
    head = AnswerHead(train, len(words), config.hidden, blind=blind, generator=generator)
    # Before any evidence an answer is as likely as its mean target: the first steps need not learn that.
    indices, values = soft_targets(train.answers, words)
    prior = torch.zeros(len(words)).index_add_(0, indices.flatten(), values.flatten()) / len(train)
    head.last.bias.data.copy_(torch.logit(prior.clamp(1e-4, 1 - 1e-4)))
    indices, values = indices.to(device), values.to(device)

    matrices, vectors = [head.first.weight, head.last.weight], [head.first.bias, head.last.bias]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=config.lr, fused=True)
    steps = config.epochs * -(-len(train) // config.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, config.lr, total_steps=max(2, steps), pct_start=0.1, cycle_momentum=False
    )
    ready = head.standardise(train)
    with full_precision(), torch.enable_grad():
        for _ in range(config.epochs):
            order = torch.randperm(len(train), generator=generator).to(device)
            for batch in order.split(config.batch_size):
                logits = head(ready.images[ready.image[batch]], ready.texts[ready.text[batch]])  # (B, A)
                target = torch.zeros_like(logits).scatter_add_(1, indices[batch], values[batch])  # padding adds 0
                loss = F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / len(batch)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                schedule.step()
    return head.eval()


def predict(head: AnswerHead, questions: QuestionSet, words: Sequence[str], chunk: int = 4096) -> list[str]:
    """The head's answer to each question."""
    questions = head.standardise(questions)
    with full_precision():
        best = [
            head(questions.images[image], questions.texts[text]).argmax(1)
            for image, text in zip(questions.image.split(chunk), questions.text.split(chunk), strict=True)
        ]
    return [words[index] for index in torch.cat(best).tolist()]


def vqa_metrics(scores: np.ndarray, types: np.ndarray, chosen: np.ndarray | None = None) -> dict[str, Any]:
    """Mean accuracy in percent over all questions and over each answer type (None where a type has no question).

    Args:
        scores: (Q,) accuracies in 0..1.
        types: (Q,) "yes/no", "number" or "other".
        chosen: (Q,) bool mask (a stratum).
    """
    chosen = np.ones(len(scores), bool) if chosen is None else chosen
    masks = {"overall": chosen} | {name: chosen & (types == kind) for kind, name in ANSWER_TYPES.items()}
    means = {name: float(scores[mask].mean() * 100) if mask.any() else None for name, mask in masks.items()}
    return {**means, "questions": int(chosen.sum())}


@dataclass(frozen=True, slots=True)
class Scores:
    """Official accuracies in 0..1 of each question of a test set, each (Q,) float64: of the head, of the question-only head,
    and the best that any answer of the vocabulary reaches."""

    head: np.ndarray
    question_only: np.ndarray
    ceiling: np.ndarray


def answer_questions(
    train: QuestionSet, tests: Sequence[QuestionSet], config: VqaConfig, *, seed: int
) -> tuple[list[str], list[Scores]]:
    """Train the head and its question-only twin; score every test set.

    Returns:
        The vocabulary, and the scores of each test set.

    Raises:
        UserError: an embedding is not finite, or no answer is frequent enough for the vocabulary.
    """
    for questions in (train, *tests):
        finite(questions.images, "image"), finite(questions.texts, "question")
    words = vocabulary(train.answers, config.min_count)
    if not words:
        raise UserError(
            key="evaluation.vqa.min_count",
            value=config.min_count,
            reason=f"no answer is the most common one of that many of the {len(train)} training questions of {config.train}",
            fix="lower min_count or train on more questions",
        )
    heads = [train_head(train, words, config, seed=seed, blind=blind) for blind in (False, True)]
    known, results = set(words), []
    for questions in tests:
        heard = [predict(head, questions, words) for head in heads]
        columns = [[accuracy(*pair) for pair in zip(given, questions.answers, strict=True)] for given in heard]
        columns.append([ceiling(truth, known) for truth in questions.answers])
        results.append(Scores(*(np.asarray(column, np.float64) for column in columns)))
    return words, results
