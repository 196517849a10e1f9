"""A complete made-up results directory: data, stages, runs, metric files and paper. None of its numbers was measured."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import synthetic_metrics
import yaml

from cmapkd.config import load_experiment, parse_experiment
from cmapkd.config.schema import ExperimentConfig
from cmapkd.data.index import INDEX_VERSION
from cmapkd.data.packing import HashedTar
from cmapkd.files import digest, sha256_of, write_json
from cmapkd.fingerprint import fingerprint
from cmapkd.paper.build import build_document, build_figure, build_table
from cmapkd.paper.context import PaperContext
from cmapkd.paper.experiment import paper_context
from cmapkd.paper.metrics import Metrics
from cmapkd.plan import Plan, make_plan
from cmapkd.runs import collect_run, find_run
from cmapkd.workflow import write_effective

DATASET = "emoji_scenes"
CAPTIONS, QUESTIONS = 5, 2  # of each picture
COMMIT = "0" * 40  # no repository has it


@dataclass
class Tree:
    """A results directory and what it was made from."""

    home: Path
    experiment: ExperimentConfig
    plan: Plan
    context: PaperContext

    @property
    def file(self) -> Path:
        return self.home / "experiment.yaml"

    def metric_file(self, run: str, seed: int = 0) -> Path:
        return self.context.metric_file(run, seed)

    def stage(self, run: str, place: int = -1) -> Path:
        """``stage.json`` of one stage of a run at seed 0."""
        directory = f"{self.context.directories[run]}/0"
        return self.home / "stages" / find_run(self.plan, directory).stages[place] / "stage.json"


def experiment_of(base: str = "smoke", **changes: Any) -> ExperimentConfig:
    """An experiment of ``config/`` with other keys at its top level."""
    content = load_experiment(synthetic_metrics.REPOSITORY / "config" / f"{base}.yaml").model_dump(mode="json")
    return parse_experiment({**content, "tuned": None, **changes})


def write_tree(directory: Path, experiment: ExperimentConfig, *, samples: int = 40, paper: bool = True) -> Tree:
    """The whole of ``directory/<name>``. ``samples``: test pictures of each split."""
    home = directory / experiment.name
    write_effective(experiment, home / "experiment.yaml")
    plan = make_plan(experiment)
    tree = Tree(home, experiment, plan, paper_context(experiment, directory, home / "experiment.yaml"))
    data = _write_data(home / "data" / DATASET)
    codes: dict[str, str] = {}
    for stage in plan.stages.values():
        if stage.method not in codes:
            codes[stage.method] = fingerprint("cmapkd.training.loop", f"cmapkd.objectives.{stage.method}")
        _write_stage(home / "stages" / stage.address, stage, codes[stage.method], data)
    for run in tree.context.directories:
        for seed in tree.context.seeds_of(run):
            collect_run(plan, f"{tree.context.directories[run]}/{seed}", directory)
            write_run_metrics(tree, run, seed, data, samples=samples)
    if paper:
        write_paper(tree)
    return tree


def write_paper(tree: Tree) -> None:
    """Everything but the PDF."""
    metrics = Metrics(tree.context)
    for name in tree.context.all_tables:
        build_table(name, tree.context, metrics)
    for name in tree.context.figures:
        build_figure(name, tree.context, metrics)
    build_document(tree.context, metrics)


def _write_data(directory: Path) -> str:
    """Two shards of two samples whose bytes are not images (nothing here reads them); returns the manifest's digest."""
    splits = {}
    for split in ("train", "test_render"):
        path = directory / split / "000000.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        keys, images, records = ["a", "b"], [], []
        with HashedTar(path) as tar:
            for key in keys:
                for extension, places in (("json", records), ("png", images)):
                    data = f"{split} {key}.{extension}".encode()
                    places.append([*tar.add(f"{key}.{extension}", data), zlib.crc32(data)])
            tar.finish()
        about = {"samples": 2, "bytes": path.stat().st_size, "sha256": sha256_of(path)}
        columns = {"keys": keys, "extensions": ["png", "png"], "images": images, "records": records}
        write_json(path.with_suffix(".index.json"), {"version": INDEX_VERSION, "shard": path.name, **about, **columns})
        splits[split] = {"samples": 2, "shards": [{"path": f"{split}/{path.name}", **about}]}
    classes = {"classes": ["cat", "dog"], "templates": ["a picture of {}"]}
    write_json(directory / "classes.json", classes)
    hashes = {split: [shard["sha256"] for shard in record["shards"]] for split, record in splits.items()}
    made = digest({"shards": hashes, "classes": [classes["classes"], classes["templates"]]})
    write_json(directory / "manifest.json", {"dataset": DATASET, "splits": splits, "digest": made})
    return made


