"""Options of every data source. A source is one class here and one file in ``cmapkd/data/sources/``."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field as PydanticField
from pydantic import model_validator

from cmapkd.config.base import Config, Field
from cmapkd.config.paths import PathBelow, PathText


class SourceConfig(Config):
    """What every source has in common: how its samples are written into shards."""

    shard_size: int = Field(1000, ge=1, unit="samples", description="samples in one webdataset shard")
    seed: int = Field(0, ge=0, description="seed of everything the source draws: splits, scenes, captions, questions")

    split_names: ClassVar[tuple[str, ...]] = ()  # what may stand after the slash of `<dataset>/<split>`
    # Keys that say where files lie and not what they hold: they are no part of a training's address.
    operational: ClassVar[frozenset[str]] = frozenset()

    def built(self) -> tuple[str, ...]:
        """The splits that are written, of those that there may be."""
        return self.split_names

    def published(self, split: str) -> int | None:
        """How many samples a split has, before it is built: as configured, or as its publisher says; None: unknown."""
        count = getattr(self, split, None)
        return count if isinstance(count, int) else None


class EmojiScenesConfig(SourceConfig):
    """Emoji Scenes: pictures composed of openly licensed emoji drawings that come inside npm packages."""

    source: Literal["emoji_scenes"] = "emoji_scenes"
    image_size: int = Field(32, ge=16, le=1024, unit="px", description="side of a scene")
    render_size: int = Field(64, ge=16, le=1024, unit="px", description="side of a rendered drawing before it is placed")
    concepts: int = Field(400, ge=20, unit="concepts", description="the best covered concepts that are kept; more is harder")
    held_out_concepts: float = Field(
        0.15, gt=0, lt=0.5, unit="share", description="concepts (whole components) kept out of training for `test_concept`"
    )
    train: int = Field(16000, ge=1, unit="scenes", description="scenes of the `train` split")
    validation: int = Field(
        1000, ge=1, unit="scenes", description="scenes of the `validation` split (known concepts, unseen drawings)"
    )
    test_render: int = Field(
        1000, ge=1, unit="scenes", description="scenes of the `test_render` split (known concepts, unseen drawings)"
    )
    test_concept: int = Field(500, ge=1, unit="scenes", description="scenes of the `test_concept` split (unseen concepts)")
    questions_per_scene: int = Field(2, ge=0, le=8, unit="questions", description="questions asked about each scene")

    split_names: ClassVar[tuple[str, ...]] = ("train", "validation", "test_render", "test_concept")

    @model_validator(mode="after")
    def _drawings_are_not_enlarged(self) -> EmojiScenesConfig:
        if self.render_size < self.image_size:
            raise ValueError(
                f"render_size {self.render_size} is less than image_size {self.image_size}: drawings would be enlarged; "
                f"set render_size to at least {self.image_size}"
            )
        return self


class PublicConfig(SourceConfig):
    """What the data sets have in common that lie on disk as their publishers distribute them."""

    shard_size: int = Field(
        256,
        ge=1,
        unit="samples",
        description="samples in one webdataset shard; an interrupted build goes on after its last whole shard",
    )
    root: PathText | None = Field(
        None,
        description="folder with the publisher's files; null: a folder named after the source in the download cache",
    )
    splits: tuple[str, ...] | None = Field(
        None, min_length=1, description="splits that are written; null: those that are usual"
    )
    shorter_side: int | None = Field(
        None,
        ge=16,
        le=4096,
        unit="px",
        description="pictures with a longer shorter side are reduced to it (JPEG of quality 95); null: the publisher's bytes",
    )
    upright: bool = Field(
        False,
        description="turn pictures as their EXIF orientation says, and write those anew; false: as they lie in the file, "
        "which is how the published results read them",
    )
    captions_per_image: int | None = Field(
        None, ge=1, unit="captions", description="keep only the first so many of each picture; null: all"
    )
    check: Literal["quick", "full"] = Field(
        "quick", description="`quick` reads the header and the end of each picture, `full` decodes it"
    )
    max_pixels: int = Field(50_000_000, ge=1, unit="pixels", description="a picture that declares more counts as bad")
    bad_pictures: float = Field(
        0.001,
        ge=0,
        lt=1,
        unit="share",
        description="pictures of a split that are left out (missing, damaged, unusable) at which the build stops",
    )
    without_caption: float = Field(
        0.001,
        ge=0,
        lt=1,
        unit="share",
        description="samples without a caption at which the build of a split that is distilled on stops; a split that is "
        "searched in (`evaluation.retrieval`, `validation`) may have none",
    )
    background: Literal["white", "black", "gray"] = Field(
        "white",
        exclude_if=lambda value: value == "white",  # the addresses of earlier experiments stay as they are
        description="what transparent pixels are composited on",
    )
    overlap: Literal["remove", "refuse", "report"] = Field(
        "remove",
        description="what happens to pictures of a distillation split that an evaluation split holds too: they are left out, "
        "the run stops, or they are only reported",
    )
    overlap_distance: int = Field(
        4, ge=0, le=10, unit="bits of 64", description="perceptual hashes that differ by no more count as the same picture"
    )

    operational: ClassVar[frozenset[str]] = frozenset({"root", "check", "without_caption"})
    sizes: ClassVar[dict[str, int]] = {}  # published numbers of samples by split, or by partition and split
    default: ClassVar[tuple[str, ...]] = ()  # what is written unless `splits` says otherwise

    def possible(self) -> tuple[str, ...]:
        """The splits that these options allow."""
        return self.split_names

    def built(self) -> tuple[str, ...]:
        """The splits that are written."""
        return self.splits if self.splits is not None else (self.default or self.possible())

    def published(self, split: str) -> int | None:
        """As published, whatever is missing, damaged or left out for overlap."""
        return self.sizes.get(f"{getattr(self, 'partition', '')}/{split}", self.sizes.get(split))

    @model_validator(mode="after")
    def _known_splits(self) -> PublicConfig:
        for split in self.splits or ():
            if split not in self.possible():
                raise ValueError(f"splits names {split!r}; with these options there are {', '.join(self.possible())}")
        if len(set(self.splits or ())) != len(self.splits or ()):
            raise ValueError(f"splits = {list(self.splits or ())} names a split twice")
        return self


class CocoCaptionsConfig(PublicConfig):
    """COCO Captions (Chen et al., 2015): photographs with five captions or a few more, in three divisions into splits."""

    source: Literal["coco_captions"] = "coco_captions"
    partition: Literal["2017", "2014", "karpathy"] = Field(
        "2017",
        description="the publisher's splits of 2017 or 2014, or those of Karpathy and Fei-Fei (`dataset_coco.json`), whose "
        "`test` is the usual 5K test set",
    )

    split_names: ClassVar[tuple[str, ...]] = ("train", "restval", "val", "test")
    sizes: ClassVar[dict[str, int]] = {
        "2017/train": 118_287, "2017/val": 5_000, "2014/train": 82_783, "2014/val": 40_504,
        "karpathy/train": 82_783, "karpathy/restval": 30_504, "karpathy/val": 5_000, "karpathy/test": 5_000,
    }  # fmt: skip

    def possible(self) -> tuple[str, ...]:
        """Karpathy has four splits, the publisher two with public captions."""
        return self.split_names if self.partition == "karpathy" else ("train", "val")


class Flickr30kConfig(PublicConfig):
    """Flickr30K (Young et al., 2014): 31,783 photographs with five captions each."""

    source: Literal["flickr30k"] = "flickr30k"
    partition: Literal["karpathy", "whole"] = Field(
        "karpathy",
        description="splits of `dataset_flickr30k.json`, whose `test` is the usual 1K test set, or all pictures as `all` "
        "(from `results_20130124.token` or `results.csv`)",
    )

    split_names: ClassVar[tuple[str, ...]] = ("train", "val", "test", "all")
    sizes: ClassVar[dict[str, int]] = {"train": 29_000, "val": 1_014, "test": 1_000, "all": 31_783}

    def possible(self) -> tuple[str, ...]:
        """Without Karpathy's file there is one split."""
        return self.split_names[:3] if self.partition == "karpathy" else ("all",)


