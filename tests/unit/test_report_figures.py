"""The report's figures draw the numbers of their tables, and what was not measured stands apart."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from report_support import HOSTILE, bench, run, usual

from dml_hpc.reports.figures.bandwidth import bandwidth_figure, wire_limit
from dml_hpc.reports.figures.by_nodes import by_nodes_figure, largest
from dml_hpc.reports.figures.canvas import page_svg
from dml_hpc.reports.figures.losses import curve, losses_figure
from dml_hpc.reports.figures.phases import MOST_BARS, blocks, caption, phases_figure
from dml_hpc.reports.figures.speedup import efficiency_alone, speedup_figure
from dml_hpc.reports.figures.stragglers import busiest, straggler_map, stragglers_figure
from dml_hpc.reports.scaling import analyse

pytestmark = pytest.mark.filterwarnings("error")


def job():
    return analyse(usual()).groups[0]


def lines(axes, name):
    return [line for line in axes.get_lines() if line.get_label() == name]


def test_measured_predicted_and_ideal_are_drawn_apart():
    group = job()
    left, right = speedup_figure([group]).axes
    (predicted,), (ideal,) = lines(right, "predicted"), lines(right, "ideal")
    assert predicted.get_linestyle() == "--" and ideal.get_linestyle() != "-"
    # The prediction sets out from the last measurement.
    assert list(predicted.get_xdata()) == [8, *group.prediction.ranks]
    np.testing.assert_allclose(predicted.get_ydata(), [group.points[-1].efficiency, *group.prediction.efficiency])
    measured = next(line for line in right.get_lines()
                    if line.get_linestyle() == "-" and list(line.get_xdata()) == [1, 2, 4, 8])
    np.testing.assert_allclose(list(measured.get_ydata()), [point.efficiency for point in group.points])
    # A line where measuring ends, and a band as wide as the interval.
    assert [line for line in right.get_lines() if list(line.get_xdata()) == [8, 8]]
    band = next(found for found in right.collections if len(found.get_paths()[0].vertices) > 10)
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.min() == pytest.approx(min(group.prediction.efficiency_low))
    np.testing.assert_allclose(lines(left, "predicted")[0].get_ydata()[1:],
                               np.multiply(group.prediction.efficiency, group.prediction.ranks))


def test_error_bars_reach_to_the_ends_of_the_interval():
    group = job()
    (axes,) = efficiency_alone([group]).axes
    bars = next(found for found in axes.collections if len(found.get_paths()) == len(group.points))
    for point, path in zip(group.points, bars.get_paths(), strict=True):
        ends = sorted(path.vertices[:, 1])
        assert ends == pytest.approx([point.efficiency * point.seconds / point.high,
                                      point.efficiency * point.seconds / point.low])


def test_several_jobs_have_a_curve_each_and_no_prediction():
    groups = analyse(usual()).groups
    left, _ = speedup_figure(groups).axes
    assert not lines(left, "predicted")
    names = left.get_legend_handles_labels()[1]
    assert {group.short for group in groups} <= set(names)


def test_a_bar_a_rank_adds_up_to_its_step():
    group = job()
    (axes,) = phases_figure(group, dict.fromkeys((1, 2, 4, 8), 400.0)).axes
    tops = {}
    for bar in axes.patches:
        left = round(bar.get_x(), 6)
        tops[left] = max(tops.get(left, 0.0), bar.get_y() + bar.get_height())
    assert len(tops) == 1 + 2 + 4 + 8
    expected = [sum(rank[phase] for phase in ("read", "compute", "communicate", "wait")) / 400
                for point in group.points for rank in point.per_rank]
    np.testing.assert_allclose([tops[left] for left in sorted(tops)], expected)
    assert [text.get_text() for text in axes.texts] == ["rank 1", "rank 1"]  # at 4 and at 8 ranks


def test_of_many_ranks_the_slowest_is_always_among_the_bars():
    (group,) = analyse([run(1), run(512, slow=300, points=2)]).groups
    _, block = blocks(group)
    assert len(block.phases) <= MOST_BARS and block.neighbours == 8
    assert max(bar["compute"] for bar in block.phases) == group.points[-1].per_rank[300]["compute"]
    assert "512 ranks each bar is the busiest of 8" in caption(group)
    assert "near rank 296" in [text.get_text() for text in phases_figure(group).axes[0].texts]


def test_without_ranks_one_bar_stands_for_all():
    records = [{key: value for key, value in run(ranks).items() if key != "per_rank"} for ranks in (1, 4)]
    (group,) = analyse(records).groups
    assert [len(block.phases) for block in blocks(group)] == [1, 1]
    assert "largest of each phase over ranks" in caption(group)


def test_the_straggler_map_shows_who_was_busy_when():
    # Rank 0 works for the first of two seconds, then waits; rank 1 works all the time.
    trace = [[{"seconds": 1.0, "read": 0.25, "compute": 0.75, "communicate": 0.0, "wait": 0.0},
              {"seconds": 2.0, "read": 0.25, "compute": 0.75, "communicate": 0.5, "wait": 0.5}],
             [{"seconds": 1.0, "read": 0.0, "compute": 1.0, "communicate": 0.0, "wait": 0.0},
              {"seconds": 2.0, "read": 0.0, "compute": 2.0, "communicate": 0.0, "wait": 0.0}]]
    found = straggler_map(trace)
    np.testing.assert_allclose(found.edges, [0, 1, 2])
    np.testing.assert_allclose(found.busy, [[1, 0], [1, 1]])
    image = stragglers_figure(found).axes[0].get_images()[0]
    np.testing.assert_allclose(image.get_array(), found.busy)


def test_a_map_of_older_records_knows_who_waited():
    # Idle is the share so far: 0 of the first second, a half of both.
    trace = [[{"seconds": 1.0, "idle": 0.0}, {"seconds": 2.0, "idle": 0.5}],
             [{"seconds": 1.0, "idle": 0.0}, {"seconds": 2.0, "idle": 0.0}]]
    found = straggler_map(trace)
    np.testing.assert_allclose(found.busy, [[1, 0], [1, 1]])
    assert found.told == "not waiting for others"


def test_a_rank_that_tells_nothing_stays_grey_and_one_rank_has_no_map():
    point = {"seconds": 1.0, "idle": 0.25}
    found = straggler_map([[point], [], [{"seconds": math.nan, "idle": 0.1}, "?"]])
    np.testing.assert_allclose(found.busy[0], [0.75])
    assert np.isnan(found.busy[1:]).all()
    stragglers_figure(found).draw_without_rendering()
    assert straggler_map([[point]]) is None and straggler_map([]) is None and straggler_map([[], []]) is None


def test_the_busiest_neighbour_stands_for_a_row():
    shares = np.zeros((8, 3))
    shares[5] = 1
    np.testing.assert_array_equal(busiest(shares, 4), [[0, 0, 0], [1, 1, 1]])


def test_the_loss_is_the_mean_over_ranks():
    found = curve("sync", 2, [[{"seconds": 1.0, "loss": 2.0}, {"seconds": 2.0, "loss": 1.0}],
                              [{"seconds": 1.5, "loss": 4.0}, {"seconds": 2.5, "loss": None}]])
    assert found.points == [(1.5, 3.0), (2.5, 1.0)]
    (axes,) = losses_figure([found]).axes
    np.testing.assert_allclose(axes.get_lines()[0].get_xydata(), found.points)
    assert curve("none", 1, [[{"seconds": 1.0}], "?"]) is None


def test_bandwidth_is_held_against_the_wire():
    (found,) = analyse([bench(8)]).benches
    # One rank a node: a ring moves 2·7/8 of the vector over each link, which is how bus bandwidth counts.
    assert wire_limit(found) == pytest.approx(1.25e8)
    (axes,) = bandwidth_figure(found).axes
    level = next(line for line in axes.get_lines() if list(line.get_xdata()) == [0, 1])
    assert level.get_ydata()[0] == pytest.approx(0.125)
    (ring,) = lines(axes, "ring float32")
    np.testing.assert_allclose(ring.get_ydata(), [2**10 / 8e-4 * 1.75e-9, 2**20 / 19.2e-3 * 1.75e-9,
                                                  2**24 / 0.28 * 1.75e-9])
    (one_node,) = analyse([{**bench(8), "nodes": 1}]).benches
    assert wire_limit(one_node) is None


def test_predicted_all_reduces_are_dashed_and_set_out_from_what_was_measured():
    analysis = analyse([bench(2), bench(4)])
    shown = largest(analysis.bench_predictions)
    assert {one.bytes for one in shown} == {2**24}
    (axes,) = by_nodes_figure(shown, analysis.benches).axes
    dashed = [line for line in axes.get_lines() if line.get_linestyle() == "--" and len(line.get_xdata()) > 2]
    assert [list(line.get_xdata()) for line in dashed] == [[4, *one.nodes] for one in shown]
    np.testing.assert_allclose(dashed[0].get_ydata()[1:], 1e3 * np.array(shown[0].seconds))


def test_a_figure_follows_the_theme_of_its_page():
    svg = page_svg(efficiency_alone([job()]), HOSTILE, "f7")
    found = ElementTree.fromstring(svg)
    assert found.get("aria-label") == HOSTILE
    assert "var(--ink, #222222)" in svg and "var(--muted, #666666)" in svg and "var(--grid, #E4E4E4)" in svg
    assert not re.search(r"(fill|stroke): #(222222|666666|ffffff)", svg)  # no ink of its own
    named = [element.get("id") for element in found.iter() if element.get("id")]
    assert named and all(name.startswith("f7-") for name in named)
    used = re.findall(r'(?:url\(|href=")#([\w-]+)', svg)
    assert used and set(used) <= set(named)
    text = [element for element in found.iter() if element.tag.endswith("}text")]
    assert "measured" in {element.text for element in text}


def test_every_curve_is_named():
    records = [run(ranks, data=name, algorithm=name) for ranks in (1, 2) for name in ("_hidden", "seen")]
    names = [text.get_text().strip() for text in speedup_figure(analyse(records).groups).legends[0].get_texts()]
    assert [name.split(", ")[0] for name in names] == ["_hidden", "seen", "ideal"]


def test_a_name_is_not_mathematics():
    (group, *_) = analyse([run(ranks, allreduce=name) for ranks in (1, 2) for name in (HOSTILE, "ring")]).groups
    speedup_figure([group, group]).draw_without_rendering()
    (found,) = analyse([bench(results=[{"case": HOSTILE, "bytes": 8, "seconds_median": 1.0,
                                        "bus_bandwidth_bytes_per_s": 8.0}])]).benches
    bandwidth_figure(found).draw_without_rendering()
