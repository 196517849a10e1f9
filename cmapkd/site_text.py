"""The site's part of the SLURM profile as text: one source for the profile as shipped and for what `cmapkd site` writes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """Facts of a site in the profile. The defaults are those of the profile as shipped."""

    status: str = "squeue"
    seconds: int = 30
    jobs: int = 100  # submitted at a time
    account: str = ""
    gpu_account: str = ""  # of jobs with GPUs, where it is another
    partition: str = ""
    gpu_partition: str = ""
    ranks_per_node: int = 4
    gpu_request: str = "gres=gpu:{n}"
    # Limits of the nodes that jobs without GPU, and trainings, run on; None: not known or none.
    minutes: int | None = None
    memory_mb: int | None = None
    cpus: int | None = None
    training_minutes: int | None = None
    training_memory_mb: int | None = None
    training_cpus: int | None = None
    reasons: tuple[str, ...] = ()  # of the choice, for people


def site_part(choice: Choice) -> str:
    """Lines of YAML between the profile's marks."""

    def scaled(value: int, limit: int | None) -> str:
        return f"{value} * attempt" if limit is None else f"min({value} * attempt, {limit})"

    def threads(value: int, limit: int | None) -> int:
        return value if limit is None else max(1, min(value, limit))

    def fact(indent: str, key: str, value: str, example: str) -> str:
        return f"{indent}{key}: {value}" if value else f"{indent}# {key}: {example}"

    gpus = [
        "  # Ranks of one training on one node: its GPUs. A training with more (`training.ranks`) gets several nodes.",
        f"  ranks_per_node: {choice.ranks_per_node}",
        "  # How a job asks for {n} GPUs of a node: `gres=gpu:{n}`, with a type `gres=gpu:a100:{n}`, or `--gpus-per-node={n}`.",
        f"  gpu_request: {choice.gpu_request}",
    ]
    if not choice.gpu_request:
        gpus = ["  # No GPUs here. With some: `ranks_per_node: 4` (those of a node), and `gpu_request: gres=gpu:{n}`."]
    gpu_partition = [fact("    ", "slurm_partition", choice.gpu_partition, "gpu")]
    gpu_partition += [f"    slurm_account: {choice.gpu_account}"] if choice.gpu_account else []
    limit = choice.training_minutes
    time = '    # 24 hours, then 48, ... The queue takes no job that is longer than its limit (`sinfo -o "%P %l"`).'
    if limit is not None:
        time = f"    # At most {limit} minutes, the limit of {choice.gpu_partition}. A training that needs more"
        time += " stops with a checkpoint and continues in a new job."
    lines = [
        "# Jobs in the queue or running at any time. SLURM refuses those above its limit (`sacctmgr show assoc`, MaxSubmit).",
        f"jobs: {choice.jobs}",
        "# How to ask for a job's state: `sacct` where SLURM has an accounting database (slurmdbd), otherwise `squeue`.",
        f"slurm-status-command: {choice.status}",
        "# Seconds between two such questions, more while nothing ends: at most a third of SLURM's MinJobAge with `squeue`.",
        f"slurm-init-seconds-before-status-checks: {choice.seconds}",
        f"seconds-between-status-checks: {choice.seconds}",
        "# What each job asks for where its rule says nothing.",
        "default-resources:",
        "  # Whom jobs are charged to, where the site asks for it (`sacctmgr show assoc user=$USER`).",
        fact("  ", "slurm_account", choice.account, "my_project"),
        "  # Where jobs without GPU run; without it, in the site's default partition (`sinfo`).",
        fact("  ", "slurm_partition", choice.partition, "cpu"),
        "  # Memory in MB and time in minutes. A job that was killed asks for more at its next attempt.",
        f"  mem_mb: {scaled(8000, choice.memory_mb)}",
        f"  runtime: {scaled(60, choice.minutes)}",
        *gpus,
        "set-resources:",
        "  teacher: &training",
        *gpu_partition,
        "    # All of a training's ranks on one node share it.",
        f"    mem_mb: {scaled(64000, choice.training_memory_mb)}",
        time,
        f"    runtime: {scaled(1440, choice.training_minutes)}",
        "  train: *training",
        "  evaluate:",
        *gpu_partition,
        f"    mem_mb: {scaled(32000, choice.training_memory_mb)}",
        f"    runtime: {scaled(240, choice.training_minutes)}",
        "  data_build:",
        f"    runtime: {scaled(720, choice.minutes)}",
        "  # It reads every image once, on one core.",
        "  data_overlap:",
        f"    runtime: {scaled(720, choice.minutes)}",
        "# Cores on each node. A training's ranks share them, the processes that load its data among them.",
        "set-threads:",
        f"  teacher: {threads(32, choice.training_cpus)}",
        f"  train: {threads(32, choice.training_cpus)}",
        "  # Latency is measured with as many threads.",
        f"  evaluate: {threads(8, choice.training_cpus)}",
        "  # One process writes the shards.",
        "  data_build: 1",
    ]
    return "".join(f"{line}\n" for line in lines)
