"""Training a network over emulated hosts of 1 Gbit/s: what sending layers while others are computed saves.

    python benchmarks/overlap.py [--hosts 4] [--rate 1gbit]

``train --objective mlp`` with ``--overlap`` and with ``--no-overlap``, in turns. The batch is first sized so that a
step computes about as long as it communicates: then the best there could be is half of the time of one after the
other. Needs root, see scripts/emulated_cluster.sh. Hosts share the cores of one machine, so computing is slower the
more they are; nothing else may run meanwhile.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from running import ONE_THREAD, TOOLS, arguments, dml_hpc, finish, medians

from dml_hpc.reports.timing import interleave

CLUSTER = Path(__file__).parents[1] / "scripts" / "emulated_cluster.sh"
FEATURES = 256
HIDDEN: tuple[int, ...] = (768, 768, 768)
TRIALS = 3
"""How often the batch is sized."""


class Cluster:
    """Trains on the data set ``data`` over ``hosts`` hosts, a rank each."""

    def __init__(self, data: Path, hosts: int, rate: str, hidden: tuple[int, ...], steps: int):
        self._data, self._hosts, self._rate, self._steps = data, hosts, rate, steps
        self._hidden = ",".join(map(str, hidden))
        self.batch = 64 * hosts

    def train(self, overlap: bool) -> dict[str, Any]:
        """Return the JSON object of a run."""
        line = [CLUSTER, self._hosts, "--rate", self._rate, "--", TOOLS / "dml-hpc", "train", self._data, "-o",
                self._data.with_suffix(".h5"), "--overwrite", "--objective", "mlp", "--hidden", self._hidden,
                "--algorithm", "sync", "--batch-size", self.batch, "--steps", self._steps, "--optimizer", "sgd",
                "--step-size", 0.01, "--allreduce", "ring", "--overlap" if overlap else "--no-overlap", "--json",
                "--no-progress"]
        path = f"{TOOLS}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(list(map(str, line)), text=True, capture_output=True, env={**ONE_THREAD, "PATH": path})
        if done.returncode:
            sys.stderr.write(done.stderr)
            done.check_returncode()
        return json.loads(done.stdout.splitlines()[-1])

    def step_s(self, overlap: bool) -> float:
        """Train and return the seconds of a step."""
        run = self.train(overlap)
        return run["work_s"] / run["steps"]

    def size_batch(self) -> float:
        """Choose the batch so that computing takes as long as communicating; return the ratio of the two before."""
        split = self.train(overlap=False)["time_split"]
        ratio = split["compute"] / (split["communicate"] + split["wait"])
        self.batch = max(self._hosts, round(self.batch / ratio / self._hosts) * self._hosts)
        print(f"computing takes {ratio:.2f} times as long as communicating; the batch is now {self.batch}", flush=True)
        return ratio


def main() -> None:
    """Size the batch, measure in turns, write the results file."""
    parser = arguments(__doc__, repeats=5)
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--rate", default="1gbit")
    given = parser.parse_args()
    hosts, repeats, hidden, steps, rows = given.hosts, given.repeats, HIDDEN, 40, 50_000
    if given.tiny:
        hosts, repeats, hidden, steps, rows = 2, 1, (512, 512), 10, 1000
    with tempfile.TemporaryDirectory() as place:
        data = Path(place) / "data"
        dml_hpc(1, "data", "synth", "multiclass", "--rows", rows, "--features", FEATURES, "-o", data)
        cluster = Cluster(data, hosts, given.rate, hidden, steps)
        for _ in range(1 if given.tiny else TRIALS):
            ratio = cluster.size_batch()
        seconds = interleave({"overlap": lambda: cluster.step_s(True), "one after the other":
                              lambda: cluster.step_s(False)}, repeats)
        splits = {name: cluster.train(name == "overlap")["time_split"] for name in seconds}
    median = medians(seconds)
    share = median["overlap"] / median["one after the other"]
    print(f"{hosts} hosts, {given.rate}: a step with overlap takes {share:.2f} of one after the other")
    case = {"hosts": hosts, "rate": given.rate, "features": FEATURES, "hidden": hidden, "batch_size": cluster.batch,
            "compute_over_communicate_when_sized": ratio, "overlap_over_one_after_the_other": share,
            "time_split": splits, "step_s": {who: sorted(times) for who, times in seconds.items()}}
    finish("overlap", [case], "mlp, plain SGD, ring all-reduce, hosts emulated on one machine", given.tiny)


if __name__ == "__main__":
    main()
