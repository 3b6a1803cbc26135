"""The dense kernels of a linear score, run on the CPU, against their Numba twins and NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest

from dml_hpc.kernels import glm as twin
from dml_hpc.kernels import losses, plain
from dml_hpc.kernels.cuda import glm

LOSSES = range(6)
STORED = ["float16", "bfloat16", "float32", "float64"]
KINDS = [(stored, kind) for kind in ("float32", "float64") for stored in STORED
         if (stored, kind) != ("bfloat16", "float64")]
SHAPES = [(200, 0), (200, 1), (300, 3), (200, 8), (200, 31), (200, 32), (200, 33), (150, 100), (150, 256), (120, 257),
          (60, 512), (40, 600), (1, 40), (0, 40)]
WIDE = [(30, 1024), (20, 2049), (9, 4096), (7, 5000), (5, 6142), (5, 8190), (5, 8192), (5, 8200)]
DELTA = 0.7


def made(count, features, stored, kind, loss=losses.LOGISTIC, weighted=False, seed=0):
    """Return X as stored, X in float64, y, weight and parameters."""
    random = np.random.default_rng([seed, count, features])
    wide = random.normal(size=(count, features)) / max(features, 1) ** 0.5
    if stored == "bfloat16":
        X = (wide.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        wide = (X.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    else:
        X = wide.astype(stored)
        wide = X.astype(np.float64)
    y = random.integers(0, 2, count) if loss in (losses.LOGISTIC, losses.HINGE, losses.SQUARED_HINGE) else \
        random.integers(0, 4, count)
    weight = random.uniform(0, 3, count).astype(kind) if weighted else None
    return X, wide, y.astype(kind), weight, random.normal(size=features + 1).astype(kind)


def slopes_and_losses(loss, scores, y):
    """Return dℓ/ds and ℓ of each row in float64."""
    r, sign = scores - y, 2 * y - 1
    missing = np.maximum(1 - sign * scores, 0)
    if loss == losses.SQUARED:
        return r, r * r / 2
    if loss == losses.HUBER:
        return np.clip(r, -DELTA, DELTA), np.where(abs(r) <= DELTA, r * r / 2, DELTA * (abs(r) - DELTA / 2))
    if loss == losses.LOGISTIC:
        return 1 / (1 + np.exp(-scores)) - y, np.logaddexp(0, scores) - y * scores
    if loss == losses.HINGE:
        return np.where(missing > 0, -sign, 0.0), missing
    if loss == losses.SQUARED_HINGE:
        return -2 * sign * missing, missing ** 2
    return np.exp(scores) - y, np.exp(scores) - y * scores


def wanted(loss, wide, y, weight, rows, parameters):
    """Return the gradient and the loss of the rows, in float64."""
    X, y, w = wide[rows], y[rows].astype(np.float64), parameters.astype(np.float64)
    slopes, values = slopes_and_losses(loss, X @ w[:-1] + w[-1], y)
    counts = 1 if weight is None else weight[rows].astype(np.float64)
    slopes, values = slopes * counts, values * counts
    return np.append(slopes @ X, slopes.sum()), values.sum()


def put(device, *arrays):
    return [None if array is None else device.put(np.ascontiguousarray(array)) for array in arrays]


def gradient_on(device, loss, X, y, weight, rows, parameters):
    """Return gradient (begun at 1) and loss (begun at 2) as the device has them."""
    X, y, weight, rows, parameters = put(device, X, y, weight, rows, parameters)
    gradient, total = device.zeros(parameters.shape, parameters.dtype), device.zeros(1, "float64")
    gradient[:] = 1
    total[:] = 2
    glm.loss_and_gradient(device, loss, DELTA, X, y, weight, rows, parameters, gradient, total)
    return device.get(gradient), float(device.get(total)[0])


def fixed_on(device, loss, X, y, weight, parts, parameters, shift, scale, per_unit=2.0 ** 30, per_loss_unit=2.0 ** 32):
    """Return ``out`` of one call for each of ``parts``, arrays of row numbers or None."""
    X, y, weight, parameters, shift, scale = put(device, X, y, weight, parameters, shift, scale)
    out = device.zeros(len(parameters) + 3, "int64")
    for rows in parts:
        glm.fixed_point_gradient(device, loss, DELTA, X, y, weight, *put(device, rows), parameters, shift, scale,
                                 per_unit, per_loss_unit, out)
    return device.get(out)


def close(kind):
    return 1e-11 if kind == "float64" else 3e-5


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_is_the_twins(device, loss):
    X, _, y, weight, parameters = made(300, 20, "float32", "float32", loss, weighted=True)
    gradient, total = gradient_on(device, loss, X, y, weight, None, parameters)
    expected = np.ones(21, np.float32)
    value = twin.loss_and_gradient(loss, DELTA, X, y, weight, np.arange(300), parameters, expected)
    np.testing.assert_allclose(gradient, expected, rtol=2e-5, atol=2e-4)
    assert total - 2 == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize(("stored", "kind"), KINDS)
@pytest.mark.parametrize(("count", "features"), SHAPES + WIDE)
def test_gradient_of_every_shape_and_type(quick_device, stored, kind, count, features):
    loss = (count + features) % 6
    X, wide, y, weight, parameters = made(count, features, stored, kind, loss, weighted=features % 2 == 1)
    chosen = np.random.default_rng(1).permutation(count)[:count * 2 // 3].astype(np.int64)
    for rows in (None, chosen):
        gradient, total = gradient_on(quick_device, loss, X, y, weight, rows, parameters)
        taken = np.arange(count) if rows is None else rows
        expected, value = wanted(loss, wide, y, weight, taken, parameters)
        np.testing.assert_allclose(gradient - 1.0, expected, rtol=close(kind), atol=close(kind) * (1 + count))
        assert total - 2 == pytest.approx(value, rel=close(kind), abs=close(kind))


@pytest.mark.parametrize("features", [8, 33, 600, 8200])
def test_rows_that_do_not_begin_where_memory_is_aligned(quick_device, features):
    X, wide, y, _, parameters = made(21, features, "float32", "float32")
    flat = quick_device.put(np.append(np.float32(7), X.ravel()))
    gradient, total = quick_device.zeros(features + 1, "float32"), quick_device.zeros(1, "float64")
    glm.loss_and_gradient(quick_device, losses.LOGISTIC, 1.0, flat[1:].reshape(21, features),
                          *put(quick_device, y), None, None, *put(quick_device, parameters), gradient, total)
    expected, value = wanted(losses.LOGISTIC, wide, y, None, np.arange(21), parameters)
    np.testing.assert_allclose(quick_device.get(gradient), expected, rtol=1e-5, atol=1e-5)
    assert quick_device.get(total)[0] == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("features", [20, 700, 8200])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_number_that_is_none_shows(quick_device, features, loss):
    X, _, y, _, parameters = made(30, features, "float32", "float32", loss)
    X[17, features - 2] = np.nan
    gradient, total = gradient_on(quick_device, loss, X, y, None, None, parameters)
    assert np.isnan(total)
    assert np.isnan(gradient[features - 2])
    rows = np.delete(np.arange(30), 17)
    gradient, total = gradient_on(quick_device, loss, X, y, None, rows, parameters)
    assert np.isfinite(total)
    assert np.isfinite(gradient).all()


def test_scores_far_out_do_not_overflow(quick_device):
    X = np.array([[1e4], [-1e4], [3e38]], np.float32)
    y = np.array([0, 1, 1], np.float32)
    gradient, total = gradient_on(quick_device, losses.LOGISTIC, X, y, None, None, np.array([1, 0], np.float32))
    np.testing.assert_allclose(gradient, [1e4 + 1e4 + 1, 1])
    assert total == 2e4 + 2


@pytest.mark.parametrize("features", [5, 256, 900, 8200])
def test_the_same_bits_twice(quick_device, features):
    X, _, y, weight, parameters = made(300 if features < 1000 else 30, features, "float32", "float32", weighted=True)
    first, total = gradient_on(quick_device, losses.LOGISTIC, X, y, weight, None, parameters)
    again, total_again = gradient_on(quick_device, losses.LOGISTIC, X, y, weight, None, parameters)
    assert first.tobytes() == again.tobytes()
    assert total == total_again


@pytest.mark.parametrize(("count", "features"), [(150, 7), (100, 32), (20, 600), (9, 4100)])
@pytest.mark.parametrize(("stored", "kind"), [kinds for kinds in KINDS if kinds[0] != "bfloat16"])
def test_fixed_point_is_the_twins(quick_device, stored, kind, count, features):
    X, _, y, weight, parameters = made(count, features, stored, kind, weighted=True)
    random = np.random.default_rng(2)
    shift, scale = random.normal(size=features).astype(kind), random.uniform(0, 2, features + 1).astype(kind)
    for loss in LOSSES:
        found = fixed_on(quick_device, loss, X, y, weight, [None], parameters, shift, scale)
        expected = np.zeros(features + 4, np.int64)
        twin.fixed_point_gradient(loss, DELTA, plain(X), y, weight, np.arange(count), parameters, shift, scale,
                                  2.0 ** 30, 2.0 ** 32, expected)
        # float32 has 24 bits, of terms up to some 2³².
        error = 2e-5 if kind == "float32" else 1e-12
        np.testing.assert_allclose(found[:-2], expected[:-2], rtol=error, atol=count * (2 + error * 2 ** 33))
        np.testing.assert_allclose(found[-2:], expected[-2:], atol=count // 20 + 1)


@pytest.mark.parametrize(("features", "size"), [(9, 0.01), (9, 3.0), (600, 0.001), (4100, 0.5)])
def test_masses_bound_what_was_added(quick_device, features, size):
    X, _, y, weight, parameters = made(20, features, "float64", "float64", weighted=True)
    X *= size
    shift, scale = np.full(features, size / 9), np.ones(features + 1)
    units = 2.0 ** 54, 2.0 ** 55
    found = fixed_on(quick_device, losses.LOGISTIC, X, y, weight, [None], parameters, shift, scale, *units)
    expected = np.zeros(features + 4, np.int64)
    twin.fixed_point_gradient(losses.LOGISTIC, DELTA, X, y, weight, np.arange(20), parameters, shift, scale, *units,
                              expected)
    assert found[-2:].min() > 1 << 20
    np.testing.assert_allclose(found[-2:], expected[-2:], atol=20)
    assert np.abs(found[:-3]).max() <= found[-2] << 32
    assert abs(found[-3]) <= found[-1] << 32


@pytest.mark.parametrize(("count", "features"), [(150, 7), (100, 100), (40, 600), (12, 3072), (12, 4100)])
@pytest.mark.parametrize("stored", ["float16", "bfloat16", "float32"])
def test_fixed_point_has_the_same_bits_however_rows_are_dealt(quick_device, stored, count, features):
    X, _, y, weight, parameters = made(count, features, stored, "float32", weighted=True)
    shift, scale = np.full(features, 0.1, np.float32), np.full(features + 1, 1.3, np.float32)
    arguments = parameters, shift, scale
    random = np.random.default_rng(3)
    whole = fixed_on(quick_device, losses.LOGISTIC, X, y, weight, [None], *arguments)
    for pieces in (1, 2, 5):
        parts = np.array_split(random.permutation(count), pieces)
        assert np.array_equal(fixed_on(quick_device, losses.LOGISTIC, X, y, weight, parts, *arguments), whole)
    quick_device.processors, quick_device.cache_bytes = 7, 1 << 14
    assert np.array_equal(fixed_on(quick_device, losses.LOGISTIC, X, y, weight, [None], *arguments), whole)


@pytest.mark.parametrize("features", [6, 600, 4100])
def test_what_does_not_fit_fixed_point_is_counted_not_added(quick_device, features):
    X, _, y, _, parameters = made(12, features, "float64", "float64", losses.SQUARED)
    X[3], X[5, 1], X[7] = np.nan, np.inf, 1e30
    shift, scale = np.zeros(features), np.ones(features + 1)
    found = fixed_on(quick_device, losses.SQUARED, X, y, None, [None], parameters, shift, scale)
    good = np.delete(np.arange(12), [3, 5, 7])
    kept = fixed_on(quick_device, losses.SQUARED, X, y, None, [good], parameters, shift, scale)
    assert np.array_equal(found[:-2], kept[:-2])
    assert np.array_equal(found[-2:] - kept[-2:], [3 << 30, 3 << 30])


@pytest.mark.parametrize(("stored", "kind"), KINDS)
def test_scores_and_summed_loss(quick_device, stored, kind):
    for count, features in [*SHAPES, (5, 3000)]:
        X, wide, y, weight, parameters = made(count, features, stored, kind, weighted=True)
        on = put(quick_device, X, y, weight, parameters)
        out = quick_device.empty(count, kind)
        glm.scores(quick_device, on[0], on[3], out)
        expected = wide @ parameters[:-1].astype(np.float64) + parameters[-1]
        np.testing.assert_allclose(quick_device.get(out), expected, rtol=close(kind), atol=close(kind))
        rows = np.arange(count)[::-2].copy()
        total = quick_device.zeros(1, "float64")
        glm.summed_loss(quick_device, losses.LOGISTIC, 1.0, on[0], on[1], on[2], *put(quick_device, rows), on[3], total)
        _, value = wanted(losses.LOGISTIC, wide, y, weight, rows, parameters)
        assert quick_device.get(total)[0] == pytest.approx(value, rel=close(kind), abs=close(kind))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("l1", "l2"), [(0.0, 0.0), (0.01, 0.0), (0.0, 0.1), (0.01, 0.1)])
def test_steps_of_one_example_are_the_twins(quick_device, loss, l1, l2):
    for features, kind in ((0, "float64"), (5, "float64"), (70, "float64"), (600, "float64"), (33, "float32")):
        X, _, y, weight, parameters = made(40, features, kind, kind, loss, weighted=features % 2 == 0)
        rows = np.random.default_rng(4).integers(0, 40, 50)
        shift, scale = np.full(features, 0.2, kind), np.full(features + 1, 0.9, kind)
        expected = parameters.copy()
        value = twin.sequential_sgd(loss, DELTA, X, y, weight, rows, shift, scale, expected, 0.05, l1, l2)
        for shared_bytes in (48 << 10, 1 << 10):
            quick_device.shared_bytes = shared_bytes
            on = put(quick_device, X, y, weight, rows, shift, scale, parameters)
            total = quick_device.zeros(1, "float64")
            glm.sequential_sgd(quick_device, loss, DELTA, *on, 0.05, l1, l2, total)
            error = 1e-10 if kind == "float64" else 1e-4
            np.testing.assert_allclose(quick_device.get(on[-1]), expected, rtol=error, atol=error)
            assert quick_device.get(total)[0] == pytest.approx(value, rel=error)
        quick_device.shared_bytes = 48 << 10


@pytest.mark.parametrize(("stored", "kind"), KINDS)
def test_steps_on_every_type(quick_device, stored, kind):
    X, wide, y, weight, parameters = made(40, 70, stored, kind, weighted=True)
    rows, shift, scale = np.arange(40)[::-1].copy(), np.full(70, 0.2, kind), np.full(71, 0.9, kind)
    expected = parameters.copy()
    twin.sequential_sgd(losses.LOGISTIC, DELTA, wide, y, weight, rows, shift, scale, expected, 0.05, 0.01, 0.1)
    on = put(quick_device, X, y, weight, rows, shift, scale, parameters)
    glm.sequential_sgd(quick_device, losses.LOGISTIC, DELTA, *on, 0.05, 0.01, 0.1, quick_device.zeros(1, "float64"))
    np.testing.assert_allclose(quick_device.get(on[-1]), expected, rtol=close(kind), atol=close(kind))


def test_kernels_by_real_threads(device):
    X, wide, y, weight, parameters = made(150, 600, "float16", "float32", weighted=True)
    rows = np.arange(0, 150, 3)
    gradient, total = gradient_on(device, losses.LOGISTIC, X, y, weight, rows, parameters)
    expected, value = wanted(losses.LOGISTIC, wide, y, weight, rows, parameters)
    np.testing.assert_allclose(gradient - 1.0, expected, rtol=1e-5, atol=1e-4)
    assert total - 2 == pytest.approx(value, rel=1e-6)
    on = put(device, X[:, :100], y, weight, rows, np.zeros(100, np.float32), np.ones(101, np.float32), parameters[:101])
    glm.sequential_sgd(device, losses.LOGISTIC, DELTA, *on, 0.05, 0.0, 0.0, device.zeros(1, "float64"))
    shift, scale = np.zeros(600, np.float32), np.ones(601, np.float32)
    for some in (np.arange(2), None):
        fixed_on(device, losses.LOGISTIC, X, y, weight, [some], parameters, shift, scale)
