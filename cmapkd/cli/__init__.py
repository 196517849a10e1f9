"""The command line: one sub-command for each rule of the workflow, usable without Snakemake.

Every command takes ``--experiment`` (a file of ``config/``, or the ``experiment.yaml`` that a run of the workflow keeps
with its results) and ``--results`` (the folder that holds all experiments). torch is imported only by what needs it.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from cmapkd import __version__
from cmapkd import commands as printed
from cmapkd.cli import machine, needs
from cmapkd.cli import paper as commands
from cmapkd.cli.ending import told_to_users
from cmapkd.cli.export import export
from cmapkd.cli.options import (
    DEFAULT,
    RESULTS,
    Experiment,
    Results,
    check_weights,
    dataset_of,
    home_of,
    needs_of,
    plan_of,
)
from cmapkd.cli.own import data_check
from cmapkd.cli.tune import tune
from cmapkd.errors import UserError
from cmapkd.jobs import ATTEMPT, TIME_LIMIT, heed_signals
from cmapkd.paths import cache

app = typer.Typer(name="cmapkd", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
data_app = typer.Typer(no_args_is_help=True, help="Fetch a data set, write it into shards, look at it.")
config_app = typer.Typer(no_args_is_help=True, help="Check an experiment file; generate the documentation of its keys.")
app.add_typer(data_app, name="data")
app.add_typer(commands.paper_app, name="paper")
app.add_typer(commands.report_app, name="report")
app.add_typer(config_app, name="config")
app.add_typer(machine.image_app, name="image")


@data_app.command("fetch")
def data_fetch(
    dataset: str,
    experiment: Experiment = DEFAULT,
    results: Results = RESULTS,
    show: Annotated[bool, typer.Option("--list", help="only say which files there are, how large, and where from")] = False,
) -> None:
    """Fetch and verify what a data set is made from; the list of files lies beside the data set."""
    from cmapkd.data.sources import build_source
    from cmapkd.data.sources.public.base import PublicSource, tell_files
    from cmapkd.files import write_json

    config = dataset_of(experiment, dataset, there=not show)
    source = build_source(config, cache())
    if show:
        typer.echo(tell_files(source))
        return
    if isinstance(source, PublicSource):
        source.may_download = True
    files = source.fetch()
    out = home_of(experiment, results) / "data" / f"{dataset}.fetched.json"
    write_json(out, [{"name": f.name, "version": f.version, "sha256": f.sha256} for f in files])
    typer.echo(f"{out}: {len(files) or 'no'} files are fetched for {dataset}", err=True)


data_app.command("check")(data_check)


@data_app.command("build")
def data_build(dataset: str, experiment: Experiment = DEFAULT, results: Results = RESULTS) -> None:
    """Write a data set as webdataset shards with a manifest."""
    from cmapkd.config import load_experiment
    from cmapkd.data.overlap import source_without_overlap
    from cmapkd.data.shards import write_dataset
    from cmapkd.data.sources.public.summary import build_summary

    dataset_of(experiment, dataset, there=True)
    home = home_of(experiment, results)
    source = source_without_overlap(load_experiment(experiment), dataset, cache(), home)
    manifest = write_dataset(source, home / "data" / dataset, dataset=dataset)
    for split, about in manifest["splits"].items():
        typer.echo(f"{dataset}/{split}: {about['samples']} samples in {len(about['shards'])} shards", err=True)
        for line in build_summary(manifest, split):
            typer.echo(f"  {line}", err=True)


@data_app.command("overlap")
def data_overlap(experiment: Experiment = DEFAULT, results: Results = RESULTS) -> None:
    """Find pictures that distillation and evaluation splits share, by id and by perceptual hash; writes `overlap.json`."""
    from cmapkd.config import load_experiment
    from cmapkd.data.overlap import REPORT, write_overlap

    path = home_of(experiment, results) / "data" / REPORT
    report = write_overlap(load_experiment(experiment), cache(), path)
    for splits, counts in report["counts"].items():
        typer.echo(f"{splits}: {counts['id']} by id, {counts['hash']} by hash only")
    typer.echo(f"{path}: {sum(map(len, report['removed'].values()))} pictures will be left out")


@data_app.command("contact")
def data_contact(
    dataset: str,
    split: str,
    out: Annotated[Path | None, typer.Argument(help="PNG; default contact/<dataset>/<split>.png in the results")] = None,
    experiment: Experiment = DEFAULT,
    results: Results = RESULTS,
) -> None:
    """Draw a contact sheet of a split, for a person to look at."""
    dataset_of(experiment, dataset)
    needs_of(experiment, results).split(dataset, split)
    from cmapkd.data.contact import contact_sheet
    from cmapkd.data.split import Split

    home = home_of(experiment, results)
    out = out or home / "contact" / dataset / f"{split}.png"
    samples = Split(home / "data" / dataset, split)
    contact_sheet((samples.read(index) for index in range(len(samples))), out, title=f"{dataset}, {split}")
    typer.echo(str(out))


@data_app.command("verify")
def data_verify(dataset: str, experiment: Experiment = DEFAULT, results: Results = RESULTS) -> None:
    """Recompute the digests of all shards against the manifest."""
    from cmapkd.data.shards import verify

    dataset_of(experiment, dataset)
    needs_of(experiment, results).data([dataset])
    verify(home_of(experiment, results) / "data" / dataset)
    typer.echo(f"{dataset}: every shard is as its manifest says")


@app.command("train")
def train(
    stages: list[str],
    experiment: Experiment = DEFAULT,
    results: Results = RESULTS,
    threads: Annotated[int, typer.Option(help="CPU threads on each node, shared by its ranks; 0: all")] = 0,
    ranks: Annotated[int, typer.Option(help="data-parallel processes; 0: as the experiment says")] = 0,
    time_limit: Annotated[
        float, typer.Option(help="minutes of the job; it stops in time, with a checkpoint; 0: none", envvar=TIME_LIMIT)
    ] = 0,
    attempt: Annotated[
        int, typer.Option(help="number of this start in the workflow; 1 forgets earlier failures", envvar=ATTEMPT)
    ] = 0,
) -> None:
    """Train stages, by their addresses in `cmapkd plan`. Interrupted, the same command goes on from the last checkpoint.

    Several are trained one after the other in one process, which saves starting it anew for each. Stopped by SIGINT, SIGTERM,
    SIGUSR1 or the time limit, it ends with exit code 75, after a checkpoint.
    """
    from cmapkd.training.stopping import EXIT, STARTED, Interrupted, leave_when_asked, start_of_job

    leave_when_asked()
    os.environ[STARTED] = start_of_job()  # before torch is imported, which takes its time
    plan = plan_of(experiment)
    needs.check_stages(plan, stages)
    needs.training(plan, stages, needs_of(experiment, results))
    trained = any(plan.stages[address].settings["kind"] != "pretrained" for address in stages)
    ranks = (ranks or plan.experiment.training.ranks) if trained else 1
    if ranks > 1 and "RANK" not in os.environ:
        from cmapkd.cluster import layout
        from cmapkd.launch import launch
        from cmapkd.training.launch import run_ranks

        if layout(ranks, int(os.environ.get("CMAPKD_RANKS_PER_NODE") or 0)).nodes > 1:
            launch(ranks, threads, sys.argv[1:])
        for address in stages:
            alone = [word for word in sys.argv[1:] if word == address or word not in stages]
            saved = results / plan.experiment.name / "stages" / address / "checkpoints"
            if code := run_ranks(ranks, alone, saved, plan.experiment.training.oom_retries):
                raise SystemExit(code)
        return
    if threads:
        threads = max(1, threads // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    if threads:
        torch.set_num_threads(threads)
    from cmapkd.data.loading import explained
    from cmapkd.training.launch import leave_rank
    from cmapkd.training.loop import train_stage

    home, options = results / plan.experiment.name, plan.experiment.training
    try:
        for address in stages:
            with explained(options.workers, "training.workers", outside=True):
                train_stage(plan.stages[address], home, options, time_limit=time_limit, attempt=attempt)
    except Interrupted as stop:
        typer.echo(str(stop), err=True)
        raise SystemExit(EXIT) from None  # an unfinished job, not a failed one
    leave_rank()


@app.command("weights")
def weights(experiment: Experiment = DEFAULT, results: Results = RESULTS) -> None:
    """Fetch the pretrained weights that an experiment names and make its teacher and student of them, unless they are there.

    The workflow does the same on the machine that runs it; nodes of a cluster often have no network.
    """
    from cmapkd.imported import is_current
    from cmapkd.training.loop import train_stage

    plan = plan_of(experiment)
    home = results / plan.experiment.name
    for address, stage in plan.stages.items():
        if stage.method == "pretrained":
            if not is_current(plan, home, address):
                train_stage(stage, home, plan.experiment.training)
            typer.echo(f"{address:34} {stage.settings['model']['name']} {stage.settings['init']}")


@app.command("gate")
def gate(experiment: Experiment = DEFAULT, results: Results = RESULTS) -> None:
    """Compare the teacher's metrics with what the experiment expects of it (`teacher.expected`)."""
    from cmapkd.config import load_experiment
    from cmapkd.gate import pass_gate
    from cmapkd.runs import teacher_seed

    loaded = load_experiment(experiment)
    teacher = f"metrics/Teacher/{teacher_seed(loaded)}.json"
    needs_of(experiment, results).files([teacher], "the teacher is not evaluated")
    for line in pass_gate(loaded, results):
        typer.echo(line)


