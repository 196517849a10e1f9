"""Zero-shot classification against a straightforward independent computation."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import top_k_accuracy_score

from cmapkd.errors import UserError
from cmapkd.evaluation.zeroshot import ClassPrompts, build_classifier, class_ranks, read_prompts, zeroshot_metrics


class Bag(torch.nn.Module):
    """A text tower whose embedding is a fixed random vector for each character, summed and bent."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.randn(256, 24, generator=torch.Generator().manual_seed(0))

    def encode_text(self, tokens: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        features = (self.table[tokens] * (tokens > 0)[..., None]).sum(1).tanh()
        return F.normalize(features, dim=-1) if normalize else features


def tokenizer(texts: list[str]) -> torch.Tensor:
    return torch.tensor([[*text.encode()[:40], *[0] * (40 - len(text))] for text in texts])


PROMPTS = ClassPrompts(tuple(f"class {chr(97 + i)}{i}" for i in range(13)), ("a photo of a {}.", "art of the {}", "{}!"))


@pytest.mark.parametrize("batch_size", [1, 7, 512])
def test_classifier(batch_size):
    weights = build_classifier(Bag(), tokenizer, PROMPTS, device="cpu", batch_size=batch_size)
    for name, row in zip(PROMPTS.names, weights, strict=True):
        vectors = [Bag().encode_text(tokenizer([template.replace("{}", name)]))[0].numpy() for template in PROMPTS.templates]
        mean = np.mean([vector / np.linalg.norm(vector) for vector in vectors], axis=0)
        np.testing.assert_allclose(row.numpy(), mean / np.linalg.norm(mean), atol=1e-6)


def test_clip_benchmark_itself():
    """The same classifier by clip_benchmark, where it is installed (its `accuracy` fails with numpy 2.4)."""
    peer = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
    templates = [template.replace("{}", "{c}") for template in PROMPTS.templates]
    theirs = peer.zero_shot_classifier(Bag(), tokenizer, list(PROMPTS.names), templates, "cpu", amp=False)  # (D, C)
    ours = build_classifier(Bag(), tokenizer, PROMPTS, device="cpu")
    torch.testing.assert_close(ours, theirs.T, atol=1e-6, rtol=0)


def test_accuracy_is_that_of_scikit_learn():
    generator = torch.Generator().manual_seed(1)
    classifier = build_classifier(Bag(), tokenizer, PROMPTS, device="cpu")
    labels = torch.randint(13, (300,), generator=generator)
    images = F.normalize(classifier[labels] + 0.3 * torch.randn(300, 24, generator=generator), dim=1)
    metrics = zeroshot_metrics(class_ranks(images, classifier, labels, chunk=7), 13)
    scores = (images @ classifier.T).numpy()
    for k in (1, 5):
        assert metrics[f"top{k}"] == pytest.approx(100 * top_k_accuracy_score(labels, scores, k=k, labels=range(13)))
    assert 0 < metrics["top1"] < metrics["top5"] < 100
    assert (metrics["images"], metrics["classes"]) == (300, 13)


def test_ties_go_to_the_lower_class():
    point = torch.ones(1, 2)
    assert class_ranks(point.expand(4, -1), point.expand(4, -1), np.arange(4)).tolist() == [0, 1, 2, 3]


def test_nan_is_refused():
    with pytest.raises(UserError, match="image embeddings"):
        class_ranks(torch.tensor([[torch.nan, 1.0]]), torch.ones(2, 2), np.zeros(1))


@pytest.mark.parametrize(
    "content", [None, {}, {"classes": ["a"], "templates": ["no place"]}, {"classes": [], "templates": ["{}"]}]
)
def test_unusable_classes(tmp_path, content):
    if content is not None:
        (tmp_path / "classes.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"classes\.json"):
        read_prompts(tmp_path)


def test_read_prompts(tmp_path):
    (tmp_path / "classes.json").write_text(json.dumps({"classes": ["a", "b"], "templates": ["x {}"]}))
    assert read_prompts(tmp_path) == ClassPrompts(("a", "b"), ("x {}",))
