"""Measure one run: load its student as any user would, evaluate it, and write numbers with their parents."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cmapkd import objectives
from cmapkd.config.methods import StageConfig
from cmapkd.data.shards import read_manifest
from cmapkd.data.split import Split
from cmapkd.data.transforms import EvaluationTransform, decode_image
from cmapkd.evaluation.evaluate import evaluate_model
from cmapkd.files import digest, read_json, sha256_of, write_atomic, write_json
from cmapkd.models import towers
from cmapkd.objectives.base import Surroundings
from cmapkd.plan import Plan
from cmapkd.provenance import Start, collect
from cmapkd.runs import RUN, STUDENT, find_run
from cmapkd.training.stages import OBJECTIVE, load_inference, load_objective, objective_modules


def evaluate_run(plan: Plan, directory: str, results: Path) -> Path:
    """Evaluate a run and write ``metrics/<run>/<seed>.json`` with per-query arrays beside it.

    Args:
        directory: ``<run>/<seed>``; the teacher's is ``Teacher/<seed>``.
    """
    started = Start()
    experiment = plan.experiment
    run = find_run(plan, directory)
    home = results / experiment.name
    source = home / "runs" / run.directory
    history = read_json(source / RUN)
    settings = plan.stages[run.stages[-1]].settings
    name = settings["model"]["name"]
    student = towers.load(source / STUDENT)
    towers.create(name, settings["model"]["config"], "random")  # makes a name of config/models known to the tokenizer
    tokenizer = towers.tokenizer_of(name)
    preprocess = EvaluationTransform(towers.preprocess_of(student))
    model = load_inference(settings, source) if plan.deployed_teacher(run) else student
    references = experiment.evaluation.references()
    splits = {reference: _split(home, reference) for reference in references}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    evaluation = evaluate_model(
        model, tokenizer, preprocess, splits=splits, tasks=experiment.evaluation, seed=run.seed, device=device
    )
    arrays = dict(evaluation.per_query)
    objective = home / "stages" / run.stages[-1] / OBJECTIVE
    if "alsn" in objective_modules(objective):
        for reference in experiment.evaluation.retrieval:
            visual, language = level_weights(student, settings, objective, splits[reference], tokenizer, preprocess, device)
            arrays |= {f"alsn/{reference}/visual": visual, f"alsn/{reference}/language": language}

    target = home / "metrics" / f"{run.directory}.json"
    _save_arrays(target.with_suffix(".npz"), arrays)
    datasets = dict.fromkeys(reference.partition("/")[0] for reference in references)
    write_json(
        target,
        {
            "run": run.name,
            "seed": run.seed,
            "metrics": evaluation.metrics,
            "per_query": {"file": target.with_suffix(".npz").name, "sha256": sha256_of(target.with_suffix(".npz"))},
            "provenance": collect(
                started,
                config_digest=digest({"evaluation": experiment.evaluation.model_dump(mode="json"), "stages": list(run.stages)}),
                data_digests={dataset: read_manifest(home / "data" / dataset)["digest"] for dataset in datasets},
                stages=[
                    {
                        **{key: stage[key] for key in ("address", "label", "code")},
                        **_when(stage["provenance"]),
                        **{key: value for key, value in stage["summary"].items() if key == "nan_retries"},
                    }
                    for stage in (*history["stages"], *history["deployed_teacher"])
                ],
            ),
        },
    )
    return target


def _when(provenance: dict[str, Any]) -> dict[str, Any]:
    return {key: provenance[key] for key in ("commit", "dirty", "host", "started", "wall_seconds")}


def _split(home: Path, reference: str) -> Split:
    dataset, _, split = reference.partition("/")
    return Split(home / "data" / dataset, split)


@torch.no_grad()
def level_weights(
    model: torch.nn.Module,
    settings: dict[str, Any],
    objective_file: Path,
    split: Split,
    tokenizer: Any,
    preprocess: Any,
    device: str,
    batch_size: int = 256,
) -> tuple[np.ndarray, np.ndarray]:
    """ALSN's weights for every picture of a split with its first caption, (n, levels) visual and (n, levels) language."""
    tapped = towers.Tapped(model).to(device).eval()
    stage = StageConfig.model_validate(settings["stage"])
    built: Any = objectives.build(
        settings["method"]["method"], Surroundings(stage, settings["method"], tapped.shapes(), None, settings["pyramid"])
    )
    load_objective(built, objective_file)
    built = built.to(device).eval()
    visual, language = [], []
    for first in range(0, len(split), batch_size):
        samples = [split.read(index) for index in range(first, min(first + batch_size, len(split)))]
        images = torch.stack([preprocess(decode_image(sample.image)) for sample in samples]).to(device)
        outputs = tapped(images, tokenizer([sample.captions[0] for sample in samples]).to(device))
        levels = built.pyramid(outputs, stage.visual_levels, stage.language_levels)
        weights = built.level_weights(levels)
        visual.append(weights[0].cpu().numpy())
        language.append(weights[1].cpu().numpy())
    return np.concatenate(visual), np.concatenate(language)


def _save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """An .npz whose bytes depend on its arrays alone (zip members carry a fixed date)."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_atomic(path, buffer.getvalue())
