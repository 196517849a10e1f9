"""One pass over each split for all tasks: every picture and every distinct text is encoded once, then everything is scored.

The metrics and their rules are those of the task modules beside this one. Results are broken down by stratum: a stratum limits
the queries, never the candidates (a simple scene is searched for among all captions of its split).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from cmapkd.config.evaluation import EvaluationConfig, VqaConfig
from cmapkd.data.answers import VQA_ACCURACY, accuracy_name
from cmapkd.data.sample import Question
from cmapkd.errors import UserError, nearest
from cmapkd.evaluation import efficiency, retrieval, vqa, zeroshot
from cmapkd.evaluation.encode import Encoded, Encoder, SplitLike

# Keys that stand beside the strata in a metric file.
RESERVED = ("all", "question_only")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a run's evaluation found.

    Attributes:
        metrics: ``retrieval``, ``zeroshot``, ``vqa`` by split and stratum, and ``efficiency``; JSON-able.
        per_query: arrays over queries, by ``<task>/<data set>/<split>/<name>``, for paired tests and figures.
    """

    metrics: dict[str, Any]
    per_query: dict[str, np.ndarray]


def evaluate_model(
    model: nn.Module,
    tokenizer: Callable[[list[str]], Tensor],
    preprocess: Callable[[Image.Image], Tensor],
    *,
    splits: Mapping[str, SplitLike],
    tasks: EvaluationConfig,
    seed: int,
    device: str | torch.device = "cpu",
    batch_size: int | None = None,
    workers: int = 0,
) -> Evaluation:
    """Measure ``model`` on everything that ``tasks`` names; a pure function of its arguments but for the latencies.

    Args:
        model: open_clip's interface: ``encode_image`` and ``encode_text`` with ``normalize=True``, and ``visual``.
        tokenizer: texts to (n, context) tokens.
        preprocess: picture to (3, H, W), as in inference.
        splits: at least the splits that ``tasks.references()`` names, by reference.
        tasks: what to measure on which split.
        seed: of the head for visual questions, and of the choice of its training questions.
        device: where the model runs.
        batch_size: pictures or texts encoded at a time; default ``tasks.batch_size``.
        workers: processes that read and decode pictures; 0 = this one.

    Raises:
        UserError: a split is missing, empty or lacks what a task needs (captions, labels, classes, questions), a picture cannot
            be read, or the model's embeddings are not finite. Names the split and the task.
    """
    for ref in tasks.references():
        if ref not in splits:
            raise UserError(key="evaluation", value=ref, reason="there is no such split", fix=nearest(ref, list(splits)))
        if not len(splits[ref]):
            raise UserError(
                key="evaluation", value=ref, reason="the split is empty", fix="build the data set with more samples"
            )
    device = torch.device(device)
    encoder = Encoder(model.to(device), tokenizer, preprocess, device, batch_size or tasks.batch_size, workers)
    was_training = model.training
    model.eval()
    try:
        with retrieval.full_precision():
            return _evaluate(encoder, splits, tasks, seed)
    finally:
        model.train(was_training)


