"""From a stage's settings to the modules it trains: model, objective, frozen teacher, each with its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cmapkd import objectives
from cmapkd.config.schedules import StageConfig
from cmapkd.errors import UserError
from cmapkd.files import atomic_path
from cmapkd.models import towers
from cmapkd.models.prompts import Prompts
from cmapkd.models.pyramid import LANGUAGE, Pyramid, needed_laterals
from cmapkd.models.towers import TowerOutputs
from cmapkd.objectives.base import Chunks, Objective, Representations, Surroundings, Teach, TeacherOutputs, Terms

MODEL = "model"
OBJECTIVE = "objective.safetensors"
TEACHER_PROMPTS = "teacher_prompts.safetensors"
RESULT = "stage.json"  # written last: a stage without it is not finished


def derive_seed(seed: int, *labels: object) -> int:
    """A seed of its own for each purpose, so that adding one module leaves the initialisation of the others alone."""
    text = ":".join(str(part) for part in (seed, *labels))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class Teacher(nn.Module):
    """The frozen teacher: embeddings and, where the objective needs it, its fitted pyramid or its learned prompts.

    With ``text`` off the captions of a batch are not encoded. ``adapter`` turns the student's pictures into the teacher's.
    """

    def __init__(
        self,
        model: towers.Tapped,
        pyramid: Pyramid | None,
        stage: StageConfig,
        taps: bool,
        patches: bool = False,
        prompts: Prompts | None = None,
        text: bool = True,
        grid: int | None = None,
        adapter: towers.Adapter | None = None,
    ) -> None:
        super().__init__()
        self.grid, self.adapter = grid, adapter
        self.model, self.pyramid, self.stage = model, pyramid, stage
        self.taps, self.patches = taps or pyramid is not None, patches
        self.prompts, self.text = prompts, text
        self.scale: Tensor
        self.register_buffer("scale", model.model.logit_scale.detach().exp(), persistent=False)
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, images: Tensor, tokens: Tensor) -> TeacherOutputs:
        """Outputs for ``images`` (b, 3, H, W) and ``tokens`` (b, N); `recall` gives the same from a cache."""
        read = tokens if self.text else None
        if self.adapter is not None:
            images = self.adapter(images)
        if self.prompts is not None:
            return TeacherOutputs(self.prompts(self.model, images, read))
        outputs = self.model(images, read, taps=self.taps, patches=self.patches)
        if self.pyramid is None:
            return TeacherOutputs(outputs)
        levels = self.pyramid(outputs, self.stage.visual_levels, self.stage.language_levels, self.grid)
        return TeacherOutputs(outputs, levels)

    @torch.no_grad()
    def of_images(self, images: Tensor, part: str) -> dict[str, Tensor]:
        """What is kept of ``images`` (b, 3, H, W): ``image`` (b, E), or the laterals of the pyramid (b, C, g, g) by level."""
        if self.adapter is not None:
            images = self.adapter(images)
        if part == "pyramid":
            assert self.pyramid is not None
            laterals: dict[str, Tensor] = self.pyramid.visual.laterals(self.model.image_taps(images)[1])
            return laterals
        if self.prompts is not None:
            return {"image": self.prompts.encode_image(self.model, images)}
        return {"image": self.model.model.encode_image(images, normalize=True)}

    @torch.no_grad()
    def of_texts(self, tokens: Tensor, part: str) -> dict[str, Tensor]:
        """What is kept of ``tokens`` (b, N): ``text`` (b, E), or the language levels (b, 4, D) as ``language``."""
        if part == "pyramid":
            assert self.pyramid is not None
            _, taps, mask, summary = self.model.text_taps(tokens)
            return {"language": self.pyramid.language(taps, mask, summary)}
        return {"text": self.encode_text(tokens)}

    def kept(self, parts: Sequence[str]) -> tuple[str, ...]:
        """Names of what a stage needs of the ``parts`` that a cache holds."""
        names = ("image", *(("text",) if self.text else ())) if "embeddings" in parts else ()
        return (*names, *needed_laterals(self.stage.visual_levels), "language") if "pyramid" in parts else names

    @torch.no_grad()
    def recall(self, kept: Mapping[str, Tensor]) -> TeacherOutputs:
        """The same as `forward`, as far as objectives use it, from what a cache holds (`kept`)."""
        image = kept["image"]
        said = TowerOutputs(image, kept.get("text", image.new_zeros(len(image), 0)), self.scale.to(image.dtype))
        if self.pyramid is None:
            return TeacherOutputs(said)
        visual_levels, language_levels = self.stage.visual_levels, self.stage.language_levels
        chosen = [LANGUAGE.index(level) for level in LANGUAGE if level in language_levels]
        maps = self.pyramid.visual.merge({level: kept[level] for level in needed_laterals(visual_levels)}, visual_levels)
        return TeacherOutputs(said, self.pyramid.bridged(maps, kept["language"][:, chosen]))

    def forget_towers(self) -> None:
        """Free what `recall` does not need; nothing can be encoded after that."""
        del self.model

    @torch.no_grad()
    def encode_text(self, tokens: Tensor) -> Tensor:
        """Normalised embeddings of ``tokens`` (n, N), (n, E), prompted if the teacher is."""
        if self.prompts is not None:
            return self.prompts.encode_text(self.model, tokens)
        encoded: Tensor = self.model.model.encode_text(tokens, normalize=True)
        return encoded


class Distillation(nn.Module):
    """What the engine trains: the model and the objective in one module, so heads of a loss are averaged and saved too."""

    def __init__(self, model: towers.Tapped, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def look_ahead(self, chunks: Chunks, teach: Teach) -> list[Representations]:
        """`Objective.look_ahead` on the trained model."""
        return self.objective.look_ahead(self.model, chunks, teach)

    def represent(
        self, images: Tensor, tokens: Tensor, teacher: TeacherOutputs | None, ahead: Representations | None = None
    ) -> Representations:
        """Per-sample representations in fp32, whatever the precision of the model; those of ``ahead`` are added."""
        outputs = self.objective.encode(self.model, images, tokens)
        own = self.objective.represent(outputs, teacher)
        return {name: value.float() for name, value in {**own, **(ahead or {})}.items()}

    def forward(
        self,
        images: Tensor,
        tokens: Tensor,
        teacher: TeacherOutputs | None,
        ahead: Representations | None = None,
        combine: bool = True,
    ) -> Terms | Representations:
        """The loss of this rank's rows, or their representations alone."""
        representations = self.represent(images, tokens, teacher, ahead)
        return self.objective.combine(representations) if combine else representations

    def train(self, mode: bool = True) -> Distillation:
        """Set the training mode, except that a model of which nothing is trained keeps its dropout off, like a teacher."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            self.model.eval()
        return self

    def group_of(self, parameter: str) -> str:
        """Group of a parameter by its name."""
        if parameter.startswith("objective."):
            return self.objective.group_of(parameter.removeprefix("objective."))
        return self.objective.model_group_of(parameter.removeprefix("model.model."))

    def checkpoint_activations(self) -> bool:
        """Have the trained model's blocks compute their activations again in the backward pass; False if they cannot.

        Prompts are put before blocks by hooks that are gone by then.
        """
        possible = self.objective.recomputes and hasattr(self.model.model, "set_grad_checkpointing")
        if possible:
            self.model.model.set_grad_checkpointing(True)
        return possible

    def freeze_all_but(self, groups: tuple[str, ...]) -> None:
        """Parameters outside ``groups`` get no gradient and do not change by a bit."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(self.group_of(name) in groups)


