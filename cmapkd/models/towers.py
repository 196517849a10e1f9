"""Any open_clip model as it is, with taps at the four quarter depths of both towers.

The taps are what ``open_clip``'s own ``forward_intermediates`` returns (and, for text towers of ``transformers``, the
``hidden_states`` of the wrapped model): no forward code is copied, so a checkpoint of ours is a plain open_clip
checkpoint and gives the same embeddings without this package.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.factory import PreprocessCfg
from open_clip.transformer import text_global_pool
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cmapkd.errors import UserError, nearest
from cmapkd.files import atomic_path, read_json, write_json
from cmapkd.models import configs, formats
from cmapkd.models import weights as pretrained
from cmapkd.models.weights import CONFIG as CONFIG
from cmapkd.models.weights import WEIGHTS as WEIGHTS


@dataclass
class TowerOutputs:
    """Embeddings and taps of one batch of ``B`` pairs.

    Attributes:
        image: L2-normalised image embeddings, (B, E).
        text: L2-normalised text embeddings, (B, E).
        logit_scale: the model's scale, already exponentiated, ().
        image_taps: patch tokens as maps after blocks d/4, d/2, 3d/4, d, each (B, C, g, g); empty without taps.
        text_taps: tokens after the same fractions of the text tower, each (B, N, D); empty without taps.
        text_mask: True where a token is not padding, (B, N); None without taps.
        summary: position of the summary token (end-of-text, or [CLS]), (B,); None without taps.
        patches: patch tokens of the last block in the space of the embeddings, not normalised, (B, E, g, g); None unless asked.
    """

    image: Tensor
    text: Tensor
    logit_scale: Tensor
    image_taps: tuple[Tensor, ...] = ()
    text_taps: tuple[Tensor, ...] = ()
    text_mask: Tensor | None = None
    summary: Tensor | None = None
    patches: Tensor | None = None


@dataclass(frozen=True)
class TapShapes:
    """Sizes of a model: what the modules of an objective need to be built for it.

    Attributes:
        image_width, text_width: of the tokens in the blocks of the two towers.
        grid: patches along the height and the width of a picture.
        context_length: tokens of a text.
        image_layers, text_layers: blocks of the two towers.
        embed_dim: of the embeddings, before normalisation.
    """

    image_width: int
    text_width: int
    grid: tuple[int, int]
    context_length: int
    image_layers: int
    text_layers: int
    embed_dim: int


def quarter_depths(depth: int) -> tuple[int, int, int, int]:
    """0-based indices of the blocks after which to tap: d/4, d/2, 3d/4, d (3, 6, 9, 12 of 12).

    Raises:
        UserError: fewer than four blocks.
    """
    if depth < 4:
        raise UserError(
            key="layers", value=depth, reason="a tower needs at least four blocks for four taps", fix="use a deeper model"
        )
    first, second, third = (round(depth * quarter / 4) - 1 for quarter in (1, 2, 3))
    return first, second, third, depth - 1


_INPUT = {"conv1", "class_embedding", "positional_embedding", "ln_pre", "token_embedding", "embeddings"}  # before the blocks


def precedes(parameter: str, quarter: int, shapes: TapShapes) -> bool:
    """Whether a parameter of an open_clip model, by its name, takes part in the tap of a quarter depth (0 to 3)."""
    parts = parameter.split(".")
    block = re.search(r"\.(?:resblocks|layers?)\.(\d+)\.", parameter)
    if block is None:
        return not _INPUT.isdisjoint(parts)
    return int(block[1]) <= quarter_depths(shapes.image_layers if "visual" in parts else shapes.text_layers)[quarter]


def is_projection(parameter: str) -> bool:
    """Whether a parameter of an open_clip model, by its name, maps a tower's output to the embedding or scales the logits."""
    return bool(re.search(r"(^|\.)(visual\.proj|text\.proj|text_projection|logit_scale)(\.|$)", parameter))