@app.command("collect")
def collect(runs: list[str], experiment: Experiment = DEFAULT, results: Results = RESULTS) -> None:
    """Gather the result of runs (`<name>/<seed>`): the last stage's student as an open_clip directory, and its history."""
    from cmapkd.runs import collect_run

    plan = plan_of(experiment)
    needs.collecting(plan, runs, needs_of(experiment, results))
    for run in runs:
        collect_run(plan, run, results)


@app.command("evaluate")
def evaluate(
    runs: list[str],
    experiment: Experiment = DEFAULT,
    results: Results = RESULTS,
    threads: Annotated[int, typer.Option(help="CPU threads; 0: all")] = 0,
) -> None:
    """Measure runs (`<name>/<seed>`, the teacher's is `Teacher/<seed>`) on everything the experiment evaluates."""
    plan = plan_of(experiment)
    needs.evaluating(plan, runs, needs_of(experiment, results))
    import torch

    if threads:
        torch.set_num_threads(threads)
    from cmapkd.evaluation.run import evaluate_run

    for run in runs:
        evaluate_run(plan, run, results)


@app.command("plan")
def plan(
    experiment: Experiment = DEFAULT,
    results: Results = RESULTS,
    costs: Annotated[bool, typer.Option("--costs", help="hours, disk and network for each table and figure")] = False,
    device: Annotated[str, typer.Option(help="with --costs: GPU to reckon with, e.g. V100; empty: this machine")] = "",
    utilisation: Annotated[float, typer.Option(min=0.01, max=1, help="share of the GPU's peak that is reached")] = 0.3,
    change: Annotated[list[str] | None, typer.Option(help="KEY=VALUE: what would be trained anew after this edit")] = None,
) -> None:
    """List the trainings of an experiment: address, what it is, and whether it is done. Shared stages appear once."""
    made = plan_of(experiment)
    if costs:
        from cmapkd.costs.estimate import estimate, render

        typer.echo(render(estimate(made, results, device or None, utilisation), made))
        return
    if change:
        from cmapkd.config.load import load_edited
        from cmapkd.costs.estimate import changed

        new = changed(made, load_edited(experiment, change))
        for stage in new:
            typer.echo(f"new   {stage.address:34} {stage.label}")
        typer.echo(f"{len(new)} of {len(made.stages)} trainings would be made anew")
        return
    home = results / made.experiment.name
    for stage in made.stages.values():
        done = "done" if (home / "stages" / stage.address / "stage.json").is_file() else "open"
        typer.echo(f"{done}  {stage.address:34} {stage.label}")
    total = sum(len(run.stages) for run in made.runs)
    trained = len({address for run in made.runs for address in run.stages})
    shared = f"{total} stages, {total - trained} of them shared: {trained} trainings"
    typer.echo(f"{len(made.runs)} runs of {shared}; and {len(made.stages) - trained} for the teacher")


