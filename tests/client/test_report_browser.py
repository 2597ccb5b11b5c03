"""The page of real reports in a real browser: nothing blank, nothing overflowing, nothing fetched, nothing unreadable.

The reports are real jobs' (`reports/make_reports.py`).
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers.browser import Browser, Page, Shown, needs_chromium
from helpers.rich_report import rich_report
from pruning_client.html.page import render_page

pytestmark = [needs_chromium, pytest.mark.xdist_group("browser")]

REPORTS = Path(__file__).parent / "reports"
MAIN = ("resnet20", "digits")
OTHERS = tuple(sorted({path.stem for path in REPORTS.glob("*.json")} - set(MAIN)))
VIEWS = {
    "phone": Shown(width=380),
    "phone-dark": Shown(width=380, is_dark=True),
    "desk": Shown(width=1440),
    "desk-dark": Shown(width=1440, is_dark=True),
}
# What a classifier of images must show.
PICTURES = {
    "accuracy-bars", "accuracy-delta", "class-deltas", "reliability", "occlusion", "latency", "rungs",
}  # fmt: skip
# Boxes that scroll by themselves may hold what is wider than the screen.
OVERFLOWING = """
[...document.querySelectorAll('main *')].filter(one => !one.closest('.scroll, .box, nav, svg') &&
  one.getBoundingClientRect().right > innerWidth + 1).map(one => one.tagName + ': ' + one.textContent.slice(0, 60))
"""
PLOTS = """
[...document.querySelectorAll('svg.plot')].map(svg => { const box = svg.getBoundingClientRect(); return {
  name: svg.closest('figure').id, label: svg.getAttribute('aria-label'), box: [box.left, box.top + scrollY, box.right,
  box.bottom + scrollY], marks: [...svg.querySelectorAll('.mark')].map(mark => { const found =
  mark.getBoundingClientRect(); return found.width + found.height; }), outside: [...svg.querySelectorAll('text')].filter(
  text => { const found = text.getBoundingClientRect(); return found.left < box.left - 4 || found.right > box.right + 4 ||
  found.top < box.top - 4 || found.bottom > box.bottom + 4; }).map(text => text.textContent) }; })
"""
# WCAG 2.2, relative luminance and contrast; text of plots counts by its fill.
CONTRASTS = """
(() => { const linear = c => { c /= 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = colour => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const under = one => { for (; one; one = one.parentElement) { const found = rgba(getComputedStyle(one).backgroundColor);
    if (found[3] === 255) return found; } return [255, 255, 255, 255]; };
  const worst = {};
  for (const one of document.querySelectorAll('main *')) {
    if (![...one.childNodes].some(node => node.nodeType === 3 && node.textContent.trim())) continue;
    const style = getComputedStyle(one), ink = rgba(one.closest('svg') ? style.fill : style.color);
    const [a, b] = [luminance(ink), luminance(under(one))].sort((x, y) => y - x);
    const key = one.tagName + '.' + (one.closest('[class]')?.getAttribute('class') ?? '');
    worst[key] = Math.min(worst[key] ?? 99, (a + 0.05) / (b + 0.05)); }
  return worst; })()
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One Chromium for all tests here."""
    with Browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the pages are written."""
    return tmp_path_factory.mktemp("pages")


def open_page(browser: Browser, folder: Path, name: str, shown: Shown) -> Page:
    """Renders a report and opens its page."""
    report = rich_report() if name == "rich" else json.loads((REPORTS / f"{name}.json").read_text())
    path = folder / f"{name}.html"
    path.write_text(render_page(report), encoding="utf-8")
    return browser.open(path, shown)


def check_whole(page: Page) -> list[dict[str, Any]]:
    """Checks that nothing overflows, is blank, was fetched or complained; returns the plots."""
    assert page.logged == []
    assert [url for url in page.requested if not url.startswith(("file:///", "data:image/png"))] == []
    assert len([url for url in page.requested if url.startswith("file:")]) == 1
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate(OVERFLOWING) == []
    assert page.evaluate("[...document.images].every(one => one.complete && one.naturalWidth > 0 && one.alt)")
    plots: list[dict[str, Any]] = page.evaluate(PLOTS)
    pixels = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
    for plot in plots:
        assert plot["label"]
        assert plot["outside"] == [], plot["name"]
        assert plot["marks"], plot["name"]
        assert max(plot["marks"]) > 0, plot["name"]
        left, top, right, bottom = (round(edge) for edge in plot["box"])
        drawn = pixels[top:bottom, left:right].reshape(-1, 3)
        assert len(np.unique(drawn, axis=0)) > 8, f"{plot['name']} is blank"
    return plots


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", MAIN)
def test_the_page_is_whole(name: str, view: str, browser: Browser, folder: Path) -> None:
    page = open_page(browser, folder, name, VIEWS[view])
    assert {plot["name"] for plot in check_whole(page)} >= PICTURES
    layers = len(json.loads((REPORTS / f"{name}.json").read_text())["layers"])
    assert page.evaluate("document.querySelectorAll('#layers .drawn .bar i').length") >= layers


@pytest.mark.parametrize("view", ["phone", "desk-dark"])
@pytest.mark.parametrize("name", ["rich", *OTHERS])
def test_every_kind_of_job_has_a_whole_page(name: str, view: str, browser: Browser, folder: Path) -> None:
    plots = check_whole(open_page(browser, folder, name, VIEWS[view]))
    assert {"accuracy-bars", "accuracy-delta", "latency"} <= {plot["name"] for plot in plots}


def test_the_verdict_stands_above_the_fold(browser: Browser, folder: Path) -> None:
    page = open_page(browser, folder, "resnet20", VIEWS["desk"])
    for selector in (".verdict", ".savings", ".aside h2"):
        assert page.evaluate(f"document.querySelector('{selector}').getBoundingClientRect().bottom") <= 900


@pytest.mark.parametrize("view", ["desk", "desk-dark"])
def test_everything_can_be_read(view: str, browser: Browser, folder: Path) -> None:
    worst = open_page(browser, folder, "rich", VIEWS[view]).evaluate(CONTRASTS)
    assert len(worst) > 10
    assert {key: round(value, 2) for key, value in worst.items() if value < 4.5} == {}


def test_paper_has_everything(browser: Browser, folder: Path) -> None:
    page = open_page(browser, folder, "rich", Shown(width=800, is_dark=True, is_printed=True))
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    hidden = "[...document.querySelectorAll('details table')].filter(one => one.getBoundingClientRect().height === 0)"
    assert page.evaluate(f"{hidden}.length") == 0
    assert page.evaluate("document.querySelector('nav').getBoundingClientRect().height") == 0
    assert page.pdf().startswith(b"%PDF")


def test_hundreds_of_layers_and_classes_stay_a_page(browser: Browser, folder: Path) -> None:
    report = rich_report()
    layer, one = report["layers"][0], report["accuracy"]["classes"][0]
    report["layers"] = [layer | {"name": f"a.very.long.name.of.a.block.{i}.weight"} for i in range(400)]
    report["accuracy"]["classes"] = [one | {"label": label, "delta": -label / 1000} for label in range(1000)]
    (folder / "many.html").write_text(render_page(report), encoding="utf-8")
    for view in ("phone", "desk"):
        page = browser.open(folder / "many.html", VIEWS[view])
        check_whole(page)
        assert page.evaluate("Math.max(...[...document.querySelectorAll('.box')].map(one => one.clientHeight))") < 600
