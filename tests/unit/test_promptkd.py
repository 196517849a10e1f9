"""PromptKD: its formulas, its bank, its stages, and a run from data to metrics with the teacher's text tower in use."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import tiny
import torch
import torch.nn.functional as F
from fake_source import FakeConfig, FakeSource

from cmapkd import plan as planning
from cmapkd.config import parse_experiment
from cmapkd.config.training import TrainingConfig
from cmapkd.data.shards import write_dataset
from cmapkd.data.split import Split
from cmapkd.data.transforms import EvaluationTransform, decode_image
from cmapkd.evaluation.retrieval import recall, retrieve
from cmapkd.evaluation.run import evaluate_run
from cmapkd.files import read_json
from cmapkd.models import towers
from cmapkd.objectives.promptkd import PromptKD
from cmapkd.plan import Plan, make_plan
from cmapkd.runs import collect_run
from cmapkd.training import checkpoints
from cmapkd.training.engine import Engine
from cmapkd.training.loop import train_stage
from cmapkd.training.stages import OBJECTIVE, Teacher, load_inference, load_prompts


def double(value: Any) -> np.ndarray:
    return value.detach().double().numpy()


# --- formulas --------------------------------------------------------------------------------------------------------


def test_teacher_prompts_are_their_formula() -> None:
    weights = {"image_weight": 3.0, "text_weight": 5.0, "logits_weight": 7.0}
    module, teacher = tiny.setup("teacher_prompts", tiny.stage(trains=("heads",)), **weights)
    pictures, captions = tiny.images(6), tiny.tokens(6)
    terms = module(pictures, captions, tiny.teach(teacher, pictures, captions))
    n = {name: double(v) for name, v in module.represent(pictures, captions, tiny.teach(teacher, pictures, captions)).items()}
    scale = n["logit_scale"][0]
    before, after = (scale * n[f"{kind}image"] @ n[f"{kind}text"].T for kind in ("plain_", ""))
    expected = {
        "task": reference.info_nce(n["image"], n["text"], scale),
        "image": np.abs(n["image"] - n["plain_image"]).mean(),
        "text": np.abs(n["text"] - n["plain_text"]).mean(),
        "logits": (reference.row_kl(before, after) + reference.row_kl(before.T, after.T)) / 2 / 6,
    }
    for name, value in expected.items():
        assert float(terms.parts[name]) == pytest.approx(value, rel=1e-4), name
    total = sum(factor * expected[name] for name, factor in {"task": 1, "image": 3, "text": 5, "logits": 7}.items())
    assert float(terms.total.detach()) == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("options", [{}, {"temperature": 3.0, "weight": 20.0, "student_prompts": 2}])
def test_promptkd_is_its_formula(options: dict[str, Any]) -> None:
    module, teacher = tiny.setup("promptkd", tiny.stage(), **options)
    objective: Any = module.objective
    pictures, captions = tiny.images(6), tiny.tokens(6)
    theirs = tiny.teach(teacher, pictures, captions)
    terms = module(pictures, captions, theirs)
    n = {name: double(value) for name, value in module.represent(pictures, captions, theirs).items()}
    p = {name: double(value) for name, value in objective.projector.named_parameters()}
    hidden = n["image"] @ p["first.weight"].T
    hidden = (hidden - hidden.mean(axis=0)) / np.sqrt(hidden.var(axis=0) + 1e-5)
    hidden = np.maximum(hidden * p["norm.weight"] + p["norm.bias"], 0)
    projected = reference.unit(hidden @ p["second.weight"].T + p["second.bias"])
    bank, tau = double(objective.bank), options.get("temperature", 1.0)
    scale = n["teacher_logit_scale"][0] / tau
    kl = tau**2 * reference.row_kl(scale * n["teacher_image"] @ bank.T, scale * projected @ bank.T)
    assert len(bank) == 30 + 3
    assert float(terms.parts["distillation"]) == pytest.approx(kl, rel=1e-3)
    assert float(terms.total.detach()) == pytest.approx(options.get("weight", 1000.0) / 33 * kl, rel=1e-3)
    assert float(terms.parts["cosine"]) == pytest.approx((projected * n["teacher_image"]).sum(axis=1).mean(), abs=1e-5)


# --- bank ------------------------------------------------------------------------------------------------------------


def test_the_bank_is_what_the_prompted_teacher_says_of_captions_and_classes() -> None:
    module, teacher = tiny.setup("promptkd", tiny.stage(), bank=20)
    objective: Any = module.objective
    assert teacher is not None and teacher.prompts is not None
    texts = tiny.Texts()
    torch.testing.assert_close(objective.bank[:20], teacher.prompts.encode_text(teacher.model, texts.tokens[:20]))
    for row, prompts in zip(objective.bank[20:], texts.classes(), strict=True):
        torch.testing.assert_close(row, F.normalize(teacher.encode_text(prompts).mean(dim=0), dim=0))
    assert not objective.bank.requires_grad and "bank" not in objective.state_dict()
    without, _ = tiny.setup("promptkd", tiny.stage(), bank=20, class_prompts=False)
    assert torch.equal(without.objective.bank, objective.bank[:20])  # type: ignore[arg-type]


def test_captions_of_the_batch_are_not_read() -> None:
    module, teacher = tiny.setup("promptkd", tiny.stage())
    pictures = tiny.images(4)
    losses = [module(pictures, t, tiny.teach(teacher, pictures, t)).total for t in (tiny.tokens(4), tiny.tokens(4, seed=9))]
    assert torch.equal(*losses)
    outputs = tiny.teach(teacher, pictures, tiny.tokens(4))
    assert outputs is not None and outputs.towers.text.shape == (4, 0)


def test_trained_are_the_image_tower_and_the_heads() -> None:
    module, _ = tiny.setup("promptkd", tiny.stage(), student_prompts=2)
    groups = {name: module.group_of(name) for name, _ in module.named_parameters()}
    for name, group in groups.items():
        expected = "student" if ".visual." in name else "heads" if name.startswith("objective.") else "unused"
        assert group == expected, name
    assert {name.split(".")[1] for name, group in groups.items() if group == "heads"} == {"prompts", "projector"}


# --- training --------------------------------------------------------------------------------------------------------


def taken(engine: Engine, first: int, last: int) -> list[float]:
    """Losses of some steps."""
    return [
        float(engine.step({"image": tiny.images(4, seed=i), "text": tiny.tokens(4, seed=i)}, i).total.detach())
        for i in range(first, last)
    ]


@pytest.mark.parametrize("method", ["promptkd", "teacher_prompts"])
def test_a_resumed_training_goes_on_exactly(method: str, tmp_path: Path, one_rank: None) -> None:
    """Prompts, projector and running statistics are in the checkpoint; the bank is made again."""
    of = tiny.stage(trains=("student", "heads") if method == "promptkd" else ("heads",))

    def engine() -> Engine:
        return tiny.engine(*tiny.setup(method, of, **({"student_prompts": 2} if method == "promptkd" else {})), of, 4)

    whole, first, second = engine(), engine(), engine()
    losses = taken(whole, 0, 4)
    assert taken(first, 0, 2) == losses[:2]
    checkpoints.save(first, tmp_path, 2, "origin")
    assert checkpoints.resume(second, tmp_path, "origin") == 2
    assert taken(second, 2, 4) == losses[2:]
    for name, value in whole.module.state_dict().items():
        assert torch.equal(second.module.state_dict()[name], value), name


@pytest.mark.parametrize("method", ["promptkd", "teacher_prompts"])
def test_bf16_with_partitioned_optimiser_states(method: str, one_rank: None) -> None:
    """Statistics and bank stay in fp32."""
    config = json.loads((planning.CONFIG / "deepspeed" / "bf16-zero1.json").read_text())
    of = tiny.stage(trains=("student", "heads") if method == "promptkd" else ("heads",), lr=5e-3)
    module, teacher = tiny.setup(method, of, **({"student_prompts": 2} if method == "promptkd" else {}))
    engine = Engine(module, teacher, of, {**tiny.TRAINING, "global_batch": 8}, config, 8, torch.device("cpu"))
    losses = [float(engine.step({"image": tiny.images(8), "text": tiny.tokens(8)}, step).total.detach()) for step in range(8)]
    assert losses[-1] < losses[0]
    assert {parameter.dtype for parameter in engine.module.parameters()} == {torch.bfloat16}
    assert all(buffer.dtype == torch.float32 for buffer in engine.module.objective.buffers())


# --- a whole run -----------------------------------------------------------------------------------------------------

OPTIONS = TrainingConfig(global_batch=8, workers=0, checkpoint_minutes=60)
MODELS: dict[str, dict[str, Any]] = {
    "tiny-student": {},
    "tiny-teacher": {"patch": 4, "width": 48, "embed": 24, "custom_text": True},
}


class Source(FakeSource):
    """Its test split has the name that the configuration of the data set asks for."""

    def splits(self) -> list[str]:
        return ["train", "test_render"]

    def samples(self, split: str) -> Any:
        return super().samples({"test_render": "test"}.get(split, split))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Plan and results of PromptKD beside KD, every stage trained; and the banks that were made on the way."""
    from cmapkd.training.engine import start_process_group

    folder = tmp_path_factory.mktemp("promptkd")
    (folder / "config" / "models").mkdir(parents=True)
    shutil.copytree(planning.CONFIG / "deepspeed", folder / "config" / "deepspeed")
    for name, options in MODELS.items():
        model = tiny.architecture(image=16, vocab_size=49408, **{"patch": 8, **options})
        (folder / "config" / "models" / f"{name}.json").write_text(json.dumps(model))
    content = {
        "name": "tiny",
        "seeds": [0, 1],
        "datasets": {"fake": {"source": "emoji_scenes"}},
        "distillation": ["fake/train"],
        "teacher": {"model": "tiny-teacher", "train": {"epochs": 1, "lr": 1e-3}},
        "student": {"model": "tiny-student"},
        "training": {"global_batch": 8},
        "schedules": {"standard": [{"name": "train", "epochs": 1, "lr": 1e-3}]},
        "runs": {
            "PromptKD": {"method": "promptkd", "bank": 16, "student_prompts": 2, "teacher_prompts": {"lr": 0.05}},
            "KD": {"method": "kd"},
        },
        "evaluation": {"retrieval": ["fake/test_render"], "zeroshot": ["fake/test_render"], "latency": {"repeats": 1}},
    }
    banks: list[torch.Tensor] = []
    real = PromptKD.start

    def start(self: PromptKD, teacher: Teacher, texts: Any) -> None:
        real(self, teacher, texts)
        banks.append(self.bank.clone())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "CONFIG", folder / "config")
        patch.setattr(PromptKD, "start", start)
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            patch.setenv(name, "127.0.0.1" if name == "MASTER_ADDR" else "1" if name.endswith("SIZE") else "0")
        if not torch.distributed.is_initialized():
            patch.delenv("RANK")
            start_process_group()
        plan = make_plan(parse_experiment(content))
        results = folder / "results"
        write_dataset(Source(FakeConfig(train=24, test=9)), results / "tiny" / "data" / "fake", dataset="fake")
        for address, stage in plan.stages.items():
            if stage.settings["seed"] == 0:
                train_stage(plan.stages[address], results / "tiny", OPTIONS)
    return plan, results, banks


