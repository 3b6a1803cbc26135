"""``dml-hpc slurm``: a batch script for a job, checked here and against the cluster, submitted and followed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from dml_hpc.batch import cluster
from dml_hpc.batch.job import Seen, follow, look, submit, tried
from dml_hpc.batch.script import FOLDER, make_script, read_template, settings, templates
from dml_hpc.console import Console
from dml_hpc.errors import Stopped, UserError
from dml_hpc.files import check_output, replaced_file

SITE_S = 60.0
"""How long a site's settings may take to be read: modules are loaded there."""
WARNED_S = 120
"""So long before its end the templates have a job told to save what it has."""


@dataclass(frozen=True)
class Wanted:
    """What a job is to have, by the names of the options; None: as its template has it.

    ``time`` is in seconds, ``mem`` in bytes a node, ``gpus_per_node`` a kind ("": any) and a number.
    """

    nodes: int | None = None
    ranks_per_node: int | None = None
    cpus_per_rank: int | None = None
    gpus_per_node: tuple[str, int] | None = None
    time: int | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    mem: int | None = None
    name: str | None = None
    constraint: str | None = None
    exclusive: bool = False
    stage: bool = False


def run(console: Console, job: str, arguments: Sequence[str], parsed: Mapping[str, Any], output: Path | None = None,
        overwrite: bool = False, submit: bool = False, watch: bool = False, **options: Any) -> dict[str, Any]:
    """Write the batch script of ``job`` ("train", "svd", "mf", "scaling") to ``output``, submit and follow it as asked.

    ``arguments`` are those of the verb that ranks run, ``parsed`` what that verb makes of them, with its name as
    ``verb``; ``options`` are those of `Wanted`. Returns the ``--json`` keys; the exit code is the job's own where it
    was followed to its end. Raises `UserError` for what could not run, before anything is written.
    """
    wanted = Wanted(**options)
    if watch and not submit:
        raise UserError("--watch follows a job that was submitted: give --submit as well, or leave it out")
    if wanted.name is not None and (not wanted.name.strip() or "/" in wanted.name or wanted.name in (".", "..")):
        raise UserError(f"--name {wanted.name!r} names files, too: choose one with letters, and without a slash")
    template, arguments = _template(job, arguments, parsed, wanted.gpus_per_node)
    _check_arguments(job, parsed, wanted)
    wanted = _at_site(wanted)
    text = read_template(template)
    before = settings(text)
    changed = _changed(wanted, before)
    script = make_script(text, changed, Path.cwd(), _environment(wanted.stage), arguments,
                         ("gpus-per-task",) if wanted.gpus_per_node else ())
    request = _request(wanted, before)
    there, why = _checked(request, wanted, script, changed, submit)
    path = output or Path(f"{wanted.name or before['job-name']}.sbatch")
    _write(path, script, overwrite)
    gpus = f", {request.gpus_per_node} GPU{'s' * (request.gpus_per_node > 1)} a node" if request.gpus_per_node else ""
    console.say(f"script   {path}: {request.nodes} node{'s' * (request.nodes > 1)} × {request.ranks_per_node} "
                f"rank{'s' * (request.ranks_per_node > 1)} × {request.cpus_per_rank} "
                f"CPU{'s' * (request.cpus_per_rank > 1)}{gpus}, {cluster.clock(request.time_s)}")
    console.say(f"checked  {why}")
    result: dict[str, Any] = {
        "job": job, "script": str(path), "template": template, "arguments": list(arguments),
        "nodes": request.nodes, "ranks_per_node": request.ranks_per_node, "cpus_per_rank": request.cpus_per_rank,
        "gpus_per_node": request.gpus_per_node, "time_s": request.time_s, "partition": wanted.partition,
        "account": wanted.account, "checked": there, "job_id": None, "state": None, "job_exit_code": None,
        "restarts": None, "log": None}
    return {**result, **_submitted(console, path, changed, watch)} if submit else result


def watch(console: Console, job_id: int) -> dict[str, Any]:
    """Follow a job that was submitted before; see `run`."""
    return _followed(console, str(job_id))


TEMPLATES = {"train": "train_cpu.sbatch", "svd": "svd.sbatch", "mf": "mf.sbatch", "scaling": "scaling.sbatch"}


def _template(job: str, arguments: Sequence[str], parsed: Mapping[str, Any],
              gpus: tuple[str, int] | None) -> tuple[str, Sequence[str]]:
    """Return the name of the job's template, and the arguments it is to be given."""
    device = parsed.get("device", "cpu")
    if gpus is None:
        if device != "cpu":
            raise UserError(f"--device {device} wants GPUs: ask for them with --gpus-per-node N, before the --")
        return TEMPLATES[job], arguments
    if parsed["verb"] == "allreduce":
        return TEMPLATES[job], arguments
    if device == "cpu" and "device" in parsed["given"]:
        raise UserError("--gpus-per-node asks for GPUs, and --device cpu uses none: leave out one of them")
    if job == "train":
        return "train_gpu.sbatch", arguments  # which gives --device cuda
    return TEMPLATES[job], arguments if device != "cpu" else _on_gpus(job, arguments)


