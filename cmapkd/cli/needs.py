"""What a command needs before it starts: files of an experiment, each refused with the command that makes it. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cmapkd import commands
from cmapkd.errors import UserError, nearest, nearest_path

if TYPE_CHECKING:
    from cmapkd.plan import Plan

NAMED = 4  # files that a command names; of more, it makes everything


class Needs:
    """Files below ``<results>/<experiment>`` that must be there.

    Args:
        experiment: the experiment's file.
        name: of the experiment.
        results: folder of all results.
    """

    def __init__(self, experiment: Path, name: str, results: Path) -> None:
        self.experiment, self.name, self.results = experiment, name, results

    def files(self, names: Iterable[str], reason: str, targets: Sequence[str] = ()) -> None:
        """Refuse to start unless all of ``names`` are there.

        Args:
            reason: what it means that one is missing.
            targets: what the command that makes them makes instead: something that needs them.

        Raises:
            UserError: the first one that is missing, how many more, and the command that makes them.
        """
        home = self.results / self.name
        missing = [name for name in dict.fromkeys(names) if not (home / name).is_file()]
        if not missing:
            return
        more = f"is missing, as are {len(missing) - 1} more: " if len(missing) > 1 else "is missing: "
        self.folder()
        raise UserError(key=str(home / missing[0]), reason=more + reason, fix=f"make it: {self.make(targets or missing)}")

    def make(self, names: Sequence[str]) -> str:
        """The command that makes files, and before them all that they are made from."""
        targets = [f"{self.name}/{name}" for name in names] if len(names) <= NAMED else []
        return commands.snakemake(targets, self.experiment, self.results, force=False)

    def data(self, datasets: Iterable[str]) -> None:
        """Data sets that were built."""
        self.files((f"data/{dataset}/manifest.json" for dataset in datasets), "the data set has not been built")

    def stages(self, addresses: Iterable[str], targets: Sequence[str] = ()) -> None:
        """Trainings that are done."""
        self.files((f"stages/{address}/stage.json" for address in addresses), "this training is not done", targets)

    def split(self, dataset: str, split: str) -> None:
        """A split of a data set that was built.

        Raises:
            UserError: the data set has not been built, or has no such split.
        """
        from cmapkd.data.shards import read_manifest

        self.data([dataset])
        splits = list(read_manifest(self.results / self.name / "data" / dataset)["splits"])
        if split not in splits:
            raise UserError(key="split", value=split, reason=f"is not in {dataset}", fix=nearest(split, splits))

    def folder(self) -> None:
        """Refuse a folder of all results that is not there where one is that is spelled alike.

        Raises:
            UserError: which one.
        """
        if self.results.is_dir():
            return
        hint = nearest_path(self.results, lambda path: any(path.glob("*/experiment.yaml")))
        if hint:
            raise UserError(key="--results", value=str(self.results), reason="there is no such folder", fix=hint)


def check_stages(plan: Plan, addresses: Sequence[str]) -> None:
    """Addresses of stages that are in the plan.

    Raises:
        UserError: one that is not: the nearest, or of a run's name the stages of that run.
    """
    for address in addresses:
        if address in plan.stages:
            continue
        run = next((run for run in plan.runs if address in (run.directory, run.name)), None)
        if run is not None:
            reason = f"is a run, not a stage; its stages are {', '.join(run.stages)}"
            fix = f"run `cmapkd train {' '.join(run.stages)}`"
            raise UserError(key="stage", value=address, reason=reason, fix=fix)
        fix = nearest(address, list(plan.stages), listing="`cmapkd plan`")
        raise UserError(key="stage", value=address, reason="is not in the plan of this experiment", fix=fix)


def training(plan: Plan, addresses: Sequence[str], needs: Needs) -> None:
    """What trainings start from: the stages before them, and their data."""
    stages = [plan.stages[address] for address in addresses]
    needs.data(dataset for stage in stages for dataset in stage.datasets)
    needs.stages(parent for stage in stages for parent in stage.parents if parent not in addresses)


def collecting(plan: Plan, runs: Sequence[str], needs: Needs) -> None:
    """What runs are gathered from: all their stages."""
    from cmapkd.runs import RUN, find_run

    for name in runs:
        run = find_run(plan, name)
        needs.stages((*run.stages, *plan.deployed_teacher(run).values()), [f"runs/{run.directory}/{RUN}"])


def evaluating(plan: Plan, runs: Sequence[str], needs: Needs) -> None:
    """What runs are evaluated with: their models, the data, and the teacher that their levels are compared with."""
    from cmapkd.runs import RUN, find_run

    for name in runs:
        run = find_run(plan, name)
        needs.files([f"runs/{run.directory}/{RUN}"], f"{name} is not trained, or not collected")
        references = plan.experiment.evaluation.references()
        needs.data(reference.partition("/")[0] for reference in references)
        settings = plan.stages[run.stages[-1]].settings
        if settings.get("teacher_pyramid"):
            needs.stages(settings[key] for key in ("teacher", "teacher_pyramid"))
