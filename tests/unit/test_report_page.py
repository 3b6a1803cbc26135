"""The page: every figure has its table, nothing is fetched, and no record can break it."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report_support import HOSTILE, bench, odd, run, usual, write

from dml_hpc.cli import main
from dml_hpc.commands import report
from dml_hpc.console import Console
from dml_hpc.errors import UserError
from dml_hpc.reports.comparing import Change
from dml_hpc.reports.csv_form import csv_text
from dml_hpc.reports.markdown import markdown
from dml_hpc.reports.page import html_page
from dml_hpc.reports.provenance import machines_table
from dml_hpc.reports.scaling import analyse
from dml_hpc.reports.sections import comparison, document, predicted_benches
from dml_hpc.reports.tables import percent

VOID = {"meta", "br", "img", "link", "input", "hr", "wbr"}


class Page(HTMLParser):
    """Which exhibits a page has, and that its elements are nested rightly."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.exhibits: list[dict[str, Any]] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.ids: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        own = {name: value or "" for name, value in attributes}
        self.attributes += [(tag, name, value) for name, value in own.items()]
        self.ids += [own["id"]] if "id" in own else []
        if own.get("class") == "exhibit":
            self.exhibits.append({"figures": 0, "rows": 0, "alts": [], "downloads": []})
        if tag == "svg":
            self.exhibits[-1]["alts"].append(own.get("aria-label"))
        if tag == "figure":
            self.exhibits[-1]["figures"] += 1
        if tag == "tr" and self.exhibits:
            self.exhibits[-1]["rows"] += 1
        if tag == "a" and "download" in own and own["href"].startswith("data:text/csv"):
            self.exhibits[-1]["downloads"].append(b64decode(own["href"].partition("base64,")[2]).decode())
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attributes]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page(records: list[dict[str, Any]]) -> str:
    return html_page(document(analyse(records), records), records)


def test_every_figure_has_its_table_its_words_and_its_numbers_to_download() -> None:
    found = Page(page(usual()))
    drawn = [exhibit for exhibit in found.exhibits if exhibit["figures"]]
    assert len(drawn) >= 2 + 3 + 1 + 1  # two jobs: speed-up and phases, stragglers; losses; bandwidth
    for exhibit in found.exhibits:
        assert exhibit["rows"] > 1 and exhibit["downloads"]
        assert all(exhibit["alts"])
        for text in exhibit["downloads"]:
            header, *rows = csv.reader(io.StringIO(text))
            assert rows and all(len(row) == len(header) and all(header) for row in rows)


def test_what_the_report_must_show_is_there() -> None:
    records = usual()
    text = page(records)
    analysis = analyse(records)
    for group in analysis.groups:
        assert group.explanation is not None
        assert text.index(group.label) < text.index(group.explanation.paragraph[:20])
    for title in ("Speed-up and efficiency", "Where each rank's time went", "Straggler map", "Fitted laws", "Cost",
                  "Bus bandwidth against the wire", "Loss against time", "Commands", "Machines and versions",
                  "Records"):
        assert f">{title.replace(chr(39), '&#x27;')}<" in text, title
    assert "mpirun -n 4 dml-hpc train flights/train -o model.h5" in text
    assert "predicted efficiency" in text and "<td>1024</td>" in text.replace(' style="text-align: left"', "")


def test_equal_machines_have_one_row_and_different_ones_two() -> None:
    same = [run(1, environment={"host": f"n{i}", "cpu": "EPYC", "slurm_job": str(i)}) for i in range(5)]
    rows = machines_table([*same, run(2, environment={"host": "m0", "cpu": "Xeon"})]).rows
    assert rows == [("0.1.0", "5", "1", "n0, n1, n2 and 2 more", "cpu EPYC"), ("0.1.0", "1", "1", "m0", "cpu Xeon")]


def test_the_records_are_in_the_page_whole() -> None:
    records = usual()
    packed = re.search(r'download="records.jsonl.gz" href="data:application/gzip;base64,([^"]*)"', page(records))
    assert packed is not None
    lines = gzip.decompress(b64decode(packed[1])).decode().splitlines()
    assert [json.loads(line) for line in lines] == records


@pytest.mark.parametrize("kind", odd())
def test_no_record_breaks_the_page_or_makes_it_ask_for_anything(kind: str) -> None:
    records = odd()[kind]
    report_of = document(analyse(records), records)
    html = html_page(report_of, records)
    found = Page(html)
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & {tag for tag, _, _ in found.attributes}
    assert not re.search(r"<script|@import|\bon\w+\s*=\s*[\"']?alert", html)
    assert not [name for _, name, _ in found.attributes if name.startswith("on")]
    for tag, name, value in found.attributes:
        if name in ("href", "src", "xlink:href"):
            assert value.startswith(("#", "data:text/csv", "data:application/gzip", "data:image/png")), (tag, value)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
    assert len(found.ids) == len(set(found.ids))
    assert "nan" not in re.sub(r"<pre>.*?</pre>|base64,[^\"]*", "", html, flags=re.DOTALL).lower().split()
    assert all(exhibit["rows"] > 1 for exhibit in found.exhibits)
    assert len(html) < 12e6
    text = markdown(report_of)
    assert "<script" not in text and "\n## " in text


def test_the_same_records_make_the_same_page() -> None:
    assert page(usual()) == page(usual())


def test_a_cell_is_no_formula_for_a_spreadsheet() -> None:
    records = [run(1, data="=cmd|' /C calc'!A0"), run(2, data="=cmd|' /C calc'!A0"),
               bench(results=[{"case": "@SUM(1)", "bytes": 8, "seconds_median": 1.0}])]
    cells = [cell for row in csv.reader(io.StringIO(csv_text(analyse(records)))) for cell in row]
    assert "'@SUM(1)" in cells and not [cell for cell in cells if cell[:1] in ("=", "+", "@")]


