"""``saboteur.py MODE RANK STEP -- ARGUMENTS``: ``dml-hpc ARGUMENTS``, but one rank fails in that gradient.

Mode ``tell`` makes a file there instead: its name stands in place of ``--``.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

from dml_hpc.cli import main
from dml_hpc.commands import fitting
from dml_hpc.kernels import glm
from dml_hpc.launch import launch
from dml_hpc.objectives.linear_score import LinearScore

mode, rank, step = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
honest = LinearScore.loss_and_gradient
calls = 0


def sabotaged(self: LinearScore, *arguments: object) -> float:
    global calls
    calls += 1
    if launch().rank == rank and calls == step:
        if mode == "raise":
            raise RuntimeError("sabotaged")
        if mode == "exit":
            sys.exit(3)
        if mode == "leave":
            os._exit(0)
        if mode == "tell":
            open(sys.argv[4], "w").close()
            return honest(self, *arguments)  # type: ignore[arg-type]
        if mode == "stall":
            threading.Event().wait()
        if mode == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        os.kill({"kill": os.getpid, "kill-supervisor": os.getppid}[mode](), signal.SIGKILL)
    return honest(self, *arguments)  # type: ignore[arg-type]


if mode == "slow" and launch().rank == rank:
    unhurried = LinearScore.sequential_sgd

    def slow(self: LinearScore, *arguments: object) -> float:
        time.sleep(0.5)  # this rank's node is slow
        return unhurried(self, *arguments)  # type: ignore[arg-type]

    LinearScore.sequential_sgd = slow  # type: ignore[assignment,method-assign]
if mode in ("stop-compiling", "slow-compiling") and launch().rank == rank:
    honestly = fitting.compile_kernels

    def compile_kernels(run: object) -> None:
        if mode == "stop-compiling":
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(4)  # nothing was compiled before
        honestly(run)  # type: ignore[arg-type]

    fitting.compile_kernels = compile_kernels
if mode == "stop-scoring" and launch().rank == rank:
    glm.scores = lambda X, weights, out: len(X) and os.kill(os.getpid(), signal.SIGSTOP)  # type: ignore[assignment]
LinearScore.loss_and_gradient = sabotaged  # type: ignore[assignment,method-assign]
sys.exit(main(sys.argv[5:]))
