"""``dml-hpc bench scaling``: a program stands in for mpirun, and leaves a record; then the real thing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_support import write_dataset
from test_emulated_cluster import MISSING

from dml_hpc.cli import main
from dml_hpc.data.ratings.opened import StoredRatings, open_ratings
from dml_hpc.mpi import Alone

TOOL = Path(sys.executable).parent / "dml-hpc"
STAND_IN = f"""#!{sys.executable} -S
import json, os, sys
here = os.path.dirname(os.path.abspath(__file__))
if "--mpi=list" in sys.argv:
    sys.exit(print("pmi2 pmix"))
tasks = [int(word.partition("=")[2]) for word in sys.argv if word.startswith("--ntasks=")]
ranks = tasks[0] if tasks else int(sys.argv[1])
verb = next(at for at, word in enumerate(sys.argv) if word.endswith(("dml-hpc", "dml_hpc"))) + 1
words = sys.argv[verb:]
with open(here + "/calls", "a") as calls:
    calls.write(json.dumps({{"ranks": ranks, "before": sys.argv[1:verb], "words": words}}) + "\\n")
number = len(open(here + "/calls").readlines())
if os.path.exists(here + "/trouble"):
    exec(open(here + "/trouble").read())
with open(words[words.index("--record") + 1], "w") as record:
    json.dump({{"command": words[0], "ranks": ranks, "seconds": 9.0, "work_s": 8.0 / ranks, "rows": 8,
               "data": words[-1] if words[0] == "mf" else "d", "arguments": words}}, record)
