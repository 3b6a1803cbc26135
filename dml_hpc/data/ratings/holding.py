"""Which ratings are held out: a share of the pairs, the latest, or the last of every user."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dml_hpc.data.ratings.build import Cut
from dml_hpc.data.ratings.stripes import Stripe

HELD = 2
"""What a stream of random numbers is for; see `dml_hpc.data.ratings.cutting`."""


def held_share(cut: Cut, share: float, seed: int, rows: int) -> Callable[[int, Stripe], np.ndarray]:
    """Return what holds out a ``share`` of ``rows`` ratings at random.

    The draw depends on the seed, the numbers of a pair, and on how many ratings there are: what is left of a split can
    be split again with the same seed.
    """
    from dml_hpc.kernels.random import bits, stream

    # Else Numba takes what was compiled for a smaller key, as a signed number, which this one may not fit.
    key = np.uint64(bits(stream(seed, HELD), rows))

    def held(u: int, stripe: Stripe) -> np.ndarray:
        from dml_hpc.kernels.rating_blocks import held_pairs

        out = np.empty(len(stripe.users), bool)
        items = np.repeat(cut.item_bounds[:-1], stripe.counts) + stripe.items
        held_pairs(stripe.users + cut.user_bounds[u], items, key, share, out)
        return out

    return held


def held_since(time: int) -> Callable[[int, Stripe], np.ndarray]:
    """Return what holds out the ratings of ``time`` and later."""
    def held(u: int, stripe: Stripe) -> np.ndarray:
        assert stripe.times is not None
        return stripe.times >= time

    return held


def held_last(u: int, stripe: Stripe) -> np.ndarray:
    """Hold out each user's latest rating, of several that of the greatest item number; the only one of a user stays."""
    assert stripe.times is not None
    owner = np.repeat(np.arange(len(stripe.counts)), stripe.counts)
    order = np.lexsort((stripe.items, owner, stripe.times, stripe.users))
    users = stripe.users[order]
    last = np.append(users[1:] != users[:-1], True)[:len(users)]
    first = np.concatenate([[True], users[1:] != users[:-1]])[:len(users)]
    out = np.zeros(len(users), bool)
    out[order[last & ~first]] = True
    return out


