"""Any number of ranks and any reducer train the same model; the spare ranks of a small data set take part."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from data_support import write_dataset

from dml_hpc.comm import REDUCERS
from dml_hpc.commands import evaluate, predict, train
from dml_hpc.console import Console
from dml_hpc.data.csr import Csr, sparse
from dml_hpc.data.shares import DealtShare
from dml_hpc.errors import AgreedError
from dml_hpc.mpi import on_root
from dml_hpc.store.model import read_model

pytestmark = pytest.mark.mpi

OPTIONS = {"algorithm": "sync", "allreduce": "ring", "batch_size": 64, "epochs": 3, "l2": 1e-4, "seed": 3}


@pytest.fixture
def folder(comm, tmp_path_factory):
    """One folder for all ranks."""
    return Path(on_root(comm, lambda: str(tmp_path_factory.mktemp("shared"))))


def classes(rows, features=5, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((rows, features)) * 3 + 1
    return X, (X[:, 0] - X[:, 1] + rng.standard_normal(rows) > 0).astype(float)


def fit(comm, data, output, **changes):
    data = [data] if isinstance(data, Path) else data
    return train.run(comm, Console(rank=1), data, output, **{**OPTIONS, **changes})


def make(comm, folder, name, X, y, shard_rows):
    with_root = on_root(comm, lambda: str(write_dataset(folder / name, X, y, shard_rows)))
    return Path(with_root)


@pytest.mark.parametrize("objective", ["logistic", "linear"])
@pytest.mark.parametrize("batch_size", [64, 1000, "full"])
def test_all_ranks_and_reducers_give_the_model_of_one_rank(comm, folder, objective, batch_size):
    X, y = classes(2000)
    data = make(comm, folder, "data", X, y, [700, 0, 1300])
    alone = comm.Split(comm.rank)
    settings = {"objective": objective, "batch_size": batch_size, "step_size": 0.05}
    fit(alone, data, folder / f"alone-{comm.rank}.h5", **settings)
    alone.Free()
    expected = read_model(folder / f"alone-{comm.rank}.h5").weights
    for reducer in REDUCERS:
        result = fit(comm, data, folder / f"{reducer}.h5", allreduce=reducer, **settings)
        comm.Barrier()
        model = read_model(folder / f"{reducer}.h5")
        assert model.digest == result["weights_digest"]
        error = np.linalg.norm(model.weights - expected) / np.linalg.norm(expected)
        assert error <= 1e-5


@pytest.mark.parametrize("objective", ["logistic", "linear"])
@pytest.mark.parametrize("batch_size", [64, "full"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_reproducible_model_has_the_bits_of_one_rank(comm, folder, objective, batch_size, dtype):
    X, y = classes(2000)
    X[:, 2] *= 1e4  # a badly scaled feature
    data = make(comm, folder, "data", X, y * (1e3 if objective == "linear" else 1), [700, 0, 1300])
    alone = comm.Split(comm.rank)
    settings = {"objective": objective, "batch_size": batch_size, "step_size": 0.05, "dtype": dtype}
    first = fit(alone, data, folder / f"alone-{comm.rank}.h5", reproducible=True, **settings)
    plain = fit(alone, data, folder / f"plain-{comm.rank}.h5", **settings)
    alone.Free()
    assert first["loss"] == pytest.approx(plain["loss"], rel=1e-5)
    np.testing.assert_allclose(first["losses"], plain["losses"], rtol=1e-4)
    for reducer in REDUCERS:
        result = fit(comm, data, folder / f"{reducer}.h5", allreduce=reducer, reproducible=True, **settings)
        assert result["weights_digest"] == first["weights_digest"], reducer


def test_a_reproducible_run_that_diverges_says_so(comm, folder):
    X, y = classes(500)
    data = make(comm, folder, "data", X, y * 10, [500])
    with pytest.raises(AgreedError, match=r"the loss became nan at step .*too large"):
        fit(comm, data, folder / "m.h5", objective="linear", reproducible=True, step_size=1e4, epochs=50)
    assert not (folder / "m.h5").exists()


def test_averaging_cannot_be_reproducible(comm, folder):
    data = make(comm, folder, "data", *classes(20), [20])
    with pytest.raises(AgreedError, match="by its nature") as refusal:
        fit(comm, data, folder / "m.h5", algorithm="average", batch_size=None, reproducible=True)
    assert refusal.value.exit_code == 2


@pytest.mark.parametrize(("options", "message"), [
    ({"compression": "topk", "dtype": "float64"}, "--compression makes up for its losses"),
    ({"compression": "bfloat16", "reproducible": True}, "--compression makes up for its losses"),
    ({"compression": "powersgd", "algorithm": "average", "batch_size": None}, "--compression makes up for its losses"),
    ({"compression_ratio": 0.1}, "--compression-ratio is for --compression topk"),
    ({"compression": "topk", "compression_rank": 2}, "--compression-rank is for --compression powersgd"),
    ({"allreduce": "ring", "tuning": Path("t.json")}, "--tuning keeps what --allreduce auto measures"),
    ({"allreduce": "rnig"}, "unknown --allreduce 'rnig'"),
])
def test_options_that_do_not_go_together_are_refused(comm, folder, options, message):
    data = make(comm, folder, "data", *classes(20), [20])
    with pytest.raises(AgreedError, match=message) as refusal:
        fit(comm, data, folder / "m.h5", **options)
    assert refusal.value.exit_code == 2
    assert not (folder / "m.h5").exists()


@pytest.mark.parametrize("compression", ["float16", "bfloat16", "topk", "powersgd"])
def test_compressed_training_reaches_the_same_loss_on_all_ranks(comm, folder, compression):
    X, y = classes(3000, features=40, seed=11)
    data = make(comm, folder, "data", X, y, [1000, 2000])
    plain = fit(comm, data, folder / "plain.h5", epochs=20)
    for reducer in REDUCERS:
        result = fit(comm, data, folder / f"{reducer}.h5", epochs=20, allreduce=reducer, compression=compression)
        assert result["loss"] == pytest.approx(plain["loss"], rel=0.005), reducer


def test_more_ranks_than_rows(comm, folder):
    data = make(comm, folder, "data", np.array([[0.0], [1.0]]), np.array([0.0, 1.0]), [0, 2, 0])
    for algorithm in ("sync", "average"):
        result = fit(comm, data, folder / f"{algorithm}.h5", algorithm=algorithm, batch_size=None, epochs=2)
        assert result["examples"] == 4
        assert sum(rank["rows"] for rank in result["per_rank"]) == 2
        assert np.isfinite(result["loss"])


def test_full_batch_training_reaches_scikit_learns_optimum(comm, folder):
    from sklearn.linear_model import LogisticRegression

    X, y = classes(1500, seed=4)
    data = make(comm, folder, "data", X, y, [1500])
    result = fit(comm, data, folder / "m.h5", batch_size="full", epochs=2000, step_size=1.0, schedule="constant",
                 l2=1e-2, dtype="float64")
    Z = (X.astype(np.float32).astype(float) - X.mean(0)) / X.std(0)
    reference = LogisticRegression(C=1 / (1e-2 * len(y)), tol=1e-12, max_iter=10000).fit(Z, y)
    comm.Barrier()
    weights = read_model(folder / "m.h5").weights
    np.testing.assert_allclose(weights[:-1] * X.std(0), reference.coef_[0], rtol=1e-4)
    np.testing.assert_allclose(weights[-1] + weights[:-1] @ X.mean(0), reference.intercept_[0], rtol=1e-4, atol=1e-6)
    assert result["epochs"] == 2000


def test_averaging_is_the_mean_of_what_the_ranks_learnt_alone(comm, folder):
    X, y = classes(1200, seed=5)
    data = make(comm, folder, "data", X, y, [500, 700])
    result = fit(comm, data, folder / "m.h5", algorithm="average", batch_size=None, epochs=4)
    comm.Barrier()
    m, s = X.astype("f4").astype(float).mean(0), X.astype("f4").astype(float).std(0)
    Z = (X.astype("f4") - m) / s
    models, met = [], np.zeros(4)
    for rank in range(comm.size):
        share = DealtShare(1200, rank, comm.size, OPTIONS["seed"])
        w, b = np.zeros(5), 0.0
        for epoch in range(4):
            for row in in_order_of_shards(share.take(epoch, 0).copy(), 500, epoch):  # one chunk holds them all
                score = Z[row] @ w + b
                met[epoch] += np.logaddexp(0, score) - y[row] * score
                c = 1 / (1 + np.exp(-score)) - y[row]
                w = (1 - 0.002 * 1e-4) * w - 0.002 * c * Z[row]
                b -= 0.002 * c
        models.append(np.r_[w, b])
    w = np.mean(models, axis=0)
    raw = np.r_[w[:-1] / s, w[-1] - w[:-1] @ (m / s)]
    np.testing.assert_allclose(read_model(folder / "m.h5").weights, raw, rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(result["losses"], met / 1200, rtol=1e-4)
    assert result["time_split"].keys() == {"read", "compute", "communicate", "wait"}


def in_order_of_shards(rows, second, turn):
    """Return the rows of the one piece of a chunk as they are visited: shard after shard, another first every time."""
    parts = [part for part in (rows[rows < second], rows[rows >= second]) if len(part)]
    turn %= max(len(parts), 1)
    return np.concatenate(parts[turn:] + parts[:turn])


def test_averaging_learns_as_well_from_rows_sorted_by_label(comm, folder):
    X, y = classes(4000, seed=8)
    order = np.argsort(y, kind="stable")
    settings = {"algorithm": "average", "batch_size": None, "epochs": 5}
    mixed = fit(comm, make(comm, folder, "mixed", X, y, [1500, 2500]), folder / "a.h5", **settings)
    data = make(comm, folder, "sorted", X[order], y[order], [1000, 1000, 2000])
    by_label = fit(comm, data, folder / "b.h5", **settings)
    assert by_label["loss"] == pytest.approx(mixed["loss"], rel=0.02)


@pytest.mark.parametrize(("objective", "bad", "says"), [
    ("logistic", 7.0, "is 7, which is none of the classes 0 and 1"), ("linear", np.nan, "is nan")])
def test_a_label_that_cannot_be_learnt_is_named(comm, folder, objective, bad, says):
    X, y = classes(300)
    data = make(comm, folder, "data", X, y, [100, 200])
    if comm.rank == 0:
        with h5py.File(data / "part-00001.h5", "r+") as file:
            file["y"][5] = bad
    comm.Barrier()
    with pytest.raises(AgreedError, match=rf"part-00001.h5: the label of row 5 {says}"):
        fit(comm, data, folder / "m.h5", objective=objective)
    assert not (folder / "m.h5").exists()


def test_a_model_that_is_not_finite_is_not_saved(comm, folder):
    data = make(comm, folder, "data", *classes(100), [100])
    with pytest.raises(AgreedError, match="the model is not saved"):
        fit(comm, data, folder / "m.h5", steps=1, step_size=1e39)
    assert not (folder / "m.h5").exists()


def test_features_that_are_not_finite_are_named_when_scored(comm, folder):
    X, y = classes(300)
    data = make(comm, folder, "data", X, y, [300])
    fit(comm, data, folder / "m.h5")
    comm.Barrier()
    if comm.rank == 0:
        with h5py.File(data / "part-00000.h5", "r+") as file:
            file["X"][200, 1] = np.nan
    comm.Barrier()
    with pytest.raises(AgreedError, match="the score of row 200 is nan"):
        evaluate.run(comm, Console(rank=1), folder / "m.h5", [data], None, None)


def test_a_diverging_run_stops_on_all_ranks_together_and_saves_nothing(comm, folder):
    X, y = classes(400)
    data = make(comm, folder, "data", X, y, [400])
    with pytest.raises(AgreedError, match=r"the loss became .* at step \d+"):
        fit(comm, data, folder / "m.h5", objective="linear", step_size=100.0, epochs=50)
    comm.Barrier()
    assert not (folder / "m.h5").exists()


def test_evaluation_and_prediction_do_not_depend_on_the_number_of_ranks(comm, folder):
    from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

    X, y = classes(700, seed=6)
    X[:300] = X[0]  # ties in the scores
    data = make(comm, folder, "data", X, y, [100, 0, 600])
    fit(comm, data, folder / "m.h5")
    comm.Barrier()
    result = evaluate.run(comm, Console(rank=1), folder / "m.h5", [data], None, None)
    predicted = predict.run(comm, Console(rank=1), folder / "m.h5", [data], None, None, folder / "p.h5",
                            overwrite=False)
    comm.Barrier()
    with h5py.File(folder / "p.h5", "r") as file:
        score, probability, prediction = file["score"][()], file["probability"][()], file["prediction"][()]
    model = read_model(folder / "m.h5")
    np.testing.assert_allclose(score, X.astype(np.float32) @ model.weights[:-1] + model.weights[-1], atol=1e-4)
    assert result["auc"] == pytest.approx(roc_auc_score(y, score), abs=1e-12)
    assert result["accuracy"] == pytest.approx(accuracy_score(y, prediction))
    assert result["loss"] == pytest.approx(log_loss(y, probability.astype(float)), rel=1e-5)
    assert predicted["rows"] == 700
    assert json.dumps(result)


@pytest.mark.parametrize(("changes", "says"), [
    ({"algorithm": "average", "momentum": 0.5}, "has no use for --momentum"),
    ({"algorithm": "average", "batch_size": "full"}, "learns from few rows at a time"),
])
def test_what_an_algorithm_cannot_follow_is_refused_on_every_rank(comm, folder, changes, says):
    data = make(comm, folder, "data", *classes(10), [10])
    with pytest.raises(AgreedError, match=says):
        fit(comm, data, folder / "m.h5", **{"batch_size": None, **changes})


def test_a_fault_that_only_rank_0_sees_ends_every_rank(comm, folder):
    data = make(comm, folder, "data", *classes(10), [10])
    fit(comm, data, folder / "m.h5", batch_size=None)
    comm.Barrier()
    before = (folder / "m.h5").read_bytes()
    comm.Barrier()
    with pytest.raises(AgreedError, match="--overwrite") as caught:
        fit(comm, data, folder / "m.h5", batch_size=None)
    assert (caught.value.rank, caught.value.exit_code) == (0, 2)
    assert (folder / "m.h5").read_bytes() == before


def test_rows_that_exceed_the_memory_limit_are_streamed_and_give_the_same_model(comm, folder, room):
    X, y = classes(80_000 * comm.size, 64)
    data = make(comm, folder, "data", X, y, [60_000 * comm.size, 0, 20_000 * comm.size])
    packed = Path(on_root(comm, lambda: str(write_dataset(folder / "packed", X, y, [len(y)], compression="gzip"))))
    for batch_size in (1024, "full"):
        settings = {"reproducible": True, "batch_size": batch_size, "epochs": 2}
        free = fit(comm, data, folder / f"free-{batch_size}.h5", **settings)
        assert {split["rows_are"] for split in free["per_rank"]} == {"mapped"}
        limit = room(14)
        limited = fit(comm, data, folder / f"limited-{batch_size}.h5", **settings, memory_limit=limit)
        assert {split["rows_are"] for split in limited["per_rank"]} == {"streamed"}
        assert limited["weights_digest"] == free["weights_digest"]
        kept = fit(comm, packed, folder / f"kept-{batch_size}.h5", **settings)
        assert {split["rows_are"] for split in kept["per_rank"]} == {"memory"}
        if batch_size == "full":  # in chunks, rows have another order, which a full batch has not
            assert kept["weights_digest"] == free["weights_digest"]


@pytest.mark.parametrize("allreduce", REDUCERS)
def test_iterates_of_a_model_that_one_rank_owns_are_averaged(comm, folder, allreduce):
    """Of a few numbers, one rank of a node owns all."""
    data = make(comm, folder, "data", *classes(400), [100, 300])
    alone = comm.Split(comm.rank)
    fit(alone, data, folder / f"alone-{comm.rank}.h5", average_iterates=True)
    alone.Free()
    fit(comm, data, folder / "m.h5", average_iterates=True, allreduce=allreduce)
    comm.Barrier()
    expected = read_model(folder / f"alone-{comm.rank}.h5").weights
    np.testing.assert_allclose(read_model(folder / "m.h5").weights, expected, rtol=1e-4, atol=1e-6)


def test_a_limit_that_nothing_fits_is_one_clear_line(comm, folder, room):
    X, y = classes(4000)
    data = make(comm, folder, "data", X, y, [4000])
    with pytest.raises(AgreedError, match=r"--memory-limit is below the .* MiB that a rank takes"):
        fit(comm, data, folder / "m.h5", memory_limit=1 << 20)
    big = make(comm, folder, "big", *classes(800_000), [800_000])
    with pytest.raises(AgreedError, match="--replicas draws rows from anywhere"):
        fit(comm, big, folder / "m.h5", algorithm="average", batch_size=None, replicas=True,
            memory_limit=room(8))
    assert not (folder / "m.h5").exists()


def test_files_that_were_never_imported_train_like_imported_ones(comm, folder):
    rng = np.random.default_rng(0)
    X = rng.integers(-100, 100, (3000, 5)).astype(np.float64)
    y = (X[:, 0] - X[:, 1] > rng.normal(scale=40, size=3000)).astype(np.int64)
    data = make(comm, folder, "data", X, y, [1000, 2000])

    def write():
        kinds = [{"dtype": ">f8"}, {"dtype": "i2", "chunks": (64, 5), "compression": "gzip"}, {"dtype": "f2"}]
        for number, kind in enumerate(kinds):
            with h5py.File(folder / f"own-{number}.h5", "w") as file:
                file.create_dataset("run/features", data=X[1000 * number:1000 * number + 1000], **kind)
                file.create_dataset("run/class", data=y[1000 * number:1000 * number + 1000].astype(">i4"))
        return [str(folder / f"own-{number}.h5") for number in range(len(kinds))]

    files = [Path(name) for name in on_root(comm, write)]
    settings = {"batch_size": "full", "epochs": 5, "reproducible": True}
    ours = fit(comm, data, folder / "ours.h5", **settings)
    theirs = fit(comm, files, folder / "theirs.h5", **settings, x_key="run/features", y_key="run/class")
    assert theirs["weights_digest"] == ours["weights_digest"] and theirs["rows"] == 3000
    comm.Barrier()
    scores = evaluate.run(comm, Console(rank=1), folder / "theirs.h5", files, "run/features", "run/class")
    assert scores["loss"] == pytest.approx(evaluate.run(comm, Console(rank=1), folder / "ours.h5", [data], None,
                                                        None)["loss"], rel=1e-5)
    with pytest.raises(AgreedError, match="has no dataset y"):
        fit(comm, files, folder / "no.h5", x_key="run/features")
    with pytest.raises(AgreedError, match="is a data set with a manifest"):
        fit(comm, data, folder / "no.h5", x_key="X")


def test_some_shards_of_a_data_set_are_a_data_set(comm, folder):
    X, y = classes(3000)
    make(comm, folder, "data", X, y, [1000, 500, 1500])
    part = make(comm, folder, "part", np.vstack([X[:1000], X[1500:]]), np.append(y[:1000], y[1500:]), [2500])
    files = [folder / "data" / f"part-0000{number}.h5" for number in (0, 2)]
    settings = {"batch_size": "full", "reproducible": True, "scale": False}
    some = fit(comm, files, folder / "some.h5", **settings)
    assert some["weights_digest"] == fit(comm, part, folder / "part.h5", **settings)["weights_digest"]
    assert read_model(folder / "some.h5").feature_names == [f"x{j}" for j in range(5)]


@pytest.mark.parametrize("reproducible", [False, True])
def test_sparse_rows_give_the_model_of_dense_ones(comm, folder, reproducible):
    rng = np.random.default_rng(4)
    X = np.where(rng.random((2000, 40)) < 0.1, rng.integers(1, 5, (2000, 40)), 0).astype(float)
    y = (X @ rng.standard_normal(40) > 0).astype(float)
    dense = make(comm, folder, "dense", X, y, [900, 0, 1100])
    thin = make(comm, folder, "sparse", sparse(X), y, [900, 0, 1100])
    settings = {"batch_size": "full", "epochs": 20, "step_size": 1.0, "dtype": "float64", "reproducible": reproducible}
    expected = fit(comm, dense, folder / "dense.h5", **settings, scale=False)
    got = fit(comm, thin, folder / "sparse.h5", **settings, scale=False)
    assert got["loss"] == pytest.approx(expected["loss"], rel=1e-9)
    comm.Barrier()
    np.testing.assert_allclose(read_model(folder / "sparse.h5").weights, read_model(folder / "dense.h5").weights,
                               rtol=1e-6, atol=1e-9)
    one, other = (evaluate.run(comm, Console(rank=1), folder / "sparse.h5", [data], None, None)
                  for data in (dense, thin))
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-9)
    # Scaled, features lie in −1 … 1: the model is that of rows divided by their largest magnitudes.
    scaled = fit(comm, thin, folder / "scaled.h5", **settings)
    divided = make(comm, folder, "quotients", X / X.max(axis=0), y, [2000])
    expected = fit(comm, divided, folder / "divided.h5", **settings, scale=False)
    assert scaled["loss"] == pytest.approx(expected["loss"], rel=1e-6)


def test_sparse_rows_that_exceed_the_memory_limit_are_streamed(comm, folder, room):
    rng = np.random.default_rng(5)
    rows = 80_000 * comm.size
    entries = rng.integers(0, 50, (rows, 40)) + np.arange(40) * 50
    X = Csr(np.ones(rows * 40, "f4"), entries.reshape(-1).astype("i4"), np.arange(rows + 1) * 40, 2000)
    data = make(comm, folder, "data", X, rng.integers(0, 2, rows), [rows // 3, rows - rows // 3])
    settings = {"epochs": 1, "batch_size": 4096, "reproducible": True, "allreduce": "mpi"}
    free = fit(comm, data, folder / "free.h5", **settings)
    limited = fit(comm, data, folder / "limited.h5", **settings, memory_limit=room(18))
    assert {split["rows_are"] for split in limited["per_rank"]} == {"streamed"}
    assert limited["weights_digest"] == free["weights_digest"]
    averaged = fit(comm, data, folder / "average.h5", algorithm="average", batch_size=None, epochs=1,
                   memory_limit=room(18))
    assert {split["rows_are"] for split in averaged["per_rank"]} == {"streamed"}
