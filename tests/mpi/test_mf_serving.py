"""What is made of factors: recommendations, neighbours, measures, and files of them."""

from __future__ import annotations

import csv
import errno
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from ratings_support import import_ratings, low_rank

from dml_hpc.commands import mf_evaluate, mf_fold_in, mf_recommend, mf_similar
from dml_hpc.console import Console
from dml_hpc.data.ratings.ids import Ids
from dml_hpc.errors import AgreedError
from dml_hpc.store import ranked_table
from dml_hpc.store.rating_factors import Piece, RatingFactors, read_rating_factors, write_rating_factors

pytestmark = pytest.mark.mpi

QUIET = Console(rank=1)
USERS, ITEMS, K = 90, 60, 3
GIVEN = low_rank(USERS, ITEMS)
TRAIN, TEST = (tuple(part[cut] for part in GIVEN) for cut in (slice(400, None), slice(0, 400)))


@pytest.fixture
def made(comm, folder) -> Path:
    """A folder with ratings ``train`` and ``test`` (with a user and an item of its own) and whole numbers ``f.h5``."""
    rng = np.random.default_rng(3)
    arrays = {f"{side}_{name}": rng.integers(-3, 4, (count, K) if name == "factors" else count).astype(np.float32)
              for side, count in (("user", USERS), ("item", ITEMS)) for name in ("factors", "biases")}
    users, items = np.array([f"u{user}" for user in rng.permutation(USERS)], object), rng.permutation(ITEMS)
    write_rating_factors(comm, folder / "f.h5", [Piece(name, 0, array) for name, array in arrays.items()]
                         if comm.rank == 0 else [], Ids(users), Ids(items.astype(np.int64)), 3.0, {"l2": 0.05})
    if comm.rank == 0:
        import_ratings(folder, "train", TRAIN, (4, 6))
        import_ratings(folder, "test", tuple(np.append(part, more).astype(part.dtype) for part, more in zip(
            TEST, ([777, 5], [4, 888], [3.0, 4.0]), strict=True)), (3, 2))
    comm.Barrier()
    return folder


def scores_of(found: RatingFactors) -> np.ndarray:
    assert found.user_biases is not None and found.item_biases is not None
    return (found.mean + found.user_biases[:, None].astype(float) + found.item_biases
            + found.user_factors.astype(float) @ found.item_factors.T.astype(float))


def seen_of(found: RatingFactors, given: tuple[np.ndarray, ...]) -> np.ndarray:
    """Return who (users, items) has rated what, by the numbers of the factors."""
    seen = np.zeros((len(found.users), len(found.items)), bool)
    seen[found.users.numbers([f"u{user}" for user in given[0]]), found.items.numbers(given[1])] = True
    return seen


def wanted_lines(found: RatingFactors, scores: np.ndarray, users: list[int], n: int) -> list[tuple]:
    """Return the lines of the table, made by sorting; −∞ is left out."""
    return [(found.users.values[user], int(found.items.values[item]), place + 1, scores[user, item]) for user in users
            for place, item in enumerate(np.argsort(-scores[user], kind="stable")[:n])
            if scores[user, item] > -np.inf]


def lines_of(path: Path) -> list[tuple]:
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return [(row["user"], int(row["item"]), int(row["rank"]), float(row["score"]))
                    for row in csv.DictReader(file)]
    if path.suffix == ".parquet":
        import pyarrow.parquet

        columns = pyarrow.parquet.read_table(path).to_pydict()
    else:
        with h5py.File(path) as file:
            columns = {name: (file[name].asstr()[()] if file[name].dtype == object else file[name][()]).tolist()
                       for name in file}
    return list(zip(*(columns[name] for name in mf_recommend.NAMES), strict=True))


def recommend(comm, folder: Path, output: str | None, **options):
    return mf_recommend.run(comm, QUIET, folder / "f.h5", output=None if output is None else folder / output, **options)


