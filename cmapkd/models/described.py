"""What is known of a CLIP model's weights, in whichever form they are given, and of the model that they are to fill.

The shapes of weights do not show everything: with the other activation, another number of heads or another mean of the
images, a model loads without an error and gives somewhat wrong embeddings. So each form states here what it knows, ``None``
standing for what it does not. A contradiction with the named model is refused, and what no source states is a warning.

Sources: open_clip's ``open_clip_config.json`` and its table of tags, the ``config.json`` and ``preprocessor_config.json`` of
``CLIPModel`` (transformers), the three numbers that only OpenAI's archives hold (Radford et al. 2021), and shapes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import Any

from cmapkd.errors import UserError
from cmapkd.models.configs import shipped

log = logging.getLogger(__name__)

OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
OPENAI_HEAD, OPENAI_WIDTH = 64, 512  # width of a head in all of OpenAI's models, and the smallest width of their towers
WORDS = {True: "quick_gelu", False: "gelu"}
_QUICK = "-quickgelu"
# Where the named model may differ: position embeddings are resized, and preprocessing is taken over.
_TAKEN_OVER = {"form", "image_size", "context_length", "mean", "std", "interpolation", "resize_mode", "options"}
_NO_RESULT = {  # options of open_clip that change no embedding: of training, of a start, or of names
    "patch_dropout", "hf_model_pretrained", "timm_model_pretrained", "timm_drop", "timm_drop_path", "output_tokens",
    "tokenizer_mode", "custom_text", "init_logit_scale", "init_logit_bias", "text_mask", "nonscalar_logit_scale",
}  # fmt: skip
_SHOWN = {"layers", "width", "head_width", "patch_size", "image_size", "context_length", "vocab_size", "heads"}


@dataclass(frozen=True)
class WeightsDescription:
    """What is known of weights, or of the model that is to have them; None: it is not known.

    Attributes:
        form: what they were given as, for messages.
        embed_dim: of the embeddings.
        image_size: side of the images [pixels]; a pair where they are not square, as ``patch_size``.
        activation: ``quick_gelu`` or ``gelu``.
        mean, std: of the channels of images, in shares of full intensity.
        interpolation, resize_mode: how images are resized, as open_clip names it.
        options: other options of open_clip's configuration, defaults filled in.
    """

    form: str
    embed_dim: int | None = None
    image_width: int | None = None
    image_layers: int | None = None
    image_heads: int | None = None
    image_size: Any = None
    patch_size: Any = None
    text_width: int | None = None
    text_layers: int | None = None
    text_heads: int | None = None
    context_length: int | None = None
    vocab_size: int | None = None
    activation: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    resize_mode: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def preprocessing(self) -> dict[str, Any]:
        """What is known of how images are prepared, under open_clip's names."""
        names = ("mean", "std", "interpolation", "resize_mode")
        known = {name: value for name in names if (value := getattr(self, name)) is not None}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in known.items()}

    def completed(self, other: WeightsDescription) -> WeightsDescription:
        """This description, with what only ``other`` knows."""
        missing = {f.name: getattr(other, f.name) for f in fields(self) if getattr(self, f.name) in (None, {})}
        return replace(self, **missing)


def of_open_clip(config: Mapping[str, Any], form: str) -> WeightsDescription:
    """A description from ``model_cfg`` and, if it is there, ``preprocess_cfg`` in open_clip's JSON form."""
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    model, preprocess = config.get("model_cfg", {}), config.get("preprocess_cfg") or {}
    given_vision, given_text = dict(model.get("vision_cfg") or {}), dict(model.get("text_cfg") or {})
    vision = {**{f.name: f.default for f in fields(CLIPVisionCfg)}, **given_vision}
    text = {**{f.name: f.default for f in fields(CLIPTextCfg)}, **given_text}
    own_tower = vision["timm_model_name"] is None and not isinstance(vision["layers"], list | tuple)
    own_text = text["hf_model_name"] is None
    options = {f"vision_cfg.{name}": value for name, value in vision.items() if name not in _SHOWN or not own_tower}
    options |= {f"text_cfg.{name}": value for name, value in text.items() if name not in _SHOWN or not own_text}
    options |= {
        name: value for name, value in model.items() if name not in ("vision_cfg", "text_cfg", "embed_dim", "quick_gelu")
    }
    return WeightsDescription(
        form,
        embed_dim=model.get("embed_dim"),
        image_width=vision["width"] if own_tower else None,
        image_layers=vision["layers"] if own_tower else None,
        image_heads=vision["width"] // vision["head_width"] if own_tower else None,
        image_size=_plain(vision["image_size"]) if own_tower else None,
        patch_size=_plain(vision["patch_size"]) if own_tower else None,
        text_width=text["width"] if own_text else None,
        text_layers=text["layers"] if own_text else None,
        text_heads=text["heads"] if own_text else None,
        context_length=text["context_length"],
        vocab_size=text["vocab_size"] if own_text else None,
        activation=WORDS[bool(model.get("quick_gelu", False))],
        **_preprocessing(preprocess),
        options={name: value for name, value in options.items() if name.rpartition(".")[2] not in _NO_RESULT},
    )


