"""What a report says, in order: a section a job, a benchmark, a comparison, then commands and machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from statistics import median

from dml_hpc.reports.comparing import Change
from dml_hpc.reports.document import Column, Document, Drawing, Exhibit, Section, Table, table
from dml_hpc.reports.figures.bandwidth import bandwidth_figure, by_case, wire_limit
from dml_hpc.reports.figures.by_nodes import by_nodes_figure, largest
from dml_hpc.reports.figures.losses import AT_ONCE, Curve, curve, losses_figure
from dml_hpc.reports.figures.phases import blocks, phases_figure
from dml_hpc.reports.figures.phases import caption as phases_caption
from dml_hpc.reports.figures.speedup import efficiency_alone, speedup_alone, with_curve
from dml_hpc.reports.figures.stragglers import Map, straggler_map, stragglers_figure
from dml_hpc.reports.jobs import job as job_of
from dml_hpc.reports.provenance import commands_table, machines_table
from dml_hpc.reports.quantities import Record, count, duration, listed, whole
from dml_hpc.reports.scaling import Analysis, Bench, BenchPrediction, Group
from dml_hpc.reports.tables import (
    bench_predictions_table,
    bench_table,
    changes_table,
    cost_table,
    findings_table,
    group_table,
    laws_table,
    overview_table,
    percent,
    phases_table,
    prediction_table,
    speed,
)

TITLE = "Scaling report"
MOST_TOGETHER = 7
"""Of more jobs the curves in one figure cannot be told apart."""

_SPEEDUP_CAPTION = (
    "Bars: 95 % confidence interval of the median time where a number of ranks ran three times or more, else slowest "
    "to fastest run. ")
_NOTES = (
    "Times are medians over the runs. Speed-up is the time at the fewest ranks measured over the time at p ranks, "
    "efficiency the speed-up over the ideal; where the work grows with the ranks (weak scaling), speed-up is the work "
    "done per second against that at the fewest ranks.",
    "The serial fraction is Karp and Flatt's e = (1/S − 1/p)/(1 − 1/p) (CACM 33(5), 1990): level means a serial part, "
    "growing means overhead.",
    "In the table of what was measured, read, compute, communicate and wait are maxima over ranks; other is what they "
    "leave of the time.",
    "What is predicted is no measurement: it is what a model fitted to these records gives, with the interval in which "
    "the truth should lie 95 times of 100.")


def document(analysis: Analysis, records: Sequence[Record], changes: Sequence[Change] | None = None) -> Document:
    """Return all that a report says of ``records``, whose analysis is given; with ``changes`` the comparison first."""
    sections: list[Section] = [] if changes is None else [comparison(changes)]
    if len(analysis.groups) > 1:
        sections.append(_overview(analysis.groups))
    sections += [job(group, steps_of(group, records)) for group in analysis.groups]
    sections += losses(analysis.groups)
    sections += [benchmark(bench) for bench in analysis.benches]
    sections += predicted_benches(analysis)
    if analysis.groups:
        sections.append(Section("How to read the numbers", "", _NOTES))
    if analysis.left_out:
        sections.append(Section("Left out", "What could not be used.", analysis.left_out))
    sections.append(Section("Commands, versions, hardware", "", exhibits=(
        Exhibit("Commands", "", (), (commands_table(records),)),
        Exhibit("Machines and versions", "Speeds from different machines do not compare.", (),
                (machines_table(records),)))))
    days = sorted({str(record.get("started", ""))[:10] for record in records} - {""})
    when = f", {days[0]}" + (f" to {days[-1]}" if len(days) > 1 else "") if days else ""
    return Document(TITLE, f"From {count(len(records), 'run record')}{when}.", tuple(sections))


def job(group: Group, steps: Mapping[int, float] | None = None) -> Section:
    """Return the section of one job: what limits it in plain words, then the figures that show it.

    ``steps`` are how many there were at each number of ranks; without, times by rank are those of the whole run.
    """
    told = group.explanation
    found = None if told is None else findings_table(told)
    exhibits = [] if found is None else [Exhibit("What was found", "", (), (found,))]
    exhibits.append(_scaling(group))
    if blocks(group):
        alt = (f"Seconds of each rank by phase, at {listed([str(block.ranks) for block in blocks(group)])} ranks; "
               f"{group.label}")
        exhibits.append(Exhibit("Where each rank's time went", phases_caption(group),
                                (Drawing(alt, lambda: phases_figure(group, steps)),), (phases_table(group, steps),)))
    if (mapped := _stragglers(group)) is not None:
        exhibits.append(mapped)
    if group.laws is not None and laws_table(group.laws).values:
        exhibits.append(Exhibit("Fitted laws", "Amdahl 1967, Gustafson 1988, Karp and Flatt 1990; α and β as in "
                                "t = messages · α + bytes · β.", (), (laws_table(group.laws),)))
    if (cost := cost_table(group)) is not None:
        exhibits.append(Exhibit("Cost", group.cost or "Node hours of one run: nodes × time.", (), (cost,)))
    lead = group.verdict if told is None or not told.paragraph else told.paragraph
    return Section(group.label, lead, group.stragglers, tuple(exhibits), (clock_note(group),))


def steps_of(group: Group, records: Sequence[Record]) -> dict[int, float] | None:
    """Return the median number of steps at each number of ranks of a job; None unless every record tells it."""
    found: dict[int, list[float]] = {}
    for record in records:
        ranks = whole(record.get("ranks"))
        if ranks is not None and job_of(record) == group.job:
            found.setdefault(ranks, []).append(whole(record.get("steps")) or 0)
    known = {ranks: median(told) for ranks, told in found.items() if all(told)}
    return known if all(point.ranks in known for point in group.points) else None


def clock_note(group: Group) -> str:
    """Say what was timed and against which run the speed-ups stand."""
    what = "the work itself, without" if group.clock == "work_s" else "the whole command, with"
    return f"Timed: {what} start-up. Base: {count(group.base, 'rank')}" + (
        "." if group.base == 1 else f", the fewest measured; ideal at p ranks is p/{group.base}.")


def comparison(changes: Sequence[Change]) -> Section:
    """Return the section that says what got slower, beyond noise, between two sets of records."""
    by_verdict = {name: [one for one in changes if one.verdict == name]
                  for name in ("slower", "faster", "same", "unknown")}
    said = {"slower": "slower beyond noise", "faster": "faster beyond noise", "same": "the same within noise",
            "unknown": "with too few runs to tell (three of each are needed)"}
    lead = ("Nothing to compare: the two have no job at the same number of ranks in common." if not changes else
            "Of what both measured: " + listed([f"{len(found)} {said[name]}" for name, found in by_verdict.items()
                                               if found]) + ".")
    worst = sorted(by_verdict["slower"], key=lambda one: -one.ratio)
    lines = tuple(f"Slower: {one.job} at {count(one.ranks, 'rank')}, from {duration(one.before_s)} to "
                  f"{duration(one.after_s)}, {one.ratio:.2f} times as long." for one in worst)
    order = {"slower": 0, "unknown": 1, "faster": 2, "same": 3}
    rows = sorted(changes, key=lambda one: (order.get(one.verdict, 9), -one.ratio))
    return Section("Comparison: before and after", lead, lines,
                   (Exhibit("Every job in common", "", (), (changes_table(rows),)),) if changes else ())


def losses(groups: Sequence[Group]) -> list[Section]:
    """Return the section of loss against time, when there is a trace; some curves a figure."""
    curves = [found for group in groups if group.trace is not None
              if (found := curve(group.short, group.trace[0], group.trace[1])) is not None]
    if not curves:
        return []
    parts = [curves[i:i + AT_ONCE] for i in range(0, len(curves), AT_ONCE)]
    caption = ("Each job at the most ranks it was measured at; the mean over ranks of the loss as it was met, of "
               "mf the root of the mean squared error. Compare only curves of the same objective and data.")
    return [Section("Loss against time", "", exhibits=tuple(
        Exhibit(f"Part {i}" if len(parts) > 1 else "", caption, (_losses(part),),
                (_losses_table(part),)) for i, part in enumerate(parts, 1)))]


def benchmark(bench: Bench) -> Section:
    """Return the section of a benchmark: bus bandwidth against the wire where there is any, and every time."""
    limit = wire_limit(bench)
    cases = by_case(bench)
    if not cases:
        return Section(bench.label, bench.verdict, (), (Exhibit("Times", "", (), (bench_table(bench),)),))
    caption = "Bus bandwidth: bytes · 2(p − 1)/p over the median time, which is what each link carries."
    if limit is not None:
        caption += (f" The dashed level, {speed(limit)}, is what the measured wire allows; a compressed vector sends "
                    "fewer bytes and may stand above it.")
    alt = f"Bus bandwidth against the size of the vector, of {listed(list(cases))}; {bench.label}"
    title = "Bus bandwidth" if limit is None else "Bus bandwidth against the wire"
    drawing = Drawing(alt, lambda: bandwidth_figure(bench))
    return Section(bench.label, bench.verdict, (), (Exhibit(title, caption, (drawing,), (bench_table(bench),)),))


def predicted_benches(analysis: Analysis) -> list[Section]:
    """Return a section for each set of all-reduces that are predicted on more nodes than were measured."""
    by_label: dict[str, list[BenchPrediction]] = {}
    for told in analysis.bench_predictions:
        label = f"{told.label}, {count(told.ranks_per_node, 'rank')} a node"
        by_label.setdefault(label, []).append(told)
    found = []
    for label, predictions in by_label.items():
        shown = largest(predictions)
        said = [*dict.fromkeys(one.basis for one in predictions),
                *(f"{one.case}: {one.hindsight}" for one in shown if one.hindsight)]
        alt = f"Time of an all-reduce against nodes, measured and predicted, of {listed([one.case for one in shown])}"
        found.append(Section(f"Predicted: {label}", "", exhibits=(Exhibit(
            "", "Right of the dotted line, dashed, with hollow marks and the band of its uncertainty, nothing is "
            "measured. " + " ".join(said), (Drawing(alt, partial(by_nodes_figure, shown, analysis.benches)),),
            (bench_predictions_table(predictions),)),)))
    return found


def _overview(groups: Sequence[Group]) -> Section:
    drawn = with_curve(groups)
    drawings: tuple[Drawing, ...] = ()
    if 1 < len(drawn) <= MOST_TOGETHER:
        names = listed([group.short for group in drawn])
        drawings = (Drawing(f"Speed-up against ranks of {names}", lambda: speedup_alone(drawn)),
                    Drawing(f"Efficiency against ranks of {names}", lambda: efficiency_alone(drawn)))
    measured = [group for group in groups if len(group.points) > 1]
    worst = min(measured, key=lambda group: group.points[-1].efficiency, default=None)
    lead = count(len(groups), "job") + (" measured." if worst is None else
                                        f"; least efficient: {worst.label}, {worst.points[-1].efficiency:.0%} at "
                                        f"{count(worst.points[-1].ranks, 'rank')}.")
    caption = _SPEEDUP_CAPTION + "What is predicted stands with each job." if drawings else ""
    return Section("All jobs", lead, exhibits=(Exhibit("Side by side", caption, drawings, (overview_table(groups),)),))


def _scaling(group: Group) -> Exhibit:
    told, points = group.prediction, group.points
    tables: tuple[Table, ...] = (group_table(group),)
    if len(points) < 2:
        return Exhibit("What was measured", "", (), tables)
    measured = (f"from {points[0].speedup:.2f} at {points[0].ranks} to {points[-1].speedup:.2f} at "
                f"{count(points[-1].ranks, 'rank')}")
    efficient = f"{points[-1].efficiency:.0%} at {count(points[-1].ranks, 'rank')}"
    caption = f"{group.verdict} {_SPEEDUP_CAPTION}"
    if told is not None:
        tables += (prediction_table(told),)
        caption += (f"Right of the dotted line, dashed and with the band of its uncertainty, nothing is measured. "
                    f"{told.basis}")
        efficient += f", predicted {percent(told.efficiency[-1])} at {told.ranks[-1]}" if told.ranks else ""
    drawings = (Drawing(f"Speed-up against ranks: {measured}; {group.label}", lambda: speedup_alone([group])),
                Drawing(f"Efficiency against ranks: {efficient}; {group.label}", lambda: efficiency_alone([group])))
    return Exhibit("Speed-up and efficiency", caption, drawings, tables)


def _stragglers(group: Group) -> Exhibit | None:
    found = None if group.trace is None else straggler_map(group.trace[1])
    if group.trace is None or found is None:
        return None
    alt = f"Straggler map: how busy each of {count(len(found.busy), 'rank')} was over time; {group.label}"
    caption = (f"The run at {count(group.trace[0], 'rank')}. A row that stays bright while the others are dark is a "
               "rank that the others wait for; rows all alike have nobody to wait for.")
    return Exhibit("Straggler map", caption, (Drawing(alt, lambda: stragglers_figure(found)),),
                   (_stragglers_table(found, group.points[-1].hosts),))


def _stragglers_table(found: Map, hosts: Sequence[str]) -> Table:
    """Return a row a rank: how busy it was on the whole and in its extreme intervals; CSV has every interval."""
    rows, cells = [], []
    for rank, shares in enumerate(found.busy):
        known = [float(share) for share in shares if share == share]  # not NaN
        host = hosts[rank] if rank < len(hosts) else None
        rows.append((rank, host, median(known) if known else None, min(known, default=None), max(known, default=None)))
        cells += [(rank, float(found.edges[i]), float(found.edges[i + 1]), float(share) if share == share else None)
                  for i, share in enumerate(shares)]
    keys = ("rank", "from_s", "to_s", "busy")
    full = table("stragglers", [Column("", key) for key in keys], cells)
    shown = table("stragglers", (Column("rank", "rank"), Column("host", ""),
                                 Column(f"{found.told}, median interval", "", percent),
                                 Column("least", "", percent), Column("most", "", percent)), rows)
    return Table(shown.name, shown.columns, shown.values, full)


def _losses(curves: Sequence[Curve]) -> Drawing:
    return Drawing(f"Training loss against seconds of {listed([one.name for one in curves])}",
                   lambda: losses_figure(curves))


def _losses_table(curves: Sequence[Curve]) -> Table:
    columns = (Column("job", "name"), Column("ranks", "ranks"), Column("time", "seconds", duration),
               Column("first loss", "", "{:.5g}".format), Column("least loss", "", "{:.5g}".format),
               Column("last loss", "loss", "{:.5g}".format))
    shown = table("losses", columns, [
        (one.name, one.ranks, one.points[-1][0], one.points[0][1], min(loss for _, loss in one.points),
         one.points[-1][1]) for one in curves])
    full = table("losses", [Column("", key) for key in ("name", "ranks", "seconds", "loss")],
                 [(one.name, one.ranks, at, loss) for one in curves for at, loss in one.points])
    return Table(shown.name, shown.columns, shown.values, full)
