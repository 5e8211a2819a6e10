"""Results as a Markdown page."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.scores import cases
from benchmarks.scores.bars import bars_of, thick_loss
from benchmarks.scores.published import PUBLISHED

from synthseg.evaluation import (
    CaseFailure,
    CaseResult,
    loss_against_plain,
    median_percent,
    structure_dice,
    summarise_conditions,
    volume_changes,
    volume_ratios,
)
from synthseg.evaluation.conditions import without_side
from synthseg.volumes.degrade import PLAIN


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a table of scores must say about how it came about."""

    weights: str
    sha256: str
    mode: str
    machine: str
    threads: int
    torch: str
    date: str
    subset: str
    command: str


# Columns of the table structure x condition: each of the conditions that belong together, over all their scans.
FAMILIES: tuple[tuple[str, Callable[[CaseResult], bool]], ...] = (
    ("T1 brains", lambda r: (r.group, r.change) == (cases.T1_BRAINS, PLAIN)),
    *(
        (f"{mm} mm slices", lambda r, end=f"-{mm}mm": r.change.endswith(end))  # type: ignore[misc]
        for mm in cases.THICKNESSES_MM
    ),
    ("inverted", lambda r: r.change == "inverted"),
    ("monotone", lambda r: r.change.startswith("monotone")),
    ("smooth", lambda r: r.change.startswith("smooth")),
    ("T1 others", lambda r: r.group in (cases.T1_OTHERS, cases.T1_TEMPLATE_FINE) and r.change == PLAIN),
    ("T1, 2 mm", lambda r: (r.group, r.change) == (cases.T1_TEMPLATE, PLAIN)),
    ("T2", lambda r: r.group in (cases.T2_TEMPLATE, cases.T2_TEMPLATE_FINE) and r.change == PLAIN),
    ("PD", lambda r: (r.group, r.change) == (cases.PD_TEMPLATE, PLAIN)),
    ("CT", lambda r: r.group == cases.CT_TEMPLATE),
    ("heads, stripped", lambda r: r.change == "stripped"),
)


