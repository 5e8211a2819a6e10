"""Two ways of segmenting the same scans, compared scan by scan.

Pure functions of :class:`synthseg.evaluation.yardstick.CaseResult`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from synthseg.evaluation.yardstick import CaseResult


@dataclass(frozen=True)
class Comparison:
    """Scans under one change, segmented in one way (before) and in another (after). Means over scans."""

    change: str
    n_scans: int
    before: float  # mean Dice
    after: float
    before_sd95_mm: float
    after_sd95_mm: float
    worst: float  # difference of the scan that gained least
    best: float  # of the one that gained most
    n_better: int  # scans with a higher Dice after

    @property
    def difference(self) -> float:
        """Positive when the other way is better."""
        return self.after - self.before


def compare(before: Sequence[CaseResult], after: Sequence[CaseResult]) -> list[Comparison]:
    """One comparison for each change, over the scans that both have, in the order of ``before``."""
    others = {(r.scan, r.group, r.change): r for r in after}
    comparisons = []
    for change in dict.fromkeys(r.change for r in before):
        keys = [(r, (r.scan, r.group, r.change)) for r in before if r.change == change]
        pairs = [(ours, others[key]) for ours, key in keys if key in others]
        if not pairs:
            continue
        gains = [b.dice - a.dice for a, b in pairs]
        dice, sd95 = (
            [_mean([getattr(pair[i], name) for pair in pairs]) for i in (0, 1)] for name in ("dice", "sd95_mm")
        )
        comparisons.append(
            Comparison(
                change=change,
                n_scans=len(pairs),
                before=dice[0],
                after=dice[1],
                before_sd95_mm=sd95[0],
                after_sd95_mm=sd95[1],
                worst=min(gains),
                best=max(gains),
                n_better=sum(gain > 0 for gain in gains),
            )
        )
    return comparisons


def compare_groups(
    before: Sequence[CaseResult], after: Sequence[CaseResult], change: str
) -> dict[str, tuple[float, float]]:
    """Mean true Dice of each quality group before and after, over the scans under ``change`` that both have."""
    others = {(r.scan, r.group): r for r in after if r.change == change}
    pairs = [(r, others[r.scan, r.group]) for r in before if r.change == change and (r.scan, r.group) in others]
    names = dict.fromkeys(name for a, b in pairs for name in (*a.groups, *b.groups))
    return {
        name: (
            _mean([a.groups.get(name, math.nan) for a, _ in pairs]),
            _mean([b.groups.get(name, math.nan) for _, b in pairs]),
        )
        for name in names
    }


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if not math.isnan(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan
