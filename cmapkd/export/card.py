"""The model card: ``README.md`` in the Hub's format. Torch-free.

Its front matter is the Hub's metadata (``model-index`` with one result for each task and split); its text says what the
weights are, how they were made, what was measured and what was not. Every number is read from the run's metric file, every
interval is a bootstrap over the test pictures kept beside it; nothing is estimated, rounded up or taken from elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cmapkd import commands
from cmapkd.data.answers import EXACT_MATCH
from cmapkd.errors import UserError
from cmapkd.export.finished import Finished
from cmapkd.export.tokenizer import LIMITS
from cmapkd.paper import paired
from cmapkd.paper.statistics import Ratio, mean_sample, resample
from cmapkd.paths import portable_text
from cmapkd.plan import TEACHER

LEVEL, SAMPLES, SEED = 0.95, 10_000, 0
NAMES = {
    "i2t_r1": "image to text R@1", "i2t_r5": "image to text R@5", "i2t_r10": "image to text R@10",
    "t2i_r1": "text to image R@1", "t2i_r5": "text to image R@5", "t2i_r10": "text to image R@10",
    "mean_recall": "mean recall", "top1": "top-1 accuracy", "top5": "top-5 accuracy",
    "overall": "accuracy", "yes_no": "accuracy, yes/no", "number": "accuracy, number", "other": "accuracy, other",
}  # fmt: skip
TASKS = {  # of metric files -> type on the Hub, words
    "retrieval": ("image-text-retrieval", "Retrieval"),
    "zeroshot": ("zero-shot-image-classification", "Zero-shot classification"),
    "vqa": (
        "visual-question-answering",
        "Visual questions (a small head trained on the frozen embeddings; it is not exported)",
    ),
}
COUNTED = {"images": "pictures", "captions": "captions", "classes": "classes", "questions": "questions"}


@dataclass(frozen=True)
class Measured:
    """A number of the metric file with its interval, all in percent."""

    metric: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Form:
    """One form of the model: what it is called, its files, how it is loaded; or why it is not there."""

    name: str
    files: tuple[str, ...] = ()
    usage: str = ""
    missing: str = ""


def measured(run: Finished) -> dict[tuple[str, str], list[Measured]]:
    """By task and split every metric that per-query results are kept of, with its interval.

    Raises:
        UserError: the per-query results do not give the number in the metric file.
    """
    found: dict[tuple[str, str], list[Measured]] = {}
    for task in TASKS:
        for split, strata in run.metrics.content["metrics"].get(task, {}).items():
            above = f"{task}/{split}/"
            arrays = {name.removeprefix(above): a for name, a in run.arrays.items() if name.startswith(above)}
            rows = [_interval(run, split, metric, parts, strata["all"]) for metric, parts in _parts(task, arrays).items()]
            found[task, split] = [row for row in rows if row is not None]
    return {place: rows for place, rows in found.items() if rows}


def _name(metric: str, stated: Mapping[str, Any]) -> str:
    """What a metric is called; the accuracy on questions with one answer each is their exact match."""
    name = NAMES[metric]
    return name.replace("accuracy", "exact match") if stated.get("metric") == EXACT_MATCH else name


def _parts(task: str, arrays: Mapping[str, np.ndarray]) -> Mapping[str, Sequence[paired.Part]]:
    return {name: parts for name, parts in paired.parts_of(task, arrays).items() if name in NAMES}


def _interval(
    run: Finished, split: str, metric: str, parts: Sequence[paired.Part], stated: Mapping[str, Any]
) -> Measured | None:
    value = stated.get(metric)
    if not isinstance(value, int | float):
        return None
    if not math.isclose(value, paired.value(parts), abs_tol=1e-4):
        reason = f"says {metric} = {value:.4f} on {split}, but its per-query results give {paired.value(parts):.4f}"
        raise UserError(key=str(run.metrics.path), reason=reason, fix="evaluate the run again")
    ratios = [Ratio(scores[None], queries) for scores, queries in parts]
    draws = mean_sample(resample(ratios, SAMPLES, SEED)).draws[:, 0]
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Measured(metric, float(value), float(low), float(high))


def card(run: Finished, forms: Sequence[Form], licence: str | None = None) -> str:
    """The card's text.

    Args:
        forms: what was exported, and what could not be.
        licence: identifier under which the weights are given away, if their maker has chosen one.
    """
    rows = measured(run)
    front = yaml.safe_dump(metadata(run, rows, forms, licence), sort_keys=False, allow_unicode=True, width=110)
    parts = (_about(run), _use(run, forms), _results(run, rows), _making(run), _data(run, licence), _limits(run, rows))
    body = "\n\n".join("\n".join(part) for part in parts)
    return f"---\n{front}---\n\n{body}\n"


def title(run: Finished) -> str:
    """What the model is called: experiment, run, seed."""
    return f"{run.plan.experiment.name}/{run.run.name}/{run.run.seed}"


def metadata(
    run: Finished, rows: Mapping[tuple[str, str], Sequence[Measured]], forms: Sequence[Form], licence: str | None
) -> dict[str, Any]:
    """The front matter."""
    made = [form.name for form in forms if not form.missing]
    libraries = {"open_clip": "open_clip", "hf": "transformers", "onnx": "onnx"}
    results = []
    for (task, split), numbers in rows.items():
        dataset, _, part = split.partition("/")
        about = {"type": dataset, "name": split, "split": part}
        if (data := run.metrics.provenance["data_digests"].get(dataset)) is not None:
            about["revision"] = data
        metrics = [
            {
                "type": number.metric,
                "name": _name(number.metric, run.metrics.content["metrics"][task][split]["all"]),
                "value": round(number.value, 2),
                "args": {"confidence": LEVEL, "interval": [round(number.low, 2), round(number.high, 2)]},
            }
            for number in numbers
        ]
        results.append({"task": {"type": TASKS[task][0]}, "dataset": about, "metrics": metrics})
    return {
        **({"license": licence} if licence else {"license": "other", "license_name": "not-chosen"}),
        "library_name": libraries[made[0]],
        "pipeline_tag": "zero-shot-image-classification",
        "tags": ["clip", "knowledge-distillation", "cmapkd", *(libraries[name] for name in made[1:])],
        "datasets": _names(run.plan.experiment.distillation),
        "metrics": [name for name, tasks in (("recall", {"retrieval"}), ("accuracy", {"zeroshot", "vqa"}))
                    if tasks & {task for task, _ in rows}],
        "model-index": [{"name": title(run), "results": results}],
    }  # fmt: skip


def _names(references: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(reference.partition("/")[0] for reference in references))


def _plain(text: object) -> str:
    """A text as it is within a line of Markdown, whatever it holds."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#&" else " " if c in "\r\n" else c for c in str(text))


