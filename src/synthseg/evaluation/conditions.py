"""What results over many conditions amount to: means a condition, losses against the same scans as they were, volumes.

Pure functions of :class:`synthseg.evaluation.yardstick.CaseResult`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from synthseg.evaluation.scoring import ScoreRow
from synthseg.evaluation.yardstick import CaseResult
from synthseg.volumes.degrade import PLAIN


@dataclass(frozen=True)
class ConditionSummary:
    """A group of scans under one change. Means over scans of each scan's mean over structures."""

    group: str
    change: str
    n_scans: int
    dice: float
    sd95_mm: float
    n_missing: int  # structures, summed over scans, that only one of the two maps has: SD95 leaves them out


@dataclass(frozen=True)
class Loss:
    """How much lower the mean Dice of the same scans is after a change."""

    before: float
    after: float
    n_pairs: int  # scan and change

    @property
    def dice(self) -> float:
        """Positive when the change made it worse."""
        return self.before - self.after


@dataclass(frozen=True)
class VolumeChange:
    """One structure's volume in a changed scan against the same scan as it was."""

    scan: str
    change: str
    label: int
    percent: float  # 100 |changed - before| / before


@dataclass(frozen=True)
class VolumeRatio:
    """Predicted over true volume of a structure, over scans."""

    structure: str
    n_scans: int
    predicted_cm3: float  # median
    truth_cm3: float  # median
    ratio: float  # median of the scans' ratios


def summarise_conditions(results: Sequence[CaseResult]) -> list[ConditionSummary]:
    """One summary for each group and change, in the order in which they appear."""
    summaries = []
    for group, change in dict.fromkeys((result.group, result.change) for result in results):
        chosen = [result for result in results if (result.group, result.change) == (group, change)]
        dice, sd95 = _mean([r.dice for r in chosen]), _mean([r.sd95_mm for r in chosen])
        missing = sum(1 for r in chosen for row in r.rows if math.isinf(row.sd95_mm))
        summaries.append(ConditionSummary(group, change, len(chosen), dice, sd95, missing))
    return summaries


def structure_dice(results: Iterable[CaseResult]) -> dict[str, float]:
    """Mean Dice of each structure, left and right together, over the results that have it; in order of label value."""
    found: dict[str, list[float]] = {}
    rows = sorted((row for result in results for row in result.rows), key=lambda row: row.label)
    for row in rows:
        if not math.isnan(row.dice):
            found.setdefault(without_side(row.structure), []).append(row.dice)
    return {structure: _mean(dice) for structure, dice in found.items()}


def loss_against_plain(results: Sequence[CaseResult], wanted: Callable[[CaseResult], bool]) -> Loss | None:
    """Mean Dice of the wanted changed results, and of the same scans unchanged (a scan counts as often as changed).

    Returns: None when no wanted result has its unchanged partner.
    """
    plain = {result.scan: result for result in results if result.change == PLAIN}
    pairs = [(plain[r.scan], r) for r in results if r.change != PLAIN and r.scan in plain and wanted(r)]
    if not pairs:
        return None
    return Loss(_mean([a.dice for a, _ in pairs]), _mean([b.dice for _, b in pairs]), len(pairs))


def volume_changes(results: Sequence[CaseResult], wanted: Callable[[CaseResult], bool]) -> list[VolumeChange]:
    """Absolute percentage change of every structure's soft volume, wanted results against the same scans unchanged.

    Structures without volume before are left out: their change has no percentage.
    """
    plain = {result.scan: result for result in results if result.change == PLAIN}
    changes = []
    for result in results:
        if result.change == PLAIN or result.scan not in plain or not wanted(result):
            continue
        before = plain[result.scan].volumes_mm3
        for label, volume in result.volumes_mm3.items():
            if before.get(label, 0) > 0:
                percent = 100 * abs(volume - before[label]) / before[label]
                changes.append(VolumeChange(result.scan, result.change, label, percent))
    return changes


def median_percent(changes: Sequence[VolumeChange]) -> float:
    """Median over structures, scans and changes; NaN when there is none."""
    return statistics.median([change.percent for change in changes]) if changes else math.nan


def volume_ratios(results: Iterable[CaseResult]) -> list[VolumeRatio]:
    """Predicted against true volume, left and right added up, on the truth's grid; in order of label value."""
    volumes: dict[str, dict[str, tuple[float, float]]] = {}
    rows = [(result.scan, row) for result in results for row in result.rows]
    for scan, row in sorted(rows, key=lambda pair: pair[1].label):
        of_scan = volumes.setdefault(without_side(row.structure), {})
        ours, theirs = of_scan.get(scan, (0.0, 0.0))
        of_scan[scan] = (ours + row.volume_predicted_mm3 / 1000, theirs + row.volume_truth_mm3 / 1000)
    ratios = []
    for structure, of_scan in volumes.items():
        pairs = [(ours, theirs) for ours, theirs in of_scan.values() if theirs > 0]
        if pairs:
            middle = [statistics.median(side) for side in zip(*pairs, strict=True)]
            ratio = statistics.median([ours / theirs for ours, theirs in pairs])
            ratios.append(VolumeRatio(structure, len(pairs), middle[0], middle[1], ratio))
    return ratios


def rows_of(results: Iterable[CaseResult]) -> list[ScoreRow]:
    """All rows, for ``write_scores``; the scan's name carries its change (``NAME@CHANGE``)."""
    return [
        replace(row, scan=result.scan if result.change == PLAIN else f"{result.scan}@{result.change}")
        for result in results
        for row in result.rows
    ]


def without_side(structure: str) -> str:
    """``left hippocampus`` and ``right hippocampus`` are both ``hippocampus``."""
    return structure.removeprefix("left ").removeprefix("right ")


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if not math.isnan(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan
