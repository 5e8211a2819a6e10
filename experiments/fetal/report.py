"""The study's tables: every score (``scores.tsv``), tests (``paired.tsv``) and a page (``summary.md``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from experiments.fetal.config import ATLAS, HEALTHIER, MILD, ORDINARY, SEVERE
from experiments.fetal.score import Results, by_subject, measurements_of

from synthseg.evaluation import CaseFailure, CaseResult, write_long
from synthseg.evaluation.measurements import Measurement, unique, value_of
from synthseg.evaluation.paired import PairedConfig, PairedRow, compare_methods, write_paired
from synthseg.evaluation.scan_means import scan_means
from synthseg.evaluation.statistics import BootstrapConfig, mean_interval
from synthseg.files import atomic_file

STRATA = (ORDINARY, MILD, SEVERE, HEALTHIER, ATLAS)
# What turning a measure on gives: means over the pairs of arms that differ in it alone.
EFFECTS = {
    "sampler": (("sampler", "uniform"), ("sampler+shapes", "shapes")),
    "shapes": (("shapes", "uniform"), ("sampler+shapes", "sampler")),
}
PAPER = (
    "The paper of the fetal extension (arXiv 2504.10244, abstract) reports a significant gain on subjects with severe"
    " abnormality (p < 1e-4) and a smaller loss on less abnormal ones. Its tables were not at hand."
)
CAVEATS = (
    "Every arm is trained once a fold, all with one seed: intervals and tests are over test subjects, and do not tell"
    " what other seeds would have given.",
    "Held-out maps are of other weeks than those trained on. Maps of one atlas change little from week to week: that"
    " flatters every arm alike.",
)


def scored_by_all(results: Results) -> Results:
    """The scans of which every arm has a score, so that means of arms are of the same ones.

    An arm that failed throughout takes nothing from the others.
    """
    kept = {arm: {(fold, *_case(one)) for fold, own in folds.items() for one in own} for arm, folds in results.items()}
    common = set.intersection(*(own for own in kept.values() if own)) if any(kept.values()) else set()
    return {
        arm: {fold: [one for one in own if (fold, *_case(one)) in common] for fold, own in folds.items()}
        for arm, folds in results.items()
    }


def _case(result: CaseResult) -> tuple[str, str, str]:
    return result.group, result.scan, result.change


def write_report(
    results: Results,
    failures: Sequence[tuple[str, CaseFailure]],
    out: Path,
    reached: Mapping[str, Sequence[float]] | None = None,
    told: Sequence[str] = (),
) -> Path:
    """Write all three; returns the page.

    Args:
        results: by arm, fold and scan. failures: by arm and fold; what failed is in no arm's means, and the page says
            so.
        reached: by edit, the factors on its structure's volume that the held-out maps had room for.
        told: what was run, to stand at the top.
    """
    every = measurements_of(results)
    if every:
        write_long(every, out / "scores.tsv")
    rows = measurements_of(scored_by_all(results))
    subjects = [row for row in by_subject(rows) if row.metric in ("dice", "sd95")]
    lines = ["# Fetal brains: sampler and shapes, on and off", "", *(f"- {line}" for line in (*told, *CAVEATS)), ""]
    lines += ["Means over subjects: Dice (SD95 in mm).", "", *case_table(subjects, "stratum")]
    lines += ["", "## By tissue", ""]
    for stratum in _present(subjects):
        lines += [f"### {stratum}", "", *case_table(_where(subjects, "stratum", stratum), "structure"), ""]
    shown = [row for row in rows if row.metric in ("dice", "sd95")]
    edited = [row for row in shown if value_of(row, "stratum") in (MILD, SEVERE, HEALTHIER)]
    if edited:
        lines += ["## By edit", "", *case_table(edited, "edit"), "", *_reached(reached or {})]
    ordinary = _where(shown, "stratum", ORDINARY)
    if ordinary:
        lines += ["## Ordinary anatomies by contrast", "", *case_table(ordinary, "contrast"), ""]
    dice = [row for row in subjects if row.metric == "dice"]
    lines += _effects(dice)
    (out / "paired.tsv").unlink(missing_ok=True)  # of an earlier sitting with more arms
    if len(unique(dice, "method")) > 1:
        reference = unique(dice, "method")[0]
        found = compare_methods(dice, PairedConfig(by="stratum", reference=reference, correction="holm")).rows
        write_paired(found, out / "paired.tsv")
        lines += paired_lines(found, reference, "paired.tsv")
    if failures:
        lines += ["## Failed, and in no arm's means above", ""]
        lines += [f"- {where}, {one.case.scan}, {one.case.change}: {one.reason}" for where, one in failures]
        lines += [""]
    page = out / "summary.md"
    with atomic_file(page) as file:
        file.write(("\n".join([*lines, PAPER]) + "\n").encode())
    return page


def _present(rows: Sequence[Measurement]) -> list[str]:
    there = unique(rows, "stratum")
    return [stratum for stratum in STRATA if stratum in there]


def _where(rows: Sequence[Measurement], column: str, value: str) -> list[Measurement]:
    return [row for row in rows if value_of(row, column) == value]


def case_table(rows: Sequence[Measurement], column: str) -> list[str]:
    """Arms down, values of a column across: mean over scans of the scans' means over tissues."""
    heads = unique(rows, column)
    heads = [head for head in STRATA if head in heads] if column == "stratum" else heads
    counts = {head: len(unique(_where(rows, column, head), "scan")) for head in heads}
    lines = ["| arm | " + " | ".join(f"{head} (n = {counts[head]})" for head in heads) + " |"]
    lines.append("|:--|" + "--:|" * len(heads))
    for arm in unique(rows, "method"):
        cells = [_cell(_where(_where(rows, column, head), "method", arm)) for head in heads]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return lines


