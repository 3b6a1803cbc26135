"""``dying.py RANK@MODULE:FUNCTION@COUNT[,…] ARGUMENTS``: ``dml-hpc ARGUMENTS``, but each RANK is killed at such a call.

``SIGNAL@RANK@MODULE:FUNCTION@COUNT`` sends itself that signal instead. Ranks meet after every step, and remember it.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import Any

from dml_hpc.cli import main
from dml_hpc.launch import launch
from dml_hpc.store import pulse, saving

pulse.PULSE_S = saving.LEAST_SNAPSHOT_S = 0.0
saving.SNAPSHOT_SHARE = 1e9

def set_trap(rank: int, where: str, count: int, number: int) -> None:
    """Replace a function by one that sends this process a signal at its call number ``count``, on one rank."""
    if launch().rank != rank:
        return
    module, _, path = where.partition(":")
    *outer, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for part in outer:
        owner = getattr(owner, part)
    honest, calls = getattr(owner, name), 0

    def trapped(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), number)
        return honest(*arguments, **options)

    setattr(owner, name, trapped)


for plan in sys.argv[1].split(",") if sys.argv[1] else []:
    *sent, rank, where, count = plan.split("@")
    set_trap(int(rank), where, int(count), signal.Signals[sent[0]] if sent else signal.SIGKILL)
sys.exit(main(sys.argv[2:]))
