"""Damage data sets at random, and see that nothing worse comes of it than a clear word.

A case is a seed and a number: they choose a data set, a kind of damage and its place. In a process of its own, with a
limit of time and of memory, `data verify`, `data info` and the reading of all rows meet what is left.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from fuzz_damage import FORGED, KINDS, Rng
from rated_support import all_of, write_rated

from dml_hpc.cli import main
from dml_hpc.data import dataset as datasets
from dml_hpc.data.build import build
from dml_hpc.data.csr import Csr, sparse
from dml_hpc.data.ratings.opened import open_ratings
from dml_hpc.data.sources.source import About
from dml_hpc.data.verification import verify as verifying
from dml_hpc.data.verification.examine import examine
from dml_hpc.data.verification.findings import Expected, Findings
from dml_hpc.errors import AgreedError, UserError
from dml_hpc.mpi import Alone

LIMIT_S = 20.0
MEMORY_BYTES = 8 << 30
CRASHES = "crashes HDF5"


class Rows:
    """A source of rows in memory."""

    def __init__(self, X: np.ndarray | Csr, y: np.ndarray, kind: str, features: int, **about: Any):
        self.X, self.y, self.kind, self.rows, self.features = X, y, kind, len(y), features
        self.about = About(**about)

    def read(self, start: int, stop: int) -> tuple[np.ndarray | Csr, np.ndarray]:
        return self.X[start:stop], self.y[start:stop]


def make_bases(folder: Path) -> list[str]:
    """Write the data sets to be damaged into ``folder/NAME/data`` (beside their rows.npz) and return their names."""
    rng = np.random.default_rng(0)
    X = (rng.standard_normal((60, 6)) * (rng.random((60, 6)) < 0.6)).astype(np.float32)
    y = np.arange(60) % 4 * 1.0
    pairs = np.stack([np.arange(60) // 6, np.arange(60) % 6], axis=1)
    dense, csr = Rows(X, y, "dense", 6), Rows(sparse(X), y, "csr", 6)
    names = [f"x{j}" for j in range(6)]
    dense.about.feature_names = names
    few = sparse(X)
    wide = Rows(Csr(few.data, few.indices, few.indptr, 1 << 17), y, "csr", 1 << 17, hash_bits=17)
    made = {"dense": (dense, None), "csr": (csr, None), "wide": (wide, None)}
    for compression in ("gzip", "lzf", "blosc2", "zstd"):
        made[f"dense-{compression}"] = (dense, compression)
    made |= {"csr-gzip": (csr, "gzip"), "csr-blosc2": (csr, "blosc2")}
    for name, (source, compression) in made.items():
        (folder / name / "data").mkdir(parents=True)
        build(Alone(), folder / name / "data", {"": source}, shards=2, dtype="float32", compression=compression)
    for name, compression in (("ratings", None), ("ratings-zstd", "zstd")):
        (folder / name).mkdir()
        write_rated(folder / name / "data", *pairs.T, y, grid=(3, 2), shards=2, compression=compression)
        np.savez(folder / name / "rows.npz", X=pairs, y=y)
    for name in ("foreign", "foreign-csr", "foreign-chunks"):
        (folder / name / "data").mkdir(parents=True)
        for part, rows in (("0.h5", slice(0, 25)), ("1.h5", slice(25, 60))):
            with h5py.File(folder / name / "data" / part, "w") as file:
                if name == "foreign-csr":
                    packed = few[rows].packed()
                    file["X/data"], file["X/indices"], file["X/indptr"] = packed.data, packed.indices, packed.indptr
                    file["X"].attrs["shape"] = packed.shape
                else:
                    chunks = {"chunks": (7, 3), "compression": "gzip"} if name == "foreign-chunks" else {}
                    file.create_dataset("X", data=X[rows], **chunks)
                file["y"] = y[rows]
        made[name] = (dense, None)
    for name in made:
        np.savez(folder / name / "rows.npz", X=X, y=y)
    return [*made, "ratings", "ratings-zstd"]


class Case(NamedTuple):
    """What came of a case: ``verdict`` is a word for the table, ``good`` whether it may be."""

    number: int
    base: str
    kind: str
    verdict: str
    good: bool
    detail: str = ""


def run_cases(numbers: Sequence[int], seed: int, workers: int = 1, forged: bool = False) -> Iterator[Case]:
    """Yield what came of each case, in any order; ``forged`` adds `FORGED` to the kinds of damage."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        bases = make_bases(folder)
        kinds = {**KINDS, **(FORGED if forged else {})}
        _warm_up(folder)
        running: dict[int, tuple[int, float, Path]] = {}
        waiting = list(numbers)[::-1]
        while waiting or running:
            while waiting and len(running) < workers:
                number = waiting.pop()
                place = folder / f"case-{number}"
                process = os.fork()
                if process == 0:
                    _child(folder, place, bases, kinds, seed, number)
                running[process] = number, time.monotonic() + LIMIT_S, place
            for process in list(running):
                number, until, place = running[process]
                ended, status = os.waitpid(process, os.WNOHANG)
                if not ended and time.monotonic() < until:
                    continue
                base, kind = _choice(bases, kinds, seed, number)[:2]
                if not ended:
                    os.kill(process, signal.SIGKILL)
                    os.waitpid(process, 0)
                    yield Case(number, base, kind, "HANG", False, _stage(place))
                elif status != 0:
                    killed = os.WIFSIGNALED(status)
                    how = signal.Signals(os.WTERMSIG(status)).name if killed else f"status {status >> 8}"
                    yield Case(number, base, kind, "CRASH", False, f"{how} in {_stage(place)}")
                else:
                    verdict, good, detail = json.loads((place / "verdict").read_text())
                    yield Case(number, base, kind, verdict, good, detail)
                shutil.rmtree(place, ignore_errors=True)
                del running[process]
            time.sleep(0.001)


