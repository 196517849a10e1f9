"""Parameters and FLOPs against published figures of full-size models, a closed form, and latency's bookkeeping."""

from __future__ import annotations

import logging

import open_clip
import pytest
import torch

from cmapkd.config.evaluation import LatencyConfig
from cmapkd.evaluation import efficiency as measure


@pytest.mark.parametrize(
    ("name", "image_parameters", "image_flops"), [("ViT-B-16", 86.19e6, 35.13e9), ("ViT-L-14", 303.97e6, 162.03e9)]
)
def test_published_figures(name, image_parameters, image_flops):
    """Figures of open_clip's model profile, image towers at 224 px; nothing is computed on the meta device."""
    logging.disable(logging.WARNING)  # "no pretrained weights loaded" is the point here
    model = open_clip.create_model(name, pretrained=None, device="meta").eval()
    logging.disable(logging.NOTSET)
    sizes = measure.parameters(model)
    assert sizes["image_parameters"] == pytest.approx(image_parameters, rel=1e-4)
    assert sizes["total_parameters"] == sizes["image_parameters"] + sizes["text_parameters"] + 1  # logit_scale
    image, text = torch.empty(1, 3, 224, 224, device="meta"), torch.zeros(1, 77, dtype=torch.long, device="meta")
    counts = measure.flops(model, image, text)
    assert counts["image_flops"] == pytest.approx(image_flops, rel=0.01)
    assert counts["total_flops"] == counts["image_flops"] + counts["text_flops"]


WIDTH, LAYERS, PATCH, SIZE, CONTEXT, EMBED = 64, 3, 8, 32, 16, 48


@pytest.fixture(params=[open_clip.CLIP, open_clip.CustomTextCLIP])
def model(request):
    vision = {"layers": LAYERS, "width": WIDTH, "head_width": 32, "patch_size": PATCH, "image_size": SIZE}
    text = {"context_length": CONTEXT, "width": WIDTH, "heads": 2, "layers": LAYERS, "vocab_size": 100}
    torch.manual_seed(0)
    return request.param(EMBED, vision, text).eval()


def transformer(tokens: int) -> int:
    """Multiply-adds of the blocks: four projections, the two products of attention, and an MLP of four times the width."""
    return LAYERS * (12 * tokens * WIDTH**2 + 2 * tokens**2 * WIDTH)


def test_closed_form_on_the_cpu(model):
    """On the CPU attention runs in fused kernels that a plain counter misses."""
    text = torch.randint(99, (1, CONTEXT))
    found = measure.efficiency(model, text, LatencyConfig(warmup=0, repeats=1, batch_sizes=[2]))
    patches = (SIZE // PATCH) ** 2
    assert found["image_flops"] == 2 * (patches * 3 * PATCH**2 * WIDTH + transformer(patches + 1) + WIDTH * EMBED)
    assert found["text_flops"] == 2 * (transformer(CONTEXT) + WIDTH * EMBED)
    assert found["total_flops"] == found["image_flops"] + found["text_flops"]
    block = 12 * WIDTH**2 + 13 * WIDTH  # weights and biases of attention, MLP and two norms
    image = 3 * PATCH**2 * WIDTH + WIDTH * (patches + 2) + LAYERS * block + 4 * WIDTH + WIDTH * EMBED
    text_size = WIDTH * (100 + CONTEXT) + LAYERS * block + 2 * WIDTH + WIDTH * EMBED
    assert (found["image_parameters"], found["text_parameters"]) == (image, text_size)
    assert found["total_parameters"] == image + text_size + 1
    assert found["latency_ms_batch2"] > 0


def test_settings_are_restored(model):
    before = torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(RuntimeError):
        measure.flops(model, torch.empty(1, 5, SIZE, SIZE), torch.zeros(1, CONTEXT, dtype=torch.long))
    assert torch.backends.mha.get_fastpath_enabled() == before


def test_latency_is_the_median_per_image_after_warmup(monkeypatch):
    calls: list[int] = []
    durations = iter([9.0, 2.0, 4.0, 50.0, 6.0])  # per batch size: the clock runs in the timed calls only

    class Timed(torch.nn.Module):
        now = 0.0

        def encode_image(self, images):
            calls.append(len(images))
            if len(calls) in (3, 4, 5, 8, 9):
                self.now += next(durations)

    model = Timed()
    monkeypatch.setattr(measure.time, "perf_counter", lambda: model.now)
    found = measure.latency(model, torch.zeros(1, 3, 4, 4), LatencyConfig(warmup=2, repeats=3, batch_sizes=[1]))
    assert found["latency_ms_batch1"] == 4000 and calls == [1] * 5
    found = measure.latency(model, torch.zeros(1, 3, 4, 4), LatencyConfig(warmup=2, repeats=2, batch_sizes=[4]))
    assert found["latency_ms_batch4"] == 28000 / 4 and calls[5:] == [4] * 4


def test_device_has_a_name():
    name = measure.device_name(torch.device("cpu"))
    threads = torch.get_num_threads()
    assert name.endswith(f"({threads} thread{'s' * (threads > 1)})") and len(name) > 15
