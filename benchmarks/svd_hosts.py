"""Strong scaling of the SVD over emulated hosts of 1 Gbit/s, and where the time goes.

    python benchmarks/svd_hosts.py [--hosts 1 2 4 8] [--rate 1gbit] [--rows 100000]

A dense matrix of 256 columns, k = 10, a rank a host; every number of hosts in turn, several times. Times are the
``work_s`` of the records, and the sentence that says where time is lost is that of ``dml-hpc report``, which also draws
results/svd_hosts.png. Beside them the time split alone, without what a rank does once whatever the matrix (loading
compiled kernels, opening, writing). Needs root, see scripts/emulated_cluster.sh. Hosts share the cores of one machine:
on two cores neither computing nor what every rank does once can go faster than on two hosts; nothing else may run
meanwhile.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from results_file import RESULTS
from running import TOOLS, arguments, dml_hpc, finish, on_hosts

from dml_hpc.reports.records import read_records
from dml_hpc.reports.scaling import Group, analyse
from dml_hpc.reports.timing import interleave


def described(group: Group, rate: str) -> dict[str, Any]:
    """Print how one method scaled and return the case of the results file."""
    cores = os.cpu_count() or 1
    fewest_s = sum(group.points[0].split.values())
    points = []
    for point in group.points:
        within = fewest_s / sum(point.split.values())
        points.append({"hosts": point.ranks, "work_s": point.seconds, "work_s_min": point.seconds_min,
                       "work_s_max": point.seconds_max, "time_split": point.split, "outside_the_split_s": point.other_s,
                       "speedup": point.speedup, "speedup_of_the_split": within,
                       "speedup_of_the_split_over_what_cores_allow": within / min(point.ranks, cores)})
        split = ", ".join(f"{name} {seconds:.3f}" for name, seconds in point.split.items())
        print(f"{group.short}, {point.ranks} hosts: {point.speedup:.2f} times as fast as {group.base}, "
              f"{within:.2f} within the split; seconds: {split}, other {point.other_s:.3f}")
    print(group.verdict, flush=True)
    return {"job": group.label, "rate": rate, "cores": cores, "points": points, "where_it_is_lost": group.verdict}


def main() -> None:
    """Measure in turns, write the results file and draw the figure."""
    parser = arguments(__doc__, repeats=5)
    parser.add_argument("--hosts", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rate", default="1gbit")
    parser.add_argument("--rows", type=int, default=100_000)
    given = parser.parse_args()
    hosts, repeats, rows, features = given.hosts, given.repeats, given.rows, 256
    if given.tiny:
        hosts, repeats, rows, features = [1, 2], 1, 2000, 32
    with tempfile.TemporaryDirectory() as place:
        # Names within the folder, so that the report calls the job by them and not by where that is.
        os.chdir(place)
        records, figure = Path("svd.jsonl"), Path("svd.png")
        dml_hpc(1, "data", "synth", "lowrank", "--rows", rows, "--features", features, "--noise", 1, "-o", "lowrank")

        def work_s(number: int, method: str, *record: object) -> float:
            return on_hosts(number, given.rate, "svd", "lowrank", "-o", "svd.h5", "--overwrite", "-k", 10, "--method",
                            method, *record)["work_s"]

        methods = ("gram", "randomized")
        for method in methods:
            work_s(1, method)  # compiles what is not yet in the cache
        interleave({(number, method): partial(work_s, number, method, "--record", records)
                    for number in hosts for method in methods}, repeats)
        groups = analyse(read_records([records])).groups
        subprocess.run([TOOLS / "dml-hpc", "report", records, "-o", figure], check=True, stdout=subprocess.DEVNULL)
        if not given.tiny:
            (RESULTS / "svd_hosts.png").write_bytes(figure.read_bytes())
    finish("svd_hosts", [described(group, given.rate) for group in groups],
           "one rank a host, hosts emulated on one machine, numbers of hosts interleaved; medians; speed-ups are over "
           "the fewest hosts", given.tiny)


if __name__ == "__main__":
    main()