class ConceptualCaptionsConfig(PublicConfig):
    """Conceptual Captions 3M (Sharma et al., 2018): pictures of the web with their alt-texts, as `img2dataset` saves them."""

    source: Literal["conceptual_captions"] = "conceptual_captions"
    sizes: ClassVar[dict[str, int]] = {"train": 3_318_333, "val": 15_840}  # addresses; many are dead

    split_names: ClassVar[tuple[str, ...]] = ("train", "val")
    default: ClassVar[tuple[str, ...]] = ("train",)


class VisualGenomeConfig(PublicConfig):
    """Visual Genome (Krishna et al., 2017): the descriptions of a picture's largest regions stand in for its captions."""

    source: Literal["visual_genome"] = "visual_genome"
    sizes: ClassVar[dict[str, int]] = {"train": 108_077}
    regions: int = Field(
        5, ge=1, unit="regions", description="regions whose descriptions are a picture's captions, largest first"
    )

    split_names: ClassVar[tuple[str, ...]] = ("train",)


class Vqav2Config(PublicConfig):
    """VQAv2 (Goyal et al., 2017): questions about the pictures of COCO 2014, each with ten answers."""

    source: Literal["vqav2"] = "vqav2"
    sizes: ClassVar[dict[str, int]] = {"train": 82_783, "val": 40_504}  # pictures
    images: PathText | None = Field(
        None, description="folder with COCO's `train2014` and `val2014`, as folders or zips; null: `root`"
    )

    split_names: ClassVar[tuple[str, ...]] = ("train", "val")
    operational: ClassVar[frozenset[str]] = PublicConfig.operational | {"images"}


