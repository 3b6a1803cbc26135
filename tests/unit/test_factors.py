"""Files of factors: what was written is read, and nothing else."""

from __future__ import annotations

import hashlib
import math
from dataclasses import fields, replace

import h5py
import numpy as np
import pytest

from dml_hpc import __version__
from dml_hpc.errors import UserError
from dml_hpc.store import factors as store
from dml_hpc.store.factors import Factors, read_factors, write_factors

FEATURES, K = 5, 3


def some_factors(**changed) -> Factors:
    rng = np.random.default_rng(0)
    V = np.linalg.qr(rng.standard_normal((FEATURES, K)))[0]
    return replace(
        Factors(np.array([3.0, 2, 0]), V, np.array([1e-9, 1e-7, np.nan]), ["a", "b", "ç", "", "x=1"], "gram", 100,
                left_residuals=np.array([0, 1e-9, np.nan]), shift=rng.standard_normal(FEATURES),
                scale=rng.random(FEATURES) + 1, norm=3.7, error_bound=0.25, energy=np.array([0.6, 0.9, 0.9]),
                explained_variance=np.array([9.0, 4, 0]) / 99, explained_variance_ratio=np.array([0.6, 0.3, 0]),
                accuracy=1e-5, accuracy_met=True), **changed)


def assert_same(found: Factors, expected: Factors) -> None:
    for entry in fields(Factors):
        one, other = getattr(found, entry.name), getattr(expected, entry.name)
        if isinstance(one, np.ndarray):
            assert one.dtype == np.float64
            np.testing.assert_array_equal(one, other)
        else:
            assert one == other or (isinstance(one, float) and math.isnan(one) and math.isnan(other)), entry.name
            assert type(one) is type(other)


def test_all_comes_back(tmp_path):
    written = some_factors()
    write_factors(tmp_path / "svd.h5", written)
    found = read_factors(tmp_path / "svd.h5")
    assert_same(found, written)
    assert (found.k, found.features) == (K, FEATURES)


def test_what_is_not_known_comes_back_so(tmp_path):
    written = Factors(np.ones(1), np.ones((1, 1)), np.zeros(1), None, "gram", 1)
    write_factors(tmp_path / "svd.h5", written)
    assert_same(read_factors(tmp_path / "svd.h5"), written)
    with h5py.File(tmp_path / "svd.h5", locking=False) as file:
        assert set(file) == {"singular_values", "V", "relative_residuals"}


def test_arrays_are_stored_as_float64_whatever_they_were(tmp_path):
    exact = some_factors(V=np.asfortranarray(np.eye(FEATURES, K)))
    narrow = some_factors(V=np.eye(FEATURES, K, dtype=np.float32), singular_values=np.array([3, 2, 0], ">f4"))
    write_factors(tmp_path / "svd.h5", narrow)
    assert_same(read_factors(tmp_path / "svd.h5"), exact)
    assert narrow.digest == exact.digest


def test_the_file_says_what_it_is_and_its_digest_can_be_had_by_hand(tmp_path):
    written = some_factors()
    write_factors(tmp_path / "svd.h5", written)
    by_hand = hashlib.sha256()
    with h5py.File(tmp_path / "svd.h5", locking=False) as file:
        for name in ("singular_values", "V", "shift", "scale"):
            by_hand.update(file[name][()].tobytes())
        assert file.attrs["digest"] == by_hand.hexdigest() == written.digest
        assert (file.attrs["kind"], file.attrs["format"]) == ("dml-hpc svd", store.FORMAT)
        assert file.attrs["dml_hpc_version"] == __version__


@pytest.mark.parametrize("name", ["singular_values", "V", "shift", "scale"])
def test_the_digest_depends_on_all_that_rows_are_projected_with(name):
    one = some_factors()
    assert replace(one, **{name: getattr(one, name) * 2}).digest != one.digest
    assert replace(one, rows=7, energy=None).digest == one.digest


def test_a_file_of_the_old_layout_is_refused_clearly(tmp_path):
    with h5py.File(tmp_path / "svd.h5", "w") as file:
        for name in ("singular_values", "relative_residuals"):
            file[name] = np.ones(K)
        file["V"] = np.eye(FEATURES, K)
        file.attrs.update(method="gram", rows=100, dml_hpc_version="0.1")
    with pytest.raises(UserError, match=r"svd\.h5 was written by an older dml-hpc; run svd again"):
        read_factors(tmp_path / "svd.h5")


def change(path, what):
    with h5py.File(path, "r+") as file:
        what(file)


def replaced(name, array):
    def act(file):
        del file[name]
        file[name] = array
    return act


def slipped(name):
    def act(file):
        file[name][0] = 0.5
    return act


def claimed(file):
    """V claims a terabyte that is nowhere stored."""
    del file["V"]
    file.create_dataset("V", (1 << 30, 128), "f8")


@pytest.mark.parametrize(("what", "says"), [
    (slipped("V"), "numbers are not those"),
    (slipped("scale"), "numbers are not those"),
    (replaced("V", np.eye(FEATURES, K + 1)), "singular_values has the shape|V has the shape"),
    (replaced("V", np.ones(FEATURES)), "V is no matrix"),
    (replaced("shift", np.zeros(FEATURES + 1)), r"shift has the shape \(6,\), not \(5,\)"),
    (replaced("energy", np.zeros(K + 1)), "energy has the shape"),
    (replaced("relative_residuals", np.array(["x"] * K, "S1")), "cannot be read as factors"),
    (claimed, "V is not whole"),
    (lambda file: file.pop("relative_residuals"), "cannot be read as factors"),
    (lambda file: file.attrs.__delitem__("digest"), "cannot be read as factors"),
    (lambda file: file.attrs.__setitem__("format", 99), "has format 99, this version reads 2; run svd again"),
    (lambda file: file.attrs.__setitem__("kind", "dml-hpc model"), "holds no factors"),
    (lambda file: file.pop("feature_names") and file.create_dataset(
        "feature_names", data=["a"], dtype=h5py.string_dtype()) and None, "5 features have 1 names"),
])
def test_what_was_changed_is_refused_in_one_line(tmp_path, what, says):
    path = tmp_path / "svd.h5"
    write_factors(path, some_factors())
    change(path, what)
    with pytest.raises(UserError, match=says) as refusal:
        read_factors(path)
    assert "svd.h5" in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(("changed", "says"), [
    ({"singular_values": np.array([np.inf, 1, 0])}, "singular_values holds infinity"),
    ({"shift": np.full(FEATURES, np.nan)}, "shift holds NaN"),
    ({"singular_values": np.array([3.0, 2, -1])}, "negative"),
    ({"scale": np.zeros(FEATURES)}, "not positive"),
])
def test_numbers_that_cannot_be_are_refused(tmp_path, changed, says):
    write_factors(tmp_path / "svd.h5", some_factors(**changed))
    with pytest.raises(UserError, match=f"is damaged: .*{says}"):
        read_factors(tmp_path / "svd.h5")


@pytest.mark.parametrize("share", [0, 0.3, 0.99])
def test_a_file_cut_short_is_refused(tmp_path, share):
    path = tmp_path / "svd.h5"
    write_factors(path, some_factors())
    path.write_bytes(path.read_bytes()[:int(share * path.stat().st_size)])
    with pytest.raises(UserError, match=r"svd\.h5 cannot be read as factors"):
        read_factors(path)


def test_a_missing_file_and_a_folder_say_what_makes_one(tmp_path):
    for path in (tmp_path / "svd.h5", tmp_path):
        with pytest.raises(UserError, match=r"is no file; `dml-hpc svd"):
            read_factors(path)


def test_a_failure_leaves_what_was_there(tmp_path):
    path = tmp_path / "svd.h5"
    write_factors(path, some_factors())
    with pytest.raises(ValueError, match="could not convert"):
        write_factors(path, some_factors(energy=np.array(["x"] * K)))
    assert_same(read_factors(path), some_factors())
    assert [child.name for child in tmp_path.iterdir()] == ["svd.h5"]
