"""What an experiment consists of: every training as a stage addressed by the digest of all that goes into it.

Torch-free, because Snakemake, the paper and ``cmapkd plan`` read it. Two runs whose first stages agree in configuration,
data, seed and parent share them: the address is the same, so they are trained once. Code is not part of the address
(an address would then be lost with every edit); rules carry its fingerprint in ``params`` and rerun in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cmapkd.config.methods import CachedPart, CMAPKDConfig, PromptKDConfig, TeacherPromptsConfig
from cmapkd.config.overlap import overlap_settings
from cmapkd.config.schedules import StageConfig
from cmapkd.config.schema import ExperimentConfig, PreprocessingConfig
from cmapkd.errors import UserError, nearest
from cmapkd.files import digest, read_json, slug
from cmapkd.models import configs
from cmapkd.paths import portable_text

REPOSITORY = Path(__file__).parent.parent
CONFIG = REPOSITORY / "config"
TEACHER = "Teacher"


@dataclass(frozen=True)
class Stage:
    """One training (or loading) with its settings; ``address`` names its directory in ``results/<experiment>/stages/``."""

    address: str
    settings: dict[str, Any]
    parents: tuple[str, ...]  # addresses that must exist first
    label: str  # for people: "CMAPKD seed 0: coarse"

    @property
    def method(self) -> str:
        return str(self.settings["method"]["method"])

    @property
    def datasets(self) -> tuple[str, ...]:
        """Names of the data sets it reads."""
        return tuple(dict.fromkeys(reference.partition("/")[0] for reference in self.settings.get("distillation", {})))


@dataclass(frozen=True)
class Run:
    """One row of the tables at one seed: the chain of its stages; the last one's model is evaluated."""

    name: str
    seed: int
    stages: tuple[str, ...]

    @property
    def directory(self) -> str:
        return f"{slug(self.name)}/{self.seed}"


@dataclass
class Plan:
    """All stages and runs of an experiment."""

    experiment: ExperimentConfig
    stages: dict[str, Stage] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    teacher: str = ""

    def run(self, directory: str) -> Run:
        """The run of ``<slug>/<seed>``."""
        for run in self.runs:
            if run.directory == directory:
                return run
        fix = nearest(directory, [r.directory for r in self.runs], listing="`cmapkd plan`")
        raise UserError(key="run", value=directory, reason="is not in the plan", fix=fix)

    def deployed_teacher(self, run: Run) -> dict[str, str]:
        """Addresses of the stages of the teacher that inference with a run's result needs, by their key in its settings."""
        method = self.experiment.runs.get(run.name)
        if method is None or not method.deploys_teacher:
            return {}
        settings = self.stages[run.stages[-1]].settings
        return {key: settings[key] for key in ("teacher", "teacher_prompts") if settings.get(key)}

    def add(self, name: str, settings: Mapping[str, Any], parents: tuple[str | None, ...], label: str) -> str:
        """Register a stage (once) and return its address."""
        address = f"{name}-{digest(settings, length=12)}"
        known = tuple(parent for parent in parents if parent is not None)
        self.stages.setdefault(address, Stage(address, dict(settings), known, label))
        return address


def model_settings(name: str, key: str) -> dict[str, Any]:
    """An architecture by name; that of a file in ``config/models/`` with its content, so that an edit changes addresses.

    Raises:
        UserError: no such architecture, or a patch that does not divide the image; ``key`` is where the experiment names it.
    """
    own = {file.stem: file for file in (CONFIG / "models").glob("*.json")}
    if name in own:
        content = read_json(own[name], dict, fix="mend the file, or name another model")
        configs.check_patches(f"{key}: {name}", content)
        return {"name": name, "config": content}
    known = [*own, *configs.shipped()]
    if name not in known and configs.shipped():  # where open_clip is not installed, nothing is known about its names
        reason = "is neither a file of config/models nor a model of open_clip"
        raise UserError(key=key, value=name, reason=reason, fix=nearest(name, known))
    if (content := configs.content_of(name, None)) is not None:
        configs.check_patches(f"{key}: {name}", content)
    return {"name": name, "config": None}


