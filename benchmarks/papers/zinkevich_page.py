"""The figure and the page of `papers.zinkevich`, from its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

CLEARLY = 3.0
"""So many times as much is far more."""
WORDS = {"huber": "Huber", "linear": "squared"}


def gains(relative: dict[str, list[float]]) -> tuple[float, float]:
    """Return by how much the second number of machines lowers the first's last value, and the third the second's."""
    one, ten, hundred = (values[-1] for values in relative.values())
    return one - ten, ten - hundred


def named(case: dict[str, Any], between: str = ", λ = ") -> str:
    """Return the words for a setting."""
    return f"{WORDS[case['loss']]}{between}{case['l2']:g}"


def verdict(agrees: bool) -> str:
    """Return the word for it."""
    return "**agrees**" if agrees else "**does not agree**"


def page(cases: Sequence[dict[str, Any]], spread: Sequence[dict[str, Any]], rows: int, entries: float,
         step_size: float) -> str:
    """Return the Markdown page: the numbers, and where they agree with the paper."""
    counts = list(cases[0]["values"])
    columns = [f"{name}, {count}" for name in ("objective", "RMSE") for count in counts]
    lines = ["# Averaging the models of 1, 10 and 100 machines: the experiment of 2010, redone", "",
             "Zinkevich, Weimer, Smola and Li, *Parallelized Stochastic Gradient Descent*, NIPS 2010, section 4. This "
             "page was written by `benchmarks/papers/zinkevich.py`; its numbers are in `zinkevich.json`.", "",
             f"{rows:,} synthetic texts of {entries:g} words on average, 2^18 features, every row of length 1, labels "
             "±1 (one in twenty turned round), a quarter as many rows held out, no intercept; constant step size η = "
             f"{step_size:.4g} (the paper's 1e-3 times 2,508,220 / {rows:,}). Every machine draws its examples from "
             "all rows (`train --algorithm average --machines M --replicas`). All values are divided by those of one "
             "sequential pass, as in the paper; those of one machine are means of several runs.", "",
             "![Objective and RMSE by examples a machine](zinkevich.svg)", "",
             "## After as many examples a machine as there are rows", "",
             f"| loss | λ | {' | '.join(columns)} |", "|---|---|" + "---|" * len(columns)]
    for case in cases:
        values = [case["relative"][name][count][-1] for name in ("objective", "rmse") for count in counts]
        lines.append(f"| {named(case, ' | ')} | {' | '.join(f'{value:.4f}' for value in values)} |")
    lines += ["", "## What the paper found, and what is found here", "", *_findings(cases, counts), "",
              "## Averaging divides the variance, not the bias", "",
              "Huber loss, λ = 1e-6, runs of different seeds: the squared distance of the mean model from the optimum "
              "(bias²), and the mean squared distance of the runs' models from their mean (variance).", "",
              "| machines | runs | bias² | variance | variance of one machine over this |", "|---|---|---|---|---|"]
    one = spread[0]
    for each in spread:
        lines.append(f"| {each['machines']} | {each['runs']} | {each['bias']:.4g} | {each['variance']:.4g} | "
                     f"{one['variance'] / each['variance']:.1f} |")
    off = max(abs(one["variance"] / each["variance"] / each["machines"] - 1) for each in spread)
    moved = max(abs(each["bias"] / one["bias"] - 1) for each in spread)
    lines += ["", f"The variance falls by the number of machines to within {off:.0%}, and the bias moves by at most "
              f"{moved:.0%}: what is found {verdict(off < 0.25 and moved < 0.25)} with the theory.", ""]
    return "\n".join(lines)


def _findings(cases: Sequence[dict[str, Any]], counts: Sequence[str]) -> list[str]:
    """Return a line for each claim of the paper's section 4."""
    first, second, third = counts
    lines, by = [], {(case["loss"], case["l2"]): case["relative"] for case in cases}
    helped = [(case, name, *gains(case["relative"][name])) for case in cases for name in ("objective", "rmse")]
    far = sum(one > CLEARLY * abs(two) for _, _, one, two in helped)
    lines.append(f"- *From {first} to {second} machines helps far more than from {second} to {third}.* In {far} of "
                 f"{len(helped)} columns the first gain is more than {CLEARLY:g} times the second: "
                 f"{verdict(far == len(helped))}. Gains: "
                 + "; ".join(f"{named(case)}, {'RMSE' if name == 'rmse' else name}: {one:.4f} and {two:.4f}"
                             for case, name, one, two in helped) + ".")
    for loss in sorted({loss for loss, _ in by}):
        strong, weak = by.get((loss, 1e-3)), by.get((loss, 1e-6))
        if strong and weak:
            gain = {l2: sum(gains(values["objective"])) for l2, values in ((1e-3, strong), (1e-6, weak))}
            lines.append(f"- *The smaller λ gains more from averaging* ({WORDS[loss]}). {third} machines lower the "
                         f"objective by {gain[1e-6]:.4f} with λ = 1e-6 and by {gain[1e-3]:.4f} with 1e-3: "
                         f"{verdict(gain[1e-6] > gain[1e-3])}.")
    weak_cases = [case for case in cases if case["l2"] == 1e-6]
    beaten = all(case["relative"]["objective"][count][-1] < 1 for case in weak_cases for count in (second, third))
    lines.append(f"- *With λ = 1e-6, {second} and {third} machines end below a single sequential pass.* "
                 f"{verdict(beaten)}.")
    looked_at = cases[0]["examples_a_machine"]
    enough = [next((each for each, value in zip(looked_at, case["relative"]["rmse"][third], strict=True)
                    if value <= 1), None) for case in cases]
    lines.append("- *More machines reach a given error after fewer examples each.* The RMSE of a sequential pass of "
                 f"{looked_at[-1]:,} examples is reached by {third} machines after, each, "
                 + "; ".join(f"{'more' if each is None else format(each, ',')} ({named(case)})"
                             for case, each in zip(cases, enough, strict=True))
                 + f": {verdict(all(each is not None and each < looked_at[-1] for each in enough))}.")
    if ("huber", 1e-3) in by and ("linear", 1e-3) in by:
        apart = max(abs(a - b) for count in counts for a, b in zip(by["huber", 1e-3]["rmse"][count],
                                                                    by["linear", 1e-3]["rmse"][count], strict=True))
        lines.append(f"- *Squared and Huber loss behave alike.* Their relative RMSE differ by at most {apart:.3f} with "
                     f"λ = 1e-3: {verdict(apart < 0.05)}.")
    return lines


