"""A tiny CLIP and its weights in the forms in which publishers give them out, made here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny
import torch
from torch import Tensor, nn

from cmapkd.models import towers

CONFIG = {**tiny.architecture(image=32, vocab_size=96), "quick_gelu": True}
GELU = {**CONFIG, "quick_gelu": False}


def model(seed: int = 0, config: dict[str, Any] = CONFIG) -> Any:
    """A random model; every weight, biases too, is of no special value."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = towers.create(f"tiny-forms-{config['quick_gelu']}", config, "random").eval()
        for parameter in made.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter) if parameter.ndim else 0
    return made


def outputs(of: Any) -> Tensor:
    """Normalised embeddings of fixed images and texts."""
    with torch.no_grad():
        images = of.eval().encode_image(tiny.images(2, size=32), normalize=True)
        return torch.cat([images, of.encode_text(tiny.tokens(2), normalize=True)])


def openai(state: dict[str, Tensor]) -> nn.Module:
    """A module with the names of OpenAI's archives: weights in half precision, and three numbers."""
    numbers = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(12), "vocab_size": torch.tensor(96)}
    made = _Archive()
    for name, value in {**{n: v.half() for n, v in state.items()}, **numbers}.items():
        here: nn.Module = made
        *above, last = name.split(".")
        for part in above:
            if not hasattr(here, part):
                here.add_module(part, nn.Module())
            here = getattr(here, part)
        here.register_buffer(last, value.clone())
    return made


class _Archive(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def hugging_face(folder: Path, activation: str = "quick_gelu", mean: tuple[float, ...] | None = (0.1, 0.2, 0.3)) -> Any:
    """A ``CLIPModel`` saved as transformers does."""
    from transformers import CLIPConfig, CLIPModel

    shared = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 2}
    text = {**shared, "vocab_size": 96, "max_position_embeddings": 12, "eos_token_id": 2, "hidden_act": activation}
    vision = {**shared, "image_size": 32, "patch_size": 8, "hidden_act": activation}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        made = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()
    made.save_pretrained(folder)
    if mean is not None:
        content = {"image_mean": mean, "image_std": [0.4, 0.5, 0.6], "resample": 2}
        (folder / "preprocessor_config.json").write_text(json.dumps(content))
    return made
