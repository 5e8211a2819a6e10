"""Where a scan stands in its cohort: percentiles, robust deviations, and the order in which to look."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEAST = 5  # scans: below, neither percentiles nor deviations mean anything
OUTLYING = 3.5  # modified z-score above which Iglewicz and Hoaglin (1993) call a value an outlier
SD_OF_MAD = 1.4826  # the median absolute deviation of a normal distribution, times this, is its standard deviation
TOTALS = ("total intracranial", "total segmented")


@dataclass(frozen=True)
class Standing:
    """A volume among those of a cohort.

    Attributes:
        percentile: of the volume, 0 to 100: the share below it, and half of the equal ones; None without a cohort.
        deviation: of the structure's share of the total, in robust standard deviations from the median; None where it
            cannot be told (too few scans, or more than half of them equal).
    """

    percentile: float | None
    deviation: float | None

    @property
    def outlying(self) -> bool:
        return self.deviation is not None and abs(self.deviation) > OUTLYING


@dataclass(frozen=True)
class Histogram:
    """Counts of volumes (mm3) in equal bins from ``low`` to ``high``."""

    name: str
    low: float
    high: float
    counts: tuple[int, ...]
    median: float


class Cohort:
    """Volumes (mm3) of many scans by structure name, each scan's total among them where it has one."""

    def __init__(self, scans: Sequence[Mapping[str, float]]) -> None:
        self.size = len(scans)
        names = list(dict.fromkeys(name for scan in scans for name in scan))
        self.volumes = {name: _sorted([scan.get(name, math.nan) for scan in scans]) for name in names}
        shares = {name: _sorted([share_of(name, scan) for scan in scans]) for name in names}
        self._spread = {name: _middle_and_spread(values) for name, values in shares.items() if len(values) >= LEAST}

    def standing(self, name: str, volumes: Mapping[str, float]) -> Standing:
        """Where ``volumes[name]`` of one scan stands, whether or not that scan is among the cohort."""
        value, others = volumes[name], self.volumes.get(name, np.empty(0))
        if len(others) < LEAST or not math.isfinite(value):
            return Standing(None, None)
        below, not_above = (int(np.searchsorted(others, value, side=side)) for side in ("left", "right"))
        percentile = 50 * (below + not_above) / len(others)
        return Standing(percentile, self._deviation(name, share_of(name, volumes)))

    def _deviation(self, name: str, share: float) -> float | None:
        """Source: the modified z-score of Iglewicz and Hoaglin 1993."""
        if name not in self._spread or not math.isfinite(share):
            return None
        median, spread = self._spread[name]
        return (share - median) / spread if spread > 1e-12 * max(abs(median), 1e-12) else None

    def histograms(self, bins: int = 24) -> list[Histogram]:
        """One histogram a structure, of structures that have enough scans."""
        made = []
        for name, values in self.volumes.items():
            if len(values) >= LEAST:
                low, high = float(values.min()), float(values.max())
                counts, _ = np.histogram(values, bins=bins, range=(low, high if high > low else low + 1))
                made.append(Histogram(name, low, high, tuple(int(n) for n in counts), float(np.median(values))))
        return made


def share_of(name: str, volumes: Mapping[str, float]) -> float:
    """A structure's volume over the total, so that a large head is no outlier in all; a total itself in mm3."""
    total = next((volumes[total] for total in TOTALS if total in volumes), 0.0)
    if name in TOTALS or total <= 0:
        return volumes.get(name, math.nan)
    return volumes.get(name, math.nan) / total


def _sorted(values: Sequence[float]) -> np.ndarray:
    """The finite ones in ascending order."""
    array = np.asarray(values, dtype=np.float64)
    return np.sort(array[np.isfinite(array)])


def _middle_and_spread(values: np.ndarray) -> tuple[float, float]:
    """The median, and the standard deviation that a normal distribution of this median absolute deviation has."""
    median = float(np.median(values))
    return median, SD_OF_MAD * float(np.median(np.abs(values - median)))
