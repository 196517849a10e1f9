"""An export as a directory: made beside its place and renamed there when it is whole, the same bytes at every time.

    README.md                      the model card
    training.json                  what each stage was configured with: its address is the digest of this
    open_clip_config.json, open_clip_model.safetensors
    config.json, model.safetensors, tokenizer.json, tokenizer_config.json, preprocessor_config.json
    onnx/image.onnx, text.onnx, preprocessing.json, tokenizer.json
    export.json                    what is here, with SHA-256 of every file

Forms share a directory: open_clip and ``transformers`` look for different names.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cmapkd import __version__
from cmapkd.errors import UserError
from cmapkd.export import onnx_towers, tokenizer, transformers_clip
from cmapkd.export.card import Form, card
from cmapkd.export.finished import CONFIG, WEIGHTS, Finished
from cmapkd.export.record import RECORD, check_target, made_beside
from cmapkd.files import sha256_of, write_atomic, write_json
from cmapkd.models import towers
from cmapkd.runs import DEPLOYED_TEACHER, STUDENT

FORMATS = ("open_clip", "hf", "onnx")
_USAGE = {
    "open_clip": """import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:DIRECTORY")
tokenizer = open_clip.get_tokenizer("local-dir:DIRECTORY")""",
    "hf": """from transformers import CLIPModel, CLIPProcessor

model = CLIPModel.from_pretrained("DIRECTORY")
processor = CLIPProcessor.from_pretrained("DIRECTORY")
inputs = processor(text=["a text"], images=picture, padding="max_length", truncation=True, return_tensors="pt")
outputs = model(**inputs)""",
    "onnx": """import onnxruntime

image = onnxruntime.InferenceSession("DIRECTORY/onnx/image.onnx")
text = onnxruntime.InferenceSession("DIRECTORY/onnx/text.onnx")
image_embeds = image.run(None, {"pixel_values": pixels})[0]  # (batch, 3, H, W) float32; see onnx/preprocessing.json
text_embeds = text.run(None, {"input_ids": tokens})[0]  # (batch, context_length) int64; see onnx/tokenizer.json""",
}


def export(
    run: Finished, directory: Path, formats: Sequence[str] | None = None, *, licence: str | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Write a run in ``formats``, or in all that its architecture permits.

    Returns:
        Content of ``export.json``: ``formats`` by name (files, or why it is missing), ``checks`` and ``files``.

    Raises:
        UserError: a format that was asked for is impossible, packages are missing, or ``directory`` holds something else.
    """
    check_target(directory, overwrite)
    if "onnx" in (formats or FORMATS):
        onnx_towers.check_packages()
    with made_beside(directory) as folder, torch.no_grad():
        student = towers.load(run.directory / STUDENT).eval()
        forms: list[Form] = []
        checks: dict[str, float] = {}
        for name in FORMATS:
            if formats is not None and name not in formats:
                continue
            missing = _impossible(run, name)
            if missing and formats is not None:
                raise UserError(key="format", value=name, reason=missing, fix="choose another, or `all` for what is possible")
            if not missing:
                checks |= _WRITERS[name](run, student, folder)
            forms.append(Form(name, _present(folder, name), _USAGE[name], missing))
        texts = tokenizer.check_written(folder, run.config["model_cfg"].get("text_cfg", {}))
        settings = {address: dict(run.plan.stages[address].settings) for address in run.run.stages}
        write_json(folder / "training.json", settings)
        write_atomic(folder / "README.md", card(run, forms, licence))
        files = {str(path.relative_to(folder)): sha256_of(path) for path in sorted(folder.rglob("*")) if path.is_file()}
        record = {
            "experiment": run.plan.experiment.name,
            "run": run.run.directory,
            "stages": list(run.run.stages),
            "metrics": run.metrics.sha256,
            "version": __version__,
            "formats": {
                form.name: {"missing": form.missing} if form.missing else {"files": list(form.files)} for form in forms
            },
            "checks": checks,
            "tokenizer": texts,
            "files": files,
        }
        write_json(folder / RECORD, record)
    return record


def _impossible(run: Finished, name: str) -> str:
    """Why a run has no such form; empty if it has."""
    if name == "onnx":
        return ""
    if run.deploys_teacher:
        return f"{run.method} is used with the teacher's text tower: the student alone is not what was measured"
    if name == "hf" and (options := transformers_clip.unsupported(run.config)):
        return f"CLIPModel of transformers has no equivalent of {'; '.join(options)}"
    return ""


def _open_clip(run: Finished, student: Any, folder: Path) -> dict[str, float]:
    for name in (CONFIG, WEIGHTS):
        shutil.copyfile(run.directory / STUDENT / name, folder / name)
    if run.config["model_cfg"].get("text_cfg", {}).get("hf_tokenizer_name"):  # open_clip looks for it in the directory itself
        _tokenizer(run, folder)
    return {}


def _transformers(run: Finished, student: Any, folder: Path) -> dict[str, float]:
    transformers_clip.write(student, run.config, folder)
    from transformers import CLIPModel

    with transformers_clip.quietly():
        loaded = CLIPModel.from_pretrained(folder)  # as its user will
    return {"hf": transformers_clip.largest_difference(student, loaded, run.config)}


def _onnx(run: Finished, student: Any, folder: Path) -> dict[str, float]:
    context, model, scaled = towers.Tapped(student).shapes().context_length, student, student
    if run.deploys_teacher:
        from cmapkd.training.stages import load_inference

        model = load_inference(run.settings, run.directory)
        scaled = towers.load(run.directory / DEPLOYED_TEACHER)
    (folder / "onnx").mkdir()
    found = onnx_towers.write(model, run.config, context, float(scaled.logit_scale.exp()), folder / "onnx")
    _tokenizer(run, folder / "onnx")
    return {f"onnx/{name}": value for name, value in found.items()}


_WRITERS = {"open_clip": _open_clip, "hf": _transformers, "onnx": _onnx}


def _tokenizer(run: Finished, folder: Path) -> None:
    """The tokenizer's files as ``transformers`` writes them; ``tokenizer.json`` alone is enough for ``tokenizers``."""
    text = run.config["model_cfg"].get("text_cfg", {})
    if text.get("hf_tokenizer_name"):
        name = run.settings["model"]["name"]
        towers.create(name, run.settings["model"]["config"], "random")  # makes a name of config/models known
        towers.tokenizer_of(name).save_pretrained(folder)
    elif text.get("vocab_size", transformers_clip.VOCABULARY) == transformers_clip.VOCABULARY:
        transformers_clip.tokenizer_for(text.get("context_length", 77)).save_pretrained(folder)


def _present(folder: Path, name: str) -> tuple[str, ...]:
    """Files of one form."""
    if name == "open_clip":
        return tuple(file for file in (CONFIG, WEIGHTS) if (folder / file).is_file())
    if name == "onnx":
        return tuple(str(path.relative_to(folder)) for path in sorted((folder / "onnx").glob("*")))
    return (
        tuple(path.name for path in sorted(folder.glob("*")) if path.is_file() and path.name not in (CONFIG, WEIGHTS))
        if (folder / "config.json").is_file()
        else ()
    )
