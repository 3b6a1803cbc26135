"""How a run is kept from being lost: where its checkpoints are, whether it goes on from one, who may die."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import TimeoutError as TooLong
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dml_hpc.commands.same_data import difference, of_data
from dml_hpc.console import Console
from dml_hpc.data.dataset import Dataset
from dml_hpc.errors import AgreedError, Stopped, UserError
from dml_hpc.mpi import agreed, on_root
from dml_hpc.stopping import Asked
from dml_hpc.store import checkpoint, lock
from dml_hpc.store.checkpoint_writer import Background, Writer
from dml_hpc.store.every import Every
from dml_hpc.store.live import Live
from dml_hpc.store.saving import Memory, Saving
from dml_hpc.store.state import Kept, Values

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

DEFAULT_EVERY = Every(seconds=60.0)
DEFAULT_KEEP = 3
ENDING_S = 5.0
"""So long `--resume` waits for a run that holds the folder: it may be ending, as the team does that died before."""


@dataclass
class Keeping:
    """What the user wants kept: checkpoints in ``folder`` (None: none), the newest ``keep`` of them, one ``every`` so
    often (None: nothing was said of it). ``resume``: go on from the newest. ``memory`` is what a process remembers
    while other ranks die, None: the job ends with the first death. ``live`` is the file to watch the run by.
    """

    folder: Path | None = None
    every: Every | None = None
    keep: int | None = None
    resume: bool = False
    memory: Memory | None = None
    live: Live | None = None
    asked: Callable[[], int] = field(default=lambda: 0, repr=False)
    _lock: lock.Lock | None = field(default=None, init=False, repr=False)
    _in_use: str | None = field(default=None, init=False, repr=False)

    def check(self, rank: int, inputs: Sequence[Path]) -> None:
        """Make sure, before any time is spent, that checkpoints can be written, and that none is passed over.

        ``inputs`` are what the run reads. From here until the end of `saving`, or of the process, rank 0 keeps other
        runs out of the folder. Raises `UserError`. For use within `agreed`.
        """
        if self.folder is None:
            if self.resume:
                raise UserError("--resume goes on from a checkpoint: say where they are with --checkpoint DIR")
            for flag, given in (("--checkpoint-every", self.every), ("--keep", self.keep)):
                if given is not None:
                    raise UserError(f"{flag} is for checkpoints: say where they go with --checkpoint DIR, or leave "
                                    f"{flag} out")
            return
        self.asked = Asked.on_signals()
        if rank == 0:
            for read in inputs:
                if self.folder.resolve() == read.resolve() or self.folder.resolve().is_relative_to(read.resolve()):
                    raise UserError(f"{self.folder} is what this run reads, or a part of it; choose another "
                                    "--checkpoint folder")
            checkpoint.prepare(self.folder)
            self._take(self.folder)
            there = checkpoint.found(self.folder)
            if there and not self._goes_on:
                self._lock = None
                raise UserError(f"{self.folder} holds checkpoints of a run ({there[0].name} is the newest); give "
                                "--resume to go on from there, or another folder")
            checkpoint.clear(self.folder)

    def _take(self, folder: Path) -> None:
        """Keep other runs out of the folder; what survives a rank 0 that is stopped, not dead, goes on without."""
        try:
            self._lock = lock.take(folder, ENDING_S if self.resume and not self.again else 0.0)
        except lock.InUseError as error:
            if not self.again:
                raise
            self._in_use = str(error)

    @property
    def again(self) -> bool:
        """Whether this process has begun the run before: what it finds may be its own."""
        return self.memory is not None and bool(self.memory.ranks)

    @property
    def _goes_on(self) -> bool:
        return self.resume or self.again

    def kept(self, comm: Intracomm, console: Console, about: Values) -> Kept | None:
        """Collective: return what the run begins from, None: its beginning. Raises `AgreedError`.

        ``about`` says what the run is: a checkpoint of something else is refused.
        """
        goes_on = comm.allreduce(int(self._goes_on)) > 0  # not all may have come here before others died
        if self.folder is not None:
            _check_shared(comm, self.folder)
        if self._in_use is not None:
            console.say(f"warning  {self._in_use}; this run had begun before, and goes on")
        if self.memory is not None:
            self.memory.ranks.append(comm.size)
            if (snapshot := self.memory.newest(comm)) is not None:
                console.say(f"resumed  from what the ranks that are left remember, step "
                            f"{snapshot.part('loop').values['step']:,}")
                return snapshot
        if not goes_on:
            return None
        if self.folder is None:
            console.say("resumed  nothing: the ranks that are left remember nothing yet, and begin again")
            return None
        kept = checkpoint.newest(comm, self.folder, lambda line: console.say(f"warning  {line}"))
        with agreed(comm):
            if kept is not None:
                _check_same(kept, json.loads(json.dumps(about)))
        if kept is None:
            console.say(f"resumed  nothing: {self.folder} holds no checkpoint, and the run begins at its beginning")
        else:
            console.say(f"resumed  from {kept.path}, step {kept.step:,}, written by {len(kept.own)} "
                        f"rank{'s' * (len(kept.own) > 1)}")
        return kept

    @contextmanager
    def saving(self, comm: Intracomm, console: Console, about: Values, kept: Kept | None) -> Iterator[Saving]:
        """Collective: yield what keeps the run, which begins from ``kept``, for the block."""
        writer = None if self.folder is None else Writer(comm, self.folder, self.keep or DEFAULT_KEEP, about)
        saving = Saving(comm, console.say, writer, self.every or DEFAULT_EVERY, self.memory, self.asked, kept,
                        self.live)
        at_once = False
        try:
            yield saving
        except Stopped as stopped:
            at_once = True
            if self.folder is not None:  # the first signal was for all ranks, or this is Ctrl-C
                stopped.all_stop = True
                stopped.args = (f"{stopped.args[0]}; {_what_stays(self.folder)}",)
            raise
        except AgreedError:
            raise
        except Exception:
            at_once = self.memory is None  # the job ends; survivors would write there again
            raise
        finally:
            saving.close(at_once)
            if self.memory is None and not at_once:  # else the process ends, or begins the run again
                self._lock = None


LOOK_S = 1.0
"""So long a rank that ends at once waits to hear which checkpoints there are: their file system may hang."""


def _what_stays(folder: Path) -> str:
    looking = Background()
    found = looking.submit(checkpoint.found, folder)
    looking.close(wait=False)
    try:
        there = found.result(LOOK_S)
    except (UserError, TooLong):
        return f"{folder} does not answer now: --resume goes on from what is there"
    return f"{there[0]} stays: --resume goes on from there" if there else ("there is no checkpoint yet, and what was "
                                                                          "done is lost")


def _check_shared(comm: Intracomm, folder: Path) -> None:
    """Collective: raise `AgreedError` unless all ranks see the same folder."""
    trial = on_root(comm, lambda: _trial(folder))
    try:
        with agreed(comm):
            if not Path(trial).exists():
                raise UserError(f"--checkpoint: {folder.absolute()} is not the same folder on all nodes; choose one on "
                                "a file system that they share")
    finally:
        if comm.rank == 0:
            with suppress(OSError):
                Path(trial).unlink()


def _trial(folder: Path) -> str:
    handle, name = tempfile.mkstemp(prefix=".shared-", dir=folder)
    os.close(handle)
    return name


def about_run(comm: Intracomm, command: str, dataset: Dataset, options: dict[str, Any],
              validation: Dataset | None = None) -> Values:
    """Collective: return what a checkpoint says it is of."""
    return {"command": command, "data": on_root(comm, lambda: of_data(dataset)), "options": options,
            "validation": None if validation is None else on_root(comm, lambda: of_data(validation))}


def _check_same(kept: checkpoint.OnDisk, about: Values) -> None:
    """Raise `UserError` when a checkpoint is of another run than this."""
    try:
        other = _other(kept.about, about)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{kept.path} does not say what it is of; give another --checkpoint folder") from None
    if other is not None:
        raise UserError(f"{kept.path} {other}, or give another --checkpoint folder")


def _other(there: Values, about: Values) -> str | None:
    """Return how the run ``there`` is another than that of ``about``, and what to do; None: it is the same."""
    command = about["command"]
    if there["command"] != command:
        return f"is of dml-hpc {there['command']}, not {command}; go on with that"
    # `train` goes on with other rows left out; any other command would mix matrices.
    if (data := difference(there["data"], about["data"], same_rows=command != "train")) is not None:
        return f"is of {data}"
    held, held_now = there.get("validation"), about.get("validation")
    if held is None or held_now is None:
        if held is not held_now:
            return f"was written with{'out' if held is None else ''} --validation; give the same"
    elif (data := difference(held, held_now, same_rows=True)) is not None:
        return f"was written with --validation on {data}"
    for name, value in about["options"].items():
        before = there["options"].get(name)
        if before != value:
            return (f"was written with {_option(command, name, before)}, and this run has "
                    f"{_option(command, name, value)}; give the same")
    return None


SWITCHED_OFF = {"train": ("sample_weight", "intercept", "scale", "shuffle"), "mf": ("biases",)}
"""Flags of a command that are on unless ``--no-…`` is given."""


def _option(command: str, name: str, value: object) -> str:
    """Return an option as it is typed."""
    words = name.replace("_", "-")
    if value is False and name in SWITCHED_OFF.get(command, ()):
        return f"--no-{words}"
    if value is None or value is False:
        return f"no --{words}"
    if isinstance(value, dict):
        value = ",".join(f"{float(key):g}={weight:g}" for key, weight in value.items())
    if isinstance(value, (list, tuple)):
        value = ",".join(map(str, value))
    return f"--{words}" if value is True else f"--{words} {value}"
