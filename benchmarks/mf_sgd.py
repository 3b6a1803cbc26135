"""Rating SGD against LIBMF, one core each: updates a second, and seconds to the same error on ratings held out.

    python benchmarks/mf_sgd.py [--peers PYTHON] [--libmf-library libmf.so] [--ratings 5000000]

60,000 users × 20,000 items, of rank 10 with noise and a skew in popularity, without biases, which LIBMF
does not learn and ours leaves out; k = 32, float32. PYTHON has the package libmf of PyPI, which pip compiles from
source for any CPU and without LIBMF's own vector code; --libmf-library is the same source compiled as fast as it can
be, and takes turns with the others:

    pip download --no-binary libmf --no-deps libmf && tar xzf libmf-*.tar.gz && cd libmf-*/src_cpp
    g++ -O3 -march=native -DUSEAVX -DNDEBUG -std=c++11 -fPIC -shared -pthread *.cpp -o libmf.so

Ours are the ``learning_s`` of the JSON object, all epochs; LIBMF's are the mean of its epochs after the first, by the
lines it writes: neither has reading, sorting or writing in it. Then every setting of a small grid of λ and step size is
run with the ratings held out, and errors by epoch are set against the seconds of an epoch from the rounds. The levels
are LIBMF's lowest error on its grid, and a little above; each contestant's time to a level is that of its best setting
for it. Two ranks find the same bits as one, and so the same errors. Draws results/mf_sgd.svg.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from curves import draw_curves
from mf_contest import Files, Libmf, mean_s, ours, prepared, reached_s
from rated import Shape
from results_file import RESULTS
from running import arguments, finish, medians, version

from dml_hpc.reports.timing import interleave

K = 32
PENALTIES = (0.01, 0.02, 0.05)
STEP_SIZES = {"adagrad": (0.05, 0.1, 0.2), "bold-driver": (0.02, 0.04, 0.08), "LIBMF": (0.05, 0.1, 0.2)}
MODEL = ("--no-biases",)
"""What the peer learns, too."""
SCHEDULES = ("adagrad", "bold-driver")
ABOVE = (0.05, 0.01, 0.0)
"""How far over LIBMF's lowest error the levels are."""
PIP, BEST = "LIBMF as pip builds it", "LIBMF, -O3 -march=native -DUSEAVX"
Setting = tuple[float, float]
Errors = dict[Setting, list[float]]
"""By λ and step size, the RMSE of the ratings held out after each epoch."""


def named(schedule: str, ranks: int) -> str:
    """Return the name of one of ours."""
    return f"dml-hpc, {schedule}, {ranks} rank{'s' * (ranks > 1)}"


def epoch_seconds(files: Files, builds: dict[str, Libmf], epochs: int, repeats: int) -> dict[str, list[float]]:
    """Return each contestant's seconds of an epoch, one a round."""
    def our_epoch_s(schedule: str, ranks: int) -> float:
        return ours(files, ranks, K, *MODEL, "--schedule", schedule, "--epochs", epochs)["learning_s"] / epochs

    def their_epoch_s(build: Libmf) -> float:
        return mean_s(build.run(files, K, epochs)["seconds"])

    contestants: dict[str, Callable[[], float]] = {
        named(schedule, ranks): partial(our_epoch_s, schedule, ranks) for schedule in SCHEDULES for ranks in (1, 2)}
    contestants |= {who: partial(their_epoch_s, build) for who, build in builds.items()}
    for schedule in SCHEDULES:
        our_epoch_s(schedule, 1)  # compiles what is not yet in the cache
    return {who: seconds.tolist() for who, seconds in interleave(contestants, repeats).items()}


def errors(files: Files, build: Libmf | None, epochs: int, penalties: Sequence[float]) -> dict[str, Errors]:
    """Return the errors of each schedule of ours, and of LIBMF, for all settings of their grids."""
    found: dict[str, Errors] = {}
    for who in (*SCHEDULES, *(("LIBMF",) if build else ())):
        found[who] = {}
        for l2, step_size in product(penalties, STEP_SIZES[who]):
            if who == "LIBMF":
                assert build is not None
                found[who][l2, step_size] = build.run(files, K, epochs, l2, step_size, test=True)["rmses_test"]
            else:
                run = ours(files, 2, K, *MODEL, "--schedule", who, "--l2", l2, "--step-size", step_size, "--epochs",
                           epochs, test=True)
                found[who][l2, step_size] = run["rmses_test"]
        lowest = min(found[who].items(), key=lambda item: min(item[1]))
        print(f"{who}: lowest RMSE held out {min(lowest[1]):.4f}, with λ = {lowest[0][0]:g} and step size "
              f"{lowest[0][1]:g}", flush=True)
    return found


