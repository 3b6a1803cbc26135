"""Synthetic data: its random numbers against SciPy, its true answers against scikit-learn and NumPy."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import h5py
import numpy as np
import pytest
import scipy.sparse
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from rated_support import all_of
from sklearn.linear_model import LogisticRegression, Ridge

from dml_hpc.cli import main
from dml_hpc.data.csr import Csr
from dml_hpc.data.ratings.opened import open_ratings
from dml_hpc.data.synthetic.synthesis import synthetic
from dml_hpc.errors import UserError
from dml_hpc.kernels import random
from dml_hpc.mpi import Alone

SMALL = {
    "regression": {"features": 7},
    "binary": {"features": 7},
    "multiclass": {"features": 7, "classes": 4},
    "sparse-binary": {"features": 90, "row_entries": 9},
    "lowrank": {"features": 12, "k": 3, "noise": 0.1},
    "ratings": {"users": 40, "items": 30, "k": 3},
}


def plain(X):
    return X.dense() if isinstance(X, Csr) else X


def draws(count, seed=1):
    key = random.stream(seed, 0)
    normals = np.empty(count)
    random.fill_normals(key, 0, 1.0, normals)
    return np.array([random.uniform(key, i) for i in range(count)]), normals


def test_the_stream_is_splitmix64():
    # The first and fifth output of the seeds 0 and 1234567 of the published generator, and a second implementation.
    assert random.bits(np.uint64(0), 0) == 0xE220A8397B1DCDAF
    assert random.bits(np.uint64(1234567), 0) == 6457827717110365317
    assert random.bits(np.uint64(1234567), 4) == 16408922859458223821
    state, mask = 987654321, (1 << 64) - 1
    for index in range(50):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        assert random.bits(np.uint64(987654321), index) == z ^ (z >> 31)


def test_streams_of_other_seeds_and_purposes_differ():
    keys = {int(random.stream(seed, purpose)) for seed in (*range(100), 2**64 - 1) for purpose in range(12)}
    assert len(keys) == 101 * 12


def test_numbers_are_uniform_and_normal():
    uniforms, normals = draws(200_000)
    assert uniforms.min() > 0 and uniforms.max() < 1
    assert scipy.stats.kstest(uniforms, "uniform").pvalue > 0.01
    assert scipy.stats.kstest(normals, "norm").pvalue > 0.01
    assert abs(normals.mean()) < 4 / math.sqrt(len(normals))
    assert abs(normals.var() - 1) < 4 * math.sqrt(2 / len(normals))
    assert abs(scipy.stats.kurtosis(normals)) < 4 * math.sqrt(24 / len(normals))
    neighbours = np.corrcoef(normals[:-1], normals[1:])[0, 1]
    assert abs(neighbours) < 4 / math.sqrt(len(normals))


def test_normals_are_the_inverse_of_their_distribution():
    uniforms, normals = draws(200_000)
    np.testing.assert_allclose(normals, scipy.special.ndtri(uniforms), rtol=1e-14)
    assert abs(normals).max() > 4  # both tails' polynomials were used


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_normals_do_not_depend_on_the_block(dtype):
    key = random.stream(4, 2)
    whole = np.empty(3000, dtype)
    random.fill_normals(key, 10, 1.5, whole)
    assert np.array_equal(whole, np.array([1.5 * random.normal(key, 10 + i) for i in range(3000)], dtype))
    start = 0
    for count in (0, 1, 2, 7, 31, 255, 256, 257, 1000):
        part = np.empty(count, dtype)
        random.fill_normals(key, 10 + start, 1.5, part)
        assert np.array_equal(part, whole[start:start + count])
        start += count


@pytest.mark.parametrize("x", [2.0**-53, 1e-300, 0.1, 1 - 2.0**-53, 1.0, 1 + 1e-9, math.sqrt(0.5), 37.0, 1e300])
def test_logarithm(x):
    assert random.log(x) == pytest.approx(math.log(x), rel=5e-16, abs=0)


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(sorted(SMALL)), dtype=st.sampled_from(["float16", "float32", "float64"]),
       cuts=st.lists(st.integers(0, 60), max_size=4))
def test_pieces_are_the_whole(kind, dtype, cuts):
    source = synthetic(kind, 60, 5, dtype, **SMALL[kind])
    X, y = source.read(0, 60)
    edges = [0, *sorted(cuts), 60]
    pieces = [source.read(*ends) for ends in pairwise(edges)]
    assert np.array_equal(np.concatenate([plain(piece) for piece, _ in pieces]), plain(X))
    assert np.array_equal(np.concatenate([labels for _, labels in pieces]), y)


@pytest.mark.parametrize("kind", SMALL)
def test_another_seed_is_another_data_set(kind):
    one, other = (synthetic(kind, 50, seed, **SMALL[kind]).read(0, 50) for seed in (0, 1))
    assert not np.array_equal(plain(one[0]), plain(other[0]))


def test_regression_has_the_true_weights():
    source = synthetic("regression", 20_000, 3, "float64", features=12, noise=0.5)
    X, y = source.read(0, source.rows)
    found, truth = Ridge(alpha=1e-9).fit(X, y), source.truth()
    error = 0.5 / math.sqrt(source.rows)  # features are independent, of variance 1
    assert np.abs(found.coef_ - truth["weights"]).max() < 4 * error
    assert abs(found.intercept_ - truth["bias"]) < 4 * error
    residual = y - X @ truth["weights"] - truth["bias"]
    assert scipy.stats.kstest(residual / 0.5, "norm").pvalue > 0.01
    assert math.hypot(*truth["weights"]) == pytest.approx(1)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_without_noise_labels_are_those_of_the_stored_features(dtype):
    source = synthetic("regression", 500, 3, dtype, features=9, noise=0.0)
    X, y = source.read(0, 500)
    assert np.array_equal(X.astype(dtype), X)
    np.testing.assert_allclose(y, X.astype(float) @ source.truth()["weights"] + source.truth()["bias"], atol=1e-13)


def errors_of(X, p):
    """The standard errors of a logistic regression's weights and intercept, from its Fisher information."""
    X = np.hstack([X, np.ones((len(X), 1))])
    return np.sqrt(np.diag(np.linalg.inv(X.T * (p * (1 - p)) @ X)))


