"""Who works on which block when: a schedule that the grid alone decides, so that any number of ranks follows it.

Item stripes sit on a carousel of L = max(U, I) places, stripe i on place i when an epoch begins. User stripe u has the
place ⌊u·L/U⌋. In stratum s = 0 … L − 1 of an epoch the stripe (place + s) mod L stands at a place: every user stripe
works on the item stripe that stands at its own. Blocks of one stratum share neither users nor items, so that they can
be worked on at the same time, and after L strata every block has had its turn and every item stripe is back (Gemulla et
al., *Large-scale matrix factorization with distributed stochastic gradient descent*, KDD 2011). Where there are more
item stripes than user stripes, a stripe rests between two places, which leaves time for it to travel (Yun et al.,
*NOMAD*, VLDB 2014, has more item blocks than workers for the same reason).

A rank has user stripes that lie next to one another, and their places up to those of the next rank: what leaves the
first of its places goes to the rank before it. The order in which a block's users and items are changed is always the
same, whoever owns them, and so are the results, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


class Strata:
    """The schedule for blocks with ``counts`` (U, I) ratings, shared by the first ``active`` of ``ranks`` ranks.

    Rank r < active has the user stripes ``bounds[r]`` … ``bounds[r + 1]`` − 1, at least one; they hold about equally
    many ratings. Other ranks have none: there are fewer stripes than ranks.
    """

    def __init__(self, counts: np.ndarray, ranks: int):
        self.users, self.items = counts.shape
        self.active = min(ranks, self.users)
        self.length = max(self.users, self.items)
        self.bounds = _balanced(counts.sum(axis=1), self.active)

    def own(self, rank: int) -> range:
        """Return a rank's user stripes."""
        return range(self.bounds[rank], self.bounds[rank + 1]) if rank < self.active else range(0)

    def place(self, u: int) -> int:
        """Return the place of user stripe ``u``; that of stripe U is the carousel's length."""
        return u * self.length // self.users

    def places(self, rank: int) -> range:
        """Return a rank's places."""
        if rank >= self.active:
            return range(0)
        return range(self.place(self.bounds[rank]), self.place(self.bounds[rank + 1]))

    def home(self, rank: int) -> range:
        """Return the item stripes that a rank has when an epoch begins, and when it ends."""
        places = self.places(rank)
        return range(min(places.start, self.items), min(places.stop, self.items))

    def item(self, place: int, stratum: int) -> int | None:
        """Return the item stripe at a place, None: none is."""
        found = (place + stratum) % self.length
        return found if found < self.items else None

    def in_turn(self, rank: int) -> Iterator[tuple[int, int]]:
        """Yield (user stripe, stratum) of a rank's blocks stratum by stratum, from its first place on.

        What leaves a rank does so early in a stratum, and has the rest of it to travel.
        """
        yield from ((u, stratum) for stratum in range(self.length) for u in self.own(rank))

    def in_sweeps(self, rank: int) -> Iterator[tuple[int, int]]:
        """Yield the same in an order in which the factors of a stripe of users stay in cache for many blocks.

        From the last place to the first, each stripe of users takes as many strata in a row as item stripes have come
        for from the place above it. The last place, to which they come from another rank, is let go ahead of the first
        by as many strata as two places with users are apart at least: further, and ranks could wait in a circle. Every
        stripe meets the others in the order of `in_turn`, so the results are the same.
        """
        own = self.own(rank)
        apart = [self.place(u + 1) - self.place(u) for u in range(self.users)]
        done = dict.fromkeys(own, 0)
        while min(done.values(), default=self.length) < self.length:
            until = done[own.start] + min(apart)
            for u in reversed(own):
                until = min(self.length, until)
                yield from ((u, stratum) for stratum in range(done[u], until))
                done[u] = max(done[u], until)
                until = done[u] + apart[u - 1]

    def leaving(self, rank: int) -> Iterator[tuple[int, int]]:
        """Yield (stratum, item stripe) of all that leave a rank after a stratum, in their order."""
        yield from self._passing(self.places(rank).start)

    def arriving(self, rank: int) -> Iterator[tuple[int, int]]:
        """Yield (stratum, item stripe) of all that come to a rank after a stratum, in their order."""
        yield from self._passing(self.places(rank).stop)

    def _passing(self, place: int) -> Iterator[tuple[int, int]]:
        for stratum in range(self.length):
            if (item := self.item(place, stratum)) is not None:
                yield stratum, item


def _balanced(counts: np.ndarray, parts: int) -> list[int]:
    """Return where each part of stripes with ``counts`` begins, and how many there are; none is empty."""
    sums = np.concatenate([[0], np.cumsum(counts, dtype=np.float64)])
    bounds = [0]
    for part in range(1, parts):
        nearest = int(np.argmin(np.abs(sums - sums[-1] * part / parts)))
        bounds.append(min(max(nearest, bounds[-1] + 1), len(counts) - (parts - part)))
    return [*bounds, len(counts)]
