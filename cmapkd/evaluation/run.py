"""Measure one run: load its student as any user would, evaluate it, and write numbers with their parents."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cmapkd import objectives
from cmapkd.config.schedules import StageConfig
from cmapkd.data.shards import read_manifest
from cmapkd.data.split import Split
from cmapkd.data.transforms import EvaluationTransform, decode_image
from cmapkd.evaluation.curves import read_curves
from cmapkd.evaluation.evaluate import evaluate_model
from cmapkd.evaluation.levels import (
    BATCH,
    KEPT,
    cka_between,
    follows_distance,
    in_batch_accuracy,
    linear_cka,
    weights_by_stratum,
)
from cmapkd.files import digest, read_json, sha256_of, write_atomic, write_json
from cmapkd.fingerprint import evaluation_code
from cmapkd.models import towers
from cmapkd.objectives.base import Surroundings
from cmapkd.plan import Plan
from cmapkd.provenance import Start, collect
from cmapkd.runs import RUN, STUDENT, check_student, find_run, stage_record
from cmapkd.training.stages import (
    MODEL,
    OBJECTIVE,
    Teacher,
    load_inference,
    load_objective,
    load_pyramid,
    objective_modules,
)


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
    history = read_json(source / RUN, stages=list)
    settings = plan.stages[run.stages[-1]].settings
    name = settings["model"]["name"]
    check_student(source, history)
    compared = bool(settings.get("teacher_pyramid") and experiment.evaluation.retrieval)
    for address in (run.stages[-1], *((settings["teacher"], settings["teacher_pyramid"]) if compared else ())):
        stage_record(home / "stages" / address)  # its files are what it wrote
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
    arrays, measured = dict(evaluation.per_query), dict(evaluation.metrics)
    objective = home / "stages" / run.stages[-1] / OBJECTIVE
    reading = (student, settings, objective)
    if "alsn" in objective_modules(objective):
        for reference in experiment.evaluation.retrieval:
            visual, language = level_weights(*reading, splits[reference], tokenizer, preprocess, device)
            arrays |= {f"alsn/{reference}/visual": visual, f"alsn/{reference}/language": language}
    if compared:
        reference = experiment.evaluation.retrieval[0]
        measured["levels"], found = level_report(*reading, home / "stages", splits[reference], tokenizer, preprocess, device)
        arrays |= {f"levels/{reference}/{name}": array for name, array in found.items()}
        if f"alsn/{reference}/visual" in arrays:
            strata = arrays[f"retrieval/{reference}/stratum"]
            levels = settings["stage"]["visual_levels"], settings["stage"]["language_levels"]
            measured["levels"]["weights"] = {
                tower: weights_by_stratum(arrays[f"alsn/{reference}/{tower}"], names, strata)
                for tower, names in zip(("visual", "language"), levels, strict=True)
            }
            measured["levels"]["follows"] = {
                tower: follows_distance(arrays[f"alsn/{reference}/{tower}"], found[f"distance/{tower}"], names)
                for tower, names in zip(("visual", "language"), levels, strict=True)
            }

    for place, address in enumerate(run.stages):
        stage = plan.stages[address].settings.get("stage", {}).get("name") or plan.stages[address].label
        curves = read_curves(home / "stages" / address / "log.jsonl")
        arrays |= {f"curves/{place}/{stage}/{name}": values for name, values in curves.items()}
    target = home / "metrics" / f"{run.directory}.json"
    _save_arrays(target.with_suffix(".npz"), arrays)
    datasets = dict.fromkeys(reference.partition("/")[0] for reference in references)
    write_json(
        target,
        {
            "run": run.name,
            "seed": run.seed,
            "metrics": measured,
            "per_query": {"file": target.with_suffix(".npz").name, "sha256": sha256_of(target.with_suffix(".npz"))},
            "provenance": {"evaluation_code": evaluation_code(plan.stages[run.stages[-1]].method)}
            | collect(
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


@torch.no_grad()
def level_report(
    model: torch.nn.Module,
    settings: dict[str, Any],
    objective_file: Path,
    stages: Path,
    split: Split,
    tokenizer: Any,
    preprocess: Any,
    device: str,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """How the levels of student and teacher differ, on every picture of a split with its first caption.

    Returns:
        A report: for ``student`` and ``teacher`` the CKA between every two levels of a modality and the accuracy in percent
        of each visual with each language level among `BATCH` pairs, both directions averaged (a last incomplete batch left
        out, unless it is the only one); for ``both`` the CKA of the student's level and the teacher's, and their mean distance
        in the intra-modal loss. And arrays: that distance of every sample, ``distance/<tower>`` (n, levels); of each side
        (student, teacher) the similarity of a picture's visual levels to its caption's language levels,
        ``<side>/similarity`` (n, visual, language) float16 with both directions averaged, and the pooled levels of the first
        `KEPT` pictures, ``<side>/<level>`` (k, C) float16.
    """
    tapped = towers.Tapped(model).to(device).eval()
    stage = StageConfig.model_validate(settings["stage"])
    above = towers.Tapped(towers.load(stages / settings["teacher"] / MODEL))
    surroundings = Surroundings(stage, settings["method"], tapped.shapes(), above.shapes(), settings["pyramid"])
    built: Any = objectives.build(settings["method"]["method"], surroundings)
    load_objective(built, objective_file)
    built = built.to(device).eval()
    pyramid = load_pyramid(stages / settings["teacher_pyramid"] / OBJECTIVE, above.shapes(), settings["pyramid"])
    adapter = towers.Adapter(towers.preprocess_of(model), towers.preprocess_of(above.model))
    teacher = Teacher(above, pyramid, stage, taps=True, grid=built.grid, adapter=adapter).to(device)
    pairs = [(v, w) for v in stage.visual_levels for w in stage.language_levels]
    features: dict[str, dict[str, list[np.ndarray]]] = {side: {} for side in ("student", "teacher")}
    accuracy: dict[str, dict[str, list[float]]] = {side: {f"{v}-{w}": [] for v, w in pairs} for side in features}
    similar: dict[str, list[np.ndarray]] = {side: [] for side in features}
    distances: dict[str, list[np.ndarray]] = {"visual": [], "language": []}
    for first in range(0, len(split), BATCH):
        samples = [split.read(index) for index in range(first, min(first + BATCH, len(split)))]
        images = torch.stack([preprocess(decode_image(sample.image)) for sample in samples]).to(device)
        tokens = tokenizer([sample.captions[0] for sample in samples]).to(device)
        ours, theirs = built.levels(tapped(images, tokens)), teacher(images, tokens).pyramid
        for tower, values in zip(distances, built.distances(ours, theirs), strict=True):
            distances[tower].append(values.float().cpu().numpy())
        for side, levels in (("student", ours), ("teacher", theirs)):
            for names, vectors in ((stage.visual_levels, levels.pooled), (stage.language_levels, levels.language)):
                for index, name in enumerate(names):
                    features[side].setdefault(name, []).append(vectors[:, index].float().cpu().numpy())
            similarities = built.similarities({name: value for name, value in vars(levels).items() if name != "maps"})
            own = torch.stack([direction.diagonal(dim1=-2, dim2=-1) for direction in similarities]).mean(0)  # (v, w, b)
            similar[side].append(own.movedim(-1, 0).cpu().numpy().astype(np.float16))
            if len(samples) < BATCH < len(split):
                continue
            for v, w in pairs:
                row, column = stage.visual_levels.index(v), stage.language_levels.index(w)
                found = [in_batch_accuracy(direction[row, column].float().cpu().numpy()) for direction in similarities]
                accuracy[side][f"{v}-{w}"].append(float(np.mean(found)))
    joined = {side: {name: np.concatenate(parts) for name, parts in levels.items()} for side, levels in features.items()}
    report: dict[str, Any] = {}
    for side, levels in joined.items():
        cka = {
            tower: cka_between({name: levels[name] for name in names})
            for tower, names in (("visual", stage.visual_levels), ("language", stage.language_levels))
        }
        report[side] = {
            "cka": {**cka["visual"], **cka["language"]},
            "mean_cka": {tower: float(np.mean(list(values.values()))) for tower, values in cka.items() if values},
            "accuracy": {pair: float(np.mean(values)) for pair, values in accuracy[side].items()},
        }
    alike = {name: linear_cka(joined["student"][name], joined["teacher"][name]) for name in joined["student"]}
    report["both"] = {"cka": alike, "mean_cka": float(np.mean(list(alike.values())))}
    arrays = {f"{side}/similarity": np.concatenate(parts) for side, parts in similar.items()}
    for tower, names in (("visual", stage.visual_levels), ("language", stage.language_levels)):
        arrays[f"distance/{tower}"] = np.concatenate(distances[tower])
        means = arrays[f"distance/{tower}"].mean(axis=0, dtype=np.float64)
        report["both"].setdefault("distance", {}).update(zip(names, means.tolist(), strict=True))
    for side, levels in joined.items():
        arrays |= {f"{side}/{name}": vectors[:KEPT].astype(np.float16) for name, vectors in levels.items()}
    return report, arrays


def _save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """An .npz whose bytes depend on its arrays alone (zip members carry a fixed date)."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_atomic(path, buffer.getvalue())
