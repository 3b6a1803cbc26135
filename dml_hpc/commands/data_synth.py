"""``dml-hpc data synth``: a data set of known answer, as HDF5 shards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dml_hpc.console import Console
from dml_hpc.files import check_output
from dml_hpc.mpi import Alone, on_root

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


def run(comm: Intracomm | Alone, console: Console, kind: str, output: Path, rows: int, overwrite: bool, shards: int,
        dtype: str, compression: str, holdout: float, **settings: Any) -> dict[str, Any]:
    """Make ``rows`` rows of ``kind`` in the folder ``output``; see `synthesise` for the arguments and the result."""
    from dml_hpc.data.replaceable import check_replaceable
    from dml_hpc.data.synthetic.synthesis import TRUTH, synthesise

    def check() -> None:
        check_output(output, overwrite, folder=True)
        check_replaceable(output)

    on_root(comm, check)
    result = synthesise(comm, output, kind, rows, shards=shards, dtype=dtype, holdout=holdout, console=console,
                        compression=None if compression == "none" else compression, **settings)
    files = "1 shard" if result["shards"] == 1 else f"{result['shards']} shards"
    parts = {"train": result["train_rows"], "test": result["test_rows"]} if holdout else {"": rows}
    width = f"{result['features']:,} {'items' if kind == 'ratings' else 'features'}"
    for part, count in parts.items():
        console.say(f"{output / part}: {count:,} rows × {width} in {files} of {dtype}")
    console.say(f"{output / TRUTH}: what they were made from")
    console.say(f"took {result['work_s']:.1f} s")
    return result
