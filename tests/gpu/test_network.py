"""Networks on a device: each kernel against its twin for CPUs, gradients, fixed point and steps against the host's."""

from __future__ import annotations

import numpy as np
import pytest

from dml_hpc.data.csr import Csr, sparse
from dml_hpc.data.reading import Rows
from dml_hpc.kernels import network as twins
from dml_hpc.kernels.cuda import network
from dml_hpc.kernels.glm_sparse import settle
from dml_hpc.objectives.layers import Layers
from dml_hpc.objectives.network import Mlp, Softmax
from dml_hpc.objectives.on_device import network as on_device
from dml_hpc.objectives.on_device import on_device as counterpart
from dml_hpc.objectives.on_device.network import DeviceNetwork
from dml_hpc.objectives.on_device.sequential import DeviceSequential
from dml_hpc.objectives.sequential import Sequential

KINDS = ("float32", "float64")
NETWORKS = {
    "softmax": (Softmax(), 4), "two classes": (Softmax(), 2), "many classes": (Softmax(), 150),
    "relu": (Mlp((5,)), 3), "deep tanh": (Mlp((6, 3, 4), "tanh"), 20), "wide relu": (Mlp((40, 36)), 2),
    "a number": (Mlp((5, 3), "tanh"), 1), "a number by relu": (Mlp((8,)), 1),
}
TOLERANCE = {"float32": 2e-5, "float64": 1e-12}


def bits_of_bfloat16(X):
    """Return float32 that bfloat16 can hold as its bits, and rounded so."""
    bits = (X.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return bits, (bits.astype(np.uint32) << 16).view(np.float32)


def close(found, wanted, kind="float64"):
    scale = max(1.0, float(np.abs(wanted).max(initial=0)))
    np.testing.assert_allclose(found, wanted, rtol=TOLERANCE[kind], atol=TOLERANCE[kind] * scale)


@pytest.mark.parametrize("features", [0, 1, 8, 33, 264])
@pytest.mark.parametrize(("stored", "kind"), [(stored, kind) for kind in KINDS for stored in (
    "float16", "bfloat16", "float32", "float64") if (stored, kind) != ("bfloat16", "float64")])
def test_rows_are_gathered_and_converted(quick_device, stored, kind, features):
    rng = np.random.default_rng(features)
    X = rng.standard_normal((40, features))
    held, wanted = bits_of_bfloat16(X) if stored == "bfloat16" else (X.astype(stored), X.astype(stored))
    rows = rng.integers(0, 40, 33)
    there = quick_device.put(held)
    for numbers, first in ((rows, 0), (None, 0), (None, 1)):
        out = quick_device.empty((33, features), kind)
        network.gather(quick_device, there[first:], None if numbers is None else quick_device.put(numbers), out)
        expected = wanted[rows] if numbers is not None else wanted[first:first + 33]
        np.testing.assert_array_equal(quick_device.get(out), expected.astype(kind))


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (5, 4), (70, 10), (130, 33), (9, 256)])
@pytest.mark.parametrize("kind", KINDS)
def test_activations_and_the_way_back_through_them(device, kind, shape):
    rng = np.random.default_rng(shape[0])
    scores, bias, slopes = (rng.standard_normal(size).astype(kind) for size in (shape, shape[1], shape))
    if scores.size:
        scores[0, 0] = np.nan
    for activation in ("relu", "tanh"):
        host = scores.copy()
        if activation == "relu":
            twins.relu(host, bias)
        else:
            host = np.tanh(host + bias)
        there = device.put(scores)
        getattr(network, activation)(device, there, device.put(bias))
        close(device.get(there), host, kind)
        behind, summed = slopes.copy(), np.ones(shape[1], kind)
        slopes_there, summed_there = device.put(slopes), device.put(summed)
        through = f"through_{activation}"
        getattr(twins, through)(behind, device.get(there), summed)
        getattr(network, through)(device, slopes_there, there, summed_there)
        close(device.get(slopes_there), behind, kind)
        close(device.get(summed_there), summed, kind)


