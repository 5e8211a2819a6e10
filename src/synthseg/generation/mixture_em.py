"""Gaussian mixtures of one image's intensities, fitted by expectation maximisation on their histogram.

A head's background has ten million voxels and a thousand grey levels: on the histogram a fit takes a fraction of a
second whatever the image's size, and several starts are fitted at once. It is the whole of what sub-labels need of a
mixture library, in numpy; the tests hold it against scikit-learn's.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from synthseg.errors import ShapeError

BINS = 1024
_TAILS = (0.05, 99.95)  # percentiles the histogram spans: single bright voxels would leave few bins to the rest
_NARROWEST = 1.0  # standard deviation of a component, at least, in bins: a spike (masked air) would have none


class Mixture(NamedTuple):
    """A fitted mixture, its components in ascending order of mean."""

    weights: np.ndarray  # [K] shares, sum 1
    means: np.ndarray  # [K] in the image's units
    stds: np.ndarray  # [K]
    log_likelihood: float  # mean over voxels, natural log


class _Histogram(NamedTuple):
    centers: np.ndarray  # [M] of the bins
    shares: np.ndarray  # [M] of the voxels, sum 1
    bins: np.ndarray  # [n] bin of each value
    width: float


def fit_mixture(
    values: np.ndarray,
    components: int,
    *,
    rng: torch.Generator,
    starts: int = 5,
    iterations: int = 300,
    tolerance: float = 1e-7,
) -> Mixture:
    """Fit a Gaussian mixture to intensities.

    Args:
        values: [n] finite numbers.
        components: K, at least 1.
        rng: of the starts.
        starts: how many, fitted at once; the likeliest is returned. The first has its means at the quantiles, the
            others at values drawn one by one with a chance that grows with the squared distance from those drawn
            before (k-means++).
        iterations: at most.
        tolerance: a gain in mean log likelihood below which a fit has converged.
    Raises: ShapeError for no values, values that are not finite, or no components.
    Source: Dempster et al. 1977; its use for sub-labels: Billot et al. 2023, section 5.4. Values beyond the 0.05th and
        99.95th percentile count as those; no component is narrower than a bin, 1/1024 of the range between them.
    """
    values = np.asarray(values).ravel()
    if not values.size or components < 1 or not np.isfinite(values).all():
        found = f"{values.size} values, {components} components"
        raise ShapeError("mixture", found=found, fix="give finite values and at least one component")
    histogram = _histogram(values)
    means = np.stack([_start(histogram, components, number, rng=rng) for number in range(max(starts, 1))])
    return _fit(histogram, means, iterations, tolerance)


def assign(values: np.ndarray, mixture: Mixture) -> np.ndarray:
    """Component of largest posterior of each value: the values' shape, int64 in 0 to K - 1."""
    histogram = _histogram(np.asarray(values).ravel())
    stds = np.maximum(mixture.stds, 1e-12)
    scores = _log_densities(histogram.centers, mixture.weights, mixture.means, stds)
    best: np.ndarray = scores.argmax(axis=0)[histogram.bins]
    return best.reshape(np.shape(values))


def _histogram(values: np.ndarray) -> _Histogram:
    low, high = np.percentile(values, _TAILS)
    if not high > low:
        low, high = float(values.min()), float(values.max())
    width = (float(high) - float(low)) / BINS
    if not width > 0:
        return _Histogram(np.array([float(low)]), np.ones(1), np.zeros(values.size, dtype=np.int64), 0.0)
    bins = ((values.astype(np.float64) - low) / width).clip(0, BINS - 1).astype(np.int64)
    counts = np.bincount(bins, minlength=BINS)
    filled = np.flatnonzero(counts)
    position = np.zeros(BINS, dtype=np.int64)
    position[filled] = np.arange(len(filled))
    centers = low + (filled + 0.5) * width
    return _Histogram(centers, counts[filled] / values.size, position[bins], width)


def _start(histogram: _Histogram, components: int, number: int, *, rng: torch.Generator) -> np.ndarray:
    """[K] first means."""
    cumulative = np.cumsum(histogram.shares)
    if number == 0:
        wanted = (np.arange(components) + 0.5) / components
        return histogram.centers[np.searchsorted(cumulative, wanted).clip(max=len(cumulative) - 1)]
    draws = torch.rand(components, generator=rng, device=rng.device, dtype=torch.float64).cpu().numpy()
    chosen = np.empty(components)
    nearest = np.ones_like(histogram.centers)  # squared distance to what is chosen; the first one: by share alone
    for k, draw in enumerate(draws):
        chance = np.cumsum(histogram.shares * nearest)
        at = np.searchsorted(chance, draw * chance[-1]) if chance[-1] > 0 else 0
        chosen[k] = histogram.centers[min(int(at), len(chance) - 1)]
        squared = (histogram.centers - chosen[k]) ** 2
        nearest = squared if k == 0 else np.minimum(nearest, squared)
    return chosen


def _fit(histogram: _Histogram, means: np.ndarray, iterations: int, tolerance: float) -> Mixture:
    """Expectation maximisation of S starts [S, K] at once."""
    centers, shares = histogram.centers, histogram.shares
    components = means.shape[1]
    floor = max(_NARROWEST * histogram.width, 1e-9 * float(np.abs(centers).max()), 1e-12)
    overall = float(np.sqrt(max((shares * (centers - (shares * centers).sum()) ** 2).sum(), 0.0)))
    stds = np.full_like(means, max(overall / components, floor))
    weights = np.full_like(means, 1 / components)
    last = np.full(len(means), -np.inf)
    likelihood = last
    for _ in range(iterations):
        posteriors, likelihood = _expect(centers, shares, weights, means, stds)
        if (likelihood - last < tolerance).all():
            break
        last = likelihood
        mass = posteriors.sum(axis=-1).clip(min=1e-12)  # [S, K]
        weights = mass / mass.sum(axis=-1, keepdims=True)
        means = (posteriors * centers).sum(axis=-1) / mass
        spread = (posteriors * (centers - means[..., None]) ** 2).sum(axis=-1) / mass
        stds = np.sqrt(spread).clip(min=floor)
    _, likelihood = _expect(centers, shares, weights, means, stds)
    best = int(likelihood.argmax())
    order = np.argsort(means[best], kind="stable")
    return Mixture(weights[best][order], means[best][order], stds[best][order], float(likelihood[best]))


def _expect(
    centers: np.ndarray, shares: np.ndarray, weights: np.ndarray, means: np.ndarray, stds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Posteriors [S, K, M], each bin's summing to its share, and the mean log likelihood [S]."""
    joint = _log_densities(centers, weights, means, stds)
    top = joint.max(axis=-2, keepdims=True)
    posteriors = np.exp(joint - top)
    total = posteriors.sum(axis=-2, keepdims=True)
    likelihood = ((np.log(total) + top)[..., 0, :] * shares).sum(axis=-1)
    posteriors *= shares / total
    return posteriors, likelihood


def _log_densities(centers: np.ndarray, weights: np.ndarray, means: np.ndarray, stds: np.ndarray) -> np.ndarray:
    """[..., K, M] log of share times density."""
    scaled = (centers - means[..., None]) / stds[..., None]
    constant = np.log(weights.clip(min=1e-300)) - np.log(stds) - 0.5 * np.log(2 * np.pi)
    result: np.ndarray = constant[..., None] - 0.5 * scaled**2
    return result
