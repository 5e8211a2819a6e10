"""How well quality control predicts: the Dice it foretells against the Dice that is true.

Pure functions of results; scipy is imported where it is used.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from synthseg.errors import UsageError
from synthseg.evaluation.yardstick import CaseResult


@dataclass(frozen=True)
class Prediction:
    """One group of structures in one scan."""

    scan: str
    change: str
    group: str
    predicted: float
    true: float


@dataclass(frozen=True)
class PredictionScore:
    """How well a set of predictions fits. NaN: cannot be said of this set."""

    n: int
    n_bad: int  # true Dice below the threshold
    pearson: float
    auc: float  # probability that a bad one is predicted lower than a good one, ties by half
    bias: float  # mean of predicted - true
    error: float  # mean of |predicted - true|


@dataclass(frozen=True)
class CalibrationBin:
    """Predictions in [low, high)."""

    low: float
    high: float
    n: int
    predicted: float  # mean
    true: float  # mean
    share_bad: float  # of them, true Dice below the threshold


def predictions_of(results: Iterable[CaseResult]) -> list[Prediction]:
    """Every group that was predicted and has a true Dice (one that neither map has, has none)."""
    return [
        Prediction(result.scan, result.change, group, predicted, result.groups[group])
        for result in results
        for group, predicted in result.predicted.items()
        if not math.isnan(result.groups.get(group, math.nan))
    ]


def score_predictions(predictions: Sequence[Prediction], threshold: float) -> PredictionScore:
    """Pearson's correlation, and the area under the ROC curve for finding a true Dice below ``threshold``.

    Returns: NaN for a correlation of fewer than three points or of constant ones, and for an area where all are good
        or all are bad.
    """
    from scipy.stats import mannwhitneyu, pearsonr

    predicted, true = (np.array([getattr(p, name) for p in predictions]) for name in ("predicted", "true"))
    bad = true < threshold
    pearson = auc = math.nan
    if len(true) >= 3 and np.ptp(predicted) > 0 and np.ptp(true) > 0:
        pearson = float(pearsonr(predicted, true).statistic)
    if bad.any() and not bad.all():
        auc = float(mannwhitneyu(predicted[~bad], predicted[bad]).statistic) / (int(bad.sum()) * int((~bad).sum()))
    gaps = predicted - true
    bias, error = (float(gaps.mean()), float(np.abs(gaps).mean())) if len(gaps) else (math.nan, math.nan)
    return PredictionScore(len(true), int(bad.sum()), pearson, auc, bias, error)


def calibration(predictions: Sequence[Prediction], edges: Sequence[float], threshold: float) -> list[CalibrationBin]:
    """Mean true Dice of predictions alike, for neighbouring pairs of ``edges``; the last bin holds its upper edge too.

    Raises: UsageError unless the edges ascend.
    """
    if len(edges) < 2 or any(a >= b for a, b in itertools.pairwise(edges)):
        raise UsageError("edges of the calibration", found=str(list(edges)), fix="give two or more, ascending")
    bins = []
    for low, high in itertools.pairwise(edges):
        inside = [p for p in predictions if low <= p.predicted < high or (p.predicted == high == edges[-1])]
        n = len(inside)
        predicted, true = (
            sum(getattr(p, name) for p in inside) / n if n else math.nan for name in ("predicted", "true")
        )
        share = sum(p.true < threshold for p in inside) / n if n else math.nan
        bins.append(CalibrationBin(low, high, n, predicted, true, share))
    return bins


def verdict_of(dice: float, fail_below: float, warn_below: float) -> str:
    """ "fail", "warn" or "pass", as quality control words it."""
    if dice < fail_below:
        return "fail"
    return "warn" if dice < warn_below else "pass"


def confusion(predictions: Sequence[Prediction], fail_below: float, warn_below: float) -> dict[tuple[str, str], int]:
    """How many have which verdict by their true and by their predicted Dice: (true, predicted) -> count."""
    words = ("pass", "warn", "fail")
    counts = {(true, predicted): 0 for true in words for predicted in words}
    for p in predictions:
        counts[verdict_of(p.true, fail_below, warn_below), verdict_of(p.predicted, fail_below, warn_below)] += 1
    return counts