@dataclass
class Prepared:
    """Everything a stage computes with."""

    module: Distillation
    teacher: Teacher | None
    stage: StageConfig
    tokenizer: Any
    preprocess: Any


def prepare(settings: Mapping[str, Any], stages: Path) -> Prepared:
    """Build a stage's modules and load what it starts from.

    Args:
        settings: of the stage, as in the plan.
        stages: directory that holds all stages by address.
    """
    stage = StageConfig.model_validate(settings["stage"])
    seed, architecture = settings["seed"], settings["model"]
    parent = stages / settings["parent"] if settings["parent"] else None
    with seeded(derive_seed(seed, "model")):
        init = "random" if parent else settings["init"]
        stated = settings.get("preprocessing")
        raw = towers.create(architecture["name"], architecture["config"], init, key="student.init", preprocessing=stated)
    if parent:
        towers.load_weights(raw, parent / MODEL)
    model = towers.Tapped(raw)

    teacher_model = None
    if settings["teacher"]:
        teacher_model = towers.Tapped(towers.load(stages / settings["teacher"] / MODEL))
    surroundings = Surroundings(
        stage, settings["method"], model.shapes(), teacher_model.shapes() if teacher_model else None, settings["pyramid"]
    )
    with seeded(derive_seed(seed, "objective")):
        objective = objectives.build(settings["method"]["method"], surroundings)
    if parent:
        load_objective(objective, parent / OBJECTIVE)
    module = Distillation(model, objective)
    module.freeze_all_but(stage.trains)

    teacher = None
    if teacher_model is not None:
        _check_vocabularies(teacher_model, model)
    if teacher_model is not None and objective.needs_teacher:
        pyramid = None
        if settings["teacher_pyramid"]:
            pyramid = load_pyramid(
                stages / settings["teacher_pyramid"] / OBJECTIVE, teacher_model.shapes(), settings["pyramid"]
            )
        prompts = None
        if settings.get("teacher_prompts"):
            prompts = load_prompts(stages / settings["teacher_prompts"] / OBJECTIVE, teacher_model.shapes())
        teacher = Teacher(
            teacher_model,
            pyramid,
            stage,
            objective.needs_taps,
            objective.needs_patches,
            prompts,
            objective.needs_text,
            objective.grid,
            towers.Adapter(towers.preprocess_of(raw), towers.preprocess_of(teacher_model.model)),
        )
    return Prepared(module, teacher, stage, towers.tokenizer_of(architecture["name"]), towers.preprocess_of(raw))