def deepspeed_settings(name: str) -> dict[str, Any]:
    """Content of ``config/deepspeed/<name>.json``.

    Raises:
        UserError: no such file, or no such ZeRO stage.
    """
    known = {file.stem: file for file in (CONFIG / "deepspeed").glob("*.json")}
    if name not in known:
        reason = f"no file {name}.json in config/deepspeed"
        raise UserError(key="training.deepspeed", value=name, reason=reason, fix=nearest(name, list(known)))
    content = dict(read_json(known[name], dict, fix="mend the file, or name another one"))
    stage = content.get("zero_optimization", {}).get("stage", 0)
    if stage not in (0, 1, 2, 3):
        raise UserError(
            key=f"config/deepspeed/{name}.json: zero_optimization.stage",
            value=stage,
            reason="is no stage of ZeRO",
            fix="use 0, 1, 2 or 3",
        )
    return content


def uncut(deepspeed: Mapping[str, Any]) -> dict[str, Any]:
    """DeepSpeed settings without what only says how the global batch and the optimiser's states are cut into pieces."""
    return {**deepspeed, "zero_optimization": {"stage": 0}, "gradient_accumulation_steps": 1}


def make_plan(experiment: ExperimentConfig) -> Plan:
    """Resolve an experiment into its stages and runs."""
    plan = Plan(experiment)
    deepspeed = deepspeed_settings(experiment.training.deepspeed)
    accumulation = int(deepspeed.get("gradient_accumulation_steps", 1))
    cut = experiment.training.ranks * accumulation
    if experiment.training.global_batch % cut:
        raise UserError(
            key="training.global_batch",
            value=experiment.training.global_batch,
            reason="is not divisible by training.ranks x gradient_accumulation_steps = "
            f"{experiment.training.ranks} x {accumulation}",
            fix=f"use a multiple of {cut}, fewer ranks, or another file of config/deepspeed",
        )
    _check_tokenizers(experiment)
    if deepspeed.get("zero_optimization", {}).get("stage") == 3:
        _check_whole_weights(experiment)
    # Ranks, workers, logging and checkpoints do not change what is computed; they stay out of the address, and so does how the
    # batch is cut (`uncut`). Retries do when one happens, and `stage.json` then tells: with an address of its own, every
    # training would be lost to a precaution.
    operational = {"ranks", "workers", "cache_bytes", "log_every", "checkpoint_minutes", "bad_samples", "nan_retries"}
    operational |= {"activation_checkpointing", "compile"}
    operational |= {"oom_retries", "stop_margin_minutes", "lock_wait_minutes", "lock_stale_minutes", "barrier_minutes"}
    shared = experiment.training.model_dump(mode="json", exclude={"deepspeed", *operational})
    if shared["augmentation"]["views"] is None:
        del shared["augmentation"]["views"]
    common = {
        "training": shared,
        "deepspeed": uncut(deepspeed),
        "distillation": {
            reference: (config := experiment.datasets[reference.partition("/")[0]]).model_dump(
                mode="json", exclude=set(config.operational)
            )
            for reference in experiment.distillation
        },
    }
    if (overlap := overlap_settings(experiment))["distillation"]:  # pictures that are left out change what is trained on
        common["overlap"] = overlap
    plan.teacher = _add_teacher(plan, common)
    for name, method in experiment.runs.items():
        for seed in experiment.seeds:
            plan.runs.append(_add_run(plan, common, name, method, seed))
    _check_slugs(plan)
    return plan


def _check_tokenizers(experiment: ExperimentConfig) -> None:
    if not any(method.uses_teacher for method in experiment.runs.values()):
        return
    models = []
    for name, key in ((experiment.teacher.model, "teacher.model"), (experiment.student.model, "student.model")):
        content = configs.content_of(name, model_settings(name, key)["config"])
        if content is None:  # the check at the start of a stage remains
            return
        models.append((name, content))
    configs.check_tokenizers(*models)


