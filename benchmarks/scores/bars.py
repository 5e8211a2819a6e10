"""What `default` must reach, and what was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.scores import cases
from benchmarks.scores.published import within_published

from synthseg.evaluation import CaseResult, Loss, loss_against_plain, median_percent, summarise_conditions
from synthseg.evaluation import volume_changes as changes_of
from synthseg.volumes.degrade import PLAIN

THICKEST = f"-{max(cases.THICKNESSES_MM)}mm"


@dataclass(frozen=True)
class Bar:
    """One bar: ``measured`` is NaN when the subset did not measure it."""

    what: str
    wanted: str
    measured: float
    shown: str
    held: bool | None  # None: not measured


def bars_of(results: Sequence[CaseResult]) -> list[Bar]:
    """The bars of the training campaign, in its order."""
    return [
        _at_least("labelled T1 brains, mean Dice", 0.85, _dice(results, cases.T1_BRAINS)),
        _at_most("T2 and PD templates below the T1 template of the same people, worst, Dice", 0.03, _contrast(results)),
        _loss("T1 brains, 1 mm to 7 mm slices, loss of mean Dice", 0.038, results, THICKEST),
        _loss("T1 brains, re-contrasted, loss of mean Dice", 0.02, results, *cases.CONTRASTS),
        _turned(results),
        _volumes(results),
    ]


def thick_loss(results: Sequence[CaseResult], ending: str) -> Loss | None:
    """Loss of the T1 brains to slices of one thickness, all directions."""
    return loss_against_plain(results, lambda r: r.group == cases.T1_BRAINS and r.change.endswith(ending))


def _dice(results: Sequence[CaseResult], group: str, change: str = PLAIN) -> float:
    found = [s.dice for s in summarise_conditions(results) if (s.group, s.change) == (group, change)]
    return found[0] if found else math.nan


def _contrast(results: Sequence[CaseResult]) -> float:
    coarse = _dice(results, cases.T1_TEMPLATE)
    fine = _dice(results, cases.T1_TEMPLATE_FINE, "stripped")  # its T2 partner is stripped too
    below = [
        coarse - _dice(results, cases.T2_TEMPLATE),
        coarse - _dice(results, cases.PD_TEMPLATE),
        fine - _dice(results, cases.T2_TEMPLATE_FINE),
    ]
    return max((value for value in below if not math.isnan(value)), default=math.nan)


def _loss(what: str, limit: float, results: Sequence[CaseResult], *endings: str) -> Bar:
    loss = loss_against_plain(results, lambda r: r.group == cases.T1_BRAINS and r.change.endswith(endings))
    return _at_most(what, limit, math.nan if loss is None else loss.dice)


def _turned(results: Sequence[CaseResult]) -> Bar:
    percent = median_percent(changes_of(results, lambda r: r.change in cases.TURNS))
    held = None if math.isnan(percent) else percent <= 0.7
    shown = "not measured" if held is None else f"{percent:.2f} %"
    return Bar("median volume change under a rotation of 3 degrees", "<= 0.7 %", percent, shown, held)


def _volumes(results: Sequence[CaseResult]) -> Bar:
    brains = [r for r in results if r.group == cases.T1_BRAINS and r.change == PLAIN]
    checks = [inside for result in brains for inside in within_published(result)]
    what = "volumes of the T1 brains in published adult ranges"
    if not checks:
        return Bar(what, "all", math.nan, "not measured", None)
    return Bar(what, "all", sum(checks) / len(checks), f"{sum(checks)} of {len(checks)}", all(checks))


def _at_least(what: str, limit: float, measured: float) -> Bar:
    return _bar(what, f">= {limit:g}", measured, measured >= limit)


def _at_most(what: str, limit: float, measured: float) -> Bar:
    return _bar(what, f"<= {limit:g}", measured, measured <= limit)


def _bar(what: str, wanted: str, measured: float, held: bool) -> Bar:
    if math.isnan(measured):
        return Bar(what, wanted, measured, "not measured", None)
    return Bar(what, wanted, measured, f"{measured:.3f}", held)