@pytest.mark.parametrize("kind", ["binary", "sparse-binary"])
def test_classification_has_the_true_weights(kind):
    source = synthetic(kind, 30_000, 1, "float64", features=20, **({"row_entries": 6} if kind != "binary" else {}))
    X, y = source.read(0, source.rows)
    X, truth = plain(X), source.truth()
    found = LogisticRegression(C=1e9, max_iter=1000, tol=1e-8).fit(X, y)
    p = scipy.special.expit(X @ truth["weights"] + truth["bias"])
    deviations = np.append(found.coef_[0] - truth["weights"], found.intercept_[0] - truth["bias"]) / errors_of(X, p)
    assert np.abs(deviations).max() < 4
    assert 0.4 < np.mean(deviations**2) < 2.5
    loss = -np.mean(np.where(y == 1, np.log(p), np.log1p(-p)))
    assert loss == pytest.approx(truth["least_log_loss"], abs=0.02)
    assert np.mean((p > 0.5) != y) == pytest.approx(truth["least_error"], abs=0.015)
    assert truth["least_error_deviation"] < 0.002


def test_multiclass_has_the_true_weights():
    source = synthetic("multiclass", 30_000, 2, "float64", features=6, classes=4)
    X, y = source.read(0, source.rows)
    truth = source.truth()
    assert set(y) == {0, 1, 2, 3}
    found = LogisticRegression(C=1e9, max_iter=1000, tol=1e-8).fit(X, y)
    # A constant added to all classes changes no probability.
    centred = truth["weights"] - truth["weights"].mean(axis=0)
    assert np.abs(found.coef_ - found.coef_.mean(axis=0) - centred).max() < 0.15
    p = scipy.special.softmax(X @ truth["weights"].T + truth["bias"], axis=1)
    counts = np.bincount(y.astype(int), minlength=4)
    assert scipy.stats.chisquare(counts, p.sum(axis=0)).pvalue > 0.01
    assert np.mean(p.argmax(axis=1) != y) == pytest.approx(truth["least_error"], abs=0.01)