@pytest.mark.parametrize("classes", [1, 2, 10, 128, 129, 300])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_cross_entropy_and_its_slopes(device, kind, weighted, classes):
    rng = np.random.default_rng(classes)
    count = 150 if classes < 100 else 20
    scores, bias = (rng.standard_normal(size).astype(kind) * 30 for size in ((count, classes), classes))
    y, weight = rng.integers(0, classes, 200).astype(kind), rng.random(200).astype(kind) if weighted else None
    rows = rng.permutation(200)[:count]
    wanted, own, sums = scores.copy(), np.empty(count, kind), np.ones(classes, kind)
    twins.below_largest(wanted, bias, y, rows, np.empty(twins.LANES, kind), own)
    np.exp(wanted, out=wanted)
    total = twins.softmax_slopes(wanted, y, weight, rows, own, sums)
    found = []
    for with_sums in (True, True, False) if weighted else (True, True):
        there, sums_there, loss = device.put(scores), device.put(np.ones(classes, kind)), device.zeros(1, "float64")
        network.softmax_slopes(device, there, device.put(bias), device.put(y),
                               None if weight is None else device.put(weight), device.put(rows),
                               sums_there if with_sums else None, loss)
        close(device.get(loss), [total], kind)
        close(device.get(there), wanted, kind)
        close(device.get(sums_there), sums if with_sums else np.ones(classes), kind)
        found.append([device.get(array).tobytes() for array in (there, sums_there, loss)])
    assert found[0] == found[1]


@pytest.mark.parametrize("classes", [2, 200])
def test_what_is_not_finite_shows_in_the_loss_and_not_elsewhere(device, classes):
    scores = np.zeros((70, classes))
    for row, value in ((3, np.nan), (40, np.inf)):
        there, loss = device.put(scores), device.zeros(1, "float64")
        there[row, 1] = value
        network.softmax_slopes(device, there, device.zeros(classes, "float64"), device.zeros(70, "float64"), None, None,
                               None, loss)
        assert np.isnan(device.get(loss)[0])
        assert np.isfinite(np.delete(device.get(there), row, axis=0)).all()


@pytest.mark.parametrize("count", [0, 1, 200])
@pytest.mark.parametrize("kind", KINDS)
def test_squared_error_and_its_slopes(device, kind, count):
    rng = np.random.default_rng(count)
    scores, y, weight = (rng.standard_normal(size).astype(kind) for size in ((count, 1), 300, 300))
    bias, rows, sums = np.full(1, 0.5, kind), rng.permutation(300)[:count], np.ones(1, kind)
    there, sums_there, loss = device.put(scores), device.put(sums), device.zeros(1, "float64")
    network.squared_slopes(device, there, device.put(bias), device.put(y), device.put(weight), device.put(rows),
                           sums_there, loss)
    total = twins.squared_slopes(scores, bias, y, weight, rows, sums)
    for found, wanted in ((loss, [total]), (there, scores), (sums_there, sums)):
        close(device.get(found), wanted, kind)


@pytest.mark.parametrize("outputs", [1, 3, 32, 33, 130])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("index", ["int32", "int64"])
def test_products_with_sparse_rows_and_back(device, index, kind, outputs):
    rng = np.random.default_rng(outputs)
    dense = np.where(rng.random((25, 90)) < 0.2, rng.standard_normal((25, 90)), 0).astype(kind)
    dense[5], dense[6] = 0, rng.standard_normal(90)
    X, block = sparse(dense), rng.standard_normal((91, outputs)).astype(kind)
    csr = [X.data, X.indices.astype(index), X.indptr]
    there = [device.put(array) for array in csr]
    for rows in (None, rng.permutation(25)[:20]):
        chosen = np.arange(25) if rows is None else rows
        numbers = None if rows is None else device.put(rows)
        slopes, gradient = rng.standard_normal((len(chosen), outputs)).astype(kind), np.ones((91, outputs), kind)
        wanted, sums = np.empty_like(slopes), gradient.copy()
        twins.sparse_products(*csr, chosen, block, wanted)
        twins.scatter_slopes(*csr, chosen, slopes, sums)
        out, sums_there = device.empty(wanted.shape, kind), device.put(gradient)
        network.sparse_products(device, *there, numbers, device.put(block), out)
        network.scatter_slopes(device, *there, numbers, device.put(slopes), sums_there)
        close(device.get(out), wanted, kind)
        close(device.get(sums_there), sums, kind)