def stage_of(plan: Plan, prefix: str) -> Any:
    return next(stage for address, stage in plan.stages.items() if address.startswith(prefix))


def test_the_teachers_prompts_are_one_stage_for_all_seeds(trained: Any) -> None:
    plan, results, _ = trained
    prompts = [address for address in plan.stages if address.startswith("teacher-prompts-")]
    assert len(prompts) == 1 and len(plan.stages) == 2 + 4
    for run in plan.runs:
        settings = plan.stages[run.stages[0]].settings
        assert settings.get("teacher_prompts") == (prompts[0] if run.name == "PromptKD" else None)
    written = {path.name for path in (results / "tiny" / "stages" / prompts[0]).iterdir()}
    assert {"stage.json", OBJECTIVE} <= written and "model" not in written


def test_the_options_of_the_teachers_prompts_set_apart_what_depends_on_them(trained: Any) -> None:
    plan, _, _ = trained
    content = plan.experiment.model_dump(mode="json")
    addresses = {}
    for tokens in (4, 3):
        content["runs"]["PromptKD"]["teacher_prompts"]["tokens"] = tokens
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(planning, "model_settings", lambda name, key: {"name": name, "config": None})
            addresses[tokens] = set(make_plan(parse_experiment(content)).stages)
    changed = {address.rpartition("-")[0] for address in addresses[3] - addresses[4]}
    assert changed == {"teacher-prompts", "train"} and len(addresses[3] - addresses[4]) == 3


