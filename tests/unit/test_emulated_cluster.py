"""The emulated cluster: its links carry their rate, whatever happens nothing is left behind, and it refuses clearly."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "emulated_cluster.sh"
BESIDE = Path(sys.executable).parent  # where this environment's mpirun is
RATE_BITS_PER_S = 200e6
BURST_S = 1e-3


def start(*arguments: object, path: str | None = None, **environment: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PATH": path or f"{BESIDE}:{os.environ['PATH']}", **environment}
    return subprocess.Popen([str(SCRIPT), *map(str, arguments)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, env=environment)


def finish(process: subprocess.Popen[str], timeout_s: float = 60) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=timeout_s)
    finally:
        process.kill()  # and with it all it started
    return process.returncode, out, err


def run(*arguments: object, path: str | None = None, **environment: str) -> tuple[int, str, str]:
    return finish(start(*arguments, path=path, **environment))


# What it refuses, on any machine.


@pytest.mark.parametrize(("arguments", "word"), [
    ("", "how many hosts"),
    ("-- true", "how many hosts"),
    ("0 -- true", "not '0'"),
    ("two -- true", "not 'two'"),
    ("-3 -- true", "-3"),
    ("2 --ranks-per-host 0 -- true", "--ranks-per-host"),
    ("2 --ranks-per-host", "--ranks-per-host"),
    ("2 --rate fast -- true", "--rate"),
    ("2 --rate 0gbit -- true", "--rate"),
    ("2 --rate 1gbyte -- true", "--rate"),
    ("2 --delay soon -- true", "--delay"),
    ("2 --speed 1 -- true", "--speed"),
    ("2 3 -- true", "3"),
    ("2 true", "put --"),
    ("2", "after --"),
    ("2 --", "after --"),
])
def test_refuses(arguments, word):
    code, out, err = run(*arguments.split())
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("emulated_cluster.sh: ") and word in err


def test_help():
    code, out, err = run("--help")
    assert (code, err) == (0, "") and "--ranks-per-host R" in out and "set -E" not in out


@pytest.fixture
def programs(tmp_path: Path) -> Callable[..., str]:
    """Return ``programs(**texts)``: a PATH with the few programs the script needs, and these scripts over them."""

    def make(without: str = "", **texts: str) -> str:
        for name in {"bash", "sed", "id", "ip", "tc", "unshare", "setpriv", "mount", "true"} - {without}:
            (tmp_path / name).symlink_to(shutil.which(name) or "/bin/true")
        for name, text in {"id": "echo 0", **texts}.items():
            (tmp_path / name).unlink(missing_ok=True)
            (tmp_path / name).write_text(f"#!{shutil.which('bash')}\n{text}\n")
            (tmp_path / name).chmod(0o755)
        return str(tmp_path)

    return make


@pytest.mark.parametrize(("without", "texts", "word"), [
    ("", {"id": "echo 1000"}, "needs root"),
    ("tc", {}, "needs tc"),
    ("ip", {}, "needs ip"),
    ("", {}, "now: none"),
    ("", {"mpirun": "echo 'mpirun (Open MPI) 4.1.4'"}, "Open MPI 5"),
    ("", {"mpirun": "echo HYDRA", "unshare": "exit 1"}, "no namespaces"),
], ids=["root", "tc", "ip", "mpirun", "version", "namespaces"])
def test_refuses_where_it_cannot_work(programs, without, texts, word):
    code, out, err = run(2, "--", "true", path=programs(without, **texts))
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert word in err


# The real thing.


def _missing() -> str:
    """Say what this machine lacks for emulated hosts, if anything."""
    if sys.platform != "linux" or os.getuid() != 0:
        return "emulated hosts need Linux and root"
    for tool in ("ip", "tc", "unshare", "setpriv"):
        if shutil.which(tool) is None:
            return f"there is no {tool}"
    if shutil.which("mpirun", path=f"{BESIDE}:{os.environ['PATH']}") is None:
        return "there is no mpirun"
    apart = ["unshare", "--mount", "--net", "--uts", "--pid", "--fork", "--mount-proc"]
    shape = ["tc", "qdisc", "add", "dev", "lo", "root", "tbf", "rate", "1gbit", "burst", "99999", "latency", "50ms"]
    tried = subprocess.run([*apart, *shape], capture_output=True, text=True)
    return "" if tried.returncode == 0 else f"no shaped links in namespaces here: {tried.stderr.strip()}"


MISSING = _missing()


def real(test: Callable) -> Callable:
    return pytest.mark.job(pytest.mark.skipif(bool(MISSING), reason=MISSING)(test))


MEASURE = """
import json, os, pathlib, sys, time
import numpy as np
from mpi4py import MPI

world = MPI.COMM_WORLD
host = world.Split_type(MPI.COMM_TYPE_SHARED)
statistics = pathlib.Path("/sys/class/net/eth0/statistics")
buffer, little = np.ones(4 << 20, np.uint8), np.ones(1, np.uint8)

def transfer(*pairs):
    "Send the buffer along all pairs at once; return the seconds until the last is there, and each rank's host's bytes."
    world.Barrier()
    before = [int((statistics / name).read_text()) for name in ("tx_bytes", "rx_bytes")]
    world.Barrier()
    start = time.perf_counter()
    for source, target in pairs:
        if world.rank == source:
            world.Send(buffer, target)
            world.Recv(little, target)
    inbox = [np.empty_like(buffer) for pair in pairs if pair[1] == world.rank]
    requests = [world.Irecv(inbox[i], s) for i, s in enumerate(s for s, t in pairs if t == world.rank)]
    MPI.Request.Waitall(requests)
    for source, target in pairs:
        if world.rank == target:
            world.Send(little, source)
    seconds = world.allreduce(time.perf_counter() - start, MPI.MAX)
    bytes_ = [int((statistics / name).read_text()) - b for name, b in zip(("tx_bytes", "rx_bytes"), before)]
    return seconds, world.allgather(bytes_)

