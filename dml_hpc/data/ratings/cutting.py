"""Where users and items go: they are numbered so that equal stripes of numbers hold about equally many ratings."""

from __future__ import annotations

import numpy as np

USERS, ITEMS = 0, 1
"""What a stream of random numbers is for."""


def numbering(counts: np.ndarray, stripes: int, seed: int, purpose: int = USERS) -> tuple[np.ndarray, np.ndarray]:
    """Number users (or items) of ``counts`` (n,) ratings each; the same for the same arguments, on any machine.

    Each goes to the stripe that is lightest so far, the largest first, those of equal counts in a random order from
    ``seed``: so a stripe is a fair mix of popular and rare ones, by falling popularity, and as heavy as any other,
    unless one alone is heavier. Returns the new number of each (n,) int64, and where the stripes begin
    (``stripes`` + 1,) int64.
    """
    from dml_hpc.kernels.dealing import destinations
    from dml_hpc.kernels.random import stream
    from dml_hpc.kernels.rating_blocks import deal

    n = len(counts)
    mixed = np.empty(n, np.int64)
    destinations(0, n, stream(seed, purpose), mixed)
    order = mixed[np.argsort(-counts[mixed], kind="stable")]
    stripe, place = np.empty(n, np.int32), np.empty(n, np.int64)
    deal(order, counts, stripes, stripe, place)
    bounds = np.concatenate([[0], np.cumsum(np.bincount(stripe, minlength=stripes))]).astype(np.int64)
    return bounds[stripe] + place, bounds
