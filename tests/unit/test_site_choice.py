"""Which partitions and accounts `cmapkd site` takes, and what it prints about the choice, on answers of many kinds of sites."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import yaml

from cmapkd.site import choose, find, tell
from cmapkd.site_text import Choice, site_part

CONFIG = """AccountingStorageEnforce = associations,limits,qos,safe
AccountingStorageType    = accounting_storage/slurmdbd
MinJobAge                = 300 sec
"""
CPU = "cpu*|up|2-00:00:00|100|48|192000|(null)\n"


def found(
    sinfo: str, *, states: str = "", partitions: str = "", assoc: str = "", qos: str = "", **given: str
) -> tuple[Choice, str]:
    """The choice, and what is printed of it."""

    def asking(command: Sequence[str]) -> str | None:
        words = " ".join(command)
        answers = {
            "%T": states,
            "sinfo": sinfo,
            "show partition": partitions,
            "show config": CONFIG,
            "assoc": assoc,
            "qos": qos,
        }
        return next((answer for word, answer in answers.items() if word in words), None)

    findings = find(asking)
    choice = choose(findings, **given)
    return choice, tell(findings, choice)


# sinfo's answer; partition of other jobs, of trainings, ranks on a node, request; and words that are printed.
CASES = {
    "slices of GPUs": (
        "gpu*|up|2-00:00:00|4|64|512000|gpu:a100:4(S:0-1)\n"
        "gpu-mig|up|12:00:00|6|64|512000|gpu:a100_1g.5gb:28(S:0-1)\n" + CPU.replace("*", ""),
        ("cpu", "gpu", 4, "gres=gpu:a100:{n}"),
        ["left out: gpu-mig, with slices of GPUs (MIG)"],
    ),
    "slices beside GPUs in one partition": (
        "gpu|up|2-00:00:00|9|64|512000|gpu:a100_3g.20gb:8\ngpu|up|2-00:00:00|2|64|512000|gpu:a100:4\n" + CPU,
        ("cpu", "gpu", 4, "gres=gpu:a100:{n}"),
        [],
    ),
    "slices alone": (
        "gpu|up|2-00:00:00|9|64|512000|gpu:1g.10gb:7\n" + CPU,
        ("cpu", "cpu", 0, ""),
        ["gpu has slices of GPUs (MIG) alone", "--gpu-partition gpu gives each training one slice"],
    ),
    "owners": (
        "normal*|up|7-00:00:00|200|20+|128000+|(null)\ngpu|up|2-00:00:00|11|20+|191000+|gpu:4(S:0-1)\n"
        "owners|up|2-00:00:00|1400|20+|128000+|gpu:4(S:0-1)\n",
        ("normal", "gpu", 4, "gres=gpu:{n}"),
        ["trainings: partition gpu, the only one that is neither for tests nor preempted", "owners (by its name"],
    ),
    "preempted alone": (
        "gpu-preempt|up|2-00:00:00|9|20|128000|gpu:v100:4\n" + CPU,
        ("cpu", "gpu-preempt", 4, "gres=gpu:v100:{n}"),
        ["no better one is there, though by its name, its jobs may be preempted"],
    ),
    "four hours": (
        "gpu*|up|4:00:00|8|64|512000|gpu:a100:4\ninteractive|up|30:00|1|64|512000|gpu:a100:4\n",
        ("gpu", "gpu", 4, "gres=gpu:a100:{n}"),
        ["interactive (jobs end after 30 min)", "trainings end after 240 min with a checkpoint and continue in a new job"],
    ),
    "a large queue for tests": (
        "gpu|up|1-00:00:00|2|64|512000|gpu:a100:4\ngpu-debug|up|4:00:00|90|64|512000|gpu:a100:4\n" + CPU,
        ("cpu", "gpu", 4, "gres=gpu:a100:{n}"),
        ["gpu-debug (by its name a queue for tests)"],
    ),
    "the default is for tests": (
        "debug*|up|30:00|4|48|190000|(null)\nbatch|up|1-00:00:00|300|48|190000|(null)\ngpu|up|1-00:00:00|8|48|190000|gpu:4\n",
        ("batch", "gpu", 4, "gres=gpu:{n}"),
        ["jobs without GPU: partition batch", "debug (jobs end after 30 min)"],
    ),
    "all in one that is called debug": (
        "debug*|up|infinite|3|48|190000|gpu:2\n",
        ("debug", "debug", 2, "gres=gpu:{n}"),
        ["no better one is there, though by its name a queue for tests"],
    ),
    "GPUs that sinfo does not list": (
        "rtx*|up|2-00:00:00|22|16|128000|(null)\nv100|up|2-00:00:00|4|160|256000|(null)\n",
        ("rtx", "rtx", 0, ""),
        ["GPUs: no partition has any (sinfo, column GRES)", "others: v100 (--partition names one)"],
    ),
    "one GPU a node": ("gh*|up|2-00:00:00|552|72|116000|gpu:1\n", ("gh", "gh", 1, "gres=gpu:{n}"), []),
    "two types": (
        "gpu|up|1-00:00:00|3|32|180000|gpu:rtx_2080:8\ngpu|up|1-00:00:00|2|48|380000|gpu:a30:2\n" + CPU,
        ("cpu", "gpu", 8, "gres=gpu:rtx_2080:{n}"),
        [],
    ),
    # The executor takes no dash in the type of a `gres`.
    "a type with a dash": (
        "gpu|up|1-00:00:00|3|32|180000|gpu:rtx-a6000:8\n" + CPU,
        ("cpu", "gpu", 8, "--gpus-per-node=rtx-a6000:{n}"),
        [],
    ),
    "a drained partition": (
        "gpu|drain|1-00:00:00|3|32|180000|gpu:4\n" + CPU,
        ("cpu", "cpu", 0, ""),
        ["GPUs: gpu is not up: drain"],
    ),
    "an inactive partition beside one that is up": (
        "big|inact|1-00:00:00|90|32|180000|gpu:4\ngpu|up|1-00:00:00|3|32|180000|gpu:2\n" + CPU,
        ("cpu", "gpu", 2, "gres=gpu:{n}"),
        ["left out: big (not up: inact)"],
    ),
    "two that would do": (
        "a100|up|1-00:00:00|4|32|180000|gpu:a100:4\nh100|up|1-00:00:00|2|32|180000|gpu:h100:4\n" + CPU,
        ("cpu", "a100", 4, "gres=gpu:a100:{n}"),
        ["trainings: partition a100, most GPUs; others: h100 (--gpu-partition names one)"],
    ),
    "shares of GPUs": (
        "gpu|up|1-00:00:00|3|32|180000|gpu:a100:4,shard:a100:32\n",
        ("gpu", "gpu", 4, "gres=gpu:a100:{n}"),
        [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_choice_and_its_reason(case: str) -> None:
    sinfo, expected, words = CASES[case]
    choice, told = found(sinfo)
    assert (choice.partition, choice.gpu_partition, choice.ranks_per_node, choice.gpu_request) == expected
    for word in words:
        assert word in told
    assert yaml.safe_load(site_part(choice))["set-resources"]["train"]["slurm_partition"] == expected[1]


def test_a_named_partition_is_taken_whatever_it_is() -> None:
    sinfo = CASES["slices of GPUs"][0]
    choice, _ = found(sinfo, gpu_partition="gpu-mig")
    assert (choice.gpu_partition, choice.ranks_per_node, choice.gpu_request) == ("gpu-mig", 1, "gres=gpu:a100_1g.5gb:{n}")
    choice, told = found(CASES["a drained partition"][0], gpu_partition="gpu", partition="cpu")
    assert (choice.gpu_partition, choice.gpu_request) == ("gpu", "gres=gpu:{n}")
    assert "gpu is not up now: drain" in told
    choice, told = found(CASES["GPUs that sinfo does not list"][0], gpu_partition="v100")
    assert (choice.partition, choice.gpu_partition, choice.gpu_request) == ("rtx", "v100", "")
    assert "lists none in v100" in told
    choice, _ = found(CASES["the default is for tests"][0], partition="debug")
    assert choice.partition == "debug"


def test_nodes_that_are_all_away_make_a_partition_that_is_not_up() -> None:
    sinfo = "gpu|up|1-00:00:00|3|32|180000|gpu:4\nold|up|1-00:00:00|9|32|180000|gpu:4\n" + CPU
    states = "gpu|idle|1\ngpu|drained|2\nold|drained|4\nold|down*|1\nold|idle*|4\ncpu*|allocated|100\n"
    choice, told = found(sinfo, states=states)
    assert choice.gpu_partition == "gpu"
    assert "old (not up: all nodes are drained, no_respond)" in told


@pytest.mark.parametrize(
    ("modes", "expected"),
    [
        (("OFF", "REQUEUE", 1, 1), "small"),
        (("REQUEUE", "REQUEUE", 10, 1), "small"),  # only the lower tier is preempted
        (("OFF", "OFF", 1, 1), "large"),
    ],
)
def test_partitions_whose_jobs_are_preempted_come_last(modes: tuple[str, str, int, int], expected: str) -> None:
    sinfo = "small|up|1-00:00:00|2|32|180000|gpu:4\nlarge|up|1-00:00:00|90|32|180000|gpu:4\n" + CPU
    partitions = "".join(
        f"PartitionName={name} AllowAccounts=ALL PriorityTier={tier} PreemptMode={mode} QoS=N/A\n"
        for name, mode, tier in (("small", modes[0], modes[2]), ("large", modes[1], modes[3]), ("cpu", "OFF", 1))
    )
    choice, told = found(sinfo, partitions=partitions)
    assert choice.gpu_partition == expected
    assert ("large (its jobs may be preempted (PreemptMode))" in told) == (expected == "small")


def test_accounts_of_cpus_and_gpus_by_their_names() -> None:
    sinfo = "gpu|up|1-00:00:00|2|32|180000|gpu:4\n" + CPU
    for assoc, given, expected in (
        ("proj_cpu\nproj_gpu\n", "", ("proj_cpu", "proj_gpu")),
        ("proj_gpu\nproj_cpu\n", "", ("proj_cpu", "proj_gpu")),
        ("a_cpu\na_gpu\nb_cpu\nb_gpu\n", "b_gpu", ("b_cpu", "b_gpu")),
        ("a_cpu\na_gpu\nb_cpu\nb_gpu\n", "b", ("b_cpu", "b_gpu")),
        ("vision\nlab\n", "", ("vision", "vision")),
        ("vision\nlab\n", "lab", ("lab", "lab")),
        ("only-gpu\n", "", ("only-gpu", "only-gpu")),
    ):
        choice, told = found(sinfo, assoc=assoc, account=given)
        written = yaml.safe_load(site_part(choice))
        default = written["default-resources"]["slurm_account"]
        assert (default, written["set-resources"]["train"].get("slurm_account", default)) == expected
        assert ("which account" in told) == (not given and assoc.startswith("vision"))


def test_partitions_that_no_account_of_the_user_may_use_are_left_out() -> None:
    sinfo = "theirs|up|1-00:00:00|90|32|180000|gpu:4\ngpu|up|1-00:00:00|2|32|180000|gpu:4\n" + CPU
    partitions = (
        "PartitionName=theirs AllowAccounts=physics PreemptMode=OFF\nPartitionName=gpu AllowAccounts=ALL PreemptMode=OFF\n"
    )
    assert found(sinfo, partitions=partitions, assoc="vision\n")[0].gpu_partition == "gpu"
    assert found(sinfo, partitions=partitions, assoc="physics\n")[0].gpu_partition == "theirs"


@pytest.mark.parametrize(
    ("assoc", "qos", "jobs"),
    [
        ("vision||20|||normal\n", "", 20),
        ("vision|5||||normal\n", "", 100),  # running at a time: the others wait in the queue
        ("vision|||||normal,long\n", "normal|30||\nlong|2||\n", 30),
        ("vision||40||long|normal,long\n", "normal|30||\nlong||12|\n", 12),
        ("vision||1000|60||normal\n", "normal|||\n", 60),
        ("vision\n", "vision\n", 100),
    ],
)
def test_no_more_jobs_than_may_be_submitted(assoc: str, qos: str, jobs: int) -> None:
    choice, told = found(CPU, assoc=assoc, qos=qos)
    assert yaml.safe_load(site_part(choice))["jobs"] == jobs
    assert (f"jobs: {jobs} at a time" in told) == (jobs != 100)
