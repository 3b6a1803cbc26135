"""The report's page in a headless Chromium: nothing asked of any network, no error, all of it to be seen and read."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from browser_support import Tab, browser
from report_support import odd, usual

from dml_hpc.reports.page import html_page
from dml_hpc.reports.scaling import analyse
from dml_hpc.reports.sections import document

PROGRAM = browser()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium on the PATH (Debian: apt-get install chromium)")

# Of each text of a figure: whether it lies inside the figure, its size on the screen, what it lies upon, its contrast.
TEXTS = """
(() => {
  const channel = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = colour => { const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map(channel);
                            return 0.2126 * r + 0.7152 * g + 0.0722 * b };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  return [...document.querySelectorAll('figure svg')].map(svg => {
    const box = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll('text')].map(text => {
      const own = text.getBoundingClientRect(), style = getComputedStyle(text), ink = light(style.fill);
      const [high, low] = ink > paper ? [ink, paper] : [paper, ink];
      return { text: text.textContent, left: own.left, right: own.right, top: own.top, bottom: own.bottom,
               inside: own.left >= box.left - 1 && own.right <= box.right + 1 && own.top >= box.top - 1
                       && own.bottom <= box.bottom + 1,
               contrast: (high + 0.05) / (low + 0.05),
               size: parseFloat(style.fontSize) * box.width / svg.viewBox.baseVal.width } });
    return { label: svg.getAttribute('aria-label'), width: box.width, height: box.height, texts } });
})()
"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    found = Tab(PROGRAM, tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return written(tmp_path_factory.mktemp("usual"), usual())


def written(folder: Path, records) -> Path:
    path = folder / "report.html"
    path.write_text(html_page(document(analyse(records), records), records), encoding="utf-8")
    return path


def check_quiet(tab: Tab, path: Path) -> None:
    """Nothing on the console, nothing thrown, nothing asked for but the page itself and what it holds."""
    noisy = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
    assert [event for event in tab.events if event[0] in noisy] == []
    asked = [event["request"]["url"] for method, event in tab.events if method == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]


def overlaps(texts) -> list[tuple[str, str]]:
    """Return pairs of texts that lie upon one another by more than a pixel or two."""
    return [(a["text"], b["text"]) for i, a in enumerate(texts) for b in texts[i + 1:]
            if min(a["right"], b["right"]) - max(a["left"], b["left"]) > 1
            and min(a["bottom"], b["bottom"]) - max(a["top"], b["top"]) > 3]


@pytest.mark.parametrize("width", [1280, 375])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read(tab, path, width, scheme):
    tab.open(path, width, scheme)
    check_quiet(tab, path)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width  # nothing makes the page scroll sideways
    figures = tab.evaluate(TEXTS)
    assert len(figures) >= 7
    for figure in figures:
        assert figure["width"] > 250 and figure["height"] > 100, figure["label"]
        assert figure["label"] and figure["texts"]
        for text in figure["texts"]:
            assert text["inside"], (figure["label"], text)
            assert text["size"] >= (8.5 if width < 500 else 11), (figure["label"], text)
            assert text["contrast"] >= 4.5, (figure["label"], text)
        assert overlaps(figure["texts"]) == [], figure["label"]


def test_every_figure_has_its_table_a_click_away(tab, path):
    tab.open(path, 1280)
    without = tab.evaluate("""[...document.querySelectorAll('.exhibit')].filter(one => one.querySelector('figure')
        && !one.querySelector('details table tbody tr')).map(one => one.textContent.slice(0, 40))""")
    assert without == []
    assert tab.evaluate("document.querySelectorAll('details:not([open])').length") >= 5
    hidden = tab.evaluate("""[...document.querySelectorAll('details')].map(one => { one.open = true;
        return one.querySelector('table, pre').getBoundingClientRect().height }).filter(height => height < 10)""")
    assert hidden == []


def test_what_is_downloaded_is_the_table(tab, path):
    tab.open(path, 1280)
    files = tab.evaluate("""Promise.all([...document.querySelectorAll('a[download$=".csv"]')]
        .map(link => fetch(link.href).then(answer => answer.text()).then(text => [link.download, text])))""")
    assert {name for name, _ in files} >= {"measured.csv", "predicted.csv", "stragglers.csv", "losses.csv", "cost.csv"}
    for name, text in files:
        header, *rows = csv.reader(io.StringIO(text))
        assert rows and all(len(row) == len(header) for row in rows), name
    check_quiet(tab, path)


def test_on_paper_ink_is_black_whatever_the_screen(tab, path):
    tab.open(path, 700, "dark", media="print")
    assert tab.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert all(text["contrast"] > 4.5 for figure in tab.evaluate(TEXTS) for text in figure["texts"])


@pytest.mark.parametrize("kind", [kind for kind in odd() if kind != "40 jobs"])
def test_no_record_makes_the_page_speak_or_ask(tab, tmp_path, kind):
    path = written(tmp_path, odd()[kind])
    tab.open(path, 375)
    check_quiet(tab, path)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 375
    for figure in tab.evaluate(TEXTS):
        assert all(text["inside"] for text in figure["texts"]), figure["label"]
        assert overlaps(figure["texts"]) == [], figure["label"]