def _code(text: object) -> str:
    """A text as code within a line; in a table a bar would end the cell."""
    return f"`{str(text).replace('`', chr(39)).replace('|', '/').replace(chr(10), ' ')}`"


def _about(run: Finished) -> list[str]:
    experiment = run.plan.experiment
    size = run.config["preprocess_cfg"]["size"]
    shape = f"{size} x {size}" if isinstance(size, int) else " x ".join(map(str, size))
    cost = run.metrics.content["metrics"].get("efficiency", {})
    counted = f", {cost['total_parameters'] / 1e6:.2f} million parameters" if "total_parameters" in cost else ""
    text = run.config["model_cfg"].get("text_cfg", {}).get("context_length", 77)
    if run.run.name == TEACHER:
        what = f"The teacher of the experiment {_code(experiment.name)}: a CLIP model"
    else:
        how = "without a teacher" if not experiment.runs[run.run.name].uses_teacher else "from a teacher"
        what = f"A CLIP student trained {how} (run {_code(run.run.name)}, method {_code(run.method)}, seed {run.run.seed})"
    return [
        f"# {_plain(title(run))}",
        "",
        f"{what} of architecture {_code(run.settings['model']['name'])}{counted}. It embeds pictures of {shape} pixels and "
        f"texts of at most {text} tokens in one space of {run.embed_dim} dimensions; the dot product of two normalised "
        "embeddings says how well they fit.",
    ]


def _use(run: Finished, forms: Sequence[Form]) -> list[str]:
    lines = ["## Use"]
    for form in forms:
        if form.missing:
            lines += ["", f"Not there as {_code(form.name)}: {_plain(form.missing)}."]
        else:
            lines += ["", f"As {_code(form.name)} ({', '.join(map(_code, form.files))}):", "", "```python", form.usage, "```"]
    own = not run.config["model_cfg"].get("text_cfg", {}).get("hf_tokenizer_name")
    if own and any(file.endswith("tokenizer.json") for form in forms for file in form.files):
        lines += [
            "",
            "The tokenizer (`tokenizer.json`) cleans texts as the student's own does in open_clip: curly quotes, ligatures, "
            "letters of another width, HTML entities, control characters, white space. Load it with `AutoTokenizer` or "
            "`CLIPProcessor`: the class `CLIPTokenizer`, where it is named itself, makes one of its own without that. "
            "The two differ only on:",
            "",
            *(f"- {limit}" + ("." if limit == LIMITS[-1] else ";") for limit in LIMITS),
        ]
    return lines


