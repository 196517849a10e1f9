"""Models, stages and batches that are small enough for a test, each a pure function of its arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import torch
from torch import Tensor

from cmapkd import objectives
from cmapkd.config.methods import AnyMethod, MethodConfig
from cmapkd.config.schedules import StageConfig
from cmapkd.models import towers
from cmapkd.models.prompts import Prompts
from cmapkd.models.pyramid import Pyramid, PyramidOutputs
from cmapkd.objectives.base import Objective, Surroundings, TeacherOutputs
from cmapkd.training.engine import Engine
from cmapkd.training.stages import Distillation, Teacher, seeded

VOCABULARY, CONTEXT, IMAGE = 64, 12, 24
START, END = VOCABULARY - 2, VOCABULARY - 1  # as in CLIP: end-of-text has the highest id, padding is 0
PYRAMID = {"channels": 8, "text_channels": 12, "smoothing": "dense", "phrase_window": 3, "heads": 2}
# Every method of the configuration, also one that is added later; those of the teacher's own stages are named by no run.
METHODS: dict[str, type[MethodConfig]] = {cls.model_fields["method"].default: cls for cls in get_args(get_args(AnyMethod)[0])}
TEACHER_STAGES: dict[str, dict[str, Any]] = {
    "teacher_pyramid": {"temperature": 0.07, "fit": True},
    "teacher_prompts": {"tokens": 2, "layers": 3, "image_weight": 10.0, "text_weight": 25.0, "logits_weight": 1.0},
}


def architecture(
    patch: int = 8,
    width: int = 32,
    layers: int = 4,
    embed: int = 16,
    image: int = IMAGE,
    custom_text: bool = False,
    **text: Any,
) -> dict[str, Any]:
    """An open_clip model configuration; the image grid is ``image / patch``."""
    return {
        "embed_dim": embed,
        **({"custom_text": True} if custom_text else {}),
        "vision_cfg": {"image_size": image, "patch_size": patch, "width": width, "layers": layers, "head_width": 16},
        "text_cfg": {"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": 32, "heads": 2, "layers": 4, **text},
    }


def model(seed: int = 0, name: str = "tiny", **options: Any) -> towers.Tapped:
    """A random tapped model."""
    with seeded(seed):
        return towers.Tapped(towers.create(name, architecture(**options), "random"))


def student(seed: int = 0) -> towers.Tapped:
    """A CLIP-class model with an odd grid of 3 x 3."""
    return model(seed, "tiny-student")


def teacher_model(seed: int = 1) -> towers.Tapped:
    """A CustomTextCLIP-class model of another width, depth, grid and embedding size than the student."""
    return model(seed, "tiny-teacher", patch=4, width=48, layers=5, embed=24, custom_text=True)


def images(count: int, seed: int = 0, size: int = IMAGE) -> Tensor:
    """(count, 3, size, size) pictures of normal noise."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def tokens(count: int, seed: int = 0, context: int = CONTEXT, shortest: int = 1, longest: int | None = None) -> Tensor:
    """(count, context) captions of random words between start and end-of-text, then padding."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.zeros(count, context, dtype=torch.int64)
    for row in rows:
        words = int(torch.randint(shortest, (longest or context - 2) + 1, (), generator=generator))
        row[0], row[words + 1] = START, END
        row[1 : words + 1] = torch.randint(1, START, (words,), generator=generator)
    return rows


def stage(levels: int = 4, **options: Any) -> StageConfig:
    """A stage over the ``levels`` topmost levels."""
    visual, language = ("P2", "P3", "P4", "P5")[4 - levels :], ("L1", "L2", "L3", "L4")[4 - levels :]
    options = {"name": "stage", "epochs": 1, "lr": 1e-3, "trains": ("student", "pyramid", "alsn", "heads"), **options}
    return StageConfig.model_validate({"visual_levels": visual, "language_levels": language, **options})


def method_options(method: str, of: StageConfig, **options: Any) -> dict[str, Any]:
    """A method's options as they stand in a stage's settings."""
    if method in TEACHER_STAGES:
        return {"method": method, **TEACHER_STAGES[method], **options}
    return dict(METHODS[method](**options).stage_options(of))


def uses_pyramid(method: str) -> bool:
    """Whether a method's objective has a pyramid."""
    return method == "teacher_pyramid" or (method in METHODS and METHODS[method].uses_pyramid)