result = {
    "hosts": world.allgather(MPI.Get_processor_name()),
    "on_host": world.allgather(host.size),
    "within": transfer((0, 1)),
    "between": min(transfer((0, 2)) for _ in range(3)),
    "to_one": transfer((0, 4), (2, 5)),
    "routes": pathlib.Path("/proc/net/route").read_text().split("\\n")[1:-1],
    "mine": [os.environ[name] for name in ("PYTHONPATH", "MY_OWN")],
    "arguments": sys.argv[1:],
}
if world.rank == 0:
    print(json.dumps(result))
"""


@real
def test_links_carry_their_rate(tmp_path):
    (tmp_path / "measure.py").write_text(MEASURE)
    command = (sys.executable, tmp_path / "measure.py", "two words", "$HOME;#")
    options = ("--ranks-per-host", 2, "--rate", "200mbit")
    runs = [start(3, *options, "--", *command, PYTHONPATH="/my/path", MY_OWN="a b", OMPI_MCA_coll_base_verbose="0"),
            start(2, "--", sys.executable, "-c", "import mpi4py.MPI as M; M.COMM_WORLD.Barrier()")]
    code, out, err = finish(runs[0])
    assert code == 0, err
    assert finish(runs[1])[0] == 0, "two clusters at the same time"
    got = json.loads(out)
    a, b, c = (f"host{i}-{runs[0].pid}" for i in range(3))
    assert got["hosts"] == [a, a, b, b, c, c]
    assert got["on_host"] == [2] * 6
    assert got["mine"] == ["/my/path", "a b"] and got["arguments"] == ["two words", "$HOME;#"]
    assert len(got["routes"]) == 1 and got["routes"][0].startswith("eth0"), "no way out of the cluster"

    size_bytes = 4 << 20
    wire_s = 8 * size_bytes / RATE_BITS_PER_S
    _, moved = got["within"]
    assert max(sent for sent, _ in moved) < 0.1 * size_bytes, "ranks of one host share memory"
    seconds, moved = got["between"]
    assert size_bytes <= moved[0][0] < 1.1 * size_bytes, "what is sent crosses the sender's link"
    assert size_bytes <= moved[2][1] < 1.1 * size_bytes, "and the receiver's"
    assert wire_s - 2 * BURST_S < seconds < 2 * wire_s
    seconds, moved = got["to_one"]
    assert 2 * size_bytes <= moved[4][1] < 2.2 * size_bytes
    assert seconds > 2 * wire_s - 2 * BURST_S, "two senders share the receiver's link"


def outlives(token: str, seconds: float = 5) -> list[str]:
    """Return the command lines that hold ``token`` and are still there after so many seconds."""
    end = time.monotonic() + seconds
    while (left := commands(token)) and time.monotonic() < end:
        time.sleep(0.05)
    return list(left.values())


def commands(token: str) -> dict[int, str]:
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has ended
            continue
        if token in line:
            found[int(path.parent.name)] = line
    return found


def traces() -> list[str]:
    """Return what a run might leave on this machine."""
    show = [subprocess.run(["ip", what], capture_output=True, text=True).stdout for what in ("link", "netns")]
    return [*show, Path("/proc/self/mounts").read_text(), Path("/etc/hosts").read_text(), os.uname().nodename]


@real
def test_exit_code_is_the_commands():
    before = traces()
    code, out, _ = run(1, "--ranks-per-host", 2, "--", "bash", "-c", "echo I ran; exit 7")
    assert (code, out) == (7, "I ran\nI ran\n")
    assert traces() == before


@real
@pytest.mark.parametrize("how", ["INT", "TERM", "KILL", "mpirun"])
def test_leaves_nothing_behind(how):
    before, token = traces(), uuid.uuid4().hex
    ready = f"from mpi4py import MPI; MPI.COMM_WORLD.Barrier(); print(); import time; time.sleep(99)  # {token}"
    process = start(2, "--", sys.executable, "-uc", ready)
    process.stdout.readline()
    if how == "mpirun":
        launchers = [pid for pid, line in commands(token).items() if line.split()[0] in ("mpirun", "prterun")]
        assert len(launchers) == 1
        os.kill(launchers[0], signal.SIGKILL)
    else:
        process.send_signal(getattr(signal, f"SIG{how}"))
    code, _, err = finish(process, 20)
    assert code == {"INT": 130, "TERM": 143, "KILL": -9, "mpirun": 137}[how], err
    assert outlives(token) == []
    assert traces() == before


@real
def test_delay_is_added_or_refused():
    roundtrip = """if True:
        import time
        from mpi4py import MPI
        world = MPI.COMM_WORLD
        for _ in range(9):
            start = time.perf_counter()
            world.Barrier()
        if world.rank == 0:
            print(time.perf_counter() - start)"""
    before = traces()
    code, out, err = run(2, "--delay", "20ms", "--", sys.executable, "-c", roundtrip)
    if code == 2:
        assert out == "" and err.count("\n") == 1 and "netem" in err
        netem = ["unshare", "--net", "tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"]
        assert subprocess.run(netem, capture_output=True).returncode != 0, "it could have"
    else:
        assert code == 0 and 0.02 < float(out) < 0.2, err
    assert traces() == before