def _check_whole_weights(experiment: ExperimentConfig) -> None:
    for name, method in experiment.runs.items():
        if isinstance(method, CMAPKDConfig) and method.policy == "alsn" and method.alsn.objective == "task":
            raise UserError(
                key=f"runs.{name}.alsn.objective",
                value="task",
                reason=f"takes a step with all weights of the student at once, and with training.deepspeed = "
                f"{experiment.training.deepspeed!r} (ZeRO 3) no rank has them",
                fix="use a file of config/deepspeed with ZeRO 0, 1 or 2",
            )


def _add_teacher(plan: Plan, common: dict[str, Any]) -> str:
    teacher = plan.experiment.teacher
    model = model_settings(teacher.model, "teacher.model")
    if teacher.pretrained is not None:
        return _add_pretrained(plan, "teacher", model, portable_text(teacher.pretrained), teacher.preprocessing)
    assert teacher.train is not None  # the schema asks for exactly one of the two
    stage = StageConfig(name="teacher", epochs=teacher.train.epochs, lr=teacher.train.lr, trains=("student", "heads"))
    stated = _stated(teacher.preprocessing)
    settings = _settings(common, model, "random", {"method": "scratch"}, stage, teacher.train.seed, **stated)
    return plan.add("teacher", settings, (), "teacher")


def _stated(preprocessing: PreprocessingConfig | None) -> dict[str, Any]:
    """A stage's setting of how images are prepared; nothing where the experiment states nothing, so addresses stay."""
    return {"preprocessing": preprocessing.given()} if preprocessing is not None else {}


def _add_pretrained(
    plan: Plan, role: str, model: dict[str, Any], init: str, preprocessing: PreprocessingConfig | None = None
) -> str:
    settings = {"kind": "pretrained", "model": model, "init": init, "method": {"method": "pretrained"}, "seed": 0}
    return plan.add(role, {**settings, **_stated(preprocessing)}, (), f"{role} (pretrained)")


def _add_teacher_pyramid(plan: Plan, common: dict[str, Any], method: CMAPKDConfig) -> str:
    mode, late = method.teacher_pyramid, method.similarity == "late"
    experiment = plan.experiment
    options = experiment.teacher.pyramid
    stage = StageConfig(name="teacher-pyramid", epochs=options.epochs, lr=options.lr, trains=("pyramid",))
    settings = _settings(
        common,
        model_settings(experiment.teacher.model, "teacher.model"),
        plan.teacher,
        {
            "method": "teacher_pyramid",
            "temperature": options.temperature,
            "fit": mode == "fit",
            **({"cells": method.cells} if late else {}),
        },
        stage,
        options.seed,
        pyramid=experiment.pyramid.model_dump(mode="json"),
        parent=plan.teacher,
    )
    return plan.add("teacher-pyramid", settings, (plan.teacher,), f"teacher pyramid ({mode}{', late' if late else ''})")


def _add_teacher_prompts(plan: Plan, common: dict[str, Any], options: TeacherPromptsConfig) -> str:
    stage = StageConfig(name="teacher-prompts", epochs=options.epochs, lr=options.lr, trains=("heads",))
    settings = _settings(
        common,
        model_settings(plan.experiment.teacher.model, "teacher.model"),
        plan.teacher,
        {"method": "teacher_prompts", **options.model_dump(mode="json", exclude={"epochs", "lr", "seed"})},
        stage,
        options.seed,
        parent=plan.teacher,  # the model that gets prompts
        teacher=plan.teacher,  # the same without them
    )
    return plan.add("teacher-prompts", settings, (plan.teacher,), "teacher prompts")