def write_page(facts: RunFacts, results: Sequence[CaseResult], failures: Sequence[CaseFailure]) -> str:
    """The whole page."""
    parts = [
        _head(facts, results, failures),
        _bars(results),
        _conditions(results),
        _losses(results),
        _rotations(results),
        _structures(results),
        _published(results),
        _ratios(results),
        _scans(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _head(facts: RunFacts, results: Sequence[CaseResult], failures: Sequence[CaseFailure]) -> str:
    scans = len({result.scan for result in results})
    seconds = statistics.median([result.seconds for result in results]) if results else math.nan
    rows = [
        ("weights", f"`{facts.weights}`, sha256 {facts.sha256[:12]}"),
        ("mode", facts.mode),
        ("machine", f"{facts.machine}, {facts.threads} threads, torch {facts.torch}"),
        ("date", facts.date),
        ("subset", f"{facts.subset}: {scans} scans, {len(results)} segmentations, median {seconds:.1f} s each"),
        ("command", f"`{facts.command}`"),
    ]
    text = (
        "# Scores\n\n"
        "Written by `make scores`; do not edit. What is scored, and how, is in `benchmarks/scores/` and"
        " `src/synthseg/volumes/degrade.py`. No scan here was trained on; four of the OASIS brains"
        f" ({', '.join(name.removeprefix('oasis_') for name in cases.WATCHED)}) and the 2 mm T1 and T2 templates chose"
        " between checkpoints. Truths of templates are group labels, those of two other T1s are FreeSurfer's."
        " CSF (24) is not scored: no truth labels it as SynthSeg does. Dice and SD95 are means over structures, then"
        " over scans, at the truth's resolution; SD95 leaves out structures that one of the maps lacks.\n\n"
    )
    text += table(("what", "value"), rows)
    if failures:
        lines = [f"- {failure.case.group}, {failure.case.name}: {failure.reason}" for failure in failures]
        text += "\n\n**Not scored:**\n\n" + "\n".join(lines)
    return text


def _bars(results: Sequence[CaseResult]) -> str:
    verdict = {True: "held", False: "missed", None: "-"}
    rows = [(bar.what, bar.wanted, bar.shown, verdict[bar.held]) for bar in bars_of(results)]
    note = (
        "Of `default`, the full subset. A bar is measured on what the subset at hand holds. The published ranges are"
        " few and wide: the ratios to the manual volumes below say more."
    )
    return f"## Bars\n\n{note}\n\n" + table(("bar", "wanted", "measured", ""), rows)


def _conditions(results: Sequence[CaseResult]) -> str:
    rows = [
        (s.group, s.change, str(s.n_scans), number(s.dice, 3), number(s.sd95_mm, 2), str(s.n_missing))
        for s in summarise_conditions(results)
    ]
    columns = ("scans", "change", "n", "mean Dice", "mean SD95 (mm)", "structures missing")
    note = (
        f"Degraded T1s are {', '.join(cases.CHANGED)}: compare them with the same brains as they are, below."
        " `smooth` curves may give two tissues one intensity. `stripped`: everything beyond 3 mm of a label removed."
        " Labels of rotated and shifted scans are compared on the grid of the truth moved along, each voxel with the"
        " nearest: that alone costs them Dice (at half a voxel most), and only their volumes are meant to be read."
    )
    return f"## Conditions\n\n{note}\n\n" + table(columns, rows)


def _losses(results: Sequence[CaseResult]) -> str:
    rows = []
    for mm in cases.THICKNESSES_MM:
        rows.append((f"{mm} mm slices, all directions", thick_loss(results, f"-{mm}mm")))
    for way in ("sagittal", "coronal", "axial"):
        rows.append(
            (f"{way} slices, all spacings", loss_against_plain(results, lambda r, w=way: r.change.startswith(w)))
        )
    for change in cases.CONTRASTS:
        rows.append((change, loss_against_plain(results, lambda r, c=change: r.change == c)))
    rows.append(("heads stripped", loss_against_plain(results, lambda r: r.change == "stripped")))
    shown = [
        (what, str(loss.n_pairs), number(loss.before, 3), number(loss.after, 3), f"{loss.dice:+.3f}")
        for what, loss in rows
        if loss is not None
    ]
    if not shown:
        return ""
    columns = ("change", "pairs", "Dice before", "Dice after", "loss")
    return "## Losses\n\nThe same scans before and after a change.\n\n" + table(columns, shown)


def _rotations(results: Sequence[CaseResult]) -> str:
    turned = volume_changes(results, lambda r: r.change in cases.TURNS)
    control = volume_changes(results, lambda r: r.change == cases.CONTROL)
    if not turned:
        return ""
    names = {row.label: without_side(row.structure) for result in results for row in result.rows}
    rows = [("all", f"{median_percent(turned):.2f}", number(median_percent(control), 2))]
    for structure in dict.fromkeys(names[label] for label in sorted(names)):
        ours = [[c for c in changes if names.get(c.label) == structure] for changes in (turned, control)]
        rows.append((structure, number(median_percent(ours[0]), 2), number(median_percent(ours[1]), 2)))
    note = (
        "The scan is turned by 3 degrees about the centre of its field of view (about the axes to the right, to the"
        " front and up in turn), interpolated linearly on its own grid, and segmented. Compared is every structure's"
        " soft volume with that of the unturned scan, |after - before| / before; given is the median over scans, axes"
        " and structures (both sides). The control is the same scan moved by half a voxel along each axis, which"
        " interpolation blurs most: what is as large there is due to resampling, not to the turn."
    )
    columns = ("structure", "rotated by 3 degrees (%)", "control, half a voxel (%)")
    return f"## Volumes under rotation\n\n{note}\n\n" + table(columns, rows)


def _structures(results: Sequence[CaseResult]) -> str:
    columns = {name: structure_dice(r for r in results if wanted(r)) for name, wanted in FAMILIES}
    columns = {name: dice for name, dice in columns.items() if dice}
    structures = structure_dice(results)
    rows = [
        (structure, *(number(dice.get(structure, math.nan), 3) for dice in columns.values()))
        for structure in structures
    ]
    note = "Mean Dice over the scans of each condition, left and right together."
    return f"## Structures\n\n{note}\n\n" + table(("structure", *columns), rows)


def _published(results: Sequence[CaseResult]) -> str:
    brains = _brains(results)
    if not brains:
        return ""
    rows = []
    for entry in PUBLISHED:
        values = [entry.measure(result) for result in brains]
        inside = sum(entry.low_cm3 <= value <= entry.high_cm3 for value in values)
        ours = f"{min(values):.4g} to {max(values):.4g}"
        published = f"{entry.low_cm3:.4g} to {entry.high_cm3:.4g}"
        rows.append((entry.what, ours, published, f"{inside} of {len(values)}", entry.source))
    note = (
        "Soft volumes of the T1 brains (healthy adults). The scans are stripped, so that part of the CSF around the"
        " brain, which belongs to the intracranial volume, is not in them. For other structures no published range of"
        " the same definition was at hand: their volumes are compared with the manual labels below."
    )
    columns = ("quantity", "measured (cm3)", "published (cm3)", "inside", "source")
    return f"## Volumes against published ranges\n\n{note}\n\n" + table(columns, rows)


def _ratios(results: Sequence[CaseResult]) -> str:
    brains = _brains(results)
    if not brains:
        return ""
    rows = [
        (r.structure, number(r.predicted_cm3, 2), number(r.truth_cm3, 2), number(r.ratio, 3))
        for r in volume_ratios(brains)
    ]
    columns = ("structure, both sides", "predicted (cm3)", "manual (cm3)", "ratio")
    note = f"Medians over {len(brains)} T1 brains. The manual protocol draws some borders otherwise."
    return f"## Volumes against the truth\n\n{note}\n\n" + table(columns, rows)


def _scans(results: Sequence[CaseResult]) -> str:
    plain = [result for result in results if result.change == PLAIN]
    rows = [
        (r.scan, r.group, str(len(r.rows)), number(r.dice, 3), number(r.sd95_mm, 2), number(r.seconds, 1))
        for r in plain
    ]
    columns = ("scan", "group", "structures", "mean Dice", "mean SD95 (mm)", "seconds")
    return "## Scans as they are\n\n" + table(columns, rows)


def _brains(results: Sequence[CaseResult]) -> list[CaseResult]:
    return [result for result in results if result.group == cases.T1_BRAINS and result.change == PLAIN]


def number(value: float, digits: int) -> str:
    """A number, or a dash where there is none."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