@app.command("status")
def status(experiment: Experiment = DEFAULT, results: Results = RESULTS) -> None:
    """What is done, running, waiting or failed, and how far each training is; from the folder where the workflow runs."""
    from cmapkd import status as looked

    typer.echo(looked.tell(looked.status(plan_of(experiment), results)))


@app.command("site")
def site(
    account: Annotated[str, typer.Option(help="whom jobs are charged to; none: the first of yours")] = "",
    partition: Annotated[str, typer.Option(help="where jobs without GPU run; none: the site's default")] = "",
    gpu_partition: Annotated[str, typer.Option(help="where trainings run; none: the one with most GPUs")] = "",
    profile: Annotated[Path, typer.Option(help="the file that is written, from profile.yaml in its folder")] = Path(
        "workflow/profiles/slurm/profile.v9+.yaml"
    ),
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="print the site's part, write nothing")] = False,
    renew: Annotated[bool, typer.Option(help="keep the site's part, take all else from a changed profile.yaml")] = False,
) -> None:
    """Ask SLURM about this site and write its profile, which git ignores; prints what it chose and why, and what is missing."""
    from cmapkd import site as asked
    from cmapkd.site_text import site_part

    if renew:
        missing = asked.renew(profile)
        typer.echo(f"written: {profile}, with the site's part as it was", err=True)
        if missing:
            typer.echo(f"its site's part lacks {', '.join(missing)}: add it by hand, or run `cmapkd site`", err=True)
        return
    found = asked.find()
    choice = asked.choose(found, account, partition, gpu_partition)
    typer.echo(asked.tell(found, choice), err=True)
    if dry_run:
        typer.echo(site_part(choice), nl=False)
    else:
        asked.write(choice, profile)
        typer.echo(f"written: {profile}", err=True)


