"""Numbers that describe the shapes of a label map: volumes, surface areas and their ratios (reference A.4.2, B.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from synthseg.anatomies.groups import ShapeGroup
from synthseg.anatomies.packages import require_package
from synthseg.errors import LabelError

Units = Literal["mm", "voxel"]


@dataclass(frozen=True)
class ShapeMeasures:
    """What one label map measures: L shapes and their union."""

    volumes: tuple[float, ...]  # [L] in mm3, or voxels
    areas: tuple[float, ...]  # [L] in mm2, or voxel faces; 0 where a shape is absent
    volume: float  # of the union
    area: float  # of the union's surface
    border: float  # share of the union's surface that lies on the border of the map: cut off there

    @property
    def absent(self) -> tuple[bool, ...]:
        """[L]: shapes that the map does not show."""
        return tuple(volume == 0 for volume in self.volumes)


def measure(
    labels: np.ndarray,
    spacing_mm: Sequence[float],
    groups: Sequence[ShapeGroup],
    *,
    units: Units = "mm",
    closed: bool = True,
    subject: str = "label map",
) -> ShapeMeasures:
    """Measure a label map.

    Args:
        labels: [X, Y, Z] integer label values.
        spacing_mm: voxel sizes; in units of voxels they do not matter.
        closed: a shape cut off by the map's border gets a surface there. The reference leaves it open.
        subject: the map's name for messages.
    Returns: volumes by counting voxels; areas of the triangle mesh that marching cubes (Lewiner) puts at level 0.5
        of the binary mask, as the reference has them (A.4.2). Such a mesh is rougher than what it stands for: a ball
        of 10 voxels' radius measures 9 % more than a sphere.
    Raises: LabelError for a map that shows none of the shapes; UsageError without scikit-image.
    """
    shapes = crop_shapes(number_shapes(labels, groups))
    return measure_shapes(shapes, spacing_mm, groups, units=units, closed=closed, subject=subject)


def measure_shapes(
    shapes: np.ndarray,
    spacing_mm: Sequence[float],
    groups: Sequence[ShapeGroup],
    *,
    units: Units,
    closed: bool,
    subject: str,
) -> ShapeMeasures:
    """As :func:`measure`, of a map that :func:`number_shapes` and :func:`crop_shapes` have made ready."""
    spacing = (1.0, 1.0, 1.0) if units == "voxel" else tuple(float(size) for size in spacing_mm)
    voxel = float(np.prod(spacing))
    counts = np.bincount(shapes.ravel(), minlength=len(groups) + 1)[1:]
    if not counts.any():
        names = ", ".join(group.name for group in groups)
        raise LabelError(subject, found=f"no voxel of any shape ({names})", fix="leave the map out, or mend it")
    areas = [mesh_area(shapes == index + 1, spacing, closed=closed) for index in range(len(groups))]
    union = shapes > 0
    area = mesh_area(union, spacing, closed=closed)
    return ShapeMeasures(
        volumes=tuple(float(count) * voxel for count in counts),
        areas=tuple(areas),
        volume=float(counts.sum()) * voxel,
        area=area,
        border=_border_area(union, spacing) / max(area, 1e-9),
    )


def mesh_area(mask: np.ndarray, spacing: Sequence[float], *, closed: bool) -> float:
    """Area of a mask's surface: the mesh of marching cubes (Lewiner et al. 2003) at level 0.5.

    Args:
        mask: [X, Y, Z] bool.
        spacing: three voxel sizes.
        closed: where the mask touches the array's border, it gets a surface there, too.
    Returns: in the square of the spacing's unit; 0 for an empty mask, and for one without any surface.
    Raises: UsageError without scikit-image.
    """
    if not mask.any():
        return 0.0
    require_package("skimage", "surface areas")
    from skimage.measure import marching_cubes, mesh_surface_area

    window, around = [], []
    for axis, size in enumerate(mask.shape):
        present = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        first, last = int(present[0]), int(present[-1])
        window.append(slice(first, last + 1))
        around.append((int(closed or first > 0), int(closed or last < size - 1)))
    tight = np.pad(mask[tuple(window)], around)
    if min(tight.shape) < 2 or tight.all():  # from border to border: an open mesh has no face
        return 0.0
    vertices, faces, _, _ = marching_cubes(tight.astype(np.float32), 0.5, spacing=tuple(spacing), method="lewiner")
    return float(mesh_surface_area(vertices, faces))


def number_shapes(labels: np.ndarray, groups: Sequence[ShapeGroup]) -> np.ndarray:
    """[X, Y, Z] uint16: 1 to L for the shapes, 0 for everything else."""
    numbers = np.zeros(max(int(labels.max(initial=0)), 0) + 1, dtype=np.uint16)
    for index, group in enumerate(groups):
        values = np.array(group.values)
        numbers[values[values < len(numbers)]] = index + 1
    return numbers[np.maximum(labels, 0)]


def crop_shapes(shapes: np.ndarray) -> np.ndarray:
    """Cut to the box of the shapes and one voxel around it, where the map goes on: areas stay what they are."""
    window = []
    for axis, size in enumerate(shapes.shape):
        present = np.flatnonzero((shapes > 0).any(axis=tuple(a for a in range(3) if a != axis)))
        if not len(present):
            return shapes
        window.append(slice(max(int(present[0]) - 1, 0), min(int(present[-1]) + 2, size)))
    return shapes[tuple(window)]


def _border_area(mask: np.ndarray, spacing: Sequence[float]) -> float:
    """Area of the voxel faces that lie on the array's border."""
    total = 0.0
    for axis in range(3):
        face = float(np.prod([size for a, size in enumerate(spacing) if a != axis]))
        total += face * float(mask.take(0, axis).sum() + mask.take(-1, axis).sum())
    return total


def feature_names(groups: Sequence[ShapeGroup]) -> tuple[str, ...]:
    """The 3 + 3 L columns, in the reference's order (A.4.2)."""
    parts = [f"{what}: {group.name}" for what in ("volume share", "area share", "area per volume") for group in groups]
    return ("volume", "area", "area per volume", *parts)


def feature_vector(measures: ShapeMeasures) -> np.ndarray:
    """[3 + 3 L] float64, in the order of :func:`feature_names`; NaN: area per volume of a shape that is absent."""
    volumes, areas = np.array(measures.volumes), np.array(measures.areas)
    ratio = np.full(len(volumes), np.nan)
    np.divide(areas, volumes, out=ratio, where=volumes > 0)
    whole = [measures.volume, measures.area, measures.area / measures.volume]
    return np.concatenate([whole, volumes / volumes.sum(), areas / max(areas.sum(), 1e-300), ratio])
