"""Ranks, recall and margins against a brute force written independently, against clip_benchmark's definition, and by hand."""

from __future__ import annotations

import resource

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmapkd.errors import UserError
from cmapkd.evaluation.retrieval import recall, retrieval_metrics, retrieve


def brute_force(images: np.ndarray, texts: np.ndarray, owner: np.ndarray) -> tuple[list[int], list[int], list[float]]:
    """Sort all candidates of each query by (-score, index) and look where the right ones are."""
    scores = images.astype(np.float64) @ texts.astype(np.float64).T
    i2t = [
        min(place for place, j in enumerate(sorted(range(len(texts)), key=lambda j: (-row[j], j))) if owner[j] == i)
        for i, row in enumerate(scores)
    ]
    t2i = [sorted(range(len(images)), key=lambda i: (-scores[i, j], i)).index(owner[j]) for j in range(len(texts))]
    margin = [row[owner == i].max() - row[owner != i].max(initial=-np.inf) for i, row in enumerate(scores)]
    return i2t, t2i, margin


@st.composite
def problems(draw):
    """Few distinct integer embeddings, so that scores are exact and ties abound; captions in any order."""
    count = draw(st.integers(2, 7))
    owner = np.asarray(draw(st.permutations([*range(count), *draw(st.lists(st.integers(0, count - 1), max_size=9))])))
    numbers = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return numbers.integers(-1, 2, (count, 3)), numbers.integers(-1, 2, (len(owner), 3)), owner


@settings(deadline=None, max_examples=200)
@given(problems(), st.integers(1, 5))
def test_brute_force_with_ties(problem, chunk):
    images, texts, owner = problem
    found = retrieve(torch.from_numpy(images).float(), torch.from_numpy(texts).float(), owner, chunk)
    i2t, t2i, margin = brute_force(images, texts, owner)
    assert found.i2t.tolist() == i2t and found.t2i.tolist() == t2i
    assert found.margin.tolist() == margin
    assert found.i2t.dtype == found.t2i.dtype == np.int32