for command in (tune, commands.trace, commands.verify, commands.compare, export, machine.selfcheck):
    app.command()(command)


@config_app.command("check")
def config_check(file: Path) -> None:
    """Check an experiment file, without starting anything. Folders of data that are not there are listed and no error."""
    from cmapkd.config.load import inherited_keys
    from cmapkd.config.paths import missing_folders, tell_missing

    made = plan_of(file)
    check_weights(made.experiment)
    if missing := missing_folders(made.experiment):
        count = "1 folder of data is" if len(missing) == 1 else f"{len(missing)} folders of data are"
        typer.echo(f"note: {count} not there, but needed before the workflow starts:", err=True)
        for key, path in missing:
            typer.echo(f"  {tell_missing(key, path)}", err=True)
    if taken := inherited_keys(file):
        typer.echo(taken)
    typer.echo(f"{file}: fine; {len(made.stages)} trainings, {len(made.runs)} runs")


@config_app.command("document")
def config_document(
    fix: Annotated[bool, typer.Option("--fix", help="write the files; otherwise only compare")] = False,
) -> None:
    """Compare `config/README.md`, the JSON schema and `docs/methods/` with the code that defines the keys."""
    from cmapkd.config import document, method_pages

    stale = document.update(fix=fix) + method_pages.update(fix=fix)
    if stale and not fix:
        raise UserError(key=", ".join(stale), reason="does not agree with the code", fix="run `cmapkd config document --fix`")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"cmapkd {__version__}")
        raise typer.Exit


@app.callback()
def _options(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False) -> None:
    printed.forget()


def main() -> None:
    """Entry point: a user's mistake is a message and exit code 2, never a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("cmapkd").setLevel(logging.INFO)
    heed_signals()
    with told_to_users():
        app()
