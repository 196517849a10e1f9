"""Whether this environment can do what the experiments need: one small piece of each kind of work, with a known result.

Checks, in this order:
    imports: the packages that do the work.
    versions: every installed package against the lock.
    distributed: two gloo ranks take one step of gradient descent together; its result is known in closed form.
    drawing: an SVG to pixels, as pictures of the data are drawn, and a figure to PDF.
    gpu: a product of matrices, on every GPU that torch sees; none is no failure.
    tex: a page with the packages that the paper uses; no LaTeX is no failure unless it is required.

The module itself imports no torch: a check that needs it does so, and what it raises is that check's failure.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from cmapkd.training.launch import ON_ONE_NODE

LOCK = Path(__file__).parents[1] / "requirements.lock"
MODULES = (
    "numpy", "scipy", "sklearn", "pandas", "PIL", "matplotlib", "pydantic", "resvg_py", "pyarrow", "torch", "torchvision",
    "transformers", "open_clip", "webdataset", "safetensors", "deepspeed", "snakemake",
)  # fmt: skip
RANKS, RATE = 2, 0.1
_SECONDS = 300


class Missing(Exception):  # noqa: N818 - a reason to skip, not a failure
    """What would be checked is not here, for the reason given."""


@dataclass(frozen=True)
class Outcome:
    """Of one check: ``passed``, ``failed`` or ``skipped``, with what was seen or why."""

    name: str
    state: str
    detail: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.state:8} {self.name:12} {self.detail} ({self.seconds:.1f} s)"


def selfcheck(without: Collection[str] = (), require: Collection[str] = (), lock: Path = LOCK) -> Iterator[Outcome]:
    """Run the checks one after the other; each outcome comes as soon as it is known.

    Args:
        without: names of checks that are left out.
        require: names of checks that fail where they would otherwise be skipped.
        lock: what the installed versions are compared with.
    """
    for name, check in CHECKS.items():
        if name in without:
            continue
        start = time.monotonic()
        try:
            state, detail = "passed", check(lock)
        except Missing as reason:
            state, detail = "failed" if name in require else "skipped", str(reason)
        except Exception as error:  # whatever it is, the next check still runs
            state, detail = "failed", f"{type(error).__name__}: {error}"
        yield Outcome(name, state, detail, time.monotonic() - start)


def check_imports(_: Path) -> str:
    """Import every package of ``MODULES``, naming all that fail."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu" if not _gpus() else "cuda")  # DeepSpeed would search and warn
    failed = {}
    for name in MODULES:
        try:
            importlib.import_module(name)
        except Exception as error:
            failed[name] = f"{name} ({type(error).__name__}: {error})"
    if failed:
        raise ImportError("; ".join(failed.values()))
    return f"{len(MODULES)} packages, Python {sys.version.split()[0]}"


def check_versions(lock: Path) -> str:
    """Compare installed versions with the lock: what it names must be installed, in that version.

    Raises:
        Missing: there is no lock, as in an installation without its source.
        ValueError: the packages that differ or are missing.
    """
    if not lock.is_file():
        raise Missing(f"{lock} is not here")
    wanted = parse_lock(lock.read_text(encoding="utf-8"))
    installed = {_canonical(found.name): found.version for found in metadata.distributions() if found.name}
    wrong = [
        f"{name} {installed.get(name, 'missing')} instead of {version}"
        for name, version in wanted.items()
        if installed.get(name) != version
    ]
    if wrong:
        raise ValueError(f"{len(wrong)} of {len(wanted)} packages are not those of {lock}: {', '.join(wrong)}")
    return f"{len(wanted)} packages as in {lock.name}"


def parse_lock(text: str) -> dict[str, str]:
    """Package (in its canonical spelling, PEP 503) -> version, of lines ``name==version``; hashes and options are skipped."""
    lines = (line.partition("#")[0].strip(" \t\\") for line in text.splitlines())
    pairs = (line.partition("==") for line in lines if line and not line.startswith("--"))
    return {_canonical(name): version for name, _, version in pairs}


