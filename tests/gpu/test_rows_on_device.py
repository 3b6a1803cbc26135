"""Rows arrive on a device as they were, kept there or copied piece by piece, whatever the order they are taken in."""

from __future__ import annotations

import numpy as np
import pytest

from dml_hpc.data import on_device
from dml_hpc.data.csr import Csr, sparse
from dml_hpc.data.on_device import DeviceRows
from dml_hpc.data.reading import Arrays, Rows
from dml_hpc.errors import UserError
from dml_hpc.kernels.cuda.long_rows import VERY_LONG


def arrays(kind, rows=500, features=9, weighted=True, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((rows, features)).astype("f2" if kind == "float16" else "f4")
    if kind == "csr":
        X[rng.random(X.shape) < 0.7] = 0
        X = sparse(X)[3:]  # its entries begin somewhere
    count = len(X)
    return Arrays(X, rng.standard_normal(count).astype("f4"), rng.random(count).astype("f4") if weighted else None)


def dense(device, X):
    if isinstance(X, Csr):
        return Csr(device.get(X.data), device.get(X.indices), device.get(X.indptr), X.features).dense()
    return device.get(X)


def gathered(device, parts):
    """Return what the parts hold, row after row: looked at as kernels would, before the next part is asked for."""
    found = []
    for part in parts:
        rows = slice(None) if part.rows is None else device.get(part.rows)
        weight = None if part.weight is None else device.get(part.weight)[rows]
        found.append((dense(device, part.X)[rows], device.get(part.y)[rows], weight))
    return [None if columns[0] is None else np.concatenate(columns) for columns in zip(*found, strict=True)]


def expected(parts):
    columns = zip(*(((part.X.dense() if isinstance(part.X, Csr) else part.X)[part.rows], part.y[part.rows],
                     None if part.weight is None else part.weight[part.rows])
                    for part in parts if len(part.rows)), strict=True)
    return [None if column[0] is None else np.concatenate(column) for column in columns]


@pytest.mark.parametrize("kind", ["float32", "float16", "csr"])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("kept", [True, False])
def test_rows_arrive_as_they_were(quick_device, monkeypatch, kind, weighted, kept):
    monkeypatch.setattr(on_device, "PIECE_BYTES", 1000)
    device, rng = quick_device, np.random.default_rng(1)
    held = [arrays(kind, 500, weighted=weighted), arrays(kind, 40, weighted=weighted, seed=1)]
    moved = DeviceRows(device, 1 << 20 if kept else 0)
    assert moved.keep(held) == kept
    assert moved.keep(held) == kept  # and nothing is copied twice
    for _ in range(3):
        parts = []
        for X, y, weight in held:
            for rows in (rng.permutation(len(y))[:33], np.arange(5, 37), np.arange(0), np.arange(len(y))):
                parts.append(Rows(X, y, rows.astype(np.int64), weight))
        for got, wanted in zip(gathered(device, moved.of(parts)), expected(parts), strict=True):
            np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("kept", [True, False])
def test_it_is_known_how_much_lies_in_very_long_rows(quick_device, kept):
    X = np.zeros((6, VERY_LONG + 5), np.float32)
    X[1], X[4, 3:], X[5, :VERY_LONG] = 1, 1, 1
    long = sparse(X)[1:]
    moved = DeviceRows(quick_device, 1 << 30 if kept else 0)
    moved.keep([Arrays(long, np.zeros(5), None), Arrays(sparse(X[5:]), np.zeros(1), None)])
    for host, rows, known in ((long, np.arange(5), 2 * VERY_LONG + 7), (long, np.array([4, 0]), VERY_LONG + 5),
                              (sparse(X[5:]), np.arange(1), 0)):
        part, = moved.of([Rows(host, np.zeros(len(host)), rows, None)])
        assert part.X.long_entries == (2 * VERY_LONG + 7 if kept and host is long else known)


@pytest.mark.parametrize("kind", ["float32", "csr"])
def test_places_that_are_written_to_again_may_be_moved(quick_device, monkeypatch, kind):
    """What is streamed lies in the same arrays, step after step."""
    monkeypatch.setattr(on_device, "PIECE_BYTES", 700)
    moved = DeviceRows(quick_device, 1 << 20)
    assert not moved.keep(None)
    place, others = arrays(kind, 60), arrays(kind, 60, seed=9)

    def parts():
        for source in (place, others, place):
            yield Rows(place.X, place.y, np.arange(len(place.y)), place.weight)
            place.y[:] = source.y + 1

    got = gathered(quick_device, moved.of(parts()))[1].reshape(3, -1)
    assert not np.array_equal(got[1], got[2])
    np.testing.assert_array_equal(got[2], others.y + 1)


def test_a_row_larger_than_a_piece_is_copied(quick_device, monkeypatch):
    monkeypatch.setattr(on_device, "PIECE_BYTES", 64)
    held = arrays("float32", 5, 100)
    part = Rows(held.X, held.y, np.array([4, 0, 2]), held.weight)
    got = gathered(quick_device, DeviceRows(quick_device, 0).of([part]))
    np.testing.assert_array_equal(got[0], held.X[[4, 0, 2]])


@pytest.mark.parametrize("kept_as", ["float16", "bfloat16"])
def test_rows_are_kept_in_16_bits_where_that_is_asked_for(quick_device, monkeypatch, kept_as):
    monkeypatch.setattr(on_device, "PIECE_BYTES", 1000)
    held = arrays("float32", 500)
    moved = DeviceRows(quick_device, held.X.nbytes // 2 + 2 * held.y.nbytes, kept_as)
    assert moved.keep([held])
    part, = moved.of([Rows(held.X, held.y, np.arange(500), held.weight)])
    got = quick_device.get(part.X)
    if kept_as == "bfloat16":
        assert got.dtype == np.uint16
        got = (got.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_allclose(got.astype("f4"), held.X, rtol=2**-8 if kept_as == "bfloat16" else 2**-11)
    np.testing.assert_array_equal(quick_device.get(part.y), held.y)


def test_rows_of_other_types_are_not_kept_in_16_bits(quick_device):
    held = arrays("float32")
    for X in (held.X.astype("f8"), held.X.astype("f2"), sparse(held.X)):
        with pytest.raises(UserError, match="--rows-as bfloat16 is for dense float32 rows"):
            DeviceRows(quick_device, 1 << 20, "bfloat16").keep([held._replace(X=X)])
    assert DeviceRows(quick_device, 1 << 20, "float16").keep([held._replace(X=held.X.astype("f2"))])
