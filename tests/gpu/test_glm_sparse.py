"""The sparse kernels of a linear score, run on the CPU, against their Numba twins and NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
from test_glm import DELTA, LOSSES, close, put, wanted

from dml_hpc.data.csr import Csr, concatenated, sparse
from dml_hpc.data.reading import Rows
from dml_hpc.kernels import glm_sparse as twin
from dml_hpc.kernels import losses
from dml_hpc.kernels.cuda import glm_sparse, long_rows
from dml_hpc.objectives import open_objective
from dml_hpc.objectives.on_device import DeviceSequential, on_device
from dml_hpc.objectives.sequential import Sequential

KINDS = [(stored, index, kind) for stored in ("float32", "float64") for index in ("int32", "int64")
         for kind in ("float32", "float64")]
UNITS = 2.0 ** 30, 2.0 ** 32


def made(count, features, stored="float32", index="int32", kind="float32", long=(), share=0.1, seed=0):
    """Return a `Csr`, y, weight and parameters; the rows numbered ``long`` are full."""
    random = np.random.default_rng([seed, count, features])
    X = random.normal(size=(count, features)) * (random.uniform(size=(count, features)) < share)
    X[list(long)] = random.normal(size=(len(long), features)) / max(features, 1) ** 0.5
    rows = sparse(X.astype(stored))
    # In no order within a row.
    for start, stop in zip(rows.indptr[:-1], rows.indptr[1:], strict=True):
        order = start + random.permutation(stop - start)
        rows.data[start:stop], rows.indices[start:stop] = rows.data[order], rows.indices[order]
    rows = Csr(rows.data, rows.indices.astype(index), rows.indptr, features)
    return (rows, random.integers(0, 2, count).astype(kind), random.uniform(0, 3, count).astype(kind),
            random.normal(size=features + 1).astype(kind))


def on(device, X):
    """Return the arrays of X on the device."""
    return put(device, X.data, X.indices, X.indptr)


def ragged(lengths, features, stored="float32", index="int32", kind="float32"):
    """Return rows of so many entries as a `Csr`, and y, weight and parameters."""
    random = np.random.default_rng([len(lengths), features])
    columns = [random.permutation(features)[:length] if length > 50 else
               random.choice(features, length, replace=False, shuffle=False) for length in lengths]
    X = Csr(random.normal(size=sum(lengths)).astype(stored), np.concatenate(columns).astype(index),
            np.concatenate([[0], np.cumsum(lengths)]), features)
    X.data[:] /= np.repeat(np.maximum(lengths, 1), lengths) ** 0.5
    return (X, random.integers(0, 2, len(lengths)).astype(kind), random.uniform(0, 3, len(lengths)).astype(kind),
            random.normal(size=features + 1).astype(kind))


def gradient_on(device, loss, X, y, weight, rows, parameters):
    gradient, total = device.zeros(len(parameters), parameters.dtype), device.zeros(1, "float64")
    gradient[:], total[:] = 1, 2
    glm_sparse.loss_and_gradient(device, loss, DELTA, *on(device, X), *put(device, y, weight, rows, parameters),
                                 gradient, total, X.long_entries)
    return device.get(gradient), float(device.get(total)[0])


def fixed_on(device, loss, X, y, weight, parts, parameters, scale):
    out = device.zeros(len(parameters) + 3, "int64")
    for rows in parts:
        glm_sparse.fixed_point_gradient(device, loss, DELTA, *on(device, X), *put(device, y, weight, rows, parameters,
                                                                                  scale), *UNITS, out)
    return device.get(out)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_is_the_twins(device, loss):
    X, y, weight, parameters = made(200, 1500, long=(3, 190), share=0.01)
    gradient, total = gradient_on(device, loss, X, y, weight, None, parameters)
    expected = np.ones(1501, np.float32)
    value = twin.loss_and_gradient(loss, DELTA, X.data, X.indices, X.indptr, y, weight, np.arange(200), parameters,
                                   expected)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4)
    assert total - 2 == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize(("stored", "index", "kind"), KINDS)
def test_gradient_and_scores_of_every_type_and_shape(quick_device, stored, index, kind):
    for count, features, long in ((0, 5, ()), (1, 0, ()), (30, 0, ()), (300, 1, ()), (700, 60, ()), (50, 1100, (0, 7)),
                                  (9, 3000, range(9))):
        X, y, weight, parameters = made(count, features, stored, index, kind, long)
        wide = X.dense("float64")
        loss = (count + features) % 6
        for rows, counts in ((None, None), (np.random.default_rng(1).permutation(count)[::2].copy(), weight)):
            taken = np.arange(count) if rows is None else rows
            gradient, total = gradient_on(quick_device, loss, X, y, counts, rows, parameters)
            expected, value = wanted(loss, wide, y, counts, taken, parameters)
            error = close(kind) * 4
            np.testing.assert_allclose(gradient - 1.0, expected, rtol=error, atol=error * (1 + count))
            assert total - 2 == pytest.approx(value, rel=error, abs=error)
            summed = quick_device.zeros(1, "float64")
            glm_sparse.summed_loss(quick_device, loss, DELTA, *on(quick_device, X),
                                   *put(quick_device, y, counts, rows, parameters), summed)
            assert quick_device.get(summed)[0] == pytest.approx(value, rel=error, abs=error)
        out = quick_device.empty(count, kind)
        glm_sparse.scores(quick_device, *on(quick_device, X), *put(quick_device, parameters), out)
        np.testing.assert_allclose(quick_device.get(out), wide @ parameters[:-1] + parameters[-1], rtol=error,
                                   atol=error)


def test_a_range_of_rows_whose_pointers_do_not_begin_at_zero(quick_device):
    X, y, _, parameters = made(40, 30)
    part = X[10:25]
    data, indices, indptr = on(quick_device, X)
    gradient, total = quick_device.zeros(31, "float32"), quick_device.zeros(1, "float64")
    glm_sparse.loss_and_gradient(quick_device, losses.LOGISTIC, 1.0, data, indices, indptr[10:26],
                                 *put(quick_device, y[10:25], None, None, parameters), gradient, total)
    expected, value = wanted(losses.LOGISTIC, part.dense("float64"), y[10:25], None, np.arange(15), parameters)
    np.testing.assert_allclose(quick_device.get(gradient), expected, rtol=1e-4, atol=1e-4)
    assert quick_device.get(total)[0] == pytest.approx(value, rel=1e-5)


def test_a_number_that_is_none_shows(quick_device):
    for features in (20, 1500):
        for loss in LOSSES:
            X, y, _, parameters = made(30, features, long=(17,))
            X.data[X.indptr[17] + 3] = np.nan
            gradient, total = gradient_on(quick_device, loss, X, y, None, None, parameters)
            assert np.isnan(total)
            assert np.isnan(gradient).any()
            assert np.isfinite(gradient_on(quick_device, loss, X, y, None, np.delete(np.arange(30), 17),
                                           parameters)[1])


BOUND = long_rows.VERY_LONG
ONE_LONG = [3, 0, *[5] * 900, 3 * BOUND + 17, *[2, 0, 7] * 400]
SOME_LONG = [4, BOUND, 0, BOUND + 1, 2 * BOUND, 5, 0, 1100, 3 * BOUND]
ALL_LONG = [2 * BOUND + 1, 3 * BOUND, BOUND + 900]


@pytest.mark.parametrize(("stored", "index", "kind"), KINDS)
def test_very_long_rows_are_the_twins(quick_device, stored, index, kind):
    device = quick_device
    for lengths in (ONE_LONG, SOME_LONG, ALL_LONG):
        X, y, weight, parameters = ragged(lengths, 3 * BOUND + 20, stored, index, kind)
        count, loss = len(lengths), len(lengths) % 6
        wide = X.data.astype("f8"), X.indices, X.indptr
        some = np.random.default_rng(1).permutation(count)[count // 3:].copy()
        again = np.full(30, int(np.argmax(lengths)))  # more often than there is room for
        for rows, counts in ((None, None), (some, weight), (again, weight)):
            expected, taken = np.ones(len(parameters)), np.arange(count) if rows is None else rows
            value = twin.loss_and_gradient(loss, DELTA, *wide, y.astype("f8"),
                                           None if counts is None else counts.astype("f8"), taken,
                                           parameters.astype("f8"), expected)
            gradient, total = gradient_on(device, loss, X, y, counts, rows, parameters)
            error = close(kind) * 8
            np.testing.assert_allclose(gradient, expected, rtol=error, atol=error * 10)
            assert total - 2 == pytest.approx(value, rel=error)
            summed = device.zeros(1, "float64")
            glm_sparse.summed_loss(device, loss, DELTA, *on(device, X), *put(device, y, counts, rows, parameters),
                                   summed)
            assert device.get(summed)[0] == pytest.approx(value, rel=error)
        out, plain = np.zeros((2, count), kind)
        twin.scores(X.data, X.indices, X.indptr, parameters, plain)
        np.testing.assert_allclose(scores_on(device, X, parameters, out), plain, rtol=error, atol=error * 10)


def scores_on(device, X, parameters, out):
    there = device.put(out)
    glm_sparse.scores(device, *on(device, X), *put(device, parameters), there, X.long_entries)
    return device.get(there)


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("index", ["int32", "int64"])
@pytest.mark.parametrize("stored", ["float32", "float64"])
def test_very_long_rows_in_fixed_point(quick_device, stored, index, kind):
    device = quick_device
    X, y, weight, parameters = ragged(SOME_LONG + ONE_LONG[-300:], 3 * BOUND + 20, stored, index, kind)
    scale = np.random.default_rng(2).uniform(0, 2, len(parameters)).astype(kind)
    expected = np.zeros(len(parameters) + 3, np.int64)
    twin.fixed_point_gradient(losses.LOGISTIC, DELTA, X.data, X.indices, X.indptr, y, weight, np.arange(len(X)),
                              parameters, scale, *UNITS, expected)
    whole = fixed_on(device, losses.LOGISTIC, X, y, weight, [None], parameters, scale)
    error = 2e-5 if kind == "float32" else 1e-12
    np.testing.assert_allclose(whole[:-2], expected[:-2], rtol=error, atol=len(X) * (2 + error * 2 ** 33))
    np.testing.assert_allclose(whole[-2:], expected[-2:], rtol=1e-4, atol=10)
    for pieces, processors in ((1, 5), (4, 2), (50, 3)):
        device.processors = processors
        parts = np.array_split(np.random.default_rng(3).permutation(len(X)), pieces)
        assert np.array_equal(fixed_on(device, losses.LOGISTIC, X, y, weight, parts, parameters, scale), whole)


def test_the_order_of_a_very_long_rows_sum_depends_on_nothing_else(quick_device):
    device = quick_device
    X, y, _, parameters = ragged(SOME_LONG, 3 * BOUND + 20)
    empty = np.zeros(len(X), np.float32)
    found, total = scores_on(device, X, parameters, empty), gradient_on(device, 0, X, y, None, None, parameters)[1]
    known = Csr(X.data, X.indices, X.indptr, X.features, long_rows.long_entries(X.indptr))
    assert known.long_entries == BOUND + 1 + 2 * BOUND + 3 * BOUND
    device.processors = 7
    assert np.array_equal(scores_on(device, known, parameters, empty), found)
    assert gradient_on(device, 0, known, y, None, None, parameters)[1] == total
    for first in range(len(X)):
        assert np.array_equal(scores_on(device, known[first:], parameters, empty[first:]), found[first:])


def test_nothing_more_is_launched_for_rows_that_are_known_to_be_shorter(quick_device, monkeypatch):
    X, y, _, parameters = ragged([BOUND, 3, BOUND, 0], BOUND + 9)
    known = Csr(X.data, X.indices, X.indptr, X.features, long_rows.long_entries(X.indptr))
    files = []
    launch = quick_device.launch
    monkeypatch.setattr(quick_device, "launch", lambda file, *rest: (files.append(file), launch(file, *rest)))
    gradient_on(quick_device, 0, known, y, None, None, parameters)
    assert set(files) == {"glm_sparse.cu", "glm.cu"}
    gradient_on(quick_device, 0, X, y, None, None, parameters)  # nobody knows
    assert "long_rows.cu" in files


@pytest.mark.parametrize(("stored", "index", "kind"), KINDS)
def test_fixed_point_is_the_twins(quick_device, stored, index, kind):
    X, y, weight, parameters = made(200, 1200, stored, index, kind, (5, 6), 0.02)
    scale = np.random.default_rng(2).uniform(0, 2, 1201).astype(kind)
    for loss in LOSSES:
        found = fixed_on(quick_device, loss, X, y, weight, [None], parameters, scale)
        expected = np.zeros(1204, np.int64)
        twin.fixed_point_gradient(loss, DELTA, X.data, X.indices, X.indptr, y, weight, np.arange(200), parameters,
                                  scale, *UNITS, expected)
        error = 2e-5 if kind == "float32" else 1e-12
        np.testing.assert_allclose(found[:-2], expected[:-2], rtol=error, atol=200 * (2 + error * 2 ** 33))
        np.testing.assert_allclose(found[-2:], expected[-2:], rtol=1e-4, atol=10)


def test_fixed_point_has_the_same_bits_however_rows_are_dealt(quick_device):
    X, y, weight, parameters = made(200, 1200, long=(5, 6, 100), share=0.02)
    scale = np.full(1201, 1.3, np.float32)
    whole = fixed_on(quick_device, losses.LOGISTIC, X, y, weight, [None], parameters, scale)
    for pieces in (1, 2, 7):
        parts = np.array_split(np.random.default_rng(3).permutation(200), pieces)
        assert np.array_equal(fixed_on(quick_device, losses.LOGISTIC, X, y, weight, parts, parameters, scale), whole)
    quick_device.processors = 5
    assert np.array_equal(fixed_on(quick_device, losses.LOGISTIC, X, y, weight, [None], parameters, scale), whole)


def test_what_does_not_fit_fixed_point_is_counted_not_added(quick_device):
    X, y, _, parameters = made(12, 60, "float64", kind="float64", share=0.5)
    X.data[X.indptr[3]], X.data[X.indptr[5]], X.data[X.indptr[7]] = np.nan, np.inf, 1e30
    scale = np.ones(61)
    found = fixed_on(quick_device, losses.SQUARED, X, y, None, [None], parameters, scale)
    good = np.delete(np.arange(12), [3, 5, 7])
    kept = fixed_on(quick_device, losses.SQUARED, X, y, None, [good], parameters, scale)
    assert np.array_equal(found[:-2], kept[:-2])
    assert np.array_equal(found[-2:] - kept[-2:], [3 << 30, 3 << 30])


@pytest.mark.parametrize(("l1", "l2"), [(0.0, 0.0), (0.01, 0.0), (0.0, 0.1), (0.01, 0.1), (0.01, 30.0)])
@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_steps_of_one_example_are_the_hosts(quick_device, kind, l1, l2):
    for name, features in (("logistic", 40), ("hinge", 300), ("linear", 0)):
        X, y, weight, parameters = made(40, features, kind, kind=kind, share=0.3)
        objective = open_objective(name)
        layers = objective.layers(features, None)
        mine = on_device(objective, quick_device)
        random = np.random.default_rng(5)
        shift, scale = np.zeros(features, kind), random.uniform(0.2, 1, features + 1).astype(kind)
        host = Sequential(parameters.copy(), l1, l2)
        state = DeviceSequential(quick_device, quick_device.put(parameters), l1, l2)
        total, value = quick_device.zeros(1, "float64"), 0.0
        device_X = Csr(*on(quick_device, X), features)
        for piece in range(3):
            rows = random.integers(0, 40, 60)
            value += objective.sequential_sgd(layers, X, y, weight, rows, shift, scale, host, 0.1)
            mine.sequential_sgd(layers, Rows(device_X, *put(quick_device, y, rows, weight)),
                                *put(quick_device, shift, scale), state, 0.1, total)
            if piece == 1:
                host.settle()
                state.settle()
        error = 1e-9 if kind == "float64" else 2e-4
        np.testing.assert_allclose(quick_device.get(state.settle()), host.settle(), rtol=error, atol=error)
        assert quick_device.get(total)[0] == pytest.approx(value, rel=error)
        state.begin(quick_device.put(parameters))
        assert np.array_equal(quick_device.get(state.settle()), parameters)


@pytest.mark.parametrize(("stored", "index", "kind"), KINDS)
def test_steps_on_every_type(quick_device, stored, index, kind):
    X, y, weight, parameters = made(60, 200, stored, index, kind, share=0.3)
    rows, scale = np.arange(60)[::-1].copy(), np.full(201, 0.9, kind)
    expected, seen, worth = parameters.copy(), np.zeros(200), np.array([1.0, 0.0])
    arguments = 0.05, 0.01, 0.1
    value = twin.sequential_sgd(losses.LOGISTIC, DELTA, X.data, X.indices, X.indptr, y, weight, rows, scale, expected,
                                seen, worth, *arguments)
    mine = put(quick_device, y, weight, rows, scale, parameters, np.zeros(200), np.array([1.0, 0.0]))
    total = quick_device.zeros(1, "float64")
    glm_sparse.sequential_sgd(quick_device, losses.LOGISTIC, DELTA, *on(quick_device, X), *mine, *arguments, total)
    for found, wanted_one in zip(mine[-3:], (expected, seen, worth), strict=True):
        np.testing.assert_allclose(quick_device.get(found), wanted_one, rtol=close(kind), atol=close(kind))
    assert quick_device.get(total)[0] == pytest.approx(value, rel=close(kind))


@pytest.mark.parametrize("name", ["linear", "huber", "logistic", "hinge", "squared-hinge", "poisson"])
@pytest.mark.parametrize("is_sparse", [False, True])
def test_objectives_on_a_device(quick_device, name, is_sparse):
    X, y, weight, parameters = made(50, 20, "float32", share=0.5)
    given = X if is_sparse else X.dense()
    objective = open_objective(name)
    layers, mine = objective.layers(20, None), on_device(objective, quick_device)
    on_it = Csr(*on(quick_device, X), 20) if is_sparse else quick_device.put(given)
    rows = np.arange(0, 50, 2)
    part = Rows(on_it, *put(quick_device, y, rows, weight))
    w = quick_device.put(parameters)
    gradient, loss, summed = (quick_device.zeros(size, kind) for size, kind in ((21, "float32"), (1, "float64"),
                                                                               (1, "float64")))
    expected = np.zeros(21, np.float32)
    value = objective.loss_and_gradient(layers, given, y, weight, rows, parameters, expected)
    mine.loss_and_gradient(layers, part, w, gradient, loss)
    mine.summed_loss(layers, part, w, summed)
    np.testing.assert_allclose(quick_device.get(gradient), expected, rtol=1e-4, atol=1e-4)
    assert quick_device.get(loss)[0] == pytest.approx(value, rel=1e-5)
    assert quick_device.get(summed)[0] == pytest.approx(value, rel=1e-5)

    out, host_out = quick_device.empty((50, 1), "float32"), np.empty((50, 1), np.float32)
    mine.scores(layers, on_it, w, out)
    objective.scores(layers, given, parameters, host_out)
    np.testing.assert_allclose(quick_device.get(out), host_out, rtol=1e-4, atol=1e-5)

    shift, scale = np.zeros(20, np.float32), np.ones(21, np.float32)
    fixed, host_fixed = quick_device.zeros(24, "int64"), np.zeros(24, np.int64)
    mine.fixed_point_gradient(layers, part, w, *put(quick_device, shift, scale), *UNITS, fixed)
    objective.fixed_point_gradient(layers, given, y, weight, rows, parameters, shift, scale, *UNITS, host_fixed)
    np.testing.assert_allclose(quick_device.get(fixed), host_fixed, rtol=1e-4, atol=1e6)

    host = Sequential(parameters.copy(), 0.01, 0.1)
    state = DeviceSequential(quick_device, quick_device.put(parameters), 0.01, 0.1)
    met = quick_device.zeros(1, "float64")
    value = objective.sequential_sgd(layers, given, y, weight, rows, shift, scale, host, 0.005)
    mine.sequential_sgd(layers, part, *put(quick_device, shift, scale), state, 0.005, met)
    np.testing.assert_allclose(quick_device.get(state.settle()), host.settle(), rtol=1e-3, atol=1e-4)
    assert quick_device.get(met)[0] == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("is_sparse", [False, True])
def test_a_run_that_diverges_shows(quick_device, is_sparse):
    X, y, weight, parameters = made(30, 20, share=0.5)
    objective = open_objective("linear")
    on_it = Csr(*on(quick_device, X), 20) if is_sparse else quick_device.put(X.dense())
    part = Rows(on_it, *put(quick_device, y, np.tile(np.arange(30), 9), weight))
    state = DeviceSequential(quick_device, quick_device.put(parameters), 0.01, 0.1)
    total = quick_device.zeros(1, "float64")
    on_device(objective, quick_device).sequential_sgd(
        objective.layers(20, None), part, *put(quick_device, np.zeros(20, np.float32), np.ones(21, np.float32)), state,
        10.0, total)
    assert np.isnan(quick_device.get(state.settle())).all()
    assert not np.isfinite(quick_device.get(total)[0])


def test_kernels_by_real_threads(device):
    X, y, weight, parameters = made(60, 1200, long=(5, 6), share=0.02)
    X = concatenated([X, X])
    y, weight = np.tile(y, 2), np.tile(weight, 2)
    scale = np.ones(1201, np.float32)
    rows = np.arange(0, 120, 3)
    expected, value = wanted(losses.LOGISTIC, X.dense("float64"), y, weight, rows, parameters)
    gradient, total = gradient_on(device, losses.LOGISTIC, X, y, weight, rows, parameters)
    np.testing.assert_allclose(gradient - 1.0, expected, rtol=1e-4, atol=1e-4)
    assert total - 2 == pytest.approx(value, rel=1e-5)
    fixed_on(device, losses.LOGISTIC, X, y, weight, [rows], parameters, scale)
    wide_X, wide_y, _, wide_parameters = ragged(ALL_LONG, 3 * BOUND + 20)
    expected = np.ones(len(wide_parameters), np.float32)
    twin.loss_and_gradient(0, DELTA, wide_X.data, wide_X.indices, wide_X.indptr, wide_y, None, np.arange(3),
                           wide_parameters, expected)
    gradient, _ = gradient_on(device, 0, wide_X, wide_y, None, None, wide_parameters)
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-4)
    glm_sparse.scores(device, *on(device, X), *put(device, parameters), device.empty(120, "float32"))
    state = DeviceSequential(device, device.put(parameters), 0.01, 0.1)
    state.hold(1)
    glm_sparse.sequential_sgd(device, losses.LOGISTIC, 1.0, *on(device, X), *put(device, y, weight, rows, scale),
                              state.parameters, state.seen, state.worth, 0.1, 0.01, 0.1, device.zeros(1, "float64"))
    state.settle()
