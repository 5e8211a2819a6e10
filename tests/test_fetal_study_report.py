"""The fetal study's tables: who counts once, what each measure gives, what failed."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # experiments are no part of the installed package

from experiments.fetal.cases import AS_IT_IS  # noqa: E402
from experiments.fetal.config import ATLAS, MILD, ORDINARY, SEVERE  # noqa: E402
from experiments.fetal.report import write_report  # noqa: E402
from experiments.fetal.run import told_of  # noqa: E402
from experiments.fetal.score import ALL_FOLDS, by_subject, measurements_of  # noqa: E402
from experiments.fetal.subjects import Subject, folds_of  # noqa: E402

from synthseg.evaluation import CaseFailure, CaseResult, read_long  # noqa: E402
from synthseg.evaluation.scoring import ScoreRow  # noqa: E402
from synthseg.evaluation.yardstick import Case  # noqa: E402
from synthseg.labels import load_protocol  # noqa: E402

FETA = load_protocol("feta")


def result(scan: str, stratum: str, dice: tuple[float, float], change: str = AS_IT_IS, sd95: float = 1.0) -> CaseResult:
    rows = tuple(
        ScoreRow(scan, label, FETA.names[label], value, sd95, 100.0, 100.0)
        for label, value in zip((2, 4), dice, strict=True)
    )
    return CaseResult(scan=scan, group=stratum, change=change, rows=rows, volumes_mm3={}, total_mm3=0.0, seconds=0.0)


def results_of(gains: dict[str, float]) -> dict[str, dict[str, list[CaseResult]]]:
    return {
        arm: {
            fold: [
                result(f"{fold}-map@t2", ORDINARY, (0.8 + gain, 0.6 + gain)),
                result(f"{fold}-map@t1", ORDINARY, (0.6 + gain, 0.4 + gain)),
                result(f"{fold}-map@t2", SEVERE, (0.5 + 2 * gain, 0.3 + 2 * gain), "wide ventricles"),
                result("crl_24w_t2", ATLAS, (0.7 + gain + shift, 0.7 + gain - shift)),
            ]
            for fold, shift in (("ga21", 0.1), ("ga25", -0.1))
        }
        for arm, gain in gains.items()
    }


def test_an_atlas_image_counts_once_however_many_folds_segment_it() -> None:
    rows = measurements_of(results_of({"uniform": 0.0}))
    atlas = [row for row in rows if row.columns["stratum"] == ATLAS and row.metric == "dice"]
    assert [(row.scan, row.columns["fold"], row.label) for row in atlas] == [
        ("crl_24w_t2", ALL_FOLDS, "2"),
        ("crl_24w_t2", ALL_FOLDS, "4"),
    ]
    assert [row.value for row in atlas] == pytest.approx([0.7, 0.7])
    assert {row.columns["fold"] for row in rows if row.columns["stratum"] == ORDINARY} == {"ga21", "ga25"}


def test_contrasts_of_a_map_are_one_subject() -> None:
    rows = by_subject(measurements_of(results_of({"uniform": 0.0})))
    grey = [row for row in rows if (row.columns["stratum"], row.metric, row.label) == (ORDINARY, "dice", "2")]
    assert [row.scan for row in grey] == ["ga21-map", "ga25-map"]
    assert [row.value for row in grey] == pytest.approx([0.7, 0.7])


def test_a_missed_tissue_has_dice_0_and_leaves_distances_to_the_others() -> None:
    found = {
        "uniform": {"ga21": [result("m@t2", ORDINARY, (0.0, 0.5), sd95=math.inf), result("m@t1", ORDINARY, (1, 1))]}
    }
    rows = by_subject(measurements_of(found))
    assert [row.value for row in rows if row.metric == "dice"] == pytest.approx([0.5, 0.75])
    assert [row.value for row in rows if row.metric == "sd95"] == pytest.approx([1.0, 1.0])


def test_the_page_says_what_each_measure_gives_and_names_what_failed(tmp_path: Path) -> None:
    found = results_of({"uniform": 0.0, "sampler": 0.02, "shapes": -0.01, "sampler+shapes": 0.03})
    failed = Case(scan="x@t1", image=Path("i"), truth=Path("t"), group=MILD, change="thin cortex")
    page = write_report(found, [("ga21, shapes", CaseFailure(failed, "no brain"))], tmp_path).read_text("utf-8")
    # sampler: (0.02 - 0 + 0.03 + 0.01) / 2 = 3 points on ordinary ones, twice that on severe ones
    assert "| sampler | +3.0 (+3.0 to +3.0) | +6.0 (+6.0 to +6.0) | +3.0 (one subject) |" in page
    assert "| shapes | +0.0 (+0.0 to +0.0) | +0.0" in page
    assert "| uniform | 0.600 (1.00) | 0.400 (1.00) | 0.700 (1.00) |" in page
    assert "| severe | sampler+shapes | 2 | +6.0 |" in page
    assert "- ga21, shapes, x@t1, thin cortex: no brain" in page
    rows = read_long(tmp_path / "scores.tsv")
    assert {row.method for row in rows} == set(found)
    assert (tmp_path / "paired.tsv").is_file()


def test_a_scan_that_one_arm_failed_on_is_in_no_arms_means(tmp_path: Path) -> None:
    found = results_of({"uniform": 0.0, "shapes": 0.0})
    # The easier contrast alone is left to one arm: its subject's mean would rise by 10 points for nothing.
    found["shapes"]["ga21"] = [one for one in found["shapes"]["ga21"] if one.scan != "ga21-map@t1"]
    failed = Case(scan="ga21-map@t1", image=Path("i"), truth=Path("t"), group=ORDINARY, change=AS_IT_IS)
    page = write_report(found, [("ga21, shapes", CaseFailure(failed, "no brain"))], tmp_path).read_text("utf-8")
    assert "| ordinary | shapes | 2 | +0.0 |" in page
    assert "Failed, and in no arm's means above" in page
    uniform, shapes = (next(line for line in page.splitlines() if line.startswith(f"| {a} |")) for a in found)
    assert uniform.split("|")[2:] == shapes.split("|")[2:]
    kept = [row for row in read_long(tmp_path / "scores.tsv") if (row.method, row.scan) == ("uniform", failed.scan)]
    assert kept  # what there is stays in the table of all scores


def test_an_arm_that_failed_throughout_takes_nothing_from_the_others(tmp_path: Path) -> None:
    found = {**results_of({"uniform": 0.0, "shapes": 0.01}), "sampler": {"ga21": []}}
    page = write_report(found, [], tmp_path).read_text("utf-8")
    assert "| ordinary | shapes | 2 | +1.0 |" in page
    assert "| sampler |" not in page
    nothing = write_report({"uniform": {"ga21": []}}, [], tmp_path).read_text("utf-8")
    assert "| uniform |" not in nothing
    assert not (tmp_path / "paired.tsv").exists()


def test_the_page_says_which_folds_it_is_of(tmp_path: Path) -> None:
    folds = folds_of([Subject(f"s_ga{age}", Path("x"), age) for age in range(20, 26)], "3")
    found = results_of({"uniform": 0.0})
    page = write_report(found, [], tmp_path, told=told_of(folds, folds[:1], 1500)).read_text("utf-8")
    assert "- 1 of 3 folds (fold-1of3), 1,500 steps an arm; 2 held-out maps of 20, 23 weeks." in page
    assert "**Not the whole study**: fold-2of3, fold-3of3 not in this page" in page
    assert "One fold: all scores of an arm are one network's" in page
    assert page.index("Not the whole study") < page.index("| arm |")
    whole = "\n".join(told_of(folds, folds, 1500))
    assert "3 of 3 folds" in whole
    assert "Not the whole" not in whole
    assert "One fold" not in whole


def test_effects_need_the_arms_they_are_differences_of(tmp_path: Path) -> None:
    page = write_report(results_of({"uniform": 0.0, "shapes": 0.01}), [], tmp_path).read_text("utf-8")
    assert "What each gives" not in page
    assert "| ordinary | shapes | 2 | +1.0 |" in page
