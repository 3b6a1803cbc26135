"""What all cases share: the data, the undisturbed runs' digests, and what any case is checked for."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from chaos_runs.jobs import (
    ALGORITHMS,
    ANSWER_S,
    DEADLINE_S,
    END_S,
    REDUCERS,
    Ended,
    Job,
    Launcher,
    run,
    synthesise,
)
from dml_hpc.errors import JobError, UserError
from dml_hpc.store.model import read_model, weights_digest

LAUNCHERS_WORDS = r"signal 9|SIGKILL|\[(mpiexec|proxy:\d+)@|prterun (detected|noticed)"


@dataclass
class Case:
    """A case of ``kind`` and what came of it. ``faults`` is what is wrong with the product, [] where all is well."""

    kind: str
    number: int
    what: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    struck: int = 0
    hung: bool = False
    wrong_model: bool = False
    resumed: int = 0
    same_digest: int = 0
    ended_s: float | None = None
    """From a strike that is to end the job to its end."""
    recovery_s: float | None = None
    """From a strike to the next step."""
    recovery_limit_s: float | None = None
    said: str = ""
    """What the job said, where something is wrong."""

    def fault(self, what: str, ended: Ended | None = None) -> None:
        """Note that something is wrong."""
        self.faults.append(what)
        if ended is not None:
            self.said += f"--- {what}: exit code {ended.code}\n{ended.err[-6000:]}\n{ended.out[-500:]}\n"


class Shop:
    """Where cases are run: ``folder`` holds all that they make."""

    def __init__(self, launchers: list[Launcher], folder: Path):
        self.launchers, self.folder = launchers, folder
        self._lock = threading.Lock()
        self._references: dict[tuple[str, str, int], Ended] = {}
        self.data = {"plain": synthesise(launchers[0], folder / "plain", 4000, 20, "none")}

    def data_set(self, name: str) -> Path:
        """Return the "plain" data set, whose rows are mapped, or the "zipped" one, which is read by the library."""
        with self._lock:
            if name not in self.data:
                self.data[name] = synthesise(self.launchers[0], self.folder / name, 500000, 50, "gzip")
            return self.data[name]

    @contextmanager
    def job(self, rng: Random, **fixed: Any) -> Iterator[Job]:
        """Yield a job drawn at random, except for what is ``fixed``, in a folder of its own that is removed."""
        folder = Path(tempfile.mkdtemp(prefix="run-", dir=self.folder))
        drawn = {"launcher": rng.choice(self.launchers), "ranks": rng.randint(2, 4), "reducer": rng.choice(REDUCERS),
                 "algorithm": rng.choice(list(ALGORITHMS)), "data": self.data_set("plain"), "folder": folder}
        try:
            yield Job(**{**drawn, **fixed})
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def reference(self, job: Job) -> Ended:
        """Return how the undisturbed job ended, on four ranks of the same launcher."""
        key = job.launcher.name, f"{job.algorithm} {job.data.name}", job.steps
        with self._lock:
            if key not in self._references:
                folder = Path(tempfile.mkdtemp(prefix="reference-", dir=self.folder))
                done = run(Job(job.launcher, 4, "mpi", job.algorithm, self.data[job.data.name], folder,
                               steps=job.steps, deadline_s=60))
                if done.code != 0:
                    raise SystemExit(f"the undisturbed run fails:\n{done.err}")
                same = [other.told["weights_digest"] for (_, what, steps), other in self._references.items()
                        if (what, steps) == key[1:]]
                if same and same[0] != done.told["weights_digest"]:
                    raise SystemExit(f"undisturbed runs differ between MPI libraries: {key}")
                self._references[key] = done
                shutil.rmtree(folder)
            return self._references[key]

    def check_death(self, case: Case, job: Job, ended: Ended, rank: int = 0, how: str = "",
                    orphaned: bool = False) -> None:
        """Check a job whose ``rank`` was struck, so that it is to end: in time, in words, without a model.

        One that is stopped, alive but stuck, is to be named. One that lost the process which speaks for it may be named
        by the launcher instead; where it was ``orphaned`` before MPI had started, the launcher may know no more than
        that a process was killed.
        """
        self._check_any(case, ended)
        if not ended.strikes:
            self.check_result(case, job, ended)
            return
        if ended.code == 0:
            self.check_result(case, job, ended)  # what befell it was no death
            return
        case.ended_s = ended.ended - ended.strikes[0]
        if case.ended_s > DEADLINE_S + ANSWER_S + END_S:
            case.fault(f"it took {case.ended_s:.1f} s to end", ended)
        if job.model.exists():
            case.wrong_model = True
            case.fault("it failed and left a model", ended)
        named = rf"rank {rank} (does not answer|has not arrived|of .* is stopped)"
        if how == "stop" and not re.search(named, ended.err):
            case.fault(f"the stopped rank {rank} was not named", ended)
        elif "dml-hpc: " not in ended.err and not (how == "supervisor" and self._launcher_told(ended, rank, orphaned)):
            case.fault("nothing says why it ended", ended)

    @staticmethod
    def _launcher_told(ended: Ended, rank: int, orphaned: bool) -> bool:
        named = rf"process rank {rank} .*exited on\s+signal 9"
        return re.search(LAUNCHERS_WORDS if orphaned else named, ended.err + ended.out) is not None

    def check_result(self, case: Case, job: Job, ended: Ended) -> bool:
        """Check a job that is to end well: with the digest of the undisturbed one. Returns whether it did."""
        self._check_any(case, ended)
        if ended.code is None:
            return False
        if ended.code != 0:
            case.fault("it should have ended well", ended)
            return False
        wanted = self.reference(job).told["weights_digest"]
        try:
            digest = weights_digest(read_model(job.model).weights)
        except (JobError, UserError, OSError) as error:
            digest = str(error)
        if digest != wanted or (not job.supervised and ended.told.get("weights_digest") != wanted):
            case.wrong_model = True
            case.fault(f"another model: {digest} instead of {wanted}", ended)
            return False
        case.same_digest += 1
        return True

    def check_resumed(self, case: Case, job: Job, step: int | None, **options: Any) -> Ended:
        """Run a job that is to go on from the checkpoint of ``step`` (None: there is none) to the right end."""
        case.resumed += 1
        ended = run(job, **options)
        if self.check_result(case, job, ended) and ended.told["resumed_from"] != step:
            case.fault(f"it went on from step {ended.told['resumed_from']} instead of {step}", ended)
        return ended

    def check_refused(self, case: Case, job: Job, ended: Ended, says: str) -> None:
        """Check a job that cannot begin: exit code 2, one line that says why, no model."""
        self._check_any(case, ended)
        lines = [line for line in ended.err.splitlines() if line.startswith("dml-hpc: ")]
        if ended.code != 2 or len(lines) != 1 or not re.search(says, lines[0]):
            case.fault("it should have been refused in one line", ended)
        if job.model.exists():
            case.wrong_model = True
            case.fault("it was refused and left a model", ended)

    def _check_any(self, case: Case, ended: Ended) -> None:
        case.struck += len(ended.strikes)
        if ended.broken:
            raise SystemExit(f"scripts/chaos_runs no longer fits the package: {ended.broken}")
        if ended.code is None:
            case.hung = True
            case.fault("it hung", ended)
        elif ended.left:
            case.fault(f"{ended.left} of its processes were left behind", ended)


def newest_step(folder: Path) -> int | None:
    """Return the step of the newest checkpoint, None: there is none."""
    there = checkpoints(folder)
    return step_of(there[0]) if there else None


def checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints in a folder, the newest first."""
    heads = [head.parent for head in folder.glob("[!.]*/state.json")]
    return sorted(heads, key=lambda path: path.name, reverse=True)


def step_of(checkpoint: Path) -> int:
    """Return how many steps had been taken at a checkpoint."""
    return int(json.loads((checkpoint / "state.json").read_text())["body"]["step"])