def create(
    name: str,
    config: Mapping[str, Any] | None,
    init: str,
    key: str = "pretrained",
    preprocessing: Mapping[str, Any] | None = None,
) -> nn.Module:
    """An open_clip model by name (or from the content of a file in ``config/models/``) with random or given weights.

    Args:
        name: open_clip model name; the name under which ``config`` is known otherwise.
        config: architecture in open_clip's JSON form, or None for a name that open_clip knows.
        init: ``random``, a pretrained tag of that model, or the path of a checkpoint or of a directory of open_clip's or
            Hugging Face's (the forms of ``cmapkd.models.formats``).
        key: where the experiment names ``init``.
        preprocessing: mean, std, interpolation and resize_mode that the experiment states; they win over what is known.

    Raises:
        UserError: unknown name, tag or path, a patch that does not divide the image, or weights that are not on this machine,
            of another architecture, or described as those of another model.
    """
    if config is not None:
        _register(name, config)
    elif name not in open_clip.list_models():
        raise UserError(
            key="model", value=name, reason="open_clip knows no such model", fix=nearest(name, open_clip.list_models())
        )
    configs.check_patches(name, open_clip.get_model_config(name) or {})
    found = pretrained.check_init(name, init, key, config, preprocessing)
    model = _build(name, init, key)
    known: Mapping[str, Any] = {}
    if found is not None:
        given, described = found
        formats.fill(model, given.state, key, init)
        known = described.preprocessing()
    elif init != "random" and not Path(init).exists():
        path = pretrained.require(name, init, key)
        formats.fill(model, formats.read_weights(path, key).state, key, init)
        known = {"interpolation": "bicubic", **pretrained.about(name, init)}
    pretrained.set_preprocess(model, known, preprocessing or {}, key, init)
    return model


def _build(name: str, init: str, key: str) -> nn.Module:
    """The architecture with random weights, or with those of big_vision's arrays, which open_clip reads."""
    arrays = init if Path(init).suffix in (".npz", ".npy") and Path(init).is_file() else None
    try:
        with _quiet():
            model: nn.Module = open_clip.create_model(name, pretrained=arrays, pretrained_text=False, output_dict=True)
    except (RuntimeError, KeyError, ValueError, AttributeError, AssertionError) as error:
        if arrays is None:
            raise
        reason = (
            f"is not an archive of big_vision's weights of {name}: {str(error).splitlines()[0][:200] if str(error) else ''}"
        )
        raise UserError(key=key, value=init, reason=reason, fix="name the model that these weights are of") from None
    return model


def _register(name: str, config: Mapping[str, Any]) -> None:
    """Make an architecture known to open_clip under ``name``; open_clip reads it from a file."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.json"
        path.write_text(json.dumps(config))
        open_clip.add_model_config(path)


def load(directory: Path) -> nn.Module:
    """The model of an open_clip directory (weights in safetensors beside ``open_clip_config.json``)."""
    with _quiet():
        return open_clip.create_model(f"local-dir:{directory}", output_dict=True)


def save(model: nn.Module, name: str, directory: Path) -> None:
    """Write ``model`` as a plain open_clip directory, each file atomically."""
    config = open_clip.get_model_config(name)
    preprocess = open_clip.get_model_preprocess_cfg(model)
    write_json(directory / CONFIG, {"model_cfg": config, "preprocess_cfg": preprocess})
    with atomic_path(directory / WEIGHTS) as temporary:
        # Always fp32, so that a student trained in half precision loads like any other.
        save_file(
            formats.apart({key: value.detach().float().cpu().contiguous() for key, value in model.state_dict().items()}),
            temporary,
        )


def load_weights(model: nn.Module, directory: Path) -> None:
    """Fill ``model`` with the weights of an open_clip directory (every key must match), and take over its preprocessing.

    Mean and deviation of the pictures belong to weights, not to an architecture: pretrained ones may be used to others.
    """
    model.load_state_dict(load_file(directory / WEIGHTS))
    open_clip.set_model_preprocess_cfg(model, read_json(directory / CONFIG, preprocess_cfg=dict)["preprocess_cfg"])


def tokenizer_of(name: str) -> Any:
    """open_clip's tokenizer for a model name; truncation keeps the end-of-text token."""
    return _tokenizer(name, json.dumps(open_clip.get_model_config(name), sort_keys=True))


