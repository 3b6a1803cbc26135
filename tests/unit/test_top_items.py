"""The best items of users: those that a full sort finds, ties by number, whatever the blocks and threads."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from dml_hpc.data.ratings.ids import Ids
from dml_hpc.decomposition.mf import top
from dml_hpc.decomposition.mf.ranking import hits_of, measured
from dml_hpc.decomposition.mf.top import Best, Side, Top, one_length
from dml_hpc.store.ranked_table import LINE, CsvTable, Hdf5Table

pytestmark = pytest.mark.maths


def whole(rng, rows: int, k: int, dtype=np.float32) -> np.ndarray:
    """Return small whole numbers: every sum of their products is exact, and many scores are equal."""
    return rng.integers(-3, 4, (rows, k)).astype(dtype)


def reference(scores: np.ndarray, n: int, seen: list[set[int]], allowed: set[int]) -> list[list[tuple[int, float]]]:
    """Return for each user the n best (item, score), by sorting all."""
    found = []
    for user, row in enumerate(scores.tolist()):
        order = sorted((-score, item) for item, score in enumerate(row) if item in allowed - seen[user])
        found.append([(item, -score) for score, item in order[:n]])
    return found


def listed(blocks) -> list[list[tuple[int, float]]]:
    return [list(zip(best.columns[j, :best.counts[j]].tolist(), best.scores[j, :best.counts[j]].tolist(), strict=True))
            for best in blocks for j in range(len(best.rows))]


def lists_of(seen: list[set[int]]) -> tuple[np.ndarray, np.ndarray]:
    starts = np.concatenate([[0], np.cumsum([len(own) for own in seen])]).astype(np.int64)
    return starts, np.array([item for own in seen for item in sorted(own)], np.int32)


@pytest.mark.parametrize("users, items, k, n, dtype", [
    (1, 1, 1, 1, np.float32), (7, 5, 3, 9, np.float32), (6, 16, 2, 1, np.float32), (13, 33, 5, 4, np.float16),
    (50, 300, 17, 10, np.float32), (20, 40, 150, 40, np.float32)])
def test_a_full_sort_finds_the_same(users, items, k, n, dtype, monkeypatch):
    monkeypatch.setattr(top, "BLOCK_ROWS", 12)
    monkeypatch.setattr(top, "_CACHE_BYTES", 3 * 64 * k)
    rng = np.random.default_rng(k)
    P, Q, b, c = whole(rng, users, k, dtype), whole(rng, items, k, dtype), whole(rng, users, 1)[:, 0], whole(
        rng, items, 1)[:, 0]
    scores = 0.5 + b[:, None] + c + P.astype(float) @ Q.T.astype(float)
    seen = [set(rng.permutation(items)[:rng.integers(0, items + 1)].tolist()) for _ in range(users)]
    for allowed in (set(range(items)), {0, items - 1, items // 2}):
        numbers = None if len(allowed) == items else np.array(sorted(allowed))
        finder = Top(Side(P, b), Side(Q, c), n, 0.5, numbers)
        wanted = reference(scores, n, seen, allowed)
        for threads in (1, 3):
            assert listed(finder.blocks(np.arange(users), *lists_of(seen), threads)) == wanted
        assert listed(finder.blocks(np.arange(users), None, None, 1)) == reference(
            scores, n, [set()] * users, allowed)
        chosen = np.array([users - 1, 0])
        assert listed([finder.best(chosen, *lists_of([seen[u] for u in chosen]))]) == [wanted[u] for u in chosen]


def test_bits_of_scores_do_not_depend_on_who_is_asked_for_with_whom(monkeypatch):
    rng = np.random.default_rng(0)
    P, Q = rng.normal(size=(100, 33)).astype(np.float32), rng.normal(size=(700, 33)).astype(np.float32)
    everyone = Top(Side(P), Side(Q), 700).best(np.arange(100))
    np.testing.assert_allclose(np.take_along_axis(P.astype(float) @ Q.T.astype(float), everyone.columns.astype(int), 1),
                               everyone.scores, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(top, "_CACHE_BYTES", 1)
    for users in ([5], [99, 3, 5], range(0, 100, 7)):
        few = Top(Side(P), Side(Q), 700).best(np.array(users))
        for j, user in enumerate(users):
            np.testing.assert_array_equal(few.columns[j], everyone.columns[user])
            np.testing.assert_array_equal(few.scores[j], everyone.scores[user])


def test_rows_of_one_length_and_of_none():
    rows = np.array([[3, 4], [0, 0], [-6, -8], [0, 2]], np.float16)
    side = Side(rows, factor=one_length(rows))
    best = Top(side, side, 3).best(np.arange(4), np.arange(5), np.arange(4, dtype=np.int32))
    assert best.columns.tolist() == [[3, 1, 2], [0, 2, 3], [1, 3, 0], [0, 1, 2]]
    np.testing.assert_allclose(best.scores[0], [0.8, 0, -1], atol=1e-6)
    assert best.scores[1].tolist() == [0, 0, 0]  # what has no direction is like nothing, and unlike nothing


def test_what_is_no_number_is_never_chosen():
    P, Q = np.ones((1, 1), np.float32), np.array([[1], [np.nan], [2]], np.float32)
    assert Top(Side(P), Side(Q), 3).best(np.zeros(1, np.int64)).columns.tolist() == [[2, 0, -1]]


def test_lines_of_a_table():
    best = Best(np.array([7, 3]), np.array([[5, 2], [4, -1]], np.int32), np.array([[9, 8], [1, -np.inf]], np.float32),
                np.array([2, 1], np.int32))
    assert best.lines().tolist() == [(7, 5, 1, 9.0), (7, 2, 2, 8.0), (3, 4, 1, 1.0)]
    names = np.array(["plain", 'a "quoted", one', " led", "two\nlines", "", "it's", "=1+1", "last"], object)
    table = CsvTable(("user", "item", "rank", "score"), Ids(names), Ids(names[::-1].copy()))
    text = table.rendered(best.lines()).tobytes().decode()
    assert list(csv.reader(io.StringIO(text))) == [
        ["last", " led", "1", "9"], ["last", "it's", "2", "8"], ["two\nlines", "two\nlines", "1", "1"]]


@pytest.mark.parametrize("length", [0, 3, 300, 5000])
def test_a_file_takes_no_more_than_is_asked_for(tmp_path, length):
    rows, columns = (Ids(np.array(["é" * length + str(number) for number in range(50)], object)) for _ in range(2))
    if not length:
        rows, columns = Ids(np.arange(50)), Ids(np.arange(50))
    lines = np.zeros(5000, LINE)
    lines["row"], lines["column"] = np.arange(5000) % 50, np.arange(5000) % 49
    table = Hdf5Table(("user", "item", "rank", "score"), rows, columns)
    parts = [table.rendered(lines[first:first + 700]) for first in range(0, 5000, 700)]
    with table.written(tmp_path / "t.h5", {}) as file:
        for part in parts:
            table.append(file, part)
    asked_for = sum(part.size for part in parts) + table.more_bytes
    size = (tmp_path / "t.h5").stat().st_size
    assert 0.8 * asked_for < size < asked_for + (1 << 20)


def by_hand(items: list[int], relevant: set[int], n: int) -> list[float]:
    """Return precision, recall, NDCG and average precision at n, each written down as it is defined."""
    hits = [item in relevant for item in items[:n]]
    dcg = sum(1 / np.log2(place + 1) for place, hit in enumerate(hits, 1) if hit)
    best = sum(1 / np.log2(place + 1) for place in range(1, min(n, len(relevant)) + 1))
    precisions = [sum(hits[:place]) / place for place, hit in enumerate(hits, 1) if hit]
    return [sum(hits) / n, sum(hits) / len(relevant), dcg / best, sum(precisions) / min(n, len(relevant))]


def test_measures_are_those_of_the_definitions():
    from sklearn.metrics import ndcg_score

    rng = np.random.default_rng(1)
    users, items, n = 40, 30, 6
    scores = rng.permuted(np.tile(np.arange(items, dtype=float), (users, 1)), axis=1)
    relevant = [set(rng.permutation(items)[:rng.integers(1, 12)].tolist()) for _ in range(users)]
    ordered = np.argsort(-scores, axis=1)[:, :n].astype(np.int32)
    starts, wanted = lists_of(relevant)
    hits = hits_of(ordered, starts, wanted)
    found = measured(hits, np.diff(starts), n)
    np.testing.assert_allclose(found.T, [by_hand(own, mine, n) for own, mine in zip(ordered.tolist(), relevant,
                                                                                    strict=True)])
    truth = np.array([[item in own for item in range(items)] for own in relevant], float)
    assert found[2].mean() == pytest.approx(ndcg_score(truth, scores, k=n))
    part = hits_of(ordered[10:20], starts[10:21], wanted)
    np.testing.assert_array_equal(part, hits[10:20])
    short = np.array([[3, -1, -1]], np.int32)
    assert measured(hits_of(short, np.array([0, 2]), np.array([1, 3])), np.array([2]), 5)[:, 0].tolist() == [
        pytest.approx(one) for one in by_hand([3], {1, 3}, 5)]
