"""Commands of the paper: its parts, the pages of its report, and where its numbers come from. None of them needs torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cmapkd import commands
from cmapkd.cli.options import (
    DEFAULT,
    RESULTS,
    Experiment,
    Results,
    dataset_of,
    default_experiment,
    default_results,
    home_of,
    needs_of,
    paper_of,
    plan_of,
)
from cmapkd.errors import UserError

paper_app = typer.Typer()
report_app = typer.Typer(no_args_is_help=True, help="Pages of the HTML report; `snakemake --report` puts them together.")


@paper_app.callback(invoke_without_command=True)
def paper(
    context: typer.Context,
    experiment: Annotated[
        Path | None, typer.Option("--experiment", "-e", help=f"experiment file; default: {DEFAULT} of this clone")
    ] = None,
    results: Annotated[
        Path | None, typer.Option("--results", help="folder that holds all experiments; default: results of this clone")
    ] = None,
) -> None:
    """Tables, figures and the document, from metric files alone; without a sub-command all of them."""
    given = {name: value for name, value in (("experiment", experiment), ("results", results)) if value is not None}
    for name, value in given.items():
        commands.remember(f"--{name}", value)
    if context.invoked_subcommand is None:
        paper_all(experiment or default_experiment(), results or default_results())
    else:  # options before the sub-command are meant for it
        context.default_map = {context.invoked_subcommand: {name: str(value) for name, value in given.items()}}


@paper_app.command("table")
def paper_table(name: str, experiment: Experiment = DEFAULT, results: Results = RESULTS) -> None:
    """Write one table as LaTeX, with the parents of every cell beside it."""
    from cmapkd.paper.build import build_table

    build_table(name, paper_of(experiment, results))


@paper_app.command("figure")
def paper_figure(name: str, experiment: Experiment = DEFAULT, results: Results = RESULTS) -> None:
    """Draw one figure as PDF, with its values and parents beside it; a drawing is TikZ, and a PDF where LaTeX is installed."""
    from cmapkd.paper.build import build_figure

    build_figure(name, paper_of(experiment, results))


@paper_app.command("algorithm")
def paper_algorithm(name: str, experiment: Experiment = DEFAULT, results: Results = RESULTS) -> None:
    """Write one algorithm as LaTeX, with the parents of its constants beside it."""
    from cmapkd.paper.build import build_algorithm

    build_algorithm(name, paper_of(experiment, results))


@paper_app.command("document")
def paper_document(experiment: Experiment = DEFAULT, results: Results = RESULTS) -> None:
    """Write `paper.tex` and `numbers.tex`, which put tables, figures and macros together."""
    from cmapkd.paper.build import build_document

    build_document(paper_of(experiment, results))


@paper_app.command("pdf")
def paper_pdf(experiment: Experiment = DEFAULT, results: Results = RESULTS) -> None:
    """Typeset `paper.pdf`, where LaTeX is installed."""
    from cmapkd.paper.build import build_pdf

    if not build_pdf(paper_of(experiment, results)):
        typer.echo("no pdflatex here: everything but paper.pdf is made", err=True)


@paper_app.command("manuscript")
def paper_manuscript(experiment: Experiment = DEFAULT, results: Results = RESULTS) -> None:
    """Typeset the article of the key `paper.manuscript` with this experiment's tables, figures and numbers."""
    from cmapkd.paper.manuscript import build_manuscript, missing_for_manuscript

    context = paper_of(experiment, results)
    if not build_manuscript(context):
        reason = f"there is no {', '.join(missing_for_manuscript())} here" if context.manuscript else "none is configured"
        typer.echo(f"no manuscript.pdf: {reason}", err=True)


@paper_app.command("all")
def paper_all(experiment: Experiment = DEFAULT, results: Results = RESULTS) -> None:
    """All tables, figures and the document at once; `cmapkd paper` alone does the same."""
    from cmapkd.paper.build import build_paper

    needs_of(experiment, results).folder()
    context = paper_of(experiment, results)
    made = build_paper(context)
    if not made:
        typer.echo("no pdflatex here: everything but paper.pdf is made", err=True)
    document = context.paper / ("paper.pdf" if made else "paper.tex")
    typer.echo(f"{len(context.all_tables)} tables, {len(context.all_figures)} figures: {document}")


@paper_app.command("keep")
def paper_keep(directory: Path, experiment: Experiment = DEFAULT, results: Results = RESULTS) -> None:
    """Copy what was measured, with its provenance, to a folder that a repository can hold, and write its page of tables."""
    from cmapkd.paper.markdown import keep_results

    needs_of(experiment, results).folder()
    kept = keep_results(paper_of(experiment, results), directory)
    typer.echo(f"{len(kept)} files in {directory}")