def _provenance(**changes: Any) -> dict[str, Any]:
    return {
        "commit": COMMIT,
        "dirty": False,
        "stages": [],
        "host": "laptop",
        "started": "2024-01-02T03:04:05+00:00",
        "wall_seconds": 12.5,
        "versions": {"python": "3.11.2"},
        "image_digest": None,
        "command": "cmapkd",
        **changes,
    }


def _write_stage(directory: Path, stage: Any, code: str, data: str) -> None:
    files = {}
    for name in ("model/open_clip_model.safetensors", "model/open_clip_config.json", "objective.safetensors"):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"{stage.address} {name}".encode())
        files[name] = sha256_of(path)
    record = {
        "address": stage.address,
        "label": stage.label,
        "settings": stage.settings,
        "parents": list(stage.parents),
        "rests_on": {
            parent: json.loads((directory.parent / parent / "stage.json").read_text())["files"] for parent in stage.parents
        },
        "code": code,
        "files": files,
        "summary": {},
        "bad_samples": {},
        "provenance": _provenance(config_digest=digest(stage.settings), data_digests={DATASET: data}),
    }
    write_json(directory / "stage.json", record)


def write_run_metrics(tree: Tree, run: str, seed: int, data: str, *, samples: int, level: float | None = None) -> Path:
    """One metric file whose metrics are those of its own per-query arrays."""
    place = list(tree.context.directories).index(run)
    arrays = arrays_of(tree.experiment, place, seed, samples)
    method = next((entry.method for entry in tree.context.runs if entry.name == run), "")
    alsn = method == "cmapkd"
    if alsn:
        made = synthetic_metrics.arrays_of(20.0, seed, alsn=True)
        arrays |= {name: array[:samples] for name, array in made.items() if name.startswith("alsn/")}
    chain = find_run(tree.plan, f"{tree.context.directories[run]}/{seed}")
    addresses = (*chain.stages, *tree.plan.deployed_teacher(chain).values())
    records = [json.loads((tree.home / "stages" / address / "stage.json").read_text()) for address in addresses]
    stages = [
        {
            **{key: record[key] for key in ("address", "label", "code")},
            **{key: record["provenance"][key] for key in ("commit", "dirty", "host", "started", "wall_seconds")},
        }
        for record in records
    ]
    entry = records[len(chain.stages) - 1]["settings"]["method"]["method"]
    settings = {"evaluation": tree.experiment.evaluation.model_dump(mode="json"), "stages": list(chain.stages)}

    def edit(content: dict[str, Any]) -> None:
        content["metrics"] |= measured(tree.experiment, arrays)
        content["provenance"] = _provenance(
            config_digest=digest(settings),
            data_digests={DATASET: data},
            stages=stages,
            evaluation_code=fingerprint("cmapkd.evaluation.run", f"cmapkd.objectives.{entry}"),
        )

    return synthetic_metrics.write_metrics(tree.context, run, seed, 20.0, alsn=alsn, edit=edit, arrays=arrays)


