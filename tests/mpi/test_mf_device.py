"""Factors of ratings learnt on a device, which is the CPU here, against the CPU's own path."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ratings_support import import_ratings, low_rank

from dml_hpc.comm.clock import Clock
from dml_hpc.commands import mf, mf_evaluate
from dml_hpc.console import Console
from dml_hpc.data.ratings.opened import MemoryRatings
from dml_hpc.decomposition.mf.als import Als
from dml_hpc.decomposition.mf.als import Settings as AlsSettings
from dml_hpc.decomposition.mf.course import Limits, Outcome, learn
from dml_hpc.decomposition.mf.device_als import DeviceAls
from dml_hpc.decomposition.mf.device_sgd import DeviceSgd
from dml_hpc.decomposition.mf.sgd import Settings, Sgd
from dml_hpc.decomposition.mf.steps import DEFAULT_STEP_SIZE, StepSizes
from dml_hpc.device import open_device
from dml_hpc.errors import AgreedError
from dml_hpc.mpi import world
from dml_hpc.store.rating_factors import read_rating_factors
from dml_hpc.store.saving import Saving

sys.path.insert(0, str(Path(__file__).parents[1] / "gpu"))
from host_device import COMPILER, HostCuda

ON_A_GPU = os.environ.get("DML_HPC_TEST_DEVICE") == "cuda"
pytestmark = [pytest.mark.mpi, pytest.mark.maths,
              pytest.mark.skipif(COMPILER is None and not ON_A_GPU,
                                 reason="there is no g++ to compile the CUDA kernels for the CPU")]
only_on_the_cpu = pytest.mark.skipif(ON_A_GPU, reason="it is about a device with other memory")

TRAIN, TEST = (tuple(part[cut] for part in low_rank()) for cut in (slice(300, None), slice(0, 300)))


def device(memory_bytes: int = 1 << 30) -> Any:
    if ON_A_GPU:
        return open_device("cuda", world().rank)
    found = HostCuda()
    found.memory_bytes = memory_bytes
    return found


def factorise(comm, gpu: Any, given=TRAIN, shape=(4, 6), epochs: int = 3, schedule: str = "adagrad",
              held=None, weights: np.ndarray | None = None,
              **settings) -> tuple[Outcome, list[np.ndarray], Sgd]:
    """Return what came of it, and all ranks' factors, in the order of users and items, on every rank."""
    ratings = MemoryRatings(*given, weights, shape=shape)
    wanted = Settings(**{"k": 4, "l2": 0.02, "adaptive": schedule == "adagrad", **settings})
    sgd = Sgd(comm, ratings, wanted, Clock(), held) if gpu is None else DeviceSgd(
        comm, ratings, wanted, Clock(), held, None, gpu, 1)
    with sgd:
        outcome = learn(sgd, StepSizes(schedule, DEFAULT_STEP_SIZE[schedule], epochs), Limits(epochs),
                        Saving(comm, lambda line: None), lambda _: None)
        own = sgd.parts()
        found = [np.concatenate([part.factors for rank in comm.allgather(own) for part in rank if part.side == side])
                 for side in ("user", "item")]
    return outcome, found, sgd


CASES = {
    "adagrad": {}, "constant": {"schedule": "constant", "biases": False}, "half": {"factors": "float16", "k": 20},
    "few items": {"shape": (6, 2)}, "weights": {"weights": np.linspace(0.5, 2, len(TRAIN[0])).astype(np.float32)},
    "empty blocks": {"given": low_rank(count=40), "shape": (9, 9)}, "ranks without users": {"shape": (2, 3)},
}


@pytest.mark.parametrize("case", CASES)
def test_steps_one_after_the_other_are_the_cpus(comm, monkeypatch, case):
    """With as few groups at work as there can be, a block's ratings are taken in their order, as on the CPU."""
    from dml_hpc.kernels.cuda import rating_sgd

    monkeypatch.setattr(rating_sgd, "APART", 1 << 20)
    monkeypatch.setattr(rating_sgd, "_BLOCKS_A_PROCESSOR", 1)
    wanted, factors, _ = factorise(comm, None, **CASES[case])
    outcome, found, sgd = factorise(comm, device(), **CASES[case])
    near = 2e-2 if case == "half" else 1e-4
    np.testing.assert_allclose(outcome.rmse_train, wanted.rmse_train, rtol=near)
    for got, own in zip(found, factors, strict=True):
        np.testing.assert_allclose(got.astype(float), own.astype(float), atol=near)
    assert sgd.resident and (ON_A_GPU or (sgd.staged is not None) == (comm.size > 1))


@pytest.mark.parametrize("factors", ["float32", "float16"])
def test_held_out_ratings_are_predicted_as_well_as_by_the_cpu(comm, factors):
    held = MemoryRatings(*TEST, shape=(2, 3), n_users=90, n_items=60)
    outcome, _, _ = factorise(comm, device(), epochs=12, held=held, factors=factors, k=2)
    wanted, _, _ = factorise(comm, None, epochs=12, held=held, factors=factors, k=2)
    assert outcome.errors is not None and wanted.errors is not None
    assert outcome.rmse_test[-1] == outcome.errors.rmse <= 1.1 * wanted.errors.rmse
    assert outcome.errors.mae <= 1.1 * wanted.errors.mae and outcome.errors[2:] == wanted.errors[2:]


@only_on_the_cpu
def test_ratings_that_do_not_fit_are_brought_in_each_pass(comm, monkeypatch):
    from dml_hpc.kernels.cuda import rating_sgd

    monkeypatch.setattr(rating_sgd, "APART", 1 << 20)
    monkeypatch.setattr(rating_sgd, "_BLOCKS_A_PROCESSOR", 1)
    wanted, factors, _ = factorise(comm, device())
    outcome, found, sgd = factorise(comm, device(40_000))
    assert not sgd.resident or comm.size > 1
    assert outcome.rmse_train == wanted.rmse_train
    for got, own in zip(found, factors, strict=True):
        np.testing.assert_array_equal(got, own)
    for memory_bytes, why in ((16_000, "are needed for ratings"), (1000, "the factors of a rank take")):
        if comm.size > 1 and memory_bytes > 1000:
            continue  # a rank has less
        with pytest.raises(AgreedError, match=why) as refusal:
            factorise(comm, device(memory_bytes), k=2)
        assert refusal.value.exit_code == 2


@only_on_the_cpu
def test_device_buffers_are_handed_to_mpi_where_it_takes_them(comm, monkeypatch):
    """Here they are the host's, so that every library does."""
    from dml_hpc.decomposition.mf import device_sgd
    from dml_hpc.kernels.cuda import rating_sgd

    monkeypatch.setattr(rating_sgd, "APART", 1 << 20)
    monkeypatch.setattr(rating_sgd, "_BLOCKS_A_PROCESSOR", 1)
    _, factors, _ = factorise(comm, device())
    monkeypatch.setattr(device_sgd, "why_staged", lambda comm, device: None)
    _, found, sgd = factorise(comm, device())
    assert sgd.staged is None
    for got, own in zip(found, factors, strict=True):
        np.testing.assert_array_equal(got, own)


def solve(comm, gpu: Any, given=TRAIN, epochs: int = 2, held=None, weights=None, shape=(4, 6),
          **settings) -> tuple[Outcome, list[np.ndarray]]:
    """Return what came of ALS, and all ranks' factors and biases."""
    ratings = MemoryRatings(*given, weights, shape=shape)
    wanted = AlsSettings(**{"k": 4, "l2": 0.02, **settings})
    als = Als(comm, ratings, wanted, Clock(), held) if gpu is None else DeviceAls(
        comm, ratings, wanted, Clock(), held, None, gpu, 1)
    with als:
        outcome = learn(als, None, Limits(epochs), Saving(comm, lambda line: None), lambda _: None)
        own = comm.allgather(als.parts())
        found = [np.concatenate([array for rank in own for part in rank if part.side == side
                                 for array in (part[kind],)])
                 for side in ("user", "item") for kind in ((2, 3) if own[0][0].biases is not None else (2,))]
    return outcome, found


ALS_CASES = {
    "biased": {}, "plain": {"biases": False, "k": 40}, "implicit": {"alpha": 10.0, "l2": 0.1},
    "weights": {"weights": np.linspace(0.5, 2, len(TRAIN[0])).astype(np.float32)},
    "few ratings": {"given": low_rank(count=40), "shape": (9, 9)},
    "auto": {"l2": None}, "auto weights": {"l2": None, "biases": False, "k": 20,
                                           "weights": np.linspace(0.5, 2, len(TRAIN[0])).astype(np.float32)},
}


@pytest.mark.parametrize("case", ALS_CASES)
def test_half_steps_are_the_cpus_and_the_same_bits_on_any_number_of_ranks(comm, case):
    options = ALS_CASES[case]
    held = None if case == "implicit" else MemoryRatings(*TEST, shape=(2, 3), n_users=90, n_items=60)
    wanted, factors = solve(comm, None, held=held, **options)
    outcome, found = solve(comm, device(), held=held, **options)
    for got, own in zip(found, factors, strict=True):
        np.testing.assert_allclose(got, own, atol=1e-3)
    np.testing.assert_allclose(outcome.losses, wanted.losses, rtol=1e-4)
    np.testing.assert_allclose(outcome.rmse_train, wanted.rmse_train, rtol=1e-3)
    np.testing.assert_allclose(outcome.rmse_test, wanted.rmse_test, rtol=1e-4)
    own = comm.Split(comm.rank)
    one, alone = solve(own, device(), held=held, **options)
    own.Free()
    for got, other in zip(found, alone, strict=True):
        np.testing.assert_array_equal(got, other)
    assert (one.losses, one.rmse_train, one.rmse_test) == (outcome.losses, outcome.rmse_train, outcome.rmse_test)


