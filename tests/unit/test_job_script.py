"""Batch scripts without a Slurm: programs stand in for Slurm's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

TEMPLATES = Path(__file__).parents[2] / "slurm"

SRUN = """
import os, signal, sys
if "--mpi=list" in sys.argv:
    print("pmi2 pmix")
    sys.exit()
heard = []
def hear(number, frame):
    heard.append(number)
    if len(heard) == 2:
        os._exit(75)
signal.signal(signal.SIGUSR1, hear)
print("launched", flush=True)
while True:
    signal.pause()
"""
"""Drops the first signal, as srun does while it has not heard that its tasks have started; then the ranks save."""
SCONTROL = """
import sys
print(*sys.argv[1:], file=open("told-slurm", "a"))
if sys.argv[1] == "show":
    print("JobId=17 JobState=RUNNING Requeue=1 StartTime=2026-01-01T00:00:00 EndTime=2026-01-01T01:00:00")
"""


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_that_the_launcher_drops_comes_again(tmp_path, number):
    """A job is told to stop while its ranks are being started: it is requeued, not run to its end."""
    programs = tmp_path / "programs"
    programs.mkdir()
    stand_ins = {"srun": SRUN, "scontrol": SCONTROL, "dml-hpc": "", "mpirun": "print('HYDRA build details:')"}
    for name, body in stand_ins.items():
        (programs / name).write_text(f"#!{sys.executable} -S\n{body}")
        (programs / name).chmod(0o755)
    env = {"PATH": f"{programs}:{os.defpath}", "DML_HPC_SLURM": str(TEMPLATES), "DML_HPC_VENV": "/nowhere",
           "SLURM_JOB_ID": "17", "SLURM_JOB_NAME": "train", "SLURM_JOB_NODELIST": "n1", "SLURM_JOB_NUM_NODES": "1"}

    with subprocess.Popen(["bash", TEMPLATES / "train_cpu.sbatch", "data", "-o", "model.h5"], cwd=tmp_path, env=env,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as job:
        log = iter(job.stdout.readline, "")
        assert any(line == "launched\n" for line in log)
        os.kill(job.pid, number)
        said = "".join(log)

    assert job.returncode == 75, said
    assert "requeued" in said
    assert "requeue 17" in (tmp_path / "told-slurm").read_text()
