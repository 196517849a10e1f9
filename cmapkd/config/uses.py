"""What an experiment does with each split of a data set; a build checks that the split has what this needs."""

from __future__ import annotations

from collections.abc import Iterator

from cmapkd.config.schema import ExperimentConfig


def split_uses(experiment: ExperimentConfig, dataset: str) -> dict[str, frozenset[str]]:
    """Uses (``distillation``, ``retrieval``, ``zeroshot``, ``vqa``) of the splits of ``dataset``; validation is retrieval."""
    found: dict[str, frozenset[str]] = {}
    for use, reference in _uses(experiment):
        name, _, split = reference.partition("/")
        if name == dataset:
            found[split] = found.get(split, frozenset()) | {use}
    return found


def _uses(experiment: ExperimentConfig) -> Iterator[tuple[str, str]]:
    evaluation = experiment.evaluation
    yield from (("distillation", reference) for reference in experiment.distillation)
    yield from (("retrieval", reference) for reference in (*evaluation.retrieval, *evaluation.validation))
    yield from (("zeroshot", reference) for reference in evaluation.zeroshot)
    if evaluation.vqa is not None:
        yield from (("vqa", reference) for reference in (evaluation.vqa.train, *evaluation.vqa.test))