def _evaluate(encoder: Encoder, splits: Mapping[str, SplitLike], tasks: EvaluationConfig, seed: int) -> Evaluation:
    metrics: dict[str, Any] = {"retrieval": {}, "zeroshot": {}, "vqa": {}}
    per_query: dict[str, np.ndarray] = {}
    searched = list(dict.fromkeys([*tasks.retrieval, *tasks.validation]))
    whole = dict.fromkeys([*searched, *tasks.zeroshot, *(tasks.vqa.test if tasks.vqa else [])])
    directories = {ref: Path(splits[ref].directory) for ref in tasks.zeroshot}
    for ref in searched:
        if missing := (about := _counted(ref, splits[ref])).get("without_caption"):
            raise _lacks("retrieval", ref, f"caption for {missing} of its {about['samples']} images")
    for ref in (tasks.vqa.train, *tasks.vqa.test) if tasks.vqa else ():
        named = {
            re.fullmatch(r"questions_with_(\d+)_answers", name): count for name, count in _counted(ref, splits[ref]).items()
        }
        if counts := {int(found[1]): count for found, count in named.items() if found}:
            accuracy_name(counts, key=f"evaluation.vqa: {ref}")
    prompts = {directory: zeroshot.read_prompts(directory) for directory in directories.values()}  # fail before the long part
    read: dict[str, Encoded] = {ref: encoder.pictures(ref, splits[ref]) for ref in whole}

    train: _Asked | None = None
    if tasks.vqa:
        train = _training_questions(encoder, splits, tasks.vqa, read, seed)
        tests = {ref: _questions(ref, read[ref]) for ref in tasks.vqa.test}
        for asked in (train, *tests.values()):
            encoder.add(question.question for question in asked.questions)
    for ref in searched:
        encoder.add(_captions(ref, read[ref])[0])
    encoder.encode_texts()

    for ref in searched:
        values, arrays = _retrieval(encoder, ref, read[ref])
        metrics["retrieval"][ref] = values
        per_query |= {f"retrieval/{ref}/{name}": array for name, array in arrays.items()}
    classifiers = {directory: encoder.classifier(classes) for directory, classes in prompts.items()}
    for ref in tasks.zeroshot:
        values, arrays = _zeroshot(ref, read[ref], classifiers[directories[ref]])
        metrics["zeroshot"][ref] = values
        per_query |= {f"zeroshot/{ref}/{name}": array for name, array in arrays.items()}
    if tasks.vqa and train:
        sets = [asked.features(encoder) for asked in (train, *tests.values())]
        words, scores = vqa.answer_questions(sets[0], sets[1:], tasks.vqa, seed=seed)
        for (ref, asked), score in zip(tests.items(), scores, strict=True):
            values, arrays = _vqa(asked, score)
            values["all"] |= {"answers": len(words), "training_questions": len(sets[0])}
            metrics["vqa"][ref] = values
            per_query |= {f"vqa/{ref}/{name}": array for name, array in arrays.items()}
    text = encoder.tokenizer(["a picture"]).to(encoder.device)  # (1, context)
    metrics["efficiency"] = efficiency.efficiency(encoder.model, text, tasks.latency)
    return Evaluation(metrics, per_query)