def of_hugging_face(config: Mapping[str, Any], preprocessor: Mapping[str, Any], form: str) -> WeightsDescription:
    """A description from the ``config.json`` and the ``preprocessor_config.json`` of a ``CLIPModel``.

    Raises:
        UserError: the two towers have different activations, which open_clip's class cannot have.
    """
    vision, text = (_tower(config, name) for name in ("vision_config", "text_config"))
    shortest = preprocessor.get("size")
    squash = isinstance(shortest, Mapping) and "height" in shortest and not preprocessor.get("do_center_crop", True)
    acts = {name: str(tower.get("hidden_act", "quick_gelu")) for name, tower in (("vision", vision), ("text", text))}
    return WeightsDescription(
        form,
        embed_dim=config.get("projection_dim", 512),
        image_width=vision.get("hidden_size", 768),
        image_layers=vision.get("num_hidden_layers", 12),
        image_heads=vision.get("num_attention_heads", 12),
        image_size=_plain(vision.get("image_size", 224)),
        patch_size=_plain(vision.get("patch_size", 32)),
        text_width=text.get("hidden_size", 512),
        text_layers=text.get("num_hidden_layers", 12),
        text_heads=text.get("num_attention_heads", 8),
        context_length=text.get("max_position_embeddings", 77),
        vocab_size=text.get("vocab_size", 49408),
        activation=acts["text"] if acts["text"] == acts["vision"] else f"{acts['vision']} and {acts['text']}",
        mean=_numbers(preprocessor.get("image_mean")),
        std=_numbers(preprocessor.get("image_std")),
        interpolation={2: "bilinear", 3: "bicubic"}.get(preprocessor.get("resample", -1)),
        resize_mode=("squash" if squash else "shortest") if preprocessor else None,
    )