def draw(cases: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw relative objective and RMSE against examples a machine, a curve for each number of machines."""
    import matplotlib
    from matplotlib.figure import Figure

    from dml_hpc.reports.plots import CURVES, INK, MARKERS

    figure = Figure(figsize=(3.1 * len(cases), 6.0), facecolor="white", layout="constrained")
    panels = figure.subplots(2, len(cases), squeeze=False, sharex=True, sharey="row")
    for column, case in enumerate(cases):
        for row, (name, label) in enumerate((("objective", "objective"), ("rmse", "RMSE, held out"))):
            axes = panels[row][column]
            for i, (count, values) in enumerate(case["relative"][name].items()):
                axes.plot(case["examples_a_machine"], values, color=CURVES[i], marker=MARKERS[i], markersize=5,
                          label=f"{count} machine{'s' * (count != '1')}")
            axes.axhline(1.0, color=INK, linewidth=0.8, linestyle=(0, (5, 4)))
            axes.set_xscale("log", base=2)
            axes.spines[["top", "right"]].set_visible(False)
            if row == 0:
                axes.set_title(named(case, " loss, λ = "), fontsize=11)
            else:
                axes.set_xlabel("examples a machine")
            if column == 0:
                axes.set_ylabel(f"{label}, over one pass")
    panels[0][0].legend(frameon=False, fontsize=9)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "dml-hpc"}):
        figure.savefig(path, format="svg", metadata={"Date": None})