def _on_gpus(job: str, arguments: Sequence[str]) -> list[str]:
    verb = 1 if job == "scaling" else 0
    return [*arguments[:verb], "--device", "cuda", *arguments[verb:]]


def _check_arguments(job: str, parsed: Mapping[str, Any], wanted: Wanted) -> None:
    """Raise `UserError` for what the verb would refuse to do, its data or outputs, long after it was submitted."""
    from dml_hpc.store import checkpoint

    if job == "scaling" and (wanted.stage or parsed.get("checkpoint") is not None):
        option = "--stage" if wanted.stage else "--checkpoint"
        raise UserError(f"{option} is for one run, and scaling repeats it: leave it out")
    if parsed["verb"] == "allreduce":
        return
    if parsed["elastic"] or parsed["min_ranks"] is not None:
        raise UserError("--elastic goes with mpirun --with-ft ulfm, and batch scripts start ranks without: leave it "
                        "out; a job that loses a node starts again from its checkpoint")
    folder, resume = parsed["checkpoint"], parsed["resume"]
    inputs = _checked_ratings(parsed, wanted) if parsed["verb"] == "mf" else _checked_rows(parsed, wanted)
    if parsed["output"] is not None:
        check_output(parsed["output"], parsed["overwrite"] or job == "scaling", inputs=inputs)
    if folder is None and resume:
        raise UserError("--resume goes on from a checkpoint: say where they are with --checkpoint DIR")
    if folder is not None and not resume and checkpoint.found(folder):
        raise UserError(f"{folder} holds checkpoints of a run; give --resume to go on from there, or another folder")


def _checked_ratings(parsed: Mapping[str, Any], wanted: Wanted) -> list[Path]:
    """Return the data sets that mf reads. Raises `UserError` for one that it would refuse."""
    from dml_hpc.commands import mf_options
    from dml_hpc.data.ratings.opened import open_ratings
    from dml_hpc.mpi import Alone

    mf_options.wanted(mf_options.Options.among(parsed), parsed["test"] is not None,
                      "cpu" if wanted.gpus_per_node is None else "cuda")
    inputs = [path for path in (parsed["ratings"], parsed["test"]) if path is not None]
    for path in inputs:
        if not open_ratings(Alone(), path).grid.ratings:
            raise UserError(f"{path} holds no ratings")
    return inputs


def _checked_rows(parsed: Mapping[str, Any], wanted: Wanted) -> list[Path]:
    """Return the data sets that train or svd reads. Raises `UserError` for one that it would refuse, or an option."""
    from dml_hpc.data.dataset import open_dataset
    from dml_hpc.data.shard import keys_of

    data = parsed["data"]
    keys = keys_of(parsed["x_key"], parsed.get("y_key"), parsed.get("weight_key"))
    dataset = open_dataset(data, keys, labels=parsed["verb"] == "train",
                           skip_bad_shards=parsed["skip_bad_shards"])
    inputs = list(data)
    if parsed["verb"] == "train":
        from dml_hpc.commands.train_options import Options, settled
        from dml_hpc.objectives import open_objective

        given = Options(**{entry.name: parsed[entry.name] for entry in fields(Options)})
        if wanted.gpus_per_node is not None:
            given = replace(given, device="cuda")
        objective = open_objective(given.objective, **given.objective_settings)
        objective.classes(dataset.manifest.label.name, dataset.manifest.label.values)
        settled(given, objective, dataset.kind == "csr", dataset.features, dataset.rows)
        if given.validation is not None:
            open_dataset(given.validation, keys)
            inputs.append(given.validation)
    elif parsed["k"] is None and parsed["tolerance"] is None:
        raise UserError("how many triplets? give -k N, or --tolerance energy=0.95, or both")
    return inputs


def _at_site(wanted: Wanted) -> Wanted:
    """Return what is wanted with the partition and the account that the site's settings, or the environment, name."""
    if wanted.partition is not None and wanted.account is not None:
        return wanted
    shown = '. "$1" >/dev/null 2>&1; printf "\\n%s\\n%s\\n" "${SBATCH_PARTITION-}" "${SBATCH_ACCOUNT-}"'
    try:
        done = subprocess.run(["bash", "-c", shown, "site", str(templates() / "site.sh")], stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, errors="replace", timeout=SITE_S)
        partition, account = done.stdout.splitlines()[-2:]
    except (OSError, subprocess.TimeoutExpired, ValueError):
        partition, account = os.environ.get("SBATCH_PARTITION", ""), os.environ.get("SBATCH_ACCOUNT", "")
    return replace(wanted, partition=wanted.partition or partition or None, account=wanted.account or account or None)