@pytest.mark.parametrize(("features", "entries"), [(100_000, 40), (1000, 300), (2, 1), (64, 1)])
def test_sparse_rows(features, entries):
    source = synthetic("sparse-binary", 4000, 7, features=features, row_entries=entries)
    X, y = source.read(0, source.rows)
    lengths = np.diff(X.indptr)
    assert lengths.min() >= 1 and (entries == 1 or lengths.std() > 0.3 * entries)
    assert lengths.mean() == pytest.approx(entries, abs=5 * lengths.std() / math.sqrt(len(lengths)) + 1e-9)
    matrix = scipy.sparse.csr_matrix((X.data, X.indices, X.indptr), X.shape)
    assert matrix.has_canonical_format  # ascending columns, none twice
    assert X.data.min() >= 1 and np.array_equal(X.data, np.round(X.data))
    total = matrix.sum()
    span = math.floor(math.log2(features + 1)) + (features + 1) / 2**math.floor(math.log2(features + 1)) - 1
    p = 1 / (2**np.floor(np.log2(np.arange(1, features + 1))) * span)
    assert p.sum() == pytest.approx(1)
    head = min(features, 60)
    counts = np.append(np.asarray(matrix.sum(axis=0))[0, :head], matrix[:, head:].sum())
    expected = total * np.append(p[:head], p[head:].sum())
    assert scipy.stats.chisquare(counts[expected > 0], expected[expected > 0]).pvalue > 0.01
    assert 0.02 < y.mean() < 0.98


@pytest.mark.parametrize(("rows", "features", "k"), [
    (301, 40, 10), (12, 50, 12), (50, 12, 12), (1, 1, 1), (1000, 3, 1)])
def test_lowrank_has_the_true_singular_values(rows, features, k):
    source = synthetic("lowrank", rows, 4, "float64", features=features, k=k)
    X, truth = source.read(0, rows)[0], source.truth()
    found = np.linalg.svd(X, compute_uv=False)
    np.testing.assert_allclose(found[:k], truth["singular_values"], rtol=1e-12)
    assert (found[k:] < 1e-12 * found[0]).all()
    angles = np.pi * (2 * np.arange(rows)[:, None] + 1) * truth["left_frequencies"] / (2 * rows)
    U = np.cos(angles) * np.sqrt(np.where(truth["left_frequencies"] == 0, 1, 2) / rows)
    np.testing.assert_allclose(U.T @ U, np.eye(k), atol=1e-12)
    np.testing.assert_allclose(U * truth["singular_values"] @ truth["V"].T, X, atol=1e-10)


def test_lowrank_noise():
    clean, noisy = (synthetic("lowrank", 2000, 4, "float64", features=30, noise=noise).read(0, 2000)[0]
                    for noise in (0.0, 0.3))
    assert scipy.stats.kstest((noisy - clean).ravel() / 0.3, "norm").pvalue > 0.01


@pytest.mark.parametrize(("rows", "users", "items"), [
    (20_000, 300, 400), (1200, 40, 30), (1199, 40, 30), (700, 40, 30), (5, 10, 1), (30, 1, 30), (20, 1, 30), (1, 1, 1)])
def test_ratings_come_once_and_are_skewed(rows, users, items):
    source = synthetic("ratings", rows, 6, users=users, items=items, k=1)
    pairs, _ = source.read(0, rows)
    assert pairs.min() >= 0 and (pairs < [users, items]).all()
    assert len(np.unique(pairs, axis=0)) == rows
    if rows == 20_000:
        for column in pairs.T:
            counts = np.sort(np.bincount(column))
            tenth = len(counts) // 10
            assert counts[-tenth:].sum() > 4 * counts[:tenth].sum()
        # The rows come in no order, so any stretch of them is a sample.
        assert scipy.stats.ks_2samp(pairs[:5000, 0], pairs[-5000:, 0]).pvalue > 0.01


def test_ratings_are_products_of_the_factors_and_noise():
    source = synthetic("ratings", 20_000, 6, users=300, items=400, k=5, noise=0.25)
    pairs, ratings = source.read(0, 20_000)
    truth = source.truth()
    products = np.einsum("rk,rk->r", truth["user_factors"][pairs[:, 0]], truth["item_factors"][pairs[:, 1]])
    assert scipy.stats.kstest((ratings - products) / 0.25, "norm").pvalue > 0.01
    assert products.std() == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(("kind", "rows", "given", "says"), [
    ("ratings", 13, {"users": 3, "items": 4, "k": 1}, "at most 12 ratings"),
    ("ratings", 5, {"users": 3}, "needs --items"),
    ("ratings", 5, {"users": 3, "items": 4, "k": 4}, "no rank 4"),
    ("lowrank", 5, {"features": 9, "k": 6}, "no rank 6"),
    ("lowrank", 5, {}, "needs --features"),
    ("binary", 5, {"features": 3, "noise": 0.1}, "takes no --noise"),
    ("binary", 5, {"features": 0}, "--features is at least 1"),
    ("binary", 0, {"features": 1}, "--rows is at least 1"),
    ("regression", 5, {"features": 3, "noise": -1.0}, "--noise is at least 0"),
    ("regression", 5, {"features": 3, "noise": math.nan}, "--noise is at least 0"),
    ("multiclass", 5, {"features": 3, "classes": 1}, "--classes is at least 2"),
    ("sparse-binary", 5, {"features": 100, "density": 0.0}, "at most 0.5"),
    ("sparse-binary", 5, {"features": 100, "density": 0.7}, "at most 0.5"),
    ("sparse-binary", 5, {"features": 100, "density": 0.2, "row_entries": 4}, "give one of them"),
    ("sparse-binary", 5, {"features": 10, "row_entries": 6}, "1 to 5"),
    ("sparse-binary", 5, {"features": 1}, "at least 2 features"),
])
def test_what_makes_no_data_set_is_refused(kind, rows, given, says):
    with pytest.raises(UserError, match=says):
        synthetic(kind, rows, **given)


