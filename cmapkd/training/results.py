"""What a stage leaves: its model, its objective's modules, and ``stage.json``, which is written last."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmapkd.data.shards import read_manifest
from cmapkd.files import digest, sha256_of, write_json
from cmapkd.fingerprint import training_code
from cmapkd.models import towers, weights
from cmapkd.models.places import content_digests
from cmapkd.models.weights import CONFIG, WEIGHTS
from cmapkd.paths import names_path, resolve
from cmapkd.plan import Stage
from cmapkd.provenance import Start, collect
from cmapkd.runs import stage_record
from cmapkd.training import distributed
from cmapkd.training.stages import MODEL, OBJECTIVE, RESULT, Prepared, save_objective

# The configuration has the preprocessing and the activation, which decide numbers as the weights do.
MODEL_FILES = (f"{MODEL}/{WEIGHTS}", f"{MODEL}/{CONFIG}")


def code_of(method: str) -> str:
    """Fingerprint of the code that a stage of ``method`` runs."""
    return training_code(method)


def finish(
    stage: Stage,
    prepared: Prepared,
    results: Path,
    directory: Path,
    started: Start,
    summary: dict[str, Any],
    bad: dict[str, Any],
    rests_on: Mapping[str, Mapping[str, str]],
) -> None:
    """Write a finished stage; ``rests_on`` has the digests of the files of its parents, by address."""
    settings = stage.settings
    names = [OBJECTIVE]
    if not prepared.module.objective.teacher_side:
        towers.save(prepared.module.model.model, settings["model"]["name"], directory / MODEL)
        names = [*MODEL_FILES, OBJECTIVE]
    save_objective(prepared.module.objective, directory / OBJECTIVE)
    files = {name: sha256_of(directory / name) for name in names}
    write_json(
        directory / RESULT,
        {
            "address": stage.address,
            "label": stage.label,
            "settings": settings,
            "parents": list(stage.parents),
            "rests_on": rests_on,
            "code": code_of(stage.method),
            "files": files,
            "summary": summary,
            "bad_samples": bad,
            "provenance": collect(started, config_digest=digest(settings), data_digests=data_digests(stage, results)),
        },
    )


def import_pretrained(stage: Stage, directory: Path, started: Start) -> None:
    """A pretrained model as a stage of its own, so that everything after it need not know where weights came from."""
    settings = stage.settings
    key = "teacher.pretrained" if stage.address.startswith("teacher-") else "student.init"
    init = str(resolve(settings["init"], key)) if names_path(settings["init"]) else settings["init"]
    source = source_of(settings["model"]["name"], init, key)
    name, stated = settings["model"]["name"], settings.get("preprocessing")
    model = towers.create(name, settings["model"]["config"], init, key, stated)
    towers.save(model, settings["model"]["name"], directory / MODEL)
    from safetensors.torch import save_file

    save_file({}, directory / OBJECTIVE)
    files = {name: sha256_of(directory / name) for name in (*MODEL_FILES, OBJECTIVE)}
    content = {
        "address": stage.address,
        "label": stage.label,
        "settings": settings,
        "parents": [],
        "rests_on": {},
        "code": code_of("pretrained"),
        "source": source,
    }
    write_json(
        directory / RESULT,
        {
            **content,
            "files": files,
            "summary": {"steps": 0},
            "provenance": {**collect(started, config_digest=digest(settings)), "weights": source},
        },
    )


def source_of(name: str, init: str, key: str) -> dict[str, Any]:
    """The file that pretrained weights come from, fetched if it is not here, with its digest.

    Returns:
        ``file`` and ``sha256`` of the weights; of a path also ``files``, the digests of all that decides what they are.

    Raises:
        UserError: it is not here and cannot be fetched, or there is no such file.
    """
    path = weights.locate(name, init, key)
    if path is None:
        file = weights.fetch(name, init, key)
        return {"file": file.name, "sha256": sha256_of(file)}
    files = content_digests(path, key)
    first = next(iter(files))
    return {"file": first, "sha256": files[first], "files": files, "digest": digest(files)}


def parents_files(stage: Stage, stages: Path) -> dict[str, dict[str, str]]:
    """Digests of the files of a stage's parents, by address; the files are compared with them.

    Raises:
        UserError: a parent is not finished, or one of its files is another one than it wrote.
    """
    return {parent: stage_record(stages / parent)["files"] for parent in stage.parents}


def origin_of(stage: Stage, results: Path) -> tuple[dict[str, dict[str, str]], str]:
    """What a training starts from: digests of its parents' files, and one digest of code, settings, data and these.

    Rank 0 compares the files. A checkpoint of another origin is not resumed from.
    """

    def compared() -> dict[str, dict[str, str]]:
        return parents_files(stage, results / "stages") if distributed.rank() == 0 else {}

    rests_on = distributed.together(compared, "comparing the parents of the stage with their digests")[0]
    data = data_digests(stage, results)
    return rests_on, digest({"code": code_of(stage.method), "settings": stage.settings, "data": data, "parents": rests_on})


def data_digests(stage: Stage, results: Path) -> dict[str, str]:
    return {name: read_manifest(results / "data" / name)["digest"] for name in stage.datasets}