def _results(run: Finished, rows: Mapping[tuple[str, str], Sequence[Measured]]) -> list[str]:
    validation = set(run.plan.experiment.evaluation.validation)
    lines = ["## Results", ""]
    if not rows:
        return [*lines, "Nothing was measured on this run: its experiment names no evaluation."]
    lines += [
        f"In percent, with {LEVEL:.0%} intervals of a bootstrap over test pictures ({SAMPLES:,} resamples). One training was "
        "measured: the intervals say nothing of how much another training would differ."
    ]
    for (task, split), numbers in rows.items():
        stated = run.metrics.content["metrics"][task][split]["all"]
        counts = ", ".join(f"{stated[key]:,} {word}" for key, word in COUNTED.items() if isinstance(stated.get(key), int))
        chosen = "; settings may have been chosen on it" if split in validation else ""
        lines += [
            "",
            f"**{TASKS[task][1]}**, {_code(split)} ({counts}{chosen})",
            "",
            "| metric | value | interval |",
            "|---|---|---|",
        ]
        lines += [f"| {_name(n.metric, stated)} | {n.value:.1f} | {n.low:.1f} to {n.high:.1f} |" for n in numbers]
    cost = run.metrics.content["metrics"].get("efficiency", {})
    if cost:
        lines += [
            "",
            f"**Cost**: image tower {cost['image_parameters'] / 1e6:.2f} M parameters, {cost['image_flops'] / 1e9:.4g} GFLOPs, "
            f"text tower {cost['text_parameters'] / 1e6:.2f} M, {cost['text_flops'] / 1e9:.4g} GFLOPs; "
            f"{cost['latency_ms_batch1']:.3g} ms for one picture on {_plain(cost['device'])}.",
        ]
    return lines


def _making(run: Finished) -> list[str]:
    experiment, provenance = run.plan.experiment, run.metrics.provenance
    teacher, start = experiment.teacher, _code(portable_text(experiment.student.init))
    origin = "trained in the same experiment"
    if teacher.pretrained is not None:
        origin = f"weights {_code(portable_text(teacher.pretrained))}"
    home = f"results/{experiment.name}"
    file, metrics = Path(home, "experiment.yaml"), f"{experiment.name}/metrics/{run.run.directory}.json"
    lines = ["## How it was made", ""]
    if run.run.name != TEACHER and experiment.runs[run.run.name].uses_teacher:
        lines += [
            f"Teacher: {_code(teacher.model)}, {origin}. Student: starts from {start} weights.",
            "",
        ]
    lines += ["| stage | steps | code | commit |", "|---|---|---|---|"]
    for stage in run.history["stages"]:
        own = stage["provenance"]
        changed = " with uncommitted changes" if own.get("dirty") is True else ""
        lines.append(
            f"| {_code(stage['address'])} | {stage['summary'].get('steps', '–')} | {_code(stage['code'])} "
            f"| {_code(own.get('commit'))}{changed} |"
        )
    versions = ", ".join(f"{name} {version}" for name, version in provenance.get("versions", {}).items())
    return [
        *lines,
        "",
        f"A stage's name ends in the digest of all that was configured for it (`training.json` holds it in full); that of the "
        f"whole run is {_code(run.address)}. Measured by commit {_code(provenance.get('commit'))}; metric file "
        f"{_code(run.metrics.sha256)}. Versions: {_plain(versions)}.",
        "",
        "With the experiment's file and the code of those commits, the first makes the metrics again; the second made this:",
        "",
        "```sh",
        commands.snakemake([metrics], file, commands.RESULTS, force=False, in_project=True),
        commands.cmapkd(["export", run.run.directory, "--to", "DIRECTORY"], file, commands.RESULTS),
        "```",
    ]


def _data(run: Finished, licence: str | None) -> list[str]:
    experiment = run.plan.experiment
    trained = _names(experiment.distillation)
    lines = ["## Data and licence", ""]
    for name, manifest in run.manifests.items():
        use = "trained on" if name in trained else "evaluated on"
        read = dict.fromkeys((*experiment.distillation, *experiment.evaluation.references()))
        splits = [reference.partition("/")[2] for reference in read if reference.partition("/")[0] == name]
        counts = [f"{split} {manifest['splits'][split]['samples']:,}" for split in splits if split in manifest["splits"]]
        lines.append(f"- {_code(name)} ({use}; digest {_code(manifest['digest'])}): {_plain(', '.join(counts))} samples")
        credits = dict.fromkeys((s.get("licence"), s.get("attribution"), s.get("name")) for s in manifest.get("sources", ()))
        lines += [f"  - {_plain(name)}: {_plain(terms)}; {_plain(credit)}" for terms, credit, name in credits]
    chosen = f"The weights are given away under {_code(licence)}." if licence else "No licence was chosen for the weights."
    return [*lines, "", f"{chosen} What the licences of the data ask for holds beside that."]


def _limits(run: Finished, rows: Mapping[tuple[str, str], Sequence[Measured]]) -> list[str]:
    splits = ", ".join(map(_code, dict.fromkeys(split for _, split in rows))) or "nothing"
    lines = [
        "## Intended use and limits",
        "",
        "Made for research on distillation: to compare methods, and to repeat what was measured. What is known of it stands "
        f"under Results, for {splits}, from one training with seed {run.run.seed}. Not measured, so not known: other pictures, "
        "other languages, how it treats people, and anything that depends on its being right.",
    ]
    if bad := sum(stage["bad_samples"]["bad"] for stage in run.history["stages"] if stage.get("bad_samples")):
        read = sum(stage["bad_samples"]["read"] for stage in run.history["stages"] if stage.get("bad_samples"))
        lines += ["", f"{bad:,} of {read:,} samples could not be read in training and were replaced by others."]
    if run.deploys_teacher:
        lines += ["", "The numbers are of the student's image tower with the teacher's text tower, as this method is used."]
    return lines