def load_pyramid(path: Path, shapes: towers.TapShapes, sizes: Mapping[str, Any]) -> Pyramid:
    """The pyramid that a stage fitted for a model of these shapes."""
    pyramid = Pyramid(shapes, **sizes)
    pyramid.load_state_dict({name.removeprefix("pyramid."): value for name, value in load_file(path).items()})
    return pyramid


def load_prompts(path: Path, shapes: towers.TapShapes) -> Prompts:
    """The prompts that a stage learned for a model of these shapes."""
    weights = {name.removeprefix("prompts."): value for name, value in load_file(path).items()}
    layers = max(len(value) for value in weights.values())
    prompts = Prompts(shapes, weights["vision"].shape[1], layers, text="text" in weights)
    prompts.load_state_dict(weights)
    return prompts


def load_inference(settings: Mapping[str, Any], directory: Path) -> nn.Module:
    """The model that a run's result is used as, from the files that ``cmapkd.runs`` gathers; see ``Objective.inference``.

    Args:
        settings: of the run's last stage, of a method that deploys its teacher.
        directory: with ``student/``, ``teacher/`` and the modules of both.
    """
    stage = StageConfig.model_validate(settings["stage"])
    student, above = (towers.Tapped(towers.load(directory / name)) for name in ("student", "teacher"))
    prompts = None
    if (directory / TEACHER_PROMPTS).is_file():
        prompts = load_prompts(directory / TEACHER_PROMPTS, above.shapes())
    teacher = Teacher(above, None, stage, taps=False, prompts=prompts)
    surroundings = Surroundings(stage, settings["method"], student.shapes(), above.shapes(), settings["pyramid"])
    objective = objectives.build(settings["method"]["method"], surroundings)
    load_objective(objective, directory / OBJECTIVE)
    return objective.inference(student, teacher).eval().requires_grad_(False)


def _check_vocabularies(teacher: towers.Tapped, student: towers.Tapped) -> None:
    """Both models read the same token ids, so a different vocabulary or context would compare different sentences."""
    for name in ("vocab_size", "context_length"):
        theirs, ours = (getattr(getattr(tapped.model, "text", tapped.model), name, None) for tapped in (teacher, student))
        if theirs is not None and ours is not None and theirs != ours:
            raise UserError(
                key=f"student.model: {name}",
                value=ours,
                reason=f"the teacher has {theirs}",
                fix="choose models with one tokenizer",
            )


def load_objective(objective: Objective, path: Path) -> None:
    """Take over the modules an objective shares with the one of its parent stage; modules new in this stage stay fresh.

    Raises:
        UserError: a module that both have differs in its parameters.
    """
    stored = load_file(path)
    current = objective.state_dict()
    for child in {name.partition(".")[0] for name in stored} & {name.partition(".")[0] for name in current}:
        ours, theirs = (
            {n: tuple(v.shape) for n, v in state.items() if n.partition(".")[0] == child} for state in (current, stored)
        )
        if ours != theirs:
            raise UserError(
                key=str(path), reason=f"its module {child!r} has another shape than this stage's", fix="use one pyramid size"
            )
    objective.load_state_dict({name: value for name, value in stored.items() if name in current}, strict=False)


def save_objective(objective: Objective, path: Path) -> None:
    """Write an objective's modules; empty for a method without any."""
    with atomic_path(path) as temporary:
        save_file({name: value.detach().cpu().contiguous() for name, value in objective.state_dict().items()}, temporary)


def objective_modules(path: Path) -> set[str]:
    """Names of the top-level modules stored in an objective's file."""
    with safe_open(path, framework="pt") as file:
        return {name.partition(".")[0] for name in file.keys()}  # noqa: SIM118 - a safetensors handle is no mapping


class seeded:  # noqa: N801 - reads as a statement: `with seeded(seed):`
    """Global torch randomness from ``seed`` within a block; the state before it is restored."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __enter__(self) -> None:
        self._state = torch.get_rng_state()
        torch.manual_seed(self.seed)

    def __exit__(self, *exception: object) -> None:
        torch.set_rng_state(self._state)
