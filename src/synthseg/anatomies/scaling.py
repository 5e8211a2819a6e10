"""From features in their own units to a few coordinates in which maps are near or far (reference A.4.3, B.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from synthseg.anatomies.settings import SpaceSettings
from synthseg.errors import ConfigError

_FAR = 4.0  # robust scaling ends here: beyond, a map is far away, and how far would only hide all other differences
_IQR_OF_STD = 1.349  # a Gaussian's interquartile range in standard deviations


@dataclass(frozen=True)
class Space:
    """Maps in the space of principal components."""

    scores: np.ndarray  # [n, k]
    explained: tuple[float, ...]  # share of the variance, by component
    columns: tuple[str, ...]  # what was reduced: the features and one column for each shape that some maps lack


def embed(
    features: np.ndarray, names: Sequence[str], settings: SpaceSettings, counts: np.ndarray | None = None
) -> Space:
    """Fill what is missing, scale, emphasise, reduce.

    Args:
        features: [n, F]; NaN where a map lacks the shape.
        names: of the F columns.
        counts: [n] bool, the maps that scales and components are taken from; the others are placed among them.
    Raises: ConfigError for an emphasis that fits no feature.
    """
    used = np.ones(len(features), dtype=bool) if counts is None else counts
    filled, indicators, lacking = fill_absent(features, names, used)
    scaled = scale(filled, settings.scaling, used) * factors(names, settings.emphasis)
    table = np.concatenate([scaled, indicators], axis=1)
    center = table[used].mean(axis=0)
    _, singular, directions = np.linalg.svd(table[used] - center, full_matrices=False)
    # Of the two signs, the one that makes the largest entry positive: the same on every machine.
    largest = np.abs(directions).argmax(axis=1)
    directions *= np.where(directions[np.arange(len(directions)), largest] < 0, -1.0, 1.0)[:, None]
    total = float((singular**2).sum())
    shares = singular**2 / total if total > 0 else np.zeros_like(singular)
    keep = _count(shares, settings, int(used.sum()))
    return Space((table - center) @ directions[:keep].T, tuple(map(float, shares[:keep])), (*names, *lacking))


def fill_absent(
    features: np.ndarray, names: Sequence[str], used: np.ndarray
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Medians of the maps that count for what is missing (0 where all miss it), and columns that say where.

    Returns: [n, F]; [n, M] of 0 and 1, for features that some of the maps lack and others do not; their names.
    """
    missing = np.isnan(features)
    filled = features.copy()
    for column in np.flatnonzero(missing.any(axis=0)):
        known = features[used & ~missing[:, column], column]
        filled[missing[:, column], column] = np.median(known) if len(known) else 0.0
    some = np.flatnonzero(missing.any(axis=0) & ~missing.all(axis=0))
    titles = tuple(f"absent: {names[n].partition(': ')[2] or names[n]}" for n in map(int, some))
    return filled, missing[:, some].astype(np.float64), titles


def scale(features: np.ndarray, how: str, used: np.ndarray) -> np.ndarray:
    """Columns of comparable size: [n, F].

    ``minmax``: to [0, 1] (the reference). ``robust``: distance from the median in units of the interquartile range's
    standard deviation, at most 4. ``rank``: share of the maps below, [0, 1]. A column without differences becomes 0.
    """
    own = features[used]
    if how == "rank":
        below = (own[None] < features[:, None]).sum(axis=1) + 0.5 * ((own[None] == features[:, None]).sum(axis=1) - 1)
        return np.clip(below / max(len(own) - 1, 1), 0, 1) * (np.ptp(own, axis=0) > 0)
    if how == "minmax":
        low, width = own.min(axis=0), np.ptp(own, axis=0)
    else:
        low = np.median(own, axis=0)
        width = np.subtract(*np.percentile(own, [75, 25], axis=0)) / _IQR_OF_STD
        width = np.where(width > 1e-12 * np.abs(low), width, own.std(axis=0))
    flat = width <= 1e-12 * np.abs(own).max(axis=0)
    scaled = np.where(flat, 0.0, (features - low) / np.where(flat, 1.0, width))
    return scaled if how == "minmax" else np.clip(scaled, -_FAR, _FAR)


def factors(names: Sequence[str], emphasis: Sequence[tuple[str, float]]) -> np.ndarray:
    """[F]: the product of the factors of the patterns that fit each name."""
    result = np.ones(len(names))
    for pattern, factor in emphasis:
        fits = np.array([fnmatchcase(name, pattern) for name in names])
        if not fits.any():
            fix = f"use a pattern of: {', '.join(names)}"
            raise ConfigError("sampler: space.emphasis", found=f"{pattern!r}, which fits no feature", fix=fix)
        result[fits] *= factor
    return result


def _count(shares: np.ndarray, settings: SpaceSettings, maps: int) -> int:
    """n maps span n - 1 directions; more components would be noise of the arithmetic."""
    most = max(1, min(maps - 1, len(shares)))
    if settings.variance is None:
        return min(settings.components, most)
    return min(int(np.searchsorted(shares.cumsum(), settings.variance - 1e-12)) + 1, most)
