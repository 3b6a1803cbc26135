"""Tables of many lines, written piece by piece."""

from __future__ import annotations

import h5py
import numpy as np

from dml_hpc.data.ratings.ids import Ids
from dml_hpc.mpi import Alone
from dml_hpc.store.ranked_table import LINE, Hdf5Table, write_table


def test_hdf5_holds_every_line_of_every_part_in_order(tmp_path):
    rng = np.random.default_rng(2)
    users, items = np.array([f"user {n}" for n in range(900)], object), rng.permutation(3000)
    lines = np.zeros(40_000, LINE)
    lines["row"], lines["column"] = rng.integers(0, 900, 40_000), rng.integers(0, 3000, 40_000)
    lines["rank"], lines["score"] = rng.integers(1, 9, 40_000), rng.random(40_000)
    table = Hdf5Table(("user", "item", "rank", "score"), Ids(users), Ids(items))
    parts = [table.rendered(part) for part in np.split(lines, [0, 7, 35_000])]
    write_table(Alone(), tmp_path / "t.h5", table, parts, {"n": 10})
    with h5py.File(tmp_path / "t.h5") as file:
        assert file["user"].asstr()[:].tolist() == users[lines["row"]].tolist()
        np.testing.assert_array_equal(file["item"][:], items[lines["column"]])
        np.testing.assert_array_equal(file["rank"][:], lines["rank"])
        np.testing.assert_array_equal(file["score"][:], lines["score"])
        assert file.attrs["n"] == 10
