"""The yardstick's cases, bars and page, on results made by hand."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks are no part of the installed package

from benchmarks.scores import cases  # noqa: E402
from benchmarks.scores.bars import bars_of  # noqa: E402
from benchmarks.scores.cases import cases_of  # noqa: E402
from benchmarks.scores.page import RunFacts, write_page  # noqa: E402
from benchmarks.scores.published import PUBLISHED, within_published  # noqa: E402

from synthseg.evaluation import CaseFailure, CaseResult, ScoreRow  # noqa: E402

FACTS = RunFacts(
    weights="synthseg-x",
    sha256="0123456789abcdef",
    mode="default",
    machine="a machine",
    threads=2,
    torch="2.0",
    date="2026-01-01",
    subset="full",
    command="python -m benchmarks.scores",
)


def result(
    group: str, scan: str, change: str = "plain", dice: float = 0.9, hippocampus_mm3: float = 3000
) -> CaseResult:
    rows = (
        ScoreRow(scan, 2, "left cerebral white matter", dice, 1.0, 5e5, 5e5),
        ScoreRow(scan, 17, "left hippocampus", dice, 2.0, hippocampus_mm3, 3000.0),
        ScoreRow(scan, 53, "right hippocampus", dice, 2.0, hippocampus_mm3, 3000.0),
    )
    volumes = {2: 1.2e6, 17: hippocampus_mm3, 53: hippocampus_mm3, 24: 1e5}
    return CaseResult(
        scan=scan,
        group=group,
        change=change,
        rows=rows,
        volumes_mm3=volumes,
        total_mm3=sum(volumes.values()),
        seconds=5.0,
    )


def everything(turned_mm3: float = 3009, thick: float = 0.87, contrast: float = 0.89) -> list[CaseResult]:
    brain = (cases.T1_BRAINS, "oasis_1005")
    return [
        result(*brain),
        result(cases.T1_BRAINS, "oasis_1000", dice=0.8),
        *(result(*brain, change, thick if change.endswith("7mm") else 0.9) for change in cases.SLICES),
        *(result(*brain, change, contrast) for change in cases.CONTRASTS),
        *(result(*brain, change, hippocampus_mm3=turned_mm3) for change in cases.TURNS),
        result(*brain, cases.CONTROL),
        result(cases.T1_TEMPLATE, "t1", dice=0.80),
        result(cases.T2_TEMPLATE, "t2", dice=0.78),
        result(cases.PD_TEMPLATE, "pd", dice=0.79),
        result(cases.T1_TEMPLATE_FINE, "fine", dice=0.99),
        result(cases.T1_TEMPLATE_FINE, "fine", "stripped", dice=0.79),
        result(cases.T2_TEMPLATE_FINE, "fine_t2", dice=0.77),
        result(cases.CT_TEMPLATE, "ct", dice=0.6),
    ]


def bar(results: list[CaseResult], word: str) -> tuple[str, bool | None]:
    (found,) = (b for b in bars_of(results) if word in b.what)
    return found.shown, found.held


def test_bars_say_what_was_measured_and_whether_it_holds():
    results = everything()
    assert bar(results, "labelled T1") == ("0.850", True)
    assert bar(results, "templates") == ("0.020", True)  # the stripped T1 is the T2 brain's partner, not the head
    assert bar(results, "7 mm") == ("0.030", True)
    assert bar(results, "re-contrasted") == ("0.010", True)
    assert bar(results, "ranges") == ("8 of 8", True)
    assert bar(everything(thick=0.86), "7 mm") == ("0.040", False)
    assert bar(everything(contrast=0.87), "re-contrasted") == ("0.030", False)


def test_the_rotation_bar_is_a_median_over_all_structures():
    # Two of four structures change: the median lies half way.
    assert bar(everything(turned_mm3=3009), "rotation") == ("0.15 %", True)
    assert bar(everything(turned_mm3=3060), "rotation") == ("1.00 %", False)


def test_what_a_subset_does_not_hold_is_not_measured():
    assert [b.held for b in bars_of([result(cases.CT_TEMPLATE, "ct")])] == [None] * 6
    assert all(math.isnan(b.measured) for b in bars_of([]))


def test_volumes_outside_of_published_ranges_miss_the_bar():
    small = result(cases.T1_BRAINS, "oasis_1005", hippocampus_mm3=1000)
    assert within_published(small) == [True, True, False, False]
    assert bar([small], "ranges") == ("2 of 4", False)
    assert all(entry.low_cm3 < entry.high_cm3 and entry.source for entry in PUBLISHED)


def columns_of(page: str, heading: str) -> list[list[str]]:
    block = page.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in block.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])]


def test_the_page_holds_every_condition_structure_and_fact():
    failure = CaseFailure(cases_of(ROOT)[0], "no good")  # the CT or template case: their files are not looked at here
    results = everything()
    page = write_page(FACTS, results, [failure])
    for text in ("synthseg-x", "0123456789ab", "a machine", "2026-01-01", "python -m benchmarks.scores", "no good"):
        assert text in page
    assert "abcdef" not in page  # twelve digits of the hash
    conditions = columns_of(page, "Conditions")
    assert len(conditions) - 1 == len({(r.group, r.change) for r in results})
    assert [cases.T1_BRAINS, "plain", "2", "0.850", "1.67", "0"] in conditions
    structures = columns_of(page, "Structures")
    assert [row[0] for row in structures] == ["structure", "cerebral white matter", "hippocampus"]
    of_column = dict(zip(structures[0], structures[2], strict=True))
    assert (of_column["T1 brains"], of_column["7 mm slices"], of_column["CT"]) == ("0.850", "0.870", "0.600")
    losses = {row[0]: row[1:] for row in columns_of(page, "Losses")}
    assert losses["7 mm slices, all directions"] == ["3", "0.900", "0.870", "+0.030"]
    rotations = {row[0]: row[1:] for row in columns_of(page, "Volumes under rotation")}
    assert rotations["hippocampus"] == ["0.30", "0.00"]
    widths = {len(row) for row in structures}
    assert len(widths) == 1


def test_a_page_of_one_case_has_no_empty_tables():
    page = write_page(FACTS, [result(cases.CT_TEMPLATE, "ct")], [])
    assert re.findall(r"^## (.*)$", page, re.MULTILINE) == ["Bars", "Conditions", "Structures", "Scans as they are"]
    assert "nan" not in page


def test_subsets_are_of_cases_that_exist(shared: Path):
    data = shared / "data" / "validation"
    full, quick = cases_of(data), cases_of(data, "quick")
    assert len(quick) == 10
    assert set(quick) < set(full)
    assert len({(case.group, case.scan, case.change) for case in full}) == len(full)
    missing = [path for case in full for path in (case.image, case.truth) if not path.is_file()]
    assert missing == []
    changed = {case.scan for case in full if case.group == cases.T1_BRAINS and case.change != "plain"}
    assert changed == set(cases.CHANGED)
    assert not changed & set(cases.WATCHED)