def test_recommendations_are_those_of_a_full_sort_in_each_kind_of_file(comm, made):
    found = read_rating_factors(made / "f.h5")
    scores = np.where(seen_of(found, TRAIN), -np.inf, scores_of(found))
    wanted = wanted_lines(found, scores, list(range(USERS)), 40)
    for name in ("r.csv", "r.parquet", "r.h5"):
        told = recommend(comm, made, name, seen=made / "train", n=40)
        assert lines_of(made / name) == wanted and told["lines"] == len(wanted)
        assert told["users_with_fewer"] == sum(np.isfinite(row).sum() < 40 for row in scores)
    own = comm.Split(comm.rank)
    mf_recommend.run(own, QUIET, made / "f.h5", seen=made / "train", n=40, output=made / f"one{comm.rank}.csv")
    assert (made / f"one{comm.rank}.csv").read_bytes() == (made / "r.csv").read_bytes()
    own.Free()
    comm.Barrier()
    assert not list(made.glob(".dml-hpc-*"))


def test_recommendations_for_some_of_some(comm, made, capsys):
    found = read_rating_factors(made / "f.h5")
    scores = scores_of(found)
    u, v = found.users.numbers(["u5", "u80"]).tolist()
    told = recommend(comm, made, None, users=("u5", "u80", "u5"), n=2)
    assert [tuple(line.values()) for line in told["recommendations"]] == wanted_lines(found, scores, [u, v], 2)
    if comm.rank == 0:
        (made / "some.txt").write_text("3\n7\n\n11\n")
    comm.Barrier()
    told = recommend(comm, made, None, users=("u5",), items=(f"@{made / 'some.txt'}", "0"), exclude=("7",))
    allowed = np.isin(found.items.values, [3, 11, 0])
    assert [tuple(line.values()) for line in told["recommendations"]] == wanted_lines(
        found, np.where(allowed, scores, -np.inf), [u], 10)
    told = recommend(comm, made, "t.csv", users_of=made / "test", n=1)
    tested = np.unique(found.users.numbers([f"u{user}" for user in TEST[0]])).tolist()
    assert lines_of(made / "t.csv") == wanted_lines(found, scores, tested, 1) and told["unknown_users"] == 1


def test_what_is_not_known_or_would_be_too_much_is_refused(comm, made):
    for options, words in (({"users": ("u5", "bob", "anna")}, "knows no user 'bob', 'anna'; .* such as 'u"),
                           ({"items": ("x",), "users": ("u5",)}, "knows no item 'x'"),
                           ({}, "recommendations for 90 users .* give -o FILE.csv"),
                           ({"output": "r.txt"}, "end it in .csv, .parquet or .h5"),
                           ({"output": "f.h5", "overwrite": True}, "what this run reads"),
                           ({"users": ("u5",), "users_of": made / "test"}, "leave one out"),
                           ({"users": (f"@{made / 'nowhere'}",)}, "nowhere: No such file"),
                           ({"users": ("u5",), "items": ("3",), "exclude": ("3",)}, "leaves no item")):
        with pytest.raises(AgreedError, match=words) as error:
            recommend(comm, made, **{"output": None, **options})
        assert error.value.exit_code == 2
    for ids, everything, words in (((), False, "name items by their ids"), (("3",), True, "'3' given"),
                                   ((), True, "give -o FILE.csv"), (("999",), False, "knows no item '999'")):
        with pytest.raises(AgreedError, match=words):
            mf_similar.run(comm, QUIET, made / "f.h5", ids, everything=everything)
    assert sorted(path.name for path in made.iterdir()) == ["f.h5", "test", "test.csv", "train", "train.csv"]


