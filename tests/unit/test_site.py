"""`cmapkd site` on what other sites say, in the documented formats of SLURM's tools, and the profile that it writes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from snakemake.cli import get_profile_dir

from cmapkd import site as of_site
from cmapkd.errors import UserError
from cmapkd.site import Ask, choose, find, parse_gres, parse_limit, parse_sinfo, tell, user_name, write
from cmapkd.site_text import Choice, site_part
from cmapkd.status import queue

REPOSITORY = Path(__file__).parents[2]
SHIPPED = REPOSITORY / "workflow/profiles/slurm/profile.yaml"

# A university's cluster: accounting by slurmdbd, accounts enforced, two types of GPU in one partition.
LARGE = {
    "sinfo": """cpu*|up|3-00:00:00|120|128|515000|(null)
long|up|14-00:00:00|20|128|515000|(null)
gpu|up|1-00:00:00|24|64+|1030000+|gpu:a100:4(S:0-1),nvme:1
gpu|up|1-00:00:00|6|96|2060000|gpu:h100:8(S:0-7)
gpu-old|down|2-00:00:00|40|32|190000|gpu:v100:4
""",
    "scontrol": """Configuration data as of 2025-03-01T12:00:00
AccountingStorageEnforce = associations,limits,qos,safe
AccountingStorageType   = accounting_storage/slurmdbd
MinJobAge               = 300 sec
SLURM_VERSION           = 23.11.10
""",
    "sacctmgr": "vision\nvision\nml-group\n",
    "apptainer": "apptainer version 1.3.4\n",
}
# A lab's cluster: no accounting, finished jobs forgotten after a minute, one type of GPU, Singularity.
SMALL = {
    "sinfo": "all*|up|infinite|3|32|128000|gpu:2\n",
    "scontrol": """AccountingStorageEnforce = none
AccountingStorageType   = accounting_storage/none
MinJobAge               = 60 sec
""",
    "singularity": "singularity-ce version 4.1.0\n",
}
# Processors alone, and tools that are not answering.
BARE = {"sinfo": "batch*|up|8:00:00|10|40|96000|(null)\n"}


def site(answers: dict[str, str]) -> Ask:
    def asking(command: Sequence[str]) -> str | None:
        return answers.get(command[0])

    return asking


def part(answers: dict[str, str], **given: str) -> dict[str, Any]:
    """The site's part as a reader of YAML sees it."""
    loaded: dict[str, Any] = yaml.safe_load(site_part(choose(find(site(answers)), **given)))
    return loaded


def test_a_large_site() -> None:
    found = part(LARGE)
    assert found["slurm-status-command"] == "sacct"
    assert found["default-resources"]["slurm_account"] == "vision"
    assert found["default-resources"]["slurm_partition"] == "cpu"
    # Both kinds of nodes are in `gpu`; there are more A100, so they are asked for by type.
    assert found["default-resources"]["gpu_request"] == "gres=gpu:a100:{n}"
    assert found["default-resources"]["ranks_per_node"] == 4
    for rule in ("teacher", "train", "evaluate"):
        assert found["set-resources"][rule]["slurm_partition"] == "gpu"
    assert found["set-resources"]["train"]["runtime"] == "min(1440 * attempt, 1440)"
    assert found["default-resources"]["runtime"] == "min(60 * attempt, 4320)"
    assert found["set-threads"]["train"] == 32


def test_which_account_is_said_where_there_are_several() -> None:
    found = find(site(LARGE))
    told = tell(found, choose(found))
    assert "you have vision, ml-group, chosen: vision" in told
    assert "gpu-old (not up: down)" in told
    chosen = part(LARGE, account="ml-group", gpu_partition="gpu", partition="long")
    assert chosen["default-resources"]["slurm_account"] == "ml-group"
    assert chosen["default-resources"]["slurm_partition"] == "long"


