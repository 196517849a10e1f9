"""One pass over fake splits with a real, tiny model: metrics equal a direct computation; errors name split and task."""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from cmapkd.config.evaluation import EvaluationConfig, LatencyConfig, VqaConfig
from cmapkd.data.sample import Question, Sample
from cmapkd.errors import UserError
from cmapkd.evaluation.evaluate import evaluate_model
from cmapkd.evaluation.retrieval import recall, retrieve

STRATA = ("simple", "complex")
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 230), "white": (240, 240, 240)}


class FakeSplit:
    """Squares of one colour on grey; every second one is framed."""

    def __init__(self, directory: Path, size: int, seed: int) -> None:
        self.directory, self.reads = directory, Counter()
        numbers = np.random.default_rng(seed)
        self.samples = [self.make(i, *numbers.integers(0, 4, 2)) for i in range(size)]

    @staticmethod
    def make(i: int, colour: int, place: int) -> Sample:
        name = list(COLOURS)[colour]
        pixels = np.full((16, 16, 3), 128, np.uint8)
        pixels[2 + place : 12 + place, 2:14] = COLOURS[name]
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        questions = [
            Question("which colour is it?", [name] * 9 + ["grey"], "other", 2 * i),
            Question(f"is it {name}?", ["yes"] * 10, "yes/no", 2 * i + 1),
        ]
        captions = [f"a {name} square", f"{name} at {place}", *([f"extra caption {i}"] if i % 3 == 0 else [])]
        return Sample(f"s{i:04d}", file.getvalue(), "png", captions, STRATA[i % 2], int(colour), questions)

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, i: int) -> Sample:
        self.reads[i] += 1
        return self.samples[i]


def tokenizer(texts: list[str]) -> torch.Tensor:
    rows = [[1, *(2 + (ord(letter) - 32) % 95 for letter in text[:22]), 99] for text in texts]  # 99: end of text
    return torch.tensor([row + [0] * (24 - len(row)) for row in rows])


def preprocess(image: Image.Image) -> torch.Tensor:
    assert image.mode == "RGB"
    return torch.from_numpy(np.asarray(image, np.float32).transpose(2, 0, 1) / 127.5 - 1)


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    vision = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 16}
    text = {"context_length": 24, "width": 32, "heads": 2, "layers": 2, "vocab_size": 100}
    return open_clip.CLIP(24, vision, text)


@pytest.fixture
def splits(tmp_path) -> dict[str, FakeSplit]:
    (tmp_path / "classes.json").write_text(json.dumps({"classes": list(COLOURS), "templates": ["a {} square", "{}"]}))
    return {
        f"squares/{name}": FakeSplit(tmp_path, n, i) for i, (name, n) in enumerate([("train", 120), ("test", 50), ("new", 20)])
    }


TASKS = EvaluationConfig(
    retrieval=["squares/test"],
    validation=["squares/new"],
    zeroshot=["squares/test", "squares/new"],
    vqa=VqaConfig(train="squares/train", test=["squares/test"], min_count=5, epochs=6, batch_size=16, hidden=32),
    latency=LatencyConfig(warmup=0, repeats=1),
)


def run(model, splits, tasks=TASKS, **arguments):
    return evaluate_model(model, tokenizer, preprocess, splits=splits, tasks=tasks, **{"seed": 0, "batch_size": 16} | arguments)