def _by_stratum(strata: np.ndarray, score: Callable[[np.ndarray | None], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """``score`` of all queries, and of the mask of each stratum that occurs among them."""
    names = [str(name) for name in np.unique(strata) if name]
    for name in set(names) & set(RESERVED):
        raise UserError(key="stratum", value=name, reason="this name has a meaning of its own in metric files", fix="rename it")
    return {"all": score(None), **{name: score(strata == name) for name in names}}


def _lacks(task: str, ref: str, what: str) -> UserError:
    return UserError(
        key=f"evaluation.{task}",
        value=ref,
        reason=f"this split has no {what}",
        fix="name another split or take it out of the list",
    )


def _counted(ref: str, split: SplitLike) -> dict[str, Any]:
    """What the manifest counts of a split: enough to refuse a task before its images are encoded."""
    manifest = getattr(split, "manifest", None) or {}
    about = manifest.get("leakage", {}).get(ref.partition("/")[2])
    return about if isinstance(about, dict) else {}


def _captions(ref: str, encoded: Encoded) -> tuple[list[str], np.ndarray]:
    """All captions of a split, and the picture (M,) that each belongs to."""
    for sample in encoded.samples:
        if not sample.captions:
            raise _lacks("retrieval", ref, f"caption for the picture {sample.key!r}")
    captions = [caption for sample in encoded.samples for caption in sample.captions]
    return captions, np.repeat(np.arange(len(encoded.samples)), [len(sample.captions) for sample in encoded.samples])


def _retrieval(encoder: Encoder, ref: str, encoded: Encoded) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    captions, owner = _captions(ref, encoded)
    strata = encoded.strata()
    found = retrieval.retrieve(encoded.images, encoder.texts[encoder.row(captions)], owner)
    metrics = _by_stratum(strata, lambda mask: retrieval.retrieval_metrics(found, owner, mask))
    arrays = {"i2t_ranks": found.i2t, "t2i_ranks": found.t2i, "margin": found.margin, "stratum": strata}
    return metrics, {**arrays, "owner": owner.astype(np.int32)}


def _zeroshot(ref: str, encoded: Encoded, classifier: Tensor) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    labelled = np.flatnonzero([sample.label is not None for sample in encoded.samples])
    if not len(labelled):
        raise _lacks("zeroshot", ref, "labels")
    labels = np.asarray([encoded.samples[i].label for i in labelled], dtype=np.int64)
    classes = len(classifier)
    for i in np.flatnonzero((labels < 0) | (labels >= classes)):
        raise UserError(
            key="evaluation.zeroshot",
            value=ref,
            reason=f"{encoded.samples[labelled[i]].key!r} has label {labels[i]} of {classes} classes",
        )
    strata = encoded.strata()[labelled]
    ranks = zeroshot.class_ranks(encoded.images[torch.from_numpy(labelled).to(encoded.images.device)], classifier, labels)
    metrics = _by_stratum(strata, lambda mask: zeroshot.zeroshot_metrics(ranks if mask is None else ranks[mask], classes))
    return metrics, {"ranks": ranks, "label": labels.astype(np.int32), "stratum": strata, "image": labelled.astype(np.int32)}


@dataclass(slots=True)
class _Asked:
    """Questions, and the row of the picture that each is about."""

    encoded: Encoded
    questions: list[Question]
    image: np.ndarray

    def features(self, encoder: Encoder) -> vqa.QuestionSet:
        return vqa.QuestionSet(
            image=torch.from_numpy(self.image).to(encoder.device),
            text=encoder.row(question.question for question in self.questions),
            images=self.encoded.images,
            texts=encoder.texts,
            answers=[question.answers for question in self.questions],
        )


def _questions(ref: str, encoded: Encoded, limit: int | None = None) -> _Asked:
    pairs = [(row, question) for row, sample in enumerate(encoded.samples) for question in sample.questions][:limit]
    if not pairs:
        raise _lacks("vqa", ref, "questions")
    for row, question in pairs:
        if not question.answers:
            raise _lacks("vqa", ref, f"answer to question {question.id} about {encoded.samples[row].key!r}")
    accuracy_name(Counter(len(question.answers) for _, question in pairs), key=f"evaluation.vqa: {ref}")
    return _Asked(encoded, [question for _, question in pairs], np.asarray([row for row, _ in pairs], dtype=np.int64))


def _training_questions(
    encoder: Encoder, splits: Mapping[str, SplitLike], config: VqaConfig, read: dict[str, Encoded], seed: int
) -> _Asked:
    """The questions the head learns from: all, or those of pictures in a seeded order until there are ``max_questions``."""
    split, limit = splits[config.train], config.max_questions
    if limit is None:
        encoded = read[config.train] if config.train in read else encoder.pictures(config.train, split)
        return _questions(config.train, encoded)
    order = np.random.default_rng(seed).permutation(len(split)).tolist()
    if config.train in read:
        whole = read[config.train]
        encoded = Encoded(whole.images[torch.tensor(order, device=encoder.device)], [whole.samples[i] for i in order])
    else:
        encoded = encoder.pictures(
            config.train, split, order, lambda samples: sum(len(sample.questions) for sample in samples) >= limit
        )
    return _questions(config.train, encoded, limit)


def _vqa(asked: _Asked, scores: vqa.Scores) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    types = np.asarray([question.type for question in asked.questions], dtype=np.str_)
    strata = asked.encoded.strata()[asked.image]
    metrics = _by_stratum(strata, lambda mask: vqa.vqa_metrics(scores.head, types, mask))
    metrics["all"]["ceiling"] = float(scores.ceiling.mean() * 100)
    name = accuracy_name(Counter(len(question.answers) for question in asked.questions), key="evaluation.vqa")
    if name != VQA_ACCURACY:  # without the key it is VQAv2's
        metrics["all"]["metric"] = name
    metrics["question_only"] = vqa.vqa_metrics(scores.question_only, types)
    arrays = {"accuracy": scores.head, "question_only": scores.question_only, "type": types, "stratum": strata}
    ids = np.asarray([question.id for question in asked.questions], dtype=np.int64)
    return metrics, {**arrays, "id": ids, "image": asked.image.astype(np.int32)}
