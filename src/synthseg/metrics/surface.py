"""Distances between the surfaces of two structures, in millimetres.

The surface of a mask is made of its voxels that touch, by a face, a voxel outside of it; what lies beyond the volume
counts as outside. Distances run between voxel centres. This repairs the original, which dropped the last plane of the
bounding box, lost surfaces that touch it, ignored the voxel size and failed on one-voxel structures
(reference, section 7): two spheres of radius 15 shifted by one voxel are 1 apart here, 5 there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from synthseg.errors import ConfigError, ShapeError
from synthseg.metrics.overlap import joint_indices

_ROUNDING = 1e-5  # relative; a header's 0.7 mm is 0.69999999


class SurfaceDistances(NamedTuple):
    """Distances between two surfaces in mm; NaN when both masks are empty, infinite when one of them is."""

    mean: float  # average of the two directed means
    p95: float  # 95th percentile of the distances of both directions, pooled
    hausdorff: float  # the largest distance


@dataclass(frozen=True, eq=False)
class Separation:
    """What lies between two surfaces, before it is summed up: float64 mm, one a surface voxel.

    Nothing in either when both masks are empty; one infinite distance when one of them is.
    """

    forth: np.ndarray  # [n] from each surface voxel of the first to the nearest of the second
    back: np.ndarray  # [m] from each of the second to the nearest of the first

    def distances(self) -> SurfaceDistances:
        """See :func:`surface_distances`."""
        pooled = np.concatenate([self.forth, self.back])
        if not len(pooled):
            return SurfaceDistances(math.nan, math.nan, math.nan)
        if np.isinf(pooled).any():
            return SurfaceDistances(math.inf, math.inf, math.inf)
        mean = (float(self.forth.mean()) + float(self.back.mean())) / 2
        return SurfaceDistances(mean, float(np.percentile(pooled, 95)), float(pooled.max()))

    def within(self, tolerance_mm: float) -> float:
        """See :func:`surface_dice`. Raises: ConfigError for a tolerance that is negative or no number."""
        check_tolerance(tolerance_mm)
        n = len(self.forth) + len(self.back)
        limit = tolerance_mm * (1 + _ROUNDING)
        near = int(np.count_nonzero(self.forth <= limit)) + int(np.count_nonzero(self.back <= limit))
        return near / n if n else math.nan


_NOTHING = Separation(np.empty(0), np.empty(0))
_ENDLESS = Separation(np.array([math.inf]), np.empty(0))


def surface_distances(a: np.ndarray, b: np.ndarray, spacing_mm: Sequence[float] | np.ndarray) -> SurfaceDistances:
    """Mean, 95th percentile and maximum of the distances between the surfaces of two masks.

    Every surface voxel of one mask gives its distance to the nearest surface voxel of the other, in both directions.
    Symmetric in ``a`` and ``b``. Both masks empty: NaN, nothing to measure. One empty: infinity, because no finite
    number is honest (the original gave the largest side of the volume); average over the finite ones and count the
    others, as ``synthseg.evaluation`` does.

    Args:
        a, b: masks of one shape; anything non-zero is inside.
        spacing_mm: voxel size along each axis; or, where axes are not perpendicular, [n, n] whose columns are the
            steps along them in mm (an affine without its last row and column).
    Raises: ShapeError when shapes differ, or the voxel size does not fit.
    """
    return separation(a, b, spacing_mm).distances()


def surface_dice(a: np.ndarray, b: np.ndarray, spacing_mm: Sequence[float] | np.ndarray, tolerance_mm: float) -> float:
    """Share of both surfaces that lies within a tolerance of the other one: 0..1.

    Counted in surface voxels; the source weighs each piece of surface with its area instead (docs/evaluate.md says
    what that changes). A distance equal to the tolerance is within it, and so is a hundred-thousandth more, because
    headers keep voxel sizes in single precision.

    Args:
        a, b, spacing_mm: as for :func:`surface_distances`.
        tolerance_mm: 0 or more.
    Returns: NaN when both masks are empty, 0 when one of them is.
    Raises: ShapeError as :func:`surface_distances`; ConfigError for a tolerance that is negative or no number.
    Source: Nikolov et al. 2021 (J Med Internet Res 23:e26151), "surface DSC".
    """
    return separation(a, b, spacing_mm).within(tolerance_mm)


def separation(a: np.ndarray, b: np.ndarray, spacing_mm: Sequence[float] | np.ndarray) -> Separation:
    """All distances between the surfaces of two masks; arguments and errors as for :func:`surface_distances`."""
    steps = steps_of(a, b, spacing_mm)
    a, b = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    window = _joint_box(a, b)
    if window is None:
        return _NOTHING
    return _separation_in_box(a[window], b[window], steps)


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
        spacing_mm: as for :func:`surface_distances`.
        ignore_value: voxels where ``truth`` has this value belong to no label, in either map.
    Returns: [n] float64 mm; NaN for labels absent from both maps, infinity for those absent from one.
    Raises: ShapeError, LabelError as :func:`synthseg.metrics.overlap.overlap`.
    """
    each = label_distances(predicted, truth, values, spacing_mm, ignore_value=ignore_value)
    return np.array([distances.p95 for distances in each])


