"""Published volumes of healthy adults, for the few quantities whose definition fits ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from synthseg.evaluation import CaseResult

FLUID = (4, 5, 14, 15, 24, 43, 44)  # ventricles and CSF


@dataclass(frozen=True)
class PublishedRange:
    """A quantity, its range in cm3, and where it is published."""

    what: str
    low_cm3: float
    high_cm3: float
    source: str
    measure: Callable[[CaseResult], float]  # cm3


def _structure(*labels: int) -> Callable[[CaseResult], float]:
    return lambda result: sum(result.volumes_mm3.get(label, 0.0) for label in labels) / 1000


def _brain(result: CaseResult) -> float:
    return sum(volume for label, volume in result.volumes_mm3.items() if label not in FLUID) / 1000


# Matsumae et al.: mean +- SD 1469 +- 102 (men), 1289 +- 111 (women) cm3 intracranial; 1302 +- 112, 1143 +- 105 brain.
_MATSUMAE = (
    "Matsumae et al. 1996, Journal of Neurosurgery (June): 49 volunteers, 24-80 years; women - 2 SD to men + 2 SD"
)
_HIPPOCAMPUS = (
    "range of the literature quoted in 'Hippocampal volume measurements using magnetic resonance imaging in normal"
    " young adults', J Neuroimaging"
)
PUBLISHED = (
    PublishedRange(
        "total intracranial", 1289 - 2 * 111, 1469 + 2 * 102, _MATSUMAE, lambda result: result.total_mm3 / 1000
    ),
    PublishedRange("brain without ventricles", 1143 - 2 * 105, 1302 + 2 * 112, _MATSUMAE, _brain),
    PublishedRange("left hippocampus", 1.73, 5.68, _HIPPOCAMPUS, _structure(17)),
    PublishedRange("right hippocampus", 1.73, 5.68, _HIPPOCAMPUS, _structure(53)),
)


def within_published(result: CaseResult) -> list[bool]:
    """Whether each published quantity of a result lies in its range."""
    return [row.low_cm3 <= row.measure(result) <= row.high_cm3 for row in PUBLISHED]