def objective(
    method: str,
    of: StageConfig,
    shapes: towers.TapShapes,
    theirs: towers.TapShapes | None = None,
    seed: int = 2,
    **options: Any,
) -> Objective:
    """An objective for models of the given shapes."""
    pyramid: Mapping[str, Any] | None = PYRAMID if uses_pyramid(method) else None
    with seeded(seed):
        return objectives.build(method, Surroundings(of, method_options(method, of, **options), shapes, theirs, pyramid))


def setup(method: str, of: StageConfig, seed: int = 0, **options: Any) -> tuple[Distillation, Teacher | None]:
    """What a stage trains, and its frozen teacher with a random pyramid (``scratch`` and ``teacher_pyramid`` have none)."""
    pupil = student(seed)
    if method == "teacher_prompts":  # the teacher with prompts, and without
        pupil = teacher_model(seed + 1)
        module = Distillation(pupil, objective(method, of, pupil.shapes(), pupil.shapes(), seed=seed + 2, **options))
        teacher: Teacher | None = Teacher(teacher_model(seed + 1), None, of, taps=False)
    elif method == "teacher_pyramid" or not METHODS[method].uses_teacher:
        module, teacher = Distillation(pupil, objective(method, of, pupil.shapes(), seed=seed + 2, **options)), None
    else:
        above = teacher_model(seed + 1)
        module = Distillation(pupil, objective(method, of, pupil.shapes(), above.shapes(), seed=seed + 2, **options))
        with seeded(seed + 3):
            pyramid = Pyramid(above.shapes(), **PYRAMID) if uses_pyramid(method) else None
            prompts = Prompts(above.shapes(), 2, 3) if method == "promptkd" else None
        needs = module.objective
        teacher = Teacher(above, pyramid, of, needs.needs_taps, needs.needs_patches, prompts, needs.needs_text, needs.grid)
        module.objective.start(teacher, Texts())
        teacher = teacher if module.objective.needs_teacher else None
    module.freeze_all_but(of.trains)
    return module, teacher


class Texts:
    """Training texts: 30 captions and three classes in two templates."""

    def __init__(self, captions: Tensor | None = None) -> None:
        self.tokens = tokens(30, seed=5) if captions is None else captions

    def captions(self, count: int) -> Tensor:
        return self.tokens[:count]

    def classes(self) -> list[Tensor]:
        return list(tokens(6, seed=6).split(2))


def teach(teacher: Teacher | None, pictures: Tensor, captions: Tensor) -> TeacherOutputs | None:
    """The teacher's outputs, if there is a teacher."""
    return teacher(pictures, captions) if teacher is not None else None


TRAINING: dict[str, Any] = {"weight_decay": 0.1, "betas": (0.9, 0.98), "eps": 1e-6, "warmup": 0.0}


def engine(
    module: Distillation,
    teacher: Teacher | None,
    of: StageConfig,
    batch: int,
    accumulation: int = 1,
    steps: int = 4,
    **training: Any,
) -> Engine:
    """A DeepSpeed engine in fp32 on the CPU; needs a process group."""
    deepspeed = {"zero_optimization": {"stage": 0}, "gradient_clipping": 1.0, "gradient_accumulation_steps": accumulation}
    shared = {**TRAINING, "global_batch": batch, **training}
    return Engine(module, teacher, of, shared, deepspeed, steps, torch.device("cpu"))


def pyramid_tensors(outputs: PyramidOutputs) -> dict[str, Tensor]:
    """All tensors of a pyramid's outputs by name."""
    flat = {f"maps.{level}": maps for level, maps in outputs.maps.items()}
    return flat | {name: getattr(outputs, name) for name in ("pooled", "language", "visual_as_language", "language_as_visual")}