def _tower(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Settings of one tower; older versions of transformers wrote ``text_config_dict``, which wins."""
    return {**(config.get(name) or {}), **(config.get(f"{name}_dict") or {})}


def of_shapes(shapes: Mapping[str, tuple[int, ...]], form: str, openai: bool) -> WeightsDescription:
    """A description from the shapes of weights under open_clip's names, and whether OpenAI's three numbers are among them.

    OpenAI's models all have QuickGELU, heads of 64 channels and one mean and deviation.
    """
    shapes = {name.removeprefix("text."): shape for name, shape in shapes.items()}
    image = shapes.get("visual.conv1.weight", ()) if "visual.class_embedding" in shapes else ()
    places, positions = shapes.get("visual.positional_embedding", ()), shapes.get("positional_embedding", ())
    side = math.isqrt(max(places[0] - 1, 0)) if len(places) == 2 else 0
    proj, tokens = shapes.get("visual.proj", ()), shapes.get("token_embedding.weight", ())
    width = image[0] if len(image) == 4 else None
    text_width = tokens[1] if len(tokens) == 2 else None
    found = WeightsDescription(
        form,
        embed_dim=proj[1] if len(proj) == 2 else None,
        image_width=width,
        image_layers=_count(shapes, "visual.transformer.resblocks.") if width else None,
        patch_size=_plain(image[2:]) if width else None,
        image_size=side * image[-1] if width and places[:1] == (side * side + 1,) else None,
        text_width=text_width,
        text_layers=_count(shapes, "transformer.resblocks."),
        context_length=positions[0] if len(positions) == 2 else None,
        vocab_size=tokens[0] if len(tokens) == 2 else None,
    )
    if not openai:
        return found
    heads = {
        name: size // OPENAI_HEAD
        for name, size in (("image_heads", width), ("text_heads", text_width))
        if size is not None and size >= OPENAI_WIDTH
    }
    known = {"activation": "quick_gelu", "mean": OPENAI_MEAN, "std": OPENAI_STD, **heads}
    return replace(found, interpolation="bicubic", resize_mode="shortest", **known)  # type: ignore[arg-type]


def _count(names: Iterable[str], prefix: str) -> int | None:
    numbers = {name.removeprefix(prefix).partition(".")[0] for name in names if name.startswith(prefix)}
    return len(numbers) or None


def of_tag(about: Mapping[str, Any], form: str) -> WeightsDescription:
    """A description from open_clip's entry of a tag; the shapes are those of the architecture that it belongs to."""
    return WeightsDescription(form, activation=WORDS[bool(about.get("quick_gelu", False))], **_preprocessing(about))


def _preprocessing(known: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {name: _numbers(known.get(name)) for name in ("mean", "std")}
    return {**found, **{name: known.get(name) or None for name in ("interpolation", "resize_mode")}}


def _numbers(value: Any) -> tuple[float, ...] | None:
    if not isinstance(value, list | tuple) or not value:
        return None
    if len(value) != 3:
        raise ValueError(f"{len(value)} numbers instead of those of three channels")
    return tuple(map(float, value))


def _plain(value: Any) -> Any:
    """A side, or the pair of two sides that differ."""
    if isinstance(value, list | tuple):
        return int(value[0]) if len(set(value)) == 1 else tuple(map(int, value))
    return value


def check(given: WeightsDescription, model: WeightsDescription, name: str, key: str, value: str) -> None:
    """Refuse weights that are not of the named model.

    Args:
        given: of the weights.
        model: of the architecture ``name``.
        key, value: where the experiment names the weights, and how.

    Raises:
        UserError: names what differs, both values, and the model to name instead.
    """
    if given.activation and model.activation and given.activation != model.activation:
        raise _other_activation(given, model, name, key, value)
    differ = [
        f"{f.name} {ours!r} instead of {theirs!r}"
        for f in fields(given)
        if f.name not in {*_TAKEN_OVER, "activation"}
        and (ours := getattr(given, f.name)) is not None
        and (theirs := getattr(model, f.name)) is not None
        and ours != theirs
    ]
    if given.options and model.options:
        names = sorted(set(given.options) | set(model.options))
        pairs = ((option, given.options.get(option) or None, model.options.get(option) or None) for option in names)
        differ += [f"{option} {ours!r} instead of {theirs!r}" for option, ours, theirs in pairs if ours != theirs]
    if differ:
        reason = f"the weights ({given.form}) are not of {name}: {'; '.join(differ[:6])}"
        known = _model_of(given)
        other = "name the model that these weights are of"
        raise UserError(
            key=key, value=value, reason=reason, fix=f"{other}{f' (`model: {known}`)' if known else ''}, or other weights"
        )


def _other_activation(given: WeightsDescription, model: WeightsDescription, name: str, key: str, value: str) -> UserError:
    other = f"{name}{_QUICK}" if given.activation == "quick_gelu" else name.removesuffix(_QUICK)
    if other in shipped():
        fix = f"use the model {other}"
    else:
        fix = f"set `quick_gelu` to {str(given.activation == 'quick_gelu').lower()} in the configuration of {name}"
    if given.activation not in WORDS.values():
        fix = "export the weights as an open_clip checkpoint of a model that has this activation"
    reason = f"the weights ({given.form}) were trained with {given.activation}, {name} has {model.activation}: every result "
    return UserError(key=key, value=value, reason=f"{reason}would be somewhat wrong", fix=fix)


@cache
def _known_models() -> dict[str, WeightsDescription]:
    import json

    contents = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in shipped().items()}
    return {name: of_open_clip({"model_cfg": content}, name) for name, content in contents.items()}


def _model_of(given: WeightsDescription) -> str:
    """A model of open_clip that agrees with all that is known of weights; empty if none does."""
    plain = [f.name for f in fields(given) if f.name not in {"form", "options", "mean", "std", "interpolation", "resize_mode"}]
    known = {name: value for name in plain if (value := getattr(given, name)) is not None}
    if len(known) < 5:
        return ""
    fits = [
        name
        for name, model in _known_models().items()
        if all(getattr(model, field_name) == value for field_name, value in known.items())
        and (not given.options or given.options == model.options)
    ]
    return min(fits, key=len, default="")


_WARNED: set[str] = set()


def warn_once(message: str) -> None:
    """Log a warning, unless this process did already."""
    if message not in _WARNED:
        _WARNED.add(message)
        log.warning("%s", message)


def warn_of_unknown(
    given: WeightsDescription, model: WeightsDescription, name: str, key: str, value: str, known: Mapping[str, Any]
) -> None:
    """Say once which facts the weights do not state, so that those of the named model hold.

    Args:
        known: preprocessing that the experiment itself states.
    """
    unknown = []
    if given.activation is None and model.activation:
        other = f"{name.removesuffix(_QUICK)}{'' if name.endswith(_QUICK) else _QUICK}"
        hint = f", the model {other} has the other" if other in shipped() else ""
        unknown.append(f"which activation ({model.activation} is used{hint})")
    if given.image_heads is None and model.image_heads and given.image_width:
        unknown.append(f"how many attention heads ({model.image_heads} and {model.text_heads} are used)")
    missing = [word for word in ("mean", "std") if getattr(given, word) is None and word not in known]
    if missing:
        used = "; ".join(f"{word} {list(getattr(model, word) or _DEFAULTS[word])}" for word in missing)
        role = key.partition(".")[0]
        unknown.append(f"which {' and '.join(missing)} of images ({used} is used; `{role}.preprocessing` sets another)")
    if unknown:
        warn_once(
            f"{key} = {value!r}: the file does not say {', '.join(unknown)}. Compare that with what its publisher says: with "
            "others, results would be somewhat wrong"
        )


_DEFAULTS = {"mean": OPENAI_MEAN, "std": OPENAI_STD}
