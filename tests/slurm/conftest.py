"""Jobs of a real Slurm: submitted, and ended after the test; without a Slurm the tests are skipped."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from slurm_support import BESIDE, FACTORISED, JOB_SETTINGS, LONG, TEMPLATES, Job


def _answers() -> bool:
    try:
        return subprocess.run(["sinfo", "-h"], capture_output=True, timeout=30).returncode == 0
    except OSError:
        return False


@pytest.fixture(scope="session", autouse=True)
def slurm() -> None:
    """Skip unless a Slurm answers."""
    if not _answers():
        pytest.skip("no Slurm answers here; try scripts/local_slurm.sh 4 --gpus 2 -- python -m pytest tests/slurm")


Submit = Callable[..., Job]


@pytest.fixture
def submit(tmp_path: Path) -> Iterator[Submit]:
    """Return ``submit(template, *arguments, options=(), **environment)``, which returns the `Job`.

    It is submitted from the test's own folder, with the MPI of this Python, and ended with the test.
    """
    jobs: list[Job] = []

    def start(template: str, *arguments: object, options: tuple[str, ...] = (), **environment: str) -> Job:
        env = {**os.environ, **JOB_SETTINGS, **environment}
        done = subprocess.run(["sbatch", "--parsable", *options, str(TEMPLATES / template), *map(str, arguments)],
                              cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        jobs.append(Job(done.stdout.strip(), tmp_path))
        return jobs[-1]

    yield start
    for job in jobs:
        subprocess.run(["scancel", "--quiet", job.number], timeout=60)
        job.wait_until(job.has_ended, "its end")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 150,000 × 64, whose steps take their time without any waiting for other nodes."""
    return _made_once(tmp_path_factory, "small", lambda path: _dml_hpc(
        "data", "synth", "binary", "-o", path, "--rows", 150_000, "--features", 64, "--shards", 4))


@pytest.fixture(scope="session")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of the weights that one process, which nobody disturbs, ends with under `LONG`."""
    return _made_once(tmp_path_factory, "undisturbed", lambda path: path.write_text(json.loads(_dml_hpc(
        "train", data, "-o", path.with_suffix(".h5"), *LONG, "--json"))["weights_digest"])).read_text()


@pytest.fixture(scope="session")
def ratings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200,000 ratings of 3,000 users and 1,000 items."""
    return _made_once(tmp_path_factory, "ratings", lambda path: _dml_hpc(
        "data", "synth", "ratings", "-o", path, "--rows", 200_000, "--users", 3000, "--items", 1000, "--shards", 4))


@pytest.fixture(scope="session")
def factorised(ratings: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of the factors that one process, which nobody disturbs, ends with under `FACTORISED`."""
    return _made_once(tmp_path_factory, "factorised", lambda path: path.write_text(json.loads(_dml_hpc(
        "mf", ratings, "-o", path.with_suffix(".h5"), *FACTORISED, "--json"))["weights_digest"])).read_text()


@pytest.fixture
def scratch() -> tuple[str, Path]:
    """Where nodes keep what is theirs alone: the folder's name there, and where nodes' folders are seen from here."""
    own = Path(os.environ.get("SLURM_CONF", "/nowhere")).parent
    if not (own / "scratch").exists():
        pytest.skip("what is on nodes' own disks can be seen with local_slurm.sh only")
    return str(own / "scratch"), own


def _made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return what the first of pytest's workers has made with ``make(path)``; the others wait for it."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with open(folder / f"{name}.lock", "a+", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.seek(0)
        if not lock.read():
            make(folder / name)
            lock.write("made")
    return folder / name


def _dml_hpc(*arguments: object) -> str:
    done = subprocess.run([BESIDE / "dml-hpc", *map(str, arguments)], capture_output=True, text=True, timeout=120,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return done.stdout
