"""The figure and the page of `papers.sparknet`, from its numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def shown(value: float | None) -> str:
    """Return a number of the grid in words."""
    return "–" if value is None else f"{value:.2f}"


def page(case: dict[str, Any]) -> str:
    """Return the Markdown page: the grid, and what it says beside what the paper says."""
    workers, taus, grid = case["workers"], case["tau"], case["speedup"]
    numbers = np.array([[0.0 if value is None else value for value in each] for each in grid])
    lines = ["# What averaging every τ iterations is worth: SparkNet's grid, redone", "",
             "Moritz, Nishihara, Stoica and Jordan, *SparkNet: Training Deep Networks in Spark*, ICLR 2016. This page "
             "was written by `benchmarks/papers/sparknet.py`; its numbers are in `sparknet.json`.", "",
             f"A network of one hidden layer of {case['hidden']} on {case['rows']:,} synthetic rows of "
             f"{case['features']} features and {case['classes']} classes that overlap; plain SGD, b = "
             f"{case['batch_size']} rows a worker and iteration, constant step size {case['step_size']:g}, "
             f"`train --algorithm local`. The loss to reach is {case['loss']:.4f} on the training rows; one worker "
             f"takes N_a = {', '.join(map(str, case['serial_iterations']))} iterations to it (by seed). The table is "
             "N_a / (τ·M_a): the speed-up if averaging took no time; its median over the seeds.", "",
             "![Speed-up by workers and τ](sparknet.svg)", "",
             "| K \\ τ | " + " | ".join(map(str, taus)) + " |", "|---|" + "---|" * len(taus)]
    lines += [f"| {count} | " + " | ".join(shown(value) for value in each) + " |"
              for count, each in zip(workers, grid, strict=True)]
    best = np.unravel_index(int(np.argmax(numbers)), numbers.shape)
    rises = float(np.mean(np.diff(numbers[1:], axis=0) >= -0.05)) if len(workers) > 2 else 1.0
    last = numbers[-1]
    peak = int(np.argmax(last))
    shape = ("largest for the smallest τ" if peak == 0 else "largest for the largest τ" if peak == len(taus) - 1
             else f"largest for τ = {taus[peak]}, and less on both sides")
    within = bool(np.all(numbers <= np.array(workers)[:, None]))
    lines += ["", "## What it says", "",
              "- With one worker averaging changes nothing: the first row is 1, but for the last round's being whole.",
              f"- More workers: in {rises:.0%} of the steps from K to K + 1 the speed-up does not fall. The largest is "
              f"{numbers[best]:.2f}, for K = {workers[best[0]]} and τ = {taus[best[1]]}."
              + ("" if within else " Where it exceeds K, what keeps one worker from the loss is the noise of a "
                 "constant step size, which averaging divides by K."),
              f"- For K = {workers[-1]} the speed-up is {shape}: {last[0]:.2f} for τ = {taus[0]}, {last[-1]:.2f} for "
              f"τ = {taus[-1]}. Of the best {last[-1] / max(last[peak], 1e-9):.0%} are left when models are averaged "
              f"every {taus[-1]} iterations. The paper's point, that models may be averaged rarely at little loss, "
              + ("**holds here**." if last[-1] > 0.75 * last[peak] else "**does not hold here up to this τ**."),
              "- τ = 1 is synchronous SGD with batches K times as large and the step size of one worker.", ""]
    return "\n".join(lines)


def draw(case: dict[str, Any], path: Path) -> None:
    """Draw the grid as a heat map with its numbers."""
    import matplotlib
    from matplotlib.figure import Figure

    numbers = np.array([[np.nan if value is None else value for value in each] for each in case["speedup"]])
    figure = Figure(figsize=(1.6 + 0.75 * len(case["tau"]), 1.4 + 0.5 * len(case["workers"])), facecolor="white",
                    layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(numbers, cmap="viridis", aspect="auto", origin="lower")
    for i, each in enumerate(case["speedup"]):
        for j, value in enumerate(each):
            bright = value is None or value > (np.nanmin(numbers) + np.nanmax(numbers)) / 2
            axes.text(j, i, shown(value), ha="center", va="center", fontsize=10, color="black" if bright else "white")
    axes.set_xticks(range(len(case["tau"])), [str(tau) for tau in case["tau"]])
    axes.set_yticks(range(len(case["workers"])), [str(count) for count in case["workers"]])
    axes.set_xlabel("τ, iterations between averages")
    axes.set_ylabel("K, workers")
    figure.colorbar(image, ax=axes, label="N_a / (τ·M_a)")
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "dml-hpc"}):
        figure.savefig(path, format="svg", metadata={"Date": None})
