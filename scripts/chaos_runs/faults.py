"""Faults of the file system: a full disk, damaged checkpoints, folders that cannot be written, shards that fail."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random

from chaos_runs.jobs import (
    INJECTED,
    STEPS,
    Ended,
    Job,
    run,
)
from chaos_runs.shop import Case, Shop, checkpoints, newest_step, step_of
from chaos_runs.strikes import Strike, drawn
from dml_hpc.store import lock

_BEGIN = "dml_hpc.store.checkpoint_writer:Writer.begin"
_STREAMED = "dml_hpc.data.streaming:Streamed.take"
_FREE_BYTES = 112 << 20
"""Memory that the machine seems to have: half of it does not hold the "zipped" data set, which is then streamed."""
_STREAMED_STEPS = 1000


def full_disk(shop: Shop, rng: Random, job: Job, case: Case) -> None:
    """The disk with the checkpoints fills up, and may have room again: training goes on, and old ones stay."""
    disk = _mounted(job.folder / "disk", "size=2m")
    job = replace(job, checkpoint=disk / "checkpoints", steps=2 * STEPS[job.algorithm])
    filler = str(disk / "filler")
    strikes = [Strike("0", 0, _BEGIN, "fill", rng.randint(1, 6), path=filler)]
    frees = rng.random() < 0.5
    if frees:
        strikes.append(Strike("1", 0, _BEGIN, "remove", strikes[0].call + 5, path=filler))
    ended = run(job, strikes)
    if shop.check_result(case, job, ended) and ended.strikes:
        if "a checkpoint could not be written" not in ended.err + ended.out:
            case.fault("nobody was warned", ended)
        # The first is complete when the third begins; rank 0 may complete it after the second has begun.
        if not frees and strikes[0].call > 2 and newest_step(job.checkpoints) is None:
            case.fault("the old checkpoints are lost", ended)
    job.model.unlink(missing_ok=True)
    Path(filler).unlink(missing_ok=True)
    shop.check_resumed(case, job.again(ranks=rng.randint(1, 4)), newest_step(job.checkpoints))


def damaged(shop: Shop, rng: Random, job: Job, case: Case) -> None:
    """The newest checkpoint is damaged after a death: it is skipped with a warning, for the one before."""
    _kill_late(shop, rng, job, case)
    there = checkpoints(job.checkpoints)
    if len(there) < 2:
        return
    step = step_of(there[1])
    how = rng.choice(list(_DAMAGE))
    case.what["damage"] = how
    _DAMAGE[how](rng, there[0])
    ended = shop.check_resumed(case, job.again(ranks=rng.randint(1, 4)), step)
    if "is skipped" not in ended.err + ended.out:
        case.fault("nobody was warned", ended)


def all_damaged(shop: Shop, rng: Random, job: Job, case: Case) -> None:
    """Every checkpoint is damaged: the run is refused in one line, and begins anew in another folder."""
    _kill_late(shop, rng, job, case)
    there = checkpoints(job.checkpoints)
    for checkpoint in there:
        _DAMAGE[rng.choice([how for how in _DAMAGE if how != "no state.json"])](rng, checkpoint)
    if there:
        _refused(shop, case, job.again(), "no checkpoint in .* is whole")
    shop.check_resumed(case, job.again(checkpoint=job.folder / "others"), None)


def read_only(shop: Shop, rng: Random, job: Job, case: Case) -> None:
    """Nothing can be written to the checkpoint folder: the run is refused at once."""
    disk = _mounted(job.folder / "disk", "size=2m")
    (disk / "checkpoints").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    _refused(shop, case, replace(job, checkpoint=disk / "checkpoints"), "nothing can be written to")
    shop.check_resumed(case, job.again(), None)


def killed_writing(shop: Shop, rng: Random, job: Job, case: Case) -> None:
    """A rank dies while it writes a checkpoint: the part of it does no harm, and is tidied away."""
    strike = drawn(rng, "0", "checkpoint", job.algorithm, "kill", job.ranks, STEPS[job.algorithm])
    case.what["place"] = strike.place
    shop.check_death(case, job, run(job, [strike]))
    job.model.unlink(missing_ok=True)
    shop.check_resumed(case, job.again(ranks=rng.randint(1, 4)), newest_step(job.checkpoints))
    left = [path.name for path in job.checkpoints.glob(".*") if path.name != lock.NAME]
    if left:
        case.fault(f"{left} are left in the checkpoint folder")


def lost_shard(shop: Shop, rng: Random, job: Job, case: Case) -> None:
    """A shard is missing or cut short when a run is resumed: that is refused, naming it, until it is back."""
    job = replace(job, data=_copied(job.data, job.folder / job.data.name))
    _kill_late(shop, rng, job, case)
    step = newest_step(job.checkpoints)
    shard = job.data / f"part-{rng.randrange(4):05d}.h5"
    content = shard.read_bytes()
    if rng.random() < 0.5:
        case.what["damage"] = "missing"
        shard.unlink()
    else:
        case.what["damage"] = "cut"
        shard.write_bytes(content[:rng.randrange(len(content))])
    _refused(shop, case, job.again(), shard.name)
    shard.write_bytes(content)
    shop.check_resumed(case, job.again(ranks=rng.randint(1, 4)), step)


def shard_lost_in_mid_run(shop: Shop, rng: Random, job: Job, case: Case) -> None:
    """A shard vanishes or is cut short while it is read: the job ends as it should or names it; then it is back."""
    job = _streaming(shop, job)
    shard = job.data / f"part-{rng.randrange(4):05d}.h5"
    content, how = shard.read_bytes(), rng.choice(("hide", "cut"))
    case.what["damage"] = how
    strike = _while_streaming(rng, job, how, shard)
    ended = run(job, [strike], _FREE_BYTES)
    _ends_well_or_names(shop, case, job, ended, shard.name)
    shard.write_bytes(content)
    shop.check_resumed(case, job.again(ranks=rng.randint(1, 4)), newest_step(job.checkpoints))


def unreadable(shop: Shop, rng: Random, job: Job, case: Case) -> None:
    """Reads of a shard fail with EIO, for a moment (the run goes on) or from then on (it ends, naming the shard)."""
    job = _streaming(shop, job)
    shard, trigger = f"part-{rng.randrange(4):05d}.h5", job.folder / "trigger"
    for_ever = rng.random() < 0.5
    case.what["for ever"] = for_ever
    strike = _while_streaming(rng, job, "touch", trigger)
    failing = {"LD_PRELOAD": str(_shim(shop.folder)), "CHAOS_EIO": shard, "CHAOS_EIO_WHEN": str(trigger),
               "CHAOS_EIO_TIMES": "0" if for_ever else str(rng.randint(1, 3))}
    ended = run(job, [strike], _FREE_BYTES, extra=failing)
    if for_ever:
        _ends_well_or_names(shop, case, job, ended, shard)
    else:
        shop.check_result(case, job, ended)
    job.model.unlink(missing_ok=True)
    shop.check_resumed(case, job.again(ranks=rng.randint(1, 4)), newest_step(job.checkpoints))


Fault = Callable[[Shop, Random, Job, Case], None]
FAULTS: tuple[Fault, ...] = (full_disk, damaged, all_damaged, read_only, killed_writing, lost_shard,
                             shard_lost_in_mid_run, unreadable)
_MOUNTS = (full_disk, read_only)
_STREAMS = (shard_lost_in_mid_run, unreadable)


def files(shop: Shop, rng: Random, number: int) -> Case:
    """One of the faults, in turn."""
    fault = FAULTS[number % len(FAULTS)]
    case = Case("files", number, {"fault": fault.__name__})
    if fault in _MOUNTS and os.getuid() != 0:
        case.what["skipped"] = "only root can mount a small disk"
        return case
    if fault is unreadable and shutil.which("cc") is None:
        case.what["skipped"] = "there is no C compiler for what makes reads fail"
        return case
    fixed = {"algorithm": "sync"} if fault in _STREAMS else {}
    with shop.job(rng, launcher=shop.launchers[number % len(shop.launchers)], **fixed) as job:
        case.what.update(launcher=job.launcher.name, ranks=job.ranks, reducer=job.reducer, algorithm=job.algorithm)
        try:
            fault(shop, rng, job, case)
        finally:
            if os.path.ismount(job.folder / "disk"):
                subprocess.run(["umount", "--lazy", job.folder / "disk"], check=False)
    return case


def _kill_late(shop: Shop, rng: Random, job: Job, case: Case) -> None:
    """Have a run die when it has some checkpoints."""
    strike = Strike("0", rng.randrange(job.ranks), _BEGIN, "kill", rng.randint(4, 9))
    shop.check_death(case, job, run(job, [strike]))
    job.model.unlink(missing_ok=True)


def _refused(shop: Shop, case: Case, job: Job, says: str) -> None:
    ended = run(job)
    shop.check_refused(case, job, ended, says)


def _ends_well_or_names(shop: Shop, case: Case, job: Job, ended: Ended, name: str) -> None:
    if ended.code == 0:
        shop.check_result(case, job, ended)
    else:
        shop.check_death(case, job, ended)
        if name not in ended.err and "SIGBUS" not in ended.err:
            case.fault(f"{name} is not named", ended)
    job.model.unlink(missing_ok=True)


def _streaming(shop: Shop, job: Job) -> Job:
    """Return the job on a copy of data that, with `_FREE_BYTES`, it has to stream."""
    data = shop.data_set("zipped")
    return replace(job, data=_copied(data, job.folder / data.name), steps=_STREAMED_STEPS)


def _while_streaming(rng: Random, job: Job, how: str, path: Path) -> Strike:
    return Strike("0", rng.randrange(job.ranks), _STREAMED, how, rng.randint(1, int(0.9 * _STREAMED_STEPS)),
                  path=str(path))


def _copied(data: Path, to: Path) -> Path:
    shutil.copytree(data, to)
    return to


def _mounted(folder: Path, options: str) -> Path:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    return folder


@cache
def _shim(folder: Path) -> Path:
    """Compile what makes reads fail."""
    shim = folder / "eio.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", shim, INJECTED / "eio.c", "-ldl"], check=True)
    return shim


def _cut(rng: Random, checkpoint: Path) -> None:
    file = rng.choice(sorted(checkpoint.iterdir()))
    os.truncate(file, rng.randrange(file.stat().st_size))


def _flip(rng: Random, checkpoint: Path) -> None:
    file = rng.choice(sorted(checkpoint.iterdir()))
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def _remove(rng: Random, checkpoint: Path) -> None:
    rng.choice(sorted(checkpoint.glob("*.bin"))).unlink()


_DAMAGE: dict[str, Callable[[Random, Path], None]] = {
    "a file cut short": _cut,
    "a bit flipped": _flip,
    "a file gone": _remove,
    "state.json emptied": lambda rng, checkpoint: os.truncate(checkpoint / "state.json", 0),
    "no state.json": lambda rng, checkpoint: (checkpoint / "state.json").unlink(),
}
