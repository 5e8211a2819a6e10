"""Which labels are left/right partners, guessed from where they lie."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

# Fractions of the labelled region's root-mean-square radius (an adult head: about 90 mm, a brain: about 55 mm).
_OFF_PLANE = 0.03  # a label whose centre is nearer to the plane than this is unpaired
_MISMATCH = 0.25  # how far a mirrored centre may lie from its partner's
_VOLUME_WEIGHT = 0.1  # cost of a factor e in volume, in the same fractions
_VOLUME_RATIO = 2.5  # partners differ in volume by less than this factor
_OFF_SPREAD = 0.5  # a label nearer to the plane than this part of its own width spans both sides


class Shapes(NamedTuple):
    """Where K labels lie, as Gaussians, in mm RAS+ relative to the centre of the labelled region."""

    positions: np.ndarray  # [K, 3] centres; NaN for labels that take no part
    spreads: np.ndarray  # [K, 3] standard deviations along x, y, z
    volumes: np.ndarray  # [K], any unit
    radius: float  # root-mean-square radius of the labelled region


def guess_pairs(shapes: Shapes, *, known: Iterable[tuple[int, int]] = ()) -> list[tuple[int, int]]:
    """Pair labels that mirror each other across the mid-sagittal plane.

    The plane starts at x = 0 (or half way between the ``known`` pairs) and is fitted again to the pairs found, so
    that a tilted or shifted head still pairs. The cost of a pair is the Wasserstein distance between one label's
    mirrored Gaussian and the other's, plus a term for unlike volumes. Labels that are each other's cheapest match are
    paired first, then the same among the rest.

    Args:
        known: (left, right) index pairs that are certain; they set the plane and are not returned.
    Returns: (left, right) index pairs.
    """
    known = list(known)
    taken = {index for pair in known for index in pair}
    free = [i for i, position in enumerate(shapes.positions) if i not in taken and np.isfinite(position).all()]
    point, normal = _fit_plane(shapes.positions, known)
    pairs: list[tuple[int, int]] = []
    for _ in range(3):
        pairs = _match(shapes, free, point, normal)
        point, normal = _fit_plane(shapes.positions, known + pairs)
    return pairs


def _fit_plane(positions: np.ndarray, pairs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """The plane (point, unit normal towards the right) half way between the pairs; x = 0 without pairs."""
    across = np.array([1.0, 0.0, 0.0])
    usable = [(left, right) for left, right in pairs if np.isfinite(positions[[left, right]]).all()]
    if not usable:
        return np.zeros(3), across
    left, right = positions[[p[0] for p in usable]], positions[[p[1] for p in usable]]
    difference = (right - left).sum(axis=0)
    length = float(np.linalg.norm(difference))
    # Beyond about 45 degrees of tilt the pairs contradict the header: stay with the header's left and right.
    normal = difference / length if length > 0 and difference[0] > 0.7 * length else across
    return np.median((left + right) / 2, axis=0), normal


def _match(shapes: Shapes, free: list[int], point: np.ndarray, normal: np.ndarray) -> list[tuple[int, int]]:
    offset = (shapes.positions - point) @ normal
    needed = np.maximum(_OFF_PLANE * shapes.radius, _OFF_SPREAD * shapes.spreads[:, 0])
    left = [i for i in free if offset[i] < -needed[i]]
    right = [i for i in free if offset[i] > needed[i]]
    if not left or not right:
        return []
    mirrored = shapes.positions[left] - 2 * offset[left][:, None] * normal
    apart = np.linalg.norm(mirrored[:, None] - shapes.positions[right][None], axis=-1) / shapes.radius
    unlike = np.linalg.norm(shapes.spreads[left][:, None] - shapes.spreads[right][None], axis=-1) / shapes.radius
    log_ratio = np.abs(np.log(shapes.volumes[left])[:, None] - np.log(shapes.volumes[right])[None])
    cost = np.hypot(apart, unlike) + _VOLUME_WEIGHT * log_ratio
    cost[(apart > _MISMATCH) | (log_ratio > np.log(_VOLUME_RATIO))] = np.inf
    pairs: list[tuple[int, int]] = []
    while np.isfinite(cost).any():  # the cheapest pair is always a mutual best: take it, go on with the rest
        i, j = np.unravel_index(int(cost.argmin()), cost.shape)
        pairs.append((left[i], right[j]))
        cost[i, :] = cost[:, j] = np.inf
    return pairs
