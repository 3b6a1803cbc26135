"""``dml-hpc slurm`` on a real Slurm: scripts it writes run there, and jobs are followed to their end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from slurm_support import BESIDE, LONG, Job, wait_until

ENVIRONMENT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMP_NUM_THREADS": "1",
               "OMPI_MCA_mpi_yield_when_idle": "1", "MPIR_CVAR_ENABLE_HEAVY_YIELD": "1"}

TWO_RANKS = ("--nodes", 2, "--ranks-per-node", 1)


class Followed:
    """``dml-hpc slurm … --submit --watch``, or ``watch``, at work in ``folder``."""

    def __init__(self, folder: Path, *words: object):
        self.folder = folder
        self._said = folder / f"said-{len(list(folder.glob('said-*')))}"
        with self._said.open("wb") as out:
            self.process = subprocess.Popen([BESIDE / "dml-hpc", "slurm", *map(str, words)], cwd=folder, stdout=out,
                                            stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                            env={**os.environ, **ENVIRONMENT})

    @property
    def said(self) -> str:
        return self._said.read_text()

    def wait_for(self, pattern: str, times: int = 1) -> list[str]:
        """Return what was found when it has said something so many times."""
        def found() -> list[str]:
            there = re.findall(pattern, self.said, re.MULTILINE)
            assert len(there) >= times or self.process.poll() is None, self.said
            return there if len(there) >= times else []

        return wait_until(found, pattern, so_far=lambda: self.said)

    @property
    def job(self) -> Job:
        return Job(self.wait_for(r"^job      (\d+) submitted")[0], self.folder)

    def ended(self) -> int:
        """Return its exit code when it has ended."""
        return self.process.wait(120)


@pytest.fixture
def follow(tmp_path: Path) -> Iterator[Callable[..., Followed]]:
    """Return ``follow(*words)``, which starts ``dml-hpc slurm *words`` in a folder with an awkward name."""
    folder = tmp_path / "it's $(here)"
    folder.mkdir()
    all_followed: list[Followed] = []

    def start(*words: object) -> Followed:
        all_followed.append(Followed(folder, *words))
        return all_followed[-1]

    yield start
    for followed in all_followed:
        if followed.process.poll() is None:
            followed.process.kill()
            followed.process.wait()
        for number in re.findall(r"^job      (\d+) submitted", followed.said, re.MULTILINE):
            subprocess.run(["scancel", "--quiet", number], timeout=60)
            Job(number, folder).wait_until(Job(number, folder).has_ended, "its end")


def test_a_job_is_submitted_and_followed_to_its_model(follow, data, undisturbed):
    name, model = "it's a \"#1\" `job` $(touch pwned)", "a 'model' $(touch pwned).h5"
    followed = follow("train", *TWO_RANKS, "--time", "10m", "--name", name, "--submit", "--watch", "--", data, "-o",
                      model, *LONG)
    assert followed.ended() == 0, followed.said
    for line in (r"^checked  partition main has \d+ such nodes$", r"^state    running on n\[\d[-,]\d\]$",
                 r"2 ranks, sync", r"^state    completed, exit code 0$"):
        assert re.search(line, followed.said, re.MULTILINE), followed.said
    assert (followed.folder / model).exists()
    assert Job("0", followed.folder).record()["weights_digest"] == undisturbed
    assert not list(followed.folder.glob("pwned"))


@pytest.mark.maths
def test_a_requeue_is_said_and_followed(follow, data, undisturbed):
    followed = follow("train", *TWO_RANKS, "--time", "20", "--submit", "--watch", "--", data, "-o", "model.h5", *LONG)
    job = followed.job
    job.wait_until(job.is_under_way, "a step")
    subprocess.run(["scancel", "--batch", "--signal=USR1", job.number], check=True)
    followed.wait_for(rf"^requeued job {job.number} is to start again, start 2$")
    job.release()
    assert followed.ended() == 0, followed.said
    assert job.record()["weights_digest"] == undisturbed


@pytest.mark.maths
def test_an_interrupt_ends_the_watching_and_not_the_job(follow, data):
    first = follow("train", *TWO_RANKS, "--submit", "--watch", "--", data, "-o", "model.h5", *LONG)
    job = first.job
    first.wait_for(r"^state    running")
    first.process.send_signal(signal.SIGINT)
    assert first.ended() == 130
    assert f"job {job.number} goes on" in first.said
    assert job.about()["JobState"] == "RUNNING"
    again = follow("watch", job.number)
    again.wait_for(r"^state    running")
    subprocess.run(["scancel", job.number], check=True)
    assert again.ended() != 0
    assert re.search(r"^state    cancelled.*, exit code \d+$", again.said, re.MULTILINE), again.said


def test_a_job_that_fails_gives_its_exit_code(follow, data):
    followed = follow("train", *TWO_RANKS, "--submit", "--watch", "--", data, "-o", "model.h5", "--memory-limit", "1M")
    assert followed.ended() == 2, followed.said
    assert "--memory-limit is below" in followed.said
    assert "state    failed (NonZeroExitCode), exit code 2" in followed.said


@pytest.mark.maths
@pytest.mark.parametrize(("words", "said"), [
    (["--nodes", "99"], r"--nodes 99: partition main has \d"),
    (["--partition", "shrot"], r"no partition 'shrot' \(did you mean 'short'\?\); there are main, short"),
    (["--partition", "short", "--time", "3"], r"--time 00:03:00 is more than the 00:02:00 of partition short"),
    (["--ranks-per-node", "4000"], r"take 4000 CPUs a node: those of partition main have \d"),
    (["--gpus-per-node", "77"], r"--gpus-per-node 77: (a node|the nodes) of partition main"),
    (["--mem", "900T"], r"--mem 943718400M: a node of partition main has \d+M"),
    (["--constraint", "nope"], r"Slurm refuses the script: Invalid feature specification"),
])
def test_what_the_cluster_does_not_have_is_refused_in_one_line(data, tmp_path, words, said):
    done = subprocess.run([BESIDE / "dml-hpc", "slurm", "train", *words, "--submit", "--", data, "-o", "model.h5"],
                          cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"dml-hpc: .*{said}.*\n", done.stderr), done.stderr
    assert os.listdir(tmp_path) == []


def srun(way: str | None, model: Path, data: Path) -> subprocess.CompletedProcess[str]:
    """Run a short training on two ranks of two nodes, started by ``srun --mpi=way``."""
    # Whoever ends first ends all: the one that is to speak must not be among those that are ended.
    options = ["--nodes=2", "--ntasks=2", "--kill-on-bad-exit=1", *([] if way is None else [f"--mpi={way}"])]
    train = ["train", str(data), "-o", str(model), "--steps", "1", "--allreduce", "mpi", "--no-progress"]
    return subprocess.run(["srun", *options, sys.executable, "-m", "dml_hpc", *train], capture_output=True, text=True,
                          timeout=120, env={**os.environ, **ENVIRONMENT})


def test_ranks_that_srun_starts_in_the_wrong_way_name_the_right_one(tmp_path, data):
    """Once, in one line, with exit code 2, without a word of the MPI library; and what it names is right."""
    listed = subprocess.run(["srun", "--mpi=list"], capture_output=True, text=True)
    ways = {None, *re.findall(r"\b(pmi2|pmix)$", listed.stdout + listed.stderr, re.MULTILINE)}
    done = {"srun" if way is None else f"srun --mpi={way}": srun(way, tmp_path / f"{way}.h5", data) for way in ways}
    right = [way for way, ranks in done.items() if ranks.returncode == 0]
    assert len(right) <= 1 and "srun" not in right
    for way, ranks in done.items():
        if way not in right:
            # srun's is the highest: the first to end may have another ended that is only starting.
            assert ranks.returncode in (2, 143), ranks.stderr
            assert "exit code 2\n" in ranks.stderr
            line, = [line for line in ranks.stderr.splitlines() if not re.match(r"(srun|slurmstepd-?\w*): ", line)]
            assert line.startswith(f"dml-hpc: {way} started 2 ranks, but this Python's MPI library"), line
            assert re.findall(r"start them with `(.*) …`", line) == (right or ["mpirun"])


@pytest.mark.maths
def test_the_json_of_a_submission(data, tmp_path):
    done = subprocess.run([BESIDE / "dml-hpc", "slurm", "train", "--submit", "--json", "--", data, "-o", "model.h5",
                           *LONG], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    told = json.loads(done.stdout)
    try:
        assert (done.returncode, told["command"], told["checked"]) == (0, "slurm train", True)
        assert told["log"] == str(tmp_path / f"dml-hpc-train-{told['job_id']}.out")
        assert told["state"] in ("PENDING", "RUNNING", "CONFIGURING")
    finally:
        subprocess.run(["scancel", str(told["job_id"])])
        job = Job(str(told["job_id"]), tmp_path)
        job.wait_until(job.has_ended, "its end")