def problem(name, kind="float64", rows=150, features=7, seed=0):
    objective, outputs = NETWORKS[name]
    rng = np.random.default_rng(seed)
    layers = Layers((features, *objective.hidden, outputs))
    X = np.where(rng.random((rows, features)) < 0.6, rng.standard_normal((rows, features)), 0).astype(kind)
    y = rng.standard_normal(rows) if outputs == 1 else rng.integers(0, outputs, rows).astype(float)
    return (objective, layers, X, y.astype(kind), (rng.standard_normal(layers.size) / 2).astype(kind),
            rng.random(rows).astype(kind) * 2)


def moved(device, X):
    return Csr(*(device.put(array) for array in (X.data, X.indices, X.indptr)), X.features) if isinstance(X, Csr) \
        else device.put(X)


def part_of(device, X, y, rows=None, weight=None):
    return Rows(moved(device, X), device.put(y), None if rows is None else device.put(rows),
                None if weight is None else device.put(weight))


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 32 rows."""
    monkeypatch.setattr(on_device, "MOST_ROWS", 32)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["dense", "sparse"])
@pytest.mark.parametrize("some", [False, True], ids=["all rows", "some rows"])
def test_losses_gradients_and_scores_are_the_hosts(quick_device, small_chunks, name, kind, form, some):
    objective, layers, X, y, parameters, weight = problem(name, kind)
    X, rows = sparse(X) if form == "sparse" else X, np.random.default_rng(1).permutation(150)[:97] if some else None
    weight = weight if some else None
    gradient = np.full(layers.size, 2, kind)
    total = objective.loss_and_gradient(layers, X, y, weight, np.arange(150) if rows is None else rows, parameters,
                                        gradient)
    there, part = counterpart(objective, quick_device), part_of(quick_device, X, y, rows, weight)
    assert isinstance(there, DeviceNetwork)
    at, loss = quick_device.put(parameters), quick_device.put(np.full(1, 3.0))
    sums = quick_device.put(np.full(layers.size, 2, kind))
    there.loss_and_gradient(layers, part, at, sums, loss)
    close(quick_device.get(loss), [3 + total], kind)
    close(quick_device.get(sums), gradient, kind)
    there.summed_loss(layers, part, at, loss)
    close(quick_device.get(loss), [3 + 2 * total], kind)
    wanted, out = np.empty((150, layers.outputs), kind), quick_device.empty((150, layers.outputs), kind)
    objective.scores(layers, X, parameters, wanted)
    there.scores(layers, part.X, at, out)
    close(quick_device.get(out), wanted, kind)
    np.testing.assert_array_equal(quick_device.get(at), parameters)


@pytest.mark.parametrize("name", ["softmax", "relu", "deep tanh", "a number"])
def test_gradients_agree_with_finite_differences(quick_device, name):
    objective, layers, X, y, parameters, weight = problem(name, rows=20, features=3)
    there, part = DeviceNetwork(objective, quick_device), part_of(quick_device, X, y, None, weight)

    def loss(at):
        total = quick_device.zeros(1, "float64")
        there.summed_loss(layers, part, quick_device.put(at), total)
        return quick_device.get(total)[0]

    gradient, total = quick_device.zeros(layers.size, "float64"), quick_device.zeros(1, "float64")
    there.loss_and_gradient(layers, part, quick_device.put(parameters), gradient, total)
    slopes = [(loss(parameters + step) - loss(parameters - step)) / 2e-6 for step in 1e-6 * np.eye(layers.size)]
    np.testing.assert_allclose(quick_device.get(gradient), slopes, atol=1e-6)


@pytest.mark.parametrize("stored", ["float16", "bfloat16", "float64"])
def test_rows_may_be_stored_otherwise_than_they_are_computed(quick_device, small_chunks, stored):
    objective, layers, X, y, parameters, _ = problem("relu", "float32")
    held, X = bits_of_bfloat16(X) if stored == "bfloat16" else (X.astype(stored), X.astype(stored).astype("float32"))
    gradient, rows = np.zeros(layers.size, "float32"), np.arange(150)
    total = objective.loss_and_gradient(layers, X, y, None, rows, parameters, gradient)
    there = DeviceNetwork(objective, quick_device)
    for numbers in (None, rows):
        sums, loss = quick_device.zeros(layers.size, "float32"), quick_device.zeros(1, "float64")
        there.loss_and_gradient(layers, part_of(quick_device, held, y, numbers), quick_device.put(parameters), sums,
                                loss)
        close(quick_device.get(loss), [total], "float32")
        close(quick_device.get(sums), gradient, "float32")


@pytest.mark.parametrize("form", ["dense", "sparse"])
@pytest.mark.parametrize("name", ["softmax", "relu"])
@pytest.mark.parametrize(("rows", "features"), [(0, 7), (1, 1), (20, 0)])
def test_no_rows_and_no_features_are_defined(quick_device, name, form, rows, features):
    objective, layers, X, y, parameters, _ = problem(name, rows=rows, features=features)
    extra = 0 if features else layers.widths[1]  # the host's features are one at least: what is 0 adds nothing
    wide = Layers((features or 1, *layers.widths[1:]))
    at = np.concatenate([np.zeros(extra), parameters])
    form_of = sparse if form == "sparse" else np.asarray
    given = form_of(X if features else np.zeros((rows, 1))), y, None, np.arange(rows), at
    gradient, whole = np.zeros(wide.size), np.zeros(wide.size + 3, np.int64)
    total = objective.loss_and_gradient(wide, *given, gradient)
    objective.fixed_point_gradient(wide, *given, np.zeros(wide.features), np.ones(wide.features + 1), 2.0**30, 2.0**30,
                                   whole)
    there, part = DeviceNetwork(objective, quick_device), part_of(quick_device, form_of(X), y)
    sums, loss = quick_device.zeros(layers.size, "float64"), quick_device.zeros(1, "float64")
    there.loss_and_gradient(layers, part, quick_device.put(parameters), sums, loss)
    close(quick_device.get(loss), [total])
    close(quick_device.get(sums), gradient[extra:])
    out = quick_device.zeros(layers.size + 3, "int64")
    there.fixed_point_gradient(layers, part, quick_device.put(parameters), quick_device.put(np.zeros(features)),
                               quick_device.put(np.ones(features + 1)), 2.0**30, 2.0**30, out)
    np.testing.assert_allclose(quick_device.get(out), whole[extra:], atol=10 * (rows + 1))
    scores = quick_device.empty((rows, layers.outputs), "float64")
    there.scores(layers, part.X, quick_device.put(parameters), scores)
    wanted = np.empty((rows, layers.outputs))
    objective.scores(wide, given[0], at, wanted)
    close(quick_device.get(scores), wanted)


def fixed_point(device, objective, layers, X, y, weight, rows, parameters, shift, scale, unit=2.0**24):
    """Return what the device's gradient in fixed point is, of rows that may come in several calls."""
    there, out = DeviceNetwork(objective, device), device.zeros(layers.size + 3, "int64")
    for some in rows:
        part = part_of(device, X, y, some, weight)
        there.fixed_point_gradient(layers, part, device.put(parameters), device.put(shift), device.put(scale), unit,
                                   unit / 4, out)
    return device.get(out)


