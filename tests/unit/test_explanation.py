"""Explanations: made-up faults must be named, with where they are, and nothing that the records do not show."""

from __future__ import annotations

from typing import Any

import pytest
from runs_support import rank, record, together

from dml_hpc.reports.explanation import Explanation
from dml_hpc.reports.scaling import analyse

ALPHA, BETA = 5e-5, 8e-9


def explained(*records: dict[str, Any]) -> Explanation:
    (group,) = analyse(records).groups
    assert group.explanation is not None
    shares = [one.share for one in group.explanation.findings]
    assert all(0 <= share <= 1 for share in shares) and sum(shares) <= 1 + 1e-9
    assert shares == sorted(shares, reverse=True)
    return group.explanation


def kinds(told: Explanation) -> list[str]:
    return [one.kind for one in told.findings]


def alone(seconds: float, **more: float) -> dict[str, Any]:
    return record([rank(compute=seconds, **more)])


def pairs(betas: list[float], same_node: bool = False) -> dict[str, Any]:
    p = len(betas)
    return {"pairs": [{"ranks": [i, (i + 1) % p], "same_node": same_node, "alpha_s": ALPHA, "beta_s_per_byte": beta}
                      for i, beta in enumerate(betas)],
            "between_nodes": {"alpha_s": ALPHA, "beta_s_per_byte": max(betas)}, "within_node": None}


def test_one_rank_slowed_by_30_percent_is_named_with_its_host_and_what_it_costs() -> None:
    told = explained(alone(40.0), record(together([10.0, 10.1, 13.0, 9.9])))
    first = told.findings[0]
    assert first.kind == "slow_rank" and first.share > 0.8
    for word in ("rank 2 on node2", "1.30 times", "the others waited 3.00 s (23% of the time)"):
        assert word in first.text
    assert "--rebalance" in first.change and "leave the node of rank 2 on node2 out" in first.change
    assert first.text[1:] in told.paragraph and first.change in told.paragraph
    # Where rows are moved already, that is no advice.
    moved = explained(record(together([10.0, 10.1, 13.0, 9.9]), rebalance=True))
    assert kinds(moved)[0] == "slow_rank" and "--rebalance" not in moved.paragraph


@pytest.mark.parametrize("busy", [[10.0, 13.0], [13.0, 10.0, 10.0], [10.0] * 62 + [13.0] * 2])
def test_slow_ranks_are_found_among_few_and_many_without_a_run_to_compare_with(busy: list[float]) -> None:
    told = explained(record(together(busy), per_node=2))
    assert kinds(told)[0] == "slow_rank"
    slow = [str(at) for at, own in enumerate(busy) if own > 11]
    assert f"rank{'s' * (len(slow) > 1)} {' and '.join(slow)} on node{int(slow[0]) // 2}" in told.paragraph


def test_one_slow_run_of_five_is_not_a_slow_rank() -> None:
    runs = [record(together([10.0, 10.0, 13.0 if at == 0 else 10.0, 10.0])) for at in range(5)]
    assert "slow_rank" not in kinds(explained(alone(40.0), *runs))


def test_a_rank_with_more_rows_is_not_slow_but_overloaded() -> None:
    ranks = together([10.0, 10.0, 10.0, 15.0])
    ranks[3]["rows"] = 1500.0
    told = explained(record(ranks))
    assert kinds(told)[0] == "imbalance" and "ank 3 on node3 had 1.5 times as many rows" in told.paragraph
    assert "slow_rank" not in kinds(told)


def test_a_halved_link_is_named_by_both_its_hosts() -> None:
    ranks = [rank(compute=5.0, communicate=6.0)] * 8
    told = explained(alone(40.0), record(ranks, wire=pairs([BETA, BETA, BETA, 2 * BETA, BETA, BETA * 1.1, BETA, BETA])))
    (link,) = (one for one in told.findings if one.kind == "narrow_link")
    assert "node3 and node4 (ranks 3 and 4)" in link.text and "62.5 MB/s where others carry 125 MB/s" in link.text
    assert "2.0 times as slow" in link.text and "node3 and node4" in link.change and link.text[1:] in told.paragraph
    assert 0.4 < link.share <= 0.5
    assert {"communication", "latency"} & set(kinds(told))
    even = explained(alone(40.0), record(ranks, wire=pairs([BETA * (1 + 0.05 * i) for i in range(8)])))
    assert "narrow_link" not in kinds(even)


def test_two_narrow_links_of_one_host_point_at_the_host() -> None:
    betas = [BETA, BETA, 2 * BETA, 2 * BETA, BETA, BETA]
    told = explained(alone(30.0), record([rank(compute=5.0, communicate=5.0)] * 6, wire=pairs(betas)))
    (link,) = (one for one in told.findings if one.kind == "narrow_link")
    assert "node3 is at the end of all of them" in link.text and "card of node3" in link.change
    assert "node2" in link.text and "node4" in link.text


