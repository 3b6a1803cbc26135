"""What a cluster has, as ``sinfo`` tells it, and whether a job could ever start there."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

from dml_hpc.errors import UserError, did_you_mean

ANSWER_S = 60.0
"""How long Slurm's controller may take to answer."""


class Nodes(NamedTuple):
    """``number`` alike nodes of a partition: what each has, and whether they can be used now."""

    partition: str
    default: bool
    available: str
    limit_s: float
    most_nodes: float
    number: int
    state: str
    cpus: int
    memory_bytes: int
    gpus: dict[str, int]

    @property
    def usable(self) -> bool:
        """Whether a job can run on them, now or when those that run there have ended."""
        return re.match(r"(alloc|comp|idle|mix|plan|reserved)", self.state) is not None and self.state[-1] not in "*$"

    def has_gpus(self, kind: str, number: int) -> bool:
        """Say whether a node has so many GPUs, of a kind ("": any)."""
        return (self.gpus.get(kind, 0) if kind else sum(self.gpus.values())) >= number


class Request(NamedTuple):
    """What a job asks for: of each of its ``nodes`` so many CPUs, bytes and GPUs (of a kind, "": any)."""

    nodes: int
    ranks_per_node: int
    cpus_per_rank: int
    memory_bytes: int
    gpu_kind: str
    gpus_per_node: int
    time_s: int


_FORMAT = "%R|%P|%a|%l|%s|%D|%T|%c|%m|%G"


def cluster() -> list[Nodes]:
    """Return the nodes of every partition. Raises `UserError` where Slurm's controller does not answer."""
    said = ask(["sinfo", "-a", "-h", "-e", "-o", _FORMAT])
    return [_nodes(line) for line in said.splitlines() if line.count("|") == _FORMAT.count("|")]


def ask(command: Sequence[str], environment: dict[str, str] | None = None, told: str = "") -> str:
    """Return what one of Slurm's programs prints that is ``told`` something on stdin.

    Raises `UserError` with its own words where it fails.
    """
    try:
        done = subprocess.run(command, input=told, capture_output=True, text=True, errors="replace", timeout=ANSWER_S,
                              env=environment)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        raise UserError(f"there is no {command[0]} here" if missing else f"{command[0]}: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{command[0]} has not answered in {ANSWER_S:g} s: Slurm's controller is down, or not to be "
                        "reached from here") from None
    if done.returncode:
        said = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise UserError(said[-1] if said else f"{command[0]} ended with status {done.returncode}")
    return done.stdout


def _nodes(line: str) -> Nodes:
    name, marked, available, limit, sizes, count, state, cpus, memory, gres = line.split("|")
    return Nodes(name, marked.endswith("*"), available, seconds(limit), _most(sizes.rpartition("-")[2]), int(count),
                 state, _number(cpus), _number(memory) << 20, _gpus(gres))


def _number(text: str) -> int:
    found = re.match(r"\d+", text)
    return int(found[0]) if found else 0


def _most(text: str) -> float:
    return int(text) if text.isdigit() else float("inf")


def seconds(text: str) -> float:
    """Return a time as Slurm reads it, in seconds; infinite for a word that is none.

    It may be ``minutes``, ``minutes:seconds``, ``hours:minutes:seconds``, ``days-hours``, ``days-hours:minutes`` or
    ``days-hours:minutes:seconds``.
    """
    parts = re.fullmatch(r"(?:(\d{1,5})-)?(\d{1,7})(?::(\d{1,5}))?(?::(\d{1,5}))?", text, re.ASCII)
    if parts is None:
        return float("inf")
    days, first, second, third = (int(part or 0) for part in parts.groups())
    if parts[1] is None and parts[4] is None:
        return 60 * first + second
    return 86400 * days + 3600 * first + 60 * second + third


def _gpus(gres: str) -> dict[str, int]:
    """Return how many GPUs of each kind ``gpu:a100:4(S:0-1),gpu:v100:2`` are; the kind may be ""."""
    found: dict[str, int] = {}
    for kind, number in re.findall(r"(?:^|,)gpu(?::([^:,()]+))??(?::(\d+))?(?=[,(]|$)", gres):
        found[kind] = found.get(kind, 0) + int(number or 1)
    return found


