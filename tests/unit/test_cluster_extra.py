"""Options of sbatch from a user and from the product in one line, and what is refused where the workflow starts."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from snakemake.resources import Resources
from snakemake.settings.types import ResourceSettings

from cmapkd.cluster import SIGNAL, Layout, Site, gpu_resources, training_resources
from cmapkd.cluster_check import check_site
from cmapkd.cluster_extra import Extra, join, take_extra
from cmapkd.errors import UserError


def settings(*default: str, **rules: list[str]) -> ResourceSettings:
    """Snakemake's, as it makes them of a profile or a command line."""
    overwritten = {rule: Resources.parse(given, allow_expressions=True) for rule, given in rules.items()}
    return ResourceSettings(
        default_resources=Resources.parse(list(default), allow_expressions=True, defaults="bare"),
        overwrite_resources=overwritten,
    )


def option(resources: dict[str, Any], rule: str, attempt: int = 1) -> str:
    return str(resources["slurm_extra"]({}, attempt=attempt, rulename=rule, threads=1, input=[], async_run=asyncio.run))


def test_options_of_the_user_are_joined_and_no_longer_replace() -> None:
    given = settings("slurm_extra='--hint=nomultithread'", train=["slurm_extra='--exclusive'", "mem=5000MB"])
    assert "slurm_extra" in given._parsed_overwrite_resources["train"]
    extra = take_extra(given, gpus=True)
    assert "slurm_extra" not in given._parsed_overwrite_resources["train"], "it would replace what is joined, in jobs too"
    assert given._parsed_overwrite_resources["train"]["mem_mb"].value == 5000
    resources = training_resources(
        Layout(2, 4), Site(4, "--gpus-per-node={n}"), lambda n: "--exclude=n2" if n > 1 else "", extra
    )
    own = f"--gpus-per-node=4 --ntasks-per-node=1 {SIGNAL}"
    assert option(resources, "train") == f"{own} --exclusive"
    assert option(resources, "train", 2) == f"{own} --exclusive --exclude=n2"
    assert option(resources, "teacher") == f"{own} --hint=nomultithread"
    assert (
        option(gpu_resources(Site(4, "--gpus-per-node={n}"), 1, extra), "evaluate") == "--gpus-per-node=1 --hint=nomultithread"
    )
    assert option(gpu_resources(Site(), 1, extra), "evaluate") == "--hint=nomultithread"
    assert "slurm_extra" not in gpu_resources(Site(4, "gres=gpu:{n}"), 1, Extra())


def test_nothing_is_left_for_the_command_line_of_jobs() -> None:
    given = settings(train=["slurm_extra='--exclusive'"], data_build=["slurm_extra='--exclusive'"])
    take_extra(given, gpus=True)
    assert given.overwrite_resources.keys() == {"data_build"}, "a rule without options of its own keeps the user's"


def test_an_expression_of_the_user_is_evaluated_for_each_job() -> None:
    extra = take_extra(settings(train=["slurm_extra='--nice=' + str(attempt * 10)"]), gpus=True)
    resources = training_resources(Layout(1, 1), Site(), None, extra)
    assert [option(resources, "train", attempt) for attempt in (1, 2)] == [f"{SIGNAL} --nice=10", f"{SIGNAL} --nice=20"]


@pytest.mark.parametrize("mine", ["--exclude=n1,n[3-4]", "--exclude n1,n[3-4]", "-x n1,n[3-4]"])
def test_nodes_of_both_are_excluded(mine: str) -> None:
    assert join("--signal=USR1@120", f"--exclusive {mine}", "--exclude=n2") == (
        "--signal=USR1@120 --exclusive --exclude=n1,n[3-4],n2"
    )
    assert join(mine, "") == mine


@pytest.mark.parametrize(
    ("rule", "text", "words"),
    [
        ("train", "--signal=B:TERM@60", "leave --signal out"),
        ("teacher", "--ntasks-per-node=2", "leave --ntasks-per-node out"),
        ("evaluate", "--gpus-per-node=2", "change gpu_request instead"),
        ("train", "--exclusive -G 2", "change gpu_request instead"),
        ("train", "--gres=gpu:2", "by the key gpu_request"),
        ("data_build", "--qos=long", "use the key qos of set-resources"),
        ("train", "--constraint=a100", "use the key constraint of set-resources"),
        ("train", "--time=60", "use the key runtime"),
    ],
)
def test_options_that_are_not_the_users_are_refused_by_key(rule: str, text: str, words: str) -> None:
    with pytest.raises(UserError, match=f"set-resources: {rule}: slurm_extra") as refused:
        take_extra(settings(**{rule: [f"slurm_extra='{text}'"]}), gpus=True)
    assert words in str(refused.value)
    assert text in str(refused.value)


