"""Commands about the machine and not about an experiment: whether it can do the work, and the container image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cmapkd.errors import UserError, nearest

image_app = typer.Typer(no_args_is_help=True, help="The container image in which jobs of a cluster run (docs/cluster.md).")


def selfcheck(
    without: Annotated[list[str] | None, typer.Option(help="leave a check out; may be given several times")] = None,
    require: Annotated[list[str] | None, typer.Option(help="fail where a check would be skipped: tex, gpu")] = None,
    lock: Annotated[Path | None, typer.Option(help="lock that versions are compared with; none: the source's")] = None,
) -> None:
    """Whether this environment can do what experiments need: imports, versions, ranks, drawing, GPUs, LaTeX."""
    from cmapkd import selfcheck as checks

    for name in [*(without or []), *(require or [])]:
        if name not in checks.CHECKS:
            raise UserError(key="selfcheck", value=name, reason="is no check", fix=nearest(name, list(checks.CHECKS)))
    failed = []
    for outcome in checks.selfcheck(without or (), require or (), lock or checks.LOCK):
        typer.echo(str(outcome))
        failed += [outcome.name] if outcome.state == "failed" else []
    if failed:
        typer.echo(f"failed: {', '.join(failed)}", err=True)
        raise SystemExit(1)


@image_app.command("build")
def image_build(
    out: Annotated[Path, typer.Option(help="where the image goes")] = Path("containers/cmapkd.sif"),
    definition: Annotated[str, typer.Option(help="`cluster`: base from a registry; `cpu`: from Debian's packages")] = "cluster",
    base: Annotated[Path | None, typer.Option(help="folder or image with a bare Debian 12 to begin from")] = None,
    wheels: Annotated[
        Path | None, typer.Option(help="folder with the files of requirements.lock, in place of the package index")
    ] = None,
    mirror: Annotated[str, typer.Option(help="of Debian packages, for `cpu`; none: the one that apt uses here")] = "",
    fakeroot: Annotated[bool, typer.Option("--fakeroot", help="build without being root")] = False,
    tested: Annotated[bool, typer.Option("--test/--no-test", help="run `cmapkd selfcheck` in it before it counts")] = True,
) -> None:
    """Build the image from the checkout; its digest is written beside it."""
    from cmapkd import image

    made = image.build(out, definition, base=base, wheels=wheels, mirror=mirror, fakeroot=fakeroot, tested=tested)
    typer.echo(f"{out}: {made}")


@image_app.command("check")
def image_check(image: Annotated[Path | None, typer.Argument(help="none: the one that the workflow would use")] = None) -> None:
    """The image's digest and labels; fails if it is damaged or was built from another lock than the checkout's."""
    from cmapkd import image as images

    for line in images.check(image or images.chosen()):
        typer.echo(line)
