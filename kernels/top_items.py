"""The n items of the largest scores for each of many users: products and choice in one, no matrix of scores.

A score is c_i + p_u·q_i, added up in float32 over the factors in their order, rounded once a factor: its bits depend on
the user and the item alone, not on how they are cut into blocks, on threads or ranks. A user's best items so far are a
heap whose root is the worst of them; a product that is no larger costs a comparison, sixteen at a time. Of equal scores
the item of the lower number counts as the better one.

Users are packed by sixes, items by sixteens: six accumulators of sixteen are kept in registers while a column of
factors after the other is read once (the blocking of Goto and van de Geijn, *Anatomy of high-performance matrix
multiplication*, ACM TOMS 34(3), 2008, with the choice in the place of the store).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from dml_hpc.kernels.lanes import filled, load, mask_above, multiply_add, store

USERS, ITEMS = 6, 16
"""Users, and items, of a tile."""
_PLACE = np.uintp
_ONE = np.float32(1)


def packed_users(rows: np.ndarray) -> np.ndarray:
    """Return factors (count, k) as the kernel takes them: (tiles, k, `USERS`) float32, zeros behind the last."""
    tiles = -(-len(rows) // USERS)
    whole = np.zeros((tiles * USERS, rows.shape[1]), np.float32)
    whole[:len(rows)] = rows
    return np.ascontiguousarray(whole.reshape(tiles, USERS, -1).transpose(0, 2, 1))


def packed_items(rows: np.ndarray, biases: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return factors (count, k) and biases (count,), None: 0, as the kernel takes them.

    These are (tiles, k, `ITEMS`) and (tiles·`ITEMS`,) float32; what lies behind the last item never has a score.
    """
    tiles = -(-len(rows) // ITEMS)
    whole = np.zeros((tiles * ITEMS, rows.shape[1]), np.float32)
    whole[:len(rows)] = rows
    added = np.full(tiles * ITEMS, -np.inf, np.float32)
    added[:len(rows)] = 0 if biases is None else biases
    return np.ascontiguousarray(whole.reshape(tiles, ITEMS, -1).transpose(0, 2, 1)), added


@njit(cache=True, nogil=True, error_model="numpy")
def _worse(score, item, other_score, other_item):
    return score < other_score or (score == other_score and item > other_item)


@njit(cache=True, nogil=True, error_model="numpy")
def _keep(scores, items, count, score, item):
    """Put an item into a user's heap (n,), in the place of the root where it is full; return how many it holds."""
    n = len(scores)
    if count < n:
        at = count
        while at > 0:
            above = (at - 1) // 2
            if not _worse(score, item, scores[above], items[above]):
                break
            scores[at], items[at] = scores[above], items[above]
            at = above
        scores[at], items[at] = score, item
        return count + 1
    at = 0
    while 2 * at + 1 < n:
        below = 2 * at + 1
        if below + 1 < n and _worse(scores[below + 1], items[below + 1], scores[below], items[below]):
            below += 1
        if not _worse(scores[below], items[below], score, item):
            break
        scores[at], items[at] = scores[below], items[below]
        at = below
    scores[at], items[at] = score, item
    return n


@njit(cache=True, nogil=True, error_model="numpy")
def top_items(users, items, biases, first, seen_starts, seen, cursors, best_scores, best_items, counts):
    """Have each user's best items so far compete with those of a block, of which the first has number ``first``.

    ``users`` are `packed_users`, ``items`` and ``biases`` `packed_items`. ``best_scores`` (count, n) float32 and
    ``best_items`` (count, n) int32 are heaps, of which ``counts`` (count,) int32 are in use; all 0 before the first
    block. Blocks come in the order of their items. User u never gets ``seen`` (any,) int32 from ``seen_starts[u]`` to
    ``seen_starts[u + 1]`` − 1, ascending; ``cursors`` (count,) int64, ``seen_starts`` without its last before the first
    block, says how far they are passed.
    """
    count, n = best_scores.shape
    k, columns, rows = items.shape[1], items.reshape(-1), users.reshape(-1)
    room = np.empty(ITEMS, np.float32)
    least = np.empty(USERS, np.float32)
    for group in range(users.shape[0]):
        for lane in range(USERS):
            u = group * USERS + lane
            least[lane] = np.inf if u >= count else -np.inf if counts[u] < n else best_scores[u, 0]
        for tile in range(items.shape[0]):
            a = b = c = d = e = f = load(biases, tile * ITEMS, _ONE)
            at, to = _PLACE(group * k * USERS), tile * k * ITEMS
            for _ in range(k):
                q = load(columns, to, _ONE)
                a = multiply_add(filled(rows[at]), q, a)
                b = multiply_add(filled(rows[at + _PLACE(1)]), q, b)
                c = multiply_add(filled(rows[at + _PLACE(2)]), q, c)
                d = multiply_add(filled(rows[at + _PLACE(3)]), q, d)
                e = multiply_add(filled(rows[at + _PLACE(4)]), q, e)
                f = multiply_add(filled(rows[at + _PLACE(5)]), q, f)
                at += _PLACE(USERS)
                to += ITEMS
            for lane, found in enumerate((a, b, c, d, e, f)):
                above = mask_above(found, least[lane])
                if above == 0:
                    continue
                store(room, 0, found)
                u = group * USERS + lane
                for place in range(ITEMS):
                    score = room[place]
                    if (above >> place) & 1 == 0 or not score > least[lane]:
                        continue
                    item = np.int32(first + tile * ITEMS + place)
                    cursor = cursors[u]
                    while cursor < seen_starts[u + 1] and seen[cursor] < item:
                        cursor += 1
                    cursors[u] = cursor
                    if cursor < seen_starts[u + 1] and seen[cursor] == item:
                        continue
                    counts[u] = _keep(best_scores[u], best_items[u], counts[u], score, item)
                    if counts[u] == n:
                        least[lane] = best_scores[u, 0]


def ranked(scores: np.ndarray, items: np.ndarray, counts: np.ndarray) -> None:
    """Put the heaps of `top_items` in order, the best first; what is not in use becomes −∞ and −1."""
    unused = np.arange(scores.shape[1]) >= counts[:, None]
    scores[unused], items[unused] = -np.inf, -1
    order = np.lexsort((items, -scores), axis=1)
    scores[:] = np.take_along_axis(scores, order, axis=1)
    items[:] = np.take_along_axis(items, order, axis=1)
