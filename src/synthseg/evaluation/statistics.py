"""Statistics of paired differences and bootstrap intervals: pure functions of numbers. Formulas: docs/statistics.md."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from synthseg.errors import ConfigError, ShapeError

EXACT_UP_TO = 50  # non-zero differences: the exact distribution up to here, the normal approximation beyond
ZERO_METHODS = ("wilcox", "pratt")
CORRECTIONS = ("bonferroni", "holm", "none")
_NUMBERS_AT_ONCE = 2_000_000  # resampled numbers held in memory together
_BEYOND = 1e6  # stands for infinity, in multiples of the largest finite difference


@dataclass(frozen=True)
class SignedRank:
    """The Wilcoxon signed-rank test of paired differences, two-sided."""

    n: int  # pairs
    n_zero: int  # pairs without a difference
    n_tied: int  # non-zero differences whose size occurs more than once
    positive: float  # W+, sum of the ranks of positive differences
    negative: float  # W-
    p: float  # NaN without pairs, 1 when no pair differs
    exact: bool  # False: normal approximation

    @property
    def rank_biserial(self) -> float:
        """(W+ - W-) / (W+ + W-), in [-1, 1]: the matched-pairs rank-biserial correlation (Kerby 2014).

        0 when no pair differs, NaN without pairs.
        """
        total = self.positive + self.negative
        if total == 0:
            return 0.0 if self.n else math.nan
        return (self.positive - self.negative) / total


@dataclass(frozen=True)
class Interval:
    """A bootstrap interval."""

    low: float
    high: float
    method: str  # "bca"; "percentile" where BCa is undefined; "constant": every resample gives one number; "none"


@dataclass(frozen=True, kw_only=True)
class BootstrapConfig:
    """How intervals are found. Equal seeds give equal intervals, whatever else is computed."""

    confidence: float = 0.95
    resamples: int = 9999
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise ConfigError("confidence", found=str(self.confidence), fix="give a share between 0 and 1, e.g. 0.95")
        if self.resamples < 100:
            raise ConfigError("resamples", found=str(self.resamples), fix="draw at least 100; the default is 9999")
        if self.seed < 0:
            raise ConfigError("seed", found=str(self.seed), fix="give an integer of at least 0")


def signed_rank(differences: np.ndarray | Sequence[float], zeros: str = "wilcox") -> SignedRank:
    """Two-sided Wilcoxon signed-rank test. Equal sizes share their mean rank.

    Exact up to 50 non-zero differences, ties included (the distribution over all signs, counted rather than sampled);
    beyond, the normal approximation with the variance of the ranks at hand and no continuity correction. Infinite
    differences rank above all finite ones and tie among themselves.

    Args:
        differences: [n]; infinities are allowed, NaN is not.
        zeros: "wilcox" leaves zero differences out; "pratt" ranks them with the others, then leaves their ranks out.
    Raises: ShapeError unless [n]; ConfigError for NaN or another ``zeros``.
    Source: Wilcoxon 1945; Pratt 1959. The paper's test (section 5, table 2).
    """
    from scipy.special import ndtr
    from scipy.stats import rankdata

    values = _vector(differences)
    if zeros not in ZERO_METHODS:
        raise ConfigError("zeros", found=repr(zeros), fix=f"use one of {', '.join(ZERO_METHODS)}")
    if np.isnan(values).any():
        raise ConfigError("paired differences", found="NaN", fix="leave out pairs that lack a value, and report them")
    nonzero = values[values != 0]
    ranked = values if zeros == "pratt" else nonzero
    ranks = rankdata(np.abs(ranked))[ranked != 0]
    positive, negative = float(ranks[nonzero > 0].sum()), float(ranks[nonzero < 0].sum())
    _, counts = np.unique(np.abs(nonzero), return_counts=True)
    exact = len(nonzero) <= EXACT_UP_TO
    if len(values) == 0:
        p = math.nan
    elif exact:
        p = _exact_p(ranks, positive)
    else:
        z = (positive - ranks.sum() / 2) / math.sqrt((ranks**2).sum() / 4)
        p = float(2 * ndtr(-abs(z)))
    tied = int(counts[counts > 1].sum())
    return SignedRank(len(values), len(values) - len(nonzero), tied, positive, negative, p, exact)


def paired_differences(a: np.ndarray | Sequence[float], b: np.ndarray | Sequence[float]) -> np.ndarray:
    """a - b, where equal steps are equal numbers: 0.9 - 0.8 and 0.8 - 0.7 tie, though not in binary.

    Rounded to ten digits after the first of the largest value, two more than tables of scores have. Two infinite values
    of one sign do not differ.

    Args:
        a, b: [n].
    Returns: [n]; NaN where a or b is.
    Raises: ShapeError unless both are [n].
    """
    first, second = _vector(a), _vector(b)
    if first.shape != second.shape:
        raise ShapeError("paired values", found=f"{len(first)} and {len(second)}", fix="pass as many of both")
    sizes = np.abs(np.concatenate([first, second]))
    largest = float(sizes[np.isfinite(sizes)].max(initial=0.0))
    decimals = 10 - math.floor(math.log10(largest)) if largest > 0 else 0
    with np.errstate(invalid="ignore"):
        differences = np.where(first == second, 0.0, first - second)
    if decimals <= 300:
        return np.round(differences, decimals)
    return np.round(differences * 1e200, decimals - 200) / 1e200  # 10^decimals alone is more than a double holds


def smallest_p(n_differing: int) -> float:
    """The smallest two-sided p the signed-rank test can give for so many non-zero differences: 2 / 2^n."""
    return min(1.0, 2.0 ** (1 - n_differing))


def _exact_p(ranks: np.ndarray, positive: float) -> float:
    """Two-sided p of W+ over all 2^n signs. Ranks are multiples of 1/2, so that doubled sums are whole numbers."""
    doubled = np.rint(2 * ranks).astype(int)
    counts = np.zeros(doubled.sum() + 1)
    counts[0] = 1.0
    for rank in doubled:
        shifted = np.zeros_like(counts)
        shifted[rank:] = counts[: len(counts) - rank]
        counts = (counts + shifted) / 2  # halved at each step: probabilities, nothing overflows
    at = round(2 * positive)
    return float(min(1.0, 2 * min(counts[: at + 1].sum(), counts[at:].sum())))


def cohens_dz(differences: np.ndarray | Sequence[float]) -> float:
    """Mean over standard deviation (n - 1) of paired differences, over the finite ones (Cohen 1988, d_z).

    NaN for fewer than two, or when all are zero; infinite when all are the same other number.
    """
    values = _vector(differences)
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return math.nan
    mean = float(values.mean())
    spread = 0.0 if np.ptp(values) == 0 else float(values.std(ddof=1))  # rounding must not turn 0 into 1e-17
    if spread == 0:
        return math.nan if mean == 0 else math.copysign(math.inf, mean)
    return mean / spread


def adjust(p_values: Sequence[float], correction: str = "bonferroni") -> list[float]:
    """p-values corrected for their number. NaN (a test that could not be made) counts for nothing and stays.

    "bonferroni": m p. "holm": the k-th smallest times m - k + 1, never below the one before (Holm 1979); as strict
    about false alarms as Bonferroni, and never less powerful. "none": as they are. All end at 1.

    Raises: ConfigError for another ``correction``.
    """
    if correction not in CORRECTIONS:
        raise ConfigError("correction", found=repr(correction), fix=f"use one of {', '.join(CORRECTIONS)}")
    adjusted = list(map(float, p_values))
    tested = sorted((p, index) for index, p in enumerate(adjusted) if not math.isnan(p))
    largest = 0.0
    for place, (p, index) in enumerate(tested):
        factor = {"bonferroni": len(tested), "holm": len(tested) - place, "none": 1}[correction]
        largest = max(largest, min(1.0, factor * p))
        adjusted[index] = largest
    return adjusted


def bootstrap_interval(
    samples: Sequence[np.ndarray], statistic: Callable[..., np.ndarray], config: BootstrapConfig
) -> Interval:
    """Bias-corrected and accelerated interval (Efron 1987) by ``scipy.stats.bootstrap``.

    Where BCa is undefined (a statistic that does not change when any one value is left out, often a median), the
    percentiles of the resamples; ``method`` says which.

    Args:
        samples: independent samples, each [n], each resampled within itself.
        statistic: of the samples and ``axis``, vectorised.
    Returns: "none" with NaN bounds when a sample has fewer than two values.
    """
    from scipy.stats import bootstrap

    if min(len(sample) for sample in samples) < 2:
        return Interval(math.nan, math.nan, "none")
    # scipy 1.15 renamed the argument.
    name = "rng" if "rng" in inspect.signature(bootstrap).parameters else "random_state"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # degenerate distributions: told by the method
        result = bootstrap(
            tuple(samples),
            statistic,
            n_resamples=config.resamples,
            batch=max(1, _NUMBERS_AT_ONCE // sum(len(sample) for sample in samples)),
            vectorized=True,
            axis=-1,
            confidence_level=config.confidence,
            method="BCa",
            **{name: np.random.default_rng(config.seed)},
        )
    drawn = result.bootstrap_distribution
    if np.isfinite(drawn).all() and np.ptp(drawn) <= 1e-12 * np.abs(drawn).max():  # means of equal numbers are rounded
        return Interval(float(drawn[0]), float(drawn[0]), "constant")
    low, high = map(float, result.confidence_interval)
    if math.isfinite(low) and math.isfinite(high):
        return Interval(low, high, "bca")
    tail = (1 - config.confidence) / 2
    usable = drawn[np.isfinite(drawn)]
    if len(usable) == 0:
        return Interval(math.nan, math.nan, "none")
    low, high = map(float, np.quantile(usable, (tail, 1 - tail)))
    return Interval(low, high, "percentile")


def mean_interval(differences: np.ndarray | Sequence[float], config: BootstrapConfig) -> Interval:
    """Interval of the mean, over the finite values: with an infinite one there is no mean."""
    values = _vector(differences)
    return bootstrap_interval((values[np.isfinite(values)],), np.mean, config)


def median_interval(differences: np.ndarray | Sequence[float], config: BootstrapConfig) -> Interval:
    """Interval of the median. Infinite values take part as larger than any other, and a bound may be infinite."""
    values = _vector(differences)
    finite = np.abs(values[np.isfinite(values)])
    largest = float(finite.max()) if len(finite) and finite.max() > 0 else 1.0
    # A median of resamples is a value or the middle of two: with this stand-in, what is far out came from infinity.
    coded = np.clip(values, -_BEYOND * largest, _BEYOND * largest)
    found = bootstrap_interval((coded,), np.median, config)
    low, high = (math.copysign(math.inf, b) if abs(b) > 2 * largest else b for b in (found.low, found.high))
    return Interval(low, high, found.method)


def median(values: np.ndarray | Sequence[float]) -> float:
    """The median, infinities included; NaN of nothing or between minus and plus infinity."""
    array = _vector(values)
    with np.errstate(invalid="ignore"):
        return float(np.median(array)) if len(array) else math.nan


def _vector(values: np.ndarray | Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1:
        raise ShapeError("values", found=f"shape {array.shape}", fix="pass one row of numbers")
    return array