def _changed(wanted: Wanted, before: Mapping[str, str]) -> dict[str, str]:
    """Return the options of sbatch that are not as the template has them ``before``."""
    gpus, time_s = wanted.gpus_per_node, wanted.time
    found: dict[str, object] = {
        "job-name": wanted.name, "nodes": wanted.nodes, "ntasks-per-node": _ranks_per_node(wanted),
        "cpus-per-task": wanted.cpus_per_rank,
        "gpus-per-node": None if gpus is None else ":".join(filter(None, (gpus[0], str(gpus[1])))),
        "time": None if time_s is None else cluster.clock(time_s), "partition": wanted.partition,
        "account": wanted.account, "qos": wanted.qos, "constraint": wanted.constraint,
        "mem": None if wanted.mem is None else f"{-(-wanted.mem // (1 << 20))}M"}
    for key in ("partition", "account", "qos", "constraint"):
        if found[key] is not None and not str(found[key]).strip():
            raise UserError(f"--{key} is empty: give a name, or leave it out")
    if "signal" in before and time_s is not None and time_s < 3 * WARNED_S:
        found["signal"] = f"B:USR1@{time_s // 3}"
    return {**{key: str(value) for key, value in found.items() if value is not None},
            **({"exclusive": ""} if wanted.exclusive else {})}


def _ranks_per_node(wanted: Wanted) -> int | None:
    """Return how many ranks a node has, None: as the template says; on GPUs one each."""
    gpus = wanted.gpus_per_node
    return wanted.ranks_per_node if gpus is None else wanted.ranks_per_node or gpus[1]


def _request(wanted: Wanted, before: Mapping[str, str]) -> cluster.Request:
    kind, number = wanted.gpus_per_node or ("", 0)
    return cluster.Request(
        wanted.nodes or int(before.get("nodes", 1)), _ranks_per_node(wanted) or int(before.get("ntasks-per-node", 1)),
        wanted.cpus_per_rank or int(before.get("cpus-per-task", 1)), wanted.mem or 0, kind, number,
        wanted.time or int(cluster.seconds(before.get("time", "60"))))


def _checked(request: cluster.Request, wanted: Wanted, script: str, changed: Mapping[str, str],
             submit: bool) -> tuple[bool, str]:
    """Return whether the cluster was asked, and what it has; raise `UserError` where the job can never run there."""
    try:
        nodes = cluster.cluster()
    except UserError as error:
        if submit:
            raise UserError(f"nothing can be submitted from here ({error}): leave out --submit, and submit the script "
                            "where Slurm is") from None
        return False, f"the arguments, but not against a cluster: {error}"
    there = cluster.check(request, wanted.partition, nodes)
    why = tried(script, changed)
    return True, there + (f"; Slurm says now: {why}" if why else "")


def _environment(stage: bool) -> dict[str, str]:
    """Return what the job's script finds set: where the batch scripts are, and this very installation."""
    found = {FOLDER: str(templates())}
    venv = os.environ.get("DML_HPC_VENV") or (sys.prefix if sys.prefix != sys.base_prefix else None)
    if venv is not None:
        found["DML_HPC_VENV"] = str(Path(venv).absolute())
    return {**found, **({"DML_HPC_STAGE": "yes"} if stage else {})}


def _write(path: Path, script: str, overwrite: bool) -> None:
    """Write the script, unless it stands there already; another is not replaced unasked."""
    try:
        same = path.read_text() == script
    except (OSError, UnicodeDecodeError):
        same = False
    check_output(path, overwrite or same)
    if not same:
        with replaced_file(path) as partial:
            partial.write_text(script)


def _submitted(console: Console, path: Path, changed: Mapping[str, str], watched: bool) -> dict[str, Any]:
    number = submit(path, changed)
    console.say(f"job      {number} submitted")
    if watched:
        return _followed(console, number)
    seen = look(number)
    return _keys(number, seen)


def _followed(console: Console, number: str) -> dict[str, Any]:
    try:
        seen = follow(number, console.say)
    except (Stopped, KeyboardInterrupt) as stopped:
        if isinstance(stopped, Stopped):
            stopped.args = (f"{stopped.args[0]}; job {number} goes on: `dml-hpc slurm watch {number}` looks again, "
                            f"`scancel {number}` ends it",)
        raise
    return {**_keys(number, seen), "exit_code": seen.exit_code}


def _keys(number: str, seen: Seen | None) -> dict[str, Any]:
    if seen is None:
        return {"job_id": int(number)}
    return {"job_id": int(number), "state": seen.state, "job_exit_code": seen.exit_code if seen.ended else None,
            "restarts": seen.restarts, "log": None if seen.log is None else str(seen.log)}
