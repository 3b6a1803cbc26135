"""How the times of all-reduces go on as nodes are added.

For every reducer `dml_hpc.comm.cost` counts messages and bytes; α comes from short vectors or from the wire's own
ping-pong, β from the times, and what was measured, which no model gets quite right, is multiplied by what the model
says more nodes do to it.

- ``ring`` and ``hierarchical`` go round in equal steps, and a step takes what its block takes: 1 MiB on 4 nodes tells
  what the steps of 4 MiB take on 16.
- Two nodes are no example of more: left and right neighbour, or parent and child, are the same partner there, and both
  ways share a pair of sockets. They do not count where more were measured.
- ``mpi``: the library does not say what it does. Published algorithms are held against the times, and those that fit
  count by their Akaike weights. For long vectors that is the ring, and Rabenseifner's, in which exchanges of halves
  come before those of smaller and smaller blocks with farther and farther partners; the two kinds may go at different
  speeds. For short vectors it is recursive doubling, too (Thakur, Rabenseifner and Gropp 2005).
- ``tree``: in a rank that has a parent and several children, flows that share its link hold one another up, both ways.
  How much is measured and not derived, see `CROWDED`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np

from dml_hpc.comm.cost import cost
from dml_hpc.reports.bench_cases import Case
from dml_hpc.reports.intervals import least_squares

LONG_BYTES = 1 << 16
"""Libraries double vectors up to about here, and halve longer ones."""
CROWDED, CROWDED_SPREAD = 1.5, 0.4
"""Vectors that a tree's level costs beyond its segments when its ranks have a parent and two children, and how sure
that is. Of 4 to 16 emulated hosts at 25 and 100 Mbit/s with MPICH and Open MPI, 1 and 4 MiB."""
DRAWS = 500

ALIKE = 0.06
"""How far the times a byte of two long vectors differ, relatively, apart from noise."""
MOST_LATENCY = 0.9
"""The part of a time that messages may take by themselves."""
LATENCY_SPREAD = 0.3
"""How sure α is, relatively."""

Terms = Callable[[int], Sequence[float]]
"""Of a model, for so many nodes."""


def stepwise(case: Case, n_bytes: int, nodes: Sequence[int], further: Sequence[int],
             random: np.random.Generator) -> tuple[np.ndarray, float]:
    """Return times (draws, further) of what goes round in equal steps, and the share of bytes in the last measured.

    A step takes what its block takes, whatever the vector and the number of nodes: on 4 nodes 1 MiB goes in the same
    blocks as 4 MiB on 16. Blocks of other sizes have a say, too, the less the more they differ.
    """
    alpha, beta = _latency(case, n_bytes, nodes[-1]), case.wire.get(nodes[-1], (0.0, 0.0))[1] or 1.0

    def step(at: int, own: int) -> tuple[float, float, float]:
        """Return the number of steps, the bytes of a block, and what the model says of a step."""
        found = cost(case.reducer, at * case.per_node, at, own, case.fan_in)
        steps = 2.0 * (at * (case.per_node if case.reducer == "ring" else 1) - 1)
        messages, of_bytes = (0.0, float(own)) if found is None else (found.messages / steps, found.n_bytes / steps)
        return steps, of_bytes, messages * alpha * (beta < 1.0) + of_bytes * beta

    seen = [at for at in case.times if at[0] <= nodes[-1] and (at[0] > 2 or nodes[-1] == 2)]
    steps, blocks, models = np.array([step(*at) for at in seen]).T
    noise = np.array([case.noise(at) for at in seen])
    each = np.array([median(case.times[at]) for at in seen]) / steps / models
    drawn = np.log(each) + noise * random.standard_normal((DRAWS, len(seen)))
    times = np.empty((DRAWS, len(further)))
    for column, at in enumerate(further):
        steps_there, block, model = step(at, n_bytes)
        weights = 1 / (noise**2 + (ALIKE * np.log2(block / blocks))**2)
        times[:, column] = steps_there * model * np.exp(drawn @ weights / weights.sum())
    last = step(nodes[-1], n_bytes)
    return times, min(last[0] * last[1] * beta / median(case.times[nodes[-1], n_bytes]), 1.0) if beta < 1.0 else 1.0


def by_terms(case: Case, n_bytes: int, nodes: Sequence[int], further: Sequence[int],
             random: np.random.Generator) -> tuple[np.ndarray, float]:
    """Return times (draws, further), the last measured one times what the models that fit say of more nodes."""
    counted = [at for at in nodes if at > 2] if case.reducer != "mpi" and nodes[-1] > 2 else list(nodes)
    medians = np.array([median(case.times[at, n_bytes]) for at in counted])
    noise = np.array([case.noise((at, n_bytes)) for at in counted])
    drawn = medians * np.maximum(1 + noise * random.standard_normal((DRAWS, len(counted))), 0.05)
    drawn = _steadied(case, n_bytes, counted, drawn, noise, random)
    medians = np.median(drawn, axis=0)
    crowded = np.maximum(random.normal(CROWDED, CROWDED_SPREAD, DRAWS), 0)
    alpha = _latency(case, n_bytes, nodes[-1]) * np.exp(LATENCY_SPREAD * random.standard_normal(DRAWS))
    seconds, shares, weights = [], [], []
    for terms in _models(case, n_bytes):
        # What messages do not take is bytes; of a vector that is all latency something is left for them, too.
        messages = np.array([terms(at)[0] for at in counted])
        of_messages = np.minimum(alpha[:, None] * messages, MOST_LATENCY * drawn)
        each = of_messages[:, -1:] / messages[-1]
        columns = np.array([terms(at)[1:] for at in counted], np.float64)
        if case.reducer == "tree":
            columns = columns + CROWDED * np.array([[_crowded_levels(case, at) * n_bytes] for at in counted])
        fitted = least_squares(columns, drawn - of_messages)
        rest = np.maximum(medians - np.median(of_messages, axis=0), 1e-300)
        misses = (columns @ least_squares(columns, rest) - rest) / medians / np.maximum(noise, 0.02)
        weights.append(math.exp(-min(float(np.square(misses).sum()) / 2, 600.0) - columns.shape[1]))

        def bytes_s(at: int, terms: Terms = terms, fitted: np.ndarray = fitted) -> np.ndarray:
            extra = crowded * _crowded_levels(case, at) * n_bytes * fitted[:, 0] if case.reducer == "tree" else 0.0
            return fitted @ np.array(terms(at)[1:]) + extra

        anchored = (drawn - of_messages)[:, -1] / np.maximum(bytes_s(counted[-1]), 1e-300)
        seconds.append(np.stack([bytes_s(at) * anchored + each[:, 0] * terms(at)[0] for at in further], axis=1))
        shares.append(float(np.median(1 - of_messages[:, -1] / drawn[:, -1])))
    likely = np.array(weights) / sum(weights) if sum(weights) > 0 else np.full(len(weights), 1 / len(weights))
    times = np.stack(seconds)[random.choice(len(seconds), size=DRAWS, p=likely), np.arange(DRAWS)]
    return times, shares[int(np.argmax(likely))]


def _steadied(case: Case, n_bytes: int, counted: Sequence[int], drawn: np.ndarray, noise: np.ndarray,
              random: np.random.Generator) -> np.ndarray:
    """Return times (draws, nodes) that other long vectors have a say in, the more the noisier they are.

    What a byte takes hardly depends on how many there are, but a disturbed median may be off by far.
    """
    sizes = sorted({own for _, own in case.times if own > LONG_BYTES and own != n_bytes})
    if n_bytes <= LONG_BYTES:
        return drawn
    steadied = drawn.copy()
    for column, nodes in enumerate(counted):
        logs, weights = [np.log(drawn[:, column])], [1 / noise[column] ** 2]
        for other in sizes:
            at = nodes, other
            if at in case.times:
                scale = _model_bytes(case, nodes, n_bytes) / _model_bytes(case, nodes, other)
                seconds = median(case.times[at]) * (1 + case.noise(at) * random.standard_normal(len(drawn)))
                logs.append(np.log(np.maximum(seconds, 1e-3 * median(case.times[at])) * scale))
                weights.append(1 / (case.noise(at) ** 2 + ALIKE**2))
        steadied[:, column] = np.exp(np.average(logs, axis=0, weights=weights))
    return steadied


def _model_bytes(case: Case, nodes: int, n_bytes: int) -> float:
    bytes_ = sum(_models(case, n_bytes)[0](nodes)[1:])
    return bytes_ + CROWDED * _crowded_levels(case, nodes) * n_bytes if case.reducer == "tree" else bytes_


def _latency(case: Case, n_bytes: int, nodes: int) -> float:
    """Return α: what the shortest vector takes beyond its bytes, or, of long ones, what the wire's ping-pong said."""
    alpha, beta = case.wire.get(nodes, (0.0, 0.0))
    short = min(own for at, own in case.times if at == nodes)
    terms = _models(case, short)[0](nodes)  # the library's is taken to halve
    rest = median(case.times[nodes, short]) - beta * sum(terms[1:])
    tells = terms[0] > 0 and beta > 0 and short < n_bytes and short <= LONG_BYTES
    return rest / terms[0] if tells and rest > median(case.times[nodes, short]) / 2 else alpha