def _cell(rows: Sequence[Measurement]) -> str:
    dice, sd95 = (_mean_of_scans(rows, metric) for metric in ("dice", "sd95"))
    return "-" if np.isnan(dice) else f"{dice:.3f} ({sd95:.2f})"


def _mean_of_scans(rows: Sequence[Measurement], metric: str) -> float:
    finite = [row for row in rows if row.metric == metric and np.isfinite(row.value)]
    values = [row.value for row in scan_means(finite)]
    return float(np.mean(values)) if values else float("nan")


def _reached(factors: Mapping[str, Sequence[float]]) -> list[str]:
    """How far edits went: a map may have no room for all that was wanted."""
    if not factors:
        return []
    told = [f"- {name}: {np.mean(own):.2f} ({min(own):.2f} to {max(own):.2f})" for name, own in factors.items()]
    return ["Factor on the structure's volume that was reached, mean (range) over maps:", "", *told, ""]


def _effects(dice: Sequence[Measurement]) -> list[str]:
    """What each measure gives by stratum, paired by subject: do the severe gain what the mild lose?"""
    arms = unique(dice, "method")
    known = {name: pairs for name, pairs in EFFECTS.items() if all(arm in arms for pair in pairs for arm in pair)}
    if not known:
        return []
    strata = _present(dice)
    about = (
        "On minus off, averaged over the other being on and off; mean over subjects with its 95 % bootstrap interval."
    )
    lines = ["## What each gives, in Dice points", "", about, "", "| | " + " | ".join(strata) + " |"]
    lines.append("|:--|" + "--:|" * len(strata))
    for name, pairs in known.items():
        cells = [_gain(_scan_dice(_where(dice, "stratum", stratum)), pairs) for stratum in strata]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _scan_dice(rows: Sequence[Measurement]) -> dict[tuple[str, str], float]:
    return {(row.method, row.scan): row.value for row in scan_means(rows)}


def _gain(of: Mapping[tuple[str, str], float], pairs: Sequence[tuple[str, str]]) -> str:
    methods = {arm for pair in pairs for arm in pair}
    scans = [scan for scan in dict.fromkeys(scan for _, scan in of) if all((arm, scan) in of for arm in methods)]
    gains = np.array([100 * np.mean([of[on, scan] - of[off, scan] for on, off in pairs]) for scan in scans])
    if not len(gains):
        return "-"
    interval = mean_interval(gains, BootstrapConfig())
    if np.isnan(interval.low):
        return f"{gains.mean():+.1f} (one subject)"
    return f"{gains.mean():+.1f} ({interval.low:+.1f} to {interval.high:+.1f})"


def paired_lines(rows: Sequence[PairedRow], reference: str, file: str) -> list[str]:
    """Means over tissues only; single tissues are in ``file``."""
    lines = [f"## Against {reference}", "", "Wilcoxon signed-rank test over subjects, Holm within a stratum."]
    lines += [f"Single tissues: `{file}`.", "", "| stratum | arm | subjects | Dice points | p | corrected |"]
    lines.append("|:--|:--|--:|--:|--:|--:|")
    for row in rows:
        if row.label == "" and row.n_pairs:
            other = row.method_b if row.method_a == reference else row.method_a
            gain = (-100 if row.method_a == reference else 100) * row.mean_difference + 0.0  # no "-0.0"
            lines.append(f"| {row.by} | {other} | {row.n_pairs} | {gain:+.1f} | {row.p:.3g} | {row.p_corrected:.3g} |")
    return [*lines, ""]