def test_other_rules_and_sites_may_use_them() -> None:
    take_extra(settings(data_build=["slurm_extra='--signal=TERM@60 --ntasks-per-node=1'"]), gpus=True)
    take_extra(settings(train=["slurm_extra='--gpus-per-node=2 --gpu-bind=none'"]), gpus=False)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("gres=gpu:{n}", "gres=gpu:{n}"),
        ("--gres=gpu:{n}", "gres=gpu:{n}"),
        ("--gres gpu:a100:{n}", "gres=gpu:a100:{n}"),
        ("--gpus-per-node={n}", "--gpus-per-node={n}"),
        ("--gpus-per-node=rtx-a6000:{n}", "--gpus-per-node=rtx-a6000:{n}"),
        ("--gpus-per-node={n} --gpu-bind=closest", "--gpus-per-node={n} --gpu-bind=closest"),
    ],
)
def test_forms_of_a_request_for_gpus(given: str, expected: str) -> None:
    assert Site.read({"gpu_request": f"'{given}'"}).gpu_request == expected


@pytest.mark.parametrize(
    ("given", "fix"),
    [
        ("--gpus={n}", "use '--gpus-per-node={n}'"),
        ("--gpus=a100:{n}", "use '--gpus-per-node=a100:{n}'"),
        ("-G {n}", "use '--gpus-per-node={n}'"),
        ("gres=gpu:4", "write 'gres=gpu:{n}'"),
        ("--gres=gpu:a100:4", "write 'gres=gpu:a100:{n}'"),
        ("--gpus-per-node=4", "write '--gpus-per-node={n}'"),
        ("gres=gpu:rtx-a6000:{n}", "use '--gpus-per-node=rtx-a6000:{n}'"),
        ("gres=gpu:{n},nvme:1", "use '--gpus-per-node={n}'"),
        ("gpu:{n}", "use 'gres=gpu:{n}'"),
        ("--gpus-per-node={n} --constraint=a100", "use the key constraint"),
        ("--gpus-per-node={n} --gres=nvme:1", "by the key gpu_request"),
    ],
)
def test_what_the_executor_would_refuse_is_refused_at_the_start(given: str, fix: str) -> None:
    with pytest.raises(UserError, match="default-resources: gpu_request") as refused:
        Site.read({"gpu_request": given})
    assert fix in str(refused.value)


ANSWERS = {"sinfo": "cpu*|1-00:00:00\ngpu|4:00:00\ngpu|4:00:00\nlong|infinite\n", "sacctmgr": "vision\nml-group\n"}


@pytest.mark.parametrize(
    ("default", "train", "words"),
    [
        ("slurm_partition=cpus", [], ["default-resources: slurm_partition = 'cpus'", "did you mean 'cpu'?", "`cmapkd site`"]),
        ("slurm_partition=cpu", ["slurm_partition=gpu,gpux"], ["set-resources: train: slurm_partition = 'gpux'"]),
        ("slurm_account=visoin", [], ["default-resources: slurm_account = 'visoin'", "did you mean 'vision'?"]),
    ],
)
def test_names_that_slurm_does_not_have_are_refused(tmp_path: Path, default: str, train: list[str], words: list[str]) -> None:
    given = settings(default, **({"train": train} if train else {}))
    with pytest.raises(UserError) as refused:
        check_site(given, tmp_path, True, lambda command: ANSWERS.get(command[0]))
    for word in words:
        assert word in str(refused.value)
    # In a job of another Snakemake, and where SLURM does not answer.
    check_site(given, tmp_path, False, lambda command: ANSWERS.get(command[0]))
    check_site(given, tmp_path, True, lambda command: None)


def test_names_that_slurm_has_and_times_beyond_a_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = settings(
        "slurm_partition=cpu",
        "slurm_account=Vision",
        "runtime=60*attempt",
        train=["slurm_partition=gpu", "runtime=300*attempt"],
    )
    check_site(given, tmp_path, True, lambda command: ANSWERS.get(command[0]))
    told = capsys.readouterr().err
    assert "set-resources: train: runtime is 300 minutes, and partition gpu ends jobs after 240" in told
    assert told.count("Note:") == 1
    fine = settings("slurm_partition=cpu", "runtime=60", train=["slurm_partition=gpu,long", "runtime='min(1440*attempt, 240)'"])
    check_site(fine, tmp_path, True, lambda command: ANSWERS.get(command[0]))
    assert capsys.readouterr().err == ""
    expression = settings("slurm_partition='gpu' if attempt > 1 else 'cpu'")
    check_site(expression, tmp_path, True, lambda command: ANSWERS.get(command[0]))


def test_nothing_is_asked_where_the_profile_names_nothing(tmp_path: Path) -> None:
    asked: list[object] = []
    check_site(settings("mem_mb=10"), tmp_path, True, lambda command: asked.append(command))
    assert asked == []
