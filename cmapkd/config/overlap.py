"""Which splits of an experiment must not share pictures, and the options that this depends on (``cmapkd.data.overlap``)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cmapkd.config.schema import ExperimentConfig
from cmapkd.config.sources import PublicConfig


def checked_splits(experiment: ExperimentConfig) -> tuple[list[str], list[str]]:
    """Splits that are distilled on and splits that are evaluated on, of data sets whose pictures come from elsewhere.

    The pictures that the head for visual questions learns from (``evaluation.vqa.train``) are neither.
    """
    evaluation = experiment.evaluation
    tests = [*evaluation.retrieval, *evaluation.validation, *evaluation.zeroshot]
    tests += evaluation.vqa.test if evaluation.vqa is not None else []

    def public(references: Iterable[str]) -> list[str]:
        named = dict.fromkeys(references)
        return [ref for ref in named if isinstance(experiment.datasets[ref.partition("/")[0]], PublicConfig)]

    found = public(experiment.distillation), public(tests)
    return found if all(found) else ([], [])


def overlap_settings(experiment: ExperimentConfig) -> dict[str, Any]:
    """What the overlap depends on, for digests: the splits and their data sets' options without where they lie."""
    trains, tests = checked_splits(experiment)
    used = dict.fromkeys(ref.partition("/")[0] for ref in (*trains, *tests))
    configs = {name: experiment.datasets[name] for name in used}
    shown = {name: config.model_dump(mode="json", exclude=set(config.operational)) for name, config in configs.items()}
    return {"distillation": trains, "evaluation": tests, "datasets": shown}


def needs_overlap(experiment: ExperimentConfig, dataset: str) -> bool:
    """Whether the shards of ``dataset`` depend on what evaluation splits hold."""
    return any(ref.partition("/")[0] == dataset for ref in checked_splits(experiment)[0])
