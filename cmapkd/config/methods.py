"""Options of every method. A method is one class here and one file of the same name in ``cmapkd/objectives/``.

They live apart from the objectives so that the workflow and the paper can read an experiment without importing torch.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field as PydanticField
from pydantic import model_validator

from cmapkd.config.base import Config, Field, Search
from cmapkd.config.schedules import LANGUAGE_LEVELS, VISUAL_LEVELS, LanguageLevel, Policy, StageConfig, VisualLevel

CachedPart = Literal["embeddings", "pyramid"]  # of the teacher's outputs, see `cmapkd/training/teacher_cache.py`


class MethodConfig(Config):
    """What every run has in common, whatever its method."""

    schedule: str = Field("standard", description="name of one of the experiment's `schedules`")
    lr_scale: float = Field(
        1.0, gt=0, search=Search(0.4, 3), description="factor on every learning rate of the schedule (a tuned value per method)"
    )
    group: Literal["method", "ablation"] = Field(
        "method", description="which tables show the run: those that compare methods, or the ablation table"
    )

    search: tuple[str, ...] = Field(
        (), description="keys of this run that `cmapkd tune` searches; empty: all that have a range and are not off"
    )

    # Options that are no part of a stage's address: worked into the stages already, or about presentation or search alone.
    unaddressed: ClassVar[frozenset[str]] = frozenset({"schedule", "lr_scale", "group", "search"})
    uses_teacher: ClassVar[bool] = True
    uses_pyramid: ClassVar[bool] = False
    note: ClassVar[str] = ""  # footnote of its rows in tables: what sets it apart from the published method
    stage_names: ClassVar[tuple[str, ...]] = ()  # stages that the method tells apart by name; empty: any name, all alike
    deploys_teacher: ClassVar[bool] = False  # whether inference needs the teacher, beside or instead of the student

    def stages(self, schedule: tuple[StageConfig, ...]) -> tuple[StageConfig, ...]:
        """The stages this run goes through, with the run's own differences worked into them."""
        return tuple(
            stage.model_copy(
                update={
                    "lr": stage.lr * self.lr_scale,
                    "group_lr": {group: lr * self.lr_scale for group, lr in stage.group_lr.items()},
                }
            )
            for stage in schedule
        )

    def not_searched(self) -> frozenset[str]:
        """Keys (nested ones with dots) that ``cmapkd tune`` leaves alone in this run because nothing reads them."""
        return frozenset()

    def cached_parts(self, stage: StageConfig) -> tuple[CachedPart, ...]:
        """What a stage needs of the teacher, if a cache of its outputs holds all of it; else nothing: it asks the teacher."""
        return ("embeddings",) if self.uses_teacher else ()

    def stage_options(self, stage: StageConfig) -> dict[str, Any]:
        """The options that bear on one stage, JSON-able: they are part of its address, so what is equal is trained once."""
        return self.model_dump(mode="json", exclude=set(self.unaddressed))


class ScratchConfig(MethodConfig):
    """CLIP's contrastive loss alone: the student without a teacher."""

    method: Literal["scratch"] = "scratch"
    uses_teacher: ClassVar[bool] = False

    def stage_options(self, stage: StageConfig) -> dict[str, Any]:
        return {"method": self.method}


class KDConfig(MethodConfig):
    """Knowledge distillation of the image-text logits (Hinton et al. 2015, in the form of open_clip)."""

    method: Literal["kd"] = "kd"
    weight: float = Field(1.0, ge=0, search=Search(0.3, 30), description="weight of the distillation term beside the task loss")
    temperature: float = Field(
        1.0, gt=0, search=Search(0.5, 8), description="divides the logits of both models; the term is multiplied by its square"
    )
    teacher_scale: float | None = Field(
        None, gt=0, description="logit scale applied to the teacher's cosine similarities; null: the teacher's own"
    )


class FitNetConfig(MethodConfig):
    """FitNet (Romero et al., ICLR 2015): first the lower half of the student follows a hint of the teacher, then KD."""

    method: Literal["fitnet"] = "fitnet"
    schedule: str = Field("fitnet", description="name of one of the experiment's `schedules`; stages `hint` and `kd`")
    hint_weight: float = Field(100.0, gt=0, description="weight of the hint losses (stage `hint`)")
    weight: float = Field(
        1.0, ge=0, search=Search(0.3, 30), description="weight of the distillation term beside the task loss (stage `kd`)"
    )
    temperature: float = Field(
        1.0,
        gt=0,
        search=Search(0.5, 8),
        description="divides the logits of both models; the term is multiplied by its square (stage `kd`)",
    )
    teacher_scale: float | None = Field(
        None, gt=0, description="logit scale applied to the teacher's cosine similarities; null: the teacher's own (stage `kd`)"
    )

    stage_names: ClassVar[tuple[str, ...]] = ("hint", "kd")

    def cached_parts(self, stage: StageConfig) -> tuple[CachedPart, ...]:
        return () if stage.name == "hint" else super().cached_parts(stage)

    def stage_options(self, stage: StageConfig) -> dict[str, Any]:
        options = super().stage_options(stage)
        names = {"method", "hint_weight"} if stage.name == "hint" else set(options) - {"hint_weight"}
        return {name: options[name] for name in options if name in names}


