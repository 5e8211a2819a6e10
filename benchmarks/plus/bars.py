"""What the hierarchy must reach, and what was measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.plus import cases
from benchmarks.plus.denoiser import UNHARMED, Repair
from benchmarks.plus.intracranial import BRAIN, DILATED, SKULL, IntracranialRow
from benchmarks.plus.parcels import ParcelRow
from benchmarks.scores.bars import Bar

from synthseg.evaluation.comparison import compare
from synthseg.evaluation.prediction import predictions_of, score_predictions
from synthseg.evaluation.yardstick import CaseResult
from synthseg.inference.quality import FAIL_BELOW
from synthseg.volumes.degrade import PLAIN

PEARSON, AUC, PARCELS, INTRACRANIAL_PERCENT = 0.7, 0.9, 0.60, 8.0


@dataclass(frozen=True)
class Measured:
    """What bars are measured on."""

    default: Sequence[CaseResult]
    robust: Sequence[CaseResult]
    checked: Mapping[str, Sequence[CaseResult]]
    repairs: Sequence[Repair]
    parcels: Sequence[ParcelRow]
    intracranial: Mapping[str, Sequence[IntracranialRow]]


def bars_of(measured: Measured) -> list[Bar]:
    """The bars, in order."""
    return [
        *_robust(measured),
        *(_repaired(measured.repairs, kind, what) for kind, what in (("made", "made"), ("real", "real"))),
        *_predicted(measured.checked),
        _parcels(measured.parcels),
        *_intracranial(measured.intracranial),
    ]


def _robust(measured: Measured) -> list[Bar]:
    """Each way of degrading that the bar names is a bar, and the mean over all of them."""
    found = {c.change: c for c in compare(measured.default, measured.robust)}
    wanted = [*cases.SINGLE, cases.HARD]
    bars = []
    for change in wanted:
        what = f"robust - default, mean Dice, {change}"
        c = found.get(change)
        shown = "not measured" if c is None else f"{c.difference:+.3f} ({c.n_better} of {c.n_scans} scans)"
        value = math.nan if c is None else c.difference
        bars.append(Bar(what, "> 0", value, shown, None if c is None else value > 0))
    gains = [c.difference for change, c in found.items() if change != PLAIN]
    mean = statistics.fmean(gains) if gains else math.nan
    what = f"the same, mean of {len(gains)} ways of degrading"
    bars.append(Bar(what, "> 0", mean, f"{mean:+.3f}" if gains else "not measured", mean > 0 if gains else None))
    return bars


def _repaired(repairs: Sequence[Repair], kind: str, what: str) -> Bar:
    of = [r for r in repairs if r.kind == kind and r.change != UNHARMED]
    name = f"the denoiser on held-out maps, {what} errors, mean Dice before and after"
    if not of:
        return Bar(name, "higher after", math.nan, "not measured", None)
    before, after = (
        statistics.fmean([d for r in of for d in getattr(r, side).values() if not math.isnan(d)])
        for side in ("before", "after")
    )
    return Bar(name, "higher after", after - before, f"{before:.3f}, {after:.3f}", after > before)


def _predicted(checked: Mapping[str, Sequence[CaseResult]]) -> list[Bar]:
    bars = []
    for mode, results in checked.items() or (("robust", ()),):
        score = score_predictions(predictions_of(results), FAIL_BELOW)
        for name, value, least in (("Pearson", score.pearson, PEARSON), ("AUC for bad", score.auc, AUC)):
            none = math.isnan(value)
            shown = "not measured" if none else f"{value:.3f}"
            what = f"predicted against true Dice, mode {mode}, {name}"
            bars.append(Bar(what, f">= {least:g}", value, shown, None if none else value >= least))
    return bars


def _parcels(parcels: Sequence[ParcelRow]) -> Bar:
    values = [row.dice for row in parcels if row.kind == "one to one"]
    what, wanted = "parcels where the mapping is one to one, mean Dice", f">= {PARCELS:.2f}"
    if not values:
        return Bar(what, wanted, math.nan, "not measured", None)
    mean = statistics.fmean(values)
    return Bar(what, wanted, mean, f"{mean:.3f}", mean >= PARCELS)


def _intracranial(by_mode: Mapping[str, Sequence[IntracranialRow]]) -> list[Bar]:
    bars = []
    kinds = {
        "masks of the inside of the skull": (SKULL,),
        "these and the brain masks of stripped templates": (SKULL, BRAIN, DILATED),
    }
    for mode, rows in by_mode.items():
        for what, counted in kinds.items():
            percents = [row.percent for row in rows if row.template.kind in counted]
            if percents:
                worst = max(percents, key=abs)
                name = f"intracranial volume against {what}, mode {mode}, worst"
                held = abs(worst) <= INTRACRANIAL_PERCENT
                bars.append(Bar(name, f"<= {INTRACRANIAL_PERCENT:g} %", worst, f"{worst:+.1f} %", held))
    return bars
