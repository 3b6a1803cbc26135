"""How good lists of recommended items are, by the items that turned out to be relevant."""

from __future__ import annotations

import numpy as np

MEASURES = ("precision", "recall", "ndcg", "map")


def hits_of(items: np.ndarray, starts: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Return which of the ``items`` (users, n), −1 where there is none, are relevant, (users, n) bool.

    Those of user j are ``relevant[starts[j]:starts[j + 1]]``, ascending.
    """
    users = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    keys = (users << 32) | relevant[starts[0]:starts[-1]]
    wanted = (np.arange(len(items))[:, None] << 32) | np.maximum(items, 0)
    place = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
    return (keys[place] == wanted) & (items >= 0) if len(keys) else np.zeros(items.shape, bool)


def measured(hits: np.ndarray, relevant: np.ndarray, n: int) -> np.ndarray:
    """Return precision, recall, NDCG and average precision at ``n``, (4, users) float64.

    ``hits`` (users, m) bool, m up to ``n``: whether the j-th item, the best first, is relevant (lists that are shorter
    than ``n`` go on without a hit); ``relevant`` (users,) how many items are, at least 1 each. With h_j = 1 for a hit
    and P_j = Σ_{i≤j} h_i / j:

    - precision Σ h_j / n, recall Σ h_j / relevant;
    - NDCG: DCG = Σ h_j / log₂(1 + j), divided by that of a list that begins with all that is relevant (Järvelin and
      Kekäläinen, *Cumulated gain-based evaluation of IR techniques*, ACM TOIS 20(4), 2002; with the discount of Burges
      et al., *Learning to rank using gradient descent*, ICML 2005, which counts the second place less than the first);
    - average precision Σ h_j·P_j / min(n, relevant) (Manning, Raghavan and Schütze, *Introduction to Information
      Retrieval*, 2008, section 8.4, cut at n).
    """
    places = np.arange(1, hits.shape[1] + 1)
    found = hits.sum(axis=1)
    ideal = np.concatenate([[0.0], np.cumsum(1 / np.log2(1 + np.arange(1, n + 1)))])
    reachable = np.minimum(relevant, n)
    gain = np.where(hits, 1 / np.log2(1 + places), 0.0).sum(axis=1)
    precisions = np.where(hits, np.cumsum(hits, axis=1) / places, 0.0).sum(axis=1)
    return np.stack([found / n, found / relevant, gain / ideal[reachable], precisions / reachable])