@report_app.command("run")
def report_run(run: str, out: Path, experiment: Experiment = DEFAULT, results: Results = RESULTS) -> None:
    """A page of a RUN (`<name>/<seed>`): configuration, training, everything measured, provenance."""
    from cmapkd.files import write_atomic
    from cmapkd.paper.run_page import render_run_page

    needs_of(experiment, results).folder()
    write_atomic(out, render_run_page(plan_of(experiment), paper_of(experiment, results), run))


@report_app.command("data")
def report_data(dataset: str, out: Path, experiment: Experiment = DEFAULT, results: Results = RESULTS) -> None:
    """A page of a data set: splits, what they share, sources and licences."""
    from cmapkd.data.shards import read_manifest
    from cmapkd.files import write_atomic

    dataset_of(experiment, dataset)
    needs_of(experiment, results).data([dataset])
    from cmapkd.paper.log_page import render_data_page

    write_atomic(out, render_data_page(read_manifest(home_of(experiment, results) / "data" / dataset)))


@report_app.command("logs")
def report_logs(out: Path, experiment: Experiment = DEFAULT, results: Results = RESULTS) -> None:
    """A page for the log of each job behind the metrics, in the folder OUT."""
    from cmapkd.paper.log_page import write_log_pages

    write_log_pages(plan_of(experiment), home_of(experiment, results), out)


def trace(
    cell: Annotated[list[str], typer.Argument(help="TABLE ROW COLUMN, or one macro: '\\cmapkd{table2}{CMAPKD}{i2t_r1}'")],
    experiment: Experiment = DEFAULT,
    results: Results = RESULTS,
    as_json: Annotated[bool, typer.Option("--json", help="for machines")] = False,
) -> None:
    """Where a number of the paper comes from: runs, code, data, machine, times, and the commands that recompute it."""
    import json

    from cmapkd.paper.trace import address_of, chain, tell

    needs_of(experiment, results).folder()
    found = chain(paper_of(experiment, results), *address_of(cell))
    typer.echo(json.dumps(found, indent=2, ensure_ascii=False) if as_json else tell(found))


def verify(
    path: Annotated[
        Path | None, typer.Argument(help="results of an experiment, or their paper/; default: results/mini of this clone")
    ] = None,
    experiment: Annotated[
        Path | None, typer.Option("--experiment", "-e", help="experiment file; default: the one with the results")
    ] = None,
    deep: Annotated[
        bool | None, typer.Option("--deep/--no-deep", help="hash every shard; default: below 4 GiB of them")
    ] = None,
    kept: Annotated[
        bool | None,
        typer.Option("--kept/--full", help="arrays, models and data may be missing; default: as `paper keep` wrote it or not"),
    ] = None,
) -> None:
    """Compute again all digests and numbers that a paper rests on; exit code 1 and a list of everything that is wrong.

    Of results that `cmapkd paper keep` copied, all that is there is verified, and what is not there is counted by kind.
    """
    from cmapkd.paper.verify import summary
    from cmapkd.paper.verify import verify as check

    if path is None:
        default_experiment()  # says so outside of any clone
        path = default_results() / DEFAULT.stem
    findings = check(path, experiment=experiment, deep=deep, kept=kept)
    typer.echo(summary(findings, path))
    if findings.problems:
        raise typer.Exit(1)


def compare(
    first: Annotated[str, typer.Argument(help="RUN, EXPERIMENT:RUN, or a results directory")],
    second: str,
    experiment: Experiment = DEFAULT,
    results: Results = RESULTS,
    strata: Annotated[bool, typer.Option("--strata", help="also metrics of each stratum and of the levels")] = False,
    html: Annotated[Path | None, typer.Option(help="write a page of it")] = None,
    png: Annotated[Path | None, typer.Option(help="write a picture of losses and differences")] = None,
) -> None:
    """Two runs side by side: settings that differ, metrics with intervals of their differences, and losses."""
    from cmapkd.config import load_experiment
    from cmapkd.paper.compare import compare as compare_runs
    from cmapkd.paper.compare import find_side, pairs_of
    from cmapkd.paper.compare_text import text

    needs_of(experiment, results).folder()
    loaded, context = load_experiment(experiment), paper_of(experiment, results)
    sides = [find_side(name, loaded, context, results) for name in (first, second)]
    found = [compare_runs(*pair, strata=strata) for pair in pairs_of(*sides)]
    if png is not None and len(found) > 1:
        raise UserError(key="png", value=str(png), reason="a picture is of two runs", fix="name two runs, or use --html")
    typer.echo("\n\n".join(text(comparison) for comparison in found))
    if html is not None or png is not None:
        from cmapkd.paper.compare_picture import write_html, write_png

        if png is not None:
            write_png(found[0], png)
        if html is not None:
            write_html(found, html)
