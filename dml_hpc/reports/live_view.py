"""A live file as a person reads it: how far the run is, how its loss falls, where each rank's time goes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from dml_hpc.reports.jobs import counted
from dml_hpc.reports.quantities import Record, count, duration, number, whole
from dml_hpc.reports.runs import PHASES

QUIET_S = 10.0
"""After so long without news it is told how long; one step may take longer."""
_BLOCKS = dict(zip(PHASES, "▓█▒░", strict=True))
_COLOURS = dict(zip(PHASES, (178, 35, 33, 240), strict=True))
"""Of a terminal's 256: what is at work is bright, who waits is grey."""
_LEVELS = "▁▂▃▄▅▆▇█"
_BAR, _CURVE = 30, 32


def screen(live: Record, quiet_s: float, gone: bool, width: int = 100, height: int | None = None,
           colour: bool = False) -> list[str]:
    """Return the lines to show of ``live``, none longer than ``width``, ``height`` at most (None: all there are).

    ``quiet_s``: so long ago it was written; ``gone``: who wrote it has died. The busiest ranks come first, for whom
    the others wait. What stands in the file is not to be trusted.
    """
    lines = [_title(live), _progress(live, width), _figures(live), *_troubles(live, quiet_s, gone)]
    ranks = _ranks(live)
    if ranks:
        room = len(ranks) if height is None else max(height - len(lines) - 2, 0)
        if room < len(ranks):
            room = max(room - 1, 0)
        lines += ["", *_table(ranks[:room], width, colour)]
        if room < len(ranks):
            lines.append(f"      and {count(len(ranks) - room, 'rank')} less busy")
    shown = lines if height is None else lines[:height]
    return [_cut(line, width) for line in shown]


def ended(record: Record) -> str:
    """Return in a line what came of a run that has written its record."""
    parts = [f"{count(whole(record.get('ranks')) or 1, 'rank')}"]
    if (steps := whole(record.get("steps") or record.get("passes_over_data"))) is not None:
        parts.append(count(steps, "step" if "steps" in record else "pass") if steps == 1 else
                     f"{steps:,} {'steps' if 'steps' in record else 'passes'}")
    elif (epochs := whole(record.get("epochs"))) is not None:
        parts.append(count(epochs, "epoch"))
    if (seconds := number(record.get("work_s") or record.get("seconds"))) is not None:
        parts.append(duration(seconds) if seconds < 60 else _clock(seconds))
    if (loss := number(record.get("loss"))) is not None:
        parts.append(f"loss {loss:.5g}")
    if (rate := number(record.get("examples_per_s") or record.get("updates_per_s"))) is not None:
        parts.append(f"{rate:,.0f} {counted(record)}/s")
    return f"finished {_clean(record.get('command'))}: {', '.join(parts)}"


def _title(live: Record) -> str:
    arguments = live.get("arguments")
    words = shlex.join(map(str, arguments)) if isinstance(arguments, list) else str(live.get("command"))
    hosts = list(dict.fromkeys(_hosts(live)))
    where = f" on {_clean(hosts[0])}" if len(hosts) == 1 else f" on {len(hosts)} hosts" if hosts else ""
    ranks = count(whole(live.get("ranks")) or 1, "rank")
    return f"{_clean(live.get('state'))}, {ranks}{where}: dml-hpc {_clean(words)}"


def _progress(live: Record, width: int) -> str:
    step, steps = number(live.get("step")) or 0, number(live.get("steps"))
    text = f"step {step:,.0f}" + (f" of {steps:,.0f}" if steps else "")
    if (epoch := number(live.get("epoch"))) is not None:
        whole_run = f" of {epoch * steps / step:.4g}" if steps and step else ""
        text += f", epoch {epoch:.1f}{whole_run}"
    text += f", {_clock(number(live.get('elapsed_s')) or 0.0)}"
    if not steps:
        return text
    done = min(step / steps, 1.0)
    left = number(live.get("eta_s"))
    tail = f" {done:4.0%}" + (f", {_clock(left)} left" if left is not None and live.get("state") == "running" else "")
    room = min(max(width - len(text) - len(tail) - 2, 0), 40)
    filled = round(done * room)
    return f"{text}  {'━' * filled}{'─' * (room - filled)}{tail}"


def _figures(live: Record) -> str:
    parts = []
    if (loss := number(live.get("loss"))) is not None:
        told = live.get("losses")
        curve = [value for one in (told if isinstance(told, list) else []) if (value := number(one)) is not None]
        parts.append(f"loss {loss:.5g}  {sparkline(curve)}".rstrip())
    if (rate := number(live.get("examples_per_s"))) is not None:
        parts.append(f"{rate:,.0f} {counted(live)}/s")
    return "   ".join(parts)