def arrays_of(experiment: ExperimentConfig, place: int, seed: int, samples: int) -> dict[str, np.ndarray]:
    """Per-query arrays of a run that is better the later its place; the teacher, the first of all, is the best."""
    generator = np.random.default_rng([place, seed])
    spread = 4 + 6 / (1 + place) if place else 2.0
    arrays: dict[str, np.ndarray] = {}
    for split in experiment.evaluation.retrieval:
        above = f"retrieval/{split}/"
        strata = np.array(["simple", "complex", "fine", "abstract"] * (samples // 4 + 1))[:samples]
        arrays |= {
            f"{above}i2t_ranks": generator.exponential(spread, samples).astype(np.int32),
            f"{above}t2i_ranks": generator.exponential(spread, samples * CAPTIONS).astype(np.int32),
            f"{above}owner": np.repeat(np.arange(samples, dtype=np.int32), CAPTIONS),
            f"{above}margin": generator.normal(0.05, 0.1, samples),
            f"{above}stratum": strata,
        }
    for split in experiment.evaluation.zeroshot:
        ranks = generator.exponential(spread, samples).astype(np.int32)
        order = np.arange(samples, dtype=np.int32)
        arrays |= {f"zeroshot/{split}/{name}": v for name, v in (("ranks", ranks), ("image", order), ("label", order % 80))}
    for split in experiment.evaluation.vqa.test if experiment.evaluation.vqa else ():
        count = samples * QUESTIONS
        arrays |= {
            f"vqa/{split}/accuracy": generator.choice([0.0, 0.3, 1.0], count),
            f"vqa/{split}/type": np.array(["yes/no", "number", "other", "other"] * count)[:count],
            f"vqa/{split}/image": np.repeat(np.arange(samples, dtype=np.int32), QUESTIONS),
        }
    steps = np.arange(1, 101, dtype=np.float32)
    arrays |= {"curves/0/train/step": steps, "curves/0/train/loss": (spread / np.sqrt(steps)).astype(np.float32)}
    return arrays


def measured(experiment: ExperimentConfig, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Metrics of those arrays, by their definition."""
    found: dict[str, Any] = {"retrieval": {}, "zeroshot": {}, "vqa": {}}
    for split in experiment.evaluation.retrieval:
        i2t, t2i = (arrays[f"retrieval/{split}/{way}_ranks"] for way in ("i2t", "t2i"))
        recalls = {f"{way}_r{k}": float((r < k).mean() * 100) for way, r in (("i2t", i2t), ("t2i", t2i)) for k in (1, 5, 10)}
        sizes = {"images": len(i2t), "captions": len(t2i)}
        found["retrieval"][split] = {"all": {**recalls, "mean_recall": float(np.mean(list(recalls.values()))), **sizes}}
    for split in experiment.evaluation.zeroshot:
        ranks = arrays[f"zeroshot/{split}/ranks"]
        tops = {f"top{k}": float((ranks < k).mean() * 100) for k in (1, 5)}
        found["zeroshot"][split] = {"all": {**tops, "images": len(ranks), "classes": 80}}
    for split in experiment.evaluation.vqa.test if experiment.evaluation.vqa else ():
        scores, kinds = arrays[f"vqa/{split}/accuracy"], arrays[f"vqa/{split}/type"]
        means = {name: float(scores[kinds == kind].mean() * 100) for kind, name in KINDS.items()}
        overall = {"overall": float(scores.mean() * 100), **means, "questions": len(scores)}
        found["vqa"][split] = {"all": overall, "question_only": overall}
    return found


KINDS = {"yes/no": "yes_no", "number": "number", "other": "other"}


def edit_json(path: Path, change: Any) -> None:
    """Change a JSON file in place; ``change(content)``."""
    content = json.loads(path.read_text())
    change(content)
    write_json(path, content)


def edit_yaml(path: Path, change: Any) -> None:
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content, sort_keys=False))
