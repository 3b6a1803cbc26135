"""Spark MLlib's ``RowMatrix.computeSVD`` on one machine; prints one JSON line.

    PYTHON spark_svd.py MATRIX.npy K CORES

MATRIX.npy holds the rows. They are cached in memory, in as many partitions as cores, before the clock starts. One call,
the JVM warmed by a call on a few of the rows only: it takes long enough.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import pyarrow
import pyspark
from pyspark.ml.functions import array_to_vector
from pyspark.mllib.linalg import Vectors
from pyspark.mllib.linalg.distributed import RowMatrix
from pyspark.sql import SparkSession

WARMING_ROWS = 5000


def main(path: str, k: str, cores: str) -> None:
    """Factorise once and print the time and the singular values."""
    spark = (SparkSession.builder.master(f"local[{cores}]").config("spark.driver.memory", "6g")
             .config("spark.ui.enabled", "false").getOrCreate())
    spark.sparkContext.setLogLevel("ERROR")
    stored = np.load(path)

    def matrix(rows: np.ndarray) -> RowMatrix:
        lists = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(rows.reshape(-1)), rows.shape[1])
        frame = spark.createDataFrame(pyarrow.table({"x": lists})).select(array_to_vector("x").alias("x"))
        vectors = frame.repartition(int(cores)).rdd.map(lambda row: Vectors.dense(row.x.toArray())).cache()
        assert vectors.count() == len(rows)
        return RowMatrix(vectors)

    matrix(stored[:WARMING_ROWS]).computeSVD(int(k))
    rows = matrix(stored)
    rows.numRows()
    started = time.perf_counter()
    found = rows.computeSVD(int(k))
    seconds = time.perf_counter() - started
    print(json.dumps({"version": pyspark.__version__, "seconds": seconds,
                      "singular_values": found.s.toArray().tolist()}))
    spark.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
