"""Strikes one rank of a real job in the middle of a named function; Python imports it by itself from PYTHONPATH.

``CHAOS_STRIKES`` holds JSON: ``folder``, where strikes are written down; ``strikes``, a list of those in
`chaos_runs.strikes.Strike`'s fields; ``free_bytes``, how much memory the machine is to seem to have (none: as it is).
A strike happens once, however often the job is started again in that folder. It also notes when ranks take the first
step of a run, so that it can be told how long a recovery takes. Nothing here imports the package.
"""

from __future__ import annotations

import functools
import importlib.machinery
import json
import os
import resource
import signal
import sys
import threading
import time
from typing import Any

RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")
chaos = json.loads(os.environ.get("CHAOS_STRIKES", "{}"))
rank = next((int(os.environ[key]) for key in RANKS if os.environ.get(key, "").isdigit()), None)


def strike(one):
    """Do what is to be done, unless it has been done before."""
    try:
        mark = os.open(os.path.join(chaos["folder"], f"struck-{one['name']}"), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return
    os.write(mark, f"{time.time()}\n".encode())
    os.close(mark)
    if one["how"] in ("kill", "stop"):
        os.kill(os.getpid(), signal.SIGKILL if one["how"] == "kill" else signal.SIGSTOP)
    elif one["how"] == "supervisor":
        os.kill(os.getppid(), signal.SIGKILL)
    elif one["how"] == "raise":
        raise RuntimeError("struck")
    elif one["how"] == "memory":
        with open("/proc/self/statm") as file:
            taken = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken, taken))  # what is asked for from now on is refused
        bytearray(256 << 20)
    elif one["how"] == "fill":
        fill(one["path"])
    elif one["how"] == "remove":
        os.remove(one["path"])
    elif one["how"] == "hide":
        os.rename(one["path"], one["path"] + ".hidden")
    elif one["how"] == "cut":
        os.truncate(one["path"], os.path.getsize(one["path"]) // 2)
    elif one["how"] == "touch":
        with open(one["path"], "w"):
            pass
    else:
        broken(f"no way to strike is called {one['how']}")


def fill(path):
    """Write to a file until its disk is full."""
    with open(path, "wb", buffering=0) as file:
        for size in (1 << 16, 1 << 9):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue


def struck(function, one):
    """Return ``function``, but in its ``one['call']``-th call there is a strike, a moment later if it has a delay."""
    calls = 0

    @functools.wraps(function)
    def call(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == one["call"]:
            if one["delay_s"] > 0:
                threading.Timer(one["delay_s"], strike, [one]).start()
            else:
                strike(one)
        return function(*arguments, **options)

    return call


def first_steps(function):
    """Return ``_Course.count``, but it notes when a run has taken its first step since it began or went on."""

    @functools.wraps(function)
    def count(course, *arguments):
        function(course, *arguments)
        if not getattr(course, "noted", False):
            course.noted = True
            with open(os.path.join(chaos["folder"], "first-steps"), "a") as file:
                file.write(f"{time.time()} {rank} {course.step}\n")

    return count


def broken(what):
    """Say that this file no longer fits the package."""
    with open(os.path.join(chaos["folder"], "broken"), "a") as file:
        file.write(what + "\n")


def change(module, path, make):
    """Replace what ``path`` names in a module by what ``make`` makes of it."""
    *owners, name = path.split(".")
    owner = functools.reduce(lambda found, part: getattr(found, part, None), owners, module)
    if not hasattr(owner, name):
        broken(f"{module.__name__} has no {path}")
        return
    setattr(owner, name, make(getattr(owner, name)))


def wanted_changes():
    """Return what is to be changed: {module: [(path, make), …]}."""
    changes = {"dml_hpc.trainers.loop": [("_Course.count", first_steps)]}
    for one in chaos["strikes"]:
        if one["rank"] == rank and one["place"] != "clock":
            module, path = one["place"].split(":")
            changes.setdefault(module, []).append((path, functools.partial(struck, one=one)))
    if chaos.get("free_bytes"):
        changes.setdefault("dml_hpc.commands.opening", []).append(
            ("free_bytes", lambda honest: lambda: chaos["free_bytes"]))
    return changes


class Changing:
    """Finds the modules that are to be changed, as Python does, and changes each when it has been imported."""

    def __init__(self, changes):
        self.changes = changes

    def find_spec(self, name, path=None, target=None):
        if name not in self.changes:
            return None
        spec: Any = importlib.machinery.PathFinder.find_spec(name, path, target)
        loader = spec.loader
        execute = loader.exec_module

        def execute_and_change(module):
            execute(module)
            for place, make in self.changes[name]:
                change(module, place, make)

        loader.exec_module = execute_and_change
        return spec


def start_clocks():
    """In a rank that its supervisor has just started: strike so many seconds from now."""
    for one in chaos["strikes"]:
        if one["rank"] == rank and one["place"] == "clock":
            clock = threading.Timer(one["delay_s"], strike, [one])
            clock.daemon = True
            clock.start()


if chaos and rank is not None:
    sys.meta_path.insert(0, Changing(wanted_changes()))
    os.register_at_fork(after_in_child=start_clocks)
