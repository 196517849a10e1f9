"""`cmapkd site`: the SLURM profile of this site, in a file that git ignores.

The profile as shipped is ``profile.yaml``. `cmapkd site` writes ``profile.v9+.yaml`` next to it: the shipped profile with the
part between the marks replaced by facts of the site, and at its head the SHA-256 of the profile it was made from. Of the files
of a profile folder Snakemake takes the one of the highest version, and ``profile.yaml`` counts as 0, so
`snakemake --profile slurm` works before and after. (A workflow profile on top would replace keys such as ``default-resources``
as one, change local runs too, and be lost with `--workflow-profile`.)
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from cmapkd.errors import UserError
from cmapkd.files import write_atomic
from cmapkd.site_choice import choose as choose
from cmapkd.site_choice import tell as tell
from cmapkd.site_facts import Ask as Ask
from cmapkd.site_facts import Partition as Partition
from cmapkd.site_facts import ask as ask
from cmapkd.site_facts import find as find
from cmapkd.site_facts import parse_gres as parse_gres
from cmapkd.site_facts import parse_limit as parse_limit
from cmapkd.site_facts import parse_sinfo as parse_sinfo
from cmapkd.site_facts import user_name as user_name
from cmapkd.site_text import Choice, site_part

FOLDER = Path("workflow/profiles/slurm")
SHIPPED, WRITTEN = "profile.yaml", "profile.v9+.yaml"
PROFILE = FOLDER / WRITTEN
BEGIN, END = "# >>> site", "# <<< site"
RENEW = "cmapkd site --renew"
_HEAD = """# Written by `cmapkd site`; git ignores this file. Edit what stands between the marks. All else comes from
# profile.yaml: where that has changed, `cmapkd site --renew` takes it over and keeps what stands between the marks.
# profile.yaml: sha256 {digest}
"""


def write(choice: Choice, profile: Path = PROFILE) -> None:
    """Write the profile of a site from the shipped one in the same folder.

    Raises:
        UserError: there is no shipped profile, or it has no marks.
    """
    _write(profile, site_part(choice))


def renew(profile: Path = PROFILE) -> list[str]:
    """Write the profile of a site again from the shipped one; what stands between the marks stays, with edits by hand.

    Returns:
        Keys of the shipped site's part that are missing in this one, which an older version may have written.

    Raises:
        UserError: there is no profile of a site yet, or one without marks.
    """
    if not profile.is_file():
        raise UserError(key="profile", value=str(profile), reason="does not exist", fix="run `cmapkd site` first")
    part = _parts(profile)[1]
    _write(profile, part)
    return [key for key in _keys(_parts(profile.with_name(SHIPPED))[1]) if key not in _keys(part)]


def outdated(folder: Path) -> str:
    """A note for people if the profile of the site was made from another version of the shipped one; otherwise empty."""
    shipped, written = folder / SHIPPED, folder / WRITTEN
    if not shipped.is_file() or not written.is_file():
        return ""
    made_from = re.search(r"^# profile\.yaml: sha256 (\w+)$", written.read_text(encoding="utf-8"), flags=re.MULTILINE)
    if made_from and made_from[1] == _digest(shipped):
        return ""
    return f"{written} was made from another version of {SHIPPED}. `{RENEW}` keeps its site's part and takes over the rest"


def in_use(folder: Path, arguments: Sequence[str] | None = None) -> bool:
    """Whether this Snakemake reads its profile from a folder."""
    words = list(sys.argv if arguments is None else arguments)
    given = [word.partition("=")[2] for word in words if word.startswith("--profile=")]
    given += [after for word, after in pairwise(words) if word == "--profile"]
    given = given or [os.environ.get("SNAKEMAKE_PROFILE", "")]
    return any(Path(name).exists() and Path(name).resolve() == folder.resolve() for name in given if name)


def _write(profile: Path, part: str) -> None:
    shipped = profile.with_name(SHIPPED)
    if profile.name == SHIPPED:
        raise UserError(
            key="profile",
            value=str(profile),
            reason="is the profile as shipped, which is not changed",
            fix=f"write {profile.with_name(WRITTEN)}, which Snakemake prefers",
        )
    before, _, after = _parts(shipped)
    write_atomic(profile, f"{_HEAD.format(digest=_digest(shipped))}{before}{BEGIN}\n{part}{END}\n{after}")


def _parts(profile: Path) -> tuple[str, str, str]:
    """What stands before, between and after the marks."""
    if not profile.is_file():
        raise UserError(
            key="profile", value=str(profile), reason="does not exist", fix="run it from the root of the repository"
        )
    before, begin, rest = profile.read_text(encoding="utf-8").partition(f"{BEGIN}\n")
    part, end, after = rest.partition(f"{END}\n")
    if not begin or not end:
        raise UserError(
            key="profile", value=str(profile), reason=f"has no part between {BEGIN!r} and {END!r}", fix="put the marks back"
        )
    return before, part, after


def _keys(part: str) -> list[str]:
    return re.findall(r"^([\w-]+):", part, flags=re.MULTILINE)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
