"""Reports: the arithmetic against numbers worked out by hand, and documents safe with any record."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest

from dml_hpc.commands import report
from dml_hpc.console import Console
from dml_hpc.errors import UserError
from dml_hpc.reports import page, scaling, tables
from dml_hpc.reports.markdown import markdown
from dml_hpc.reports.scaling import analyse, karp_flatt
from dml_hpc.reports.sections import clock_note, document

HOSTILE = '<script>alert("1")</script> $\\frac{ | & --> https://example.org'


def train(ranks: int, seconds: float, **more: object) -> dict[str, object]:
    return {"command": "train", "ranks": ranks, "seconds": seconds,
            "objective": "logistic", "algorithm": "sync", "allreduce": "ring",
            "data": "flights/train", "arguments": ["train", "flights/train"], **more}


def split(read: float, compute: float, communicate: float, wait: float) -> dict[str, float]:
    return {"read": read, "compute": compute, "communicate": communicate, "wait": wait}


def bench(**more: object) -> dict[str, object]:
    results = [{"case": case, "bytes": n, "seconds_median": s, "bus_bandwidth_bytes_per_s": 1e9, "errors": 0}
               for case, n, s in (("mpi", 1024, 2e-6), ("ring", 1024, 5e-6), ("mpi", 2**26, 17e-3),
                                  ("ring", 2**26, 5e-3))]
    return {"command": "bench allreduce", "ranks": 4, "seconds": 9.0, "results": results, **more}


def write(path: Path, *records: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_speedup_efficiency_and_serial_fraction_by_hand() -> None:
    # A fifth of 10 s is serial: t(p) = 10 (0.2 + 0.8/p).
    (group,) = analyse([train(4, 4.0), train(1, 10.0), train(2, 6.0)]).groups
    assert [point.ranks for point in group.points] == [1, 2, 4]
    assert [point.speedup for point in group.points] == pytest.approx([1, 10 / 6, 2.5])
    assert [point.efficiency for point in group.points] == pytest.approx([1, 10 / 12, 0.625])
    assert group.points[0].serial_fraction is None
    assert [point.serial_fraction for point in group.points[1:]] == pytest.approx([0.2, 0.2])


def test_karp_flatt_of_ideal_no_and_super_linear_speedup() -> None:
    assert karp_flatt(4, 4) == 0
    assert karp_flatt(1, 4) == 1
    assert karp_flatt(5, 4) == pytest.approx((0.2 - 0.25) / 0.75)


def test_medians_over_repeats_and_their_spread() -> None:
    runs = [train(1, t) for t in (9.0, 30.0, 10.0)] + [train(2, t) for t in (4.0, 6.0)]
    (group,) = analyse(runs).groups
    one, two = group.points
    assert (one.repeats, one.seconds, one.seconds_min, one.seconds_max) == (3, 10.0, 9.0, 30.0)
    assert (two.repeats, two.seconds, two.speedup) == (2, 5.0, 2.0)


def test_a_base_of_more_than_one_rank_is_named_and_moves_the_ideal() -> None:
    (group,) = analyse([train(2, 8.0), train(8, 4.0)]).groups
    last = group.points[-1]
    assert (group.base, last.speedup, last.efficiency) == (2, 2.0, 0.5)
    assert last.serial_fraction == pytest.approx((1 / 2 - 1 / 4) / (1 - 1 / 4))
    assert "2 ranks, the fewest measured (ideal 4" in group.verdict
    assert "p/2" in clock_note(group)
    assert tables.group_table(group).csv().splitlines()[-1].split(",")[6] == "4.0"


def test_one_number_of_ranks_has_nothing_to_compare_and_no_figure(tmp_path: Path) -> None:
    (group,) = analyse([train(4, 3.0), train(4, 3.5)]).groups
    assert "nothing to compare" in group.verdict and "4 ranks only (2 runs)" in group.verdict
    records = write(tmp_path / "runs.jsonl", train(4, 3.0))
    with pytest.raises(UserError, match="two numbers of ranks"):
        report.run(Console(), (records,), tmp_path / "out.png", False)
    assert not (tmp_path / "out.png").exists()
    report.run(Console(), (records,), tmp_path / "out.html", False)
    assert "<svg" not in (tmp_path / "out.html").read_text(encoding="utf-8")


def test_different_jobs_stand_apart_under_the_names_that_tell_them_apart() -> None:
    groups = analyse([train(1, 2.0), train(2, 1.0), train(1, 2.0, allreduce="tree"),
                      train(1, 2.0, epochs=3)]).groups
    assert [len(group.points) for group in groups] == [2, 1, 1]
    assert [group.short for group in groups] == ["ring", "tree", "ring, epochs 3"]
    assert groups[0].label == "train, logistic, sync, ring, flights/train"


def test_what_auto_took_makes_no_other_job() -> None:
    runs = [train(p, 8 / p, allreduce="auto", fan_in=fan_in) for p in (1, 2) for fan_in in (None, 2)]
    assert [[point.repeats for point in group.points] for group in analyse(runs).groups] == [[2, 2]]


def test_work_without_start_up_is_timed_only_where_every_run_has_it() -> None:
    runs = [train(1, 9.0, work_s=8.0), train(2, 5.0, work_s=4.0)]
    (group,) = analyse(runs).groups
    assert (group.clock, group.points[-1].speedup) == ("work_s", 2.0)
    (group,) = analyse([*runs, train(4, 3.0)]).groups
    assert (group.clock, group.points[-1].speedup) == ("seconds", 3.0)


def test_the_verdict_names_where_the_time_went() -> None:
    (group,) = analyse([train(1, 10.0, time_split=split(1, 9, 0, 0)),
                        train(4, 5.0, time_split=split(0.25, 2.25, 2.0, 0.5))]).groups
    assert "2.50 s more than the ideal 2.50 s, communicating 2.00 s + waiting" in group.verdict
    assert "from 0% to 50% of the time" in group.verdict
    (group,) = analyse([train(1, 10.0, time_split=split(2, 8, 0, 0)),
                        train(4, 4.0, time_split=split(2, 2, 0, 0))]).groups
    assert "reading 1.50 s" in group.verdict and "communicating 1" not in group.verdict
    assert "little is lost" in analyse([train(1, 10.0), train(2, 5.1)]).groups[0].verdict
    assert "without a time split" in analyse([train(1, 10.0), train(2, 9.0)]).groups[0].verdict
    noisy = analyse([train(1, 10.0), train(1, 7.0), train(2, 8.0), train(2, 6.0)]).groups[0]
    assert "may be noise" in noisy.verdict
    slower = analyse([train(1, 10.0), train(2, 6.0), train(4, 7.0)]).groups[0]
    assert "fastest at 2 ranks" in slower.verdict


def test_what_a_record_lacks_is_said_never_guessed() -> None:
    odd = [train(1, 4.0, time_split={"read": 1.0, "compute": "fast"}), train(2, float("nan")), train(2, True),
           {"command": "train", "ranks": "four", "seconds": 1.0},
           {"command": "doctor", "ranks": 1, "seconds": 1.0},
           {"command": "mf", "ranks": 2}, bench(results=[{"case": "ring"}, "?"])]
    analysis = analyse(odd)
    assert len(analysis.groups) == 1 and not analysis.benches
    assert analysis.groups[0].points[0].split == {"read": 1.0}
    said = " ".join(analysis.left_out)
    assert "3 left out: a record has a time in neither" in said
    assert "'ranks' is not a positive whole number" in said and "'doctor' runs on one process" in said
    assert "2 left out: a benchmark result" in said


def test_benchmarks_stand_size_against_reducer() -> None:
    slow = bench()
    slow["results"] = [{**r, "seconds_median": 3 * r["seconds_median"]} for r in slow["results"]]
    (table,) = analyse([bench(), slow]).benches
    assert tables.bench_table(table).header == ("size", "mpi", "ring")
    assert tables.bench_table(table).rows[0] == ("1 KiB", "4.00 µs (1 GB/s)", "10.0 µs (1 GB/s)")
    assert table.verdict == "Fastest: mpi at 1 KiB (4.00 µs), ring at 64 MiB (10.0 ms)."


def test_a_wrong_sum_does_not_win() -> None:
    wrong = bench()
    wrong["results"] = [{**r, "errors": 7 if r["case"] == "ring" else 0} for r in wrong["results"]]
    (table,) = analyse([wrong]).benches
    assert "ring at" not in table.verdict and "2 results wrong" in table.verdict
    assert "7 WRONG" in tables.bench_table(table).rows[1][2]


@pytest.mark.parametrize(("value", "text"), [
    (0, "0 s"), (2.41e-6, "2.41 µs"), (9.996e-6, "10.0 µs"), (0.0017, "1.70 ms"), (0.9999, "1.00 s"),
    (99.96, "100 s"), (1234.5, "1234 s")])
def test_durations(value: float, text: str) -> None:
    assert scaling.duration(value) == text


def test_sizes() -> None:
    assert [scaling.size(n) for n in (0, 512, 1024, 3 * 2**19, 2**31, None)] == [
        "0 B", "512 B", "1 KiB", "1.5 MiB", "2 GiB", "–"]


@pytest.mark.parametrize("line", ["{", "[1]", '{"command": "train"}'])
def test_a_bad_line_is_named_by_file_and_line(tmp_path: Path, line: str) -> None:
    records = write(tmp_path / "runs.jsonl", train(1, 2.0))
    records.write_text(records.read_text() + line + "\n")
    with pytest.raises(UserError, match=r"runs\.jsonl:2 "):
        report.run(Console(), (records,), tmp_path / "out.md", False)


def test_the_output_is_checked_before_the_records_are_read(tmp_path: Path) -> None:
    output = tmp_path / "out.md"
    output.write_text("mine")
    with pytest.raises(UserError, match="--overwrite"):
        report.run(Console(), (tmp_path / "missing.jsonl",), output, False)
    with pytest.raises(UserError, match=r"\.html, \.png, \.md or \.csv"):
        report.run(Console(), (tmp_path / "missing.jsonl",), tmp_path / "out.pdf", False)
    with pytest.raises(UserError, match=r"nothing to report.*doctor"):
        report.run(Console(), (write(tmp_path / "d.jsonl", {"command": "doctor", "ranks": 1}),), output, True)
    assert output.read_text() == "mine"


def test_every_form_is_written_and_the_result_is_json(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = write(tmp_path / "runs.jsonl", train(1, 4.0, time_split=split(1, 3, 0, 0)),
                    train(2, 2.5, time_split=split(0.5, 1.5, 0.4, 0.1)), bench())
    for suffix in report.SUFFIXES:
        result = report.run(Console(), (records,), tmp_path / f"out{suffix}", False)
    assert result["records"] == 3 and len(result["groups"]) == 1
    json.dumps(result, allow_nan=False)
    assert "2 ranks ran 1.60 times as fast as 1 rank" in capsys.readouterr().out
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    rows = [row for row in csv.DictReader((tmp_path / "out.csv").open(encoding="utf-8")) if row["kind"] != "predicted"]
    assert len(rows) == 2 + 4 and float(rows[1]["speedup"]) == 1.6 and rows[2]["case"] == "mpi"
    assert "| 2 | 1 | 2.50 s | 1.60 |" in (tmp_path / "out.md").read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["runs.jsonl", *(f"out{suffix}" for suffix in report.SUFFIXES)])


def test_tables_need_no_matplotlib_and_figures_say_what_to_install(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = write(tmp_path / "runs.jsonl", train(1, 4.0), train(2, 2.5))
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    report.run(Console(), (records,), tmp_path / "out.csv", False)
    for suffix in (".html", ".png"):
        with pytest.raises(UserError, match=r"pip install 'dml-hpc\[report\]'"):
            report.run(Console(), (records,), tmp_path / f"out{suffix}", False)
        assert not (tmp_path / f"out{suffix}").exists()


def test_ranks_that_were_slow_are_named_the_worst_first() -> None:
    slow = [{"rank": 3, "ratio": 1.6, "host": "node17", "since_step": 5}, {"rank": 3, "ratio": 2.5, "host": "node17"}]
    other = {"rank": 0, "ratio": 1.25, "host": "node2"}
    runs = [train(4, 3.0, stragglers=slow), train(4, 3.0, stragglers=[]), train(8, 2.0, stragglers=[other]),
            train(8, 2.0, stragglers=[HOSTILE, {"rank": None, "ratio": 2}, {"rank": 1, "ratio": HOSTILE}]),
            train(2, 5.0, stragglers=HOSTILE), train(1, 9.0)]
    (group,) = analyse(runs).groups
    first, second = group.stragglers
    assert "rank 3 of 4, on node17, took 2.5 times as long" in first and "in 1 of 2 runs" in first
    assert "rank 0 of 8, on node2, took 1.2 times" in second
    report = document(analyse(runs), runs)
    assert first in markdown(report) and second in page.html_page(report, runs)
    many = [{"rank": rank, "ratio": 2, "host": HOSTILE} for rank in range(20)]
    (group,) = analyse([train(32, 1.0, stragglers=many)]).groups
    assert len(group.stragglers) == scaling.MOST_STRAGGLERS + 1 and "12 other ranks" in group.stragglers[-1]
    many_slow = [train(32, 1.0, stragglers=many)]
    assert "<script" not in page.html_page(document(analyse(many_slow), many_slow), many_slow)