@pytest.mark.parametrize("p", [3, 4, 5])
def test_a_host_whose_link_is_halved_is_found_among_few(p: int) -> None:
    betas = [2 * BETA, 2 * BETA, *[BETA * 1.05] * (p - 2)]
    told = explained(alone(30.0), record([rank(compute=30.0 / p, communicate=5.0)] * p, wire=pairs(betas)))
    (link,) = (one for one in told.findings if one.kind == "narrow_link")
    assert "node1 is at the end of all of them" in link.text


def test_links_inside_a_node_are_not_held_against_those_between_nodes() -> None:
    wire = pairs([BETA, BETA / 20, BETA, BETA / 20, BETA, BETA / 20])
    for at, pair in enumerate(wire["pairs"]):
        pair["same_node"] = at % 2 == 1
    told = explained(alone(30.0), record([rank(compute=5.0, communicate=5.0)] * 6, per_node=2, wire=wire))
    assert "narrow_link" not in kinds(told)


def test_a_slow_disk_of_one_host_is_named_and_not_called_a_slow_rank() -> None:
    ranks = [rank(read=1.0, compute=9.0, disk_bytes=1e9, wait=8.0)] * 4
    ranks[2] = rank(read=9.0, compute=9.0, disk_bytes=1e9)
    told = explained(alone(40.0), record(ranks))
    assert kinds(told)[0] == "slow_disk" and "slow_rank" not in kinds(told)
    assert "rank 2 on node2 alone" in told.paragraph and "at 111 MB/s a rank" in told.paragraph
    assert "where the other ranks spent 1.00 s at 1 GB/s a rank" in told.paragraph
    assert "own disk" in told.findings[0].change


def test_a_slow_disk_under_mapped_rows_shows_as_pages_waited_for() -> None:
    usual = {"cpu_s": 18.9, "major_faults": 3.0, "disk_bytes": 1e5, "switches": 20.0}
    ranks = [rank(compute=10.0, wait=9.0, **usual) for _ in range(3)]
    ranks.append(rank(compute=19.0, cpu_s=10.0, major_faults=8000.0, disk_bytes=1.8e9, switches=20.0))
    told = explained(alone(40.0), record(ranks))
    assert kinds(told)[0] == "slow_disk" and "slow_rank" not in kinds(told)
    assert "rank 3 on node3 alone: 9.00 s" in told.paragraph and "at 200 MB/s a rank" in told.paragraph
    assert "8000 pages" in told.paragraph


def test_a_slow_disk_of_all_is_told_even_where_it_shrinks_with_the_ranks() -> None:
    ranks = [rank(read=6.0, compute=4.0, disk_bytes=3e8, major_faults=0.0)] * 4
    base = record([rank(read=24.0, compute=16.0, disk_bytes=1.2e9, major_faults=0.0)])
    told = explained(base, record(ranks))
    assert kinds(told) == ["slow_disk"] and "for all ranks" in told.paragraph and "50 MB/s a rank" in told.paragraph
    assert told.findings[0].share == 0 and "it is no loss, but it is time" in told.paragraph
    # One that all ranks share does not become faster.
    shared = explained(record([rank(read=6.0, compute=16.0, disk_bytes=1.2e9)]), record(ranks))
    assert kinds(shared)[0] == "slow_disk" and shared.findings[0].share > 0.9


def test_reading_from_memory_is_no_slow_disk() -> None:
    ranks = [rank(read=6.0, compute=4.0, disk_bytes=0.0, major_faults=0.0)] * 4
    told = explained(record([rank(read=6.0, compute=16.0, disk_bytes=0.0, major_faults=0.0)]), record(ranks))
    assert "slow_disk" not in kinds(told) and "disk" not in told.paragraph
    # Where no record tells, the doubt is told.
    silent = explained(record([rank(read=6.0, compute=16.0)]), record([rank(read=6.0, compute=4.0)] * 4))
    assert "the records do not say" in silent.paragraph and "disk is slow" not in silent.paragraph


def test_cores_that_are_shared_are_told_from_work() -> None:
    ranks = [rank(compute=10.0, cpu_s=5.0, major_faults=0.0, disk_bytes=0.0, switches=900.0)] * 4
    told = explained(record([rank(compute=20.0, cpu_s=20.0, major_faults=0.0, disk_bytes=0.0, switches=9.0)]),
                     record(ranks, per_node=4))
    assert kinds(told)[0] == "oversubscribed" and told.findings[0].share > 0.9
    assert "no core for 5.00 s of 10.0 s" in told.paragraph and "90 times a second" in told.paragraph
    late = [rank(compute=5.0, communicate=2.0, wait=3.0, cpu_s=5.0, switches=900.0)] * 4
    told = explained(record([rank(compute=10.0, cpu_s=10.0, switches=9.0)]), record(late, per_node=4))
    assert kinds(told)[0] == "oversubscribed" and 0.6 < told.findings[0].share < 0.9
    # Asleep is not denied: without switches nobody else had the core.
    calm = explained(record([rank(compute=20.0, cpu_s=20.0)]),
                     record([rank(compute=10.0, cpu_s=5.0, switches=3.0)] * 4))
    assert "oversubscribed" not in kinds(calm)


