"""Whether a run can go on from a checkpoint to the limits that are asked for, which may be others than before."""

from __future__ import annotations

from dml_hpc.commands.train_options import Options
from dml_hpc.commands.training_run import Opened
from dml_hpc.errors import UserError
from dml_hpc.store.state import Kept, Values
from dml_hpc.trainers.loop import TIME_OVER

_MEND = "or give another --checkpoint folder"


def limits_of(options: Options) -> Values:
    """Return what the user has said of when a run ends, as it is kept with its state."""
    return {name: getattr(options, name) for name in ("epochs", "steps", "time_budget", "tolerance", "patience",
                                                      "rounds")}


def check_limits(kept: Kept, options: Options, opened: Opened) -> None:
    """Raise `UserError` when the run in ``kept`` is past the limits of ``options``, or cannot be led to them.

    It would be returned as if it were what was asked for.
    """
    course = kept.part("loop").values
    done, before, where = course["step"], course["wanted"], getattr(kept, "path", "what is remembered")
    if options.algorithm == "average":
        _check_rounds(where, course, options)
    if opened.steps is not None and done > opened.steps:
        name = "rounds" if options.algorithm == "average" else "epochs" if options.steps is None else "steps"
        units, asked = f"{opened.algorithm.unit}s", getattr(options, name)
        inner = "" if asked == opened.steps else f" ({opened.steps:,} {units})"
        raise UserError(f"{where} has taken {done:,} {units}, and --{name} asks for {asked:,}{inner}; give more, "
                        f"{_MEND}")
    budget = options.time_budget
    if budget not in (None, before["time_budget"]) and course["seconds"] > budget:
        raise UserError(f"{where} has taken {course['seconds']:,.1f} s, and --time-budget asks for {budget:g}; give "
                        f"more, {_MEND}")


def _check_rounds(where: object, course: Values, options: Options) -> None:
    """Raise `UserError` unless a round of ``average`` is as long as before, and there may be others."""
    before, now = course["wanted"], limits_of(options)
    name, amount = _whole(before)
    if (name, amount * now["rounds"]) != (_whole(now)[0], _whole(now)[1] * before["rounds"]):
        longer = f"; for a longer run, give --{name} {2 * amount} --rounds {2 * before['rounds']}, say"
        raise UserError(f"{where} was written with {_told(before)}, and this run has {_told(now)}: its rounds would be "
                        f"others. Give the same, {_MEND}{longer if name and not options.replicas else ''}")
    if course["step"] >= now["rounds"] and course["stopped"] == TIME_OVER and (
            now["time_budget"] != before["time_budget"]):
        raise UserError(f"{where} has made its last average, as the time was over, and does not learn more; give the "
                        f"same --time-budget, {_MEND}")


def _whole(limits: Values) -> tuple[str, int]:
    """Return what the rounds of ``average`` are parts of: the option, and its value; "", 0: of the time."""
    name = "steps" if limits["steps"] is not None else "epochs"
    return (name, limits[name]) if limits[name] is not None else ("", 0)


def _told(limits: Values) -> str:
    name, amount = _whole(limits)
    return f"--{name} {amount} --rounds {limits['rounds']}" if name else f"--time-budget {limits['time_budget']:g}"