def _models(case: Case, n_bytes: int) -> list[Terms]:
    """Return the models that may hold for such vectors; their first term is messages, those after it bytes."""
    def counted(nodes: int) -> tuple[float, float]:
        found = cost(case.reducer, nodes * case.per_node, nodes, n_bytes, case.fan_in)
        return (1.0, 0.0) if found is None else (found.messages, found.n_bytes)

    def steps(nodes: int) -> int:
        return (nodes * case.per_node - 1).bit_length()

    def ring(nodes: int) -> tuple[float, float]:
        return 2.0 * (nodes - 1), 2 * (nodes - 1) / nodes * n_bytes

    def halving(nodes: int) -> tuple[float, float, float]:
        return 2.0 * steps(nodes), float(n_bytes), n_bytes * (1 - 2 / nodes)

    def doubling(nodes: int) -> tuple[float, float]:
        return float(steps(nodes)), float(steps(nodes) * n_bytes)

    if case.reducer != "mpi":
        return [counted]
    return [halving, ring] if n_bytes > LONG_BYTES else [halving, ring, doubling]


def _crowded_levels(case: Case, nodes: int) -> int:
    """Return how many levels of a tree below its root have ranks with several children."""
    if case.reducer != "tree" or case.fan_in < 2 or case.per_node > 1:
        return 0
    levels, rank = 0, 1
    while rank * case.fan_in + 2 < nodes:
        levels, rank = levels + 1, rank * case.fan_in + 1
    return levels