def test_latency_and_bandwidth_are_told_apart() -> None:
    ranks = [rank(compute=5.0, communicate=5.0)] * 8
    small = explained(alone(40.0), record(ranks, parameters=1000, wire=pairs([BETA] * 8)))
    large = explained(alone(40.0), record(ranks, parameters=10_000_000, wire=pairs([BETA] * 8)))
    assert kinds(small)[0] == "latency" and "14 messages" in small.paragraph and "local" in small.findings[0].change
    assert kinds(large)[0] == "communication" and "bound by bandwidth" in large.paragraph
    for word in ("float16", "--overlap", "--batch-size", "local or average"):
        assert word in large.findings[0].change
    assert small.findings[0].share > 0.9 and large.findings[0].share > 0.9
    unknown = explained(alone(40.0), record(ranks, parameters=None))
    assert kinds(unknown)[0] == "communication" and "bound by" not in unknown.paragraph


def test_too_little_work_for_a_rank() -> None:
    ranks = [rank(compute=0.01, communicate=0.002, wait=0.008)] * 8
    told = explained(record([rank(compute=0.04)], batch_size=1024), record(ranks, batch_size=1024))
    assert "too_little_work" in kinds(told) and "100 µs of work a step (128 rows)" in told.paragraph
    assert "a larger --batch-size" in told.paragraph


def test_a_serial_part() -> None:
    told = explained(*(record([rank(compute=10 * (0.2 + 0.8 / p))] * p) for p in (1, 2, 4, 8)))
    assert kinds(told) == ["serial"] and "Amdahl) it is 20.0% of the work" in told.paragraph


def test_ranks_that_are_late_in_turn_are_no_slow_rank() -> None:
    told = explained(alone(40.0), record([rank(compute=10.0, wait=4.0)] * 4))
    assert kinds(told) == ["imbalance"] and "changes from step to step" in told.paragraph


def test_of_ratings_it_is_blocks_that_differ() -> None:
    told = explained(alone(40.0), record([rank(compute=10.0, wait=4.0)] * 4))
    assert "--grid" not in told.paragraph
    told = explained(*(one | {"command": "mf"} for one in (alone(40.0), record([rank(compute=10.0, wait=4.0)] * 4))))
    assert "changes from block to block" in told.paragraph and "with other stripes (--grid)" in told.paragraph


def test_noise_that_hides_the_difference_is_said() -> None:
    runs = [record([rank(compute=40.0 * t)]) for t in (0.8, 1.0, 1.3)]
    runs += [record([rank(compute=11.0 * t)] * 4) for t in (0.7, 1.0, 1.2)]
    told = explained(*runs)
    assert kinds(told) == ["noise"] and "cannot be told from none" in told.paragraph and "repeat" in told.paragraph


def test_a_loss_of_nothing_is_not_called_noise() -> None:
    told = explained(alone(40.0), *(record([rank(compute=t)] * 4) for t in (9.0, 9.9, 10.0, 10.1, 12.0)))
    assert kinds(told) == ["none"] and "is sure to" in told.paragraph


def test_a_job_that_scales_is_left_alone() -> None:
    told = explained(*(record([rank(compute=40 / p, communicate=0.1 * (p > 1))] * p) for p in (1, 4)))
    assert kinds(told) == ["none"] and "it scales" in told.paragraph and "lost" not in told.paragraph


def test_the_shares_of_several_causes_add_up_to_the_loss() -> None:
    ranks = together([10.0, 10.0, 13.0, 10.0], communicate=4.0)
    told = explained(alone(32.0), record(ranks, wire=pairs([BETA, BETA, BETA, BETA * 2.2])))
    assert {"slow_rank", "narrow_link", "serial"} <= set(kinds(told))
    assert sum(one.share for one in told.findings) == pytest.approx(1, abs=0.05)


def test_without_a_split_the_fractions_speak_and_nothing_is_made_up() -> None:
    grows = explained(*({"command": "mf", "ranks": p, "seconds": t} for p, t in ((1, 8.0), (2, 4.4), (4, 3.2))))
    assert grows.findings == () and "do not say where" in grows.paragraph and "grows" in grows.paragraph
    level = explained(*({"command": "mf", "ranks": p, "seconds": 10 * (0.2 + 0.8 / p)} for p in (1, 2, 4)))
    assert "stays near 0.200" in level.paragraph
    single = explained({"command": "mf", "ranks": 1, "seconds": 3.0})
    assert single.findings == () and "1 rank only" in single.paragraph


def test_options_of_train_are_not_advised_to_others_and_emulated_hosts_are_said_so() -> None:
    ranks = [rank(compute=5.0, communicate=5.0)] * 8
    told = explained(record([rank(compute=40.0)], command="svd", emulated=True),
                     record(ranks, command="svd", emulated=True))
    assert kinds(told)[0] == "communication" and "--batch-size" not in told.paragraph
    assert "emulated on one machine" in told.paragraph
