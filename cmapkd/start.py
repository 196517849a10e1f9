"""What the workflow checks when it starts, and what of outside it hands to its jobs: paths, caches, the image."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from cmapkd import paths
from cmapkd.config.paths import require_file, require_folders
from cmapkd.config.schema import ExperimentConfig
from cmapkd.errors import UserError
from cmapkd.image import enter, identify, other_lock, paths_in
from cmapkd.paths import UNBOUND, cache, make_folder, resolve, user_cache
from cmapkd.plan import Plan


def results_folder(name: Any) -> Path:
    """The folder of all results, by the configuration's key ``results``.

    Raises:
        UserError: a name that Snakemake would take for a pattern, or a program for an option.
    """
    if not isinstance(name, str | Path) or not str(name).strip():
        raise UserError(
            key="results", value=name, reason="is no name of a folder", fix="write it as text: results='my results'"
        )
    path = resolve(str(name), "results") if str(name).startswith(("~", "$")) else Path(name)
    if found := re.search(r"[{}\x00-\x1f*?\[\]]", str(path)):
        reason = f"holds {found[0]!r}, which the names of Snakemake's files cannot"
        raise UserError(key="results", value=str(name), reason=reason, fix="name another folder")
    if str(path).startswith("-"):
        reason = "begins with a dash, so programs would take it for an option"
        raise UserError(key="results", value=str(name), reason=reason, fix=f"write it in full: {path.absolute()}")
    return path


def share_home() -> None:
    """Let `~` in paths be the same folder in all jobs: that of the user who started the workflow."""
    os.environ.setdefault(paths.HOME, str(paths.home()))


def check_files(plan: Plan, home: str) -> None:
    """Refuse to start where a folder of data or a file of weights is not there, and what is made of it is not made yet.

    Raises:
        UserError: naming all folders of data, or the file of weights.
    """
    experiment = plan.experiment
    open_sets = [name for name in experiment.datasets if not (Path(home) / "data" / name / "manifest.json").is_file()]
    require_folders(experiment, open_sets)
    for address, stage in plan.stages.items():
        if stage.method == "pretrained" and not (Path(home) / "stages" / address / "stage.json").is_file():
            teacher = address == plan.teacher
            weights = experiment.teacher.pretrained if teacher else experiment.student.init
            require_file(weights, "teacher.pretrained" if teacher else "student.init")


def enter_image(
    image: str, home: str, folders: list[str | Path], experiment: ExperimentConfig, main: bool = False
) -> list[str]:
    """Tell Apptainer what jobs see of outside; returns the file with the image's digest, an input of what computes.

    Args:
        image: path of the image.
        home: folder of the experiment's results.
        folders: that jobs see in addition to those that the experiment names.
        experiment: that the jobs are of.
        main: whether this is the user's own process, which says when the image is of another lock.

    Raises:
        UserError: there is no such image, a cache cannot be made, or a name is one that Apptainer would take apart.
    """
    results, here = Path(home).parent.absolute(), Path.cwd()
    if found := re.search(f"[{UNBOUND}]", str(results.relative_to(here) if results.is_relative_to(here) else results)):
        reason = f"holds {found[0]!r}, and such a folder cannot be bound into a container"
        fix = "name another one: `--config results=<folder>`"
        raise UserError(key="results", value=str(Path(home).parent), reason=reason, fix=fix)
    caches = caches_of_jobs()
    record = Path(home) / "image.txt"
    digest = identify(Path(image), record)
    enter(digest, [*folders, *paths_in(experiment)], caches)
    if main and (message := other_lock(Path(image), record)):
        sys.stderr.write(f"Note: {message}\n")
    return [str(record)]


def caches_of_jobs() -> dict[str, Path]:
    """Folders of downloads and of what programs keep, by the variables that name them.

    Where the home folder cannot be written to, programs keep theirs with the downloads, which the user can put elsewhere.
    """
    downloads, programs = cache(), user_cache()
    if not os.environ.get("XDG_CACHE_HOME") and make_folder(programs):
        programs = downloads
    return {"CMAPKD_CACHE": downloads, "XDG_CACHE_HOME": programs}
