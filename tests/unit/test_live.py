"""The live file: what it says, how often it is written, when it goes, and what is left where a run died."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from dml_hpc.mpi import Alone
from dml_hpc.store import live as module
from dml_hpc.store.live import FORMAT, LIVE, Live, is_gone, process_start, read_live


class Two(Alone):
    """Rank 0 of two."""

    size = 2

    def gather(self, own):
        return [own, "node1"]


class Run:
    """What a run tells its live file, by a clock that passes when it is told to."""

    def __init__(self, folder, monkeypatch, steps=100):
        self.now, self.loss, self.examples = 50.0, 0.7, 0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)
        self.live = Live(folder / "runs.jsonl", "train", ["train", "d"], 1_700_000_000.25)
        self.live.begin(Two(), 10, steps, lambda: {"epoch": 1.5, "loss": self.loss, "examples": self.examples},
                        lambda: [1.0, 2.0, 3.0, 4.0, 0.0])

    def meet(self, step, table=((1, 2, 3, 4, 1), (1, 2, 3, 4, 2))):
        self.live.met(step, np.array(table, float))
        self.live._pending.result(5)
        return self.told()

    def told(self):
        self.live._pending.result(5)
        return json.loads(self.live.path.read_text())


@pytest.fixture
def run(tmp_path, monkeypatch):
    made = Run(tmp_path, monkeypatch)
    made.told()
    return made


def test_it_says_where_the_run_is(run):
    run.now, run.examples, run.loss = 60.0, 5000, 0.5
    told = run.meet(35)
    assert told["format"] == FORMAT and told["state"] == "running"
    assert told["command"] == "train" and told["arguments"] == ["train", "d"]
    assert told["started"] == "2023-11-14T22:13:20.250+00:00"
    assert (told["ranks"], told["hosts"][1], told["pid"]) == (2, "node1", os.getpid())
    assert (told["step"], told["steps"], told["epoch"], told["loss"], told["losses"]) == (35, 100, 1.5, 0.5, [0.7, 0.5])
    assert told["examples_per_s"] == 500 and told["elapsed_s"] == 10
    assert told["eta_s"] == pytest.approx(65 * 10 / 25), "25 steps took 10 s"
    # Of collectives not divided yet the shortest time is communication, the rest of it waiting.
    assert told["per_rank"] == [{"read": 1, "compute": 2, "communicate": 4, "wait": 4},
                                {"read": 1, "compute": 2, "communicate": 4, "wait": 5}]
    assert run.live.own() == [1.0, 2.0, 3.0, 4.0, 0.0]


def test_it_is_written_twice_a_second_at_most(run):
    seen = []
    for at in range(1, 41):
        run.now = 50 + at * 0.125
        seen.append(run.meet(10 + at)["step"])
    assert len(set(seen)) == 11, "5 s, and the first one"


def test_losses_stay_few_and_span_the_run(run):
    for at in range(1, 1001):
        run.now, run.loss = 50.0 + at, 1000.0 - at
        told = run.meet(11)
    assert 16 < len(told["losses"]) <= module.MOST_LOSSES and told["losses"] == sorted(told["losses"], reverse=True)
    assert told["losses"][0] > 950 and told["losses"][-1] < 50


def test_what_is_no_number_is_null(run):
    run.now, run.loss = 60.0, math.nan
    assert run.meet(11)["loss"] is None


def test_it_goes_when_the_run_is_over_and_stays_when_it_failed(run, tmp_path):
    run.live.complete(100)
    assert run.told()["state"] == "finished" and run.told()["step"] == 100
    run.live.fail(RuntimeError("the\ndisk is full"))
    assert run.told()["state"] == "failed" and run.told()["error"] == "the disk is full"
    run.live.remove()
    assert os.listdir(tmp_path) == []


def test_one_that_never_began_writes_nothing(tmp_path):
    live = Live(tmp_path / "runs.jsonl", "train", [], 0.0)
    live.fail(ValueError("no such data"))
    live.remove()
    assert os.listdir(tmp_path) == []


def test_the_file_of_another_run_that_goes_on_is_left_alone(tmp_path, monkeypatch):
    path = tmp_path / f"runs.jsonl{LIVE}"
    other = {"format": FORMAT, "state": "running", "host": "elsewhere", "pid": 1}
    path.write_text(json.dumps(other))
    second = Run(tmp_path, monkeypatch).live
    second.met(11, np.zeros((2, 5)))
    second.remove()
    assert json.loads(path.read_text()) == other
    path.write_text("my own notes")
    Run(tmp_path, monkeypatch).live.remove()
    assert path.read_text() == "my own notes"
    # One that is old, or whose process has died, is nobody's.
    path.write_text(json.dumps(other))
    os.utime(path, (time.time() - 60, time.time() - 60))
    assert Run(tmp_path, monkeypatch).told()["arguments"] == ["train", "d"]


def test_a_folder_that_cannot_be_written_ends_no_run(run, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_replace", full)
    run.now = 60.0
    run.live.met(20, np.zeros((2, 5)))
    run.live.fail(ValueError())


def test_a_process_that_has_ended_is_gone_and_so_is_a_later_one_of_its_number(run):
    told = run.meet(10)
    assert read_live(run.live.path) == told and not is_gone(told)
    assert is_gone({**told, "process": told["process"] - 1}), "another process has the number now"
    assert not is_gone({**told, "host": "elsewhere", "pid": 1 << 22}), "nothing is known of other hosts"
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    assert is_gone({**told, "pid": child.pid}) and process_start(child.pid) is None