def check(request: Request, partitions: str | None, nodes: Sequence[Nodes]) -> str:
    """Return in words where the job can run: ``partitions`` of the cluster, separated by commas (None: the default).

    Raises `UserError` where it never could, saying what there is instead.
    """
    names = list(dict.fromkeys(group.partition for group in nodes))
    if partitions is None:
        wanted = list(dict.fromkeys(group.partition for group in nodes if group.default))
        if not wanted:
            raise UserError(f"this cluster has no default partition: choose one of {', '.join(names)} with --partition")
    else:
        wanted = partitions.split(",")
    refused: UserError | None = None
    for name in wanted:
        if name not in names:
            raise UserError(f"there is no partition {name!r}{did_you_mean(name, names)}; there are {', '.join(names)}")
        try:
            return _fits(request, name, [group for group in nodes if group.partition == name], nodes)
        except UserError as error:
            refused = refused or error
    assert refused is not None
    raise refused


def _fits(request: Request, name: str, nodes: Sequence[Nodes], everywhere: Sequence[Nodes]) -> str:
    here = f"partition {name}"
    up = dict.fromkeys(group.partition for group in everywhere if group.available == "up")
    if nodes[0].available != "up":
        raise UserError(f"{here} is {nodes[0].available}; those that are up: {', '.join(up) or 'none'}")
    if request.time_s > nodes[0].limit_s:
        raise UserError(f"--time {clock(request.time_s)} is more than the {clock(int(nodes[0].limit_s))} of {here}")
    total = sum(group.number for group in nodes)
    if request.nodes > total:
        raise UserError(f"--nodes {request.nodes}: {here} has {total}")
    if request.nodes > nodes[0].most_nodes:
        raise UserError(f"--nodes {request.nodes}: {here} gives a job {nodes[0].most_nodes:g} at most")
    fitting = [group for group in nodes if group.has_gpus(request.gpu_kind, request.gpus_per_node)]
    if not fitting:
        elsewhere = dict.fromkeys(group.partition for group in everywhere
                                  if group.has_gpus(request.gpu_kind, request.gpus_per_node))
        also = f"; partitions with such nodes: {', '.join(elsewhere)}" if elsewhere else ""
        wanted = f"{request.gpu_kind}:{request.gpus_per_node}" if request.gpu_kind else request.gpus_per_node
        raise UserError(f"--gpus-per-node {wanted}: {_gpus_there(nodes, here)}{also}")
    cpus, ranks = request.ranks_per_node * request.cpus_per_rank, request.ranks_per_node
    most = max(group.cpus for group in fitting)
    if most < cpus:
        raise UserError(f"{ranks} rank{'s' * (ranks > 1)} with {request.cpus_per_rank} each take {cpus} CPUs a node: "
                        f"those of {here} have {most}")
    fitting = [group for group in fitting if group.cpus >= cpus]
    most = max(group.memory_bytes for group in fitting)
    if most < request.memory_bytes:
        raise UserError(f"--mem {request.memory_bytes >> 20}M: a node of {here} has {most >> 20}M")
    fitting = [group for group in fitting if group.memory_bytes >= request.memory_bytes]
    count = sum(group.number for group in fitting)
    if count < request.nodes:
        raise UserError(f"--nodes {request.nodes}: {here} has {total}, and only {count} of them have what is asked for "
                        "of each")
    usable = sum(group.number for group in fitting if group.usable)
    return f"{here} has {count} such node{'s' * (count > 1)}" + ("" if usable >= request.nodes else (
        f", of which only {usable} can be used now: the job will wait for others"))


def _gpus_there(nodes: Sequence[Nodes], here: str) -> str:
    best = max(nodes, key=lambda group: sum(group.gpus.values())).gpus
    if not best:
        return f"the nodes of {here} have no GPU"
    return f"a node of {here} has " + ", ".join(f"{kind}:{number}" if kind else f"{number}"
                                                for kind, number in best.items())


def clock(time_s: int) -> str:
    """Return a time as Slurm writes it: ``1-02:00:00``."""
    days, rest = divmod(time_s, 86400)
    return (f"{days}-" if days else "") + f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
