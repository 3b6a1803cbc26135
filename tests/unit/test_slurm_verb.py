"""``dml-hpc slurm`` without a Slurm: programs stand in for Slurm's that answer as those of a cluster do."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from ratings_support import import_ratings, low_rank

from dml_hpc.batch.cluster import Nodes, Request, check, clock, seconds
from dml_hpc.batch.job import follow, read
from dml_hpc.batch.script import make_script, settings, templates
from dml_hpc.cli import main
from dml_hpc.errors import UserError

CLUSTER = """\
cpu|cpu*|up|1-00:00:00|1-4|6|idle|64|256000|(null)|
cpu|cpu*|up|1-00:00:00|1-4|2|down*|64|256000|(null)|
gpu|gpu|up|infinite|1-infinite|2|allocated|32|512000|gpu:a100:4(S:0-1)|
gpu|gpu|up|infinite|1-infinite|1|mixed|32|512000|gpu:v100:2,shard:8|
short|short|up|2:00|1-infinite|8|idle|64|256000|(null)|
old|old|drain|infinite|1-infinite|2|idle|8|1000|(null)|
""".replace("|\n", "\n")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in, and a PATH on which there is no Slurm."""
    programs, work = tmp_path / "programs", tmp_path / "work"
    programs.mkdir()
    work.mkdir()
    for name in ("bash", "env", "sh", "cat"):
        (programs / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", str(programs))
    for name in list(os.environ):
        if name.startswith(("SBATCH_", "SLURM_", "DML_HPC_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(work)
    return work


@pytest.fixture
def slurm(here):
    """Slurm's programs: what sbatch was given is kept, and the states of job 17 are those that ``states`` are given."""
    def program(name: str, body: str) -> None:
        path = here.parent / "programs" / name
        head = f"import json, os, pathlib, sys\nwork = pathlib.Path({str(here.parent)!r})\n"
        path.write_text(f"#!{sys.executable} -S\n{head}{body}")
        path.chmod(0o755)

    program("sinfo", f"print({CLUSTER!r}, end='')")
    program("sbatch", """
if "--test-only" in sys.argv:
    (work / "tried").write_text(sys.stdin.read())
    refusal = work / "refusal"
    sys.exit(refusal.read_text() if refusal.exists() else 0)
(work / "submitted").write_text(json.dumps([sys.argv[1:], dict(os.environ), pathlib.Path(sys.argv[-1]).read_text()]))
print("17")
""")
    program("scontrol", """
states = (work / "states").read_text().split("\\n\\n\\n")
if len(states) > 1:
    (work / "states").write_text("\\n\\n\\n".join(states[1:]))
if states[0] == "gone":
    sys.exit("slurm_load_jobs error: Invalid job id specified")
print(states[0])
""")

    def states(*told: str) -> Path:
        (here.parent / "states").write_text("\n\n\n".join(told))
        return here.parent

    states(state("PENDING"))
    return states


def state(name: str, reason: str = "None", code: str = "0:0", restarts: int = 0, log: object = "/dev/null") -> str:
    return f"""JobId=17 JobName=a b JobState=FAKE Reason=x
   UserId=me(1000) GroupId=me(1000) MCS_label=N/A
   JobState={name} Reason={reason} Dependency=(null)
   Requeue=1 Restarts={restarts} BatchFlag=1 Reboot=0 ExitCode={code}
   Partition=cpu AllocNode:Sid=head:0
   NodeList=n[1-2]
   StdErr={log}
   StdOut={log}
   Comment=   JobState=FAKE"""


def verb(*words: object) -> subprocess.CompletedProcess[str]:
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        code = main(["slurm", *map(str, words)])
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def refused(*words: object) -> str:
    """Return the one line with which a command line is refused."""
    done = verb(*words)
    assert (done.returncode, done.stdout) == (2, ""), done
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def set_in(script: str, *commands: str) -> list[str]:
    """Return what a script has set when its own body begins, as bash reads it."""
    head, _, _ = script.partition("# shellcheck source=slurm/job.sh")
    ask = head + "".join(f"\nprintf '%s\\0' {command}" for command in commands)
    return subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True).stdout.split("\0")[:-1]


NASTY = ["it's", 'a "b"', "$(touch pwned)", "`touch pwned`", "a;touch pwned", "-o\nx", "ü * ?", "a\\b", "", "#"]


def test_a_script_runs_the_job_with_its_arguments_letter_by_letter(here):
    folder = here / "it's $(here)"
    for name in ("train_cpu.sbatch", "train_gpu.sbatch", "svd.sbatch", "mf.sbatch", "scaling.sbatch"):
        template = (templates() / name).read_text()
        script = make_script(template, {"nodes": "4"}, folder, {"A_B": "x 'y'"}, NASTY)
        assert set_in(script, '"$@"') == NASTY
        assert set_in(script, '"$SLURM_SUBMIT_DIR"', '"$A_B"') == [str(folder), "x 'y'"]
        assert not (here / "pwned").exists()
        # All else is as the template has it.
        assert {**settings(template), "nodes": "4"} == {key: value for key, value in settings(script).items()
                                                        if key != "chdir"}
        assert script.splitlines()[-1] == template.splitlines()[-1]


@pytest.mark.parametrize("value", ["a\nb", "a\\b", "\x1b[0m"])
def test_what_slurm_could_not_read_in_a_script_is_refused(here, value):
    with pytest.raises(UserError, match="Slurm cannot read"):
        make_script("#!/bin/sh\n#SBATCH --job-name=x\n", {"job-name": value}, here, {}, [])


def test_options_without_a_value_and_options_left_out(here):
    template = "#!/bin/sh\n# old\n#SBATCH --a=1 # why\n#SBATCH --b\n\nbody\n"
    script = make_script(template, {"exclusive": ""}, here, {}, [], ["a"])
    assert settings(script) == {"b": "", "exclusive": "", "chdir": str(here)}
    assert "# old" not in script
    assert script.endswith("\nbody\n")


@pytest.mark.parametrize(("text", "expected"), [
    ("2:00", 120), ("90", 5400), ("1:02:03", 3723), ("1-00:00:00", 86400), ("1-12", 129600), ("2-01:30", 178200),
    ("infinite", float("inf")), ("n/a", float("inf")), ("1:2:3:4", float("inf")), ("", float("inf")),
])
def test_times_are_read_as_slurm_reads_them(text, expected):
    assert seconds(text) == expected


def test_times_are_written_as_slurm_reads_them():
    for time_s in (1, 59, 60, 3599, 3600, 86399, 86400, 1_000_000):
        assert seconds(clock(time_s)) == time_s


ONE = Request(1, 2, 1, 0, "", 0, 3600)


@pytest.fixture(scope="module")
def nodes() -> list[Nodes]:
    from dml_hpc.batch.cluster import _nodes

    return [_nodes(line) for line in CLUSTER.splitlines()]


@pytest.mark.parametrize(("request_", "partition", "said"), [
    (ONE, None, "partition cpu has 8 such nodes"),
    (ONE, "gpu", "partition gpu has 3 such nodes"),
    (ONE._replace(gpu_kind="a100", gpus_per_node=4), "gpu", "partition gpu has 2 such nodes"),
    (ONE._replace(gpus_per_node=2, nodes=3), "gpu", "partition gpu has 3 such nodes"),
    (ONE._replace(time_s=120), "short,gpu", "partition short has 8 such nodes"),
    (ONE, "short,gpu", "partition gpu has 3 such nodes"),
])
def test_a_job_that_can_run_is_told_where(nodes, request_, partition, said):
    assert check(request_, partition, nodes) == said


def test_nodes_that_are_down_are_told(nodes):
    several = [nodes[0]._replace(number=1), nodes[1]]
    assert "of which only 1 can be used now" in check(ONE._replace(nodes=2), None, several)


@pytest.mark.parametrize(("request_", "partition", "said"), [
    (ONE, "gpus", "no partition 'gpus' (did you mean 'gpu'?); there are cpu, gpu, short, old"),
    (ONE, "old", "partition old is drain; those that are up: cpu, gpu, short"),
    (ONE._replace(time_s=7200), "short", "--time 02:00:00 is more than the 00:02:00 of partition short"),
    (ONE._replace(time_s=90000), None, "--time 1-01:00:00 is more than the 1-00:00:00 of partition cpu"),
    (ONE._replace(nodes=9), None, "--nodes 9: partition cpu has 8"),
    (ONE._replace(nodes=5), None, "--nodes 5: partition cpu gives a job 4 at most"),
    (ONE._replace(ranks_per_node=65), None, "65 ranks with 1 each take 65 CPUs a node: those of partition cpu have 64"),
    (ONE._replace(memory_bytes=300 << 30), None, "--mem 307200M: a node of partition cpu has 256000M"),
    (ONE._replace(gpus_per_node=1), None, "no GPU; partitions with such nodes: gpu"),
    (ONE._replace(gpus_per_node=8), "gpu", "--gpus-per-node 8: a node of partition gpu has a100:4"),
    (ONE._replace(gpu_kind="h100", gpus_per_node=1), "gpu", "h100:1: a node of partition gpu has a100:4"),
    (ONE._replace(gpu_kind="a100", gpus_per_node=4, nodes=3), "gpu", "partition gpu has 3, and only 2 of them have"),
])
def test_a_job_that_can_never_run_is_refused_with_what_there_is(nodes, request_, partition, said):
    with pytest.raises(UserError) as caught:
        check(request_, partition, nodes)
    assert said in str(caught.value)


def test_a_script_is_written_checked_and_not_submitted(slurm, two_classes, here):
    done = verb("train", "--nodes", 4, "--ranks-per-node", 32, "--cpus-per-rank", 2, "--time", "2h", "--mem", "100G",
                "--name", "my 'job'", "--exclusive", "--stage", "--json", "--", two_classes, "-o", "m 1.h5")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    script = Path("my 'job'.sbatch").read_text()
    assert (told["script"], told["checked"], told["job_id"]) == ("my 'job'.sbatch", True, None)
    assert "--job-name='my '\"'\"'job'\"'\"''" in script
    found = settings(script)
    assert {key: found[key] for key in ("nodes", "ntasks-per-node", "cpus-per-task", "time", "mem", "exclusive")} == {
        "nodes": "4", "ntasks-per-node": "32", "cpus-per-task": "2", "time": "02:00:00", "mem": "102400M",
        "exclusive": ""}
    assert "partition" not in found
    assert set_in(script, '"$@"') == [str(two_classes), "-o", "m 1.h5"]
    assert set_in(script, '"$DML_HPC_STAGE"', '"$DML_HPC_SLURM"') == ["yes", str(templates())]
    assert (here.parent / "tried").read_text() == script
    assert not (here.parent / "submitted").exists()


def test_on_gpus_there_is_one_rank_each(slurm, two_classes):
    assert verb("train", "--gpus-per-node", "a100:4", "--partition", "gpu", "-o", "s", "--", two_classes, "-o",
                "m.h5").returncode == 0
    script = Path("s").read_text()
    found = settings(script)
    assert (found["gpus-per-node"], found["ntasks-per-node"], found["partition"]) == ("a100:4", "4", "gpu")
    assert "gpus-per-task" not in found
    assert "--device cuda" in script.splitlines()[-1]
    assert verb("svd", "--gpus-per-node", 2, "--partition", "gpu", "-o", "t", "--", two_classes, "-o", "m.h5", "-k",
                3).returncode == 0
    assert set_in(Path("t").read_text(), '"$@"')[:2] == ["--device", "cuda"]
    assert verb("scaling", "--gpus-per-node", 2, "--partition", "gpu", "-o", "u", "--", "svd", two_classes, "-o",
                "m.h5", "-k", 3).returncode == 0
    assert set_in(Path("u").read_text(), '"$@"')[:3] == ["svd", "--device", "cuda"]


@pytest.fixture(scope="module")
def ratings(tmp_path_factory) -> Path:
    return import_ratings(tmp_path_factory.mktemp("ratings"), "ratings", low_rank(count=200), (2, 2))


def test_ratings_are_looked_at_and_factorised(slurm, two_classes, ratings):
    assert verb("mf", "--nodes", 2, "-o", "s", "--", ratings, "-o", "f.h5", "--test", ratings).returncode == 0
    script = Path("s").read_text()
    assert settings(script)["job-name"] == "dml-hpc-mf"
    assert script.splitlines()[-1] == 'run_job mf "$@"'
    assert set_in(script, '"$@"') == [str(ratings), "-o", "f.h5", "--test", str(ratings)]
    assert verb("scaling", "-o", "t", "--", "mf", ratings, "--epochs", 2).returncode == 0
    assert "holds rows of features, not ratings" in refused("mf", "--", two_classes, "-o", "f.h5")
    assert "holds rows of features, not ratings" in refused("mf", "--", ratings, "-o", "f.h5", "--test", two_classes)
    assert "nowhere does not exist" in refused("scaling", "--", "mf", "nowhere")
    assert "--schedule is for --algorithm sgd" in refused("mf", "--", ratings, "-o", "f.h5", "--algorithm", "als",
                                                          "--schedule", "cosine")
    assert "choose another -o" in refused("mf", "--", ratings, "-o", ratings / "f.h5")


def test_what_is_measured_needs_no_output_and_may_be_an_all_reduce(slurm, two_classes):
    assert verb("scaling", "-o", "s", "--", "train", two_classes, "--epochs", 2).returncode == 0
    assert verb("scaling", "-o", "t", "--", "allreduce", "--sizes", "1M").returncode == 0
    assert set_in(Path("t").read_text(), '"$@"') == ["allreduce", "--sizes", "1M"]


@pytest.mark.parametrize(("words", "said"), [
    (["train", "--", "DATA", "-o", "m.h5", "--epoch", "3"], "No such option '--epoch'"),
    (["train", "--", "DATA"], "Missing option '-o'"),
    (["train"], "Missing argument"),
    (["train", "--", "DATA", "-o", "m.h5", "--objective", "logit"], "'logit' is not one of"),
    (["train", "--", "DATA", "-o", "m.h5", "--algorithm", "lbfgs", "--momentum", "0.5"], "has no use for --momentum"),
    (["train", "--", "nowhere", "-o", "m.h5"], "nowhere does not exist"),
    (["train", "--", "DATA", "-o", "m.h5", "--validation", "nowhere"], "nowhere does not exist"),
    (["train", "--", "DATA", "-o", "nowhere/m.h5"], "nowhere does not exist"),
    (["train", "--", "DATA", "-o", "taken"], "taken exists; give --overwrite"),
    (["train", "--", "DATA", "-o", "m.h5", "--config", "nowhere.toml"], "nowhere.toml"),
    (["train", "--", "DATA", "-o", "m.h5", "--device", "cuda"], "--gpus-per-node N"),
    (["train", "--", "DATA", "-o", "m.h5", "--elastic"], "--elastic goes with"),
    (["train", "--", "DATA", "-o", "m.h5", "--checkpoint", "kept"], "holds checkpoints of a run; give --resume"),
    (["train", "--gpus-per-node", "1", "--", "DATA", "-o", "m.h5", "--device", "cpu"], "leave out one of them"),
    (["train", "--gpus-per-node", "1", "--", "DATA", "-o", "m.h5"], "no GPU; partitions with such nodes: gpu"),
    (["train", "--partition", "cpus", "--", "DATA", "-o", "m.h5"], "did you mean 'cpu'?"),
    (["train", "--watch", "--", "DATA", "-o", "m.h5"], "--submit"),
    (["train", "--name", "a/b", "--", "DATA", "-o", "m.h5"], "without a slash"),
    (["train", "--name", "a\\b", "--", "DATA", "-o", "m.h5"], "backslash"),
    (["train", "--account", " ", "--", "DATA", "-o", "m.h5"], "--account is empty"),
    (["train", "--time", "soon", "--", "DATA", "-o", "m.h5"], "'soon' is no time"),
    (["train", "-o", "taken", "--", "DATA", "-o", "m.h5"], "taken exists; give --overwrite"),
    (["svd", "--", "DATA", "-o", "m.h5"], "how many triplets?"),
    (["scaling", "--", "DATA", "-o", "m.h5"], "is not one of train, svd"),
    (["scaling", "--stage", "--", "train", "DATA", "-o", "m.h5"], "--stage is for one run"),
])
def test_what_could_not_run_is_refused_in_one_line(slurm, two_classes, here, words, said):
    Path("taken").write_text("mine")
    (here / "kept" / "checkpoint-000001").mkdir(parents=True)
    (here / "kept" / "checkpoint-000001" / "state.json").write_text("{}")
    assert said in refused(*[two_classes if word == "DATA" else word for word in words])
    assert sorted(os.listdir()) == ["kept", "taken"]
    assert Path("taken").read_text() == "mine"


def test_what_slurm_itself_refuses_is_not_written(slurm, two_classes, here):
    (here.parent / "refusal").write_text("allocation failure: Invalid account or account/partition combination")
    assert "Slurm refuses the script: Invalid account" in refused("train", "--", two_classes, "-o", "m.h5")
    assert os.listdir() == []
    (here.parent / "refusal").write_text("allocation failure: Requested node configuration is not available")
    done = verb("train", "--", two_classes, "-o", "m.h5")
    assert done.returncode == 0
    assert "Slurm says now: Requested node configuration is not available" in done.stdout


def test_a_script_that_stands_there_already_is_taken(slurm, two_classes):
    line = ["train", "--", two_classes, "-o", "m.h5"]
    assert verb(*line).returncode == 0
    assert verb(*line).returncode == 0
    assert "dml-hpc-train.sbatch exists" in refused("train", "--nodes", 2, "--", two_classes, "-o", "m.h5")
    assert verb("train", "--nodes", 2, "--overwrite", "--", two_classes, "-o", "m.h5").returncode == 0
    assert settings(Path("dml-hpc-train.sbatch").read_text())["nodes"] == "2"


def test_without_slurm_the_script_is_written_and_nothing_is_submitted(here, two_classes):
    done = verb("train", "--", two_classes, "-o", "m.h5")
    assert done.returncode == 0
    assert "not against a cluster: there is no sinfo here" in done.stdout
    Path("dml-hpc-train.sbatch").unlink()
    assert "leave out --submit" in refused("train", "--submit", "--", two_classes, "-o", "m.h5")
    assert os.listdir() == []


def test_what_was_decided_goes_before_the_environment_and_the_site(slurm, two_classes, here, monkeypatch):
    monkeypatch.setenv("SBATCH_PARTITION", "gpu")
    monkeypatch.setenv("SBATCH_ACCOUNT", "a b")
    monkeypatch.setenv("SBATCH_TIMELIMIT", "1")
    monkeypatch.setenv("SBATCH_RESERVATION", "mine")
    done = verb("train", "--partition", "cpu", "--time", "2:00:00", "--submit", "--json", "--", two_classes, "-o", "m")
    assert done.returncode == 0, done.stderr
    words, environment, script = json.loads((here.parent / "submitted").read_text())
    assert words == ["--parsable", str(here / "dml-hpc-train.sbatch")]
    assert {key: value for key, value in environment.items() if key.startswith("SBATCH_")} == {
        "SBATCH_RESERVATION": "mine"}
    assert "#SBATCH --partition=cpu\n" in script
    assert "#SBATCH --account='a b'\n" in script
    assert json.loads(done.stdout)["job_id"] == 17


def test_the_sites_own_folder_of_scripts_is_used(slurm, two_classes, here, monkeypatch):
    own = here.parent / "our scripts"
    shutil.copytree(templates(), own)
    with (own / "site.sh").open("a") as file:
        file.write("\nexport SBATCH_PARTITION=gpu SBATCH_ACCOUNT=physics\necho loaded modules\n")
    monkeypatch.setenv("DML_HPC_SLURM", str(own))
    done = verb("train", "--", two_classes, "-o", "m.h5")
    assert done.returncode == 0, done.stderr
    script = Path("dml-hpc-train.sbatch").read_text()
    assert (settings(script)["partition"], settings(script)["account"]) == ("gpu", "physics")
    assert f"export DML_HPC_SLURM={shlex.quote(str(own))}\n" in script
    monkeypatch.setenv("DML_HPC_SLURM", "/nowhere")
    assert "holds no site.sh" in refused("train", "--", two_classes, "-o", "m.h5")


def test_what_slurm_says_is_not_confused_by_a_name():
    seen = read(state("NODE_FAIL", "Some words", "3:9", 2, "/a b/%j"), "17")
    assert seen is not None
    assert (seen.state, seen.reason, seen.restarts, seen.code, seen.signal, str(seen.log)) == (
        "NODE_FAIL", "Some words", 2, 3, 9, "/a b/17")


@pytest.mark.parametrize(("name", "code", "expected"), [
    ("COMPLETED", "0:0", 0), ("FAILED", "2:0", 2), ("FAILED", "75:0", 75), ("FAILED", "0:9", 137),
    ("TIMEOUT", "0:0", 1), ("CANCELLED", "0:15", 143), ("CANCELLED", "0:0", 1),
])
def test_watching_ends_with_the_jobs_exit_code(slurm, name, code, expected):
    slurm(state(name, code=code))
    assert verb("watch", 17).returncode == expected


def test_a_job_is_followed_to_its_end(slurm, here):
    log = here / "a b.out"
    log.write_text("one\ntwo\nno end")
    slurm(state("PENDING", "Priority"), state("RUNNING", log=log), state("NODE_FAIL", log=log),
          state("PENDING", "BeginTime", restarts=1, log=log), state("COMPLETED", restarts=1, log=log))
    said: list[str] = []
    assert follow("17", said.append, 0.01).exit_code == 0
    assert said == [
        "state    pending (Priority)", "one", "two", "state    running on n[1-2]",
        "requeued job 17 is to start again, start 2", "state    pending (BeginTime)", "state    completed, exit code 0",
        "no end"]


def test_a_job_that_slurm_has_forgotten_is_no_success(slurm):
    slurm(state("RUNNING"), "gone")
    done = verb("watch", 17)
    assert done.returncode == 1
    assert "sacct -j 17" in done.stderr


def test_an_interrupt_ends_the_watching_alone(slurm, here):
    line = [sys.executable, "-m", "dml_hpc", "slurm", "watch", "17"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline() == "state    pending\n"
        watching.send_signal(signal.SIGINT)
        _, err = watching.communicate(timeout=20)
    assert watching.returncode == 130
    assert "job 17 goes on: `dml-hpc slurm watch 17`" in err