def _troubles(live: Record, quiet_s: float, gone: bool) -> list[str]:
    if live.get("state") == "failed":
        return [f"failed: {_clean(live.get('error'))}"]
    if gone:
        return [f"no news for {_clock(quiet_s)}: rank 0 is gone"]
    if live.get("state") == "finished":
        return ["all steps are taken; the result and the record are being written"]
    if quiet_s > QUIET_S:
        return [f"no news for {_clock(quiet_s)}: a step takes long, or the run has died (rank 0 is process "
                f"{whole(live.get('pid')) or '?'} on {_clean(live.get('host'))})"]
    return []


def _ranks(live: Record) -> list[tuple[int, str, dict[str, float]]]:
    """Return number, host and seconds by phase of each rank that is told of, the busiest first."""
    told, hosts = live.get("per_rank"), _hosts(live)
    found = []
    for rank, own in enumerate(told if isinstance(told, list) else []):
        if isinstance(own, dict):
            found.append((rank, _clean(hosts[rank]) if rank < len(hosts) else "",
                          {phase: number(own.get(phase)) or 0.0 for phase in PHASES}))
    return sorted(found, key=lambda one: -(one[2]["read"] + one[2]["compute"]))


def _table(ranks: Sequence[tuple[int, str, dict[str, float]]], width: int, colour: bool) -> list[str]:
    names = min(max((len(host) for _, host, _ in ranks), default=0), 20)
    names = max(names, len("host"))
    tail = len("  busy 100%  wait 100%")
    bar = min(max(width - 6 - names - 2 - tail, 6), 2 * _BAR)
    longest = max((sum(own.values()) for _, _, own in ranks), default=0.0)
    legend = "  ".join(f"{_painted(_BLOCKS[phase], phase, colour)} {phase}" for phase in PHASES)
    lines = [f"{'rank':>4}  {'host':<{names}}  {legend}"]
    for rank, host, own in ranks:
        whole_s = sum(own.values())
        drawn = _bar([own[phase] / longest if longest else 0.0 for phase in PHASES], bar)
        blocks = "".join(_painted(_BLOCKS[phase] * n, phase, colour) for phase, n in zip(PHASES, drawn, strict=True))
        shares = [part / whole_s if whole_s else 0.0 for part in (own["read"] + own["compute"], own["wait"])]
        lines.append(f"{rank:>4}  {host[:names]:<{names}}  {blocks}{' ' * (bar - sum(drawn))}"
                     f"  busy {shares[0]:4.0%}  wait {shares[1]:4.0%}")
    return lines


def _bar(shares: Sequence[float], width: int) -> list[int]:
    """Return how many of ``width`` characters each share gets: ends are rounded, so that no error adds up."""
    ends, so_far = [0], 0.0
    for share in shares:
        so_far += share
        ends.append(min(round(so_far * width), width))
    return [after - before for before, after in pairwise(ends)]


def sparkline(values: Sequence[float], most: int = _CURVE) -> str:
    """Return a line of text as high as ``values``, of which ``most`` are shown, evenly."""
    if len(values) > most:
        values = [values[round(at * (len(values) - 1) / (most - 1))] for at in range(most)]
    if len(values) < 2:
        return ""
    low, high = min(values), max(values)
    top = len(_LEVELS) - 1
    return "".join(_LEVELS[round((value - low) / (high - low) * top) if high > low else 0] for value in values)


def _cut(line: str, width: int) -> str:
    """Return what a terminal shows in ``width`` columns; colours take none."""
    if len(line) <= width:
        return line
    kept, room = "", width
    for part in re.split(r"(\x1b\[[\d;]*m)", line):
        kept += part if part.startswith("\x1b") else part[:room]
        room -= 0 if part.startswith("\x1b") else min(len(part), room)
    return kept


def _painted(text: str, phase: str, colour: bool) -> str:
    return f"\x1b[38;5;{_COLOURS[phase]}m{text}\x1b[0m" if colour and text else text


def _hosts(live: Record) -> list[str]:
    told = live.get("hosts")
    return [str(host) for host in told] if isinstance(told, list) else []


def _clean(text: Any) -> str:
    """Return text without anything that would steer a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(text))


def _clock(seconds: float) -> str:
    """Return "12 s", "3 min 05 s", "2 h 03 min"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, of_hour = divmod(minutes, 60)
    return f"{hours} h {of_hour:02} min" if hours else f"{minutes} min {rest:02} s"
