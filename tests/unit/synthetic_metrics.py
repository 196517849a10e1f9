"""Made-up metric files in the pipeline's own schema, for tests of the paper. None of these numbers was measured."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from synthetic_queries import CAPTIONS, queries_of

from cmapkd.files import sha256_of, write_json
from cmapkd.paper.context import TEACHER, Bootstrap, PaperContext, PaperRun, PaperStage

REPOSITORY = Path(__file__).parents[2]
SPLITS = ("emoji_scenes/test_render", "emoji_scenes/test_concept")
LABELS = {
    "retrieval:emoji_scenes/test_render": "Emoji Scenes, unseen drawings (in place of COCO 5K)",
    "retrieval:emoji_scenes/test_concept": "Emoji Scenes, unseen concepts (in place of Flickr30K)",
    "vqa:emoji_scenes/test_render": "Emoji Scenes questions (in place of VQAv2)",
    "zeroshot:emoji_scenes/test_render": "Emoji Scenes subgroups (in place of ImageNet-1K)",
}
RUNS = (
    PaperRun("Scratch", method="scratch"),
    PaperRun("KD", method="kd"),
    PaperRun("CMAPKD", method="cmapkd", level_temperature=0.1),
)
ABLATIONS = (
    PaperRun("w/o relation", method="cmapkd", group="ablation", schedule="progressive", changes=("weights.relation = 0",)),
    PaperRun("one-stage", method="cmapkd", group="ablation", schedule="one_stage", changes=("schedule = one_stage",)),
)
LEVELS = {"visual_levels": ("P4", "P5"), "language_levels": ("L3", "L4")}
STAGES = (
    PaperStage("progressive", "medium", 0.8, 1.2e-3, 0.6, ("student", "pyramid"), policy="uniform", **LEVELS),
    PaperStage("progressive", "fine", 2.4, 1e-3, 0.0, ("student", "alsn"), (("alsn", 5e-5),), ("P5",), ("L4",), "alsn"),
    PaperStage("standard", "train", 4, 1.5e-3, 0.0, ("student", "heads")),
)
SAMPLES = 1000
KEPT = 40  # pictures of which the pooled levels are there
VISUAL, LANGUAGE = ("P2", "P3", "P4", "P5"), ("L1", "L2", "L3", "L4")


def context(directory: Path, **changes: Any) -> PaperContext:
    """An experiment of three runs and one seed, like the embedded default."""
    settings: dict[str, Any] = {
        "name": "synthetic",
        "results": directory / "results" / "synthetic",
        "runs": RUNS,
        "seeds": (0,),
        "retrieval": SPLITS,
        "zeroshot": SPLITS[:1],
        "vqa": SPLITS[:1],
        "tables": ("table2", "table3", "table5"),
        "figures": ("figure3",),
        "labels": LABELS,
        "teacher_label": "Teacher (ViT, width 128)",
        "planned_file": REPOSITORY / "config" / "planned.yaml",
        "config_file": Path("config/synthetic.yaml"),
        "stages": STAGES,
        "global_batch": 128,
        "warmup": 0.1,
        "bootstrap": Bootstrap(samples=4000),
    }
    return PaperContext(**{**settings, **changes})


def metrics_of(level: float, *, teacher: bool) -> dict[str, Any]:
    """Metrics that rise with ``level``."""
    recall = {
        f"{way}_r{k}": round((level * (1 + 0.15 * np.log(k)) + shift) * count / 100) * 100 / count  # whole queries
        for way, shift, count in (("i2t", 0, SAMPLES), ("t2i", -1.5, CAPTIONS * SAMPLES))
        for k in (1, 5, 10)
    }
    recall |= {"mean_recall": sum(recall.values()) / 6, "images": SAMPLES, "captions": CAPTIONS * SAMPLES}
    vqa = {"overall": 30 + level, "yes_no": 50 + level, "number": 20 + level, "other": 10 + level, "questions": 2 * SAMPLES}
    size = 4 if teacher else 1
    return {
        "retrieval": {split: {"all": recall, "simple": recall} for split in SPLITS},
        "zeroshot": {SPLITS[0]: {"all": {"top1": level, "top5": min(100.0, 2 * level), "images": SAMPLES, "classes": 80}}},
        "vqa": {SPLITS[0]: {"all": vqa, "question_only": {**vqa, "overall": 31.25}}},
        "efficiency": {
            "image_parameters": 412_345 * size, "text_parameters": 3_412_345 * size, "total_parameters": 3_824_690 * size,
            "image_flops": 13_200_000 * size, "text_flops": 9_100_000 * size, "total_flops": 22_300_000 * size,
            "latency_ms_batch1": 1.31 * size - 0.01 * level / 20, "latency_ms_batch32": 0.21 * size,
            "device": "AMD EPYC 7B13, 2 threads",
        },
    }  # fmt: skip


def levels_of(level: float) -> dict[str, Any]:
    """What is reported of the levels of a pyramid and of ALSN's weights."""
    pairs = ("P2-L1", "P3-L2", "P4-L3", "P5-L4")
    sides = {
        side: {
            "accuracy": {pair: level + place + shift for place, pair in enumerate(pairs)},
            "mean_cka": {"visual": 0.9, "language": 0.4},
            "cka": {
                f"{a}-{b}": 0.01 * level + 0.1 * (first + second) / 2 + shift / 100
                for names in (VISUAL, LANGUAGE)
                for first, a in enumerate(names)
                for second, b in enumerate(names)
                if first < second
            },
        }
        for side, shift in (("student", 0), ("teacher", 9))
    }
    weights, follows = {}, {}
    for tower, letter, first in (("visual", "P", 2), ("language", "L", 1)):
        mean = {f"{letter}{place + first}": 0.1 * (place + 1) for place in range(4)}
        deviation = {name: 0.01 * (place + 1) for place, name in enumerate(mean)}
        of_all = {"entropy_share": 0.95, "mean": mean, "deviation": deviation}
        fine = {**mean, f"{letter}{first + 1}": 0.26}
        weights[tower] = {"all": of_all, "simple": of_all, "fine": {**of_all, "mean": fine}}
        follows[tower] = {"easiest": 0.75, "farthest": 0.1, "rho": {}}
    cka = {name: 0.5 + 0.001 * level + 0.05 * place for place, name in enumerate((*VISUAL, *LANGUAGE))}
    return {**sides, "both": {"mean_cka": 0.6, "cka": cka}, "weights": weights, "follows": follows}


