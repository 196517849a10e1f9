"""The workflow's dry run, printing what the SLURM executor would call for each job: python tests/cluster/sbatch_lines.py ARGS.

ARGS are those of snakemake. Standard output has one JSON object for each job: rule, wildcards, whether it is a local rule,
attempt, and the sbatch options of the executor's own builder. Nothing is submitted, and no SLURM need be there.
"""

from __future__ import annotations

import json
import sys

from snakemake import cli
from snakemake.executors import dryrun
from snakemake_executor_plugin_slurm.submit_string import get_submit_command
from snakemake_executor_plugin_slurm.utils import set_gres_string
from snakemake_executor_plugin_slurm.validation import validate_slurm_extra

ATTEMPTS = (1, 2)


def _tell(job: object) -> None:
    for attempt in ATTEMPTS:
        job.attempt = attempt
        validate_slurm_extra(job)
        partition = job.resources.get("slurm_partition")
        parameters = {
            "run_uuid": "run",
            "slurm_logfile": "log",
            "comment_str": "comment",
            "account": "",
            "partition": f"-p {partition}" if partition else "",
            "workdir": "",
        }
        line = {
            "rule": job.rule.name,
            "wildcards": dict(job.wildcards_dict),
            "local": job.rule.name in job.rule.workflow._localrules,
            "attempt": attempt,
            "container": job.container_img_url or None,
            "sbatch": get_submit_command(job, parameters) + set_gres_string(job),
            "mpi": job.resources.get("mpi"),
        }
        sys.stdout.write(json.dumps(line) + "\n")


def main(arguments: list[str]) -> None:
    """The dry run; it ends the process."""
    original = dryrun.Executor.run_job

    def run_job(self: dryrun.Executor, job: object) -> None:
        _tell(job)
        original(self, job)

    dryrun.Executor.run_job = run_job
    cli.main(["--dry-run", *arguments])


if __name__ == "__main__":
    main(sys.argv[1:])
