"""Pages in a real browser: they load, scroll and toggle offline, and nothing is complained of or asked for."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chromium_helpers import Page, browser, find_chromium
from report_helpers import quality, write_failure, write_result
from synthseg.report.folder import ReportOptions, write_folder_report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium: install one, or set SYNTHSEG_CHROMIUM"),
]
DECISIONS = """Object.fromEntries(Object.entries(JSON.parse(document.getElementById('page-data').textContent).keys)
    .map(([id, key]) => [id, JSON.parse(localStorage.getItem(key))]).filter(([, made]) => made))"""
SELECTED = "document.querySelector('tr[aria-selected=true]').dataset.id"
ORDER = "[...document.querySelectorAll('#scans tbody tr')].map((row) => row.dataset.id)"
WHERE = "document.getElementById('where').textContent"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of five scans and a failure, under file names, with one name that tries to be markup."""
    folder = tmp_path_factory.mktemp("results")
    scores = [0.9, 0.7, 0.5, 0.95, 0.8]
    for seed, score in enumerate(scores):
        write_result(folder, f"s{seed}", seed=seed, scale=1 + seed / 50, quality=quality(score))
    write_failure(folder, "=bad", "<b onclick=alert(1)>no</b> image")
    write_folder_report(folder, folder / "report", ReportOptions(naming="files"))
    return folder / "report"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    program = find_chromium()
    assert program is not None
    with browser(program, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def colored(png: bytes, page: Page) -> int:
    """Pixels of the viewer that are in colour, the crosshair's yellow left out."""
    box = page.evaluate(
        "(({x, y, width, height}) => [x, y, width, height])(document.getElementById('stage').getBoundingClientRect())"
    )
    x, y, width, height = (int(value) for value in box)
    rgb = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))[y : y + height, x : x + width].astype(int)
    yellow = (rgb[..., 0] > rgb[..., 2] + 90) & (rgb[..., 1] > rgb[..., 2] + 60)
    return int(((rgb.max(-1) - rgb.min(-1) > 25) & ~yellow).sum())


def settle() -> None:
    """Let the browser draw what it was asked to: a frame has no event to wait for."""
    time.sleep(1.5)


def require_silence(page: Page) -> None:
    outside = [url for url in page.requests if not url.startswith(("file:", "data:", "blob:"))]
    assert not outside
    assert sum(url.startswith("file:") for url in page.requests) == 1  # the page itself
    assert not page.complaints


def test_a_scan_page_shows_scrolls_and_toggles_without_a_word(page: Page, pages: Path) -> None:
    page.open(pages / "s1.html")
    page.wait("document.body.dataset.viewer")
    assert page.evaluate("document.body.dataset.viewer") == "niivue"
    assert page.evaluate("document.getElementById('pictures').hidden")
    settle()
    with_labels = colored(page.picture(), page)
    assert with_labels > 1000

    page.press("l")
    settle()
    assert not page.evaluate("document.getElementById('show').checked")
    assert colored(page.picture(), page) < 0.1 * with_labels
    page.press("l")
    settle()
    assert colored(page.picture(), page) > 0.8 * with_labels

    page.evaluate("(o => { o.value = 0; o.dispatchEvent(new Event('input')); })(document.getElementById('opacity'))")
    settle()
    assert colored(page.picture(), page) < 0.1 * with_labels

    before = page.evaluate("document.getElementById('slice-axial').value")
    x, y = page.evaluate(
        "(({x, y, height}) => [x + 150, y + height / 2])(document.getElementById('canvas').getBoundingClientRect())"
    )
    page.wheel(x, y, 120)
    page.wait(f"document.getElementById('slice-axial').value !== '{before}'")
    require_silence(page)


def test_a_structure_that_is_clicked_or_slid_to_is_named(page: Page, pages: Path) -> None:
    page.open(pages / "s1.html")
    page.wait("document.body.dataset.viewer === 'niivue'")
    for name in ("left hippocampus", "left cerebral cortex", "right cerebral white matter"):
        page.evaluate(
            f"[...document.querySelectorAll('#volumes tr.pick')].find(r => r.innerText.includes('{name}')).click()"
        )
        page.wait(f"{WHERE}.startsWith('{name} at')")
    # The right one is at positive x, wherever the file's first axis ran.
    assert float(page.evaluate(WHERE).split(" at ")[1].split(",")[0]) > 0
    page.evaluate(
        "(s => { s.value = 0; s.dispatchEvent(new Event('input')); })(document.getElementById('slice-sagittal'))"
    )
    page.wait(f"{WHERE}.startsWith('no label at')")
    page.evaluate("document.querySelector('[data-view=sagittal]').click()")
    page.evaluate("document.getElementById('outline').click()")
    settle()
    require_silence(page)