def embeddings(count: int, captions: int, dimensions: int = 32, noise: float = 1.5, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    owner = torch.arange(count).repeat_interleave(captions)
    images = torch.randn(count, dimensions, generator=generator)
    texts = images[owner] + noise * torch.randn(len(owner), dimensions, generator=generator)
    return *(torch.nn.functional.normalize(x, dim=1) for x in (images, texts)), owner


def recall_as_clip_benchmark(scores: torch.Tensor, positive: torch.Tensor, k: int) -> float:
    """clip_benchmark 1.6.2 (metrics/zeroshot_retrieval.py): any positive among the top k of each row."""
    return positive.gather(1, scores.topk(k, dim=1).indices).any(1).float().mean().item() * 100


@pytest.mark.parametrize("chunk", [7, 64, 1000])
def test_recall_is_that_of_clip_benchmark(chunk):
    images, texts, owner = embeddings(97, 5)
    found = retrieve(images, texts, owner, chunk)
    scores, positive = texts @ images.T, torch.nn.functional.one_hot(owner).bool()
    for k in (1, 5, 10):
        assert recall(found.t2i)[f"r{k}"] == pytest.approx(recall_as_clip_benchmark(scores, positive, k))
        assert recall(found.i2t)[f"r{k}"] == pytest.approx(recall_as_clip_benchmark(scores.T, positive.T, k))


def test_clip_benchmark_itself():
    """The same through clip_benchmark's own evaluation loop, where it is installed."""
    peer = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")
    images, texts, owner = embeddings(60, 5)

    class Lookup(torch.nn.Module):
        def encode_image(self, index):
            return images[index]

        def encode_text(self, index):
            return texts[index]

    batches = [(torch.arange(a, a + 20), [list(range(5 * i, 5 * i + 5)) for i in range(a, a + 20)]) for a in (0, 20, 40)]
    theirs = peer.evaluate(Lookup(), batches, torch.tensor, "cpu", amp=False, recall_k_list=[1, 5, 10])
    ours = retrieval_metrics(retrieve(images, texts, owner), owner.numpy())
    for k in (1, 5, 10):
        assert ours[f"i2t_r{k}"] == pytest.approx(100 * theirs[f"text_retrieval_recall@{k}"])
        assert ours[f"t2i_r{k}"] == pytest.approx(100 * theirs[f"image_retrieval_recall@{k}"])


def test_order_of_captions_does_not_matter():
    images, texts, owner = embeddings(40, 3)
    order = torch.randperm(len(owner), generator=torch.Generator().manual_seed(1))
    straight, mixed = retrieve(images, texts, owner), retrieve(images, texts[order], owner[order])
    assert (straight.i2t == mixed.i2t).all() and (straight.t2i[order] == mixed.t2i).all()
    np.testing.assert_allclose(straight.margin, mixed.margin, atol=1e-6)


def test_collapsed_model_scores_chance():
    point = torch.nn.functional.normalize(torch.ones(1, 8), dim=1)
    owner = torch.arange(50).repeat_interleave(5)
    found = retrieve(point.expand(50, -1), point.expand(250, -1), owner)
    assert recall(found.i2t) == {"r1": 2.0, "r5": 2.0, "r10": 4.0} and recall(found.t2i) == {"r1": 2.0, "r5": 10.0, "r10": 20.0}


@pytest.mark.parametrize("chunk", [1, 100, 1024])
def test_equal_embeddings_tie_wherever_they_stand(chunk):
    """Rounding must not decide between equal candidates: all of them get the score of the first."""
    images, texts, _ = embeddings(37, 1, dimensions=97)
    owner = torch.arange(37 * 9)
    ranks = retrieve(images.repeat(9, 1), texts.repeat(9, 1), owner, chunk)
    alone = retrieve(images, texts, torch.arange(37), chunk)
    copy = np.arange(37 * 9) // 37
    assert (ranks.i2t == 9 * np.tile(alone.i2t, 9) + copy).all() and (ranks.t2i == 9 * np.tile(alone.t2i, 9) + copy).all()


def test_one_image_has_no_margin():
    found = retrieve(torch.ones(1, 2), torch.ones(3, 2), torch.zeros(3))
    assert found.i2t.tolist() == [0] and np.isnan(found.margin).all()


def test_stratum_limits_queries_not_candidates():
    images, texts, owner = embeddings(60, 2)
    found = retrieve(images, texts, owner)
    mask = np.arange(60) < 20
    metrics = retrieval_metrics(found, owner.numpy(), mask)
    assert (metrics["images"], metrics["captions"]) == (20, 40)
    assert metrics["i2t_r5"] == np.mean(found.i2t[:20] < 5) * 100 and metrics["t2i_r5"] == np.mean(found.t2i[:40] < 5) * 100
    values = [metrics[f"{way}_r{k}"] for way in ("i2t", "t2i") for k in (1, 5, 10)]
    assert metrics["mean_recall"] == pytest.approx(np.mean(values))


@pytest.mark.parametrize("broken", ["image", "text"])
def test_nan_is_refused(broken):
    images, texts, owner = embeddings(5, 2)
    (images if broken == "image" else texts)[3] = torch.nan
    with pytest.raises(UserError, match=f"{broken} embeddings.*1 of .* not finite"):
        retrieve(images, texts, owner)


def test_shapes_are_checked():
    images, texts, owner = embeddings(5, 2)
    with pytest.raises(ValueError, match="at least one caption"):
        retrieve(images, texts[2:], owner[2:])
    with pytest.raises(ValueError, match="do not fit"):
        retrieve(images, texts, owner[1:])
    with pytest.raises(ValueError, match="no queries"):
        recall(np.zeros(0, np.int32))


def test_memory_does_not_grow_with_the_product():
    """6,000 x 12,000 scores are 288 MB at once; in blocks of 64 rows they are 3 MB."""
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(6000, 8, generator=generator), torch.randn(12000, 8, generator=generator)
    owner = torch.arange(6000).repeat_interleave(2)
    retrieve(images[:100], texts[:200], owner[:200], 64)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    retrieve(images, texts, owner, 64)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB
