"""Array axes into RAS+ order by permuting and flipping: no interpolation, so the way back is exact.

Source: reference 6.3, step 3. Obliquity is left in the affine: the voxel grid is not rotated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from nibabel.orientations import aff2axcodes, io_orientation

from synthseg.errors import ShapeError
from synthseg.volumes.volume import Volume


@dataclass(frozen=True)
class Orientation:
    """How an array's own axes lie in the body, and so the way back to them.

    Args:
        axes: for right, front and up in turn, which of the array's axes runs along it.
        flips: for right, front and up in turn, whether that axis runs the other way (left, back, down).
        code: where the array's own axes point to, e.g. ``"LPS"``.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    code: str


def orientation_of(affine: np.ndarray) -> Orientation:
    """Give each array axis the closest world axis, each world axis once, also for oblique affines (nibabel's SVD)."""
    world_of_axis = io_orientation(affine)  # [3, 2]: for each array axis, its world axis and its sign
    axes = [0, 0, 0]
    flips = [False, False, False]
    for axis, (world, sign) in enumerate(world_of_axis):
        axes[int(world)] = axis
        flips[int(world)] = bool(sign < 0)
    return Orientation((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]), "".join(aff2axcodes(affine)))


def to_ras(volume: Volume) -> tuple[Volume, Orientation]:
    """Bring a volume's axes into RAS+ order.

    Returns: the volume with its data as a view (not a copy, strides may be negative) and an affine under which every
        voxel keeps its place in the world; and the orientation that :func:`from_ras` needs for the way back.
    """
    orientation = orientation_of(volume.affine)
    move = np.zeros((4, 4))  # RAS voxel index -> the array's own voxel index
    move[3, 3] = 1
    for world, (axis, flip) in enumerate(zip(orientation.axes, orientation.flips, strict=True)):
        move[axis, world] = -1 if flip else 1
        move[axis, 3] = volume.data.shape[axis] - 1 if flip else 0
    data = volume.data.transpose(orientation.axes)[_flipping(orientation)]
    return replace(volume, data=data, affine=volume.affine @ move), orientation


def from_ras(array: np.ndarray, orientation: Orientation) -> np.ndarray:
    """Undo :func:`to_ras` on any array whose last three axes are in RAS+ order.

    Args:
        array: [..., X, Y, Z], e.g. a label map or posteriors [C, X, Y, Z].
    Returns: a view of it, with its last three axes in the order and direction of the original array.
    Raises: ShapeError if it has fewer than three axes.
    """
    if array.ndim < 3:
        raise ShapeError("array", found=f"shape {array.shape}", fix="pass an array [..., X, Y, Z]")
    lead = array.ndim - 3
    back = [lead + orientation.axes.index(axis) for axis in range(3)]
    return array[(..., *_flipping(orientation))].transpose(*range(lead), *back)


def _flipping(orientation: Orientation) -> tuple[slice, slice, slice]:
    x, y, z = (slice(None, None, -1 if flip else 1) for flip in orientation.flips)
    return x, y, z
