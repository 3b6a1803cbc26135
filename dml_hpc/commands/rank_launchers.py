"""What starts ranks from one process: mpirun, a Slurm job's launcher, a line of the user's, emulated hosts."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dml_hpc
from dml_hpc.batch.script import FOLDER, templates
from dml_hpc.checks.mpi import INSTALL, find_launcher
from dml_hpc.errors import UserError
from dml_hpc.launch import environment_of_no_rank

TRY_S = 60.0
"""How long emulated hosts may take to be tried out."""


@dataclass(frozen=True)
class Launcher:
    """``line(ranks)`` is what stands before the command that so many ranks run, in an ``environment``.

    ``keys`` is what the records of such runs are to tell, ``warning`` what a person is to know of their times.
    """

    line: Callable[[int], list[str]]
    environment: Mapping[str, str]
    keys: Mapping[str, Any] = field(default_factory=dict)
    warning: str | None = None

    def told(self, ranks: int) -> str:
        """Return the line as a person would type it."""
        words = self.line(ranks)
        return shlex.join([Path(word).name if word.startswith("/") else word for word in words])


def in_slurm_job() -> bool:
    """Say whether this process is inside a Slurm job, whose nodes srun gives to ranks."""
    return "SLURM_JOB_ID" in os.environ and shutil.which("srun") is not None


def nodes_of_job() -> int:
    """Return how many nodes the Slurm job has."""
    return int(os.environ.get("SLURM_JOB_NUM_NODES") or os.environ.get("SLURM_NNODES") or 1)


def ranks_per_node(asked: int | None) -> int:
    """Return how many ranks a node of the Slurm job gets: as asked, else as the job was. Raises `UserError`."""
    told = os.environ.get("SLURM_NTASKS_PER_NODE", "")
    if asked is not None or told.isdigit():
        return asked or int(told)
    tasks = os.environ.get("SLURM_NTASKS", "")
    if not tasks.isdigit() or int(tasks) % nodes_of_job():
        raise UserError("how many ranks has a node of this Slurm job? give --ranks-per-node R")
    return int(tasks) // nodes_of_job()


def open_launcher(name: str, ranks: Sequence[int], per_node: int | None = None) -> Launcher:
    """Return what starts so many ``ranks``: "auto", "mpirun", "srun", or a line that holds ``{ranks}``.

    Inside a Slurm job ranks are started as the batch scripts do (``slurm/job.sh``), on whole nodes with ``per_node``
    ranks each; else by the mpirun beside this Python. Raises `UserError` for what cannot be.
    """
    if name not in ("auto", "mpirun", "srun"):
        return _of_template(name, per_node)
    if in_slurm_job():
        return _of_slurm_job(name, ranks, ranks_per_node(per_node))
    if name == "srun":
        raise UserError("--launcher srun is for a Slurm job: begin one with salloc, or write a batch script with "
                        "`dml-hpc slurm scaling`")
    if per_node is not None:
        raise UserError("--ranks-per-node is for a Slurm job; elsewhere say it to the launcher: --launcher 'mpiexec -n "
                        f"{{ranks}} -ppn {per_node}'")
    mpirun = find_launcher()
    if mpirun is None:
        raise UserError(f"there is no mpirun beside {sys.executable}, none on PATH: {INSTALL}")
    cores = len(os.sched_getaffinity(0))
    crowded = max(ranks) > cores
    binding = ["--bind-to", "none"] if crowded else []
    warning = (f"up to {max(ranks)} ranks share {cores} core{'s' * (cores > 1)}: their times say little about as many "
               "cores") if crowded else None
    return Launcher(lambda n: [mpirun, *binding, "-n", str(n)], _environment(mpirun), {}, warning)


def emulated_hosts(ranks: Sequence[int], rate: str = "1gbit", delay: str | None = None,
                   per_host: int = 1) -> Launcher:
    """Return what starts ranks on emulated hosts of this machine, ``per_host`` on each.

    Tries it. Raises `UserError` where hosts cannot be emulated, and for numbers of ranks that fill no whole hosts.
    """
    script = Path(dml_hpc.__file__).parent / "batch" / "emulated_cluster.sh"
    if any(number % per_host for number in ranks):
        raise UserError(f"--ranks-per-host {per_host}: each number of ranks is to be a multiple of it")
    mpirun = find_launcher()
    if mpirun is None:
        raise UserError(f"there is no mpirun beside {sys.executable}, none on PATH: {INSTALL}")
    options = ["--rate", rate, *(["--delay", delay] if delay else []),
               *(["--ranks-per-host", str(per_host)] if per_host > 1 else [])]
    environment = _environment(mpirun)
    try:
        tried = subprocess.run(["bash", str(script), "1", *options, "--", "true"], env=environment, text=True,
                               stdin=subprocess.DEVNULL, capture_output=True, timeout=TRY_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"--emulate-hosts: {error}") from None
    if tried.returncode:
        why = (tried.stderr.strip().splitlines() or ["it failed without a word"])[-1]
        raise UserError(f"--emulate-hosts: {why.removeprefix('emulated_cluster.sh: ')}")
    cores = len(os.sched_getaffinity(0))
    return Launcher(
        lambda n: ["bash", str(script), str(n // per_host), *options, "--"], environment,
        {"emulated": True, "rate": rate, "delay": delay, "ranks_per_host": per_host},
        f"the emulated hosts share {cores} core{'s' * (cores > 1)}: what they compute says little about as many hosts")


def _of_template(template: str, per_node: int | None) -> Launcher:
    try:
        words = shlex.split(template)
    except ValueError as error:
        raise UserError(f"--launcher {template!r} cannot be read: {error}") from None
    if "{ranks}" not in template:
        raise UserError(f"--launcher {template!r}: it is auto, mpirun, srun or a line that holds {{ranks}}, such as "
                        "'mpiexec -n {ranks}'")
    if per_node is not None:
        raise UserError("--ranks-per-node is for a Slurm job; write it into the line of --launcher")
    if shutil.which(words[0]) is None:
        raise UserError(f"--launcher: there is no {words[0]}")
    return Launcher(lambda n: [word.replace("{ranks}", str(n)) for word in words], _environment(None))


def _of_slurm_job(name: str, ranks: Sequence[int], per_node: int) -> Launcher:
    script = templates() / "job.sh"
    most = nodes_of_job() * per_node
    if max(ranks) > most:
        raise UserError(f"--ranks {max(ranks)}: this Slurm job has {nodes_of_job()} nodes for {per_node} ranks each, "
                        f"{most} in all")
    chosen = {} if name == "auto" else {"DML_HPC_SLURM_MPI": name}
    venv = {} if sys.prefix == sys.base_prefix else {"DML_HPC_VENV": sys.prefix}
    mpirun = find_launcher()
    environment = {**venv, **_environment(mpirun, threads=False), FOLDER: str(script.parent), **chosen,
                   "SLURM_NTASKS_PER_NODE": str(per_node)}
    return Launcher(lambda n: ["bash", str(script), "-n", str(n)], environment)


def _environment(mpirun: str | None, threads: bool = True) -> dict[str, str]:
    """Return the environment of a launcher; what the user has set himself stays."""
    found = environment_of_no_rank()
    if mpirun is not None:  # so that it finds its own parts, and scripts find it
        found["PATH"] = f"{Path(mpirun).absolute().parent}{os.pathsep}{found.get('PATH', os.defpath)}"
    ours: dict[str, str] = {
        # Open MPI: allow more ranks than cores, and let a waiting rank give its core away.
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe", "OMPI_MCA_mpi_yield_when_idle": "1"}
    if threads:  # ranks times threads on few cores crawl, and a rank is to be a core on any number of ranks
        number = found.get("OMP_NUM_THREADS", "1")
        ours |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), number)
    if os.getuid() == 0:  # as everyone is in a container; Open MPI wants that said twice
        ours |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return {**ours, **found}