class C2KDConfig(MethodConfig):
    """C2KD (Huo et al., CVPR 2024): cross-modal distillation through proxies, of samples whose rankings agree."""

    method: Literal["c2kd"] = "c2kd"
    proxy_weight: float = Field(1.0, gt=0, search=Search(0.1, 3), description="distillation between each model and its proxy")
    selection_weight: float = Field(
        1.0, ge=0, search=Search(0.1, 10), description="distillation between the proxies of the samples that are selected"
    )
    temperature: float = Field(
        1.0, gt=0, search=Search(0.5, 8), description="divides all logits of these terms, which are multiplied by its square"
    )
    candidates: int = Field(
        32,
        ge=2,
        unit="candidates",
        description="the teacher proxy's best candidates, whose ranking by both proxies is compared",
    )

    note: ClassVar[str] = "The teacher's backbone is frozen; of its side only the proxy is trained."


class LLaVAKDConfig(MethodConfig):
    """LLaVA-KD (Cai et al., ICCV 2025), re-interpreted for a dual encoder: pre-training, fine-tuning and distilled fine-tuning.

    The default weights are this project's: the paper's belong to terms over other positions. Its stage `dpt` trains the group
    `projections`, what maps the student's frozen towers to the embeddings, alone.
    """

    method: Literal["llava_kd"] = "llava_kd"
    schedule: str = Field("llava_kd", description="name of one of the experiment's `schedules`; stages `dpt`, `sft` and `dft`")
    answer_weight: float = Field(
        1.0, ge=0, search=Search(0.1, 10), description="KL of the image-text logits (stages `dpt` and `dft`)"
    )
    visual_weight: float = Field(
        1.0, ge=0, search=Search(0.05, 5), description="KL of each patch's logits over captions (stages `dpt` and `dft`)"
    )
    relation_weight: float = Field(
        0.5, ge=0, search=Search(0.05, 5), description="distance of the patches' self-similarities (stages `dpt` and `dft`)"
    )

    note: ClassVar[str] = "Re-interpreted for a dual encoder: captions and patches stand for answers and image positions."
    stage_names: ClassVar[tuple[str, ...]] = ("dpt", "sft", "dft")

    def cached_parts(self, stage: StageConfig) -> tuple[CachedPart, ...]:
        return ()  # `sft` has no teacher, the others compare its patches

    def stage_options(self, stage: StageConfig) -> dict[str, Any]:
        return {"method": self.method} if stage.name == "sft" else super().stage_options(stage)


class CLIPKDConfig(MethodConfig):
    """CLIP-KD (Yang et al., CVPR 2024): feature, relation and interactive contrastive distillation of CLIP's embeddings."""

    method: Literal["clip_kd"] = "clip_kd"
    crd_weight: float = Field(
        1.0, ge=0, search=Search(0.1, 10), description="contrastive relational distillation: KL of the image-text logits"
    )
    icl_weight: float = Field(
        1.0, ge=0, search=Search(0.1, 10), description="interactive contrastive learning: student rows against teacher columns"
    )
    fd_weight: float = Field(
        2000.0, ge=0, search=Search(200, 20_000), description="feature distillation: mean squared error of projected embeddings"
    )
    gd_weight: float = Field(
        0.0,
        ge=0,
        description="gradient distillation: mean squared error of contrastive gradients; 0 is off, as in the paper",
    )
    afd_weight: float = Field(
        0.0,
        ge=0,
        description="augmented feature distillation: contrastive loss of fused embeddings; 0 is off, as in the paper",
    )


class CMAPKDWeights(Config):
    """Weights of the loss families."""

    intra: float = Field(1.0, ge=0, search=Search(0.2, 20), description="intra-modal feature distillation")
    align: float = Field(0.5, ge=0, search=Search(0.05, 5), description="cross-modal alignment")
    relation: float = Field(0.3, ge=0, description="relational distillation")
    task: float = Field(
        0.1, ge=0, search=Search(0.03, 3), description="contrastive task loss on the embeddings used at inference"
    )


