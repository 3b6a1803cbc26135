"""What a report says of mf: what an epoch sends, and what that takes on the wire, from made-up records."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from runs_support import rank, record
from test_explanation import explained, kinds, pairs

from dml_hpc.decomposition.mf.cost import rows_sent
from dml_hpc.reports.rated import epoch_exchange
from dml_hpc.reports.scaling import Group, analyse

EPOCHS, ITEM_BYTES = 10, 8_000_000
BETA = 1e-7
"""10 MB/s: the items' factors take 0.8 s an epoch."""

pytestmark = pytest.mark.maths


def sgd(ranks: list[dict[str, float]], beta: float | None = BETA, **more: Any) -> dict[str, Any]:
    p, sent = len(ranks), more.pop("rank_bytes", ITEM_BYTES * EPOCHS)
    wire = {"wire": pairs([beta] * p)} if p > 1 and beta is not None else {}
    ranks = [{**one, "bytes_sent": sent if p > 1 else 0} for one in ranks]
    told = record(ranks, command="mf", algorithm="sgd", epochs=EPOCHS, grid=[8, 16], test=None, k=32, users=90_000,
                  items=50_000, biases=True, factors_dtype="float32", ranks_at_work=p, resumed_from=None,
                  bytes_sent=0 if p == 1 else p * sent, **wire)
    for key in ("objective", "allreduce", "allreduce_used", "dtype", "parameters", "steps", "batch_size"):
        del told[key]
    return told | more


def group_of(*records: dict[str, Any]) -> Group:
    (found,) = analyse(records).groups
    return found


@pytest.mark.parametrize(("ranks", "nodes"), [(2, 1), (2, 2), (8, 2)])
def test_every_rank_sends_all_items_once_an_epoch(ranks, nodes):
    told = sgd([rank(compute=1.0)] * 2)
    found, times = epoch_exchange(told, ranks, nodes)
    assert (found.messages, found.n_bytes, times) == (16, ITEM_BYTES, EPOCHS)
    tested = sgd([rank(compute=1.0)] * 2, test="t", rank_bytes=2 * ITEM_BYTES * EPOCHS)
    measured, _ = epoch_exchange(tested, ranks, nodes)
    assert (measured.messages, measured.n_bytes) == (32, 2 * ITEM_BYTES)
    half = sgd([rank(compute=1.0)] * 2, resumed_from=5, rank_bytes=5 * ITEM_BYTES)
    resumed, times = epoch_exchange(half, ranks, nodes)
    assert (resumed, times) == (found, 5)
    of_two = [{**one, "bytes_sent": one["bytes_sent"] * (at % 2)} for at, one in enumerate(told["per_rank"] * 2)]
    shared = {**told, "ranks": 4, "per_rank": of_two}  # of two ranks of a node that share memory one sends
    assert epoch_exchange(shared, 4, 2) == (found, EPOCHS)


@pytest.mark.parametrize("missing", ["epochs", "bytes_sent", "grid", "ranks_at_work"])
def test_of_what_a_record_does_not_tell_there_is_no_model(missing):
    for nonsense in (None, "x", -1, [], True):
        assert epoch_exchange({**sgd([rank(compute=1.0)] * 2), missing: nonsense}, 2, 1)[0] is None
    assert epoch_exchange(sgd([rank(compute=1.0)]), 1, 1) == (None, EPOCHS)


def test_rows_that_als_sends_are_predicted_on_other_numbers_of_ranks():
    """Against the rows counted where users and items are dealt to ranks at random."""
    rng = np.random.default_rng(1)
    n, each, row_bytes = 4000, 12, 100
    users, items = np.repeat(np.arange(n), each), rng.integers(0, n, n * each)

    def counted(p: int) -> int:
        of_user, of_item = rng.integers(0, p, n), rng.integers(0, p, n)
        needed = 0
        for own, other, numbers in ((of_user, of_item, users), (of_item, of_user, items)):
            asking = other[items if numbers is users else users]
            needed += len({(row, who) for row, who in zip(numbers.tolist(), asking.tolist(), strict=True)
                           if own[row] != who})
        return needed

    for p in (2, 8, 16):
        found = rows_sent(p, 4, counted(4) * row_bytes, 2 * n * row_bytes)
        assert found == pytest.approx(counted(p) * row_bytes, rel=0.05)
    assert rows_sent(4, 4, 12345.0, 1e6) == pytest.approx(12345.0)
    assert rows_sent(8, 2, 1e6, 1e6) == 7e6, "all rows on all ranks stay so"


def test_waiting_for_what_the_wire_carries_is_called_that():
    """Four ranks compute for 2 s, the wire takes 8 s, of which 6 s are waited for."""
    slow = explained(sgd([rank(compute=8.0)]), sgd([rank(compute=2.0, wait=6.0)] * 4))
    assert kinds(slow) == ["communication"] and slow.findings[0].share > 0.95
    for word in ("waiting for item factors on their way, took 6.00 s", "bound by bandwidth",
                 "16 messages and 7.629 MiB an epoch, of which bytes take 800 ms"):
        assert word in slow.paragraph, slow.paragraph
    for word in ("--factors float16", "smaller -k", "faster network"):
        assert word in slow.findings[0].change
    assert "--batch-size" not in slow.paragraph
    half = explained(*(sgd(ranks, factors_dtype="float16") for ranks in (
        [rank(compute=8.0)], [rank(compute=2.0, wait=6.0)] * 4)))
    assert "--factors float16" not in half.paragraph


