"""What steps that are lost cost rating SGD: how far from one another those must be that are taken at a time on a GPU.

    python benchmarks/lost_steps.py

NumPy in place of a GPU, and worse than one: of all steps taken at a time each sees the rows as they were before, and of
those that meet in a row the last one counts. Items have a power law of popularity. For each number of steps at a time,
as a share of the items, the RMSE of ratings held out after each epoch, AdaGrad's steps, beside that of few steps.
"""

from __future__ import annotations

import numpy as np
from running import arguments, finish

K, L2, STEP_SIZE, BIAS_STEP = 16, 0.05, 0.1, 0.3
APART = (200, 16, 8, 4, 2)


def drawn(users: int, items: int, ratings: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return users, items and ratings (n,) with mean 0 and deviation 1: rank 8, biases, and noise of a half."""
    rng = np.random.default_rng(0)
    weights = 1 / (np.arange(items) + 20.0)
    i, u = rng.choice(items, ratings, p=weights / weights.sum()), rng.integers(0, users, ratings)
    P, Q = rng.standard_normal((users, 8)), rng.standard_normal((items, 8))
    found = np.einsum("nk,nk->n", P[u], Q[i])
    found = 0.8 * found / found.std() + 0.3 * (rng.standard_normal(users)[u] + rng.standard_normal(items)[i])
    found += 0.4 * rng.standard_normal(ratings)
    return u, i, ((found - found.mean()) / found.std()).astype(np.float32)


def course(data: tuple[np.ndarray, np.ndarray, np.ndarray], at_once: int, epochs: int) -> list[float]:
    """Return the RMSE of a tenth of the ratings after each epoch, with so many steps at a time on the others."""
    rng = np.random.default_rng(1)
    users, items, ratings = data
    n = len(ratings) * 9 // 10
    shape = int(users.max()) + 1, int(items.max()) + 1
    rows = [(rng.standard_normal((count, K + 1)) * 0.1 / K**0.25).astype(np.float32) for count in shape]
    sums = [np.zeros(count, np.float32) for count in shape]
    for side in rows:
        side[:, K] = 0  # the bias

    def predicted(p: np.ndarray, q: np.ndarray) -> np.ndarray:
        return np.einsum("nk,nk->n", p[:, :K], q[:, :K]) + p[:, K] + q[:, K]

    found = []
    for _ in range(epochs):
        order = rng.permutation(n)
        for start in range(0, n, at_once):
            own = order[start:start + at_once]
            of = users[own], items[own]
            p, q = rows[0][of[0]], rows[1][of[1]]
            e = ratings[own] - predicted(p, q)
            for side, one, other in ((0, p, q), (1, q, p)):
                slope = e[:, None] * other - L2 * one
                slope[:, K] = e - L2 * one[:, K]
                step = STEP_SIZE / np.sqrt(1 + sums[side][of[side]])
                slope[:, K] *= BIAS_STEP
                rows[side][of[side]] = one + step[:, None] * slope
                sums[side][of[side]] += (slope[:, :K]**2).mean(axis=1)
        off = ratings[n:] - predicted(rows[0][users[n:]], rows[1][items[n:]])
        found.append(float(np.sqrt((off * off).mean())))
    return found


def main() -> None:
    """Simulate all and write the results file."""
    options = arguments(__doc__, repeats=1).parse_args()
    users, items, ratings, epochs = (300, 200, 5000, 2) if options.tiny else (30_000, 10_000, 1_500_000, 12)
    data = drawn(users, items, ratings)
    courses = {apart: course(data, max(1, items // apart), epochs) for apart in APART}
    found = []
    for apart, rmse in courses.items():
        at_once, over_few = max(1, items // apart), rmse[-1] / courses[APART[0]][-1]
        found.append({"case": "lost steps", "apart": apart, "at_once": at_once, "rmse": rmse, "over_few": over_few})
        print(f"{at_once:6,} at a time, {apart:3} items for each: RMSE {rmse[-1]:.4f}, {over_few:.4f} of that")
    finish("lost_steps", found, "a simulation; see benchmarks/lost_steps.py", options.tiny)


if __name__ == "__main__":
    main()
