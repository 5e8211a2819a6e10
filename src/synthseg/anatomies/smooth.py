"""Smooth random fields over a volume, and closings by distance: what surroundings are made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def smooth_field(
    shape: Sequence[int], spacing_mm: Sequence[float], node_mm: float, rng: np.random.Generator
) -> np.ndarray:
    """Independent normal values at nodes, linear between them.

    Args:
        shape: [X, Y, Z] voxels.
        spacing_mm: three voxel sizes.
        node_mm: distance of the nodes.
    Returns: [X, Y, Z] float32 with mean 0 and standard deviation 1 over the volume.
    """
    nodes = [max(int(np.ceil((n - 1) * s / node_mm)) + 2, 2) for n, s in zip(shape, spacing_mm, strict=True)]
    start = rng.random(3)  # of a node's distance: where the first voxel lies between its nodes
    found = rng.standard_normal([n + 1 for n in nodes]).astype(np.float32)
    for axis, (n, s) in enumerate(zip(shape, spacing_mm, strict=True)):
        at = np.arange(n) * s / node_mm + start[axis]
        low = np.minimum(at.astype(int), found.shape[axis] - 2)
        share = (at - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        found = found.take(low, axis) * (1 - share) + found.take(low + 1, axis) * share
    found -= found.mean()
    return np.asarray(found / max(float(found.std()), 1e-6))


def smooth_between(
    low: float,
    high: float,
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    node_mm: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """A smooth field with values strictly between two bounds, about evenly spread: [X, Y, Z] float32."""
    field = smooth_field(shape, spacing_mm, node_mm, rng)
    # The logistic curve of slope 1.7 follows the normal distribution function within 0.01: values spread evenly.
    return np.asarray(low + (high - low) / (1 + np.exp(-1.702 * field)), dtype=np.float32)


def distance_to(mask: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Distance of every voxel from the nearest voxel of a mask: [X, Y, Z] float32 in mm, 0 in it; infinite if empty."""
    from synthseg.volumes.distance import distance_inside

    return distance_inside(~mask, spacing_mm)


def depth_in_hull(mask: np.ndarray, spacing_mm: Sequence[float], radius_mm: float) -> np.ndarray:
    """How deep each voxel lies in a mask's closing by a ball, grown by as much again: [X, Y, Z] float32 in mm.

    A voxel with a depth of at least ``radius_mm`` is in the closing; one of at least ``radius_mm - t`` is at most about
    ``t`` outside it. The array must reach ``radius_mm`` beyond the mask: what is beyond it counts as hull.
    """
    from synthseg.volumes.distance import distance_inside

    return distance_inside(distance_to(mask, spacing_mm) <= radius_mm, spacing_mm)