"""


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder to work in, with a data set ``d`` of 8 shards of 10 rows; ``../launch`` stands in for mpirun."""
    work = tmp_path / "work"
    work.mkdir()
    rng = np.random.default_rng(5)
    write_dataset(work / "d", rng.standard_normal((80, 3)), rng.integers(0, 2, 80), [10] * 8)
    (work / "dml_hpc.py").write_text("raise SystemExit('`python -m dml_hpc` would start this')")
    program = tmp_path / "launch"
    program.write_text(STAND_IN)
    program.chmod(0o755)
    for name in list(os.environ):
        if name.startswith(("SLURM_", "DML_HPC_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(work)
    return work


def verb(*words: object) -> subprocess.CompletedProcess[str]:
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        code = main(["bench", "scaling", *map(str, words)])
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def measured(*words: object) -> subprocess.CompletedProcess[str]:
    """Measure with the program that stands in."""
    return verb("--launcher", "../launch {ranks}", *words)


def calls() -> list[dict[str, Any]]:
    path = Path("../calls")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def records(name: str = "scaling.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


def test_numbers_of_ranks_take_turns_after_a_round_that_does_not_count(here):
    done = measured("--ranks", "4,1,2", "--repeats", 3, "--json", "--", "train", "d", "--epochs", 2)
    assert done.returncode == 0, done.stderr
    assert [call["ranks"] for call in calls()] == [1, 2, 4, 1, 2, 4, 2, 4, 1, 4, 1, 2]
    told = records()
    assert [(one["ranks"], one["round"]) for one in told] == [(1, 1), (2, 1), (4, 1), (2, 2), (4, 2), (1, 2), (4, 3),
                                                              (1, 3), (2, 3)]
    assert {one["scaling"] for one in told} == {"strong"}
    assert told[0]["arguments"] == ["train", "--overwrite", "d", "--epochs", "2"]
    assert told[1]["started_by"] == "../launch 2"
    found = json.loads(done.stdout)
    assert (found["runs"], found["records"], found["scaling"]) == (9, "scaling.jsonl", "strong")
    assert [(one["ranks"], one["seconds_median"], one["speedup"], one["efficiency"], one["repeats"])
            for one in found["results"]] == [(1, 8.0, 1.0, 1.0, 3), (2, 4.0, 2.0, 1.0, 3), (4, 2.0, 4.0, 1.0, 3)]
    assert sorted(os.listdir()) == ["d", "dml_hpc.py", "scaling.jsonl"], "outputs that were left out are gone"


def test_calls_append_to_one_file_and_a_table_tells_of_this_call(here):
    assert measured("--ranks", "1", "--repeats", 1, "--record", "r.jsonl", "--", "train", "d").returncode == 0
    done = measured("--ranks", "1,2", "--repeats", 3, "--record", "r.jsonl", "--", "svd", "d", "-k", 2)
    assert [one["command"] for one in records("r.jsonl")] == ["train"] + ["svd"] * 6
    table = [line.split() for line in done.stdout.splitlines() if line.split()[:2] in (["1", "3"], ["2", "3"])]
    assert [(row[0], row[2]) for row in table] == [("1", "8.00"), ("2", "4.00")], done.stdout
    assert "95 % interval" in done.stdout and "dml-hpc report r.jsonl -o report.html" in done.stdout


def test_an_output_that_is_named_is_written_there_and_never_replaced_unasked(here):
    assert measured("--ranks", 1, "--repeats", 1, "--", "train", "d", "-o", "m.h5").returncode == 0
    words = calls()[0]["words"]
    assert words.count("-o") == 1 and words[words.index("-o") + 1] == "m.h5" and "--overwrite" in words
    Path("m.h5").write_text("mine")
    done = measured("--ranks", 1, "--", "train", "d", "-o", "m.h5")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "m.h5 exists" in done.stderr
    assert measured("--ranks", 1, "--repeats", 1, "--", "train", "d", "-o", "m.h5", "--overwrite").returncode == 0


@pytest.mark.parametrize("words", [["allreduce"], ["bench", "allreduce"]])
def test_an_all_reduce_is_called_by_either_name(here, words):
    assert measured("--ranks", 1, "--repeats", 1, "--", *words, "--sizes", "1K").returncode == 0
    assert calls()[0]["words"][:2] == ["bench", "allreduce"]
    assert records()[0]["arguments"] == ["bench", "allreduce", "--sizes", "1K"]


def test_weak_scaling_gives_each_rank_as_many_shards(here):
    # The same word is a value of an option, too.
    done = measured("--weak", "--ranks", "1,2,4", "--repeats", 1, "--", "train", "--validation", "d", "d")
    assert done.returncode == 0, done.stderr
    for call in calls():
        words = call["words"]
        assert words[words.index("--validation") + 1] == "d"
        assert [word for word in words if "part-" in word] == [f"d/part-{n:05d}.h5" for n in range(2 * call["ranks"])]
    assert {one["scaling"] for one in records()} == {"weak"}
    assert "each rank has 2 shards, about 20 rows" in done.stdout


def test_weak_scaling_leaves_over_what_cannot_be_shared_out(here):
    done = measured("--weak", "--ranks", "1,3", "--repeats", 1, "--", "svd", "d", "-k", 1)
    assert "2 of 8 shards are left over" in done.stdout
    assert [sum("part-" in word for word in call["words"]) for call in calls()[:2]] == [2, 6]


@pytest.fixture
def rated(here) -> Path:
    """A folder to work in, with ratings ``r`` in stripes of 7 × 3 and 3 shards, their ids words and numbers."""
    rng = np.random.default_rng(3)
    Path("r.csv").write_text("who,what,how\n" + "".join(
        f"u{user},{item},{rng.integers(1, 6)}\n" for user in range(210) for item in rng.choice(12, 4, replace=False)))
    with redirect_stdout(StringIO()):
        assert main(["data", "import", "r.csv", "-o", "r", "--user", "who", "--item", "what", "--rating", "how",
                     "--grid", "7x3", "--shards", "3"]) == 0
    return here


def triples(path: Path) -> tuple[set[tuple[str, int, float]], StoredRatings]:
    """Return what a data set of ratings holds, (user, item, rating), and the data set."""
    ratings, found = open_ratings(Alone(), path), set()
    users, items = ratings.user_ids(), ratings.item_ids()
    for u, first in enumerate(ratings.grid.user_bounds[:-1]):
        for i, start in enumerate(ratings.grid.item_bounds[:-1]):
            block = ratings.block(u, i)
            found |= set(zip(users[first + block.users].tolist(), items[start + block.items].tolist(),
                             block.ratings.tolist(), strict=True))
    assert len(found) == ratings.grid.ratings
    return found, ratings


def test_weak_scaling_gives_each_rank_as_many_users_with_all_their_ratings(rated):
    Path("../trouble").write_text("import shutil; shutil.copytree(words[-1], f'{here}/seen-{ranks}',"
                                  "dirs_exist_ok=True)")
    done = measured("--weak", "--ranks", "1,3", "--repeats", 1, "--", "mf", "-k", 2, "r")
    assert done.returncode == 0, done.stderr
    assert "each rank has 2 stripes of users, about 60 users and" in done.stdout
    assert "of the same 12 items; 1 of 7 are left over" in done.stdout
    everything, whole = triples(Path("r"))
    seen = {ranks: triples(Path(f"../seen-{ranks}")) for ranks in (1, 3)}
    for found, part in seen.values():
        own = set(part.user_ids().tolist())
        assert found == {one for one in everything if one[0] in own}
        np.testing.assert_array_equal(part.item_ids(), whole.item_ids())
        assert part.grid.mean == pytest.approx(np.mean([rating for _, _, rating in found]))
    assert len(seen[3][1].user_ids()) == 3 * len(seen[1][1].user_ids()) == 180
    assert len(seen[3][0]) == pytest.approx(3 * len(seen[1][0]), rel=0.05)
    told = records()
    assert {one["scaling"] for one in told} == {"weak"} and {one["data"] for one in told} == {"r"}
    assert {one["arguments"][-1] for one in told} == {"r"}
    assert sorted(os.listdir()) == ["d", "dml_hpc.py", "r", "r.csv", "scaling.jsonl"], "parts of the ratings are gone"
    assert main(["data", "verify", "../seen-1", "../seen-3"]) == 0


def test_all_ratings_are_taken_as_they_are_where_no_stripe_is_left_over(rated):
    assert measured("--weak", "--ranks", "1,7", "--repeats", 1, "--", "mf", "r").returncode == 0
    assert [call["words"][-1] == "r" for call in calls()] == [False, True, False, True]


def test_too_few_or_unequal_stripes_of_users_are_refused_for_weak_scaling(rated):
    done = measured("--weak", "--ranks", "1,8", "--", "mf", "r")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1) and "--grid 8x16" in done.stderr
    Path("r.csv").write_text("u,i\n" + "".join(f"{n},{n}\n" for n in range(50)) + "".join(
        f"0,{n}\n" for n in range(50, 90)))
    with redirect_stdout(StringIO()):
        assert main(["data", "import", "r.csv", "-o", "heavy", "--user", "u", "--item", "i", "--grid", "4x2"]) == 0
    done = measured("--weak", "--ranks", "1,4", "--", "mf", "heavy")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1) and "too unequal" in done.stderr


REFUSED = [
    (["--", "train", "d"], "give --ranks"),
    (["--ranks", "1,two", "--", "train", "d"], "such as 1,2,4"),
    (["--ranks", "0", "--", "train", "d"], "such as 1,2,4"),
    (["--ranks", "2,2", "--", "train", "d"], "twice"),
    (["--ranks", "1", "--repeats", "0", "--", "train", "d"], "--repeats"),
    (["--ranks", "1"], "Missing argument"),
    (["--ranks", "1", "--", "trai", "d"], "did you mean 'train'?"),
    (["--ranks", "1", "--", "doctor"], "is not one of train, svd"),
    (["--ranks", "1", "--", "train"], "Missing argument 'DATA"),
    (["--ranks", "1", "--", "train", "d", "--epoch", "2"], "No such option '--epoch'"),
    (["--ranks", "1", "--", "train", "d", "--record", "x"], "--record stands before"),
    (["--ranks", "1", "--", "train", "d", "--checkpoint", "c"], "--checkpoint is for one run"),
    (["--ranks", "1", "--", "train", "d", "--elastic"], "--elastic is for one run"),
    (["--ranks", "1", "--", "svd", "d", "-k", "2", "-o", "d"], "choose another -o"),
    (["--ranks", "1", "--rate", "1gbit", "--", "train", "d"], "--emulate-hosts"),
    (["--ranks", "1", "--launcher", "srun", "--", "train", "d"], "salloc"),
    (["--ranks", "1", "--launcher", "mpirun -n 2", "--", "train", "d"], "{ranks}"),
    (["--ranks", "1", "--launcher", "nowhere {ranks}", "--", "train", "d"], "there is no nowhere"),
    (["--ranks", "1", "--ranks-per-node", "2", "--", "train", "d"], "-ppn 2"),
    (["--ranks", "3", "--emulate-hosts", "--ranks-per-host", "2", "--", "train", "d"], "a multiple of it"),
    (["--ranks", "1", "--emulate-hosts", "--launcher", "mpirun", "--", "train", "d"], "a launcher of their own"),
    (["--ranks", "1", "--record", "nowhere/r.jsonl", "--", "train", "d"], "mkdir -p"),
    (["--ranks", "1", "--record", "d/manifest.json", "--", "train", "d"], "something else than run records"),
    (["--ranks", "1", "--weak", "--", "allreduce"], "--weak"),
    (["--ranks", "1", "--weak", "--", "mf", "d"], "holds rows of features"),
    (["--ranks", "1", "--weak", "--", "mf", "d", "--test", "d"], "leave it out"),
    (["--ranks", "1", "--weak", "--", "train", "d", "--steps", "5"], "--epochs"),
    (["--ranks", "1", "--weak", "--", "train", "nowhere"], "nowhere does not exist"),
    (["--ranks", "1,9", "--weak", "--", "train", "d"], "dml-hpc data merge d -o NEW --shards 9"),
]


@pytest.mark.parametrize(("words", "said"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_what_could_not_run_is_refused_in_one_line(here, words, said):
    before = sorted(os.listdir())
    done = verb(*words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done
    assert said in done.stderr
    assert calls() == [] and sorted(os.listdir()) == before


def test_shards_of_unequal_rows_are_refused_for_weak_scaling(here, two_classes):
    done = measured("--weak", "--ranks", "2,3", "--", "train", two_classes)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "too unequal" in done.stderr and "data merge" in done.stderr


def test_a_run_that_fails_ends_all_with_its_code_and_words(here):
    Path("../trouble").write_text("if number == 5:\n    sys.exit(print('rank 1 died', file=sys.stderr) or 7)")
    done = measured("--ranks", "1,2", "--repeats", 3, "--", "train", "d")
    assert done.returncode == 7
    assert done.stderr.splitlines() == ["rank 1 died", "dml-hpc: the run on 2 ranks, round 2, failed with exit code 7; "
                                        "2 records of runs before stay in scaling.jsonl"]
    assert len(records()) == 2 and len(calls()) == 5
    assert sorted(os.listdir()) == ["d", "dml_hpc.py", "scaling.jsonl"]


def test_a_mistake_that_only_the_run_sees_is_one_line(here):
    Path("../trouble").write_text("sys.exit(print('dml-hpc: d has no such thing', file=sys.stderr) or 2)")
    done = measured("--ranks", "1,2", "--", "train", "d")
    assert (done.returncode, done.stderr) == (2, "dml-hpc: d has no such thing (1 rank, the round that does not "
                                                 "count)\n")
    assert not Path("scaling.jsonl").exists()


@pytest.mark.parametrize(("trouble", "said"), [
    ("sys.exit(0)", "has ended without a record"), ("ranks = 1", "had 1: the launcher and this Python's MPI")])
def test_a_launcher_that_lies_is_found_out(here, trouble, said):
    Path("../trouble").write_text(trouble)
    done = measured("--ranks", "2", "--", "train", "d")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1) and said in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_told_to_stop_it_ends_its_run_and_leaves_whole_lines(here, number, code):
    os.mkfifo("../fifo")
    Path("../trouble").write_text("if number == 4:\n    import time\n    with open(here + '/fifo', 'w') as fifo:\n"
                                  "        print(os.getpid(), file=fifo)\n    time.sleep(999)")
    process = subprocess.Popen([TOOL, "bench", "scaling", "--launcher", "../launch {ranks}", "--ranks", "1,2", "--",
                                "train", "d"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        child = int(Path("../fifo").read_text())
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == code and said.count("\n") == 1, said
    assert [one["ranks"] for one in records()] == [1]
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    assert sorted(os.listdir()) == ["d", "dml_hpc.py", "scaling.jsonl"]


def test_in_a_slurm_job_ranks_fill_whole_nodes(here, monkeypatch):
    Path("../srun").symlink_to("launch")
    beside = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{here.parent}:{beside}:{os.environ['PATH']}")
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "3", "SLURM_NTASKS_PER_NODE": "2"}.items():
        monkeypatch.setenv(name, value)
    done = verb("--repeats", 1, "--", "train", "d")
    assert done.returncode == 0, done.stderr
    assert [call["ranks"] for call in calls()] == [2, 4, 6] * 2
    for call in calls():
        assert f"--nodes={call['ranks'] // 2}" in call["before"] and "--ntasks-per-node=2" in call["before"]
        assert any(word.startswith("--mpi=pmi") for word in call["before"])
    assert "has 3 nodes for 2 ranks each" in verb("--ranks", 8, "--", "train", "d").stderr


# The real thing.


@pytest.mark.maths
@pytest.mark.job
def test_ranks_train_more_of_them_than_cores(here, monkeypatch):
    most = len(os.sched_getaffinity(0)) + 1
    done = verb("--ranks", most, "--repeats", 1, "--", "train", "d", "--epochs", 1, "--allreduce", "ring")
    assert done.returncode == 0, done.stderr
    assert f"up to {most} ranks share {most - 1} core" in done.stdout
    told = records()
    assert [(one["command"], one["ranks"], one["round"], one["scaling"], one["rows"]) for one in told] == [
        ("train", most, 1, "strong", 80)]
    assert told[0]["environment"]["threads"] == "1" and told[0]["environment"]["mpi"]
    assert told[0]["model"] is None
    assert f"-n {most}" in told[0]["started_by"]
    assert sorted(os.listdir()) == ["d", "dml_hpc.py", "scaling.jsonl"]
    assert main(["report", "scaling.jsonl", "-o", "report.md"]) == 0


@pytest.mark.maths
@pytest.mark.maths
@pytest.mark.job
def test_ranks_factorise_more_rows_the_more_there_are(here):
    done = verb("--ranks", "1,2", "--repeats", 1, "--weak", "--json", "--", "svd", "d", "-k", 2)
    assert done.returncode == 0, done.stderr
    assert [(one["ranks"], one["rows"], one["scaling"]) for one in records()] == [(1, 40, "weak"), (2, 80, "weak")]
    assert [one["ranks"] for one in json.loads(done.stdout)["results"]] == [1, 2]


@pytest.mark.job
@pytest.mark.skipif(bool(MISSING), reason=MISSING)
def test_emulated_hosts_sum(here):
    done = verb("--ranks", "2", "--repeats", 1, "--emulate-hosts", "--rate", "1gbit", "--", "allreduce", "--sizes",
                "1K", "--reducers", "ring", "--repeats", 1)
    assert done.returncode == 0, done.stderr
    told, = records()
    assert (told["command"], told["ranks"], told["nodes"], told["emulated"], told["rate"], told["ranks_per_host"]) == (
        "bench allreduce", 2, 2, True, "1gbit", 1)
    assert "the emulated hosts share" in done.stdout


@pytest.mark.maths
@pytest.mark.job
@pytest.mark.skipif(bool(MISSING), reason=MISSING)
def test_hosts_that_cannot_be_emulated_are_one_line(here):
    done = verb("--ranks", "2", "--emulate-hosts", "--rate", "fast", "--", "train", "d")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1) and "'fast'" in done.stderr
