"""What checkpoints cost: a model of 256 MiB, trained with and without them, in turns.

    python benchmarks/checkpoint.py [--repeats 5]

Logistic regression with momentum over sparse rows of 2^26 features, whole gradients summed by 2 ranks: the state is
twice the model, 512 MiB. Checkpoints are far more frequent than anybody needs, so that what one costs stands out of the
noise; the share of the time is then that of one a minute. Times end before the last one, for which a run waits.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from running import arguments, dml_hpc, finish, medians

from dml_hpc.reports.timing import interleave

MINUTE_S = 60.0


def training(data: Path, steps: int, every: int | None, taken: list[float]) -> Callable[[], float]:
    """Return what trains and returns the seconds that its steps took; ``taken`` gets those of a checkpoint's copy."""
    def steps_s() -> float:
        folder = data.with_suffix(".run")
        keep = () if every is None else ("--checkpoint", folder, "--checkpoint-every", f"{every}steps", "--keep", 1)
        run = dml_hpc(2, "train", data, "-o", data.with_suffix(".h5"), "--overwrite", "--algorithm", "sync",
                      "--exchange", "dense", "--optimizer", "sgd", "--momentum", 0.9, "--steps", steps,
                      "--allreduce", "hierarchical", *keep)
        shutil.rmtree(folder, ignore_errors=True)
        if every is not None:
            taken.append(max(rank["checkpoint_s"] for rank in run["per_rank"]) / run["checkpoints"])
        return float(run["trace"][0][-1]["seconds"])

    return steps_s


def written_s(folder: Path, n_bytes: int) -> float:
    """Return how long this disk takes for one file of so many bytes, flushed: what writing cannot be faster than."""
    content = np.ones(n_bytes, np.uint8)
    started = time.perf_counter()
    with open(folder / "trial", "wb", buffering=0) as file:
        file.write(memoryview(content))  # type: ignore[arg-type]
        os.fsync(file.fileno())
    took = time.perf_counter() - started
    (folder / "trial").unlink()
    return took


def main() -> None:
    """Make the data, measure in turns, write the results file."""
    given = arguments(__doc__, repeats=5).parse_args()
    features, steps, every, repeats = (1 << 26, 150, 15, given.repeats) if not given.tiny else (1 << 12, 6, 2, 1)
    taken: list[float] = []
    with tempfile.TemporaryDirectory() as place:
        data = Path(place) / "data"
        dml_hpc(2, "data", "synth", "sparse-binary", "--rows", 20_000, "--features", features, "--row-entries", 32,
                "-o", data)
        disk_s = written_s(Path(place), 8 * features)
        seconds = interleave({"without": training(data, steps, None, taken),
                              "with": training(data, steps, every, taken)}, repeats)
    median = medians(seconds)
    count = (steps - 1) // every
    pairs = [(long - short) / count for long, short in zip(seconds["with"], seconds["without"], strict=True)]
    extra_s = float(np.median(pairs))
    share = extra_s / MINUTE_S
    print(f"one checkpoint of {8 * features >> 20} MiB costs {extra_s:.3f} s: {share:.2%} of the time at one a minute; "
          f"the copy takes {np.median(taken):.3f} s of it")
    case = {"model_bytes": 4 * features, "state_bytes": 8 * features, "steps": steps, "checkpoints": count,
            "one_checkpoint_s": extra_s, "one_checkpoint_s_of_each_pair": sorted(pairs),
            "copy_s": float(np.median(taken)), "share_at_one_a_minute": share, "disk_s": disk_s, "steps_s": median,
            "all_s": {who: sorted(times) for who, times in seconds.items()}}
    finish("checkpoint", [case], "what a checkpoint adds; its thread writes while ranks train on the same cores",
           given.tiny)


if __name__ == "__main__":
    main()