def arrays_of(level: float, seed: int, *, alsn: bool) -> dict[str, np.ndarray]:
    """Per-query arrays: ranks and accuracies, a margin for each picture and, with ALSN, weights that lean on the coarse level
    of easy samples."""
    generator = np.random.default_rng(7)
    noise = np.random.default_rng(1000 + seed)
    arrays = queries_of(metrics_of(level, teacher=False), seed)
    for split in SPLITS:
        margin = generator.normal(0.05, 0.1, SAMPLES)
        arrays[f"retrieval/{split}/margin"] = margin
        arrays[f"retrieval/{split}/stratum"] = np.array(["simple", "complex", "fine", "abstract"] * (SAMPLES // 4))
        if alsn:
            for tower, slope in (("visual", 1.5), ("language", 0.8)):
                logits = (
                    np.outer(margin, slope * np.array([-1.2, -0.5, 0.2, 1.5]))
                    + noise.normal(0, 0.06, (SAMPLES, 4))
                    + [0, 0.1, 0.2, 0.3]
                )
                weights = np.exp(logits)
                arrays[f"alsn/{split}/{tower}"] = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return arrays | curves_of(level, seed, pyramid=alsn) | (level_arrays(seed) if alsn else {})


def curves_of(level: float, seed: int, *, pyramid: bool) -> dict[str, np.ndarray]:
    """Block means of the training log: falling terms; with a pyramid two stages, else one."""
    noise = np.random.default_rng(2000 + seed)
    arrays = {}
    for place, stage in enumerate(("coarse", "fine") if pyramid else ("train",)):
        step = np.arange(20) * 5.0 + 2
        falling = np.exp(-step / 60) + noise.normal(0, 0.01, 20)
        terms = {"task": 3 * falling, "distillation": falling + 0.01 * level}
        terms |= {"intra": 1.5 * falling, "weight_P2": np.full(20, 0.25)} if pyramid else {}
        rest = {"step": step, "loss": 4 * falling, "lr": 0.001 * falling, "grad_norm": falling, "samples_per_second": step}
        arrays |= {f"curves/{place}/{stage}/{name}": values.astype(np.float32) for name, values in (rest | terms).items()}
    return arrays


def level_arrays(seed: int) -> dict[str, np.ndarray]:
    """Of student and teacher: similarities in which matched levels are closer, and pooled levels that are apart."""
    noise = np.random.default_rng(3000 + seed)
    arrays = {}
    for side, closer in (("student", 0.05), ("teacher", 0.1)):
        similarity = noise.normal(0.3, 0.05, (SAMPLES, 4, 4)) + closer * np.eye(4) + [0.2, 0.1, 0, 0]
        arrays[f"levels/{SPLITS[0]}/{side}/similarity"] = similarity.astype(np.float16)
        for place, name in enumerate((*VISUAL, *LANGUAGE)):
            features = noise.normal(0, 0.3, (KEPT, 8)) + 2 * np.eye(8)[place]
            arrays[f"levels/{SPLITS[0]}/{side}/{name}"] = features.astype(np.float16)
    return arrays


def write_metrics(
    setting: PaperContext, run: str, seed: int, level: float, *, alsn: bool = False, edit: Any = None, arrays: Any = None
) -> Path:
    """One metric file and its arrays. ``edit(content)`` may change the JSON, ``arrays`` replaces the arrays."""
    path = setting.metric_file(run, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    archive = path.parent / f"{seed}.npz"
    buffer = io.BytesIO()
    np.savez(buffer, **(arrays_of(level, seed, alsn=alsn) if arrays is None else arrays))
    archive.write_bytes(buffer.getvalue())
    content = {
        "run": run,
        "seed": seed,
        "metrics": json.loads(json.dumps(metrics_of(level, teacher=run == TEACHER))),
        "per_query": {"file": archive.name, "sha256": sha256_of(archive)},
        "provenance": {
            "commit": "0123456789abcdef0123456789abcdef01234567",
            "dirty": False,
            "config_digest": "c0ffee" * 10,
            "data_digests": {"emoji_scenes": "da7a" * 16},
            "stages": ["coarse-1a2b3c", "fine-4d5e6f"] if run == "CMAPKD" else ["train-778899"],
            "host": "laptop",
            "started": "2024-01-02T03:04:05+00:00",
            "wall_seconds": 12.5,
            "versions": {"python": "3.11.2", "torch": "2.14.1"},
            "image_digest": None,
            "command": f"cmapkd evaluate {run} {seed}",
        },
    }
    if alsn:
        content["metrics"]["levels"] = levels_of(level)  # type: ignore[index]
    if edit is not None:
        edit(content)
    write_json(path, content)
    return path


def rewrite_arrays(setting: PaperContext, change: Any, run: str = "CMAPKD", seed: int = 0) -> None:
    """The run's metric file again, its arrays changed by ``change(arrays)``."""
    arrays = arrays_of(20.0, seed, alsn=run == "CMAPKD")
    change(arrays)
    write_metrics(setting, run, seed, 23.5, alsn=run == "CMAPKD", arrays=arrays)


def write_all(setting: PaperContext, levels: dict[str, float] | None = None) -> None:
    """Metric files of the teacher and every run at every seed."""
    levels = levels or {TEACHER: 32.0, "Scratch": 17.0, "KD": 21.5, "CMAPKD": 23.5}
    write_metrics(setting, TEACHER, setting.teacher_seed, levels[TEACHER])
    for run in setting.runs:
        for seed in setting.seeds:
            write_metrics(setting, run.name, seed, levels.get(run.name, 20.0) + 0.4 * seed, alsn=run.method == "cmapkd")


def write_tuned(directory: Path, edit: Any = None) -> Path:
    """A made-up file of tuned values in the search's own schema."""

    def run(score: float, **values: float) -> dict[str, Any]:
        trial = {"number": 0, "values": values, "score": score, "seconds": 9.5, "state": "complete"}
        failed = {**trial, "number": 2, "score": None, "state": "fail"}
        spread = {"min": score - 12, "median": score - 3.25, "max": score}
        return {
            "values": values, "score": score, "default_score": score - 1.5, "scores": spread,
            "trials": [trial, {**trial, "number": 1, "score": score - 12}, failed], "complete": True,
        }  # fmt: skip

    content = {
        "experiment": "synthetic",
        "search": {
            "trials": 3, "length": 0.5, "seed": 100, "sampler": "gp", "metric": "mean_recall",
            "splits": ["emoji_scenes/validation"],
        },
        "runs": {"CMAPKD": run(41.5, weights={"align": 0.51234}, lr_scale=1.5), "KD": run(38.25, lr_scale=0.75)},
    }  # fmt: skip
    if edit is not None:
        edit(content)
    path = directory / "tuned.yaml"
    path.write_text(yaml.safe_dump(content))
    return path