def test_waiting_that_the_wire_does_not_explain_is_for_one_another():
    fast = explained(sgd([rank(compute=8.0)]), sgd([rank(compute=2.0, wait=6.0)] * 4, beta=1e-9))
    assert kinds(fast) == ["imbalance"] and "block to block" in fast.paragraph and "--probe" not in fast.paragraph
    partly = explained(sgd([rank(compute=8.0)]), sgd([rank(compute=2.0, wait=6.0)] * 4, beta=BETA / 2))
    shares = {one.kind: one.share for one in partly.findings}
    assert shares == {"communication": pytest.approx(2 / 6, abs=0.01), "imbalance": pytest.approx(4 / 6, abs=0.01)}
    unknown = explained(sgd([rank(compute=8.0)]), sgd([rank(compute=2.0, wait=6.0)] * 4, beta=None))
    assert kinds(unknown) == ["imbalance"] and "which --probe would tell" in unknown.paragraph


def test_on_one_node_nothing_is_sent_and_no_network_is_blamed():
    ranks = [rank(compute=2.0, communicate=1.0, wait=6.0)] * 4
    one_node = [sgd([rank(compute=8.0)]), sgd(ranks, beta=None, rank_bytes=0)]
    told = explained(*one_node)
    assert set(kinds(told)) == {"imbalance", "communication"} and "network, which" not in told.paragraph
    for word in ("item factors", "--algorithm sgd", "faster network", "send less"):
        assert word not in told.paragraph
    assert "waiting for the slowest rank 6.00 s" in group_of(*one_node).verdict


def test_messages_of_tiny_stripes_are_bound_by_latency():
    ranks = [rank(compute=1.0, communicate=0.02, wait=1.0)] * 4
    told = explained(sgd([rank(compute=4.0)]), sgd(ranks, rank_bytes=1000 * EPOCHS, grid=[8, 4096]))
    assert kinds(told)[0] == "latency" and "fewer stripes of items (--grid)" in told.paragraph, told.paragraph


def test_a_rank_with_next_to_nothing_to_do_on_a_stripe():
    ranks = [rank(compute=0.02, wait=0.1)] * 4
    told = explained(sgd([rank(compute=0.08)], beta=None), sgd(ranks, beta=None))
    assert "125 µs of work a stripe of items" in told.paragraph and "--batch-size" not in told.paragraph


def test_the_verdict_does_not_blame_a_rank_for_the_network():
    said = group_of(sgd([rank(compute=8.0)]), sgd([rank(compute=2.0, wait=6.0)] * 4)).verdict
    assert "waiting for the slowest rank or for what was on its way 6.00 s" in said


def test_no_prediction_is_below_what_items_take_on_the_wire():
    def measured(beta: float | None) -> Group:
        runs = [sgd([rank(compute=16.0 / p, communicate=0.05 * (p > 1), wait=0.02 * (p > 1))] * p, beta)
                for p in (1, 2, 4)]
        return group_of(*runs)

    bound = measured(BETA / 3).prediction  # 2.7 s
    free = measured(BETA / 1e3).prediction
    assert bound is not None and free is not None
    assert min(bound.low_s) >= 8 / 3 - 1e-3 > 16 / 8 and free.seconds[0] == pytest.approx(2.1, rel=0.05)
    assert "no less than the 2.67 s that item factors take on the wire" in bound.basis
    assert "all-reduce" not in bound.basis
    # A probe that was disturbed does not overrule what was measured.
    assert max(measured(100 * BETA).prediction.seconds) < 10  # type: ignore[union-attr]


def test_als_is_told_what_its_exchanges_take():
    def als(ranks: list[dict[str, float]]) -> dict[str, Any]:
        p = len(ranks)
        sent = rows_sent(p, 2, 9e6, 140_000 * 4 * 33) * (EPOCHS + 0.5) if p > 1 else 0
        return sgd(ranks) | {"algorithm": "als", "bytes_sent": sent}

    told = explained(als([rank(compute=40.0)]), *(als([rank(compute=40.0 / p, communicate=9.0)] * p) for p in (2, 4)))
    assert kinds(told)[0] == "communication" and told.findings[0].share > 0.95
    assert "12 messages" in told.paragraph and "an epoch" in told.paragraph and "--algorithm sgd" in told.paragraph
    assert "item factors on their way" not in told.paragraph
    basis = group_of(*(als([rank(compute=40.0 / p, communicate=9.0 * (p > 1))] * p) for p in (1, 2, 4))).prediction
    assert basis is not None and "exchanges of factors that cost messages · α + bytes · β" in basis.basis
