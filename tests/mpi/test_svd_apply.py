"""Rows projected onto singular vectors, against NumPy, at any number of ranks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import data_support
import h5py
import numpy as np
import pytest

from dml_hpc.commands import data_info, data_verify, projecting, svd_apply
from dml_hpc.console import Console
from dml_hpc.data.csr import sparse
from dml_hpc.data.dataset import Dataset, open_dataset
from dml_hpc.data.manifest import read_manifest
from dml_hpc.data.sources.rearrange import DatasetRows
from dml_hpc.data.sources.source import label_and_weight
from dml_hpc.decomposition.svd import projection
from dml_hpc.errors import AgreedError
from dml_hpc.mpi import on_root
from dml_hpc.store.factors import Factors, write_factors

pytestmark = [pytest.mark.mpi, pytest.mark.maths]

FEATURES, K = 12, 4


def some_rows(rows: int = 157, share: float = 1.0) -> np.ndarray:
    """Rows (rows, FEATURES), of which ``share`` of the entries are not zero; exact in float16."""
    rng = np.random.default_rng(rows)
    X = rng.standard_normal((rows, FEATURES)) * np.linspace(3, 0.5, FEATURES) + 2
    return np.where(rng.random(X.shape) < share, X, 0).astype(np.float16).astype(np.float64)


def factors_of(X: np.ndarray, center: bool = False, scale: bool = False, k: int = K) -> Factors:
    """The factors of X by LAPACK; names are those that `write` gives."""
    shift = X.mean(axis=0) if center else None
    scales = X.std(axis=0) if scale else None
    _, sigma, Vt = np.linalg.svd(prepared(X, shift, scales), full_matrices=False)
    names = [f"x{j}" for j in range(X.shape[1])]
    return Factors(sigma[:k], np.ascontiguousarray(Vt[:k].T), np.zeros(k), names, "gram", len(X), shift=shift,
                   scale=scales)


def prepared(X: np.ndarray, shift: np.ndarray | None, scale: np.ndarray | None) -> np.ndarray:
    return (X - (0 if shift is None else shift)) / (1 if scale is None else scale)


def projections(X: np.ndarray, factors: Factors, scores: bool = False) -> np.ndarray:
    image = prepared(X, factors.shift, factors.scale) @ factors.V
    return image if scores else image / factors.singular_values


def write(comm, path: Path, X: np.ndarray, dtype: str = "float32", csr: bool = False, shards: int = 3,
          **more) -> np.ndarray:
    """Write X with labels 0, 1, 2 in shards, the last one shorter or empty; return the labels."""
    y = np.random.default_rng(1).integers(0, 3, len(X)).astype(float)
    cuts = [min(len(X), i * (-(-len(X) // shards) + 1)) for i in range(shards)] + [len(X)]
    rows = sparse(X.astype(dtype)) if csr else X

    def make() -> None:
        data_support.write_dataset(path, rows, y, np.diff(cuts).tolist(), dtype, **more)

    on_root(comm, make)
    return y


def save(comm, path: Path, factors: Factors) -> Path:
    on_root(comm, lambda: write_factors(path, factors))
    return path


def apply(comm, factors: Path, data: Path | list[Path], output: Path, scores=False, overwrite=False, x_key=None,
          y_key=None) -> dict:
    result = svd_apply.run(comm, Console(rank=comm.rank), factors, data if isinstance(data, list) else [data], x_key,
                           y_key, output, scores, overwrite)
    comm.Barrier()
    return result


def rows_of(dataset: Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    X, y = DatasetRows(dataset).read(0, dataset.rows)
    return (X, *label_and_weight(y))


def left_behind(folder: Path) -> list[str]:
    return sorted(child.name for child in folder.iterdir())


@pytest.mark.parametrize("csr", [False, True], ids=["dense", "csr"])
@pytest.mark.parametrize(("center", "scale"), [(False, False), (True, False), (True, True), (False, True)])
@pytest.mark.parametrize("scores", [False, True])
def test_matches_numpy(comm, folder, csr, center, scale, scores):
    X = some_rows(share=0.4 if csr else 1)
    factors = factors_of(X, center, scale)
    y = write(comm, folder / "m", X, "float64", csr)
    apply(comm, save(comm, folder / "svd.h5", factors), folder / "m", folder / "u", scores)
    found, labels, weight = rows_of(open_dataset(folder / "u"))
    np.testing.assert_allclose(found, projections(X, factors, scores), atol=1e-13)
    np.testing.assert_array_equal(labels, y)
    assert weight is None
    U = found / factors.singular_values if scores else found
    np.testing.assert_allclose(U.T @ U, np.eye(K), atol=1e-12)


@pytest.mark.parametrize(("stored", "written"), [
    ("float16", "float32"), ("float32", "float32"), ("float64", "float64")])
@pytest.mark.parametrize("csr", [False, True], ids=["dense", "csr"])
def test_sums_are_float64_and_the_type_is_that_of_the_data(comm, folder, stored, written, csr):
    X = some_rows()
    # In float32 sums the rows of U of the smallest triplet would be off by 1e-7·σ₁/σ = 0.01.
    V = np.linalg.qr(np.random.default_rng(0).standard_normal((FEATURES, 2)))[0]
    factors = Factors(np.array([100.0, 1e-3]), V, np.zeros(2), None, "gram", 1)
    write(comm, folder / "m", X, stored, csr)
    result = apply(comm, save(comm, folder / "svd.h5", factors), folder / "m", folder / "u")
    dataset = open_dataset(folder / "u")
    assert result["dtype"] == dataset.manifest.dtype == written
    rtol = 1e-6 if written == "float32" else 1e-10
    np.testing.assert_allclose(rows_of(dataset)[0], projections(X, factors), rtol=rtol)


def test_far_from_zero_no_digits_are_lost(comm, folder):
    X = some_rows() + 1e9
    factors = factors_of(X, center=True, scale=True)
    write(comm, folder / "m", X, "float64")
    apply(comm, save(comm, folder / "svd.h5", factors), folder / "m", folder / "u")
    found = rows_of(open_dataset(folder / "u"))[0]
    np.testing.assert_allclose(found.T @ found, np.eye(K), atol=1e-12)


def test_other_rows_than_were_factorised_and_every_other_verb_reads_them(comm, folder):
    factors = factors_of(some_rows(300), center=True)
    X = some_rows(41)
    y = write(comm, folder / "m", X, weight=np.linspace(0, 2, 41))
    result = apply(comm, save(comm, folder / "svd.h5", factors), folder / "m", folder / "u")
    found, labels, weight = rows_of(open_dataset(folder / "u"))
    np.testing.assert_allclose(found, projections(X, factors), rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(labels, y)
    np.testing.assert_array_equal(weight, np.linspace(0, 2, 41).astype("float32"))
    manifest = read_manifest(folder / "u")
    assert manifest.feature_names == ["u0", "u1", "u2", "u3"]
    assert (manifest.label.name, manifest.label.values, manifest.weighted) == ("label", [0, 1, 2], True)
    assert manifest.source == {"svd": factors.digest, "scores": False}
    assert manifest.statistics is not None
    np.testing.assert_allclose(manifest.statistics.mean, found.mean(axis=0), atol=1e-7)
    assert data_verify.run(comm, Console(rank=comm.rank), [folder / "u"], None, None)["problems"] == []
    assert data_info.run(Console(rank=1), [folder / "u"])["label"]["name"] == "label"

    assert result["shards"] == 3 == len(manifest.shards)
    assert (result["rows"], result["k"], result["scores"]) == (41, K, False)
    assert (result["factors"], result["data"]) == (str(folder / "svd.h5"), str(folder / "m"))
    assert (result["factors_digest"], result["output"]) == (factors.digest, str(folder / "u"))
    assert result["work_s"] > 0
    assert comm.allgather(result) == [result] * comm.size
    json.dumps(result, allow_nan=False)


def test_small_blocks_compressed_and_half_precision_shards(comm, folder, monkeypatch):
    monkeypatch.setattr("dml_hpc.data.dataset.BLOCK_BYTES", 7 * FEATURES * 2)
    monkeypatch.setattr("dml_hpc.data.build.BLOCK_BYTES", 20 * K * 4)
    X = some_rows()
    factors = factors_of(X, center=True)
    write(comm, folder / "m", X, "float16", shards=5, compression="gzip")
    apply(comm, save(comm, folder / "svd.h5", factors), folder / "m", folder / "u")
    found = rows_of(open_dataset(folder / "u"))[0]
    np.testing.assert_allclose(found, projections(X, factors), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("rows", [0, 1, 2])
@pytest.mark.parametrize("csr", [False, True], ids=["dense", "csr"])
def test_more_ranks_than_rows(comm, folder, rows, csr):
    factors = factors_of(some_rows(), center=True)
    write(comm, folder / "m", some_rows(rows), csr=csr)
    result = apply(comm, save(comm, folder / "svd.h5", factors), folder / "m", folder / "u")
    dataset = open_dataset(folder / "u")
    assert (dataset.rows, dataset.features, result["shards"]) == (rows, K, max(rows, 1))
    np.testing.assert_allclose(rows_of(dataset)[0], projections(some_rows(rows), factors), rtol=1e-5, atol=1e-7)


def test_a_triplet_without_a_left_vector_projects_to_0(comm, folder):
    X = some_rows()
    factors = factors_of(X)
    factors = replace(factors, singular_values=np.array([9.0, 5, 1e-14, 0]),
                      relative_residuals=np.array([0, 0, np.nan, np.nan]))
    write(comm, folder / "m", X, "float64")
    save(comm, folder / "svd.h5", factors)
    for scores in (False, True):
        apply(comm, folder / "svd.h5", folder / "m", folder / "u", scores, overwrite=True)
        found = rows_of(open_dataset(folder / "u"))[0]
        np.testing.assert_allclose(found[:, :2], projections(X, factors_of(X), scores)[:, :2] *
                                   (1 if scores else factors_of(X).singular_values[:2] / [9, 5]), atol=1e-12)
        assert not found[:, 2:].any()


def store(comm, path: Path, **arrays) -> None:
    """Write an HDF5 file without a manifest."""
    def make() -> None:
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array

    on_root(comm, make)


def test_files_that_were_not_imported_need_no_labels(comm, folder, capsys):
    X = np.random.default_rng(0).integers(-9, 9, (23, FEATURES))
    factors = factors_of(X.astype(float))
    store(comm, folder / "a.h5", matrix=X[:9])
    store(comm, folder / "b.h5", matrix=X[9:])
    save(comm, folder / "svd.h5", factors)
    apply(comm, folder / "svd.h5", [folder / "a.h5", folder / "b.h5"], folder / "u", x_key="matrix")
    found, labels, _ = rows_of(open_dataset(folder / "u"))
    np.testing.assert_allclose(found, projections(X, factors), atol=1e-13)
    assert not labels.any()
    assert ("--y-key" in capsys.readouterr().out) == (comm.rank == 0)


def test_files_that_were_not_imported_may_have_labels(comm, folder, capsys):
    X, target = some_rows(23), np.arange(23)
    store(comm, folder / "a.h5", X=X, target=target)
    save(comm, folder / "svd.h5", factors_of(X))
    apply(comm, folder / "svd.h5", folder / "a.h5", folder / "u", y_key="target")
    np.testing.assert_array_equal(rows_of(open_dataset(folder / "u"))[1], target)
    assert read_manifest(folder / "u").label.name == "target"
    assert "--y-key" not in capsys.readouterr().out


@pytest.mark.parametrize("csr", [False, True], ids=["dense", "csr"])
def test_the_same_files_on_one_rank_as_on_all(comm, folder, csr, monkeypatch):
    monkeypatch.setattr(projecting, "SHARD_BYTES", 256)
    X = some_rows(share=0.4 if csr else 1)
    write(comm, folder / "m", X, csr=csr)
    save(comm, folder / "svd.h5", factors_of(X, center=True))
    apply(comm, folder / "svd.h5", folder / "m", folder / "u")
    alone = comm.Split(comm.rank)
    apply(alone, folder / "svd.h5", folder / "m", folder / f"alone{comm.rank}")
    alone.Free()
    together, by_itself = read_manifest(folder / "u"), read_manifest(folder / f"alone{comm.rank}")
    assert 9 < len(together.shards) < 157
    assert [shard.sha256 for shard in together.shards] == [shard.sha256 for shard in by_itself.shards]
    np.testing.assert_allclose(rows_of(open_dataset(folder / "u"))[0], projections(X, factors_of(X, center=True)),
                               rtol=1e-5, atol=1e-7)


def test_left_vectors_beside_the_factors(comm, folder):
    X = some_rows()
    factors = factors_of(X, center=True, k=FEATURES)
    y = write(comm, folder / "m", X, "float64")
    dataset = open_dataset(folder / "m")
    projecting.write_left(comm, Console(rank=comm.rank), dataset, factors, folder / "left", False)
    U, labels, _ = rows_of(open_dataset(folder / "left"))
    np.testing.assert_allclose(U * factors.singular_values @ factors.V.T + factors.shift, X, atol=1e-12)
    np.testing.assert_array_equal(labels, y)
    with pytest.raises(AgreedError, match="left exists; give --overwrite to replace it, or another --left"):
        projecting.write_left(comm, Console(rank=comm.rank), dataset, factors, folder / "left", False)
    projecting.write_left(comm, Console(rank=comm.rank), dataset, factors, folder / "left", True, "float32")
    assert open_dataset(folder / "left").manifest.dtype == "float32"
    with pytest.raises(AgreedError, match="is what this run reads"):
        projecting.write_left(comm, Console(rank=comm.rank), dataset, factors, folder / "m", True)


def test_left_vectors_may_lie_beside_files_that_were_not_imported(comm, folder):
    X = some_rows(23)
    store(comm, folder / "a.h5", X=X[:9])
    store(comm, folder / "b.h5", X=X[9:])
    dataset = open_dataset([folder / "a.h5", folder / "b.h5"], labels=False)
    projecting.write_left(comm, Console(rank=comm.rank), dataset, factors_of(X), folder / "left", False)
    np.testing.assert_allclose(rows_of(open_dataset(folder / "left"))[0], projections(X, factors_of(X)), atol=1e-13)


@pytest.mark.parametrize(("changed", "says"), [
    ({"feature_names": [f"y{j}" for j in range(FEATURES)]},
     r"svd\.h5 was computed from other features than .*m has: 12 against 12, first difference: 'y0' there, 'x0' here"),
    ({"feature_names": None, "V": np.eye(7, K)}, r"svd\.h5 was computed from 7 features, .*m has 12"),
])
def test_other_features_are_refused(comm, folder, changed, says):
    X = some_rows()
    write(comm, folder / "m", X)
    save(comm, folder / "svd.h5", replace(factors_of(X), **changed))
    with pytest.raises(AgreedError, match=says) as refusal:
        apply(comm, folder / "svd.h5", folder / "m", folder / "u")
    assert refusal.value.exit_code == 2
    assert left_behind(folder) == ["m", "svd.h5"]


def test_an_output_that_exists_stays_unless_it_may_go(comm, folder):
    X = some_rows()
    write(comm, folder / "m", X)
    save(comm, folder / "svd.h5", factors_of(X))

    def precious() -> None:
        (folder / "u").mkdir()
        (folder / "u" / "thesis.txt").write_text("precious")

    on_root(comm, precious)
    for overwrite, says in ((False, "give --overwrite"), (True, "is no part of a data set and would be deleted")):
        with pytest.raises(AgreedError, match=says) as refusal:
            apply(comm, folder / "svd.h5", folder / "m", folder / "u", overwrite=overwrite)
        assert refusal.value.exit_code == 2
    for data in (folder / "m", folder / "m" / "inside"):
        with pytest.raises(AgreedError, match="is what this run reads"):
            apply(comm, folder / "svd.h5", folder / "m", data, overwrite=True)
    assert (folder / "u" / "thesis.txt").read_text() == "precious"
    comm.Barrier()
    on_root(comm, (folder / "u" / "thesis.txt").unlink)
    apply(comm, folder / "svd.h5", folder / "m", folder / "u", overwrite=True)
    assert open_dataset(folder / "u").rows == len(X)


@pytest.mark.parametrize("csr", [False, True], ids=["dense", "csr"])
def test_a_number_that_is_none_is_named_and_nothing_is_half_written(comm, folder, csr):
    X = some_rows()
    save(comm, folder / "svd.h5", factors_of(X, center=True))
    X[140, 5] = np.nan
    write(comm, folder / "m", X, csr=csr)
    with pytest.raises(AgreedError, match=r"part-00002\.h5: X\[32, 5\] \('x5'\) is nan, not a finite") as refusal:
        apply(comm, folder / "svd.h5", folder / "m", folder / "u")
    assert refusal.value.exit_code == 2
    comm.Barrier()
    assert left_behind(folder) == ["m", "svd.h5"]


def test_a_projection_too_large_for_its_type_is_named(comm, folder):
    X = some_rows()
    save(comm, folder / "svd.h5", replace(factors_of(X), singular_values=np.array([3.0, 2, 1, 1e-50])))
    write(comm, folder / "m", X)
    with pytest.raises(AgreedError, match=r"part-00000\.h5: row 0 projects to u3 beyond float32"):
        apply(comm, folder / "svd.h5", folder / "m", folder / "u")
    comm.Barrier()
    assert left_behind(folder) == ["m", "svd.h5"]


def test_one_rank_that_cannot_go_on_stops_all_and_what_was_there_stays(comm, folder, monkeypatch):
    X = some_rows()
    write(comm, folder / "m", X)
    save(comm, folder / "svd.h5", factors_of(X))
    apply(comm, folder / "svd.h5", folder / "m", folder / "u")
    before = rows_of(open_dataset(folder / "u"))[0].copy()
    comm.Barrier()
    if comm.rank == comm.size - 1:
        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(projection.Projected, "read", full)
    with pytest.raises(AgreedError, match="cannot write the shards: No space left on device"):
        apply(comm, folder / "svd.h5", folder / "m", folder / "u", scores=True, overwrite=True)
    comm.Barrier()
    np.testing.assert_array_equal(rows_of(open_dataset(folder / "u"))[0], before)
    assert left_behind(folder) == ["m", "svd.h5", "u"]
