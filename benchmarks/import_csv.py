"""Importing a table of numbers from CSV, against pyarrow's reader alone, which parses it on all cores into memory.

    python benchmarks/import_csv.py [MEGABYTES] [FOLDER]

The contestants run in turn, several times; ratios are of medians. An import also writes shards with their checksums
and every feature's statistics. The file (400 MB by default, 30 columns) is in the page cache for both.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
from results_file import write_results

from dml_hpc.data.importing import Form, import_data
from dml_hpc.mpi import Alone
from dml_hpc.reports.timing import interleave, timed

COLUMNS = 30
REPEATS = 5


def write_table(path: Path, megabytes: int) -> int:
    """Write normal variates of six digits and a 0/1 label ``y`` of about so much text; return the number of rows."""
    rows = megabytes * 1_000_000 // (COLUMNS * 8)
    draw = np.random.default_rng(0)
    columns = {f"x{i}": draw.standard_normal(rows).round(5) for i in range(COLUMNS - 1)}
    pa.csv.write_csv(pa.table({**columns, "y": draw.integers(0, 2, rows)}), path)
    return rows


def main() -> None:
    """Measure, print the ratio, write the results file."""
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    folder = Path(tempfile.mkdtemp(dir=sys.argv[2] if len(sys.argv) > 2 else None))
    try:
        rows = write_table(folder / "t.csv", megabytes)
        seconds = interleave({
            "import": timed(lambda: import_data(Alone(), [folder / "t.csv"], folder / "out", label="y", form=Form(8))),
            "read_csv": timed(lambda: pa.csv.read_csv(folder / "t.csv")),
        }, REPEATS)
        size = (folder / "t.csv").stat().st_size
    finally:
        shutil.rmtree(folder)
    median = {name: float(np.median(times)) for name, times in seconds.items()}
    case = {"rows": rows, "columns": COLUMNS, "bytes": size, "pyarrow": pa.__version__, "threads": pa.cpu_count(),
            "import_over_read_csv": median["import"] / median["read_csv"],
            "megabytes_per_s": {name: size / each / 1e6 for name, each in median.items()},
            "seconds": {name: sorted(times) for name, times in seconds.items()}}
    print(f"{size / 1e6:.0f} MB: import takes {case['import_over_read_csv']:.2f}× what read_csv takes")
    print(write_results("import_csv", [case], "one process; the whole import against parsing alone, interleaved"))


if __name__ == "__main__":
    main()