def test_neighbours_have_the_largest_cosine(comm, made):
    found = read_rating_factors(made / "f.h5")
    for users, ids, rows in ((False, found.items, found.item_factors), (True, found.users, found.user_factors)):
        lengths = np.linalg.norm(rows.astype(float), axis=1)
        unit = rows / np.where(lengths > 0, lengths, np.inf)[:, None]
        cosine = unit @ unit.T
        np.fill_diagonal(cosine, -np.inf)
        name = str(ids.values[4])
        told = mf_similar.run(comm, QUIET, made / "f.h5", (name,), n=7, users=users)["similar"]
        np.testing.assert_allclose([one["similarity"] for one in told], np.sort(cosine[4])[::-1][:7], atol=1e-6)
        got = ids.numbers([one["neighbour"] for one in told])
        np.testing.assert_allclose(cosine[4, got], [one["similarity"] for one in told], atol=1e-6)
        mf_similar.run(comm, QUIET, made / "f.h5", everything=True, n=7, users=users, output=made / f"{users}.csv")
        with (made / f"{users}.csv").open() as file:
            table = list(csv.reader(file))
        assert len(table) == 1 + 7 * len(rows) and table[0][0] == ("user" if users else "item")
        assert [row[1] for row in table if row[0] == name] == [str(one["neighbour"]) for one in told]


@pytest.mark.parametrize("relevant", [None, 3.2])
def test_measures_are_those_of_lists_made_by_sorting(comm, made, relevant):
    found = read_rating_factors(made / "f.h5")
    scores = np.where(seen_of(found, TRAIN), -np.inf, scores_of(found))
    told = mf_evaluate.run(comm, QUIET, made / "f.h5", made / "test", at=5, seen=made / "train", relevant=relevant)
    liked: dict[int, set[int]] = {}
    for user, item, rating in [*zip(*TEST, strict=True), (5, 888, 4.0)]:
        if relevant is None or rating >= relevant:
            liked.setdefault(int(found.users.numbers([f"u{user}"])[0]), set()).add(
                int(found.items.numbers([int(item)])[0]) if item != 888 else -1)
    measures = []
    for user, own in liked.items():
        hits = [item in own for item in np.argsort(-scores[user], kind="stable")[:5].tolist()]
        gain = [1 / np.log2(place + 2) for place in range(5)]
        measures.append([sum(hits) / 5, sum(hits) / len(own), np.dot(hits, gain) / sum(gain[:len(own)]),
                         sum(sum(hits[:place + 1]) / (place + 1) for place in range(5) if hits[place])
                         / min(5, len(own))])
    assert [told[name] for name in ("precision", "recall", "ndcg", "map")] == pytest.approx(
        np.mean(measures, axis=0).tolist())
    assert told["users_evaluated"] == len(liked) and told["at"] == 5 and told["rmse"] > 0
    own = comm.Split(comm.rank)
    alone = mf_evaluate.run(own, QUIET, made / "f.h5", made / "test", at=5, seen=made / "train", relevant=relevant)
    own.Free()
    for name in ("precision", "recall", "ndcg", "map", "rmse", "mae"):
        assert told[name] == alone[name]  # the same bits
    with pytest.raises(AgreedError, match="give a lower --relevant than 99"):
        mf_evaluate.run(comm, QUIET, made / "f.h5", made / "test", at=5, relevant=99)
    with pytest.raises(AgreedError, match="say with --at"):
        mf_evaluate.run(comm, QUIET, made / "f.h5", made / "test", seen=made / "train")


def test_factors_that_cannot_be_added_to_are_refused(comm, made):
    with pytest.raises(AgreedError, match=r"does not say with which scale .* run mf again"):
        mf_fold_in.run(comm, QUIET, made / "f.h5", made / "test", made / "g.h5")
    assert not (made / "g.h5").exists()


def test_a_full_disk_leaves_nothing_behind(comm, made, monkeypatch):
    def full(self, file, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for kind, name in ((ranked_table.CsvTable, "r.csv"), (ranked_table.Hdf5Table, "r.h5")):
        monkeypatch.setattr(kind, "append", full)
        with pytest.raises(AgreedError, match=rf"cannot write .*{name}: No space left"):
            recommend(comm, made, name)
        assert not list(made.glob("*r.*")) and not list(made.glob(".dml-hpc-*"))
