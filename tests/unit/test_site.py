"""`cmapkd site` on what other sites say, in the documented formats of SLURM's tools, and the profile that it writes."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cmapkd.errors import UserError
from cmapkd.site import Ask, choose, find, parse_gres, parse_limit, parse_sinfo, tell, write
from cmapkd.site_text import Choice, site_part

PROFILE = Path(__file__).parents[2] / "workflow/profiles/slurm/profile.v9+.yaml"

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
    assert "you have vision, ml-group" in told
    assert "gpu-old (not up)" in told
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
        "account: sacctmgr tells of none",
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
     ("nvme:1,gpu:a100:2(S:0),gpu:a100:1(S:1)", (3, "a100")), ("gpu:a30:1,gpu:a100:3", (3, "a100")), ("", (0, ""))],
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


def test_the_profile_as_shipped_is_what_the_defaults_give(tmp_path: Path) -> None:
    copy = tmp_path / PROFILE.name
    shutil.copy(PROFILE, copy)
    write(Choice(), copy)
    assert copy.read_text() == PROFILE.read_text()


def test_only_the_sites_part_is_written(tmp_path: Path) -> None:
    copy = tmp_path / PROFILE.name
    shutil.copy(PROFILE, copy)
    write(choose(find(site(LARGE))), copy)
    before, after = (yaml.safe_load(path.read_text()) for path in (PROFILE, copy))
    assert after["default-resources"]["slurm_account"] == "vision"
    of_the_site = yaml.safe_load(site_part(Choice())).keys()
    assert {key: after[key] for key in after if key not in of_the_site} == {
        key: before[key] for key in before if key not in of_the_site
    }
    write(Choice(), copy)
    assert copy.read_text() == PROFILE.read_text()


def test_a_profile_without_marks_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "profile.yaml"
    path.write_text("executor: slurm\n")
    with pytest.raises(UserError, match="has no part between"):
        write(Choice(), path)
    assert path.read_text() == "executor: slurm\n"
    with pytest.raises(UserError, match="does not exist"):
        write(Choice(), tmp_path / "none.yaml")
