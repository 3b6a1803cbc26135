"""What a process takes of its machine is what the kernel counts."""

from __future__ import annotations

import os
import threading
import time

from dml_hpc import usage as module
from dml_hpc.launch import Launch
from dml_hpc.launchers import launcher_name
from dml_hpc.usage import since, usage


def test_cpu_time_of_all_threads_counts_and_sleep_does_not():
    def work() -> None:
        until = time.thread_time() + 0.05
        while time.thread_time() < until:
            pass

    before, cpu = usage(), time.process_time()
    thread = threading.Thread(target=work)
    thread.start()
    work()
    thread.join()
    took = since(before)
    assert 0.09 < took["cpu_s"] <= time.process_time() - cpu + 0.02
    assert took["major_faults"] >= 0 and took["switches"] >= 0


def test_bytes_from_storage_are_told_from_bytes_from_memory(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(os.urandom(4 << 20))
    path.read_bytes()
    before = usage()
    path.read_bytes()
    if before.disk_bytes is None:  # the kernel keeps no such account here
        assert since(before)["disk_bytes"] is None
        return
    assert since(before)["disk_bytes"] < 1 << 20


def test_an_account_that_cannot_be_read_is_not_made_up(tmp_path, monkeypatch):
    before = usage()
    monkeypatch.setattr(module, "_IO", tmp_path / "none")
    assert usage().disk_bytes is None and since(before)["disk_bytes"] is None


def test_a_launcher_is_a_word():
    words = {"Open MPI's mpirun": "openmpi", "MPICH's mpirun": "mpich", "srun": "srun", "srun --mpi=pmi2": "srun",
             "": None}
    assert {said: launcher_name(Launch(0, 2, said)) for said in words} == words