def test_metrics_have_the_agreed_form(model, splits):
    found = run(model, splits)
    json.dumps(found.metrics, allow_nan=False)
    assert set(found.metrics) == {"retrieval", "zeroshot", "vqa", "efficiency"}
    retrieval = found.metrics["retrieval"]
    assert set(retrieval) == {"squares/test", "squares/new"} and set(retrieval["squares/test"]) == {"all", *STRATA}
    recalls = {f"{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)}
    assert set(retrieval["squares/test"]["simple"]) == {*recalls, "mean_recall", "images", "captions"}
    assert retrieval["squares/test"]["all"]["captions"] == 50 * 2 + 17 and retrieval["squares/test"]["simple"]["images"] == 25
    assert set(found.metrics["zeroshot"]["squares/new"]["all"]) == {"top1", "top5", "images", "classes"}
    answers = found.metrics["vqa"]["squares/test"]
    assert set(answers) == {"all", "question_only", *STRATA}
    assert {"overall", "yes_no", "number", "other", "questions", "ceiling"} <= set(answers["all"])
    assert answers["all"]["number"] is None and answers["all"]["questions"] == 100
    keys = {"image_parameters", "text_parameters", "total_parameters", "image_flops", "text_flops", "total_flops"}
    assert set(found.metrics["efficiency"]) == {*keys, "latency_ms_batch1", "latency_ms_batch32", "device"}
    for name in ("retrieval/squares/test/i2t_ranks", "retrieval/squares/test/margin", "zeroshot/squares/new/ranks"):
        assert len(found.per_query[name]) == (50 if "test" in name else 20)
    assert not any(array.dtype == object for array in found.per_query.values())


def test_values_equal_a_direct_computation(model, splits):
    found = run(model, splits)
    model.eval()
    samples = splits["squares/test"].samples
    with torch.no_grad():
        pixels = torch.stack([preprocess(Image.open(io.BytesIO(sample.image))) for sample in samples])
        images = model.encode_image(pixels, normalize=True)
        captions = [(i, caption) for i, sample in enumerate(samples) for caption in sample.captions]
        texts = model.encode_text(tokenizer([caption for _, caption in captions]), normalize=True)
    direct = retrieve(images, texts, np.asarray([i for i, _ in captions]))
    values = found.metrics["retrieval"]["squares/test"]["all"]
    for way, ranks in (("i2t", direct.i2t), ("t2i", direct.t2i)):
        for name, value in recall(ranks).items():
            # Equal captions are encoded once here and in different batches there: near-ties may fall either way.
            assert values[f"{way}_{name}"] == pytest.approx(value, abs=100 * 2 / len(ranks))
    np.testing.assert_allclose(found.per_query["retrieval/squares/test/margin"], direct.margin, atol=1e-5)
    classes = torch.stack([model.encode_text(tokenizer([f"a {c} square", c]), normalize=True).mean(0) for c in COLOURS])
    predicted = (images @ torch.nn.functional.normalize(classes, dim=1).T).argmax(1)
    top1 = np.mean([p == sample.label for p, sample in zip(predicted.tolist(), samples, strict=True)])
    assert found.metrics["zeroshot"]["squares/test"]["all"]["top1"] == pytest.approx(100 * top1)


def test_head_learns_what_the_picture_shows(model, splits):
    answers = run(model, splits).metrics["vqa"]["squares/test"]
    assert answers["all"]["yes_no"] == 100 and answers["all"]["other"] > answers["question_only"]["other"] + 20


def test_everything_is_encoded_once(model, splits):
    pictures, texts = 0, Counter()
    image, text = model.encode_image, model.encode_text

    def encode_image(pixels, normalize=False):
        nonlocal pictures
        pictures += len(pixels)
        return image(pixels, normalize)

    def encode_text(tokens, normalize=False):
        texts.update(map(tuple, tokens.tolist()))
        return text(tokens, normalize)

    model.encode_image, model.encode_text = encode_image, encode_text
    run(model, splits, TASKS.model_copy(update={"zeroshot": ()}))
    assert all(set(split.reads.values()) == {1} and len(split.reads) == len(split) for split in splits.values())
    assert pictures == 120 + 50 + 20 + 1 + 1 + 32  # the three splits, one for FLOPs, the two timed calls
    texts[tuple(tokenizer(["a picture"])[0].tolist())] -= 1  # for FLOPs
    assert max(texts.values()) == 1


def test_same_seed_same_result_whatever_ran_before(model, splits):
    limited = TASKS.model_copy(update={"vqa": TASKS.vqa.model_copy(update={"max_questions": 101})})
    results = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        results.append(run(model, splits, limited))
    for name, array in results[0].per_query.items():
        np.testing.assert_array_equal(array, results[1].per_query[name])
    strip = [{task: values for task, values in result.metrics.items() if task != "efficiency"} for result in results]
    assert strip[0] == strip[1]
    assert strip[0]["vqa"]["squares/test"]["all"]["training_questions"] == 101


def test_a_limit_reads_only_what_it_needs_and_agrees_with_a_full_pass(model, splits):
    limited = TASKS.model_copy(update={"vqa": TASKS.vqa.model_copy(update={"max_questions": 60})})
    alone = run(model, splits, limited)
    assert sum(splits["squares/train"].reads.values()) == 32  # two batches of 16, two questions each, hold 60
    both = run(model, splits, limited.model_copy(update={"validation": ("squares/train",)}))
    alone, both = (found.per_query["vqa/squares/test/accuracy"] for found in (alone, both))
    assert np.mean(alone != both) < 0.02  # batches of another make-up round differently


def test_workers_change_nothing(model, splits):
    tasks = EvaluationConfig(retrieval=["squares/test"], latency=TASKS.latency)
    alone, many = run(model, splits, tasks), run(model, splits, tasks, workers=2)
    for name, array in alone.per_query.items():
        np.testing.assert_array_equal(array, many.per_query[name])


def test_mode_of_the_model_is_restored(model, splits):
    model.train()
    run(model, splits, EvaluationConfig(zeroshot=["squares/test"], latency=TASKS.latency))
    assert model.training


def change(split: FakeSplit, **fields) -> None:
    split.samples = [replace(sample, **fields) for sample in split.samples]


BROKEN = {
    "no captions": (lambda s: change(s, captions=[]), r"evaluation\.retrieval = 'squares/test'.*no caption"),
    "no labels": (lambda s: change(s, label=None), r"evaluation\.zeroshot = 'squares/test'.*no labels"),
    "label too large": (lambda s: change(s, label=4), r"evaluation\.zeroshot = 'squares/test'.*label 4 of 4 classes"),
    "no questions": (lambda s: change(s, questions=[]), r"evaluation\.vqa = 'squares/test'.*no questions"),
    "no answers": (lambda s: change(s, questions=[Question("?", [], "other", 7)]), r"evaluation\.vqa.*no answer to question 7"),
    "no samples": (lambda s: s.samples.clear(), r"evaluation = 'squares/test'.*empty"),
    "not a picture": (lambda s: change(s, image=b"junk"), r"squares/test = 's0000'.*cannot be opened"),
    "reserved stratum": (lambda s: change(s, stratum="all"), r"stratum = 'all'"),
    "no classes": (lambda s: (s.directory / "classes.json").unlink(), r"classes\.json.*no zero-shot classes"),
}


@pytest.mark.parametrize(("case", "workers"), [*((case, 0) for case in BROKEN), ("not a picture", 1)])
def test_errors_name_split_and_task(model, splits, case, workers):
    damage, message = BROKEN[case]
    damage(splits["squares/test"])
    with pytest.raises(UserError, match=message):
        run(model, splits, workers=workers)


def test_unknown_split(model, splits):
    with pytest.raises(UserError, match=r"'squares/tset'.*no such split\n.*did you mean 'squares/test'"):
        run(model, splits, EvaluationConfig(retrieval=["squares/tset"]))


def test_diverged_model_is_refused(model, splits):
    model.visual.proj.data[0, 0] = torch.nan
    with pytest.raises(UserError, match=r"image embeddings.*not finite"):
        run(model, splits)


def test_samples_without_stratum_or_label_are_left_out_of_the_breakdown(model, splits):
    test = splits["squares/test"]
    test.samples = [replace(s, stratum=None, label=None) if i < 10 else s for i, s in enumerate(test.samples)]
    found = run(model, splits)
    zeroshot = found.metrics["zeroshot"]["squares/test"]
    assert zeroshot["all"]["images"] == 40 and set(zeroshot) == {"all", *STRATA}
    retrieval = found.metrics["retrieval"]["squares/test"]
    assert retrieval["all"]["images"] == 50 and sum(retrieval[stratum]["images"] for stratum in STRATA) == 40


def test_nothing_asked_but_efficiency(model):
    found = run(model, {}, EvaluationConfig(latency=TASKS.latency))
    assert found.metrics["efficiency"]["image_parameters"] > 0 and not found.per_query
