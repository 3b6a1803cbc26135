"""Spark MLlib's full-batch logistic regression on one machine; prints one JSON line.

    PYTHON spark_logistic.py ROWS.npz CORES ITERATIONS ROUNDS

ROWS.npz holds X (rows × features) and y (0 or 1). ``sgd`` is the RDD-based gradient descent, whose iterates are
w − η/√t·∇: Spark's plainest full batch. ``lbfgs`` is the DataFrame-based one, which most use; it may stop before
ITERATIONS. Both find the rows cached in memory, in as many partitions as cores. ``gradient_s`` are the times from the
submission of one gradient's job to the next one's, by Spark's own clock: an iteration without what a fit does once.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import pyarrow
import pyspark
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.functions import array_to_vector
from pyspark.mllib.classification import LogisticRegressionWithSGD
from pyspark.mllib.linalg import Vectors
from pyspark.mllib.regression import LabeledPoint
from pyspark.sql import SparkSession

GRADIENTS = ("GradientDescent.scala", "RDDLossFunction.scala")


def gradient_s(spark: SparkSession, group: str) -> list[float]:
    """Return the times between the jobs of the group that sum a gradient."""
    jobs = spark.sparkContext._jsc.sc().statusStore().jobsList(None)
    found = [jobs.apply(i) for i in range(jobs.size())]
    submitted = sorted(job.submissionTime().get().getTime() for job in found
                       if job.jobGroup().isDefined() and job.jobGroup().get() == group
                       and "treeAggregate" in job.name() and any(file in job.name() for file in GRADIENTS))
    return (np.diff(submitted) / 1e3).tolist()


def main(rows: str, cores: str, iterations: str, rounds: str) -> None:
    """Fit in turns; print the times, and the weights that gradient descent ends with."""
    count = int(iterations)
    spark = (SparkSession.builder.master(f"local[{cores}]").config("spark.driver.memory", "6g")
             .config("spark.ui.enabled", "false").getOrCreate())
    spark.sparkContext.setLogLevel("ERROR")
    stored = np.load(rows)
    features = stored["X"].shape[1]
    matrix = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(stored["X"].reshape(-1)), features)
    table = spark.createDataFrame(pyarrow.table({"label": stored["y"].astype(np.float64), "x": matrix}))
    frame = table.select("label", array_to_vector("x").alias("features")).repartition(int(cores)).cache()
    points = frame.rdd.map(lambda row: LabeledPoint(row.label, Vectors.dense(row.features.toArray()))).cache()
    assert frame.count() == points.count() == len(stored["y"])
    weights: list[float] = []

    def lbfgs() -> int:
        return LogisticRegression(maxIter=count, tol=0.0, regParam=0.0, standardization=False,
                                  fitIntercept=False).fit(frame).summary.totalIterations

    def sgd() -> int:
        weights[:] = LogisticRegressionWithSGD.train(
            points, iterations=count, step=1.0, miniBatchFraction=1.0, regParam=0.0, regType=None,
            convergenceTol=0.0).weights.toArray().tolist()
        return count

    found: dict[str, dict[str, Any]] = {}
    for turn in range(int(rounds) + 1):
        for name, fit in (("sgd", sgd), ("lbfgs", lbfgs)):
            group = f"{name} {turn}"
            spark.sparkContext.setJobGroup(group, name)
            started = time.perf_counter()
            taken = fit()
            fit_s = time.perf_counter() - started
            times = found.setdefault(name, {"gradient_s": [], "fit_s": [], "iterations": taken})
            if turn:  # the first lets the JVM compile
                times["fit_s"].append(fit_s)
                times["gradient_s"] += gradient_s(spark, group)
    print(json.dumps({"version": pyspark.__version__, "found": found, "weights": weights}))
    spark.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