def test_without_webgl_pictures_take_its_place(pages: Path, tmp_path: Path) -> None:
    program = find_chromium()
    assert program is not None
    with browser(program, tmp_path, webgl=False) as page:
        page.open(pages / "s1.html")
        page.wait("document.body.dataset.viewer")
        assert page.evaluate("document.body.dataset.viewer") == "pictures"
        assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
        opacity = "getComputedStyle(document.querySelector('img.over')).opacity"
        assert float(page.evaluate(opacity)) == 0.5
        page.press("l")
        assert float(page.evaluate(opacity)) == 0
        assert page.evaluate("document.getElementById('stage').hidden")
        require_silence(page)


def test_scans_are_decided_on_by_keyboard_and_decisions_survive(page: Page, pages: Path) -> None:
    page.open(pages / "index.html")
    assert page.evaluate(ORDER)[:3] == ["=bad", "s2", "s1"]
    assert page.evaluate(SELECTED) == "=bad"
    page.press("r")
    assert page.evaluate(SELECTED) == "s2"  # on to the next
    assert not page.evaluate("document.getElementById('picture').hidden")
    page.press("j")
    page.press("a")
    page.press("k")
    page.press("k")
    assert page.evaluate(SELECTED) == "s2"
    page.press("n")
    assert page.evaluate(SELECTED) not in ("=bad", "s2", "s1")
    assert page.evaluate("document.querySelectorAll('.histograms line').length") > 0
    page.open(pages / "index.html")
    kept = {name: one["decision"] for name, one in page.evaluate(DECISIONS).items()}
    assert kept == {"=bad": "reject", "s1": "accept"}
    assert "decided: 2 of 6 (1 accepted, 1 rejected)" in page.evaluate(
        "document.getElementById('progress').textContent"
    )
    page.press("u")
    assert list(page.evaluate(DECISIONS)) == ["s1"]
    require_silence(page)


def test_the_table_sorts_numbers_as_numbers_and_blanks_last(page: Page, pages: Path) -> None:
    page.open(pages / "index.html")
    click = "document.querySelectorAll('#scans th button')[3].click()"  # the lowest Dice
    page.evaluate(click)
    assert page.evaluate(ORDER) == ["s2", "s1", "s4", "s0", "s3", "=bad"]
    page.evaluate(click)
    assert page.evaluate(ORDER)[2:] == ["s4", "s1", "s2", "=bad"]  # before them two of 0.9
    assert page.evaluate("document.querySelectorAll('#scans th')[3].getAttribute('aria-sort')") == "descending"
    require_silence(page)


def test_decisions_are_exported_as_a_table(page: Page, pages: Path, tmp_path: Path) -> None:
    page.open(pages / "index.html")
    page.evaluate("localStorage.clear()")
    page.open(pages / "index.html")
    page.press("r")
    page.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.evaluate("document.getElementById('export').click()")
    end = time.monotonic() + 30
    while not (tmp_path / "decisions.tsv").is_file() and time.monotonic() < end:
        page.evaluate("1")
        time.sleep(0.1)
    lines = [line.split("\t") for line in (tmp_path / "decisions.tsv").read_text().splitlines()]
    assert lines[0] == ["id", "decision", "decided_at", "verdict", "reasons"]
    assert [line[:2] for line in lines[1:3]] == [["'=bad", "reject"], ["s2", "n/a"]]  # no formula for a spreadsheet
    assert lines[1][4] == "<b onclick=alert(1)>no</b> image"
    assert {len(line) for line in lines} == {5}


def test_a_scan_is_opened_from_the_table_and_leads_back(page: Page, pages: Path) -> None:
    page.open(pages / "index.html")
    page.press("j")
    page.press("Enter")
    page.wait("location.href.endsWith('s2.html') && document.readyState === 'complete'")
    page.press("j")
    page.wait("location.href.endsWith('s1.html') && document.readyState === 'complete'")
    assert page.evaluate("document.querySelector('nav a[href=\"index.html\"]') !== null")
    assert not page.complaints
