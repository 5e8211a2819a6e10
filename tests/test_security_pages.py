"""Pages: whatever names, notes, errors and cards say, it is text on the page, and never a part of it."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chromium_helpers import browser, find_chromium
from report_helpers import make_labels, make_scan, write_failure, write_result
from synthseg.inference.quality import Quality
from synthseg.inference.structures import Structure
from synthseg.report.cohort_page import row_of, write_cohort_page
from synthseg.report.embed import Embedded, embed, prepare
from synthseg.report.findings import Finding, structures_of
from synthseg.report.folder import ReportOptions, write_folder_report
from synthseg.report.identity import Identity
from synthseg.report.page import Links, write_scan_page
from synthseg.report.standing import Cohort

ATTACKS = (
    "<script>window.owned=1</script>",
    "</script><script>window.owned=1</script>",
    "<!--<script>",
    "--><img src=x onerror=window.owned=1>",
    '" onmouseover="window.owned=1" x="',
    "' autofocus onfocus='window.owned=1",
    "javascript:window.owned=1",
    "data:text/html,<script>window.owned=1</script>",
    "{{ 7*7 }}{% raw %}",
    "</title><svg onload=window.owned=1>",
    "</style><style>@import '//x'",
    "\u2028window.owned=1\u2029",
    "&lt;script&gt;window.owned=1&lt;/script&gt;",
    "]]><x",
    "\\u003cscript\\u003e",
    "../../../etc/passwd",
    "//evil.example/x",
    "__proto__",
    "constructor",
    '=HYPERLINK("http://evil.example","x")',
    "<iframe srcdoc='<script>parent.owned=1</script>'>",
    "<base href=//evil.example>",
    "<meta http-equiv=refresh content=0;url=//evil.example>",
    "\u202egnp.exe",
)
TEXT = st.one_of(
    st.sampled_from(ATTACKS),
    st.lists(st.sampled_from([*ATTACKS, *"<>\"'&/=`;-!{}%\\", "script", "\n", "é", "\x00", "\x1b"]), max_size=5).map(
        "".join
    ),
    st.text(max_size=20),
)


class Skeleton(HTMLParser):
    """A page's elements and the names of their attributes, in order; and beside them its text and attribute values."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, ...]] = []
        self.values: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, *(name for name, _ in attrs)))
        self.values += [value or "" for _, value in attrs]
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_endtag(self, tag: str) -> None:
        self.elements.append((f"/{tag}",))

    def handle_comment(self, data: str) -> None:
        self.elements.append(("comment", data))

    def handle_pi(self, data: str) -> None:
        self.elements.append(("instruction", data))

    def unknown_decl(self, data: str) -> None:
        self.elements.append(("declaration", data))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@cache
def _embedded() -> Embedded:
    labels = make_labels()
    image, label_map, notes = prepare(make_scan(), labels)
    return embed(image, label_map, structures_of(np.unique(labels.data).tolist(), {}), notes)


def _finding(words: list[str], *, failed: bool) -> Finding:
    """A finding with a text of ours wherever a file could have put one."""
    a, b, c, d, e, f = words
    record: dict[str, Any] = {
        "created": a,
        "device": b,
        "backend": c,
        "precision": d,
        "settings": {
            "weights": {e: {"name": f, "sha256": a, "spacing_mm": b, "protocol": c}},
            "inference": {d: e, "list": [f, a]},
            "outputs": {"x": b},
        },
        "versions": {c: d},
        "timings_s": {e: 1.0},
        "peak_memory_mib": f,
    }
    return Finding(
        scan=Path("/data/s.nii.gz"),
        sha256=a,
        volumes_mm3={"total": 5.0, f"left {b}": 2.0, f"right {c}": 3.0},
        measured=d,
        quality=Quality({f"group {e}": 0.5, "x": 0.9}, fail_below=0.6, warn_below=0.7),
        error=f if failed else None,
        record=record,
        notes=(a, b),
    )


def _scan_page(folder: Path, words: list[str], *, failed: bool) -> str:
    names = tuple(
        Structure(s.value, f"{i} {w}", s.color)
        for i, (s, w) in enumerate(zip(_embedded().structures, words, strict=False))
    )
    page = write_scan_page(
        folder / "p.html",
        _finding(words, failed=failed),
        Identity(words[0]),
        replace(_embedded(), structures=names),
        cohort=Cohort([]),
        cohort_of=words[1],
        notes=[words[2]],
        links=Links(cohort=words[3] or "x", previous=words[4] or "x", next=words[5] or "x"),
    )
    return page.read_text(encoding="utf-8")


def _cohort_page(folder: Path, words: list[str]) -> str:
    rows = []
    for number, word in enumerate(words):
        row = row_of(_finding(words, failed=number == 1), Identity(f"{number}{word}"), Cohort([]))
        rows.append(replace(row, page=f"{word}.html", picture=b"\xff\xd8"))
    return write_cohort_page(folder / "c.html", rows, Cohort([])).read_text(encoding="utf-8")


def _data(page: str) -> Any:
    start = page.index(">", page.index('id="page-data"')) + 1
    return json.loads(page[start : page.index("</script>", start)])


