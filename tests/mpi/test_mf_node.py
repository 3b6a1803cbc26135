"""Item stripes between ranks that share nodes, some of which are made up: the same bits, and few messages."""

from __future__ import annotations

import numpy as np
import pytest
from ratings_support import import_ratings, low_rank

from dml_hpc.comm.clock import Clock
from dml_hpc.comm.shared_memory import SharedMemory
from dml_hpc.commands import mf
from dml_hpc.console import Console
from dml_hpc.data.ratings.opened import MemoryRatings
from dml_hpc.decomposition.mf import node_carousel
from dml_hpc.decomposition.mf.node_carousel import NodeCarousel, chain_of, open_carousel
from dml_hpc.decomposition.mf.rows import Format
from dml_hpc.decomposition.mf.sgd import Settings, Sgd
from dml_hpc.decomposition.mf.strata import Strata
from dml_hpc.errors import UserError

pytestmark = pytest.mark.mpi

EPOCHS = 4
RATINGS = low_rank()
LAYOUTS = {"one node": [0, 0, 0, 0], "two nodes": [0, 0, 2, 2], "around the end": [0, 1, 1, 0],
           "one rank apart": [0, 1, 1, 1], "by turns": [0, 1, 0, 1]}
CASES = {"adagrad": {}, "bold driver": {"adaptive": False}, "half": {"factors": "float16"}, "threads": {"threads": 2},
         "few items": {"shape": (6, 2)}, "more items": {"shape": (4, 13)}, "few users": {"shape": (2, 5)},
         "empty blocks": {"given": low_rank(count=40), "shape": (9, 9)}}


def factors(comm, given=RATINGS, shape=(5, 8), **settings):
    """Return each epoch's error and all ranks' factors; then the share of all bytes that was sent, carousel, why."""
    settings = {"k": 4, "l2": 0.02, "adaptive": True, **settings}
    with Sgd(comm, MemoryRatings(*given, shape=shape), Settings(**settings), Clock()) as sgd:
        sgd.begin()
        errors = [sgd.learn(epoch, 0.1) for epoch in range(EPOCHS)]
        users = np.concatenate(comm.allgather(sgd.users.factors.copy()))
        items = np.concatenate([rows for own in comm.allgather([rows.factors.copy() for _, rows in sgd.items()])
                                for rows in own])
        every = sum(comm.allgather(sum(len(rows.raw) for _, rows in sgd.items())))
        return (errors, users, items), (sgd.bytes_sent / every, sgd.carousel, sgd.apart)


def assert_same(comm, found, case):
    own = comm.Split(comm.rank)
    errors, users, items = factors(own, **CASES[case])[0]
    own.Free()
    assert found[0] == errors
    np.testing.assert_array_equal(found[1], users)
    np.testing.assert_array_equal(found[2], items)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_wherever_ranks_sit_they_find_the_same_bits(comm, layout, case, monkeypatch):
    nodes = LAYOUTS[layout][:comm.size]
    monkeypatch.setattr(node_carousel, "nodes_of", lambda _: nodes)
    found, (sent, carousel, why) = factors(comm, **CASES[case])
    assert_same(comm, found, case)
    at_work = min(comm.size, CASES[case].get("shape", (5, 8))[0])
    assert why is None and (carousel is None) == (comm.rank >= at_work)
    if carousel is not None:
        crosses = nodes[comm.rank] != nodes[(comm.rank - 1) % at_work]
        assert sent == EPOCHS * crosses  # all stripes, once an epoch, over the ends of nodes alone
        assert carousel.messages == (at_work > 1 and len(set(nodes[:at_work])) > 1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_stripe_comes_to_every_block_in_its_turn_and_back(comm, layout, monkeypatch):
    """Whatever the grid; stripes of no rows travel, too, and do not come before they have left."""
    monkeypatch.setattr(node_carousel, "nodes_of", lambda _: LAYOUTS[layout][:comm.size])
    form = Format(3, np.dtype(np.float32), True, False)
    for users, counts in ((5, (1, 0)), (7, (0, 3, 0, 2, 0, 0, 5)), (3, (4, 0, 0, 1, 9, 0, 2, 0, 0, 3)), (2, (0, 0, 0))):
        strata, bounds = Strata(np.ones((users, len(counts)), np.int64), comm.size), np.cumsum([0, *counts])
        own = strata.own(comm.rank)
        team = comm.Split(0 if own else 1, comm.rank)
        carousel, _ = open_carousel(comm, team, strata, bounds, form)
        for item in carousel.home if carousel else ():
            carousel.stripe(item).raw[:] = item
        for _ in range(2 if carousel else 0):
            carousel.start()
            for stratum in range(strata.length):
                for u in own:
                    if (item := strata.item(strata.place(u), stratum)) is not None:
                        carousel.stripe(item).raw[:] += 1
                        if u == own.start:
                            carousel.leave(item)
                        carousel.progress()
            carousel.finish()
            team.Barrier()
        for item in carousel.home if carousel else ():
            rows = carousel.stripe(item)
            assert rows.count == counts[item] and (rows.raw == item + 2 * users).all()
        team.Free()


@pytest.mark.maths
def test_chains_are_the_ranks_between_which_nothing_has_to_travel():
    assert [chain_of([0, 0, 0], rank) for rank in range(3)] == [[2, 1, 0]] * 3
    assert [chain_of([0, 0, 2, 2, 2], rank) for rank in (0, 1, 2, 4)] == [[1, 0], [1, 0], [4, 3, 2], [4, 3, 2]]
    assert [chain_of([7, 1, 1, 7], rank) for rank in range(4)] == [[0, 3], [2, 1], [2, 1], [0, 3]]
    assert [chain_of([0, 1, 0, 1], rank) for rank in range(4)] == [[0], [1], [2], [3]]
    assert chain_of([5], 0) == [0]


def test_ranks_that_cannot_share_memory_send_messages_and_say_why(comm, folder, monkeypatch, capsys):
    take = SharedMemory._take

    def refused(self, *arguments):
        if comm.rank == comm.size - 1:
            raise UserError("the ranks of this node cannot share memory")
        take(self, *arguments)

    monkeypatch.setattr(SharedMemory, "_take", refused)
    found, (sent, carousel, why) = factors(comm)
    assert_same(comm, found, "adagrad")
    assert not isinstance(carousel, NodeCarousel)
    assert sent == (EPOCHS if comm.size > 1 else 0)
    assert why == (None if comm.size == 1 else "the ranks of this node cannot share memory")
    told = run(comm, folder, Console(rank=comm.rank))
    assert (told["bytes_sent"] > 0) == (comm.size > 1)
    said = "as messages, more slowly: the ranks of this node cannot share memory" in capsys.readouterr().out
    assert said == (comm.size > 1 and comm.rank == 0)


def test_on_one_node_a_run_sends_nothing(comm, folder):
    told = run(comm, folder, Console(rank=1))
    assert told["bytes_sent"] == 0 == max(point["bytes_sent"] for course in told["trace"] for point in course)
    assert told["ranks_at_work"] == min(comm.size, 4)


def run(comm, folder, console):
    if comm.rank == 0:
        import_ratings(folder, "train", RATINGS, (4, 6))
    comm.Barrier()
    return mf.run(comm, console, folder / "train", folder / "f.h5", k=4, epochs=3)
