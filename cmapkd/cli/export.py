"""The command that turns a finished run into a model others can load, and pushes it to the Hub if it is told to."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cmapkd.cli.options import DEFAULT, RESULTS, Experiment, Results, needs_of, plan_of


class Format(StrEnum):
    """Forms of an export; ``all`` is every one that the architecture permits."""

    OPEN_CLIP = "open_clip"
    HF = "hf"
    ONNX = "onnx"
    ALL = "all"


def export(
    run: Annotated[str, typer.Argument(help="a finished run, `<name>/<seed>`, or its name where there is one seed")],
    to: Annotated[Path, typer.Option("--to", help="directory to make; it appears when it is whole")],
    experiment: Experiment = DEFAULT,
    results: Results = RESULTS,
    form: Annotated[Format, typer.Option("--format", help="`all`: each that the architecture permits")] = Format.ALL,
    licence: Annotated[str, typer.Option("--licence", help="identifier of the weights' licence, e.g. apache-2.0")] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an earlier export")] = False,
    push: Annotated[str, typer.Option("--push", help="owner/name on the Hub to send it to; needs --yes")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="agree to --push")] = False,
    public: Annotated[bool, typer.Option("--public", help="a new repository is public; otherwise private")] = False,
) -> None:
    """Write a finished run's student as open_clip, transformers and ONNX, with a model card of what was measured."""
    from cmapkd.export import finished
    from cmapkd.export import push as hub
    from cmapkd.export.record import check_licence, check_target

    if push:
        hub.check(push, yes, public)
    check_licence(licence)
    check_target(to, overwrite)
    needs_of(experiment, results).folder()
    found = finished.finished(plan_of(experiment), run, results, experiment)
    from cmapkd.export.write import export as write

    formats = None if form is Format.ALL else [form.value]
    record = write(found, to, formats, licence=licence or None, overwrite=overwrite)
    for name, about in record["formats"].items():
        typer.echo(f"{name}: " + (f"left out, {about['missing']}" if "missing" in about else ", ".join(about["files"])))
    for name, difference in record["checks"].items():
        typer.echo(f"{name}: embeddings differ from the student's by at most {difference:.1e}")
    typer.echo(str(to))
    if push:
        typer.echo(hub.push(to, push, agreed=yes, public=public))