def test_predictions_stand_apart_from_measurements_in_csv() -> None:
    analysis = analyse(usual())
    rows = list(csv.DictReader(io.StringIO(csv_text(analysis))))
    measured = [row for row in rows if row["kind"] == "measured"]
    predicted = [row for row in rows if row["kind"] == "predicted"]
    assert len(measured) == sum(len(group.points) for group in analysis.groups)
    assert predicted and max(int(row["ranks"]) for row in predicted) == 1024
    assert all(row["seconds"] == "" and float(row["predicted_seconds"]) > 0 for row in predicted)
    assert all(row["predicted_seconds"] == "" and float(row["seconds"]) > 0 for row in measured)


def test_benchmarks_on_more_nodes_are_drawn_as_predictions() -> None:
    records = [bench(2), bench(4)]
    analysis = analyse(records)
    told = analysis.bench_predictions[0]
    (section,) = predicted_benches(analysis)
    assert section.title == "Predicted: bench allreduce, 1 rank a node" and told.basis in section.exhibits[0].caption
    rows = list(csv.DictReader(io.StringIO(section.exhibits[0].tables[0].csv())))
    assert (rows[0]["case"], int(rows[0]["nodes"])) == (told.case, told.nodes[0])
    assert float(rows[0]["predicted_seconds"]) == told.seconds[0]
    assert "Predicted: bench allreduce" in page(records)


def test_a_comparison_says_what_got_slower_first() -> None:
    changes = (Change("sync", 4, 1.0, 1.01, 1.01, 0.98, 1.03, "same"),
               Change("local", 4, 1.0, 1.5, 1.5, None, None, "unknown"),
               Change("tree", 8, 2.0, 2.6, 1.3, 1.2, 1.4, "slower"),
               Change("ring", 8, 2.0, 3.0, 1.5, 1.4, 1.6, "slower"))
    section = comparison(changes)
    assert "2 slower beyond noise, 1 the same within noise and 1 with too few runs" in section.lead
    assert section.lines[0] == "Slower: ring at 8 ranks, from 2.00 s to 3.00 s, 1.50 times as long."
    assert [row[0] for row in section.exhibits[0].tables[0].rows] == ["ring", "tree", "local", "sync"]
    assert "Nothing to compare" in comparison(()).lead


def test_the_verb_compares_two_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = write(tmp_path / "a.jsonl", *(run(ranks, repeat) for ranks in (1, 2) for repeat in range(4)))
    after = write(tmp_path / "b.jsonl", *({**one, "work_s": one["work_s"] * (1.5 if one["ranks"] == 2 else 1)}
                                          for ranks in (1, 2) for repeat in range(4) for one in [run(ranks, repeat)]))
    result = report.run(Console(), (), tmp_path / "out.html", False, compared=(before, after))
    assert [(one["ranks"], one["verdict"]) for one in result["changes"]] == [(2, "slower"), (1, "same")]
    assert "Slower: train" in capsys.readouterr().out
    text = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert text.index("1 slower beyond noise") < text.index("Speed-up and efficiency")
    assert report.run(Console(), (), None, False, compared=(before, before))["output"] is None
    with pytest.raises(UserError, match="not both"):
        report.run(Console(), (before,), None, False, compared=(before, after))


def test_a_format_needs_no_ending(tmp_path: Path) -> None:
    records = write(tmp_path / "runs.jsonl", run(1), run(2))
    for form, start in (("html", b"<!DOCTYPE html>"), ("markdown", b"# Scaling report"), ("png", b"\x89PNG"),
                        ("csv", b"kind,job,")):
        report.run(Console(), (records,), tmp_path / form, False, form=form)
        assert (tmp_path / form).read_bytes().startswith(start)
    with pytest.raises(UserError, match="say which with -o"):
        report.run(Console(), (records,), None, False, form="csv")


def test_an_efficiency_below_the_least_fails(tmp_path: Path) -> None:
    records = write(tmp_path / "runs.jsonl", run(1), run(8))
    failed = report.run(Console(), (records,), None, False, fail_under=0.95)
    assert failed["exit_code"] == 1 and "efficiency" in failed["below"][0]
    passed = report.run(Console(), (records,), None, False, fail_under=0.1)
    assert "exit_code" not in passed and passed["below"] == []
    json.dumps(failed, allow_nan=False)
    with pytest.raises(UserError, match="two numbers of ranks"):
        report.run(Console(), (write(tmp_path / "one.jsonl", run(1)),), None, False, fail_under=0.5)


@pytest.mark.parametrize(("value", "text"), [
    (1.0, "100%"), (0.866, "87%"), (0.0421, "4.2%"), (0.0003, "0.03%"), (0.0, "0%"), (1.234, "123%"), (0.0995, "10%"),
    (0.0994, "9.9%"), (1e-9, "<0.01%"), (1e-4, "0.01%")])
def test_percentages(value: float, text: str) -> None:
    assert percent(value) == text


def test_hostile_text_is_shown_as_it_is() -> None:
    html = page(odd()["hostile"])
    assert "&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;" in html
    assert html.count(HOSTILE) == 0


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records, out = str(write(tmp_path / "runs.jsonl", run(1), run(8))), str(tmp_path / "report")
    assert main(["report", records, "-o", out, "--format", "markdown"]) == 0
    assert main(["report", records, "-o", f"{out}.png", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["output"] == f"{out}.png"
    assert main(["report", records, "--fail-under", "0.95"]) == 1
    assert main(["report", "--compare", records, records]) == 0
    assert "too few runs to tell" in capsys.readouterr().out
    assert main(["report", records, "-o", f"{out}.pdf"]) == 2
    assert main(["report"]) == 2
