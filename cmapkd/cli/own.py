"""`cmapkd data check`: what a folder of images with captions holds."""

from __future__ import annotations

from typing import Annotated

import typer


def data_check(
    folder: str,
    table: Annotated[str, typer.Option(help="table in it; empty: the first one, unless images have texts")] = "",
) -> None:
    """Look at a folder of images with captions before anything is built, and print the lines of YAML that read it."""
    from cmapkd.data.own_check import check_folder, data_name

    found = check_folder(folder, table or None)
    for line in found.lines:
        typer.echo(line, err=True)
    typer.echo("\nThese lines of an experiment read it (config/own.yaml is a complete one):\n", err=True)
    typer.echo(found.yaml(data_name(folder)), nl=False)
