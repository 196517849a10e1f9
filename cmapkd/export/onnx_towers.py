"""Both towers of a model as ONNX graphs, compared with the model on several batch sizes before they are handed on.

    image.onnx   pixel_values (batch, 3, H, W) float32      -> image_embeds (batch, E), L2-normalised
    text.onnx    input_ids (batch, context) int64           -> text_embeds (batch, E), L2-normalised

``logit_scale`` is in ``preprocessing.json``: similarities times it are CLIP's logits. Texts are padded with any token after
end-of-text (0, as open_clip does, or end-of-text, as ``transformers`` does): what follows it is not read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cmapkd.errors import UserError
from cmapkd.files import write_json

TOLERANCE = 1e-4  # absolute, of normalised embeddings
BATCHES = (1, 2, 5)  # compared; the graph is traced with another one
TRACED = 3
OPSET = 20
LARGEST = 1_500_000_000  # bytes of weights in a graph's own file; a file of ONNX holds at most 2 GiB
IMAGE, TEXT, PREPROCESSING = "image.onnx", "text.onnx", "preprocessing.json"
PACKAGES = ("onnx", "onnxruntime", "onnxscript")


class _Tower(nn.Module):
    """One tower as a module of one input, as the exporter wants it; ``model`` is a member, so its weights are exported."""

    def __init__(self, model: nn.Module, encode: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        self._encode = encode

    def forward(self, inputs: Tensor) -> Tensor:
        return self._encode(inputs)


def check_packages() -> None:
    """Refuse before anything is computed where the extra is not installed.

    Raises:
        UserError: names what is missing and what to install.
    """
    from importlib.util import find_spec

    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        reason = f"needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed"
        raise UserError(key="format", value="onnx", reason=reason, fix="pip install 'cmapkd[export]'")


def write(model: Any, config: Mapping[str, Any], context_length: int, logit_scale: float, directory: Path) -> dict[str, float]:
    """Write ``image.onnx``, ``text.onnx`` and ``preprocessing.json``.

    Args:
        model: anything with ``encode_image`` and ``encode_text``, both with ``normalize``.
        config: open_clip's configuration of the student, for the size and normalisation of pictures.
        context_length: tokens of a text.
        logit_scale: by which similarities are multiplied.

    Returns:
        The largest difference of an embedding's component between graph and model, by file.

    Raises:
        UserError: a package is missing, a tower cannot be traced, or a graph computes something else than the model.
    """
    check_packages()
    preprocess = config["preprocess_cfg"]
    size = preprocess["size"]
    height, width = (size, size) if isinstance(size, int) else size
    towers = (
        (IMAGE, "pixel_values", "image_embeds", lambda n: _pictures(n, height, width), model.encode_image),
        (TEXT, "input_ids", "text_embeds", lambda n: _texts(n, context_length), model.encode_text),
    )
    differences = {}
    for name, source, target, examples, encode in towers:
        tower = _Tower(model, partial(encode, normalize=True)).eval()
        _export(tower, examples(TRACED), source, target, directory / name)
        differences[name] = _compare(tower, examples, directory / name)
    about = {**preprocess, "context_length": context_length, "logit_scale": logit_scale}
    write_json(directory / PREPROCESSING, about)
    return differences


def _pictures(count: int, height: int, width: int) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(count))


def _texts(count: int, context: int) -> Tensor:
    """(count, context) random words of CLIP's vocabulary and end-of-text at several places."""
    generator = torch.Generator().manual_seed(count)
    tokens = torch.zeros(count, context, dtype=torch.int64)
    for row in tokens:
        end = int(torch.randint(1, context, (), generator=generator))
        row[:end] = torch.randint(1, 49406, (end,), generator=generator)
        row[0], row[end] = 49406, 49407
    return tokens


def _export(tower: nn.Module, example: Tensor, source: str, target: str, path: Path) -> None:
    try:
        with torch.no_grad(), _quiet(), _open_lengths():
            program = torch.onnx.export(
                tower,
                (example,),
                input_names=[source],
                output_names=[target],
                dynamic_shapes={"inputs": {0: torch.export.Dim("batch", min=1, max=1 << 16)}},
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # the exporter has its own for each way to fail
        reason = f"the tower cannot be traced: {type(error).__name__}: {str(error).strip().splitlines()[0]}"
        raise UserError(key="format", value=f"onnx ({path.name})", reason=reason, fix="export in another format") from error
    assert program is not None
    _forget_origin(program.model)
    weights = sum(value.const_value.nbytes for value in program.model.graph.initializers.values() if value.const_value)
    program.save(path, external_data=weights > LARGEST)


def _forget_origin(model: Any) -> None:
    """Take out what the exporter notes of where a node comes from: lines and paths of this machine, other at each place."""
    model.metadata_props.clear()
    model.doc_string = None
    for graph in model.graphs():
        graph.metadata_props.clear()
        graph.doc_string = None
        for node in graph:
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
        for value in (*graph.inputs, *graph.initializers.values()):
            value.metadata_props.clear()
    for function in model.functions.values():
        function.metadata_props.clear()
        for node in function:
            node.metadata_props.clear()


@torch.no_grad()
def _compare(tower: nn.Module, examples: Callable[[int], Tensor], path: Path) -> float:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    source = session.get_inputs()[0].name
    worst = 0.0
    for count in BATCHES:
        inputs = examples(count)
        expected = tower(inputs).numpy()
        try:
            found = session.run(None, {source: inputs.numpy()})[0]
        except Exception as error:  # onnxruntime's own, which have no base in common
            reason = f"the graph does not take a batch of {count}: {str(error).strip().splitlines()[0]}"
            raise UserError(key="format", value=f"onnx ({path.name})", reason=reason, fix="export in another format") from error
        different = float(np.abs(found - expected).max()) if found.shape == expected.shape else np.inf
        if not different <= TOLERANCE:
            reason = f"a batch of {count} differs by {different:.2g} from the model, more than {TOLERANCE:g}"
            raise UserError(key="format", value=f"onnx ({path.name})", reason=reason, fix="export in another format")
        worst = max(worst, different)
    return worst


@contextmanager
def _open_lengths() -> Iterator[None]:
    """While a tower is traced, ``len`` of a tensor in the module of prompts is its shape's, which may stand for any batch.

    Python's own gives a number, and the exporter then fixes the batch to that of the example.
    """
    from cmapkd.models import prompts

    prompts.len = lambda value: value.shape[0] if isinstance(value, Tensor) else len(value)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del prompts.len  # type: ignore[attr-defined]


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter and what it uses report each of their steps."""
    import warnings

    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export", "")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
