"""Distances between the surfaces of two structures, in millimetres.

The surface of a mask is made of its voxels that touch, by a face, a voxel outside of it; what lies beyond the volume
counts as outside. Distances run between voxel centres. This repairs the original, which dropped the last plane of the
bounding box, lost surfaces that touch it, ignored the voxel size and failed on one-voxel structures
(reference, section 7): two spheres of radius 15 shifted by one voxel are 1 apart here, 5 there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from synthseg.errors import ShapeError
from synthseg.metrics.overlap import joint_indices


class SurfaceDistances(NamedTuple):
    """Distances between two surfaces in mm; NaN when both masks are empty, infinite when one of them is."""

    mean: float  # average of the two directed means
    p95: float  # 95th percentile of the distances of both directions, pooled
    hausdorff: float  # the largest distance


_NOTHING = SurfaceDistances(math.nan, math.nan, math.nan)
_ENDLESS = SurfaceDistances(math.inf, math.inf, math.inf)


def surface_distances(a: np.ndarray, b: np.ndarray, spacing_mm: Sequence[float] | np.ndarray) -> SurfaceDistances:
    """Mean, 95th percentile and maximum of the distances between the surfaces of two masks.

    Every surface voxel of one mask gives its distance to the nearest surface voxel of the other, in both directions.
    Symmetric in ``a`` and ``b``. Both masks empty: NaN, nothing to measure. One empty: infinity, because no finite
    number is honest (the original gave the largest side of the volume); average over the finite ones and count the
    others, as ``synthseg.evaluation`` does.

    Args:
        a, b: masks of one shape; anything non-zero is inside.
        spacing_mm: voxel size along each axis.
    Raises: ShapeError when shapes differ, or the voxel size does not fit.
    """
    spacing = _check(a, b, spacing_mm)
    a, b = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    window = _joint_box(a, b)
    if window is None:
        return _NOTHING
    return _distances_in_box(a[window], b[window], spacing)


def sd95(
    predicted: np.ndarray,
    truth: np.ndarray,
    values: Sequence[int] | np.ndarray,
    spacing_mm: Sequence[float] | np.ndarray,
    *,
    ignore_value: int | None = None,
) -> np.ndarray:
    """95th percentile of the surface distances of each label, in mm.

    Args:
        predicted, truth: integer label maps of one shape.
        values: [n] distinct label values.
        spacing_mm: voxel size along each axis.
        ignore_value: voxels where ``truth`` has this value belong to no label, in either map.
    Returns: [n] float64 mm; NaN for labels absent from both maps, infinity for those absent from one.
    Raises: ShapeError, LabelError as :func:`synthseg.metrics.overlap.overlap`.
    """
    return np.array(
        [
            distances.p95
            for distances in label_distances(predicted, truth, values, spacing_mm, ignore_value=ignore_value)
        ]
    )


def label_distances(
    predicted: np.ndarray,
    truth: np.ndarray,
    values: Sequence[int] | np.ndarray,
    spacing_mm: Sequence[float] | np.ndarray,
    *,
    ignore_value: int | None = None,
) -> list[SurfaceDistances]:
    """:func:`surface_distances` of each label of two maps; arguments and errors as for :func:`sd95`."""
    from scipy.ndimage import find_objects

    spacing = _check(predicted, truth, spacing_mm)
    first, second = joint_indices(predicted, truth, values, ignore_value=ignore_value)
    n = len(values)
    boxes = zip(find_objects(first.astype(np.int32), n), find_objects(second.astype(np.int32), n), strict=True)
    results = []
    for index, (box_a, box_b) in enumerate(boxes, start=1):
        if box_a is None or box_b is None:
            results.append(_NOTHING if box_a is box_b else _ENDLESS)
            continue
        window = tuple(slice(min(s.start, t.start), max(s.stop, t.stop)) for s, t in zip(box_a, box_b, strict=True))
        results.append(_distances_in_box(first[window] == index, second[window] == index, spacing))
    return results


def nearest_distance(mask: np.ndarray, spacing_mm: Sequence[float] | np.ndarray) -> np.ndarray:
    """Distance in mm from each voxel's centre to the nearest centre inside ``mask`` (0 there).

    Args:
        mask: non-empty; anything non-zero is inside.
    Returns: float64, the shape of ``mask``.
    Raises: ShapeError for an empty mask or a voxel size that does not fit.
    """
    from scipy.ndimage import distance_transform_edt

    spacing = _check(mask, mask, spacing_mm)
    inside = np.asarray(mask, dtype=bool)
    if not inside.any():
        raise ShapeError("mask", found="no voxel inside", fix="distances need at least one voxel to start from")
    distances: np.ndarray = distance_transform_edt(~inside, sampling=spacing)
    return distances


def boundary(mask: np.ndarray) -> np.ndarray:
    """Voxels of a boolean mask with a face neighbour outside of it, or outside of the array."""
    padded = np.pad(mask, 1)  # a margin of background: surfaces on the array's edge are surfaces
    core = (slice(1, -1),) * mask.ndim
    inner = mask.copy()
    for axis in range(mask.ndim):
        for step in (slice(None, -2), slice(2, None)):
            inner &= padded[(*core[:axis], step, *core[axis + 1 :])]
    return np.asarray(mask & ~inner)


def _distances_in_box(a: np.ndarray, b: np.ndarray, spacing: np.ndarray) -> SurfaceDistances:
    if not a.any() or not b.any():
        return _ENDLESS
    edge_a, edge_b = boundary(a), boundary(b)
    forth = nearest_distance(edge_b, spacing)[edge_a]
    back = nearest_distance(edge_a, spacing)[edge_b]
    pooled = np.concatenate([forth, back])
    mean = (float(forth.mean()) + float(back.mean())) / 2
    return SurfaceDistances(mean, float(np.percentile(pooled, 95)), float(pooled.max()))


def _joint_box(a: np.ndarray, b: np.ndarray) -> tuple[slice, ...] | None:
    """Smallest box around both masks; outside of it there is only background, which ``boundary`` assumes."""
    either = a | b
    window = []
    for axis in range(either.ndim):
        others = tuple(i for i in range(either.ndim) if i != axis)
        used = np.flatnonzero(either.any(axis=others))
        if not len(used):
            return None
        window.append(slice(int(used[0]), int(used[-1]) + 1))
    return tuple(window)


def _check(a: np.ndarray, b: np.ndarray, spacing_mm: Sequence[float] | np.ndarray) -> np.ndarray:
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if a.shape != b.shape:
        raise ShapeError(
            "masks to compare", found=f"shapes {a.shape} and {b.shape}", fix="bring both on one grid first"
        )
    if spacing.shape != (a.ndim,) or not (np.isfinite(spacing) & (spacing > 0)).all():
        fix = f"give {a.ndim} positive voxel sizes in mm"
        raise ShapeError("spacing_mm", found=f"{spacing.tolist()} for {a.ndim} axes", fix=fix)
    return spacing