@pytest.mark.parametrize("form", ["dense", "sparse"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_fixed_point_is_the_hosts_within_rounding_and_does_not_depend_on_splits(quick_device, name, kind, form):
    objective, layers, X, y, parameters, weight = problem(name, kind)
    rng = np.random.default_rng(2)
    shift, scale = rng.standard_normal(7).astype(kind), (rng.random(8) + 0.5).astype(kind)
    if form == "sparse":
        X, shift = sparse(X), np.zeros(7, kind)
    host, rows = np.zeros(layers.size + 3, np.int64), rng.permutation(150)[:110]
    objective.fixed_point_gradient(layers, X, y, weight, rows, parameters, shift, scale, 2.0**24, 2.0**22, host)
    data = X, y, weight
    whole = fixed_point(quick_device, objective, layers, *data, [rows], parameters, shift, scale)
    units = 110 * (2 if kind == "float64" else 2.0**24 * 2e-6)
    assert np.abs(whole[:-2] - host[:-2]).max() < units
    assert np.abs(whole[-2:] - host[-2:]).max() <= 1
    for pieces in ([rows[::-1]], np.split(rows, [1, 40, 41, 90]), [rows[::2], rows[1::2]]):
        pieces = [np.ascontiguousarray(piece) for piece in pieces]
        np.testing.assert_array_equal(whole, fixed_point(quick_device, objective, layers, *data, pieces, parameters,
                                                         shift, scale))


def test_fixed_point_of_all_rows_depends_neither_on_the_grid_nor_on_chunks(quick_device, monkeypatch):
    from dml_hpc.kernels.cuda import network_rows

    objective, layers, X, y, parameters, weight = problem("deep tanh", "float32", 200)
    held, X = bits_of_bfloat16(X)
    given = held, y, weight, [None], parameters, np.zeros(7, "float32"), np.ones(8, "float32")
    whole = fixed_point(quick_device, objective, layers, *given)
    np.testing.assert_array_equal(whole, fixed_point(quick_device, objective, layers, X, *given[1:]))
    quick_device.processors, quick_device.block_threads = 1, 32
    np.testing.assert_array_equal(whole, fixed_point(quick_device, objective, layers, *given))
    quick_device.processors, quick_device.block_threads = 7, 96
    monkeypatch.setattr(network_rows, "_MOST_ROWS", 37)
    np.testing.assert_array_equal(whole, fixed_point(quick_device, objective, layers, *given))


@pytest.mark.parametrize("name", ["softmax", "deep tanh", "a number"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_rows_that_do_not_fit_are_counted_as_the_host_counts_them(quick_device, name, value):
    objective, layers, X, y, parameters, _ = problem(name, rows=40)
    X[3, 2] = X[17, 0] = value
    rows, shift, scale = np.arange(40), np.zeros(7), np.ones(8)
    host = np.zeros(layers.size + 3, np.int64)
    objective.fixed_point_gradient(layers, X, y, None, rows, parameters, shift, scale, 2.0**24, 2.0**22, host)
    found = fixed_point(quick_device, objective, layers, X, y, None, [rows], parameters, shift, scale)
    np.testing.assert_allclose(found, host, atol=100)
    assert host[-2] >= 1 << 30 or (value == 1e30 and objective.activation == "tanh")  # whose slope is 0 there


@pytest.mark.parametrize("l1", [0.0, 0.02])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["dense", "sparse"])
@pytest.mark.parametrize("name", ["two classes", "softmax", "many classes"])
def test_steps_of_one_example_are_the_hosts(quick_device, name, form, kind, l1):
    objective, layers, X, y, parameters, weight = problem(name, kind, 60)
    rng = np.random.default_rng(3)
    shift, scale = rng.standard_normal(7).astype(kind), (rng.random(8) + 0.5).astype(kind)
    if form == "sparse":
        X, shift = sparse(X), np.zeros(7, kind)
    rows, step, l2 = rng.permutation(60)[:41], 0.3, 2.0  # so strong that the weights' factor is settled on the way
    host, there = Sequential(parameters.copy(), l1, l2), DeviceSequential(quick_device, quick_device.put(parameters),
                                                                         l1, l2)
    loss, total, device = quick_device.zeros(1, "float64"), 0.0, DeviceNetwork(objective, quick_device)
    for some, counted in ((rows, weight), (None, None), (rows[:0], weight)):
        chosen = np.arange(60) if some is None else some
        total += objective.sequential_sgd(layers, X, y, counted, chosen, shift, scale, host, step)
        device.sequential_sgd(layers, part_of(quick_device, X, y, some, counted), quick_device.put(shift),
                              quick_device.put(scale), there, step, loss)
    found, worth = quick_device.get(there.parameters), quick_device.get(there.worth)
    if form == "sparse":
        settle(found, layers.outputs, None if there.seen is None else quick_device.get(there.seen), worth)
    close(quick_device.get(loss), [total], kind)
    close(found, host.settle(), kind)


def check_types(device, name, kind, host, held, steps=True):
    """Hold gradient, fixed point and steps on 60 rows as they are ``held`` against the host's, on rows of ``kind``."""
    objective, layers, _, y, parameters, weight = problem(name, kind, 60)
    there, rows = DeviceNetwork(objective, device), np.random.default_rng(4).permutation(60)[:43]
    part, at = part_of(device, held, y, rows, weight), device.put(parameters)
    gradient, sums, loss = np.zeros(layers.size, kind), device.zeros(layers.size, kind), device.zeros(1, "float64")
    total = objective.loss_and_gradient(layers, host, y, weight, rows, parameters, gradient)
    there.loss_and_gradient(layers, part, at, sums, loss)
    close(device.get(loss), [total], kind)
    close(device.get(sums), gradient, kind)

    shift = np.full(7, 0 if isinstance(host, Csr) else 0.3, kind)
    scale = np.linspace(0.5, 1.5, 8).astype(kind)
    whole = np.zeros(layers.size + 3, np.int64)
    objective.fixed_point_gradient(layers, host, y, weight, rows, parameters, shift, scale, 2.0**24, 2.0**22, whole)
    found = fixed_point(device, objective, layers, held, y, weight, [rows], parameters, shift, scale)
    np.testing.assert_allclose(found, whole, atol=43 * (2 if kind == "float64" else 2.0**24 * 2e-6))
    if steps:
        state, mine = Sequential(parameters.copy(), 0.02, 0.1), DeviceSequential(device, at, 0.02, 0.1)
        total += objective.sequential_sgd(layers, host, y, weight, rows, shift, scale, state, 0.1)
        there.sequential_sgd(layers, part, device.put(shift), device.put(scale), mine, 0.1, loss)
        close(device.get(loss), [total], kind)
        close(device.get(mine.settle()), state.settle(), kind)


@pytest.mark.parametrize(("stored", "kind"), [(stored, kind) for kind in KINDS for stored in (
    "float16", "bfloat16", "float32", "float64") if (stored, kind) != ("bfloat16", "float64")])
def test_dense_rows_of_every_type(quick_device, stored, kind):
    bits, X = bits_of_bfloat16(problem("softmax", rows=60)[2])  # numbers that all types hold
    held = bits if stored == "bfloat16" else X.astype(stored)
    check_types(quick_device, "softmax", kind, X.astype(kind), held)
    check_types(quick_device, "relu", kind, X.astype(kind), held, steps=False)


@pytest.mark.parametrize("index", ["int32", "int64"])
@pytest.mark.parametrize("stored", KINDS)
@pytest.mark.parametrize("kind", KINDS)
def test_sparse_rows_of_every_type(quick_device, kind, stored, index):
    X = problem("softmax", rows=60)[2].astype("float32")
    held = sparse(X.astype(stored))
    held = Csr(held.data, held.indices.astype(index), held.indptr, held.features)
    for name in ("softmax", "many classes"):
        check_types(quick_device, name, kind, sparse(X.astype(kind)), held)


def test_steps_are_the_same_where_shared_memory_holds_nothing(quick_device):
    objective, layers, X, y, parameters, weight = problem("softmax", rows=50, features=70)
    found = []
    for shared_bytes in (48 << 10, 2048, 0):
        quick_device.shared_bytes = shared_bytes
        state, loss = DeviceSequential(quick_device, quick_device.put(parameters)), quick_device.zeros(1, "float64")
        DeviceNetwork(objective, quick_device).sequential_sgd(
            layers, part_of(quick_device, X, y, None, weight), quick_device.zeros(70, "float64"),
            quick_device.put(np.ones(71)), state, 0.1, loss)
        found.append((quick_device.get(state.settle()).tobytes(), quick_device.get(loss).tobytes()))
    assert found[0] == found[1] == found[2]


def test_networks_with_hidden_layers_have_no_steps_of_one_example(quick_device):
    objective, layers, X, y, parameters, _ = problem("relu")
    state, nothing = DeviceSequential(quick_device, quick_device.put(parameters)), quick_device.zeros(1, "float64")
    with pytest.raises(NotImplementedError, match="mlp has no steps"):
        DeviceNetwork(objective, quick_device).sequential_sgd(layers, part_of(quick_device, X, y), nothing, nothing,
                                                              state, 0.1, nothing)