@settings(max_examples=30)
@given(words=st.lists(TEXT, min_size=6, max_size=6), failed=st.booleans())
def test_a_scans_page_has_the_same_elements_whatever_files_say(words: list[str], failed: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        harmless = Skeleton(_scan_page(Path(folder), [f"w{i}" for i in range(6)], failed=failed))
        page = _scan_page(Path(folder), words, failed=failed)
    found = Skeleton(page)
    assert found.elements == harmless.elements
    _check_links(found)
    shown = "\n".join(found.text)
    for word in (word for word in words[:3] if word.isprintable()):
        assert word in shown
    assert "</script" not in json.dumps(_data(page)["names"]) or "\\u003c/script" in page
    assert [name.partition(" ")[2] for name in _data(page)["names"]] == [
        _seen(w) for w in words[: len(_data(page)["names"])]
    ]


@settings(max_examples=30)
@given(words=st.lists(TEXT, min_size=4, max_size=4).map(lambda some: [*some, "x", "y"]))
def test_the_cohorts_page_has_the_same_elements_whatever_files_say(words: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        harmless = Skeleton(_cohort_page(Path(folder), [f"w{i}" for i in range(4)] + ["x", "y"]))
        page = _cohort_page(Path(folder), words)
    found = Skeleton(page)
    assert found.elements == harmless.elements
    _check_links(found)
    ids = [_seen(f"{number}{word}") for number, word in enumerate(words)]
    assert list(_data(page)["keys"]) == ids
    # What the browser finds by the row's id must be the same text in both places.
    rows = [value for value in found.values if value in ids]
    assert len(rows) >= len(set(ids)) or any(not one.isprintable() for one in ids)


def _seen(text: str) -> str:
    """What no Unicode is becomes a question mark (html.printable)."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _check_links(found: Skeleton) -> None:
    """Every link is a file beside the page, or data inside of it."""
    for link in found.links:
        assert link.startswith(("data:image/", "data:,")) or not any(mark in link for mark in (":", "/", "\\", "\n"))


def test_every_page_has_its_policy_before_anything_that_files_say(tmp_path: Path) -> None:
    for page in (_scan_page(tmp_path, list(ATTACKS[:6]), failed=True), _cohort_page(tmp_path, list(ATTACKS[:6]))):
        head = page[: page.index("<title>")]
        assert 'http-equiv="Content-Security-Policy"' in head
        for part in ("default-src &#39;none&#39;", "base-uri &#39;none&#39;", "form-action &#39;none&#39;"):
            assert part in head
        assert "owned" not in head
        assert 'name="referrer" content="no-referrer"' in head


def test_the_key_of_a_report_is_a_table_whatever_scans_are_called(tmp_path: Path) -> None:
    stems = ['a\tb"c', "=1+1", "line\nend", "-2"]
    for number, stem in enumerate(stems):
        write_result(tmp_path, stem, seed=number)
    key = write_folder_report(tmp_path, tmp_path / "report", ReportOptions()).key
    assert key is not None
    lines = list(csv.reader(io.StringIO(key.read_text(encoding="utf-8"), newline=""), delimiter="\t"))
    assert lines[0] == ["id", "scan", "labels"]
    assert {Path(line[1]).name for line in lines[1:]} == {f"{stem}.nii.gz" for stem in stems}


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of scans whose files, errors, notes, structures and weights are called like attacks."""
    folder = tmp_path_factory.mktemp("results")
    for number, attack in enumerate(ATTACKS):
        stem = attack.replace("/", "_").replace("\x00", "")[:80]
        more = {
            "notes": [attack],
            "versions": {attack: attack},
            "quality": {"scores": {attack: 0.5}, "thresholds": {"fail_below": 0.65, "warn_below": 0.75}},
            "volumes_mm3": {"total intracranial": 10.0, attack: 5.0},
            "settings": {"weights": {attack: {"name": attack, "sha256": attack, "spacing_mm": attack}}},
        }
        if number % 2:
            write_result(folder, stem, **more)
        else:
            write_failure(folder, stem, f"{attack}: found {attack}. Fix: {attack}")
    write_folder_report(folder, folder / "report", ReportOptions(naming="files"))
    return folder / "report"


@pytest.mark.slow
@pytest.mark.skipif(find_chromium() is None, reason="no Chromium: install one, or set SYNTHSEG_CHROMIUM")
def test_in_a_browser_no_attack_runs_asks_or_leaves_the_page(attacked: Path, tmp_path: Path) -> None:
    program = find_chromium()
    assert program is not None
    with browser(program, tmp_path / "profile", webgl=False) as page:
        pages = sorted(attacked.glob("*.html"))
        assert len(pages) == len(ATTACKS) + 1
        for path in pages:
            page.open(path)
            page.wait("document.readyState === 'complete'")
            told = page.evaluate(
                "JSON.stringify([window.owned === undefined, document.title, location.protocol, frames.length,"
                " document.scripts.length, Object.prototype.owned === undefined])"
            )
            clean, title, protocol, frames, _, prototype = json.loads(told)
            assert (clean, protocol, frames, prototype) == (True, "file:", 0, True), path.name
            assert title.endswith("synthseg")
            assert [one for one in page.requests if not one.startswith(("file:", "data:", "blob:"))] == []
            assert page.complaints == [], path.name
        page.open(attacked / "index.html")
        for _ in range(len(ATTACKS)):  # over every row: what scripts do with the names
            page.press("a")
        page.evaluate("document.getElementById('export').click()")
        assert page.evaluate("window.owned === undefined")
        assert "owned" not in json.dumps(page.requests)
        chosen = page.evaluate("document.getElementById('progress').textContent")
        assert chosen.startswith(f"decided: {len(ATTACKS)} of {len(ATTACKS)}")