class ImagenetConfig(PublicConfig):
    """ImageNet-1K (ILSVRC 2012): pictures of 1,000 classes, with the class names and 80 templates of open_clip."""

    source: Literal["imagenet"] = "imagenet"
    sizes: ClassVar[dict[str, int]] = {"train": 1_281_167, "val": 50_000}

    split_names: ClassVar[tuple[str, ...]] = ("train", "val")
    default: ClassVar[tuple[str, ...]] = ("val",)


class OwnConfig(PublicConfig):
    """One's own pictures: a folder with texts beside them, or a table (`docs/data/own.md`)."""

    source: Literal["own"] = "own"
    table: PathBelow | None = Field(
        None, description="CSV, TSV or parquet file, relative to `root`; null: every picture has a `.txt` beside it"
    )
    image_column: str = Field("image", min_length=1, description="column with the picture's path (in parquet also its bytes)")
    caption_columns: tuple[str, ...] = Field(("caption",), description="columns with captions; an empty cell has none")
    split_column: str = Field("split", min_length=1, description="column with the split; if missing, all is `train`")
    label_column: str = Field(
        "label", min_length=1, description="column with the class, as a number or a name of `classes.txt`"
    )
    question_column: str = Field("question", min_length=1, description="column with a question about the picture")
    answer_column: str = Field(
        "answer", min_length=1, description="column with its answer, or with those of ten annotators between `|`"
    )
    split_shares: dict[Literal["val", "test"], Annotated[float, PydanticField(gt=0, lt=1)]] | None = Field(
        None,
        exclude_if=lambda value: value is None,  # the addresses of earlier experiments stay as they are
        unit="share",
        description="splits that are divided from `train`, e.g. `{val: 0.1, test: 0.1}`: by a hash of `seed` and each image's "
        "key, near duplicates (`overlap_distance`) on one side; null: splits are folders or a column",
    )
    licence: str = Field("not stated", min_length=1, description="conditions of the data, kept in the manifest")
    attribution: str = Field("not stated", min_length=1, description="whom to credit, kept in the manifest")

    split_names: ClassVar[tuple[str, ...]] = ("train", "val", "test")
    default: ClassVar[tuple[str, ...]] = ("train",)

    def built(self) -> tuple[str, ...]:
        """The configured splits; by default `train` and those divided from it."""
        divided = ("train", *(name for name in ("val", "test") if name in (self.split_shares or {})))
        return self.splits if self.splits is not None else divided

    @model_validator(mode="after")
    def _something_is_left(self) -> OwnConfig:
        shares = self.split_shares
        if shares is not None and not shares:
            raise ValueError("split_shares = {} names no split; e.g. {val: 0.1, test: 0.1}, or leave it out")
        if shares and sum(shares.values()) >= 1:
            raise ValueError(f"split_shares = {shares} leaves nothing to train on: the shares must add up to less than 1")
        return self


AnySource = Annotated[
    EmojiScenesConfig
    | CocoCaptionsConfig
    | Flickr30kConfig
    | ConceptualCaptionsConfig
    | VisualGenomeConfig
    | Vqav2Config
    | ImagenetConfig
    | OwnConfig,
    PydanticField(discriminator="source"),
]
