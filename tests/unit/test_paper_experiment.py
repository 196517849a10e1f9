"""config/paper.yaml and its variants: what they hold, what they cost, and the models they are about, at full size."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import open_clip
import pytest
import torch
import yaml
from config_examples import CONFIG, experiment

from cmapkd.config import load_experiment, parse_experiment
from cmapkd.config.methods import AnyMethod
from cmapkd.config.overlap import checked_splits
from cmapkd.config.schedules import DEFAULT_SCHEDULES
from cmapkd.config.sources import CocoCaptionsConfig, PublicConfig
from cmapkd.costs import flops
from cmapkd.costs.estimate import estimate, render
from cmapkd.evaluation import efficiency
from cmapkd.models import towers
from cmapkd.plan import make_plan

PAPER = CONFIG / "paper.yaml"
VARIANTS = ("paper-32gb", "paper-coco-only")
# Image towers of the two models (open_clip's model profiles): parameters [M], operations [G].
PUBLISHED = {"ViT-L-14": (303.97, 162.03), "ViT-B-16": (86.19, 35.13)}
COCO = {"i2t_r1": 56.34, "t2i_r1": 36.51}


def test_it_compares_every_method_and_every_ablation_over_three_seeds() -> None:
    read = load_experiment(PAPER)
    assert len(read.seeds) == 3
    methods = {cls.model_fields["method"].default for cls in get_args(get_args(AnyMethod)[0])}
    assert {method.method for method in read.runs.values()} == methods
    ablations = [name for name, method in read.runs.items() if method.group == "ablation"]
    planned = yaml.safe_load((CONFIG / "planned.yaml").read_text())
    assert ablations == [name for name in load_experiment(CONFIG / "mini.yaml").runs if name in ablations]
    assert len(ablations) == 7
    assert planned  # the rows that were planned are in the file of planned numbers alone
    assert read.schedules == DEFAULT_SCHEDULES, "at their real length"
    assert (read.training.global_batch, read.training.ranks) == (256, 8)
    assert read.teacher.expected["retrieval:coco5k/test"] == COCO


def test_what_is_evaluated_is_left_out_of_what_is_trained_on() -> None:
    trained, tested = checked_splits(load_experiment(PAPER))
    assert trained == ["coco/train", "cc3m/train"]
    assert tested == ["coco5k/test", "flickr30k/test", "coco5k/val", "imagenet/val", "vqa/val"]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_gives_few_keys_and_shares_the_rest(name: str) -> None:
    path = CONFIG / f"{name}.yaml"
    given = yaml.safe_load(path.read_text())
    assert (given["extends"], given["name"]) == ("paper.yaml", name)
    assert len(given) <= 4
    base, read = load_experiment(PAPER), load_experiment(path)
    assert read.runs == base.runs
    assert read.evaluation == base.evaluation
    changed = {key for key in type(base).model_fields if getattr(base, key) != getattr(read, key)}
    assert changed == set(given) - {"extends"}
    assert len(make_plan(read).stages) == len(make_plan(base).stages)


def test_costs_are_known_before_anything_is_built(tmp_path: Path) -> None:
    found = {
        name: estimate(make_plan(load_experiment(CONFIG / f"{name}.yaml")), tmp_path, "V100") for name in ("paper", *VARIANTS)
    }
    work = {name: sum(cost.predicted for cost in costs.stages.values()) for name, costs in found.items()}
    # Steps are in proportion to the pictures; each training also takes some seconds to start.
    share = 118_287 / (118_287 + 3_318_333)
    assert share < work["paper-coco-only"] / work["paper"] < share + 0.01
    assert 1.05 < work["paper-32gb"] / work["paper"] < 4 / 3, "the student's forward pass is made twice"
    plan = make_plan(load_experiment(PAPER))
    assert "8 x V100" in render(found["paper"], plan)
    steps = {cost.stage.label: cost.steps for cost in found["paper"].stages.values()}
    assert steps["Scratch, seed 0: train"] == round(25 * (118_287 + 3_318_333) / 256)


def test_published_sizes_are_of_splits_that_there_are() -> None:
    known = [cls for cls in PublicConfig.__subclasses__() if cls.sizes]
    assert len(known) == 6
    for source in known:
        for key in source.sizes:
            assert key.rpartition("/")[2] in source.split_names
    assert CocoCaptionsConfig(partition="karpathy").published("test") == 5000
    assert CocoCaptionsConfig().published("train") == 118_287
    assert CocoCaptionsConfig().published("test") is None
    assert parse_experiment(experiment()).datasets["pictures"].published("train") == 16_000


@pytest.mark.parametrize("name", [*PUBLISHED, *(f"{name}-quickgelu" for name in PUBLISHED)])
def test_full_size_towers_have_the_published_size_and_operations(name: str) -> None:
    """Built on the meta device: counted by PyTorch's own counter, on the model, and by our arithmetic, on its numbers."""
    megabyte, giga = PUBLISHED[name.removesuffix("-quickgelu")]
    with torch.device("meta"):
        model = open_clip.create_model(name, device="meta").eval()
    assert efficiency.parameters(model)["image_parameters"] / 1e6 == pytest.approx(megabyte, abs=0.005)
    counted = efficiency.flops(
        model, torch.zeros(1, 3, 224, 224, device="meta"), torch.zeros(1, 77, dtype=torch.long, device="meta")
    )
    assert counted["image_flops"] / 1e9 == pytest.approx(giga, rel=0.01)
    assert flops.image_tower(flops.shapes_of(name, None)) == pytest.approx(counted["image_flops"], rel=0.005)
    shapes = towers.Tapped(model).shapes()
    expected = ((16, 16), 24, 768) if "L-14" in name else ((14, 14), 12, 512)
    assert (shapes.grid, shapes.image_layers, shapes.embed_dim) == expected


def test_clips_own_tokenizer_and_its_truncation() -> None:
    tokenizer: Any = towers.tokenizer_of("ViT-B-16-quickgelu")
    short, long = tokenizer(["a photo of a cat", "a photo of a cat " * 40])
    assert short.shape == (77,)
    assert short[:8].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407, 0]  # as OpenAI's tokenizer gives it
    assert long[:4].tolist() == short[:4].tolist()
    assert int(long[-1]) == 49407 == int(long.max()), "the end of the text is kept, as it is what is pooled"
    assert 0 not in long.tolist()