def soonest(found: Errors, epoch_s: float, level: float) -> tuple[Setting, float]:
    """Return the setting that comes to ``level`` first, and its seconds."""
    times = {setting: reached_s(epoch_s, values, level) for setting, values in found.items()}
    best = min(times, key=lambda setting: (times[setting], min(found[setting])))
    return best, times[best]


def to_levels(found: dict[str, Errors], epoch_s: dict[str, float]) -> list[dict[str, Any]]:
    """Print and return, for each level, every contestant's seconds to it and the setting these are of."""
    lowest = min(min(values) for values in found["LIBMF"].values())
    levels = []
    for above in ABOVE:
        level = lowest * (1 + above)
        entry: dict[str, Any] = {"rmse_test": level, "above_libmfs_lowest": above, "contestants": {}}
        for who, seconds in epoch_s.items():
            (l2, step_size), taken = soonest(found[_grid(who)], seconds, level)
            reached = taken < float("inf")
            entry["contestants"][who] = {"l2": l2, "step_size": step_size, "seconds": taken if reached else None}
            print(f"RMSE {level:.4f}  {who:34s} " + (f"{taken:6.2f} s" if reached else "never  ")
                  + f"  (λ = {l2:g}, step size {step_size:g})", flush=True)
        levels.append(entry)
    return levels


def _grid(who: str) -> str:
    return next((schedule for schedule in SCHEDULES if schedule in who), "LIBMF")


def main() -> None:
    """Measure in turns, run the grids, write the results file and draw the figure."""
    parser = arguments(__doc__, repeats=5)
    parser.add_argument("--ratings", type=int, default=5_000_000, help="learnt from")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--peers", default=sys.executable, metavar="PYTHON", help="has libmf  [default: this]")
    parser.add_argument("--libmf-library", type=Path, metavar="FILE", help="LIBMF's library, built for this CPU")
    given = parser.parse_args()
    shape, epochs, repeats = Shape(given.ratings * 10 // 9, 60_000, 20_000), given.epochs, given.repeats
    penalties: Sequence[float] = PENALTIES
    if given.tiny:
        shape, epochs, repeats, penalties = Shape(60_000, 2000, 600), 3, 1, PENALTIES[1:2]
    builds, libmf = {}, version(given.peers, "libmf")
    if libmf:
        builds[PIP] = Libmf(given.peers)
        if given.libmf_library:
            builds[BEST] = Libmf(given.peers, given.libmf_library.absolute())
    with tempfile.TemporaryDirectory() as place:
        files = prepared(Path(place) / "ratings", shape)
        seconds = epoch_seconds(files, builds, min(epochs, 10), repeats)
        found = errors(files, builds[list(builds)[-1]] if builds else None, epochs, penalties)
        count = ours(files, 1, K, "--epochs", 1)["ratings"]
    epoch_s = medians(seconds)  # type: ignore[arg-type]
    rates = {who: count / each for who, each in epoch_s.items()}
    case: dict[str, Any] = {
        "ratings": count, "users": shape.users, "items": shape.items, "k": K, "noise": shape.noise, "libmf": libmf,
        "updates_per_s": rates, "epoch_s": {who: sorted(times) for who, times in seconds.items()},
        "two_ranks_over_one": {schedule: epoch_s[named(schedule, 1)] / epoch_s[named(schedule, 2)]
                               for schedule in SCHEDULES},
        "updates_over_libmf": {peer: {named(schedule, 1): rates[named(schedule, 1)] / rates[peer]
                                      for schedule in SCHEDULES} for peer in builds}}
    for who, rate in rates.items():
        against = ", ".join(f"{rate / rates[peer]:.2f} times {peer}" for peer in builds)
        print(f"{who:34s} {rate / 1e6:7.1f} M updates/s" + f"; {against}" * bool(against), flush=True)
    print(f"two ranks over one: {case['two_ranks_over_one']}")
    notes = "contestants interleaved; seconds to a level are epochs to it times the median seconds of an epoch"
    if builds:
        case["levels"] = to_levels(found, epoch_s)
        lowest = case["levels"][-1]
        settings = {who: (one["l2"], one["step_size"]) for who, one in lowest["contestants"].items()}
        if not given.tiny:
            draw_curves(RESULTS / "mf_sgd.svg", {
                who: ([each * (epoch + 1) for epoch in range(epochs)], found[_grid(who)][settings[who]])
                for who, each in epoch_s.items()}, "seconds of learning", "RMSE of the ratings held out",
                level=lowest["rmse_test"], highest=1.25 * lowest["rmse_test"])
    else:
        notes += "; LIBMF was not there (pip install libmf), and is left out"
        print(notes)
    case["rmses_test"] = [{"contestant": who, "l2": setting[0], "step_size": setting[1], "rmses": values}
                          for who, grid in found.items() for setting, values in grid.items()]
    finish("mf_sgd", [case], notes, given.tiny)


if __name__ == "__main__":
    main()