def _add_teacher_cache(plan: Plan, common: dict[str, Any], part: CachedPart, said: Mapping[str, str | None]) -> str:
    """A stage that keeps one part of what the teacher, with its pyramid or its prompts, says of the training samples."""
    experiment = plan.experiment
    assert experiment.teacher.cache is not None
    precision = experiment.teacher.cache.precision
    others = ("teacher_pyramid",) if part == "pyramid" else ("teacher_prompts",)
    by = {key: address for key in ("teacher", *others, "student") if (address := said[key]) is not None}
    settings: dict[str, Any] = {
        "kind": "cache",
        "method": {"method": "teacher_cache"},
        "part": part,
        # Vectors are small, and kept in half precision at least.
        "precision": precision if part == "pyramid" or precision == "fp32" else "fp16",
        **by,
        "pyramid": experiment.pyramid.model_dump(mode="json") if part == "pyramid" else None,
        # Pictures and texts are prepared as for the student.
        "model": model_settings(experiment.student.model, "student.model"),
        "init": portable_text(experiment.student.init),
        **_stated(experiment.student.preprocessing),
        "augmentation": common["training"]["augmentation"],
        "max_pixels": common["training"]["max_pixels"],
        **{key: common[key] for key in ("distillation", "overlap") if key in common},
    }
    label = f"teacher's {part}, kept" + (" (prompted)" if by.get("teacher_prompts") else "")
    return plan.add("teacher-cache", settings, tuple(by.values()), label)


def _add_run(plan: Plan, common: dict[str, Any], name: str, method: Any, seed: int) -> Run:
    experiment = plan.experiment
    teacher = plan.teacher if method.uses_teacher else None
    pyramid = _add_teacher_pyramid(plan, common, method) if isinstance(method, CMAPKDConfig) else None
    prompts = _add_teacher_prompts(plan, common, method.teacher_prompts) if isinstance(method, PromptKDConfig) else None
    student = model_settings(experiment.student.model, "student.model")
    parent: str | None = None
    if experiment.student.init != "random":  # fetched and read once for all runs, like the teacher's
        init = portable_text(experiment.student.init)
        parent = _add_pretrained(plan, "student", student, init, experiment.student.preprocessing)
    start = 0.0
    addresses = []
    said = {"teacher": teacher, "teacher_pyramid": pyramid, "teacher_prompts": prompts, "student": parent}
    for stage in method.stages(experiment.schedules[method.schedule]):
        parts: tuple[CachedPart, ...] = method.cached_parts(stage) if experiment.teacher.cache is not None else ()
        caches = {part: _add_teacher_cache(plan, common, part, said) for part in parts}
        settings = _settings(
            common,
            student,
            portable_text(experiment.student.init),
            method.stage_options(stage),
            stage,
            seed,
            teacher=teacher,
            teacher_pyramid=pyramid,
            pyramid=experiment.pyramid.model_dump(mode="json") if method.uses_pyramid else None,
            parent=parent,
            start_epochs=start,
            **_stated(experiment.student.preprocessing),
            **({"teacher_prompts": prompts} if prompts else {}),
            **({"teacher_cache": caches} if caches else {}),
        )
        before = (parent, teacher, pyramid, prompts, *caches.values())
        parent = plan.add(stage.name, settings, before, f"{name}, seed {seed}: {stage.name}")
        addresses.append(parent)
        start += stage.epochs
    if not addresses:
        raise UserError(
            key=f"runs.{name}.schedule", value=method.schedule, reason="leaves no stage that trains anything", fix="add one"
        )
    return Run(name, seed, tuple(addresses))


def _settings(
    common: dict[str, Any],
    model: dict[str, Any],
    init: str,
    method: dict[str, Any],
    stage: StageConfig,
    seed: int,
    **rest: Any,
) -> dict[str, Any]:
    defaults = {"kind": "train", "parent": None, "teacher": None, "teacher_pyramid": None, "pyramid": None, "start_epochs": 0.0}
    own = {"model": model, "init": init, "method": method, "stage": stage.model_dump(mode="json"), "seed": seed}
    return {**common, **defaults, **own, **rest}


def _check_slugs(plan: Plan) -> None:
    names: dict[str, str] = {slug(TEACHER).lower(): TEACHER}
    for run in plan.runs:
        other = names.setdefault(slug(run.name).lower(), run.name)
        if other != run.name:
            same = "the same directory name" if slug(other) == slug(run.name) else "a directory name that differs in case alone"
            raise UserError(
                key=f"runs.{run.name}",
                reason=f"gets {same} as {other!r} ({slug(run.name)})",
                fix="rename one of them",
            )