def test_a_small_site_is_told_that_squeue_forgets_too_early() -> None:
    found = find(site(SMALL))
    choice = choose(found)
    assert (choice.status, choice.seconds, choice.gpu_request, choice.ranks_per_node) == ("squeue", 20, "gres=gpu:{n}", 2)
    assert choice.account == ""
    told = tell(found, choice)
    assert "squeue forgets them after 60 s" in told
    assert "singularity-ce version 4.1.0" in told
    assert "account" not in told, "without slurmdbd there are none to ask for"
    assert part(SMALL)["set-resources"]["train"]["runtime"] == "1440 * attempt"


def test_what_was_not_found_is_said() -> None:
    found = find(site(BARE))
    told = tell(found, choose(found))
    for words in (
        "scontrol show config: no answer",
        "account: sacctmgr lists none",
        "apptainer: neither",
        "GPUs: no partition",
    ):
        assert words in told
    chosen = part(BARE)
    assert "gpu_request" not in chosen["default-resources"]
    assert "ranks_per_node" not in chosen["default-resources"]
    assert chosen["set-resources"]["train"]["runtime"] == "min(1440 * attempt, 480)"


@pytest.mark.parametrize("key", ["partition", "gpu_partition", "account"])
def test_names_that_the_site_does_not_have_are_refused(key: str) -> None:
    with pytest.raises(UserError, match="is not one of this site's"):
        choose(find(site(LARGE)), **{key: "nowhere"})


def test_without_slurm_it_says_so() -> None:
    with pytest.raises(UserError, match="no SLURM here"):
        find(site({}))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("(null)", (0, "")), ("gpu:4", (4, "")), ("gpu:a100:4(S:0-1)", (4, "a100")), ("gpu", (1, "")), ("gpu:tesla", (1, "tesla")),
     ("nvme:1,gpu:a100:2(S:0),gpu:a100:1(S:1)", (3, "a100")), ("gpu:a30:1,gpu:a100:3", (3, "a100")), ("", (0, "")),
     ("gpu:a100:4,shard:a100:32", (4, "a100")), ("shard:8", (0, "")), ("gpu:a100_1g.5gb:28(S:0-1)", (28, "a100_1g.5gb")),
     ("gpu:a100:2,gpu:a100_1g.5gb:14", (2, "a100"))],
)  # fmt: skip
def test_gpus_of_a_node(text: str, expected: tuple[int, str]) -> None:
    assert parse_gres(text) == expected


@given(st.integers(0, 30), st.integers(0, 23), st.integers(0, 59))
def test_time_limits(days: int, hours: int, minutes: int) -> None:
    text = f"{days}-{hours:02d}:{minutes:02d}:00" if days else f"{hours}:{minutes:02d}:00" if hours else f"{minutes}:00"
    assert parse_limit(text) == days * 1440 + hours * 60 + minutes


def test_unlimited_time_and_lines_that_are_none() -> None:
    assert parse_limit("infinite") is None
    assert parse_sinfo("sinfo: warning\n\n") == []


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    """Where the profile of a site is written, next to a copy of the shipped one."""
    shutil.copy(SHIPPED, tmp_path)
    return tmp_path / "profile.v9+.yaml"


def between(path: Path) -> str:
    return path.read_text().partition("# >>> site\n")[2].partition("# <<< site\n")[0]


def test_the_profile_as_shipped_is_what_the_defaults_give() -> None:
    assert between(SHIPPED) == site_part(Choice())


def test_only_the_sites_part_differs_from_the_shipped_profile(profile: Path) -> None:
    write(choose(find(site(LARGE))), profile)
    shipped, written = (yaml.safe_load(path.read_text()) for path in (SHIPPED, profile))
    assert written["default-resources"]["slurm_account"] == "vision"
    of_the_site = yaml.safe_load(site_part(Choice())).keys()
    assert {key: value for key, value in written.items() if key not in of_the_site} == {
        key: value for key, value in shipped.items() if key not in of_the_site
    }
    assert profile.with_name("profile.yaml").read_bytes() == SHIPPED.read_bytes()


def test_snakemake_prefers_the_profile_of_the_site(profile: Path) -> None:
    assert get_profile_dir(str(profile.parent))[1].name == "profile.yaml"
    write(Choice(), profile)
    assert get_profile_dir(str(profile.parent))[1].name == profile.name


