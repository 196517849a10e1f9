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
from cmapkd.errors import UserError, nearest

app = typer.Typer(name="cmapkd", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
data_app = typer.Typer(no_args_is_help=True, help="Fetch a data set, write it into shards, look at it.")
paper_app = typer.Typer(no_args_is_help=True, help="Tables, figures and the document, from metric files alone.")
config_app = typer.Typer(no_args_is_help=True, help="Check an experiment file; generate the documentation of its keys.")
app.add_typer(data_app, name="data")
app.add_typer(paper_app, name="paper")
app.add_typer(config_app, name="config")

Experiment = Annotated[Path, typer.Option("--experiment", "-e", help="experiment file")]
Results = Annotated[Path, typer.Option("--results", help="folder that holds all experiments")]
DEFAULT = Path("config/mini.yaml")
RESULTS = Path("results")


@data_app.command("fetch")
def data_fetch(dataset: str, experiment: Experiment = DEFAULT, results: Results = RESULTS) -> None:
    """Fetch and verify what a data set is made from; the list of files lies beside the data set."""
    from cmapkd.data.sources import build_source
    from cmapkd.files import write_json

    files = build_source(_dataset(experiment, dataset), cache()).fetch()
    out = _home(experiment, results) / "data" / f"{dataset}.fetched.json"
    write_json(out, [{"name": f.name, "version": f.version, "sha256": f.sha256} for f in files])


@data_app.command("build")
def data_build(dataset: str, experiment: Experiment = DEFAULT, results: Results = RESULTS) -> None:
    """Write a data set as webdataset shards with a manifest."""
    from cmapkd.data.shards import write_dataset
    from cmapkd.data.sources import build_source

    source = build_source(_dataset(experiment, dataset), cache())
    manifest = write_dataset(source, _home(experiment, results) / "data" / dataset, dataset=dataset)
    for split, about in manifest["splits"].items():
        typer.echo(f"{dataset}/{split}: {about['samples']} samples in {len(about['shards'])} shards", err=True)


@data_app.command("contact")
def data_contact(dataset: str, split: str, out: Path, experiment: Experiment = DEFAULT, results: Results = RESULTS) -> None:
    """Draw a contact sheet of a split, for a person to look at."""
    from cmapkd.data.contact import contact_sheet
    from cmapkd.data.split import Split

    samples = Split(_home(experiment, results) / "data" / dataset, split)
    contact_sheet((samples.read(index) for index in range(len(samples))), out, title=f"{dataset}, {split}")


@data_app.command("verify")
def data_verify(dataset: str, experiment: Experiment = DEFAULT, results: Results = RESULTS) -> None:
    """Recompute the digests of all shards against the manifest."""
    from cmapkd.data.shards import verify

    verify(_home(experiment, results) / "data" / dataset)
    typer.echo(f"{dataset}: every shard is as its manifest says")


@app.command("train")
def train(
    address: str,
    experiment: Experiment = DEFAULT,
    results: Results = RESULTS,
    threads: Annotated[int, typer.Option(help="CPU threads of each rank; 0: all")] = 0,
    ranks: Annotated[int, typer.Option(help="data-parallel processes on this machine; 0: as the experiment says")] = 0,
    time_limit: Annotated[float, typer.Option(help="minutes of the job; it stops in time, with a checkpoint; 0: none")] = 0,
    attempt: Annotated[int, typer.Option(help="number of this start in the workflow; 1 forgets earlier failures")] = 0,
) -> None:
    """Train one stage, by its address in `cmapkd plan`. Interrupted, the same command goes on from the last checkpoint.

    Stopped by SIGINT, SIGTERM, SIGUSR1 or the time limit, it ends with exit code 75, after a checkpoint.
    """
    from cmapkd.training.stopping import EXIT, STARTED, Interrupted, leave_when_asked, start_of_job

    leave_when_asked()
    os.environ[STARTED] = start_of_job()  # before torch is imported, which takes its time
    plan = _plan(experiment)
    if address not in plan.stages:
        raise UserError(
            key="stage", value=address, reason="is not in the plan of this experiment", fix=nearest(address, list(plan.stages))
        )
    ranks = ranks or plan.experiment.training.ranks
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    if ranks > 1 and "RANK" not in os.environ:
        from cmapkd.training.launch import run_ranks

        saved = results / plan.experiment.name / "stages" / address / "checkpoints"
        raise SystemExit(run_ranks(ranks, sys.argv[1:], saved, plan.experiment.training.oom_retries))
    import torch

    if threads:
        torch.set_num_threads(threads)
    from cmapkd.training.loop import train_stage

    stage, home, options = plan.stages[address], results / plan.experiment.name, plan.experiment.training
    try:
        train_stage(stage, home, options, time_limit=time_limit, attempt=attempt)
    except Interrupted as stop:
        typer.echo(str(stop), err=True)
        raise SystemExit(EXIT) from None  # an unfinished job, not a failed one


@app.command("collect")
def collect(run: str, experiment: Experiment = DEFAULT, results: Results = RESULTS) -> None:
    """Gather the result of a RUN (`<name>/<seed>`): its last stage's student as an open_clip directory, and its history."""
    from cmapkd.runs import collect_run

    collect_run(_plan(experiment), run, results)


@app.command("evaluate")
def evaluate(
    run: str,
    experiment: Experiment = DEFAULT,
    results: Results = RESULTS,
    threads: Annotated[int, typer.Option(help="CPU threads; 0: all")] = 0,
) -> None:
    """Measure a run (RUN is `<name>/<seed>`, the teacher's is `Teacher/<seed>`) on everything the experiment evaluates."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    from cmapkd.evaluation.run import evaluate_run

    evaluate_run(_plan(experiment), run, results)


@paper_app.command("table")
def paper_table(name: str, experiment: Experiment = DEFAULT, results: Results = RESULTS) -> None:
    """Write one table as LaTeX, with the parents of every cell beside it."""
    from cmapkd.paper.build import build_table

    build_table(name, _paper(experiment, results))


@paper_app.command("figure")
def paper_figure(name: str, experiment: Experiment = DEFAULT, results: Results = RESULTS) -> None:
    """Draw one figure as PDF, with its values and parents beside it."""
    from cmapkd.paper.build import build_figure

    build_figure(name, _paper(experiment, results))


@paper_app.command("document")
def paper_document(experiment: Experiment = DEFAULT, results: Results = RESULTS) -> None:
    """Write `paper.tex` and `numbers.tex`, which put tables, figures and macros together."""
    from cmapkd.paper.build import build_document

    build_document(_paper(experiment, results))


@paper_app.command("pdf")
def paper_pdf(experiment: Experiment = DEFAULT, results: Results = RESULTS) -> None:
    """Typeset `paper.pdf`, where LaTeX is installed."""
    from cmapkd.paper.build import build_pdf

    if not build_pdf(_paper(experiment, results)):
        typer.echo("no pdflatex here: everything but paper.pdf is made", err=True)


@paper_app.command("all")
def paper_all(experiment: Experiment = DEFAULT, results: Results = RESULTS) -> None:
    """All tables, figures and the document at once."""
    from cmapkd.paper.build import build_paper

    if not build_paper(_paper(experiment, results)):
        typer.echo("no pdflatex here: everything but paper.pdf is made", err=True)


@paper_app.command("keep")
def paper_keep(directory: Path, experiment: Experiment = DEFAULT, results: Results = RESULTS) -> None:
    """Copy what was measured, with its provenance, to a folder that a repository can hold, and write its page of tables."""
    from cmapkd.paper.markdown import keep_results

    kept = keep_results(_paper(experiment, results), directory)
    typer.echo(f"{len(kept)} files in {directory}")


@app.command("trace")
def trace(table: str, row: str, column: str, experiment: Experiment = DEFAULT, results: Results = RESULTS) -> None:
    """Where a number of a table comes from: runs, code, data, machine, and the command that recomputes it."""
    from cmapkd.paper.trace import trace as trace_cell

    typer.echo(trace_cell(_paper(experiment, results), table, row, column))


@app.command("tune")
def tune(
    runs: Annotated[list[str] | None, typer.Argument(help="runs to tune; none: those of the key `tuning`")] = None,
    experiment: Experiment = DEFAULT,
    results: Results = RESULTS,
    threads: Annotated[int, typer.Option(help="CPU threads; 0: all")] = 1,
    trials: Annotated[int, typer.Option(help="trials of each run; 0: as the experiment says")] = 0,
    out: Annotated[Path | None, typer.Option(help="file of what was found; default config/tuned/<experiment>.yaml")] = None,
    restart: Annotated[bool, typer.Option("--restart", help="forget earlier trials of these runs")] = False,
) -> None:
    """Search settings of runs on the validation splits, as many trials for each; killed, the same command goes on.

    Several of these commands may run at once, on the same runs or others.
    """
    from cmapkd.config import load_experiment

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(key="tune", reason="runs in one process", fix="start it without torchrun, several times if you like")
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    if threads:
        torch.set_num_threads(threads)
    from cmapkd.training.stopping import EXIT, Interrupted
    from cmapkd.tuning.run import tune_runs
    from cmapkd.tuning.trial import tuned_runs

    names = runs or tuned_runs(load_experiment(experiment, tuning=()))
    loaded = load_experiment(experiment, tuning=names)
    if trials:
        loaded = loaded.model_copy(update={"tuning": loaded.tuning.model_copy(update={"trials": trials})})
    target = out or DEFAULT.parent / "tuned" / f"{loaded.name}.yaml"
    try:
        tune_runs(loaded, names, results, target, restart=restart)
    except Interrupted as stop:
        typer.echo(str(stop), err=True)
        raise SystemExit(EXIT) from None
    typer.echo(str(target))


@app.command("plan")
def plan(experiment: Experiment = DEFAULT, results: Results = RESULTS) -> None:
    """List the trainings of an experiment: address, what it is, and whether it is done. Shared stages appear once."""
    made = _plan(experiment)
    home = results / made.experiment.name
    for stage in made.stages.values():
        done = "done" if (home / "stages" / stage.address / "stage.json").is_file() else "open"
        typer.echo(f"{done}  {stage.address:34} {stage.label}")
    total = sum(len(run.stages) for run in made.runs)
    trained = len({address for run in made.runs for address in run.stages})
    shared = f"{total} stages, {total - trained} of them shared: {trained} trainings"
    typer.echo(f"{len(made.runs)} runs of {shared}; and {len(made.stages) - trained} for the teacher")


@config_app.command("check")
def config_check(file: Path) -> None:
    """Check an experiment file, without starting anything."""
    made = _plan(file)
    _check_weights(made.experiment)
    typer.echo(f"{file}: fine; {len(made.stages)} trainings, {len(made.runs)} runs")


@config_app.command("document")
def config_document(
    fix: Annotated[bool, typer.Option("--fix", help="write the files; otherwise only compare")] = False,
) -> None:
    """Compare `config/README.md` and the JSON schema with the code that defines the keys."""
    from cmapkd.config.document import update

    stale = update(fix=fix)
    if stale and not fix:
        raise UserError(key=", ".join(stale), reason="does not agree with the code", fix="run `cmapkd config document --fix`")


def cache() -> Path:
    """Folder of downloads, shared by all experiments."""
    base = os.environ.get("CMAPKD_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cmapkd"
    return Path(base)


def _plan(experiment: Path):  # type: ignore[no-untyped-def]
    from cmapkd.config import load_experiment
    from cmapkd.plan import make_plan

    return make_plan(load_experiment(experiment))


def _check_weights(experiment):  # type: ignore[no-untyped-def]
    """Refuse tags and paths of weights that do not exist; open_clip, which knows its tags, is imported only if they matter."""
    named = (
        (experiment.teacher.model, experiment.teacher.pretrained, "teacher.pretrained"),
        (experiment.student.model, experiment.student.init, "student.init"),
    )
    for model, init, key in named:
        if init not in (None, "random"):
            from cmapkd.models import towers

            towers.check_init(model, init, key)


def _home(experiment: Path, results: Path) -> Path:
    from cmapkd.config import load_experiment

    return results / load_experiment(experiment).name


def _dataset(experiment: Path, dataset: str):  # type: ignore[no-untyped-def]
    from cmapkd.config import load_experiment

    datasets = load_experiment(experiment).datasets
    if dataset not in datasets:
        raise UserError(key="dataset", value=dataset, reason="is not in this experiment", fix=nearest(dataset, list(datasets)))
    return datasets[dataset]


def _paper(experiment: Path, results: Path):  # type: ignore[no-untyped-def]
    from cmapkd.config import load_experiment
    from cmapkd.paper.experiment import paper_context

    return paper_context(load_experiment(experiment), results, experiment)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"cmapkd {__version__}")
        raise typer.Exit


@app.callback()
def _options(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False) -> None:
    pass


def main() -> None:
    """Entry point: a user's mistake is a message and exit code 2, never a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("cmapkd").setLevel(logging.INFO)
    try:
        app()
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None
