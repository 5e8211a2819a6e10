"""Cutting windows out of arrays, padding where they reach outside, and putting them back. Needs numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from synthseg.errors import ShapeError


@dataclass(frozen=True)
class Window:
    """A box of voxels in a full grid; it may reach outside (negative start, or past the end).

    Args:
        start: index in the full grid of the window's first voxel.
        shape: the window's size.
        full_shape: the size of the grid it is cut from.
    """

    start: tuple[int, int, int]
    shape: tuple[int, int, int]
    full_shape: tuple[int, int, int]

    def crop(self, array: np.ndarray, fill: float = 0) -> np.ndarray:
        """Cut the window out of ``array`` [..., *full_shape]."""
        if tuple(array.shape[-3:]) != self.full_shape:
            raise _misfit(array, self.full_shape)
        return crop_pad(array, self.start, self.shape, fill)

    def uncrop(self, array: np.ndarray, fill: float = 0) -> np.ndarray:
        """Put ``array`` [..., *shape] back into the full grid, ``fill`` elsewhere."""
        if tuple(array.shape[-3:]) != self.shape:
            raise _misfit(array, self.shape)
        return uncrop_pad(array, self.start, self.full_shape, fill)

    def affine(self, affine: np.ndarray) -> np.ndarray:
        """The affine of the window, given that of the full grid."""
        moved = np.array(affine, dtype=np.float64)
        moved[:3, 3] += moved[:3, :3] @ np.asarray(self.start, dtype=np.float64)
        return moved


def center_window(shape: Sequence[int], target_shape: Sequence[int]) -> Window:
    """The centred window of ``target_shape``: a crop where that is smaller, padding where larger, axis by axis.

    An odd voxel is dropped at the end when cropping and added at the end when padding (reference 11.2).
    """
    start = [(n - t) // 2 if n >= t else -((t - n) // 2) for n, t in zip(shape, target_shape, strict=True)]
    return Window(_triple(start), _triple(target_shape), _triple(shape))


def bounding_box(mask: np.ndarray, margin: int = 0) -> Window:
    """The smallest window around the mask's true voxels, widened by ``margin`` voxels but kept within the grid.

    An empty mask gives the whole grid: where nothing was found, nothing may be cut off.
    """
    full = _triple(mask.shape)
    occupied = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    if occupied[0].size == 0:
        return Window((0, 0, 0), full, full)
    low = [max(0, int(o[0]) - margin) for o in occupied]
    high = [min(n, int(o[-1]) + 1 + margin) for o, n in zip(occupied, full, strict=True)]
    return Window(_triple(low), _triple([h - lo for h, lo in zip(high, low, strict=True)]), full)


def crop_pad(array: np.ndarray, start: Sequence[int], shape: Sequence[int], fill: float = 0) -> np.ndarray:
    """Cut a window out of an array's last three axes; what lies outside the array is ``fill``.

    Args:
        array: [..., X, Y, Z].
        start: index of the window's first voxel; negative to pad in front.
        shape: the window's size.
    Returns: [..., *shape], a new array of the same dtype.
    Raises: ShapeError if the array has fewer than three axes or a size is not positive.
    """
    if array.ndim < 3 or len(start) != 3 or len(shape) != 3 or min(shape) < 1:
        raise ShapeError(
            "window", found=f"shape {tuple(shape)} in an array of {array.shape}", fix="pass three sizes >= 1"
        )
    result = np.full(array.shape[:-3] + tuple(shape), fill, dtype=array.dtype)
    source: list[slice] = []
    target: list[slice] = []
    for begin, size, n in zip(start, shape, array.shape[-3:], strict=True):
        low, high = max(0, begin), min(n, begin + size)
        source.append(slice(low, max(low, high)))
        target.append(slice(low - begin, max(low, high) - begin))
    if all(s.stop > s.start for s in source):
        result[..., target[0], target[1], target[2]] = array[..., source[0], source[1], source[2]]
    return result


def uncrop_pad(array: np.ndarray, start: Sequence[int], full_shape: Sequence[int], fill: float = 0) -> np.ndarray:
    """Undo :func:`crop_pad`: the window's voxels back at their place in ``full_shape``, ``fill`` everywhere else."""
    return crop_pad(array, [-begin for begin in start], full_shape, fill)


def _triple(values: Sequence[int]) -> tuple[int, int, int]:
    x, y, z = (int(value) for value in values)
    return x, y, z


def _misfit(array: np.ndarray, shape: tuple[int, ...]) -> ShapeError:
    return ShapeError("window", found=f"an array of {array.shape}", fix=f"pass one whose last three sizes are {shape}")
