"""The truncated SVD of a large sparse matrix, against SciPy's svds and scikit-learn's randomized_svd.

    python benchmarks/svd_sparse.py [--rows 1000000] [--features 100000]

CSR, float32, made as texts are: 40 topics, each a distribution over the columns; a column's popularity falls as
1/(rank + 10), as words' do, and a topic makes some columns many times as likely (log-normal, deviation 2) as others.
A row's 50-odd tokens come by 7 in 10 from its topic, else from all columns by popularity; topics differ in frequency.
An entry is (1 + ln count)·ln(rows / rows that have the column), and rows have norm 1: TF-IDF.

Ours is timed by the ``work_s`` of its JSON object, peers by their call on the matrix in memory: SciPy's ``svds`` with
its default tolerance, on the numbers as stored and in float64, and scikit-learn's ``randomized_svd`` by default and
with the fewest iterations, of a list up to 30, that reach our largest error of σ (or 30). SciPy's sparse products take
one thread, so ours is also run on one rank. Errors are against ``svds`` in float64 with tol=0, whose own residual is
reported.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from matrices import write_matrix
from running import arguments, finish
from scipy import __version__ as scipy_version
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import svds
from sklearn import __version__ as sklearn_version
from sklearn.utils.extmath import randomized_svd
from svd_contest import Contest, Outcome, timed_svd

from dml_hpc.reports.timing import interleave

TOPICS = 40
FROM_TOPIC = 0.7
TOKENS = 56
"""Of a row; those of one column make one entry, which leaves about 50."""
BLOCK_ROWS = 50_000
ITERATIONS = (4, 7, 12, 20, 30)


def texts(rows: int, features: int, seed: int = 0) -> csr_matrix:
    """Return the matrix that the head of this file describes; its columns are in a random order."""
    rng = np.random.default_rng(seed)
    popularity = 1 / (np.arange(features) + 10.0)
    popularity = rng.permutation(popularity / popularity.sum())
    likely = popularity * rng.lognormal(0, 2, (TOPICS, features))
    drawn_by = np.cumsum(np.vstack([popularity, likely / likely.sum(axis=1, keepdims=True)]), axis=1)
    frequency = 1 / (np.arange(TOPICS) + 5.0)
    blocks = []
    for start in range(0, rows, BLOCK_ROWS):
        count = min(BLOCK_ROWS, rows - start)
        topic = np.sort(rng.choice(TOPICS, count, p=frequency / frequency.sum()))
        own = rng.random((count, TOKENS)) < FROM_TOPIC
        at = rng.random((count, TOKENS))
        columns = np.empty((count, TOKENS), np.int32)
        columns[~own] = np.searchsorted(drawn_by[0], at[~own])
        for number in range(TOPICS):
            mine = own & (topic == number)[:, None]
            columns[mine] = np.searchsorted(drawn_by[1 + number], at[mine])
        blocks.append(_counted(np.minimum(columns, features - 1), features)[rng.permutation(count)])
    indptr = np.concatenate([[0], np.cumsum(np.concatenate([np.diff(block.indptr) for block in blocks]))])
    X = csr_matrix((np.concatenate([block.data for block in blocks]),
                    np.concatenate([block.indices for block in blocks]), indptr), (rows, features))
    return _weighted(X)


def _counted(columns: np.ndarray, features: int) -> csr_matrix:
    """Return how often each column is among a row's tokens."""
    columns.sort(axis=1)
    first = np.ones(columns.shape, bool)
    first[:, 1:] = columns[:, 1:] != columns[:, :-1]
    starts = np.flatnonzero(first)
    counts = np.diff(np.append(starts, columns.size))
    indptr = np.concatenate([[0], np.cumsum(first.sum(axis=1))])
    return csr_matrix((counts.astype(np.float32), columns[first], indptr), (len(columns), features))


def _weighted(X: csr_matrix) -> csr_matrix:
    """Return TF-IDF of counts, rows of norm 1, float32, indices of 32 bits."""
    held = np.bincount(X.indices, minlength=X.shape[1])
    idf = np.log(X.shape[0] / np.maximum(held, 1)).astype(np.float32)
    X.data = (1 + np.log(X.data)) * idf[X.indices]
    norms = np.sqrt(np.add.reduceat(np.square(X.data, dtype=np.float64), X.indptr[:-1]))
    X.data = (X.data / np.repeat(norms, np.diff(X.indptr))).astype(np.float32)
    X.indices, X.indptr = X.indices.astype(np.int32), X.indptr.astype(np.int32)
    return X


def truth(X: csr_matrix, k: int) -> tuple[np.ndarray, float]:
    """Return the k largest singular values by ``svds`` in float64 with tol=0, and the largest residual over σ₁."""
    U, sigma, Vt = svds(X, k, tol=0, random_state=1)
    differences = X.T @ U - Vt.T * sigma, X @ Vt.T - U * sigma
    residual = max(np.linalg.norm(difference, axis=0).max() for difference in differences)
    return np.sort(sigma)[::-1], float(residual / sigma.max())


def main() -> None:
    """Make the matrix, find the truth, tune scikit-learn, measure in turns, write the results file."""
    parser = arguments(__doc__, repeats=3)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=100_000)
    given = parser.parse_args()
    rows, features, k, repeats = given.rows, given.features, 20, given.repeats
    if given.tiny:
        rows, features, k, repeats = 3000, 1000, 5, 1
    X = texts(rows, features)
    wide = X.astype(np.float64)
    exact, residual = truth(wide, k)

    def scikit_learn(iterations: int | str) -> Outcome:
        return timed_svd(partial(randomized_svd, X, k, n_iter=iterations, random_state=0))

    with tempfile.TemporaryDirectory() as place:
        contest = Contest(write_matrix(Path(place) / "matrix.h5", X), k, exact)
        two, one = "dml-hpc, 2 ranks", "dml-hpc, 1 rank"
        contest.ours(two, 2)  # compiles what is not yet in the cache
        reached = contest.errors[two]
        most = contest.fewest("scikit-learn", scikit_learn, ITERATIONS, reached)
        tuned = f"scikit-learn, {most} iterations"
        called: dict[str, Callable[[], Outcome]] = {
            "SciPy, svds": partial(timed_svd, partial(svds, X, k, random_state=0)),
            "SciPy, svds, float64": partial(timed_svd, partial(svds, wide, k, random_state=0)),
            "scikit-learn, by default": partial(scikit_learn, "auto"), tuned: partial(scikit_learn, most)}
        contestants = {two: partial(contest.ours, two, 2), one: partial(contest.ours, one, 1)}
        contestants |= {who: partial(contest.turn, who, call) for who, call in called.items()}
        seconds = interleave(contestants, repeats)
    case = {"rows": rows, "features": features, "dtype": "float32", "entries": int(X.nnz),
            "entries_a_row": X.nnz / rows, "singular_values": exact.tolist(), "residual_of_truth": residual,
            "versions": {"scipy": scipy_version, "scikit-learn": sklearn_version}, **contest.case(seconds, two),
            "scikit_learn_reaches_our_error": contest.errors[tuned] <= reached}
    finish("svd_sparse", [case], "contestants interleaved; the matrix is made as TF-IDF of synthetic texts, see the "
           "head of benchmarks/svd_sparse.py", given.tiny)


if __name__ == "__main__":
    main()
