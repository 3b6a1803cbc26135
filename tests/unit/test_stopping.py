"""Signals that come where Python ignores exceptions, in destructors and callbacks of libraries, are not lost."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

BEGIN = """
import os, signal, sys, threading, weakref
from pathlib import Path
from dml_hpc.errors import Stopped
from dml_hpc.stopping import stop_on_signals

number = getattr(signal, sys.argv[1])

def tell(*_):
    os.kill(os.getpid(), number)
    for _ in range(1000):
        pass  # the handler is run

class Dying:
    def __del__(self):
        tell()

class Slow:
    def __del__(self):
        threading.Event().wait(20)  # here it is ignored for the second time

def wait():
    threading.Event().wait(20)
    sys.exit("nobody stopped this")

stop_on_signals()
"""
WRITING = BEGIN + """
import numpy as np
from dml_hpc.data.ratings.ids import Ids
from dml_hpc.mpi import Alone
from dml_hpc.store.ranked_table import KINDS, LINE, write_table

class Some:
    pass

def append(table, file, data, append=KINDS[sys.argv[2]].append):
    append(table, file, data)
    some = Some()
    watching = weakref.ref(some, tell)
    del some  # the signal comes in a callback
    wait()

KINDS[sys.argv[2]].append = append
table = KINDS[sys.argv[2]](("user", "item", "rank", "score"), Ids(np.arange(5)), Ids(np.array(["a", "b"], object)))
lines = np.zeros(7, LINE)
try:
    write_table(Alone(), Path("table" + sys.argv[2]), table, [table.rendered(lines)], {})
except Stopped as stopped:
    print(sorted(os.listdir()))
    sys.exit(stopped.exit_code)
"""


def ran(code: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *words], cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("ending", ["Dying()", "Slow(), Dying()"])
def test_a_signal_in_a_destructor_is_not_lost(name, ending, tmp_path):
    done = ran(BEGIN + f"""
try:
    [{ending}]  # the last one goes first
    wait()
except Stopped as stopped:
    sys.exit(stopped.exit_code)
""", tmp_path, name)
    assert (done.returncode, done.stderr) == (128 + getattr(signal, name), "")


@pytest.mark.parametrize("kind", [".csv", ".h5"])
def test_nothing_is_left_of_a_table_when_a_signal_comes_in_a_callback(kind, tmp_path):
    done = ran(WRITING, tmp_path, "SIGINT", kind)
    assert (done.returncode, done.stdout, done.stderr) == (130, "[]\n", "")


def test_other_exceptions_in_destructors_are_told_as_before(tmp_path):
    done = ran(BEGIN + """
class Wrong:
    def __del__(self):
        raise ValueError("so it is")
Wrong()
""", tmp_path, "SIGINT")
    assert done.returncode == 0 and "ValueError: so it is" in done.stderr