@cache
def _tokenizer(name: str, config: str) -> Any:
    """One for each name and architecture: reading the vocabulary takes a tenth of a second."""
    return open_clip.get_tokenizer(name)


def preprocess_of(model: nn.Module) -> PreprocessCfg:
    """Image size, mean, standard deviation and interpolation the model expects."""
    return PreprocessCfg(**open_clip.get_model_preprocess_cfg(model))


class Adapter:
    """Pictures as one model expects them, from those prepared for another: size, mean and deviation.

    They stay the same cut of the same picture, so that what two models see at a place can be compared.
    """

    def __init__(self, of: PreprocessCfg, to: PreprocessCfg) -> None:
        self.of, self.to = of, to
        self.size = _sides(to.size)
        self.resizes = _sides(of.size) != self.size
        self.normalises = (tuple(of.mean), tuple(of.std)) != (tuple(to.mean), tuple(to.std))

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, H', W') of the same type; ``images`` itself where nothing differs."""
        if not (self.resizes or self.normalises):
            return images
        values = images.float()
        mean, std, new_mean, new_std = (
            values.new_tensor(value).view(3, 1, 1) for value in (self.of.mean, self.of.std, self.to.mean, self.to.std)
        )
        values = values * std + mean  # shares of full intensity, in [0, 1]
        if self.resizes:
            values = F.interpolate(values, self.size, mode="bicubic", antialias=True).clamp(0, 1)
        return ((values - new_mean) / new_std).to(images.dtype)


def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


class Tapped(nn.Module):
    """An open_clip model whose forward can also return its taps.

    The wrapped model stays reachable as ``model``; parameters carry its names behind ``model.``.
    """

    model: Any  # open_clip offers no type for what its models have in common

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._image_indices = list(quarter_depths(_vision_depth(model)))
        self._hugging_face = not _has_resblocks(text_tower(model))
        self._text_layers = int(text_tower(model).config.num_hidden_layers) if self._hugging_face else len(_text_blocks(model))
        self._text_indices = list(quarter_depths(self._text_layers))

    def forward(self, images: Tensor, tokens: Tensor | None, taps: bool = True, patches: bool = False) -> TowerOutputs:
        """Encode ``images`` (B, 3, H, W) and ``tokens`` (B, N); ``patches`` need taps.

        Without taps ``tokens`` may be None: the text tower is not run, and ``text`` is empty, (B, 0).
        """
        scale = self.model.logit_scale.exp()
        if tokens is None:
            assert not taps
            return TowerOutputs(self.model.encode_image(images, normalize=True), images.new_zeros(len(images), 0), scale)
        if not taps:
            return TowerOutputs(
                self.model.encode_image(images, normalize=True), self.model.encode_text(tokens, normalize=True), scale
            )
        image, image_taps = self.image_taps(images)
        text, text_taps, mask, summary = self.text_taps(tokens)
        dense = self._project(image_taps[-1]) if patches else None
        return TowerOutputs(image, text, scale, image_taps, text_taps, mask, summary, dense)

    def image_taps(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Normalised embeddings (B, E) of ``images`` (B, 3, H, W), and the maps of the four quarter depths."""
        seen = self.model.forward_intermediates(image=images, image_indices=self._image_indices)
        return seen["image_features"], tuple(seen["image_intermediates"])

    def text_taps(self, tokens: Tensor) -> tuple[Tensor, tuple[Tensor, ...], Tensor, Tensor]:
        """Of ``tokens`` (B, N) normalised embeddings (B, E), the four taps, what is no padding, the summary's place (B,)."""
        if self._hugging_face:
            text, text_taps, mask, summary = self._hugging_face_text(tokens)
            return text, tuple(text_taps), mask, summary
        read = self.model.forward_intermediates(text=tokens, text_indices=self._text_indices)
        summary, mask = self._summary(tokens)
        return read["text_features"], tuple(read["text_intermediates"]), mask, summary

    def _project(self, maps: Tensor) -> Tensor:
        """What the tower does to its pooled token, done to every patch: final norm and projection. (B, C, g, g) -> (B, E, g, g)

        Raises:
            UserError: the tower pools by attention, so its projection is not of patches.
        """
        visual = self.model.visual
        if getattr(visual, "attn_pool", None) is not None:
            reason = "its image tower pools by attention, so single patches have no place among the embeddings"
            raise UserError(key="model", value=type(self.model).__name__, reason=reason, fix="choose another model or method")
        patches = visual.ln_post(maps.permute(0, 2, 3, 1))  # (B, g, g, C)
        return (patches if visual.proj is None else patches @ visual.proj).permute(0, 3, 1, 2)

    def _summary(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Position (B,) of the token that open_clip pools (CLIP: end-of-text), and what of ``tokens`` is no padding (B, N)."""
        tower = text_tower(self.model)
        own = tower is self.model  # where the text tower's settings carry a prefix
        pool = str(getattr(tower, "text_pool_type" if own else "pool_type"))
        place = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)  # (B, N)
        # open_clip's own pooling, applied to positions instead of features.
        eos = getattr(tower, "text_eos_id" if own else "eos_id", None)
        summary = text_global_pool(place[..., None], tokens, pool, eos_token_id=eos)[:, 0]
        return summary, place <= summary[:, None] if pool in ("argmax", "eos") else tokens != getattr(tower, "pad_id", 0)

    def _hugging_face_text(self, tokens: Tensor) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
        tower = self.model.text
        with _hidden_states(tower.transformer) as outputs:
            text = F.normalize(tower(tokens), dim=-1)  # (B, E)
        hidden = outputs[0].hidden_states[1:]  # the first entry is the embedding layer
        mask = tokens != tower.config.pad_token_id  # (B, N)
        summary = torch.full((len(tokens),), getattr(tower.pooler, "cls_token_position", 0), device=tokens.device)
        return text, [hidden[index] for index in self._text_indices], mask, summary

    def shapes(self) -> TapShapes:
        """Widths and grid of the taps."""
        visual, text = self.model.visual, text_tower(self.model)
        size = visual.image_size if isinstance(visual.image_size, tuple) else (visual.image_size, visual.image_size)
        patch = visual.patch_size if isinstance(visual.patch_size, tuple) else (visual.patch_size, visual.patch_size)
        width = int(text.config.hidden_size) if self._hugging_face else int(_text_blocks(self.model)[0].attn.embed_dim)
        context = int(getattr(self.model, "context_length", 77) or 77)
        grid = (size[0] // patch[0], size[1] // patch[1])
        layers = _vision_depth(self.model), self._text_layers
        return TapShapes(int(visual.transformer.width), width, grid, context, *layers, int(visual.output_dim))


def _vision_depth(model: Any) -> int:
    blocks = getattr(getattr(model.visual, "transformer", None), "resblocks", None)
    if blocks is None:
        raise UserError(
            key="model",
            value=type(model.visual).__name__,
            reason="the pyramid taps a ViT image tower",
            fix="choose a ViT model",
        )
    return len(blocks)


def text_tower(model: Any) -> Any:
    """The text tower: `model.text`, or the model itself where its class keeps the text tower at the top level."""
    return getattr(model, "text", model)


def _has_resblocks(tower: Any) -> bool:
    return hasattr(getattr(tower, "transformer", None), "resblocks")


def _text_blocks(model: Any) -> Any:
    return text_tower(model).transformer.resblocks


@contextmanager
def _hidden_states(transformer: Any) -> Iterator[list[Any]]:
    """Have a `transformers` model keep its hidden states while open_clip's wrapper calls it."""
    outputs: list[Any] = []
    before = transformer.config.output_hidden_states
    transformer.config.output_hidden_states = True
    handle = transformer.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()
        transformer.config.output_hidden_states = before


@contextmanager
def _quiet() -> Iterator[None]:
    """open_clip reports each step of a creation on the root logger, and warns of random weights where those are meant."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
