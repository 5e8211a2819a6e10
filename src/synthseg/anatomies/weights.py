"""What becomes of a density's weights: milder, capped, shared within families, scaled to data sets' masses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from synthseg.anatomies.settings import FamilySettings, StrengthSettings
from synthseg.errors import ConfigError


def soften(weights: np.ndarray, settings: StrengthSettings) -> np.ndarray:
    """Temper, mix with uniform, cap, in that order (reference B.2); sum 1.

    Args:
        weights: [n] non-negative.
    Raises: ConfigError for a power that leaves most weights 0, of which no cap can be taken.
    """
    milder = (weights / weights.max()) ** settings.temper  # of at most 1: a large power leaves some of them
    milder = milder / milder.sum()
    mixed = (1 - settings.uniform) * milder + settings.uniform / len(weights)
    if settings.cap is not None:
        # The lower median of an even number: a weight itself and never above the cap, so that capping does not move it.
        middle = np.sort(mixed)[(len(mixed) - 1) // 2]
        if not middle > 0:
            fix = "give a smaller power, a uniform share, or no cap (inf)"
            raise ConfigError("sampler: strength.temper", found=f"{settings.temper:g}: most weights are 0", fix=fix)
        mixed = np.minimum(mixed, settings.cap * middle)
    return np.asarray(mixed / mixed.sum())


def with_uncounted(weights: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Weights of those that count, [m], among all [n]: the others are drawn as in uniform sampling."""
    result = np.full(len(counts), 1.0 / len(counts))
    result[counts] = weights * (counts.sum() / len(counts))
    return result


def share_within(weights: np.ndarray, member_of: np.ndarray) -> np.ndarray:
    """[n]: each anatomy's weight in equal parts to its maps.

    Args:
        weights: [g] of anatomies.
        member_of: [n] the anatomy of each map.
    """
    return np.asarray((weights / np.bincount(member_of, minlength=len(weights)))[member_of])


def dataset_masses(sizes: Mapping[str, int], settings: FamilySettings) -> dict[str, float]:
    """Each data set's share of all draws.

    Args:
        sizes: number of maps by data set.
    Raises: ConfigError for a table of masses that does not name just these data sets.
    """
    if settings.masses:
        given = dict(settings.masses)
        if set(given) != set(sizes):
            found = f"{', '.join(given)} for the data sets {', '.join(sizes)}"
            raise ConfigError("sampler: family.masses", found=found, fix="give each data set one mass")
        return {name: given[name] / sum(given.values()) for name in sizes}
    if settings.mass == "equal":
        return dict.fromkeys(sizes, 1.0 / len(sizes))
    return {name: size / sum(sizes.values()) for name, size in sizes.items()}


def effective_sample_size(weights: Sequence[float] | np.ndarray) -> float:
    """(sum w)^2 / sum w^2 (Kish 1965): how many equally weighted maps have the same variety of draws."""
    values = np.asarray(weights, dtype=np.float64)
    return float(values.sum() ** 2 / (values**2).sum())
