"""The wire between neighbours, measured in little time, and what a record tells of where ranks were."""

from __future__ import annotations

import json
import platform
import time

import pytest

from dml_hpc.comm.wire import probe
from dml_hpc.commands.whereabouts import whereabouts


def test_every_pair_of_neighbours_is_measured_and_all_ranks_know(comms):
    started = time.perf_counter()
    p = comms.size
    nodes = [rank // 2 for rank in range(p)]
    links = probe(comms, nodes)
    pairs = [(0, 1)] if p == 2 else [(rank, (rank + 1) % p) for rank in range(p)] if p > 2 else []
    assert [link.ranks for link in links] == pairs and comms.bcast(links) == links
    for link in links:
        assert link.alpha_s > 0 and link.beta_s_per_byte >= 0
        assert link.same_node is (nodes[link.ranks[0]] == nodes[link.ranks[1]])
    assert time.perf_counter() - started < 20


@pytest.mark.parametrize("probing", [True, False])
def test_a_record_tells_where_ranks_were(comm, probing):
    told = whereabouts(comm, probing)
    json.dumps(told, allow_nan=False)
    assert told["nodes"] == 1 and told["hosts"] == [platform.node()] * comm.size
    assert ("wire" in told) is probing
    if probing and comm.size > 1:
        wire = told["wire"]
        assert wire["between_nodes"] is None and wire["alpha_s"] == max(pair["alpha_s"] for pair in wire["pairs"])
    elif probing:
        assert told["wire"] is None
