"""``dml-hpc top``: what it shows of a live file, in a terminal, in a pipe and as JSON, and how it ends."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from dml_hpc.cli import main
from dml_hpc.reports.live_view import ended, screen, sparkline
from dml_hpc.store.live import FORMAT, process_start

SPLITS = [(1.0, 6.0, 1.0, 2.0), (1.0, 8.0, 1.0, 0.0), (0.0, 5.0, 1.0, 4.0)]


def live(**more: Any) -> dict[str, Any]:
    phases = ("read", "compute", "communicate", "wait")
    return {"format": FORMAT, "state": "running", "command": "train", "arguments": ["train", "my data", "-o", "m.h5"],
            "started": "2026-01-01T00:00:00.000+00:00", "ranks": 3, "hosts": ["node0", "node1", "node2"],
            "host": platform.node(), "pid": os.getpid(), "process": process_start(os.getpid()), "steps": 2000,
            "step": 500, "epoch": 2.5, "loss": 0.25, "losses": [0.7, 0.4, 0.3, 0.25], "examples_per_s": 1_234_567.0,
            "elapsed_s": 75.0, "eta_s": 225.0, "error": None, "updated": time.time(),
            "per_rank": [dict(zip(phases, split, strict=True)) for split in SPLITS], **more}


def shown(told: dict[str, Any], quiet_s: float = 0.0, gone: bool = False, **more: Any) -> str:
    return "\n".join(screen(told, quiet_s, gone, **more))


def test_a_person_sees_how_far_it_is_and_who_is_slow():
    text = shown(live())
    for part in ("running, 3 ranks on 3 hosts: dml-hpc train 'my data' -o m.h5", "step 500 of 2,000, epoch 2.5 of 10",
                 "1 min 15 s", "25%, 3 min 45 s left", "loss 0.25  █▃▂▁", "1,234,567 examples/s"):
        assert part in text
    rows = [line for line in text.splitlines() if line.startswith("   ") and "busy" in line]
    assert [line.split()[:2] for line in rows] == [["1", "node1"], ["0", "node0"], ["2", "node2"]], "the busiest first"
    assert rows[0].endswith("busy  90%  wait   0%") and rows[2].endswith("busy  50%  wait  40%")
    assert [rows[2].count(block) for block in "▓█▒░"] == [0, 30, 6, 24] and rows[0].count("█") == 48


@pytest.mark.parametrize("width", [20, 40, 63, 80, 200])
@pytest.mark.parametrize("height", [1, 4, 8, 24])
@pytest.mark.parametrize("colour", [False, True])
def test_it_fits_the_terminal(width, height, colour):
    many = live(ranks=300, hosts=[f"node{i:04}" for i in range(300)], per_rank=live()["per_rank"] * 100)
    lines = screen(many, 0.0, False, width, height, colour)
    assert len(lines) <= height
    assert max(len(re.sub(r"\x1b\[[\d;]*m", "", line)) for line in lines) <= width
    assert any("\x1b" in line for line in lines) is (colour and height >= 8)
    if height == 24:
        assert re.match(r" +and \d+ ranks", lines[-1])


def test_what_has_gone_wrong_is_said():
    assert "no news for 12 s: rank 0 is gone" in shown(live(), 12.0, gone=True)
    assert "no news for 2 min 00 s: a step takes long" in shown(live(), 120.0)
    assert "no news" not in shown(live(), 3.0)
    assert "failed: the disk is full" in shown(live(state="failed", error="the disk is full"), 99.0, gone=True)
    assert "being written" in shown(live(state="finished"))


@pytest.mark.parametrize("strange", [
    {}, {"per_rank": "none"}, {"per_rank": [None, {"read": "x"}, {"wait": -1}]}, {"hosts": 3}, {"losses": [None, "x"]},
    {"steps": None, "eta_s": None}, {"steps": 0}, {"step": "many"}, {"loss": None, "losses": []}, {"epoch": None},
    {"ranks": -1}, {"arguments": None}, {"elapsed_s": 1e40}])
def test_what_stands_in_the_file_is_not_trusted(strange):
    assert shown(live(**strange)) and shown({"format": FORMAT})
    evil = live(arguments=["\x1b]0;owned\x07", "a\nb"], hosts=["\x1b[2J"] * 3, error="\x1b[31m", state="failed")
    assert "\x1b" not in shown(evil) and "\x07" not in shown(evil)


def test_a_curve_keeps_its_ends():
    assert sparkline([1.0]) == "" and sparkline([2.0, 2.0]) == "▁▁"
    many = sparkline([float(1000 - at) for at in range(1000)])
    assert len(many) == 32 and many[0] == "█" and many[-1] == "▁"


def test_the_last_line_of_a_run():
    assert ended({"command": "train", "ranks": 2, "steps": 58_800, "work_s": 80.1, "loss": 0.03125,
                  "examples_per_s": 748_000.4}) == (
        "finished train: 2 ranks, 58,800 steps, 1 min 20 s, loss 0.03125, 748,000 examples/s")
    assert ended({"command": "svd", "ranks": 1, "passes_over_data": 7, "work_s": 3.0}) == (
        "finished svd: 1 rank, 7 passes, 3.00 s")
    assert ended({"command": "mf", "ranks": 2, "epochs": 20, "work_s": 3.0, "updates_per_s": 5e7}) == (
        "finished mf: 2 ranks, 20 epochs, 3.00 s, 50,000,000 ratings/s")


RECORD = {"command": "train", "ranks": 2, "seconds": 3.0, "work_s": 2.0, "steps": 10, "loss": 0.5,
          "per_rank": [{"read": 0.0, "compute": 1.0, "communicate": 0.5, "wait": 0.5}] * 2,
          "time_split": {"read": 0.0, "compute": 1.0, "communicate": 0.5, "wait": 0.5}}


def test_without_a_terminal_it_is_shown_once(tmp_path, capsys):
    record = tmp_path / "runs.jsonl"

    def top(*arguments: object) -> tuple[int, str, str]:
        code = main(["top", *map(str, arguments)])
        return code, *capsys.readouterr()

    code, out, err = top(record)
    assert code == 2 and out == "" and err.count("\n") == 1 and f"--record {record}" in err
    (tmp_path / "runs.jsonl.live").write_text(json.dumps(live()))
    code, out, _ = top(record)
    assert code == 0 and "step 500 of 2,000" in out and "\x1b" not in out
    told = json.loads(top(tmp_path / "runs.jsonl.live", "--json")[1])
    assert told["command"] == "top" and told["live"]["step"] == 500 and told["gone"] is False
    assert told["record"] is None
    (tmp_path / "runs.jsonl.live").unlink()
    record.write_text(json.dumps(RECORD) + "\n")
    code, out, _ = top(record)
    assert code == 0 and out.startswith("finished train: 2 ranks, 10 steps, 2.00 s, loss 0.5\n")
    assert "Measured at 2 ranks only" in out
    assert json.loads(top(record, "--json")[1])["record"] == RECORD


class Screen:
    """``dml-hpc top`` in a terminal of 100 × 30."""

    def __init__(self, record: Path):
        self.seen = ""
        self._here, there = pty.openpty()
        fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        self.process = subprocess.Popen([sys.executable, "-m", "dml_hpc", "top", str(record)], stdin=there,
                                        stdout=there, stderr=there, env={**os.environ, "TERM": "xterm-256color"})
        os.close(there)

    def until(self, text: str) -> str:
        """Return what was written until ``text`` has come."""
        end = time.monotonic() + 60
        while text not in self.seen:
            if not select.select([self._here], [], [], max(end - time.monotonic(), 0))[0]:
                raise AssertionError(f"no {text!r} in {self.seen!r}")
            self.more()
        return self.seen

    def more(self) -> bool:
        try:
            self.seen += os.read(self._here, 1 << 16).decode(errors="replace")
        except OSError:  # the other side has closed it
            return False
        return True

    def type(self, keys: bytes) -> None:
        os.write(self._here, keys)

    def end(self) -> int:
        while self.more():
            pass
        os.close(self._here)
        return self.process.wait(60)


def test_a_terminal_shows_the_run_until_it_ends(tmp_path):
    record, file = tmp_path / "runs.jsonl", tmp_path / "runs.jsonl.live"
    file.write_text(json.dumps(live()))
    screen = Screen(record)
    screen.until("q leaves")
    assert "step 500 of 2,000" in screen.seen and "\x1b[38;5;" in screen.seen
    (tmp_path / "new").write_text(json.dumps(live(step=600)))
    os.replace(tmp_path / "new", file)
    screen.until("step 600 of 2,000")
    record.write_text(json.dumps(RECORD) + "\n")
    file.unlink()
    assert screen.end() == 0
    after = screen.seen.rpartition("\x1b[?1049l")[2]
    assert after.startswith("finished train: 2 ranks, 10 steps") and "\x1b[?25h" in screen.seen


@pytest.mark.parametrize(("how", "code"), [("q", 0), ("INT", 130)])
def test_leaving_gives_the_terminal_back(tmp_path, how, code):
    (tmp_path / "runs.jsonl.live").write_text(json.dumps(live()))
    screen = Screen(tmp_path / "runs.jsonl")
    screen.until("step 500")
    screen.type(b"q") if how == "q" else screen.process.send_signal(signal.SIGINT)
    assert screen.end() == code
    assert screen.seen.rindex("\x1b[?1049l") > screen.seen.rindex("\x1b[?1049h")


def test_a_run_that_dies_is_told_of(tmp_path):
    file = tmp_path / "runs.jsonl.live"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        file.write_text(json.dumps(live(pid=other.pid, process=process_start(other.pid))))
        screen = Screen(tmp_path / "runs.jsonl")
        screen.until("step 500")
        other.communicate(b"\n")
    assert screen.end() == 1
    assert "rank 0 is gone" in screen.seen.rpartition("\x1b[?1049l")[2]


@pytest.mark.maths
@pytest.mark.job
def test_a_job_is_watched_from_its_record_to_its_end(start_mpirun, two_classes, tmp_path):
    record = tmp_path / "runs.jsonl"
    job = start_mpirun(2, "-m", "dml_hpc", "train", two_classes, "-o", tmp_path / "m.h5", "--time-budget", 3,
                       "--allreduce", "mpi", "--record", record)
    live_file = tmp_path / "runs.jsonl.live"
    while not live_file.exists():
        with suppress(subprocess.TimeoutExpired):
            job.wait(0.02)
            raise AssertionError(job.communicate())
    told = json.loads(live_file.read_text())
    assert told["state"] == "running" and told["ranks"] == 2 and "--time-budget" in told["arguments"]
    screen = Screen(record)
    screen.until("epoch")
    assert job.communicate()[0] is not None and job.returncode == 0
    assert screen.end() == 0 and "finished train: 2 ranks" in screen.seen
    assert json.loads(record.read_text())["started"] == told["started"] and not live_file.exists()