def _stage(place: Path) -> str:
    stage = place / "stage"
    return stage.read_text() if stage.is_file() else "the damaging"


def _warm_up(folder: Path) -> None:
    """Load what every case needs before it is forked."""
    for base in ("dense", "csr", "ratings"):
        _command(["data", "verify", str(folder / base / "data")])
        _command(["data", "info", str(folder / base / "data")])


def _choice(bases: list[str], kinds: dict[str, Any], seed: int, number: int) -> tuple[str, str, Rng]:
    rng = np.random.default_rng([seed, number])
    kind = list(kinds)[number % len(kinds)]
    fitting = [base for base in bases if not (kind.startswith(("manifest", "forged")) and base.startswith("foreign"))]
    return fitting[rng.integers(len(fitting))], kind, rng


def _child(folder: Path, place: Path, bases: list[str], kinds: dict[str, Any], seed: int, number: int) -> None:
    """Run one case and leave the process, whatever happens."""
    status = 9
    try:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        place.mkdir()
        base, kind, rng = _choice(bases, kinds, seed, number)
        shutil.copytree(folder / base / "data", place / "data")
        kinds[kind](rng, place / "data")
        if number % 50:  # the process that `verify` starts is as good as a fork, and slower
            verifying.examine_apart = _examine_apart
        (place / "verdict").write_text(json.dumps(_judge(folder / base, place, kind)))
        status = 0
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
    os._exit(status)


def _judge(base: Path, place: Path, kind: str) -> tuple[str, bool, str]:
    data = place / "data"
    foreign = base.name.startswith("foreign")
    paths = [str(path) for path in sorted(data.iterdir())] if foreign else [str(data)]
    codes, said = {}, {}
    for verb in ("verify", "info"):
        (place / "stage").write_text(verb)
        codes[verb], said[verb] = _command(["data", verb, *paths])
        if "Traceback" in said[verb] or codes[verb] not in (0, 1, 2):
            return "TRACEBACK", False, f"{verb}: {codes[verb]} {said[verb][-1500:]}"
        if codes[verb] == 2 and said[verb].count("\n") != 1:
            return "NOT ONE LINE", False, f"{verb}: {said[verb][:500]}"
    flagged = codes["verify"] > 0
    # That the process `verify` started crashed is as it should be, and worth counting.
    verdict = f"verify {codes['verify']}{' (crashes HDF5)' if CRASHES in said['verify'] else ''}"
    (place / "stage").write_text("reading")
    rows = np.load(base / "rows.npz")
    try:
        same = _same_rows(paths, base.name, rows["X"], rows["y"])
    except (UserError, AgreedError) as error:
        if "\n" in str(error):
            return "NOT ONE LINE", False, f"reading: {error}"
        return f"{verdict}, reading refused", flagged, str(error)
    except Exception:
        return "TRACEBACK", False, f"reading: {traceback.format_exc()[-1500:]}"
    found = "the rows" if same else "other rows"
    # Of a file whose checksum nobody kept, other numbers are as good as those that were there.
    unknown = foreign or kind.startswith(("hdf5", "forged"))
    return f"{verdict}, {found} read", same or unknown or flagged, said["verify"][-300:]


def _command(arguments: list[str]) -> tuple[int, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(arguments)
        except Exception:
            traceback.print_exc()
            code = 99
    return code, err.getvalue() + "".join(line for line in out.getvalue().splitlines() if CRASHES in line)


def _same_rows(paths: list[str], base: str, X: np.ndarray, y: np.ndarray) -> bool:
    """Read all rows; say whether they are X and y."""
    place, same = 0, True
    if base.startswith("ratings"):
        users, items, ratings = all_of(open_ratings(Alone(), Path(paths[0])))
        order = np.lexsort((items, users))
        return all(np.array_equal(found[order], wanted) for found, wanted in
                   ((users, X[:, 0]), (items, X[:, 1]), (ratings, y)))
    dataset = datasets.open_dataset([Path(path) for path in paths])
    for piece in dataset.pieces(0, dataset.rows):
        rows = slice(place, place + len(piece.y))
        if isinstance(piece.X, Csr):
            # Never dense: it may claim any width.
            packed = piece.X.packed()
            here = np.zeros((len(piece.y), X.shape[1]), packed.dtype)
            inside = packed.indices < X.shape[1]
            row = np.repeat(np.arange(len(piece.y)), np.diff(packed.indptr))
            with np.errstate(all="ignore"):
                np.add.at(here, (row[inside], packed.indices[inside]), packed.data[inside])
            same &= bool(inside.all())
        else:
            here = piece.X
        same &= np.array_equal(here, X[rows]) and np.array_equal(piece.y, y[rows])
        place += len(piece.y)
    return same and place == len(y)


def _examine_apart(files: Sequence[tuple[Path, Expected]], least_s: float = 0) -> Iterator[Findings]:
    """Examine each file in a fork of this process, as `untrusted` does in a process of its own."""
    for path, expected in files:
        reader, writer = os.pipe()
        process = os.fork()
        if process == 0:
            found = examine(path, expected)
            os.write(writer, json.dumps([found.faults, found.kind, found.rows, found.features]).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as stream:
            text = stream.read()
        _, status = os.waitpid(process, 0)
        found = Findings()
        if status == 0 and text:
            faults, found.kind, found.rows, found.features = json.loads(text)
            for fault in faults:
                found.add(*fault)
        else:
            found.add("file", f"{CRASHES} (status {status})")
        yield found


