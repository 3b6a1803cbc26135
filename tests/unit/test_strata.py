"""The order in which ranks work on blocks: none waits for ever, and users and items meet as in every other order."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from dml_hpc.decomposition.mf.strata import Strata

pytestmark = pytest.mark.maths


def met(strata: Strata, orders: list[str], seed: int) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    """Let ranks work at random speeds, each in its of the orders, on item stripes that have been where they come from.

    Returns the item stripes that each stripe of users has met, and the other way round.
    """
    rng = np.random.default_rng(seed)
    left = [list(getattr(strata, order)(rank)) for rank, order in enumerate(orders)]
    users_at = {strata.place(u): u for u in range(strata.users)}
    done: set[tuple[int, int]] = set()
    by_user: dict[int, list[int]] = {u: [] for u in range(strata.users)}
    by_item: dict[int, list[int]] = {i: [] for i in range(strata.items)}

    def has_come(u: int, stratum: int) -> bool:
        for before in range(1, stratum + 1):  # the nearest place that has users, from where it came
            if (last := users_at.get((strata.place(u) + before) % strata.length)) is not None:
                return (last, stratum - before) in done
        return True

    while any(left):
        before = len(done)
        for own in left:
            for _ in range(rng.integers(1, 6)):
                if own and has_come(*own[0]):
                    u, stratum = own.pop(0)
                    assert stratum == 0 or (u, stratum - 1) in done
                    done.add((u, stratum))
                    if (i := strata.item(strata.place(u), stratum)) is not None:
                        by_user[u].append(i)
                        by_item[i].append(u)
        assert len(done) > before, "all ranks wait"
    assert len(done) == strata.users * strata.length
    return by_user, by_item


@pytest.mark.parametrize("seed", range(60))
def test_every_order_comes_to_an_end_and_stripes_meet_in_the_same(seed):
    rng = np.random.default_rng(seed)
    ranks = int(rng.integers(1, 22))
    strata = Strata(rng.integers(0, 100, (rng.integers(1, 20), rng.integers(1, 40))), ranks)
    in_turn, in_sweeps = (met(strata, [order] * ranks, seed) for order in ("in_turn", "in_sweeps"))
    # Ranks of several threads go in turn, whatever those of one do.
    mixed = met(strata, rng.choice(["in_turn", "in_sweeps"], ranks).tolist(), seed)
    assert in_turn == in_sweeps == mixed
    assert all(sorted(items) == list(range(strata.items)) for items in in_turn[0].values())


@pytest.mark.parametrize(("ranks", "most"), [(1, 31), (2, 24), (4, 20)])
def test_sweeps_change_users_seldom(ranks, most):
    """Of 32 strata: in turn each of a rank's stripes of users would be taken up 32 times."""
    strata = Strata(np.ones((16, 32)), ranks)
    order = [u for u, _ in strata.in_sweeps(0)]
    assert 1 + sum(one != other for one, other in pairwise(order)) <= most
