"""A real SLURM on this one machine: munged, slurmctld and several slurmd on loopback, without systemd.

Everything that it writes (keys, sockets, state, logs, pid files) lies in one directory, and every daemon listens on a port
that was free, so it disturbs no other SLURM; clients find it by ``SLURM_CONF``. It needs Debian's packages (installed by
name where root may), root, and a second or two:

    python tests/cluster/slurm.py up build/lab     # prints the variables to export
    python tests/cluster/slurm.py down build/lab

Two partitions reach all nodes: jobs of ``main`` preempt those of ``low``, which are requeued. GPUs are copies of
``/dev/null``: SLURM counts, allots and names them in ``CUDA_VISIBLE_DEVICES`` like real ones.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
CLIENTS = ("sbatch", "srun", "scancel", "scontrol", "sinfo", "squeue")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "squeue", "munged")


class Unavailable(Exception):  # noqa: N818 - a reason to skip, not a failure
    """SLURM cannot be run here, for the reason given."""


def install() -> None:
    """Install what is missing by its package name.

    Raises:
        Unavailable: not root, no apt, or no network.
    """
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        raise Unavailable("a SLURM of our own needs root on Linux")
    if all(shutil.which(name) for name in PROGRAMS):
        return
    if shutil.which("apt-get") is None:
        raise Unavailable(f"SLURM is not installed, and there is no apt-get to install {', '.join(PACKAGES)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(["apt-get", *command], env=environment, capture_output=True, text=True, timeout=600)
        if done.returncode:
            raise Unavailable(f"apt-get {command[0]} failed (no network?): {done.stderr.strip()[-300:]}")


@dataclass
class Cluster:
    """The cluster whose files lie in ``root``; what a node claims need not be there."""

    root: Path
    nodes: int = 2
    cpus: int = 2
    memory_mb: int = 8000
    gpus: int = 2

    @property
    def conf(self) -> Path:
        return self.root / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to find this cluster, and jobs that lose ``SLURM_CONF``: Snakemake's executor removes all of
        SLURM's variables from the environment in which it calls `srun`, so on the path is one that knows."""
        return {"SLURM_CONF": str(self.conf), "PATH": f"{self.root / 'bin'}:{os.environ['PATH']}"}

    def run(self, *command: str, check: bool = True, timeout: float = 60) -> str:
        """Standard output of a client program on this cluster."""
        done = subprocess.run(
            command, env={**os.environ, **self.environment}, capture_output=True, text=True, timeout=timeout, cwd=self.root
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def start(self, timeout: float = 30) -> None:
        """Start all daemons and return when every node is idle.

        Raises:
            Unavailable: a daemon does not come up; its log's last lines are the reason.
        """
        install()
        for name in ("run", "log", "state", "spool", "gpu", "bin"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        self._configure()
        for name in CLIENTS:
            program = self.root / "bin" / name
            program.write_text(f'#!/bin/sh\nSLURM_CONF="{self.conf}" exec "{_real(name)}" "$@"\n')
            program.chmod(0o755)
        self._munge()
        self._daemon("slurmctld")
        for node in self.names:
            (self.root / "spool" / node).mkdir(exist_ok=True)
            self._daemon("slurmd", "-N", node)
        end = time.monotonic() + timeout
        while (
            ready := self.run("sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N", check=False).split()
        ) != self.names:
            if time.monotonic() > end:
                raise Unavailable(f"only {ready} of {self.names} came up:\n{self.logs()}")
            time.sleep(0.1)

    @property
    def names(self) -> list[str]:
        return [f"n{number}" for number in range(1, self.nodes + 1)]

    def logs(self, lines: int = 5) -> str:
        """The last lines of each daemon's log."""
        return "\n".join(
            f"{path.name}: {line}"
            for path in sorted((self.root / "log").glob("*.log"))
            for line in path.read_text(errors="replace").splitlines()[-lines:]
        )

    def stop(self) -> None:
        """Cancel all jobs, then stop the daemons by their pid files, the controller last but for munge."""
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            self.run("scancel", "--state=RUNNING", "--state=PENDING", f"--user={_user()}", check=False)
            end = time.monotonic() + 10
            while self.run("squeue", "-h", check=False).strip() and time.monotonic() < end:
                time.sleep(0.2)
        runs = self.root / "run"
        for path in [*sorted(runs.glob("slurmd.*.pid")), runs / "slurmctld.pid", runs / "munged.pid"]:
            with contextlib.suppress(OSError, ValueError):
                _end(int(path.read_text()))
            path.unlink(missing_ok=True)

    def _daemon(self, *command: str) -> None:
        done = subprocess.run(command, env={**os.environ, **self.environment}, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise Unavailable(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}\n{self.logs()}")

    def _munge(self) -> None:
        """A munged of our own: another key, another socket."""
        key = self.root / "munge.key"
        if not key.is_file():
            key.write_bytes(secrets.token_bytes(128))
            key.chmod(0o400)
        runs, logs = self.root / "run", self.root / "log"
        files = {
            "--key-file": key,
            "--socket": self._socket,
            "--pid-file": runs / "munged.pid",
            "--log-file": logs / "munged.log",
            "--seed-file": runs / "munged.seed",
        }
        # Forced: it would refuse a socket below a directory of one user alone, as temporary directories are.
        self._daemon("munged", "--force", *(f"{option}={path}" for option, path in files.items()))

    @property
    def _socket(self) -> Path:
        path = self.root / "run" / "munge.socket"
        if len(str(path)) > 100:  # sockets have paths of 107 bytes at most
            raise Unavailable(f"{self.root} is too long a path for a socket: use a shorter --basetemp")
        return path

    def _configure(self) -> None:
        host = socket.gethostname().partition(".")[0]
        ports = _free_ports(self.nodes + 1)
        lines = [
            "ClusterName=lab",
            f"SlurmctldHost={host}(127.0.0.1)",
            "SlurmUser=root",
            "SlurmdUser=root",
            "AuthType=auth/munge",
            "CredType=cred/munge",
            # A requeued job may start again when its credential has expired: after 5 s instead of 120.
            f"AuthInfo=socket={self._socket},cred_expire=5",
            f"SlurmctldPort={ports[0]}",
            f"SlurmctldPidFile={self.root}/run/slurmctld.pid",
            f"SlurmctldLogFile={self.root}/log/slurmctld.log",
            f"StateSaveLocation={self.root}/state",
            f"SlurmdPidFile={self.root}/run/slurmd.%n.pid",
            f"SlurmdLogFile={self.root}/log/slurmd.%n.log",
            f"SlurmdSpoolDir={self.root}/spool/%n",
            "SlurmdParameters=config_overrides",  # a node may claim more than the machine has
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            "JobAcctGatherType=jobacct_gather/none",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_Core_Memory",
            "SchedulerType=sched/backfill",
            "SchedulerParameters=bf_interval=2,sched_min_interval=200000",
            "PreemptType=preempt/partition_prio",
            "PreemptMode=REQUEUE",
            "JobRequeue=1",
            "MinJobAge=3600",  # seconds that squeue still shows a finished job: there is no slurmdbd to ask
            "KillWait=5",
            "SlurmctldTimeout=30",
            "SlurmdTimeout=30",
            "MessageTimeout=20",
            "ReturnToService=2",
            "MpiDefault=none",
            "SwitchType=switch/none",
            "DefMemPerCPU=500",
            "AccountingStorageType=accounting_storage/none",
            *(["GresTypes=gpu"] if self.gpus else []),
            *(
                f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={self.cpus} "
                f"RealMemory={self.memory_mb}{f' Gres=gpu:{self.gpus}' if self.gpus else ''} State=UNKNOWN"
                for node, port in zip(self.names, ports[1:], strict=True)
            ),
            "PartitionName=main Nodes=ALL Default=YES MaxTime=7-0 DefaultTime=10 State=UP PriorityTier=10",
            "PartitionName=low Nodes=ALL MaxTime=14-0 DefaultTime=10 State=UP PriorityTier=1 PreemptMode=REQUEUE",
        ]
        self.conf.write_text("\n".join(lines) + "\n")
        gres = []
        for node in self.names if self.gpus else []:
            for index in range(self.gpus):
                device = self.root / "gpu" / f"{node}-gpu{index}"
                if not device.exists():
                    os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
            gres.append(f"NodeName={node} Name=gpu File={self.root}/gpu/{node}-gpu[0-{self.gpus - 1}]")
        (self.root / "gres.conf").write_text("".join(f"{line}\n" for line in gres))


def _free_ports(count: int) -> list[int]:
    """Ports that nothing listens on now, all different."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _end(pid: int, seconds: float = 10) -> None:
    """End a daemon: asked first, killed if it does not listen."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            os.kill(pid, 0)
            time.sleep(0.05)
        os.kill(pid, signal.SIGKILL)


def _real(name: str) -> str:
    """Path of a client, not of one that a running cluster has put before it."""
    return next(path for folder in ("/usr/bin", "/usr/local/bin", "/bin") if os.access(path := f"{folder}/{name}", os.X_OK))


def _user() -> str:
    import getpass

    return getpass.getuser()


if __name__ == "__main__":
    cluster = Cluster(Path(sys.argv[2]).resolve())
    if sys.argv[1] == "up":
        cluster.start()
        sys.stdout.writelines(f"export {name}={value}\n" for name, value in cluster.environment.items())
    else:
        cluster.stop()
