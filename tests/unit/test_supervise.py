"""A team that dies is started again, as often as it makes sense, and signals reach it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dml_hpc.commands import supervise
from dml_hpc.console import Console

TOOL = Path(sys.executable).parent / "dml-hpc"


class Said(Console):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, line: str = "") -> None:
        """See `Console.say`."""
        self.lines.append(line)


def watched(folder: Path, script: str, **options: object) -> tuple[dict, Said]:
    """Supervise a shell script, which finds the checkpoint folder in $2."""
    said = Said()
    found = supervise.run(said, ["sh", "-c", script, "--checkpoint", str(folder)], **{"max_restarts": 3, "pause": 0.01,
                                                                                     **options})
    return found, said


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "kept").mkdir()
    return tmp_path / "kept"


def test_a_team_that_succeeds_is_run_once(folder):
    found, said = watched(folder, "exit 0")
    assert (found["exit_code"], found["restarts"], found["deaths"], said.lines) == (0, 0, [], [])


def test_a_team_that_dies_is_started_again_and_told_to_resume_and_to_replace_its_output(folder):
    script = ('echo "$DML_HPC_RESUME,$DML_HPC_OVERWRITE" >> "$1/starts"; n=$(wc -l < "$1/starts"); '
              'echo $((n * 10)) > "$1/progress"; [ $n -ge 3 ] || kill -9 $$')
    found, said = watched(folder, script)
    assert found["exit_code"] == 0 and found["restarts"] == 2
    assert [death["step"] for death in found["deaths"]] == [10, 20]
    assert [death["exit_code"] for death in found["deaths"]] == [137, 137]
    assert (folder / "starts").read_text().split() == [",", "1,1", "1,1"]
    assert "killed by SIGKILL" in said.lines[0] and "after step 10" in said.lines[0]
    assert "the beginning" in said.lines[1]


def test_one_that_comes_no_further_is_given_up_after_three_teams(folder):
    found, said = watched(folder, 'echo 7 > "$1/progress"; exit 3', max_restarts=9)
    assert found["exit_code"] == 3 and len(found["deaths"]) == 3 and found["restarts"] == 2
    assert said.lines[-1].startswith("gave up  3 teams in a row")


def test_so_many_restarts_are_enough(folder):
    script = 'echo x >> "$1/n"; wc -l < "$1/n" > "$1/progress"; exit 3'
    found, said = watched(folder, script, max_restarts=2)
    assert len(found["deaths"]) == 3 and found["restarts"] == 2 and "(--max-restarts)" in said.lines[-1]


@pytest.mark.parametrize("code", [2, 75])
def test_a_mistake_and_a_job_that_was_told_to_stop_are_no_deaths(folder, code):
    found, _ = watched(folder, f"exit {code}")
    assert (found["exit_code"], found["restarts"], found["deaths"]) == (code, 0, [])


def test_what_a_dead_launcher_leaves_behind_is_ended_first(folder):
    script = ('if [ -e "$1/left" ]; then case $(cut -d" " -f3 "/proc/$(cat "$1/left")/stat" 2>/dev/null) in '
              '""|Z) exit 0;; esac; exit 2; fi; sleep 600 & echo $! > "$1/left"; exit 3')
    found, _ = watched(folder, script)
    assert found["exit_code"] == 0 and found["restarts"] == 1


@pytest.mark.parametrize(("number", "code", "seen"), [(signal.SIGTERM, 75, "USR1"), (signal.SIGUSR1, 75, "USR1"),
                                                      (signal.SIGINT, 130, "INT")])
def test_signals_are_passed_on_and_end_it(folder, number, code, seen):
    script = ('trap "echo USR1 > $1/seen; exit 75" USR1; trap "echo INT > $1/seen; exit 1" INT; echo up; '
              'while :; do sleep 0.3; : > "$1/waits"; done')
    process = subprocess.Popen([TOOL, "supervise", "--json", "--", "sh", "-c", script, "--checkpoint", str(folder)],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    while not (folder / "waits").exists():  # so long, the supervisor may not have seen it start
        pass
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert (folder / "seen").read_text().strip() == seen
    assert json.loads(out.splitlines()[-1])["restarts"] == 0
    assert "there is no checkpoint yet" in err


def test_a_signal_between_two_teams_ends_it(folder):
    process = subprocess.Popen([TOOL, "supervise", "--", "sh", "-c", "exit 3", "--checkpoint", str(folder)],
                               stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert process.stdout is not None
    while not process.stdout.readline().startswith("restart"):
        pass
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 75 and "stopped  by SIGTERM" in out


@pytest.mark.parametrize(("words", "told"), [(["true"], "--checkpoint"), (["no-such-program", "--checkpoint", "x"],
                                                                          "cannot be started")])
def test_what_cannot_be_supervised_is_refused_in_one_line(tmp_path, words, told):
    done = subprocess.run([TOOL, "supervise", "--", *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and told in done.stderr and done.stderr.count("\n") == 1


FINISHED = """
import os, signal, sys
from dml_hpc.launch import Launch
from dml_hpc.supervise import last_word, supervised
def work():
    last_word(75)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    os.kill(os.getppid(), signal.SIGTERM)
    signal.pause()
sys.exit(supervised(work, Launch(0, 2, "")))
"""


def test_a_rank_that_is_told_to_stop_while_it_tidies_up_ends_as_it_has_said():
    """`srun --kill-on-bad-exit` does that to all others when the first of them has ended, be it in good order."""
    done = subprocess.run([sys.executable, "-c", FINISHED], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (75, "")
