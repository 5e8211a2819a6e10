"""The proof of the hierarchy as the second half of docs/scores.md."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.plus import cases
from benchmarks.plus.bars import Measured, bars_of
from benchmarks.plus.denoiser import Repair
from benchmarks.plus.intracranial import IntracranialRow
from benchmarks.plus.parcels import ParcelRow, ScanParcels
from benchmarks.scores.halves import PLUS
from benchmarks.scores.page import number, table

from synthseg.evaluation.comparison import compare, compare_groups
from synthseg.evaluation.prediction import (
    Prediction,
    calibration,
    confusion,
    predictions_of,
    score_predictions,
)
from synthseg.evaluation.yardstick import CaseResult
from synthseg.inference.quality import FAIL_BELOW, WARN_BELOW

EDGES = (0.0, 0.2, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 1.0)


@dataclass(frozen=True, kw_only=True)
class Proof:
    """Everything that was measured; what is empty was not."""

    facts: Sequence[tuple[str, str]]
    default: Sequence[CaseResult] = ()
    robust: Sequence[CaseResult] = ()
    checked: dict[str, Sequence[CaseResult]] = field(default_factory=dict)  # results with predictions, by mode
    repairs: Sequence[Repair] = ()
    parcels: Sequence[ParcelRow] = ()
    parcel_scans: Sequence[ScanParcels] = ()
    intracranial: dict[str, Sequence[IntracranialRow]] = field(default_factory=dict)  # by mode
    missing: Sequence[str] = ()
    failures: Sequence[str] = ()
    picture: str | None = None  # of predicted against true Dice, relative to the page

    def measured(self) -> Measured:
        """The numbers that have bars."""
        return Measured(self.default, self.robust, self.checked, self.repairs, self.parcels, self.intracranial)


def write_plus(proof: Proof) -> str:
    """The whole second half."""
    parts = [
        _head(proof),
        _bars(proof),
        _robust(proof),
        _repairs(proof.repairs),
        _quality(proof),
        _parcels(proof),
        _intracranial(proof),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(proof: Proof) -> str:
    text = (
        f"{PLUS}\n\nWritten by `make scores-plus`; do not edit. How: `benchmarks/plus/`. Scans are the"
        f" {len(cases.SCANS)} labelled OASIS brains that chose no weights ({', '.join(s[6:] for s in cases.SCANS)}),"
        f" cut to a field of view that ends {cases.MARGIN_MM:g} mm beyond the labels, then degraded"
        " (`src/synthseg/volumes/artefacts.py`, `degrade.py`), changes from left to right. `snr-N`: Rician noise, mean"
        " of the foreground over the standard deviation of the noise in each channel, at the acquired voxel. `bias-N`:"
        " a smooth gain whose logarithm has a standard deviation of 0.5 over the head. `motion-N`: k-space put together"
        " of seven poses of the head (turns of 3 degrees, shifts of 2 mm, standard deviations about and along each"
        " axis), the central 7 % of the lines from the resting one. `cut-SIDE-N`: N % of the head outside of the"
        " field of view, which counts as missed. Each scan has its own noise, fields and movements, the same in every"
        " run.\n\n"
    )
    text += table(("what", "value"), [(what, value) for what, value in proof.facts])
    for heading, lines in (("Not measured", proof.missing), ("Failed", proof.failures)):
        if lines:
            text += f"\n\n**{heading}:**\n\n" + "\n".join(f"- {line}" for line in dict.fromkeys(lines))
    return text


def _bars(proof: Proof) -> str:
    verdict = {True: "held", False: "missed", None: "-"}
    rows = [(bar.what, bar.wanted, bar.shown, verdict[bar.held]) for bar in bars_of(proof.measured())]
    return "## Bars of SynthSeg+\n\n" + table(("bar", "wanted", "measured", ""), rows)


def _robust(proof: Proof) -> str:
    if not proof.default:
        return ""
    if not proof.robust:
        rows = [
            (change, str(len(of)), number(_mean([r.dice for r in of]), 3), number(_mean([r.sd95_mm for r in of]), 2))
            for change, of in _by_change(proof.default).items()
        ]
        return "## Degraded scans, mode default\n\n" + table(("change", "n", "mean Dice", "mean SD95 (mm)"), rows)
    rows = [
        (
            c.change,
            str(c.n_scans),
            number(c.before, 3),
            number(c.after, 3),
            f"{c.difference:+.3f}",
            f"{c.worst:+.3f} to {c.best:+.3f}",
            f"{c.n_better} of {c.n_scans}",
            number(c.before_sd95_mm, 2),
            number(c.after_sd95_mm, 2),
        )
        for c in compare(proof.default, proof.robust)
    ]
    columns = ("change", "n", "default", "robust", "difference", "of single scans", "better", "SD95 default", "robust")
    text = "## Robust against default\n\nMean Dice over 31 structures, then over the same scans; SD95 in mm.\n\n"
    text += table(columns, rows)
    groups = {c[0]: compare_groups(proof.default, proof.robust, c[0]) for c in rows}
    names = list(dict.fromkeys(name for of in groups.values() for name in of))
    none = (math.nan, math.nan)
    cells = [
        (change, *(" / ".join(number(dice, 2) for dice in of.get(name, none)) for name in names))
        for change, of in groups.items()
    ]
    return text + "\n\nDice of the groups of quality control, default / robust.\n\n" + table(("change", *names), cells)


def _repairs(repairs: Sequence[Repair]) -> str:
    if not repairs:
        return ""
    names = list(repairs[0].before)
    rows = []
    for kind, change in dict.fromkeys((r.kind, r.change) for r in repairs):
        of = [r for r in repairs if (r.kind, r.change) == (kind, change)]
        pairs = [(_mean([r.before[n] for r in of]), _mean([r.after[n] for r in of])) for n in names]
        better = sum(_mean([*r.after.values()]) > _mean([*r.before.values()]) for r in of)
        both = [_mean([pair[i] for pair in pairs]) for i in (0, 1)]
        cells = [f"{number(a, 3)} / {number(b, 3)}" for a, b in (both, *pairs)]
        rows.append((kind, change, str(len(of)), *cells, f"{better} of {len(of)}"))
    note = (
        "Maps of tissue groups at the network's voxel size, Dice with the truth before / after the denoiser."
        " `made`: the scan's truth corrupted on purpose (`src/synthseg/evaluation/corruption.py`, written apart from"
        " the training's corruption, and made as strong as the tutorial's pairs; `as it is`: not corrupted, what the"
        " denoiser costs); `real`: what the first"
        " network makes of degraded scans; `example`: the three pairs of the original's tutorial, training-side data"
        " that no training here has used. Voxels that the truth says to ignore are left out."
    )
    return f"## The denoiser\n\n{note}\n\n" + table(("errors", "change", "n", "mean", *names, "better"), rows)


def _quality(proof: Proof) -> str:
    parts = [_quality_of(mode, predictions_of(results)) for mode, results in proof.checked.items()]
    parts = [part for part in parts if part]
    if not parts:
        return ""
    note = (
        f"Predicted against true Dice of each group (truth: structures of a group merged, both sides together), on the"
        f" scans above and {len(cases.SEVERITIES)} more changes of graded severity (three scans each). A result counts"
        f" as bad below {FAIL_BELOW:g}; `fail` below {FAIL_BELOW:g}, `warn` below {WARN_BELOW:g}."
    )
    text = f"## Quality control\n\n{note}\n\n"
    if proof.picture:
        text += f"![Predicted against true Dice]({proof.picture})\n\n"
    return text + "\n\n".join(parts)


def _quality_of(mode: str, predictions: Sequence[Prediction]) -> str:
    if not predictions:
        return ""
    rows = []
    for name in ("all groups", *dict.fromkeys(p.group for p in predictions)):
        chosen = [p for p in predictions if name in ("all groups", p.group)]
        s = score_predictions(chosen, FAIL_BELOW)
        true = [p.true for p in chosen]
        spread = f"{min(true):.2f} to {max(true):.2f}"
        cells = (number(s.pearson, 3), number(s.auc, 3), f"{s.bias:+.3f}", number(s.error, 3))
        rows.append((name, str(s.n), str(s.n_bad), spread, *cells))
    columns = ("group", "n", "bad", "true Dice", "Pearson", "AUC for bad", "mean error", "mean absolute error")
    text = f"### Mode {mode}\n\n" + table(columns, rows)
    bins = [b for b in calibration(predictions, EDGES, FAIL_BELOW) if b.n]
    cells_of = [
        (f"{b.low:g} to {b.high:g}", str(b.n), number(b.predicted, 3), number(b.true, 3), f"{100 * b.share_bad:.0f} %")
        for b in bins
    ]
    text += "\n\n" + table(("predicted", "n", "mean predicted", "mean true", "truly bad"), cells_of)
    counts = confusion(predictions, FAIL_BELOW, WARN_BELOW)
    words = ("pass", "warn", "fail")
    lines = [(f"truly {true}", *(str(counts[true, said]) for said in words)) for true in words]
    return text + "\n\n" + table(("", *(f"said {word}" for word in words)), lines)


def _parcels(proof: Proof) -> str:
    if not proof.parcels:
        return ""
    rows = [
        (r.name, r.kind, r.quality, r.truth, number(r.dice, 3), number(r.within, 3), number(r.template, 2))
        for r in proof.parcels
    ]
    for kind in ("one to one", "union"):
        of = [r for r in proof.parcels if r.kind == kind]
        means = [_mean([getattr(r, name) for r in of]) for name in ("dice", "within", "template")]
        cells = (number(means[0], 3), number(means[1], 3), number(means[2], 2))
        rows.append((f"**mean, {kind}**", kind, "", str(len(of)), *cells))
    cortex = _mean([s.cortex for s in proof.parcel_scans])
    note = (
        f"{len(proof.parcel_scans)} OASIS brains as they are, mode default, against the manual BrainCOLOR parcels by"
        " `data/validation/braincolor_to_dk.csv`. One to one: a group of that table with exactly one BrainCOLOR and one"
        " Desikan-Killiany parcel a side, not marked `poor` (which the table says not to score); union: several on"
        " either side, compared as one; `poor` groups (central operculum, frontal pole, middle, superior and fusiform"
        " occipital, temporal pole) are left out. The two atlases draw their borders otherwise even where they are one"
        " to one: `two atlases` is the Dice of their own labels on one template (the table's `mni_group_dice`)."
        f" Ceiling: the Dice of the cortex itself, all parcels as one, is {number(cortex, 3)}; `within` counts only"
        " voxels that both call cortex."
    )
    columns = ("parcel", "kind", "agreement", "theirs : ours, a side", "Dice", "within", "two atlases")
    return f"## Parcels\n\n{note}\n\n" + table(columns, rows)


def _intracranial(proof: Proof) -> str:
    if not proof.intracranial:
        return ""
    modes = list(proof.intracranial)
    rows = []
    for same in zip(*proof.intracranial.values(), strict=True):
        first = same[0]
        cells = [f"{row.predicted_ml:.0f} ({row.percent:+.1f} %)" for row in same]
        rows.append((first.template.what, first.template.kind, f"{first.mask_ml:.0f}", *cells))
    note = (
        "Total intracranial volume (all structures and CSF) against the volume of masks that come with templates. Only"
        " those of stripped CT end at the inside of the skull and hold the CSF over the brain: they are what the first"
        " bar is of; the second takes the brain masks too. A brain mask leaves most of that CSF out (the prediction"
        " should be above it), the widened one reaches"
        " into meninges and bone (it should be below)."
    )
    columns = ("image and mask", "the mask is", "mask (ml)", *(f"{mode} (ml)" for mode in modes))
    return f"## Intracranial volume\n\n{note}\n\n" + table(columns, rows)


def _by_change(results: Sequence[CaseResult]) -> dict[str, list[CaseResult]]:
    changes: dict[str, list[CaseResult]] = {}
    for result in results:
        changes.setdefault(result.change, []).append(result)
    return changes


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if not math.isnan(value)]
    return statistics.fmean(finite) if finite else math.nan
