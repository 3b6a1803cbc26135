"""What the times of all-reduces say: speeds, how near they are to the wire's limit, and a cost model of each.

docs/collectives.md derives every number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dml_hpc.comm.cost import Cost, cost, fit, least_seconds
from dml_hpc.reports.timing import summarise

if TYPE_CHECKING:
    from dml_hpc.comm.wire import Link, Wire
    from dml_hpc.console import Console


class Measured(NamedTuple):
    """One all-reduce of one vector: ``seconds`` (repeats,) of the slowest rank, ``errors`` over all ranks and checks.

    ``relative_error`` is None where the sum must be exact; ``choice`` is what ``auto`` says of its own.
    """

    reducer: str
    dtype: str
    n_bytes: int
    seconds: Sequence[float]
    calls_per_timing: int
    errors: int
    relative_error: float | None
    choice: str | None


def rows(measured: Sequence[Measured], baselines: Sequence[str], ranks: int, nodes: int,
         between: Wire | None) -> list[dict[str, Any]]:
    """Return one result of the ``--json`` object for each measurement.

    ``vs`` tells how many times as fast it is as each of the ``baselines`` on the same vector; ``between`` is the wire
    between nodes, None on one node.
    """
    medians = {(one.reducer, one.dtype, one.n_bytes): summarise(one.seconds).median_s for one in measured}
    results = []
    for one in measured:
        median_s, p99_s = summarise(one.seconds)
        per_s = one.n_bytes / median_s
        limit_s = None
        if between is not None and between.beta_s_per_byte > 0 and one.n_bytes > 0:
            limit_s = least_seconds(one.n_bytes, nodes, 1 / between.beta_s_per_byte)
        vs = {name: medians[name, one.dtype, one.n_bytes] / median_s for name in baselines
              if (name, one.dtype, one.n_bytes) in medians}
        results.append({
            "case": f"{one.reducer} {one.dtype}",
            "reducer": one.reducer,
            "dtype": one.dtype,
            "bytes": one.n_bytes,
            "seconds_median": median_s,
            "seconds_p99": p99_s,
            "calls_per_timing": one.calls_per_timing,
            "algorithm_bandwidth_bytes_per_s": per_s,
            "bus_bandwidth_bytes_per_s": per_s * 2 * (ranks - 1) / ranks if ranks > 1 else None,
            "of_limit": None if limit_s is None else limit_s / median_s,
            "seconds_model": None,
            "errors": one.errors,
            "relative_error": one.relative_error,
            "vs": vs or None,
            "choice": one.choice,
        })
    return results


def models(results: Sequence[dict[str, Any]], ranks: int, nodes: int, fan_in: int) -> list[dict[str, Any]]:
    """Fit α and β of each reducer's cost model to its times, and note in each result what the model says.

    Returns one object a reducer that has a model and a type of element; ``alpha_s`` and the rest are None where the
    sizes are too few to tell them. Vectors of 0 bytes do not count: some libraries send nothing for them.
    """
    fitted = []
    for case in dict.fromkeys(result["case"] for result in results):
        own = [result for result in results if result["case"] == case and result["bytes"] > 0]
        costs = [cost(result["reducer"], ranks, nodes, result["bytes"], fan_in) for result in own]
        known = [one for one in costs if one is not None]
        if not known:
            continue
        found = fit(known, [result["seconds_median"] for result in own])
        if found is not None:
            for result, one in zip(own, known, strict=True):
                result["seconds_model"] = found.seconds(one)
        fitted.append({"case": case, "reducer": own[0]["reducer"], "dtype": own[0]["dtype"],
                       **_constants(found), "relative_error": None if found is None else found.relative_error,
                       "costs": [_cost(result["bytes"], one) for result, one in zip(own, known, strict=True)]})
    return fitted


def wires(within: Wire | None, between: Wire | None, links: Sequence[Link] = ()) -> dict[str, Any] | None:
    """Return the measured wire for the ``--json`` object; None when there is none, on one rank.

    The top of it is the worst pair of neighbours anywhere; ``links`` are all that were measured, its ``pairs``.
    """
    known = [wire for wire in (within, between) if wire is not None]
    if not known:
        return None
    slow = max(known, key=lambda wire: wire.alpha_s)
    narrow = max(known, key=lambda wire: wire.beta_s_per_byte)
    return {**_wire(slow._replace(beta_s_per_byte=narrow.beta_s_per_byte, beta_ranks=narrow.beta_ranks)),
            "within_node": None if within is None else _wire(within),
            "between_nodes": None if between is None else _wire(between),
            "pairs": [{**link._asdict(), "ranks": list(link.ranks)} for link in links]}


def limit_bus_bandwidth(wire: dict[str, Any] | None, ranks: int, nodes: int) -> float | None:
    """Return the bus bandwidth, bytes/s, of an all-reduce that takes the least time the wire between nodes allows.

    ``wire`` is what `wires` returned. None on one node, where no such limit was measured.
    """
    rate = None if wire is None or wire["between_nodes"] is None else wire["between_nodes"]["bandwidth_bytes_per_s"]
    return None if rate is None else 2 * (ranks - 1) / ranks / least_seconds(1, nodes, rate)


def show(console: Console, outcome: dict[str, Any], ranks: int) -> None:
    """Print the ``--json`` object of the benchmark as tables."""
    results, nodes = outcome["results"], outcome["nodes"]
    many_types, lossy = len(outcome["dtypes"]) > 1, any(r["relative_error"] is not None for r in results)
    versus = list(dict.fromkeys(name for result in results for name in result["vs"] or {}))
    on = f" on {nodes} nodes" if nodes > 1 else ""
    console.say(f"all-reduce of {', '.join(outcome['dtypes'])} over {ranks} rank{'s' * (ranks > 1)}{on}; "
                "times are the slowest rank's")

    def optional(shown: bool, *cells: str) -> list[str]:
        return list(cells) if shown else []

    def row(r: dict[str, Any]) -> list[str]:
        return [str(r["bytes"]), r["reducer"], *optional(many_types, r["dtype"]),
                f"{r['seconds_median'] * 1e6:.1f}", f"{r['seconds_p99'] * 1e6:.1f}", _micro(r["seconds_model"]),
                _giga(r["bus_bandwidth_bytes_per_s"]), _giga(r["algorithm_bandwidth_bytes_per_s"]),
                *optional(nodes > 1, "-" if r["of_limit"] is None else f"{r['of_limit']:.0%}"),
                *("-" if name not in (r["vs"] or {}) else f"{r['vs'][name]:.2f}" for name in versus),
                *optional(lossy, "-" if r["relative_error"] is None else f"{r['relative_error']:.1e}"),
                str(r["errors"])]

    console.table(
        ("bytes", "reducer", *optional(many_types, "type"), "median µs", "p99 µs", "model µs", "bus GB/s",
         "algorithm GB/s", *optional(nodes > 1, "of limit"), *(f"× {name}" for name in versus),
         *optional(lossy, "rel. error"), "errors"), [row(r) for r in results])
    for choice in dict.fromkeys(r["choice"] for r in results if r["choice"] is not None):
        console.say(f"auto took {choice}")
    for place, wire in _wire_lines(outcome["wire"]):
        console.say(f"wire {place}, worst pair of neighbours: α {wire['alpha_s'] * 1e6:.2f} µs "
                    f"(ranks {_pair(wire['alpha_ranks'])}), 1/β {_giga(wire['bandwidth_bytes_per_s'])} GB/s "
                    f"(ranks {_pair(wire['beta_ranks'])})")
    if outcome["models"]:
        console.say("the α and β with which t = messages · α + bytes · β comes nearest to the medians:")
        console.table(("reducer", *optional(many_types, "type"), "α µs", "1/β GB/s", "off by"),
                      [[m["reducer"], *optional(many_types, m["dtype"]), _micro(m["alpha_s"], 2),
                        _giga(m["bandwidth_bytes_per_s"]),
                        "-" if m["relative_error"] is None else f"{m['relative_error']:.0%}"]
                       for m in outcome["models"]])


def _constants(found: Any) -> dict[str, float | None]:
    """Return α, β and 1/β of a `Fit` or a `Wire`, with None for what is not known."""
    beta = None if found is None else found.beta_s_per_byte
    return {"alpha_s": None if found is None else found.alpha_s, "beta_s_per_byte": beta,
            "bandwidth_bytes_per_s": 1 / beta if beta else None}


def _wire(wire: Wire) -> dict[str, Any]:
    return {**_constants(wire), "alpha_ranks": list(wire.alpha_ranks), "beta_ranks": list(wire.beta_ranks)}


def _cost(n_bytes: int, one: Cost) -> dict[str, float]:
    return {"bytes": n_bytes, "messages": one.messages, "link_bytes": one.n_bytes}


def _wire_lines(wire: dict[str, Any] | None) -> list[tuple[str, dict[str, Any]]]:
    if wire is None:
        return []
    parts = (("inside a node", wire["within_node"]), ("between nodes", wire["between_nodes"]))
    return [(place, part) for place, part in parts if part is not None]


def _pair(ranks: Sequence[int]) -> str:
    return f"{ranks[0]} and {ranks[1]}"


def _micro(seconds: float | None, digits: int = 1) -> str:
    return "-" if seconds is None else f"{seconds * 1e6:.{digits}f}"


def _giga(per_s: float | None) -> str:
    return "-" if per_s is None else f"{per_s / 1e9:.3f}" if per_s < 1e9 else f"{per_s / 1e9:.4g}"
