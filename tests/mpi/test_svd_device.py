"""The SVD with its products on a device, which is the CPU here, against LAPACK and the CPU's own path."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import data_support
import numpy as np
import pytest
import scipy.linalg

from dml_hpc.comm import open_reducer
from dml_hpc.comm.clock import Clock
from dml_hpc.commands import svd
from dml_hpc.console import Console
from dml_hpc.data.csr import sparse
from dml_hpc.data.dataset import open_dataset
from dml_hpc.decomposition import device_rows, on_device
from dml_hpc.decomposition import matrix as matrix_module
from dml_hpc.decomposition.grid import Grid
from dml_hpc.decomposition.matrix import Matrix
from dml_hpc.decomposition.on_device import DeviceProducts
from dml_hpc.decomposition.svd.truncated import Found, Wanted, truncated_svd
from dml_hpc.errors import AgreedError
from dml_hpc.kernels.cuda.long_rows import VERY_LONG

sys.path.insert(0, str(Path(__file__).parents[1] / "gpu"))
from host_device import COMPILER, HostCuda

pytestmark = [pytest.mark.mpi, pytest.mark.maths,
              pytest.mark.skipif(COMPILER is None, reason="there is no g++ to compile the CUDA kernels for the CPU")]

METHODS = ["gram", "randomized"]


@pytest.fixture(autouse=True)
def many_chunks(monkeypatch):
    """Matrices of some hundred rows are to be dealt to several ranks, and to reach the device in several parts."""
    monkeypatch.setattr(matrix_module, "LEAST_ROWS", 16)
    monkeypatch.setattr(matrix_module, "SQUARE_ROWS", 40)
    monkeypatch.setattr(device_rows, "STAGE_BYTES", 1 << 13)


def device(memory_bytes: int = 1 << 30) -> HostCuda:
    found = HostCuda()
    found.memory_bytes = memory_bytes
    return found


def write_dataset(comm, path: Path, X: np.ndarray, shards: int = 3, csr: bool = False, **how) -> Path:
    """Rank 0 writes X in shards, the last one shorter or empty."""
    if comm.rank == 0:
        rows = len(X)
        cuts = [min(rows, i * (-(-rows // shards) + 1)) for i in range(shards)] + [rows]
        data_support.write_dataset(path, sparse(X) if csr else X, np.zeros(rows), np.diff(cuts).tolist(), str(X.dtype),
                                   **how)
    comm.Barrier()
    return path


def matrix(rows: int, spectrum: np.ndarray, seed: int = 0) -> np.ndarray:
    """A float64 matrix (rows, len(spectrum)) with these singular values and random singular vectors."""
    rng = np.random.default_rng(seed)
    U = np.linalg.qr(rng.standard_normal((rows, len(spectrum))))[0]
    V = np.linalg.qr(rng.standard_normal((len(spectrum), len(spectrum))))[0]
    return U * spectrum @ V.T


def factorise(comm, path: Path, k: int, method: str, accuracy: float = 1e-5, gpu: HostCuda | None = None,
              grid: tuple[int, int] | None = None, wide: bool = False, reproducible: bool = False,
              shift: np.ndarray | None = None, scale: np.ndarray | None = None) -> tuple[Found, np.ndarray, Matrix]:
    """Return what is found on ``gpu`` (None: on the CPU), all rows of V, and the matrix."""
    with Grid(comm, grid or (comm.size, 1)) as ranks, Matrix(
            ranks, open_dataset(path), partial(open_reducer, "ring"), Clock(), Console(rank=comm.rank), shift, scale,
            None, reproducible, gpu, comm.size) as one:
        found = truncated_svd(one, method, wide, Wanted(k, accuracy), 0)
        return found, one.gathered(found.triplets.V), one


def check(A: np.ndarray, found: Found, V: np.ndarray, k: int, rtol: float = 1e-5, rounding: float = 1e-6,
          vectors: float = 1e-3) -> None:
    """Compare with LAPACK, in float64: values, the span, and what is said of residuals and of what is left out."""
    _, sigma, Vt = scipy.linalg.svd(A, full_matrices=False)
    got = found.triplets
    np.testing.assert_allclose(got.singular_values, sigma[:k], rtol=rtol)
    np.testing.assert_allclose(V.T @ V, np.eye(k), atol=1e-10)
    assert scipy.linalg.subspace_angles(V, Vt[:k].T).max() < vectors
    true = np.linalg.norm(A.T @ (A @ V / got.singular_values) - V * got.singular_values, axis=0) / sigma[0]
    assert (true <= 2 * got.relative_residuals + rounding).all(), "the certificate holds"
    assert np.linalg.norm(A - A @ V @ V.T, 2) <= found.error_bound * (1 + 1e-9)
    assert found.norm == pytest.approx(np.linalg.norm(A), rel=1e-7)
    largest = np.argmax(np.abs(V) >= np.abs(V).max(axis=0) * (1 - 1e-6), axis=0)
    assert (V[largest, np.arange(k)] > 0).all()


def test_rows_that_are_too_long_for_one_warp(comm, folder):
    X, rng = np.zeros((120, VERY_LONG + 300), np.float32), np.random.default_rng(3)
    X[rng.integers(0, 120, 600), rng.integers(0, X.shape[1], 600)] = 1
    X[[5, 60]] = rng.standard_normal((2, X.shape[1])) / 30
    path = write_dataset(comm, folder / "m", X, csr=True)
    gpu = device()
    found, V, _ = factorise(comm, path, 4, "randomized", gpu=gpu)
    check(X.astype(float), found, V, 4)
    assert comm.allreduce(("long_rows.cu", "find_parts") in gpu.launched)


@pytest.mark.parametrize(("kind", "method"), [("float16", "gram"), *((kind, method) for kind in ("float32", "float64")
                                                                     for method in METHODS)])
@pytest.mark.parametrize("csr", [False, True])
def test_matches_lapack_and_the_cpu(comm, folder, method, csr, kind):
    X = matrix(501, 1 / np.sqrt(np.arange(1, 41)))
    X = np.where(np.abs(X) < 0.01 * csr, 0, X).astype(kind)
    path = write_dataset(comm, folder / "m", X, csr=csr)
    found, V, one = factorise(comm, path, 8, method, gpu=device())
    check(X.astype(float), found, V, 8)
    assert isinstance(one.products, DeviceProducts) and one.products.resident and found.met
    assert one.precision == ("float64" if kind == "float64" else "float32")
    host, host_V, other = factorise(comm, path, 8, method)
    assert other.passes == one.passes
    np.testing.assert_allclose(found.triplets.singular_values, host.triplets.singular_values, rtol=2e-6)
    np.testing.assert_allclose(V, host_V, atol=2e-3)
    if kind == "float32":
        found, V, one = factorise(comm, path, 8, method, 1e-11, gpu=device())
        check(X.astype(float), found, V, 8, 1e-10, 1e-13)
        assert found.met and one.precision == "float64"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("csr", [False, True])
@pytest.mark.parametrize("shape", [(300, 20), (20, 300)])
def test_principal_components(comm, folder, method, csr, shape):
    rng = np.random.default_rng(1)
    X = rng.standard_normal(shape) * np.linspace(1, 3, shape[1]) + 50 * (not csr)
    X[rng.random(shape) < 0.5 * csr] = 0
    X = X.astype("float32")
    shift, scale = X.mean(axis=0, dtype=float), X.std(axis=0, dtype=float)
    path = write_dataset(comm, folder / "m", X, csr=csr)
    for given in ((shift, None), (shift, scale), (None, scale)):
        A = (X - (0 if given[0] is None else shift)) / (1 if given[1] is None else scale)
        found, V, _ = factorise(comm, path, 6, method, shift=given[0], scale=given[1], gpu=device())
        check(A, found, V, 6, vectors=1e-2)  # the values are close
        assert found.met
    found, V, one = factorise(comm, path, 6, method, 1e-9, scale=scale, gpu=device())
    check(A, found, V, 6, 1e-9, 1e-12)
    assert found.met and one.precision == "float64"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("csr", "compressed"), [(False, True), (False, False), (True, True)])
def test_streamed_rows_give_what_resident_ones_do(comm, folder, method, csr, compressed):
    X = matrix(700, 1 / np.arange(1.0, 31)).astype("float32")
    path = write_dataset(comm, folder / "m", X, csr=csr, compression="gzip" if compressed else None)
    found, V, one = factorise(comm, path, 5, method, gpu=device())
    again, again_V, other = factorise(comm, path, 5, method, gpu=device(memory_bytes=5000))
    assert isinstance(one.products, DeviceProducts) and one.products.resident
    assert isinstance(other.products, DeviceProducts) and not other.products.resident
    assert one._held is None and other._held is None and one.passes == other.passes
    check(X.astype(float), again, again_V, 5)
    np.testing.assert_allclose(V, again_V, atol=1e-4)
    np.testing.assert_allclose(found.triplets.singular_values, again.triplets.singular_values, rtol=1e-6)


@pytest.mark.parametrize("csr", [False, True])
def test_a_grid_of_blocks(comm, folder, csr):
    rng = np.random.default_rng(2)
    low = rng.standard_normal((150, 12)) * 2.0 ** -np.arange(12) @ rng.standard_normal((12, 90))
    X = np.where(rng.random((150, 90)) < (0.4 if csr else 1), low, 0).astype("float32")
    shift, scale = X.mean(axis=0, dtype=float), X.std(axis=0, dtype=float)
    path = write_dataset(comm, folder / "m", X, csr=csr)
    for across in (across for across in range(1, comm.size + 1) if comm.size % across == 0):
        shape = comm.size // across, across
        found, V, _ = factorise(comm, path, 5, "randomized", grid=shape, gpu=device())
        check(X.astype(float), found, V, 5)
        found, V, _ = factorise(comm, path, 5, "randomized", grid=shape, shift=shift, scale=scale, gpu=device())
        check((X - shift) / scale, found, V, 5)


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_a_wide_matrix_by_the_gram_matrix_of_its_rows(comm, folder, kind):
    X = np.ascontiguousarray(matrix(700, 1.1 ** -np.arange(40)).T).astype(kind)
    path = write_dataset(comm, folder / "m", X)
    for accuracy, rtol in ((1e-5, 1e-5), (1e-10, 1e-9)):
        found, V, _ = factorise(comm, path, 7, "gram", accuracy, grid=(1, comm.size), wide=True, gpu=device())
        check(X.astype(float), found, V, 7, rtol)
        assert found.met


def test_a_block_that_the_device_cannot_hold_is_refused(comm, folder):
    path = write_dataset(comm, folder / "m", np.ones((5, 40)))
    with pytest.raises(AgreedError, match=r"of a GPU's memory for these rows.*use --method randomized"):
        factorise(comm, path, 2, "gram", grid=(1, comm.size), wide=True, gpu=device(memory_bytes=100))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("csr", [False, True])
def test_more_ranks_than_rows(comm, folder, method, rows, csr):
    X = np.random.default_rng(1).standard_normal((rows, 6))
    path = write_dataset(comm, folder / "m", X, csr=csr)
    found, _, _ = factorise(comm, path, rows, method, 1e-10, gpu=device())
    np.testing.assert_allclose(found.triplets.singular_values, np.linalg.svd(X)[1], rtol=1e-10)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("csr", [False, True])
@pytest.mark.parametrize(("shifted", "scaled"), [(False, False), (False, True), (True, False), (True, True)])
def test_reproducible_factors_have_the_same_bits_on_any_number_of_ranks(comm, folder, method, csr, shifted, scaled):
    X = matrix(300, 1 / np.arange(1.0, 21)) + 0.1 * shifted * np.arange(20)
    X = np.where(np.abs(X) < 0.01 * csr, 0, X).astype("float32")
    shift, scale = X.mean(axis=0, dtype=float) if shifted else None, X.std(axis=0, dtype=float) if scaled else None
    path = write_dataset(comm, folder / "m", X, csr=csr)
    alone = comm.Split(comm.rank)
    given = {"reproducible": True, "shift": shift, "scale": scale, "accuracy": 1e-4 if shifted else 1e-5}
    found, V, _ = factorise(comm, path, 5, method, gpu=device(), **given)
    A = (X - (0 if shift is None else shift)) / (1 if scale is None else scale)
    check(A, found, V, 5, vectors=1e-2)
    for memory_bytes in (1 << 30, 5000):
        one, one_V, _ = factorise(alone, path, 5, method, gpu=device(memory_bytes), **given)
        assert one_V.tobytes() == V.tobytes()
        assert one.triplets.singular_values.tobytes() == found.triplets.singular_values.tobytes()
    alone.Free()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("width", [20, 300])
def test_blocks_of_any_size_give_the_same_factors(comm, folder, monkeypatch, method, kind, width):
    """Long blocks go by groups; short ones are those of a slow memory, whose cache holds them between two products."""
    X = matrix(900, 1.2 ** -np.arange(float(width))).astype(kind)
    path = write_dataset(comm, folder / "m", X)
    _, V, _ = factorise(comm, path, 6, method, gpu=device())
    monkeypatch.setattr(on_device, "BLOCK_ROWS", 40)
    monkeypatch.setattr(on_device, "GROUP_ROWS", 16)
    for cache_bytes, memory_bytes_per_s, rows in ((1 << 20, 0.0, 1 << 18), (30 * X[:1].nbytes, 1.0, 15)):
        gpu = device()
        gpu.cache_bytes, gpu.memory_bytes_per_s = cache_bytes, memory_bytes_per_s
        again, again_V, one = factorise(comm, path, 6, method, gpu=gpu)
        check(X.astype(float), again, again_V, 6)
        np.testing.assert_allclose(again_V, V, atol=1e-3)
        assert isinstance(one.products, DeviceProducts) and one.products._rows_at_once() == min(
            rows, on_device.BLOCK_BYTES // X[:1].nbytes)


def test_what_is_reproducible_does_not_depend_on_the_cache(comm, folder):
    path = write_dataset(comm, folder / "m", matrix(300, 1 / np.arange(1.0, 21)))
    digests = set()
    for cache_bytes in (1 << 11, 1 << 20):
        gpu = device()
        gpu.cache_bytes, gpu.memory_bytes_per_s = cache_bytes, 1.0
        digests |= {factorise(comm, path, 5, method, reproducible=True, gpu=gpu)[1].tobytes() for method in METHODS}
    assert len(digests) == len(METHODS)


@pytest.mark.parametrize("csr", [False, True])
def test_many_squares_of_chunks_are_summed_in_fixed_point(comm, folder, monkeypatch, csr):
    monkeypatch.setattr(matrix_module, "MOST_APART", 0)
    X = matrix(300, 1 / np.arange(1.0, 21)).astype("float32")
    path = write_dataset(comm, folder / "m", X, csr=csr)
    alone = comm.Split(comm.rank)
    found, V, _ = factorise(comm, path, 5, "randomized", reproducible=True, gpu=device())
    _, one_V, _ = factorise(alone, path, 5, "randomized", reproducible=True, gpu=device())
    check(X.astype(float), found, V, 5)
    assert one_V.tobytes() == V.tobytes()
    alone.Free()


def test_what_squares_lose_is_brought_back(comm, folder):
    spectrum = 10.0 ** -np.arange(0, 12)
    path = write_dataset(comm, folder / "m", matrix(400, spectrum))
    found, _, _ = factorise(comm, path, 12, "gram", 1e-14, gpu=device())
    np.testing.assert_allclose(found.triplets.singular_values, spectrum, rtol=1e-3)


@pytest.mark.filterwarnings("ignore:.*encountered in")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [1e-25, 1e22])
@pytest.mark.parametrize("csr", [False, True])
def test_sizes_that_float32_does_not_bear(comm, folder, method, size, csr):
    X = (matrix(300, np.arange(20.0, 0, -1)) * size).astype("float32")
    found, _, one = factorise(comm, write_dataset(comm, folder / "m", X, csr=csr), 3, method, gpu=device())
    np.testing.assert_allclose(found.triplets.singular_values, np.array([20, 19, 18]) * size, rtol=1e-5)
    assert found.met and one.precision == "float64"


@pytest.mark.filterwarnings("ignore:.*encountered in")
@pytest.mark.parametrize(("value", "method"), [(np.nan, "gram"), (np.inf, "randomized")])
@pytest.mark.parametrize("csr", [False, True])
def test_what_is_no_number_is_refused_by_its_place(comm, folder, method, value, csr):
    X = np.ones((90, 4), "float32")
    X[40, 2] = value  # the shards begin at rows 0, 31, 62
    path = write_dataset(comm, folder / "m", X, csr=csr)
    for grid in ((comm.size, 1), (1, comm.size)) if method == "randomized" else ((comm.size, 1),):
        with pytest.raises(AgreedError, match=rf"part-00001\.h5: X\[9, 2\] \('x2'\) is {value}") as refusal:
            factorise(comm, path, 2, method, grid=grid, gpu=device())
        assert refusal.value.exit_code == 2


def run(comm, path: Path, output: Path, **given) -> dict:
    options = {"k": 3, "tolerance": None, "accuracy": 1e-8, "method": "auto", "grid": None, "center": False,
               "scale": False, "left": None, "plot": None, "memory_limit": None, "reproducible": False, "seed": 0,
               "allreduce": "tree", "tuning": None, "overwrite": False, "device": "cuda", **given}
    return svd.run(comm, Console(rank=comm.rank), [path], None, output, **options)


def test_the_command_says_what_it_used(comm, folder, monkeypatch):
    from dml_hpc import cuda

    monkeypatch.setattr(cuda, "Cuda", HostCuda)
    X = matrix(100, np.array([4.0, 3, 2, 1]))
    path = write_dataset(comm, folder / "m", X)
    result = run(comm, path, folder / "svd.h5", left=folder / "left")
    assert result["device"] == "cuda" and result["method"] == "gram" and result["accuracy_met"]
    np.testing.assert_allclose(result["singular_values"], [4, 3, 2], rtol=1e-8)
    assert run(comm, path, folder / "cpu.h5", device="cpu")["device"] == "cpu"
    exact = run(comm, path, folder / "exact.h5", accuracy=1e-10)
    assert exact["method"] == "gram", "auto never takes a method that the device has not"
    sparse_path, alone = write_dataset(comm, folder / "s", np.where(X > 0, X, 0), csr=True), comm.Split(comm.rank)
    same = [run(ranks, sparse_path, folder / f"{name}.h5", method="randomized", reproducible=True, accuracy=1e-5)
            for ranks, name in ((comm, "all"), (alone, f"alone{comm.rank}"))]
    assert same[0]["digest"] == same[1]["digest"] and same[0]["reproducible"] and same[0]["device"] == "cuda"
    alone.Free()


def test_what_a_device_does_not_do_is_refused(comm, folder, monkeypatch):
    from dml_hpc import cuda

    monkeypatch.setattr(cuda, "Cuda", HostCuda)
    X = matrix(100, np.array([4.0, 3, 2, 1]))
    path = write_dataset(comm, folder / "m", X)
    for method in ("tsqr", "incremental"):
        with pytest.raises(AgreedError, match=f"--method {method} computes on the CPU: leave out --device cuda"):
            run(comm, path, folder / "svd.h5", method=method)
    assert not (folder / "svd.h5").exists()


def test_without_a_gpu_nothing_is_done(comm, folder):
    path = write_dataset(comm, folder / "m", np.eye(5))
    try:
        import cupy

        cupy.cuda.runtime.getDeviceCount()
    except Exception:
        with pytest.raises(AgreedError) as error:
            run(comm, path, folder / "svd.h5")
        assert error.value.exit_code == 2 and "\n" not in str(error.value)
        assert not (folder / "svd.h5").exists()
    else:
        pytest.skip("there is a GPU here")
