"""Spark MLlib's explicit ALS on one machine; prints one JSON line.

    PYTHON spark_als.py TRAIN.parquet OUTPUT K ITERATIONS CORES ROUNDS L2 [L2 ...]

The ratings are in memory, cached and counted. Every λ is fitted once, which lets the JVM compile, and then ROUNDS
times, which may be none, of which ``seconds`` are noted. OUTPUT/fit-N holds the factors of the last fit (users and
items, Parquet: id, features), N from 0 in the order of the λs.
"""

from __future__ import annotations

import json
import sys
import time

import pyspark
from pyspark.ml.recommendation import ALS
from pyspark.sql import SparkSession


def main(train: str, output: str, k: str, iterations: str, cores: str, rounds: str, *penalties: str) -> None:
    """Fit, write the factors and print the seconds."""
    spark = (SparkSession.builder.master(f"local[{cores}]").config("spark.driver.memory", "6g")
             .config("spark.ui.enabled", "false").config("spark.sql.shuffle.partitions", cores)
             .config("spark.driver.extraJavaOptions", "-Xss64m")  # 15 iterations overflow the usual stack
             .getOrCreate())
    spark.sparkContext.setLogLevel("ERROR")
    ratings = spark.read.parquet(train).repartition(int(cores)).cache()
    count = ratings.count()

    seconds: list[list[float]] = [[] for _ in penalties]
    for turn in range(int(rounds) + 1):
        for number, l2 in enumerate(penalties):
            als = ALS(rank=int(k), maxIter=int(iterations), regParam=float(l2), userCol="user", itemCol="item",
                      ratingCol="rating", numUserBlocks=int(cores), numItemBlocks=int(cores), seed=0)
            started = time.perf_counter()
            model = als.fit(ratings)
            if turn:
                seconds[number].append(time.perf_counter() - started)
            for name, factors in (("users", model.userFactors), ("items", model.itemFactors)):
                factors.write.mode("overwrite").parquet(f"{output}/fit-{number}/{name}")
    print(json.dumps({"version": pyspark.__version__, "ratings": count, "seconds": seconds}))
    spark.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
