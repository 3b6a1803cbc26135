"""Ratings imported from tables: each comes back under its own ids, in even blocks, or is refused by its row."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from rated_support import all_of, write_rated

from dml_hpc.cli import main
from dml_hpc.data.ratings.cutting import numbering
from dml_hpc.data.ratings.holding import held_share
from dml_hpc.data.ratings.ids import FILE, Ids
from dml_hpc.data.ratings.opened import MemoryRatings, StoredRatings, open_ratings
from dml_hpc.data.ratings.order import APART, TILE_BITS
from dml_hpc.data.verification.verify import verify
from dml_hpc.errors import AgreedError, UserError
from dml_hpc.mpi import Alone

pa = pytest.importorskip("pyarrow")
RNG = np.random.default_rng(4)
PAIRS = RNG.permutation(60 * 45)[:900]
USERS, ITEMS = PAIRS // 45, PAIRS % 45
GIVEN = RNG.integers(1, 11, 900) / 2
TIMES = RNG.permutation(900) - 100
COLUMNS = ["--user", "who", "--item", "what", "--rating", "stars"]


def write_csv(path: Path, rows: list[str], header: str = "who,what,stars") -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def bring(*words: object) -> int:
    return main(["data", "import", *map(str, words)])


def opened(folder: Path) -> StoredRatings:
    return open_ratings(Alone(), folder)


def as_dict(folder: Path) -> dict[tuple[Any, Any], float]:
    users, items, ratings = all_of(opened(folder))
    found = {(user, item): rating for user, item, rating in zip(users.tolist(), items.tolist(), ratings.tolist(),
                                                                 strict=True)}
    assert len(found) == len(ratings)
    return found


@pytest.mark.parametrize("form", ["csv", "parquet"])
@pytest.mark.parametrize("text", [False, True])
def test_every_rating_comes_back_under_its_own_ids(tmp_path: Path, form: str, text: bool) -> None:
    users = [f"né-{user}" for user in USERS.tolist()] if text else (USERS * 10**15 - 3).tolist()
    if form == "csv":
        path = write_csv(tmp_path / "r.csv", [f"{u},{i},{r},{t},{w}" for u, i, r, t, w in
                                              zip(users, ITEMS, GIVEN, TIMES, GIVEN * 2, strict=True)],
                         "who,what,stars,at,w")
    else:
        path = tmp_path / "r.parquet"
        table = pa.table({"who": users, "what": ITEMS.astype(np.int16), "stars": GIVEN, "at": TIMES, "w": GIVEN * 2})
        pa.parquet.write_table(table, path, row_group_size=100)
    out = tmp_path / "out"
    assert bring(path, "-o", out, *COLUMNS, "--time", "at", "--weight", "w", "--grid", "4x3", "--shards", 3) == 0
    assert as_dict(out) == dict(zip(zip(users, ITEMS.tolist(), strict=True), GIVEN.tolist(), strict=True))
    ratings = opened(out)
    grid = ratings.grid
    assert grid.shape == (4, 3) and (grid.users, grid.items, grid.ratings) == (60, 45, 900)
    assert (grid.mean, grid.lowest, grid.highest) == (pytest.approx(GIVEN.mean()), GIVEN.min(), GIVEN.max())
    when = dict(zip(zip(users, ITEMS.tolist(), strict=True), TIMES.tolist(), strict=True))
    for u in range(4):
        for i in range(3):
            block, times = ratings.block(u, i), ratings.times(u, i)
            assert [part.dtype for part in block[:3]] == [np.int32, np.int32, np.float32]
            np.testing.assert_array_equal(block.weights, block.ratings * 2)
            ids = zip(ratings.user_ids(block.users + grid.user_bounds[u]).tolist(),
                      ratings.item_ids(block.items + grid.item_bounds[i]).tolist(), strict=True)
            assert [when[pair] for pair in ids] == times.tolist()
    assert ratings.user_numbers([users[0], "nobody"]).tolist() == [
        int(np.flatnonzero(ratings.user_ids() == users[0])[0]), -1]
    assert verify(Alone(), [out]).problems == []


def test_dates_packed_files_and_no_ratings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import gzip

    rows = ["a,1,1970-01-01 00:01:00", "b,2,1969-12-31 23:59:58"]
    with gzip.open(tmp_path / "r.csv.gz", "wt") as file:
        file.write("\n".join(["who,what,at", *rows]))
    assert bring(tmp_path / "*.gz", "-o", tmp_path / "o", *COLUMNS[:4], "--time", "at", "--grid", "1x1") == 0
    ratings = opened(tmp_path / "o")
    assert as_dict(tmp_path / "o") == {("a", 1): 1.0, ("b", 2): 1.0}
    assert sorted(ratings.times(0, 0).tolist()) == [-2, 60]


def test_one_of_several_texts_is_a_whole_number() -> None:
    known = Ids(np.array([7, 10]))
    assert known.numbers(np.array(["007", "7", "1_0", " 10", "x"], object)).tolist() == [-1, 0, -1, -1, -1]
    assert known.numbers(["007", "7", 7, "x"]).tolist() == [0, 0, 0, -1]  # as somebody types them


def test_ids_that_look_like_numbers_stay_text_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_csv(tmp_path / "r.csv", ["007,1,3", "7,1,4"])
    assert bring(path, "-o", tmp_path / "o", *COLUMNS, "--text-ids") == 0
    assert as_dict(tmp_path / "o") == {("007", "1"): 3.0, ("7", "1"): 4.0}


@pytest.mark.parametrize(("how", "expected"), [("last", {"a": 3.0, "b": 5.0}), ("mean", {"a": 2.0, "b": 4.0})])
def test_duplicates(tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str, expected: dict[str, float]) -> None:
    path = write_csv(tmp_path / "r.csv", ["a,1,1", "b,1,5", "a,1,2", "b,1,3", "a,1,3"])
    assert bring(path, "-o", tmp_path / "o", *COLUMNS, "--duplicates", how, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    expected = {**expected, "b": 3.0 if how == "last" else 4.0}
    assert as_dict(tmp_path / "o") == {(user, 1): rating for user, rating in expected.items()}
    assert (result["duplicates"], result["rows_read"], result["rows"]) == (3, 5, 2)


def test_the_last_of_duplicates_is_the_last_by_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_csv(tmp_path / "r.csv", ["a,1,1,30", "a,1,2,40", "a,1,3,20", "a,1,4,40"], "who,what,stars,at")
    assert bring(path, "-o", tmp_path / "o", *COLUMNS, "--time", "at") == 0
    assert as_dict(tmp_path / "o") == {("a", 1): 4.0}


GOOD = ["a,1,3", "b,2,4"]
REFUSED = {
    "nan": (["c,3,nan"], [], "row 3 of", "missing or NaN"),
    "no rating": (["c,3,"], [], "row 3 of", "missing or NaN"),
    "infinity": (["c,3,inf"], [], "row 3 of", "no finite float32"),
    "too large": (["c,3,1e39"], [], "row 3 of", "no finite float32"),
    "text": (["c,3,good"], [], "column 'stars' holds text", "--rating"),
    "out of range": (["c,3,6"], ["--range", "1,5"], "row 3 of", "outside --range 1,5"),
    "no user": ([",3,2"], [], "row 3 of", "its user ('who') is missing"),
    "no item": (["c,,2"], [], "row 3 of", "its item ('what') is missing"),
    "duplicates": (["a,1,2"], ["--duplicates", "refuse"], "user 'a' has rated item '1' more than once", "--duplicates"),
    "an id of another kind": (["c,x3,2"], [], "'x3'", "--text-ids"),
    "a column that is not there": ([], ["--time", "whenn"], "no column 'whenn'", ""),
    "a column named twice": ([], ["--time", "stars"], "named twice", ""),
    "text for times": ([], ["--time", "word"], "a time is a whole number or a date", "--time"),
    "labels": ([], ["--label", "stars"], "--label is not for ratings", ""),
    "a grid of too many blocks": ([], ["--grid", "2000x2000"], "--grid has from 1 to", ""),
}


@pytest.mark.parametrize("how", REFUSED)
def test_what_is_no_rating_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str) -> None:
    more, options, *says = REFUSED[how]
    if how == "an id of another kind":  # far behind the first rows, which say what a column holds
        more = ["c,3,2"] * 150_000 + more
    path = write_csv(tmp_path / "r.csv", [f"{row},word" for row in [*GOOD, *more]], "who,what,stars,word")
    assert bring(path, "-o", tmp_path / "o", *COLUMNS, *options) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and all(word in err for word in says), err
    assert [child.name for child in tmp_path.iterdir()] == ["r.csv"]


def test_options_for_ratings_need_ratings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_csv(tmp_path / "r.csv", GOOD)
    assert bring(path, "-o", tmp_path / "o", "--label", "stars", "--grid", "2x2") == 2
    assert "--user and --item" in capsys.readouterr().err
    assert bring(path, "-o", tmp_path / "o", *COLUMNS, "--overwrite") == 0
    capsys.readouterr()
    for verb in (["train"], ["svd", "-k", "1"], ["data", "merge"]):
        assert main([*verb, str(tmp_path / "o"), "-o", str(tmp_path / "x")]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and "holds ratings" in err
    from data_support import write_dataset

    dense = write_dataset(tmp_path / "d", np.ones((3, 2)), np.arange(3), [3])
    with pytest.raises(AgreedError, match="holds rows of features, not ratings"):
        opened(dense)


def test_one_user_with_half_of_all_ratings_makes_one_heavy_stripe(tmp_path: Path,
                                                                  capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{0 if item < 400 else item % 40},{item},1" for item in range(800)]
    assert bring(write_csv(tmp_path / "r.csv", rows), "-o", tmp_path / "o", *COLUMNS, "--grid", "4x4") == 0
    said = capsys.readouterr().out
    assert "user '0' has 410 ratings, so one stripe of users holds 2 times the mean" in said
    grid = opened(tmp_path / "o").grid
    assert sorted(grid.counts.sum(axis=1).tolist()) == [130, 130, 130, 410]
    assert grid.counts.sum(axis=0).tolist() == [200] * 4


def test_few_users_and_empty_blocks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bring(write_csv(tmp_path / "r.csv", ["a,1,3", "b,2,4", "c,3,5"]), "-o", tmp_path / "o", *COLUMNS) == 0
    ratings = opened(tmp_path / "o")
    assert ratings.grid.shape == (3, 3) and np.count_nonzero(ratings.grid.counts == 0) == 6
    assert len(as_dict(tmp_path / "o")) == 3
    assert verify(Alone(), [tmp_path / "o"]).problems == []


def test_holding_out_at_import_and_by_a_split_keeps_the_numbers(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "r.csv", [f"{u},{i},{r}" for u, i, r in zip(USERS, ITEMS, GIVEN, strict=True)])
    assert bring(path, "-o", tmp_path / "o", *COLUMNS, "--holdout", 0.3, "--seed", 5, "--compression", "gzip") == 0
    assert bring(path, "-o", tmp_path / "w", *COLUMNS, "--seed", 5) == 0
    same = ["--holdout", "0.3", "--seed", "5"]
    assert main(["data", "split", str(tmp_path / "w"), "-o", str(tmp_path / "s"), *same]) == 0
    whole = as_dict(tmp_path / "w")
    for name in ("train", "test"):
        one, other = opened(tmp_path / "o" / name), opened(tmp_path / "s" / name)
        assert as_dict(tmp_path / "o" / name) == as_dict(tmp_path / "s" / name)
        np.testing.assert_array_equal(one.user_ids(), opened(tmp_path / "w").user_ids())
        np.testing.assert_array_equal(one.grid.item_bounds, other.grid.item_bounds)
    train, test = as_dict(tmp_path / "o" / "train"), as_dict(tmp_path / "o" / "test")
    assert {**train, **test} == whole and len(train) + len(test) == len(whole) and 210 < len(test) < 330
    # What is left can be split again, with the same seed.
    assert main(["data", "split", str(tmp_path / "o/train"), "-o", str(tmp_path / "t"), *same]) == 0
    assert 0.2 < opened(tmp_path / "t" / "test").grid.ratings / len(train) < 0.4


def test_splitting_by_time_and_by_the_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times = TIMES * 10**15 // 50  # some are the same, and below 0
    folder = write_rated(tmp_path / "r", USERS, ITEMS, GIVEN, times=times, grid=(4, 3), shards=2)
    when = {(int(u), int(i)): int(t) for u, i, t in zip(USERS, ITEMS, times, strict=True)}
    assert main(["data", "split", str(folder), "-o", str(tmp_path / "t"), "--by", "time", "--holdout", "0.25"]) == 0
    train, test = (as_dict(tmp_path / "t" / name) for name in ("train", "test"))
    assert max(when[pair] for pair in train) < min(when[pair] for pair in test)
    assert len(train) + len(test) == 900 and len(test) == int((times > np.sort(times)[900 - 225 - 1]).sum())
    assert main(["data", "split", str(folder), "-o", str(tmp_path / "l"), "--by", "last"]) == 0
    train, test = (as_dict(tmp_path / "l" / name) for name in ("train", "test"))
    assert len(train) + len(test) == 900
    for user in range(60):
        mine = [when[pair] for pair in train if pair[0] == user]
        held = [when[pair] for pair in test if pair[0] == user]
        assert len(held) == 1 and max(mine) <= held[0]
    capsys.readouterr()
    bare = write_rated(tmp_path / "b", USERS, ITEMS, GIVEN)
    for words, says in ((["--by", "last"], "has no times"), ([], "--holdout is needed"),
                        (["--by", "last", "--holdout", "0.2"], "leave out --holdout"),
                        (["--holdout", "0.2", "--stratify"], "--stratify is not for ratings"),
                        (["--holdout", "0.0000001"], "no rating is left to test")):
        assert main(["data", "split", str(bare), "-o", str(tmp_path / "x"), *words]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and says in err and not (tmp_path / "x").exists()


def test_damage_is_refused_before_it_does_harm(tmp_path: Path) -> None:
    folder = write_rated(tmp_path / "r", USERS, ITEMS, GIVEN, grid=(2, 2), shards=1)
    with h5py.File(folder / "part-00000.h5", "r+") as file:
        file["item"][3] = 99
    with pytest.raises(UserError, match="outside its stripe"):
        opened(folder).block(0, 0)
    (folder / FILE).write_bytes((folder / FILE).read_bytes()[:-1])
    with pytest.raises(UserError, match="has changed since it was written"):
        opened(folder).user_ids()
    assert {Path(problem.file).name for problem in verify(Alone(), [folder]).problems} == {FILE, "part-00000.h5"}


def test_ratings_in_memory_are_cut_as_those_on_disk(tmp_path: Path) -> None:
    folder = write_rated(tmp_path / "r", USERS, ITEMS, GIVEN, times=TIMES, grid=(5, 4), seed=3)
    stored, memory = opened(folder), MemoryRatings(USERS, ITEMS, GIVEN, times=TIMES, shape=(5, 4), seed=3)
    np.testing.assert_array_equal(stored.grid.counts, memory.grid.counts)
    np.testing.assert_array_equal(stored.user_ids(), memory.user_ids())
    assert stored.grid.mean == pytest.approx(memory.grid.mean)
    for u in range(5):
        for i in range(4):
            for here, there in zip(stored.block(u, i)[:3], memory.block(u, i)[:3], strict=True):
                np.testing.assert_array_equal(here, there)
            np.testing.assert_array_equal(stored.times(u, i), memory.times(u, i))


def test_a_block_lies_tile_by_tile_and_at_random_in_each() -> None:
    pairs = RNG.choice(5000 * 9000, 40_000, replace=False)
    ratings = MemoryRatings(pairs // 9000, pairs % 9000, np.ones(40_000), shape=(1, 1), n_users=5000, n_items=9000)
    block = ratings.block(0, 0)
    tile = (block.users >> TILE_BITS) * 5 + (block.items >> TILE_BITS)
    assert (np.diff(tile) >= 0).all() and len(np.unique(tile)) == 15
    own = tile == 7
    # Some 3000 ratings of 2048 users: hardly ever the same user next to itself, and as often up as down.
    steps = np.diff(block.users[own])
    assert (steps == 0).mean() < 0.01 and 0.45 < (steps > 0).mean() < 0.55


def test_ratings_that_lie_together_share_no_user_and_no_item() -> None:
    """As far as there are others to lie between them: no item has an eighth of a block's ratings here."""
    popularity = np.arange(1, 701) ** -0.7
    users, items = RNG.integers(0, 3000, 40_000), RNG.choice(700, 40_000, p=popularity / popularity.sum())
    pairs = np.unique(users * 1000 + items)
    ratings = MemoryRatings(pairs // 1000, pairs % 1000, np.ones(len(pairs)), shape=(2, 2))
    for u, i in np.ndindex(2, 2):
        block = ratings.block(u, i)
        for numbers in (block.users, block.items):
            for apart in range(1, APART):
                assert (numbers[apart:] == numbers[:-apart]).mean() < 0.002, apart
    assert sum(len(ratings.block(u, i).ratings) for u, i in np.ndindex(2, 2)) == len(pairs)


@pytest.mark.parametrize("stripes", [1, 7, 16])
def test_stripes_are_equally_heavy_and_by_falling_popularity(stripes: int) -> None:
    counts = np.minimum(RNG.zipf(1.6, 5000), 900)
    new, bounds = numbering(counts, stripes, 1)
    assert np.array_equal(np.sort(new), np.arange(5000)) and bounds[-1] == 5000
    dealt = np.empty_like(counts)
    dealt[new] = counts
    stripe = [dealt[low:high] for low, high in pairwise(bounds)]
    loads = [int(part.sum()) for part in stripe]
    assert max(loads) - min(loads) <= 1
    assert all((np.diff(part) <= 0).all() for part in stripe)


def test_one_process_holds_out_by_any_seed_after_any_other() -> None:
    """Half of the seeds have a key that is no signed number of 64 bits."""
    cut: Any = SimpleNamespace(item_bounds=np.array([0, 50]), user_bounds=np.array([0, 60]))
    users, items = np.divmod(np.arange(3000), 50)
    stripe: Any = SimpleNamespace(users=users, items=items, counts=np.array([3000]))
    shares = [held_share(cut, 0.3, seed, 3000)(0, stripe).mean() for seed in range(12)]
    assert shares == pytest.approx([0.3] * 12, abs=0.05) and len(set(shares)) > 3