def synth(capsys, *arguments):
    code = main(["data", "synth", *map(str, arguments)])
    return code, capsys.readouterr()


@pytest.mark.parametrize("kind", SMALL)
def test_the_verb(tmp_path, capsys, kind):
    given = SMALL[kind]
    options = [word for name, value in given.items() for word in ("--" + name.replace("_", "-"), value)]
    options += ["-o", tmp_path / "s", "--rows", 200, "--shards", 3, "--seed", 8, "--json"]
    code, said = synth(capsys, kind, *options)
    assert code == 0, said.err
    result = json.loads(said.out)
    source = synthetic(kind, 200, 8, **given)
    X, y = source.read(0, 200)
    assert result["rows"] == 200 and result["features"] == source.features
    manifest = json.loads((tmp_path / "s" / "manifest.json").read_text())
    assert manifest["source"]["synthetic"] == kind and manifest["users"] == given.get("users")
    with h5py.File(tmp_path / "s" / "truth.h5") as file:
        assert file.attrs["kind"] == kind and file.attrs["seed"] == 8 and file.attrs["rows"] == 200
        for name, value in source.truth().items():
            assert np.array_equal(file[name] if isinstance(value, np.ndarray) else file.attrs[name], value)
    stored = []
    if kind == "ratings":
        users, items, ratings = all_of(open_ratings(Alone(), tmp_path / "s"))
        order = np.lexsort((items, users))
        expected = np.lexsort((X[:, 1], X[:, 0]))
        assert np.array_equal(np.stack([users, items], 1)[order], X[expected])
        assert np.array_equal(ratings[order], y[expected].astype(np.float32))
        return
    for part in sorted((tmp_path / "s").glob("part-*.h5")):
        with h5py.File(part) as file:
            stored.append(file["y"][()])
    assert len(stored) == 3 and np.array_equal(np.concatenate(stored), y.astype(np.float32))


def test_holdout_and_overwrite(tmp_path, capsys):
    out = tmp_path / "s"
    words = ["binary", "-o", out, "--rows", 1000, "--features", 3, "--holdout", 0.3, "--json"]
    code, said = synth(capsys, *words)
    result = json.loads(said.out)
    assert code == 0 and result["train_rows"] + result["test_rows"] == 1000 and 230 < result["test_rows"] < 370
    assert (out / "truth.h5").is_file() and (out / "train" / "manifest.json").is_file()
    assert synth(capsys, *words)[0] == 2
    assert synth(capsys, *words, "--overwrite")[0] == 0
    (out / "mine.txt").write_text("dear to me")
    code, said = synth(capsys, *words, "--overwrite")
    assert code == 2 and "mine.txt" in said.err and (out / "mine.txt").exists()


@pytest.mark.parametrize("words", [
    ["ratings", "--rows", 7, "--users", 2, "--items", 3, "--k", 1], ["binary", "--rows", 10, "--features", 0],
    ["lowrank", "--rows", 30, "--features", 20, "--holdout", 0.5], ["binary", "--rows", 10],
    ["binary", "--rows", 3, "--features", 2, "--holdout", 1e-9], ["sparse-binary", "--rows", 3, "--density", 2],
    ["regression", "--rows", 3, "--features", 2, "--noise", 1e39],
    ["binary", "--rows", 3, "--features", 2, "--seed", 2**64]])
def test_mistakes_are_one_line_and_leave_nothing(tmp_path, capsys, words):
    code, said = synth(capsys, *words, "-o", tmp_path / "s")
    assert code == 2 and said.err.count("\n") == 1 and "Traceback" not in said.err
    assert not list(tmp_path.iterdir())