def check_distributed(_: Path) -> str:
    """Two ranks with inputs 1 and 2 minimise (w x)^2 / 2 from w = 1: the mean gradient is (1 + 4) / 2, so w becomes 0.75."""
    command = [sys.executable, "-m", "torch.distributed.run", *ON_ONE_NODE, f"--nproc-per-node={RANKS}", "-m", __name__]
    # This package for the ranks, however it was found here; one thread each, and the loopback of this machine.
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_SECONDS)
    # The ranks write at once, so a line may hold what two of them say.
    found = [float(number) for number in re.findall(r"weight=([\d.]+);", done.stdout)]
    if done.returncode or len(found) != RANKS:
        raise RuntimeError(f"the ranks ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-500:]}")
    expected = 1 - RATE * sum((rank + 1) ** 2 for rank in range(RANKS)) / RANKS
    if any(abs(weight - expected) > 1e-6 for weight in found):
        raise ValueError(f"weights are {found} after a step, not {expected}")
    return f"{RANKS} ranks (gloo) agree on a step"


def check_drawing(_: Path) -> str:
    """Draw a red square as resvg draws emojis, and a figure as the paper has them."""
    import io

    import resvg_py
    from matplotlib.figure import Figure
    from PIL import Image

    square = '<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"><rect width="8" height="8" fill="#f00"/></svg>'
    with Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=square)))) as picture:
        pixel, size = picture.convert("RGB").getpixel((4, 4)), picture.size
    if pixel != (255, 0, 0) or size != (8, 8):
        raise ValueError(f"a red square of 8 pixels became {size}, {pixel}")
    figure, page = Figure(figsize=(2, 1)), io.BytesIO()
    figure.subplots().plot([0, 1], [0, 1])
    figure.savefig(page, format="pdf")
    if not page.getvalue().startswith(b"%PDF-"):
        raise ValueError("matplotlib wrote no PDF")
    return f"SVG to pixels, a figure of {len(page.getvalue())} bytes"


def check_gpu(_: Path) -> str:
    """Multiply matrices of ones on each GPU: every entry is their size."""
    import torch

    if not torch.cuda.is_available():
        raise Missing("torch sees no GPU here")
    for index in range(torch.cuda.device_count()):
        ones = torch.ones(64, 64, device=f"cuda:{index}")
        if not bool((ones @ ones == 64).all()):
            raise ValueError(f"a product on GPU {index} is wrong")
    return ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))


def check_tex(_: Path) -> str:
    """Typeset a page with the packages of the paper.

    Raises:
        Missing: there is no LaTeX, or not these packages of it: everything but PDFs is made then.
    """
    from cmapkd.paper.build import PACKAGES, missing_latex

    if missing := missing_latex(*PACKAGES):
        raise Missing(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not here")
    packages = "".join(f"\\usepackage{{{Path(name).stem}}}" for name in PACKAGES if name.endswith(".sty"))
    page = f"\\documentclass{{article}}{packages}\\begin{{document}}$e^{{i\\pi}}=-1$\\end{{document}}"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "page.tex")
        source.write_text(page, encoding="utf-8")
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", source.name]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=_SECONDS)
        made = source.with_suffix(".pdf")
        if done.returncode or not made.is_file():
            raise RuntimeError(f"pdflatex ended with {done.returncode}: {done.stdout.strip()[-500:]}")
        return f"a page of {made.stat().st_size} bytes"


CHECKS: dict[str, Callable[[Path], str]] = {
    "imports": check_imports,
    "versions": check_versions,
    "distributed": check_distributed,
    "drawing": check_drawing,
    "gpu": check_gpu,
    "tex": check_tex,
}


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _gpus() -> bool:
    return Path("/dev/nvidiactl").exists()


def _step() -> None:
    """What each rank does."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    weight = torch.ones((), requires_grad=True)
    loss = (weight * (dist.get_rank() + 1)) ** 2 / 2
    loss.backward()
    gradient = weight.grad
    assert gradient is not None
    dist.all_reduce(gradient)
    stepped = weight.detach() - RATE * gradient / dist.get_world_size()
    sys.stdout.write(f"weight={stepped.item():.6f};\n")
    sys.stdout.flush()
    dist.destroy_process_group()


if __name__ == "__main__":
    _step()
