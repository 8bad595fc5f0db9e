"""The HTML page of a run: its figures, and what a real browser makes of them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from run_logs import CONFIG, interval, make

from widen.train.monitor_html import MOST_POINTS, write_html
from widen.train.run_folder import RunFolder


@pytest.fixture
def finished(tmp_path):
    return make(tmp_path / "turn", total=3)


def data_of(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert found
    return json.loads(found[1])


def test_html_holds_the_figures_and_nothing_from_outside(finished, tmp_path):
    page_file = tmp_path / "page.html"
    write_html(finished, page_file)
    page = page_file.read_text()
    assert re.findall(r"""(?:src|href)=["'](?!#)|url\(|@import|fetch\(""", page) == []
    assert set(re.findall(r"https?://[^\s\"']+", page)) == {"http://www.w3.org/2000/svg"}
    data = data_of(page)
    assert data["name"] == "turn"
    assert data["about"] == "cube_rotate · leap · curriculum adr · 512 environments · seed 3"
    assert data["made"].startswith("python 3.")
    assert data["finished"] is True
    assert data["steps"] == [1000, 2000, 3000]
    assert data["npd"] == [None, -1.5, -1.5]
    assert data["parameters"][0]["high"] == [1.0, 2.0, 3.0]
    assert data["parameters"][0]["score_low"] == [None, None, 12.0]
    assert (data["widen_at"], data["narrow_at"]) == (20, 10)


def test_html_overwrites_only_its_own_pages(finished, tmp_path):
    page = tmp_path / "page.html"
    write_html(finished, page)
    finished.append(interval(4, 4, (1.0, 3.0, 12.0, 21.5), (0.0, 0.5, None, 18.0)))
    write_html(finished, page)
    assert data_of(page.read_text())["steps"][-1] == 4000
    beside = tmp_path / "page.html.tmp"
    beside.write_text("mine")
    write_html(finished, page)
    assert beside.read_text() == "mine"
    foreign = tmp_path / "mine.html"
    foreign.write_text("<p>mine")
    for path, message in (
        (foreign, "mine.html exists and is no page of widen monitor"),
        (tmp_path, "is a folder"),
        (tmp_path / "no" / "page.html", "expected an existing folder"),
    ):
        with pytest.raises(ValueError, match=message):
            write_html(finished, path)
    assert foreign.read_text() == "<p>mine"


def test_html_of_a_long_run_is_thinned(tmp_path):
    run = RunFolder.create(tmp_path / "long", CONFIG)
    run.append(*(interval(i, 10_000, (1, 2, 3, 4), (0, 0, 0, 0)) for i in range(1, 10_001)))
    write_html(run, tmp_path / "page.html")
    data = data_of((tmp_path / "page.html").read_text())
    assert len(data["steps"]) == MOST_POINTS == len(data["parameters"][1]["low"])
    assert (data["steps"][0], data["steps"][-1]) == (1000, 10_000_000)
    assert data["goals_mean"][-1] == 40_000


class Page(HTMLParser):
    """What the browser made of a page: the body's data, each chart's shapes, and the text."""

    def __init__(self, dom: str) -> None:
        super().__init__()
        self.body: dict[str, str | None] = {}
        self.charts: dict[str, dict] = {}
        self.text: list[str] = []
        self._chart: dict | None = None
        self._silent = False
        self.feed(dom)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self._silent = tag in ("script", "style")
        if tag == "body":
            self.body = attributes
        elif tag == "svg":
            self._chart = {key: _numbers(attributes[f"data-{key}"]) for key in ("plot", "domain")}
            self.charts[attributes["data-chart"]] = self._chart
        elif tag == "path" and self._chart is not None:
            self._chart[attributes["class"]] = _points(attributes["d"])

    def handle_endtag(self, tag):
        self._silent = False
        if tag == "svg":
            self._chart = None

    def handle_data(self, data):
        if not self._silent and self._chart is None:
            self.text.append(data)

    def texts(self) -> str:
        return "".join(self.text)


def _numbers(csv: str | None) -> list[float]:
    return [float(number) for number in (csv or "").split(",")]


def _points(path: str | None) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([-\d.]+) ([-\d.]+)", path or "")]


@pytest.fixture
def browse(tmp_path):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium on this machine: the page cannot be tried in a browser")

    def dump(page) -> Page:
        arguments = [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=1200,900", "--virtual-time-budget=3000", "--dump-dom", page.as_uri(),
        ]  # fmt: skip
        done = subprocess.run([chromium, *arguments], capture_output=True, text=True, timeout=60)
        return Page(done.stdout)

    return dump


def with_script(page, script: str):
    """A copy of a page with one more script at its end."""
    copy = page.with_name("with_script.html")
    copy.write_text(page.read_text().replace("</body>", f"<script>{script}</script></body>"))
    return copy


def test_band_ends_where_the_range_ends(finished, tmp_path, browse):
    write_html(finished, tmp_path / "page.html")
    page = browse(tmp_path / "page.html")
    assert "data-error" not in page.body
    # goals, drops, npd; a range and a scores chart for each of the two parameters
    assert page.body["data-ready"] == "7"
    assert len(page.charts) == 7
    chart = page.charts["range object_mass"]
    left, top, width, height = chart["plot"]
    # The range fills more than a fifth of 0 … 4, so the limits are shown, and 6 % beyond them.
    assert chart["domain"] == pytest.approx([0, 3000, -0.24, 4.24])

    def pixel(steps: float, value: float):
        y = top + height * (4.24 - value) / 4.48
        return pytest.approx((left + width * steps / 3000, y), abs=0.01)

    assert chart["curve low"][-1] == pixel(3000, 1.0)
    # Each range holds for the interval that ends at its step.
    corners = [(0, 1), (1000, 1), (1000, 2), (2000, 2), (2000, 3), (3000, 3)]
    assert len(chart["curve high"]) == len(corners)
    for found, corner in zip(chart["curve high"], corners, strict=True):
        assert found == pixel(*corner)
    assert chart["band"][: len(corners)] == chart["curve high"]
    assert chart["band"][len(corners)] == pixel(3000, 1.0)
    assert chart["band"][-1] == pixel(0, 1.0)
    assert "low 1 score 12high 3 score 21.5" in page.texts()
    assert "finished" in page.texts()


def test_pointing_at_a_chart_reads_every_chart(finished, tmp_path, browse):
    write_html(finished, tmp_path / "page.html")
    script = """{
        const chart = document.querySelector('[data-chart="goals_mean"]');
        const [left, , width] = chart.dataset.plot.split(",").map(Number);
        const clientX = chart.getBoundingClientRect().left + left + width * 0.64;
        chart.dispatchEvent(new PointerEvent("pointermove", { clientX }));
    }"""
    page = browse(with_script(tmp_path / "page.html", script))
    assert "data-error" not in page.body
    assert "low 1 score –high 2 score 21.5" in page.texts()
    assert "2 k steps · iteration 2 · 4 s" in page.texts()


def test_a_hostile_name_is_text(tmp_path, browse):
    run = make(tmp_path / "<script>document.body.dataset.error=1<", total=3)
    write_html(run, tmp_path / "page.html")
    page = browse(tmp_path / "page.html")
    assert "data-error" not in page.body
    assert "<script>document.body.dataset.error=1<" in page.texts()


@pytest.mark.parametrize("intervals", [0, 1])
def test_page_of_a_run_that_just_began(tmp_path, browse, intervals):
    run = RunFolder.create(tmp_path / "begun", CONFIG)
    one = interval(1, 10, (1.0, 1.0, None, None), (0.0, 0.0, None, None))
    run.append(*[one] * intervals)
    write_html(run, tmp_path / "page.html")
    page = browse(tmp_path / "page.html")
    assert "data-error" not in page.body
    assert page.body["data-ready"] == str(4 * intervals)  # goals, drops, two ranges
    if intervals:
        chart = page.charts["range latency"]
        left, top, width, height = chart["plot"]
        _, _, lowest, highest = chart["domain"]
        # A zero-width range at its limit: a level line in a domain that is not empty.
        assert lowest < 0.0 < highest
        y = pytest.approx(top + height * highest / (highest - lowest), abs=0.01)
        assert chart["curve high"] == [(left, y), (pytest.approx(left + width, abs=0.01), y)]
    else:
        assert "no interval is complete yet" in page.texts()


def test_page_without_randomisation(tmp_path, browse):
    run = RunFolder.create(tmp_path / "none", {"task": "cube_rotate"})
    run.append({**interval(1, 2, (1,) * 4, (1,) * 4), "parameters": []})
    write_html(run, tmp_path / "page.html")
    page = browse(tmp_path / "page.html")
    assert page.body["data-ready"] == "2"
    assert "Nothing is randomised in this run." in page.texts()


def test_page_fits_a_phone(finished, tmp_path, browse):
    write_html(finished, tmp_path / "page.html")
    (tmp_path / "phone.html").write_text(
        '<body><iframe src="page.html" style="border:0;width:360px;height:800px"></iframe><script>'
        "const frame = document.querySelector('iframe');"
        "frame.onload = () => { const root = frame.contentDocument.documentElement;"
        "document.body.dataset.beside = root.scrollWidth - root.clientWidth;"
        "document.body.dataset.charts = frame.contentDocument.body.dataset.ready; };</script>"
    )
    body = browse(tmp_path / "phone.html").body
    assert body["data-charts"] == "7"
    assert body["data-beside"] == "0"