def label_distances(
    predicted: np.ndarray,
    truth: np.ndarray,
    values: Sequence[int] | np.ndarray,
    spacing_mm: Sequence[float] | np.ndarray,
    *,
    ignore_value: int | None = None,
) -> list[SurfaceDistances]:
    """:func:`surface_distances` of each label of two maps; arguments and errors as for :func:`sd95`."""
    steps = steps_of(predicted, truth, spacing_mm)
    first, second = joint_indices(predicted, truth, values, ignore_value=ignore_value)
    return [apart.distances() for apart in index_separations(first, second, len(values), steps)]


def index_separations(first: np.ndarray, second: np.ndarray, n: int, steps: np.ndarray) -> Iterator[Separation]:
    """:func:`separation` of the regions 1 to ``n`` of two maps, one after another.

    Args:
        first, second: as :func:`synthseg.metrics.overlap.joint_indices` returns them.
        steps: [d, d], as :func:`steps_of` returns them.
    """
    from scipy.ndimage import find_objects

    boxes = zip(find_objects(first, n), find_objects(second, n), strict=True)
    for index, (box_a, box_b) in enumerate(boxes, start=1):
        if box_a is None or box_b is None:
            yield _NOTHING if box_a is box_b else _ENDLESS
            continue
        window = tuple(slice(min(s.start, t.start), max(s.stop, t.stop)) for s, t in zip(box_a, box_b, strict=True))
        yield _separation_in_box(first[window] == index, second[window] == index, steps)


def nearest_distance(mask: np.ndarray, spacing_mm: Sequence[float] | np.ndarray) -> np.ndarray:
    """Distance in mm from each voxel's centre to the nearest centre inside ``mask`` (0 there).

    Args:
        mask: non-empty; anything non-zero is inside.
    Returns: float64, the shape of ``mask``.
    Raises: ShapeError for an empty mask or a voxel size that does not fit.
    """
    from scipy.ndimage import distance_transform_edt

    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if spacing.ndim != 1:
        fix = f"give {mask.ndim} positive voxel sizes in mm"
        raise ShapeError("spacing_mm", found=f"{spacing.tolist()} for {mask.ndim} axes", fix=fix)
    steps_of(mask, mask, spacing)
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


def check_tolerance(tolerance_mm: float) -> None:
    """Raises: ConfigError unless the tolerance is a finite number of millimetres, 0 or more."""
    if not 0 <= tolerance_mm < math.inf:
        raise ConfigError("tolerance", found=f"{tolerance_mm:g} mm", fix="give millimetres, 0 or more")


def steps_of(a: np.ndarray, b: np.ndarray, spacing_mm: Sequence[float] | np.ndarray) -> np.ndarray:
    """[n, n] mm whose columns are the steps along the axes of two arrays of one shape.

    Raises: ShapeError when the shapes differ, or the voxel size does not fit them.
    """
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if a.shape != b.shape:
        raise ShapeError(
            "masks to compare", found=f"shapes {a.shape} and {b.shape}", fix="bring both on one grid first"
        )
    if spacing.shape == (a.ndim,) and (np.isfinite(spacing) & (spacing > 0)).all():
        return np.diag(spacing)
    if spacing.shape == (a.ndim, a.ndim) and np.isfinite(spacing).all() and np.linalg.det(spacing) != 0:
        return spacing
    fix = f"give {a.ndim} positive voxel sizes in mm"
    raise ShapeError("spacing_mm", found=f"{spacing.tolist()} for {a.ndim} axes", fix=fix)


def _separation_in_box(a: np.ndarray, b: np.ndarray, steps: np.ndarray) -> Separation:
    if not a.any() or not b.any():
        return _ENDLESS
    edge_a, edge_b = boundary(a), boundary(b)
    places_a, places_b = _places(edge_a, steps), _places(edge_b, steps)
    return Separation(_to_nearest(places_a, edge_b[edge_a], places_b), _to_nearest(places_b, edge_a[edge_b], places_a))


def _places(edge: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """[n, d] mm, the centres of the voxels of a mask in the order in which indexing with the mask gives them."""
    voxels = np.argwhere(edge)
    sizes = steps.diagonal()
    if np.array_equal(steps, np.diag(sizes)):
        return np.asarray(voxels * sizes)  # one product a coordinate: equal shifts stay equal to the last digit
    return np.asarray(voxels @ steps.T)


def _to_nearest(places: np.ndarray, shared: np.ndarray, others: np.ndarray) -> np.ndarray:
    """[n] mm from each place to the nearest of the others; 0 at those that are ``shared``, a good half as a rule.

    A tree of points instead of a distance map: half the time on a brain's structures, and any axes will do.
    """
    from scipy.spatial import KDTree

    distances = np.zeros(len(places))
    if not shared.all():
        distances[~shared] = KDTree(others, leafsize=32, compact_nodes=False, balanced_tree=False).query(
            places[~shared]
        )[0]
    return distances


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
