"""50 million ratings on one node: the memory that importing them takes, and learning on two ranks.

    python benchmarks/mf_memory.py [--ratings 50000000] [--limit-gibibytes 24]
    python benchmarks/mf_memory.py --draw

A CSV of user, item and rating (200,000 × 50,000, with a skew in popularity) is imported by one process; then `mf`
learns two epochs with each algorithm, k = 64, on two ranks. Peaks are the kernel's own (VmHWM), of whole processes,
interpreter and libraries and mapped pages of the files included: added up over ranks, which count a page that both have
mapped twice. ``growth`` is by how much the node's own use of memory grew, sampled from outside ten times a second:
MemTotal − MemAvailable, which counts no page of a file that could be dropped.
"""

from __future__ import annotations

import resource
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.csv
from curves import save_svg
from matplotlib.figure import Figure
from mf_contest import Files, ours
from rated import Shape
from running import TOOLS, arguments, drawn, finish

from dml_hpc.data.synthetic.factors import Ratings
from dml_hpc.reports.figures.canvas import CURVES, GRID, INK, PAPER, style

K, RANKS, EPOCHS = 64, 2, 2
GIBI = 1 << 30
PAUSE_S = 0.1
AT_A_TIME = 1 << 20
ALGORITHMS: dict[str, tuple[object, ...]] = {
    "sgd": ("--algorithm", "sgd"),
    "als": ("--algorithm", "als"),
    "als, implicit": ("--algorithm", "als", "--implicit", "--alpha", 10, "--l2", 1),
}


class Growth:
    """With it, the most memory that the node has in use over what it has at the start, ``bytes``."""

    def __init__(self) -> None:
        self.bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Growth:
        self._before = used_bytes()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(PAUSE_S):
            self.bytes = max(self.bytes, used_bytes() - self._before)


def used_bytes() -> int:
    """Return the memory of this machine that is not to be had."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return (int(lines["MemTotal"].split()[0]) - int(lines["MemAvailable"].split()[0])) << 10


def write_csv(shape: Shape, path: Path) -> None:
    """Write the ratings of ``data synth ratings`` as a table, in an order in which nothing is near to anything."""
    source = Ratings(shape.ratings, shape.users, shape.items, 0, shape.k, shape.noise)
    kinds = pyarrow.schema([("user", pyarrow.int32()), ("item", pyarrow.int32()), ("rating", pyarrow.float32())])
    with pyarrow.csv.CSVWriter(path, kinds) as writer:
        for start in range(0, shape.ratings, AT_A_TIME):
            pairs, ratings = source.read(start, min(start + AT_A_TIME, shape.ratings))
            columns = [*pairs.T.astype("int32"), np.abs(ratings).astype("float32")]  # none negative: implicit, too
            writer.write_table(pyarrow.table([pyarrow.array(column) for column in columns], schema=kinds))


def told(name: str, limit: int, job: Callable[[], list[int]]) -> dict[str, Any]:
    """Run what returns the peaks of its processes, print and return the case of the results file."""
    with Growth() as growth:
        peaks = job()
    print(f"{name:14s} peaks {', '.join(f'{peak / GIBI:.2f}' for peak in peaks)} GiB, together "
          f"{sum(peaks) / GIBI:.2f}; the node's use grew by {growth.bytes / GIBI:.2f} GiB", flush=True)
    return {"job": name, "peak_bytes": peaks, "peak_bytes_together": sum(peaks), "growth_bytes": growth.bytes,
            "share_of_limit": sum(peaks) / limit}


def imported(table: Path, output: Path) -> list[int]:
    """Import the CSV in one process and return its peak.

    It is by far the largest process that this one starts and waits for until then (by ``RUSAGE_CHILDREN``).
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    subprocess.run([TOOLS / "dml-hpc", "data", "import", table, "-o", output, "--user", "user", "--item", "item",
                    "--rating", "rating", "--no-progress"], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    if after == before:
        print("data import took no more than what was run before it: its peak is at most what is said")
    return [after << 10]


def draw(cases: list[dict[str, Any]], path: Path) -> None:
    """Draw the peak of each process, one behind the other, and by how much the node's use grew."""
    figure = Figure(figsize=(7.2, 3.4), facecolor="white", layout="constrained")
    axes = figure.subplots()
    first = cases[0]
    style(axes, f"GiB; the limit is {first['limit_bytes'] / GIBI:g}", f"{first['ratings'] / 1e6:,.0f} million ratings, "
          f"{first['users']:,} users × {first['items']:,} items, k = {cases[-1]['k']}", size=10)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    for at, case in enumerate(cases):
        left = 0.0
        for rank, peak in enumerate(case["peak_bytes"]):
            axes.barh(at, peak / GIBI, 0.6, left, color=CURVES[5 if rank else 0], edgecolor=PAPER,
                      label=f"peak of {'the other rank' if rank else 'a process'}")
            left += peak / GIBI
        axes.plot([case["growth_bytes"] / GIBI], [at], "D", color=CURVES[1], markersize=7,
                  label="growth of the node's use, droppable pages of files left out")
        axes.annotate(f"{left:.2f}", (left, at), (5, 0), textcoords="offset points", va="center", color=INK,
                      fontsize=10)
    axes.set_yticks(range(len(cases)), [case["job"] for case in cases])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    handles, names = axes.get_legend_handles_labels()
    once = dict(zip(names, handles, strict=True))
    figure.legend(once.values(), once.keys(), loc="outside lower left", frameon=False, labelcolor=INK, fontsize=10)
    save_svg(figure, path)


def main() -> None:
    """Make the table, import it, learn, write the results file and draw it."""
    parser = arguments(__doc__, draws=True)
    parser.add_argument("--ratings", type=int, default=50_000_000)
    parser.add_argument("--limit-gibibytes", type=float, default=24)
    given = parser.parse_args()
    if given.draw:
        drawn("mf_memory", draw)
        return
    shape = Shape(60_000, 2000, 600) if given.tiny else Shape(given.ratings, 200_000, 50_000)
    limit = int(given.limit_gibibytes * GIBI)
    with tempfile.TemporaryDirectory() as place:
        table = Path(place) / "ratings.csv"
        write_csv(shape, table)
        files = Files(Path(place), shape)
        cases = [told("data import", limit, lambda: imported(table, files.train))]
        cases[0]["csv_bytes"] = table.stat().st_size
        table.unlink()
        for name, options in ALGORITHMS.items():
            def learn(options: tuple[object, ...] = options) -> list[int]:
                run = ours(files, RANKS, K, "--epochs", EPOCHS, *options)
                return [rank["peak_bytes"] for rank in run["per_rank"]]

            cases.append({"k": K, "ranks": RANKS, "epochs": EPOCHS, **told(name, limit, learn)})
    for case in cases:
        case |= {"ratings": shape.ratings, "users": shape.users, "items": shape.items, "limit_bytes": limit}
    finish("mf_memory", cases, "peaks of whole processes, mapped pages included; ranks' peaks are added up", given.tiny,
           draw)


if __name__ == "__main__":
    main()