class ALSNConfig(Config):
    """Adaptive layer-selection network."""

    hidden: tuple[int, int] = Field((512, 256), description="widths of the two hidden layers")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout after the first hidden layer")
    temperature: float = Field(1.0, gt=0, description="temperature of the softmax over levels (`tau`)")
    entropy_weight: float = Field(
        0.1, ge=0, description="weight of the negative entropies of both weight vectors, against collapse"
    )
    objective: Literal["match", "task"] = Field(
        "match",
        description="what the weights minimise: `match`, the weighted distances themselves, as published (which rewards the "
        "level that is easiest to match); `task`, the task loss of held-out pairs after one step on the weighted distances",
    )


class EmbeddingLevelConfig(Config):
    """The final embedding as one more level of both pyramids: the same families of losses on what inference uses.

    All weights 0, the default, is the method as published, in which the task loss alone reaches that embedding.
    """

    intra: float = Field(
        0.0,
        ge=0,
        search=Search(1, 40),
        description="2 - 2 cos of the student's projected embeddings and the teacher's, both modalities",
    )
    align: float = Field(
        0.0, ge=0, search=Search(0.1, 10), description="KL of the image-text distributions, each model at its own scale"
    )
    cross: float = Field(
        0.0, ge=0, search=Search(0.1, 10), description="contrastive loss of the student's rows against the teacher's columns"
    )
    relation: float = Field(0.0, ge=0, description="distance of the Gram matrices of the embeddings")


class CMAPKDConfig(MethodConfig):
    """Adaptive pyramid-based cross-modal knowledge distillation, the method of this project."""

    method: Literal["cmapkd"] = "cmapkd"
    schedule: str = Field("progressive", description="name of one of the experiment's `schedules`")
    weights: CMAPKDWeights = Field(CMAPKDWeights(), description="weights of the loss families")
    beta: float = Field(0.5, ge=0, description="weight of the pyramid alignment beside the single-level contrastive loss")
    gamma: float = Field(0.3, ge=0, description="weight of the relation between levels beside the relation between samples")
    temperature: float = Field(0.07, gt=0, description="temperature of the single-level contrastive loss")
    temperature_kd: float = Field(0.1, gt=0, description="temperature of the level-to-level distributions (`tau_kd`)")
    alpha: Literal["fixed", "learned"] = Field(
        "fixed", description="weights of the 16 level pairs: 1 on the diagonal and 0.5 off it, or a learned compatibility"
    )
    policy: Policy = Field("alsn", description="weight policy where a stage says `alsn`; `uniform` and `manual` are ablations")
    manual_weights: tuple[float, float, float, float] = Field(
        (0.1, 0.2, 0.3, 0.4),
        search=Search(0.02, 1),
        description="level weights of the policy `manual`, P2 to P5 and L1 to L4, relative to each other",
    )
    visual_levels: tuple[VisualLevel, ...] = Field(VISUAL_LEVELS, description="levels of the visual pyramid that are used")
    language_levels: tuple[LanguageLevel, ...] = Field(
        LANGUAGE_LEVELS, description="levels of the language hierarchy that are used"
    )
    similarity: Literal["pooled", "late"] = Field(
        "pooled",
        description="how a visual and a language level are compared: as pooled vectors, or by late interaction of the cells "
        "of P2 to P4 and the tokens of L1 and L2 (both pyramids; the teacher's is then fitted that way)",
    )
    cells: int = Field(4, ge=1, unit="cells", description="cells of a level along an axis in late interaction")
    embedding: EmbeddingLevelConfig = Field(EmbeddingLevelConfig(), description="the final embedding as a further level")
    alsn: ALSNConfig = Field(ALSNConfig(), description="the layer-selection network")
    teacher_pyramid: Literal["fit", "random"] = Field(
        "fit", description="the teacher's pyramid: fitted contrastively on its frozen backbone, or random and frozen"
    )

    uses_pyramid: ClassVar[bool] = True

    def stages(self, schedule: tuple[StageConfig, ...]) -> tuple[StageConfig, ...]:
        """Levels the run lacks are left out of every stage; without ALSN, so is the stage that trains it alone."""
        result = []
        for stage in super().stages(schedule):
            policy = self.policy if stage.policy == "alsn" else stage.policy
            trains = tuple(group for group in stage.trains if group != "alsn" or policy == "alsn")
            if not trains:
                continue
            result.append(
                stage.model_copy(
                    update={
                        "policy": policy,
                        "trains": trains,
                        "group_lr": {group: lr for group, lr in stage.group_lr.items() if group in trains},
                        "visual_levels": tuple(level for level in stage.visual_levels if level in self.visual_levels),
                        "language_levels": tuple(level for level in stage.language_levels if level in self.language_levels),
                    }
                )
            )
        return tuple(result)

    def stage_options(self, stage: StageConfig) -> dict[str, Any]:
        # Levels and policy are in the stage already; what only another policy reads must not set equal stages apart.
        excluded = self.unaddressed | {"policy", "visual_levels", "language_levels", "teacher_pyramid"}
        excluded |= {"manual_weights"} if stage.policy != "manual" else set()
        excluded |= {"alsn"} if stage.policy != "alsn" else set()
        excluded |= {"cells"} if self.similarity != "late" else set()
        return self.model_dump(mode="json", exclude=set(excluded))

    @model_validator(mode="after")
    def _top_levels(self) -> CMAPKDConfig:
        # The single-level contrastive loss, the sample relation and ALSN's input are defined on P5 and L4.
        if "P5" not in self.visual_levels or "L4" not in self.language_levels:
            raise ValueError(
                f"visual_levels = {list(self.visual_levels)} must hold P5 and language_levels = {list(self.language_levels)} "
                "must hold L4: the contrastive and relational terms use them"
            )
        if min(self.manual_weights) < 0 or self.manual_weights[-1] == 0:
            reason = "must not be negative, and the top level's not 0: some stages use it alone"
            raise ValueError(f"manual_weights = {list(self.manual_weights)} {reason}")
        return self

    def cached_parts(self, stage: StageConfig) -> tuple[CachedPart, ...]:
        return () if self.similarity == "late" else ("embeddings", "pyramid")

    def not_searched(self) -> frozenset[str]:
        return frozenset() if self.policy == "manual" else frozenset({"manual_weights"})


