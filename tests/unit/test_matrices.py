"""LIBSVM, NPY, NPZ and HDF5 sources against scikit-learn, SciPy, NumPy and Python's float."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.sparse
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sklearn.datasets import dump_svmlight_file, load_svmlight_file

from dml_hpc.data.sources import libsvm_text
from dml_hpc.data.sources.libsvm import open_libsvm
from dml_hpc.data.sources.matrices import is_matrix, open_matrix
from dml_hpc.errors import AgreedError
from dml_hpc.kernels.libsvm import hashed
from dml_hpc.kernels.numerals import HARD, NONE, number
from dml_hpc.mpi import Alone

COMM = Alone()


def dense(X):
    return X.dense() if hasattr(X, "indptr") else X


def text(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read_all(source):
    X, y = source.read(0, source.rows)
    return dense(X), y


def bits(value):
    return struct.pack("d", value)


DIGITS = st.text("0123456789", max_size=25)


@st.composite
def numbers(draw):
    whole, behind = draw(DIGITS), draw(st.none() | DIGITS)
    if not whole and not behind:
        whole = "7"
    power = draw(st.none() | st.tuples(st.sampled_from(["e", "E", "e+", "e-"]), st.integers(0, 400)))
    return (draw(st.sampled_from(["", "+", "-"])) + whole + ("" if behind is None else "." + behind)
            + ("" if power is None else f"{power[0]}{power[1]}"))


@settings(max_examples=400)
@given(numbers() | st.floats(allow_nan=False, allow_infinity=False).map(repr)
       | st.floats(-1e6, 1e6).map(lambda value: f"{value:.17g}"))
@example("9007199254740993")
@example("18014398509481985e-1")
@example("2.2250738585072011e-308")
@example("1.7976931348623158e308")
@example("0.000000000000000000000000000000000000000000000001e48")
@example("-0")
@example("5e-324")
def test_numbers_are_what_float_says_bit_for_bit(word):
    value, stop, kind = number(np.frombuffer(word.encode() + b"\n", np.uint8), 0)
    assert stop == len(word)
    assert kind == HARD or bits(value) == bits(float(word))


def test_hard_numbers_are_rare():
    rng = np.random.default_rng(0)
    words = [repr(value) for value in rng.standard_normal(2000) * 10.0 ** rng.integers(-20, 20, 2000)]
    assert all(number(np.frombuffer(word.encode() + b" ", np.uint8), 0)[2] != HARD for word in words)


@pytest.mark.parametrize("word", ["", ".", "-", "e5", "1e", "1e+", "+.", "nan", "inf", "--1", "x"])
def test_what_is_no_number_is_none(word):
    _, stop, kind = number(np.frombuffer(word.encode() + b"\n", np.uint8), 0)
    assert kind == NONE or stop < len(word)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(numbers(), max_size=30), piece=st.sampled_from([1, 7, 100, 1 << 20]))
def test_hard_and_easy_numbers_come_out_in_their_places(tmp_path, values, piece):
    values = [value for value in values if np.isfinite(float(value))]
    lines = [" ".join([value, *(f"{j + 1}:{other}" for j, other in enumerate(values[i:i + 3]))])
             for i, value in enumerate(values)]
    path = text(tmp_path / "a.svm", "\n".join(lines))
    source = open_libsvm(COMM, [path], tmp_path / "scratch", dtype="float64", zero_based=False, piece_bytes=piece)
    X, y = source.read(0, source.rows)
    assert [bits(one) for one in y] == [bits(float(value)) for value in values]
    assert [bits(one) for one in X.data] == [bits(float(other)) for i in range(len(values))
                                             for other in values[i:i + 3]]


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.integers(1, 60), piece=st.sampled_from([1, 10, 333, 1 << 20]), zero_based=st.booleans(),
       dtype=st.sampled_from(["float32", "float64"]), data=st.data())
def test_libsvm_is_read_as_scikit_learn_reads_it(tmp_path, rows, piece, zero_based, dtype, data):
    X = scipy.sparse.random(rows, 20, 0.3, "csr", random_state=rows).toarray()
    X[0, 0], X[0, 19] = 1, 2
    path = tmp_path / "a.svm"
    with path.open("wb") as file:
        dump_svmlight_file(X, np.arange(rows) - 3.5, file, zero_based=zero_based, comment="made up")
    expected, labels = load_svmlight_file(str(path), dtype=dtype)
    source = open_libsvm(COMM, [path, path], tmp_path / "scratch", dtype=dtype, piece_bytes=piece)
    assert (source.rows, source.features, source.kind) == (2 * rows, 20, "csr")
    start = data.draw(st.integers(0, 2 * rows))
    stop = data.draw(st.integers(start, 2 * rows))
    found, y = source.read(start, stop)
    assert found.dtype == dtype and found.indices.dtype == np.int32
    assert np.array_equal(found.dense(), np.vstack([expected.toarray()] * 2)[start:stop].astype(dtype))
    assert np.array_equal(y, np.tile(labels, 2)[start:stop])


def test_everything_the_format_allows(tmp_path):
    content = ("# heading\n\n+1 qid:3 4:1.5e0\t2:-2 # a comment 9:9\r\n-1\n  1   1:.5 \n0.25 3:0 # \n1 2:3#end")
    source = open_matrix(COMM, [text(tmp_path / "a.svm", content)], tmp_path / "s", features=6)
    X, y = source.read(0, source.rows)
    assert y.tolist() == [1, -1, 1, 0.25, 1]
    expected = np.zeros((5, 6))
    expected[0, [3, 1]] = 1.5, -2
    expected[2, 0], expected[4, 1] = 0.5, 3
    assert np.array_equal(X.dense(), expected)
    assert X.indices.tolist() == [1, 3, 0, 2, 1], "sorted; a zero that is written is an entry"


def test_text_longer_than_a_chunk_and_rows_longer_than_that(tmp_path, monkeypatch):
    monkeypatch.setattr(libsvm_text, "CHUNK_BYTES", 50)
    lines = [f"{i} " + " ".join(f"{j}:{i + j}" for j in range(i % 40)) for i in range(200)]
    source = open_libsvm(COMM, [text(tmp_path / "a.svm", "\n".join(lines) + "\n")], tmp_path / "s", piece_bytes=777)
    X, y = read_all(source)
    assert y.tolist() == list(range(200))
    assert all(X[i].sum() == sum(i + j for j in range(i % 40)) for i in range(200))


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress),
                                                  (".xz", lzma.compress)])
def test_compressed_files(tmp_path, suffix, compress):
    content = "".join(f"{i} 1:{i} 3:{i / 7!r}\n" for i in range(500)).encode()
    plain = open_matrix(COMM, [text(tmp_path / "a.svm", content)], tmp_path / "s", dtype="float64")
    packed_path = text(tmp_path / ("a.svm" + suffix), compress(content))
    packed = open_matrix(COMM, [packed_path], tmp_path / "t", dtype="float64")
    assert all(np.array_equal(a, b) for a, b in zip(read_all(plain), read_all(packed), strict=True))
    text(packed_path, compress(content)[:-20])
    with pytest.raises(AgreedError, match=r"a\.svm.* (is cut short|cannot be decompressed)"):
        open_matrix(COMM, [packed_path], tmp_path / "u")


def test_hashed_columns(tmp_path):
    rng = np.random.default_rng(1)
    columns = [rng.choice(10 ** 12, 40, replace=False) for _ in range(30)]
    values = rng.integers(1, 9, (30, 40))
    lines = ["1 " + " ".join(f"{j}:{v}" for j, v in zip(*row, strict=True))
             for row in zip(columns, values, strict=True)]
    source = open_matrix(COMM, [text(tmp_path / "a.svm", "\n".join(lines))], tmp_path / "s", hash_bits=6)
    expected = np.zeros((30, 64))
    for i in range(30):
        for j, value in zip(columns[i], values[i], strict=True):
            column, sign = hashed(j, 63)
            expected[i, column] += sign * value
    assert source.features == 64 and source.about.hash_bits == 6
    X, _ = source.read(0, 30)
    assert np.array_equal(X.dense(), expected)
    assert all((np.diff(X[i:i + 1].packed().indices) > 0).all() for i in range(30)), "no column twice"
    used = np.bincount([hashed(j, 63)[0] for j in range(6400)], minlength=64)
    assert used.min() > 50 and used.max() < 150
    assert abs(np.mean([hashed(j, 63)[1] for j in range(6400)])) < 0.05


@pytest.mark.parametrize(("line", "problem"), [
    ("1,2 3:4", "'1,2' are several labels"), ("word 1:2", "'word' is no label"), ("1:2 3:4", "'1:2' is no label"),
    ("1 a:3", "'a:3' is no INDEX:VALUE"), ("1 2:", "'2:' is no INDEX:VALUE"), ("1 2:3x", "'2:3x' is no"),
    ("1 2", "'2' is no INDEX:VALUE"), ("1 -2:3", "'-2:3' is no"), ("1 2:3:4", "'2:3:4' is no"),
    ("1 3:4 2:1 3:5", "given twice"), ("1 1:nan", "'1:nan' is not finite"), ("-inf 1:1", "'-inf' is not finite"),
    ("1 4000000000:1", "above 2147483647; give --hash-bits"), ("1 1:1e39", "too large for float32; give --dtype"),
    ("1 1:1e999", "'1:1e999' is too large"), ("1e999 1:1", "'1e999' is too large"),
])
def test_what_cannot_be_parsed_is_named_with_its_line(tmp_path, line, problem):
    content = "# heading\n" + "1 1:2\n" * 400 + "\n" + line + "\n" + "1 1:2\n" * 100
    path = text(tmp_path / "a.svm", content)
    with pytest.raises(AgreedError) as raised:
        open_libsvm(COMM, [path], tmp_path / "s", piece_bytes=500)
    assert str(raised.value).startswith(f"{path}, line 403: ") and problem in str(raised.value)
    assert raised.value.exit_code == 2


def test_which_files_are_matrices(tmp_path):
    for name in ("a.svm", "a.libsvm.gz", "a.svmlight", "b.npy", "b.npz", "b.h5", "b.hdf5"):
        assert is_matrix(tmp_path / name), name
    for name in ("a.csv", "a.csv.gz", "a.parquet", "a.txt", "missing"):
        assert not is_matrix(tmp_path / name), name
    assert is_matrix(text(tmp_path / "a9a", "-1 3:1 11:1 14:1 \n"))
    assert is_matrix(text(tmp_path / "a9a.bz2", bz2.compress(b"-1 3:1 11:1 14:1 \n")))
    assert not is_matrix(text(tmp_path / "table.txt", "a b\n1 2\n"))


X = np.random.default_rng(5).standard_normal((70, 4))
Y = np.arange(70) % 3 * 1.0


@pytest.mark.parametrize("dtype", ["f2", "<f4", ">f4", "f8", ">f8", "i1", "u2", ">i4", "i8", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_of_any_type_and_order(tmp_path, dtype, order):
    values = (X * 3).astype(dtype)
    np.save(tmp_path / "x.npy", np.asarray(values, order=order))
    np.save(tmp_path / "y.npy", Y[:, None].astype("i4"))
    source = open_matrix(COMM, [tmp_path / "x.npy"], tmp_path / "s", label=str(tmp_path / "y.npy"))
    found, y = source.read(3, 66)
    assert found.dtype in (np.float32, np.float64) and found.dtype.isnative
    assert np.array_equal(found, values[3:66].astype(float)) and np.array_equal(y, Y[3:66])


@pytest.mark.parametrize("column", [0, 2, -1])
def test_a_column_as_label_and_several_files(tmp_path, column):
    np.save(tmp_path / "a.npy", X[:30].astype("f4"))
    np.save(tmp_path / "b.npy", X[30:])
    np.save(tmp_path / "c.npy", X[:0])
    source = open_matrix(COMM, [tmp_path / name for name in ("a.npy", "c.npy", "b.npy")], tmp_path / "s",
                         label=str(column))
    whole = np.concatenate([X[:30].astype("f4"), X[30:]])
    for start, stop in [(0, 70), (29, 31), (30, 30), (70, 70), (50, 60)]:
        found, y = source.read(start, stop)
        assert np.array_equal(found, np.delete(whole, column, 1)[start:stop])
        assert np.array_equal(y, whole[start:stop, column])


def write_h5(path, values, y, x_key="X", y_key="y", **storage):
    with h5py.File(path, "w") as file:
        if scipy.sparse.issparse(values):
            group = file.create_group(x_key)
            for part in ("data", "indices", "indptr"):
                group.create_dataset(part, data=getattr(values, part), **storage)
            group.attrs["shape"] = values.shape
        else:
            file.create_dataset(x_key, data=values, **storage)
        file[y_key] = y


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, save):
    save(tmp_path / "a.npz", X=X, y=Y, other=Y)
    save(tmp_path / "b.npz", x=X.astype(">f4"), target=Y)
    source = open_matrix(COMM, [tmp_path / "a.npz"], tmp_path / "s")
    assert all(np.array_equal(a, b) for a, b in zip(read_all(source), (X, Y), strict=True))
    source = open_matrix(COMM, [tmp_path / "b.npz"], tmp_path / "t", y_key="target")
    assert all(np.array_equal(a, b) for a, b in zip(read_all(source), (X.astype("f4"), Y), strict=True))


@pytest.mark.parametrize("storage", [{}, {"chunks": True, "compression": "gzip"}])
def test_hdf5(tmp_path, storage):
    write_h5(tmp_path / "a.h5", X, Y, **storage)
    write_h5(tmp_path / "b.hdf5", X.astype("i2"), Y.astype("u1"), "in/side", "label", **storage)
    source = open_matrix(COMM, [tmp_path / "a.h5", tmp_path / "a.h5"], tmp_path / "s")
    assert np.array_equal(read_all(source)[0], np.vstack([X, X]))
    source = open_matrix(COMM, [tmp_path / "b.hdf5"], tmp_path / "s", x_key="in/side", y_key="label")
    assert all(np.array_equal(a, b) for a, b in zip(read_all(source), (X.astype("i2"), Y), strict=True))


@pytest.mark.parametrize("where", ["npz", "compressed", "h5"])
def test_sparse_matrices(tmp_path, where):
    values = scipy.sparse.random(90, 11, 0.2, "csr", dtype="f4", random_state=0)
    values.indices[:2] = values.indices[1]  # unsorted and given twice: SciPy adds up
    np.save(tmp_path / "y.npy", np.arange(90))
    label = None if where == "h5" else str(tmp_path / "y.npy")
    path = tmp_path / ("a.h5" if where == "h5" else "a.npz")
    if where == "h5":
        write_h5(path, values, np.arange(90))
    else:
        scipy.sparse.save_npz(path, values, compressed=where == "compressed")
    source = open_matrix(COMM, [path, path] if label is None else [path], tmp_path / "s", label=label, features=15)
    assert (source.kind, source.features) == ("csr", 15)
    found, y = source.read(7, 80)
    assert np.array_equal(found.dense()[:, :11], values.toarray()[7:80]) and not found.dense()[:, 11:].any()
    assert np.array_equal(y, np.arange(7, 80))
    if label is None:
        assert np.array_equal(source.read(85, 95)[0].dense()[:, :11], values.toarray()[[*range(85, 90), *range(5)]])


@pytest.mark.parametrize("sparse", [False, True])
def test_nan_is_a_missing_value(tmp_path, sparse):
    values = np.where(np.random.default_rng(2).random((300, 5)) < 0.3, 0, np.random.default_rng(3).random((300, 5)))
    values[[3, 200, 299], [0, 0, 4]] = np.nan
    values[:, 2] = np.nan
    if sparse:
        rows, columns = np.nonzero(values)
        stored = scipy.sparse.csr_matrix((values[rows, columns], (rows, columns)), values.shape)
    write_h5(tmp_path / "a.h5", stored if sparse else values, np.zeros(300))
    source = open_matrix(COMM, [tmp_path / "a.h5"], tmp_path / "s")
    assert source.about.missing.tolist() == [2, 0, 300, 0, 1]
    means = [np.nanmean(column) if np.isfinite(column).any() else 0 for column in values.T]
    found = dense(source.read(0, 300)[0])
    assert np.allclose(found, np.where(np.isnan(values), means, values), rtol=1e-14)


def test_what_does_not_fit_is_one_clear_line(tmp_path):
    def refused(problem, *names, **options):
        with pytest.raises(AgreedError, match=problem) as raised:
            source = open_matrix(COMM, [tmp_path / name for name in names], tmp_path / "s", **options)
            source.read(0, source.rows)
        assert raised.value.exit_code == 2 and "\n" not in str(raised.value)

    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "cube.npy", np.zeros((2, 3, 4)))
    np.save(tmp_path / "objects.npy", np.array([[{}, 1]], object), allow_pickle=True)
    np.save(tmp_path / "words.npy", np.array([["a", "b"]]))
    np.save(tmp_path / "short.npy", Y[:-1])
    np.save(tmp_path / "wide.npy", np.ones((3, 9)))
    np.save(tmp_path / "none.npy", np.ones((0, 4)))
    text(tmp_path / "cut.npy", (tmp_path / "x.npy").read_bytes()[:-8])
    text(tmp_path / "junk.npy", "junk")
    text(tmp_path / "junk.npz", "junk")
    text(tmp_path / "junk.h5", "junk")
    text(tmp_path / "empty.svm", "# nothing\n")
    np.savez(tmp_path / "keys.npz", one=X, two=Y)
    scipy.sparse.save_npz(tmp_path / "csc.npz", scipy.sparse.csc_matrix(X))
    bad = X.copy()
    bad[33, 2] = -np.inf
    write_h5(tmp_path / "inf.h5", bad, Y)
    labels = Y.copy()
    labels[44] = np.nan
    write_h5(tmp_path / "label.h5", X, labels)
    refused("--label is needed: .*x.npy has no 'y'", "x.npy")
    refused("missing.npy is no file", "missing.npy", label="0")
    refused(r"cube.npy has 3 axes, \(2, 3, 4\)", "cube.npy", label="0")
    refused("holds Python objects", "objects.npy", label="0")
    refused("words.npy holds <U1; it must hold integers or floats", "words.npy", label="0")
    refused(r"short.npy has the shape \(69,\); 70 rows need as many", "x.npy", label=str(tmp_path / "short.npy"))
    refused("number of a column, 0 … 3", "x.npy", label="4")
    refused("number of a column", "x.npy", label="late")
    refused("has 4 features, another file 9", "x.npy", "wide.npy", label="0")
    refused("none.npy has no rows", "none.npy", label="0")
    refused("empty.svm has no rows", "empty.svm")
    refused("cut.npy is cut short", "cut.npy", label="0")
    refused("junk.npy cannot be read as NPY", "junk.npy", label="0")
    refused("junk.npz cannot be read as NPZ", "junk.npz")
    refused("junk.h5 cannot be read as HDF5", "junk.h5")
    refused("has no 'X'; it holds one, two: choose with --x-key", "keys.npz")
    refused("has no 'three'; it holds one, two: choose with --y-key", "keys.npz", x_key="one", y_key="three")
    refused("that is not CSR; save X.tocsr", "csc.npz")
    refused("inf.h5: row 33, column 2 holds an infinite value", "inf.h5")
    refused("label.h5: row 44: its label is nan", "label.h5")
    refused("are of different formats", "x.npy", "inf.h5")
    refused("--hash-bits is not for x.npy", "x.npy", label="0", hash_bits=4)
    refused("--label is not for empty.svm", "empty.svm", label="0")
    refused("--features 3 does not fit", "inf.h5", features=3)
    refused("holds one array, without keys", "x.npy", label="0", x_key="X")