def distances(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    return torch.cdist(rows, columns, compute_mode="donot_use_mm_for_euclid_dist")  # which rounds small ones to 1e-3


def test_the_bank_is_made_after_the_prompts_are_loaded(trained: Any) -> None:
    plan, results, banks = trained
    stages = results / "tiny" / "stages"
    model = towers.Tapped(towers.load(stages / plan.teacher / "model"))
    prompts = load_prompts(stages / stage_of(plan, "teacher-prompts").address / OBJECTIVE, model.shapes())
    teacher = Teacher(model, None, tiny.stage(), taps=False, prompts=prompts)
    captions = [f"picture {i} caption {c}" for i in range(24) for c in range(3)]
    known = teacher.encode_text(towers.tokenizer_of("tiny-teacher")(captions))
    (bank,) = banks
    nearest = distances(bank, known).min(dim=1)
    assert len(bank) == 16 + 2  # captions, and the classes of the data set
    assert float(nearest.values[:16].max()) < 1e-5 and len(set(nearest.indices[:16].tolist())) == 16
    tokens = towers.tokenizer_of("tiny-teacher")(["a picture of even.", "a picture of odd."])
    classes = F.normalize(teacher.encode_text(tokens), dim=-1)
    torch.testing.assert_close(bank[16:], classes, atol=1e-5, rtol=1e-4)
    plain = model.model.encode_text(towers.tokenizer_of("tiny-teacher")(captions), normalize=True)
    assert float(distances(bank[:16], plain).min()) > 1e-3  # the un-prompted teacher says something else


def test_a_run_is_evaluated_with_the_teachers_text_tower(trained: Any) -> None:
    plan, results, _ = trained
    home = results / "tiny"
    collect_run(plan, "PromptKD/0", results)
    source = home / "runs" / "PromptKD" / "0"
    parts = {"student", "teacher", OBJECTIVE, "teacher_prompts.safetensors", "run.json"}
    assert {path.name for path in source.iterdir()} == parts
    record = read_json(source / "run.json")
    assert [part["label"] for part in record["deployed_teacher"]] == ["teacher", "teacher prompts"]
    metrics = read_json(evaluate_run(plan, "PromptKD/0", results))

    # The same by hand, from the stages' own files.
    stages, settings = home / "stages", plan.stages[plan.run("PromptKD/0").stages[-1]].settings
    student = towers.Tapped(towers.load(stages / plan.run("PromptKD/0").stages[-1] / "model"))
    above = towers.Tapped(towers.load(stages / plan.teacher / "model"))
    objective: Any = tiny.objective("promptkd", tiny.stage(), student.shapes(), above.shapes(), bank=16, student_prompts=2)
    objective.load_state_dict(towers.load_file(stages / plan.run("PromptKD/0").stages[-1] / OBJECTIVE))
    prompts = load_prompts(stages / settings["teacher_prompts"] / OBJECTIVE, above.shapes())
    split = Split(home / "data" / "fake", "test_render")
    samples = [split.read(i) for i in range(len(split))]
    transform, tokenizer = EvaluationTransform(towers.preprocess_of(student.model)), towers.tokenizer_of("tiny-student")
    with torch.no_grad():
        pixels = torch.stack([transform(decode_image(sample.image)) for sample in samples])
        features = objective.prompts.encode_image(student.eval(), pixels, normalize=False)
        images = F.normalize(objective.projector.eval()(features), dim=-1)
        texts = prompts.encode_text(above.eval(), tokenizer([c for sample in samples for c in sample.captions]))
    found = retrieve(images, texts, np.repeat(np.arange(9), 3))
    expected = {f"i2t_{name}": value for name, value in recall(found.i2t).items()}
    values = metrics["metrics"]["retrieval"]["fake/test_render"]["all"]
    assert {name: values[name] for name in expected} == pytest.approx(expected)
    with np.load(home / "metrics" / "PromptKD" / "0.npz") as arrays:
        np.testing.assert_allclose(arrays["retrieval/fake/test_render/margin"], found.margin, atol=1e-5)
    labels = [stage["label"] for stage in metrics["provenance"]["stages"]]
    assert labels == ["PromptKD, seed 0: train", "teacher", "teacher prompts"]


def test_its_cost_is_that_of_the_projected_student_and_the_teachers_text_tower(trained: Any) -> None:
    plan, results, _ = trained
    costs = {}
    for directory in ("PromptKD/0", "KD/0", "Teacher/0"):
        collect_run(plan, directory, results)
        costs[directory] = read_json(evaluate_run(plan, directory, results))["metrics"]["efficiency"]
    ours, plain, teacher = costs.values()
    own = 4 * 4 * 32  # the teacher's text prompts: 4 in each of 4 blocks
    assert ours["text_parameters"] == teacher["text_parameters"] + own
    assert teacher["text_flops"] * 1.2 < ours["text_flops"] < teacher["text_flops"] * 1.5  # 16 tokens instead of 12
    prompts, projector = 4 * 2 * 32, 16 * 24 + 2 * 24 + 24 * 24 + 24
    assert ours["image_parameters"] == plain["image_parameters"] + prompts + projector
    assert ours["image_flops"] > plain["image_flops"] + 2 * (16 * 24 + 24 * 24)
    assert ours["total_parameters"] == ours["image_parameters"] + ours["text_parameters"] + 1
    assert {path.name for path in (results / "tiny" / "runs" / "KD" / "0").iterdir()} == {"student", "run.json"}


def test_the_inference_model_has_open_clips_interface_and_nothing_it_does_not_need(trained: Any) -> None:
    plan, results, _ = trained
    collect_run(plan, "PromptKD/0", results)
    settings = plan.stages[plan.run("PromptKD/0").stages[-1]].settings
    model: Any = load_inference(settings, results / "tiny" / "runs" / "PromptKD" / "0")
    names = [name for name, _ in model.named_parameters()]
    assert not any(name.startswith("teacher.") and ("visual" in name or "vision" in name) for name in names)
    assert not any(name.startswith("visual.") and ("token_embedding" in name or "text" in name) for name in names)
    assert not model.training and model.visual.image_size in (16, (16, 16))
    images = model.encode_image(tiny.images(3, size=16), normalize=True)
    texts = model.encode_text(tiny.tokens(3), normalize=True)
    assert images.shape == texts.shape == (3, 24)
    for rows in (images, texts):
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))
    before = [p.clone() for p in model.parameters()]
    model.double()
    assert all(p.dtype == torch.float64 for p in model.parameters()) and len(before) == len(names)