class TeacherPromptsConfig(Config):
    """Prompts learned on the frozen teacher, before it teaches (stage 1 of PromptKD)."""

    tokens: int = Field(4, ge=1, unit="tokens", description="prompts of each layer and modality")
    layers: int = Field(9, ge=1, unit="blocks", description="blocks with prompts, from the first on; at most all of a tower")
    epochs: float = Field(1.0, gt=0, unit="epochs", description="passes over the distillation data")
    lr: float = Field(1e-3, gt=0, description="peak learning rate (AdamW; the paper has SGD with 5e-3)")
    image_weight: float = Field(10.0, ge=0, description="weight of the L1 distance to the un-prompted image embeddings")
    text_weight: float = Field(25.0, ge=0, description="weight of the L1 distance to the un-prompted text embeddings")
    logits_weight: float = Field(1.0, ge=0, description="weight of the KL to the un-prompted logits, over their number")
    seed: int = Field(0, ge=0, description="seed of initialisation and data order; shared by the run's seeds")


class PromptKDConfig(MethodConfig):
    """PromptKD (Li et al. 2024): a prompted teacher and its frozen bank of text features; inference needs its text tower."""

    method: Literal["promptkd"] = "promptkd"
    weight: float = Field(
        1000.0,
        ge=0,
        search=Search(100, 10_000),
        description="weight of the KL, over the number of entries of the bank (`lambda`)",
    )
    temperature: float = Field(
        1.0, gt=0, search=Search(0.5, 8), description="divides the logits of both models (`tau`); squared on the term"
    )
    bank: int = Field(4096, ge=2, unit="captions", description="distinct training captions in the bank")
    class_prompts: bool = Field(True, description="also the classes that the distillation data sets name, over templates")
    student_prompts: int = Field(
        0, ge=0, unit="tokens", description="prompts of each layer of the student's image tower (4 in the paper)"
    )
    student_prompt_layers: int = Field(9, ge=1, unit="blocks", description="blocks of the student with prompts")
    teacher_prompts: TeacherPromptsConfig = Field(TeacherPromptsConfig(), description="how the teacher's prompts are learned")

    note: ClassVar[str] = "Retrieves and classifies with the teacher's prompted text tower instead of the student's."
    deploys_teacher: ClassVar[bool] = True

    def stage_options(self, stage: StageConfig) -> dict[str, Any]:
        # The teacher's prompts are a stage of their own, whose address is in the settings.
        excluded = self.unaddressed | {"teacher_prompts"}
        excluded |= set() if self.student_prompts else {"student_prompt_layers"}
        return self.model_dump(mode="json", exclude=set(excluded))


AnyMethod = Annotated[
    ScratchConfig | KDConfig | FitNetConfig | PromptKDConfig | C2KDConfig | LLaVAKDConfig | CLIPKDConfig | CMAPKDConfig,
    PydanticField(discriminator="method"),
]
