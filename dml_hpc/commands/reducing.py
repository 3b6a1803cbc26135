"""The options that say how vectors are summed, as one function that opens a reducer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dml_hpc.comm import ALLREDUCES, open_reducer
from dml_hpc.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from dml_hpc.comm.reducer import Reducer
    from dml_hpc.console import Console


def check(allreduce: str, tuning: Path | None) -> None:
    """Raise `UserError` for options that do not go together."""
    if allreduce not in ALLREDUCES:
        raise UserError(f"unknown --allreduce {allreduce!r}{did_you_mean(allreduce, ALLREDUCES)}; "
                        f"there are {', '.join(ALLREDUCES)}")
    if tuning is not None and allreduce != "auto":
        raise UserError(f"--tuning keeps what --allreduce auto measures; leave it out with --allreduce {allreduce}")


def opener(console: Console, allreduce: str, **options: Any) -> Callable[..., Reducer]:
    """Return ``open(comm, size, dtype, …)``, collective: a reducer as the options say; a choice is told to the user."""
    def open_(*arguments: Any, **more: Any) -> Reducer:
        reducer = open_reducer(allreduce, *arguments, **options, **more)
        if reducer.choice is not None:
            console.say(f"auto     {reducer.choice}")
        return reducer

    return open_