@only_on_the_cpu
def test_als_that_the_memory_does_not_do_for_is_refused(comm):
    with pytest.raises(AgreedError, match="ratings and factors of a rank take") as refusal:
        solve(comm, device(1000))
    assert refusal.value.exit_code == 2


@pytest.fixture
def data(comm, folder, monkeypatch) -> tuple[Path, Path]:
    """Data sets to learn from and to test on; --device cuda is the CPU."""
    from dml_hpc import cuda

    if not ON_A_GPU:
        monkeypatch.setattr(cuda, "Cuda", HostCuda)
    if comm.rank == 0:
        import_ratings(folder, "train", TRAIN, (4, 6))
        import_ratings(folder, "test", TEST, (3, 2))
    comm.Barrier()
    return folder / "train", folder / "test"


def run(comm, train: Path, output: Path, **options):
    return mf.run(comm, Console(rank=1), train, output, **{"k": 4, "epochs": 4, "device": "cuda", **options})


@pytest.mark.parametrize("algorithm", ["sgd", "als"])
def test_the_file_predicts_what_the_run_has_told(comm, folder, data, algorithm):
    train, test = data
    told = run(comm, train, folder / "f.h5", test=test, algorithm=algorithm)
    found = mf_evaluate.run(comm, Console(rank=1), folder / "f.h5", test)
    assert found["rmse"] == pytest.approx(told["rmse_test"], rel=1e-5)
    assert found["mae"] == pytest.approx(told["mae_test"], rel=1e-5)
    assert told["device"] == "cuda" and all(one["ratings_on_device"] for one in told["per_rank"])
    assert told["deterministic"] == (algorithm == "als")
    assert ON_A_GPU or (told["staged"] is None) == (comm.size == 1)
    assert run(comm, train, folder / "cpu.h5", device="cpu", algorithm=algorithm)["deterministic"]


@pytest.mark.parametrize("algorithm", ["sgd", "als"])
def test_a_run_goes_on_from_its_checkpoint_on_either_device(comm, folder, data, algorithm):
    train, _ = data
    keeping = {"checkpoint": folder / "kept", "algorithm": algorithm}
    run(comm, train, folder / "two.h5", epochs=2, **keeping)
    for name, where in (("four.h5", "cuda"), ("six.h5", "cpu")):
        more = run(comm, train, folder / name, epochs=4 if where == "cuda" else 6, device=where, resume=True, **keeping)
        assert more["resumed_from"] == (2 if where == "cuda" else 4)
        assert more["rmses_train"] == sorted(more["rmses_train"], reverse=True)
    if algorithm == "als":
        whole = run(comm, train, folder / "whole.h5", algorithm="als")
        assert whole["weights_digest"] == read_rating_factors(folder / "four.h5").digest


@pytest.mark.parametrize(("options", "why"), [
    ({"reproducible": True}, "--reproducible: on GPUs .* --algorithm als"),
    ({"k": 513}, "takes up to -k 512"), ({"algorithm": "als", "k": 129}, "takes up to -k 128"),
    ({"algorithm": "als", "implicit": True, "solver": "cg"}, "--solver cg computes on the CPU")])
def test_what_a_device_does_not_do_is_refused(comm, folder, data, options, why):
    with pytest.raises(AgreedError, match=why) as refusal:
        run(comm, data[0], folder / "f.h5", **options)
    assert refusal.value.exit_code == 2 and "\n" not in str(refusal.value)
    assert not (folder / "f.h5").exists()


def test_the_refused_sizes_are_those_of_the_kernels():
    from dml_hpc.commands.mf_options import MOST_GPU_K
    from dml_hpc.kernels.cuda import normal_equations, rating_sgd

    assert MOST_GPU_K == {"sgd": rating_sgd.MOST_WIDTH, "als": normal_equations.MOST_WIDTH}


def test_reproducible_als_has_the_same_digest_on_any_number_of_ranks(comm, folder, data):
    own = comm.Split(comm.rank)
    found = [run(ranks, data[0], folder / f"{name}.h5", algorithm="als", reproducible=True)
             for ranks, name in ((comm, "all"), (own, f"alone{comm.rank}"))]
    own.Free()
    assert found[0]["weights_digest"] == found[1]["weights_digest"]


@pytest.mark.skipif(ON_A_GPU, reason="there is a GPU here")
def test_without_a_gpu_nothing_is_done(comm, folder):
    if comm.rank == 0:
        import_ratings(folder, "train", TRAIN, (4, 6))
    comm.Barrier()
    with pytest.raises(AgreedError, match="--device cuda") as refusal:
        run(comm, folder / "train", folder / "f.h5")
    assert refusal.value.exit_code == 2 and "\n" not in str(refusal.value)
    assert not (folder / "f.h5").exists()