def test_a_profile_of_an_older_version_is_noted_and_renewed_with_edits_by_hand(profile: Path) -> None:
    assert of_site.outdated(profile.parent) == ""
    with pytest.raises(UserError, match="run `cmapkd site` first"):
        of_site.renew(profile)
    write(choose(find(site(LARGE))), profile)
    assert of_site.outdated(profile.parent) == ""
    profile.write_text(profile.read_text().replace("slurm_account: vision", "slurm_account: mine  # by hand"))
    kept = between(profile)
    shipped = profile.with_name("profile.yaml")
    shipped.write_text(shipped.read_text().replace("retries: 3", "retries: 5"))
    assert "`cmapkd site --renew`" in of_site.outdated(profile.parent)
    assert of_site.renew(profile) == []
    assert of_site.outdated(profile.parent) == ""
    assert between(profile) == kept
    assert yaml.safe_load(profile.read_text())["retries"] == 5
    profile.write_text(profile.read_text().replace("jobs: 100\n", ""))
    assert of_site.renew(profile) == ["jobs"]


def test_the_profile_in_use_is_that_of_the_command_line(profile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(profile.parent)
    monkeypatch.delenv("SNAKEMAKE_PROFILE", raising=False)
    for arguments in (["--profile", folder, "-n"], [f"--profile={folder}"]):
        assert of_site.in_use(profile.parent, ["snakemake", *arguments])
    assert not of_site.in_use(profile.parent, ["snakemake", "-n"])
    assert not of_site.in_use(profile.parent, ["snakemake", "--profile", "elsewhere", "--workflow-profile", folder])
    monkeypatch.setenv("SNAKEMAKE_PROFILE", folder)
    assert of_site.in_use(profile.parent, ["snakemake", "-n"])


def test_a_profile_without_marks_is_left_alone(profile: Path) -> None:
    shipped = profile.with_name("profile.yaml")
    with pytest.raises(UserError, match="is not changed"):
        write(Choice(), shipped)
    assert shipped.read_bytes() == SHIPPED.read_bytes()
    shipped.write_text("executor: slurm\n")
    with pytest.raises(UserError, match="has no part between"):
        write(Choice(), profile)
    shipped.unlink()
    with pytest.raises(UserError, match="does not exist"):
        write(Choice(), profile)
    assert not profile.exists()


def test_the_command_leaves_a_clone_clean(tmp_path: Path) -> None:
    """In a folder with a space and a letter beyond ASCII, with programs in SLURM's place."""
    root, programs = tmp_path / "a clone \u00e9", tmp_path / "bin"
    programs.mkdir()
    answer = programs / "answer.txt"
    answer.write_text(LARGE["sinfo"])
    (programs / "sinfo").write_text(f"#!/bin/sh\ncat '{answer}'\n")
    (programs / "sinfo").chmod(0o755)
    for part in (".gitignore", "workflow/profiles/slurm/profile.yaml"):
        (root / part).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / part, root / part)

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "init.defaultBranch=main"]
        return subprocess.run(
            ["git", *identity, "-C", str(root), *arguments], check=True, capture_output=True, text=True
        ).stdout

    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        git(*arguments)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY)}
    for options in ([], ["--renew"]):
        command = [sys.executable, "-m", "cmapkd", "site", *options]
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert git("status", "--porcelain") == ""
    found = yaml.safe_load((root / "workflow/profiles/slurm/profile.v9+.yaml").read_text())
    assert found["set-resources"]["train"]["slurm_partition"] == "gpu"


def test_a_user_without_a_name_is_asked_for_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr("getpass.getuser", nameless)
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    assert user_name() == "4711"
    asked: list[Sequence[str]] = []
    find(lambda command: asked.append(command) or LARGE.get(command[0]))
    assert any("user=4711" in command for command in asked)
    assert queue(lambda command: asked.append(command), Path("/")) == {}
    assert asked[-1][-1] == "4711"
