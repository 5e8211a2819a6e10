"""Linear interpolation between grids whose axes run along each other, one axis and a few planes at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from synthseg.inference.grids import Grid

_EDGE = 1e-3  # voxels, as in volumes/resample.py: how far rounding may push a point over the edge


@dataclass(frozen=True)
class AxisMap:
    """Where the voxels of a target axis lie on a source axis.

    Target voxel k is ``rest[k]`` of source voxel ``low[k]`` and ``weight[k]`` of source voxel ``high[k]``: [n] float32,
    which sum to 1, and [n] intp. Voxels before ``first`` and from ``stop`` on lie outside the source's field of view.
    """

    low: np.ndarray
    high: np.ndarray
    weight: np.ndarray
    rest: np.ndarray
    first: int
    stop: int

    @classmethod
    def of(cls, scale: float, offset: float, source: int, target: int) -> AxisMap:
        """Target voxel k lies at ``scale * k + offset`` source voxels, ``scale`` > 0; the border value holds for half a
        voxel beyond the outermost of the ``source`` voxels, as in :func:`synthseg.volumes.reslice`.
        """
        position = scale * np.arange(target) + offset
        within = np.flatnonzero((position >= -0.5 - _EDGE) & (position <= source - 0.5 + _EDGE))
        first, stop = (int(within[0]), int(within[-1]) + 1) if len(within) else (0, 0)
        position = position.clip(0, source - 1)
        low = np.minimum(np.floor(position), max(source - 2, 0)).astype(np.intp)
        weight = position - low
        # each rounded by itself: 1 - weight in float32 would lose what is left of a voxel close to its neighbour
        rest = (1 - weight).astype(np.float32)
        return cls(low, np.minimum(low + 1, source - 1), weight.astype(np.float32), rest, first, stop)

    def reached(self, begin: int, end: int) -> slice:
        """The target voxels that source voxels ``begin`` to ``end`` - 1 contribute to."""
        start = max(int(np.searchsorted(self.high, begin, "left")), self.first)
        stop = min(int(np.searchsorted(self.low, end, "left")), self.stop)
        return slice(start, max(start, stop))

    def read(self, part: slice) -> slice:
        """The source voxels that a part of the target, at least one voxel, is made of."""
        return slice(int(self.low[part.start]), int(self.high[part.stop - 1]) + 1)

    def along(self, data: np.ndarray, axis: int, part: slice, begin: int) -> np.ndarray:
        """``data``, whose first voxel along ``axis`` is source voxel ``begin``, at the target's ``part``."""
        across = (-1, *[1] * (data.ndim - 1 - axis))
        result = data.take(self.high[part] - begin, axis)
        result *= self.weight[part].reshape(across)
        first = data.take(self.low[part] - begin, axis)
        first *= self.rest[part].reshape(across)
        result += first
        return result

    def at(self, voxel: int) -> tuple[int, int, float, float]:
        """``low``, ``high``, ``rest`` and ``weight`` of one target voxel."""
        return int(self.low[voxel]), int(self.high[voxel]), float(self.rest[voxel]), float(self.weight[voxel])


def axis_maps(source: Grid, target: Grid) -> tuple[AxisMap, AxisMap, AxisMap] | None:
    """How the target's axes lie on the source's, if they run along each other to 1e-3 voxels; else None."""
    move = np.linalg.inv(source.affine) @ target.affine
    scale = move[:3, :3].diagonal()
    rest = np.abs(move[:3, :3] - np.diag(scale)) @ (np.asarray(target.shape) - 1).clip(min=1)
    if scale.min() <= 0 or rest.max() >= 1e-3:
        return None
    x, y, z = (AxisMap.of(scale[a], move[a, 3], source.shape[a], target.shape[a]) for a in range(3))
    return x, y, z


def ends(occupied: np.ndarray) -> tuple[int, int]:
    """Begin and end of what is true in [n]; 0 and 0 where nothing is."""
    where = np.flatnonzero(occupied)
    return (int(where[0]), int(where[-1]) + 1) if len(where) else (0, 0)


def box_of(mask: np.ndarray) -> tuple[slice, slice]:
    """The smallest box around a plane's true voxels [Y, Z]; empty where there are none."""
    rows: np.ndarray = np.any(mask, axis=1)
    columns: np.ndarray = np.any(mask, axis=0)
    return slice(*ends(rows)), slice(*ends(columns))


def mix(first: np.ndarray, second: np.ndarray, rest: float, weight: float) -> np.ndarray:
    """``rest`` of one plane and ``weight`` of another.

    A sum of shares keeps the precision of small values beside large ones, which ``first + weight * (second - first)``
    does not; posteriors need it, because the clean-up divides by what is left of them.
    """
    result = first * np.float32(rest)
    result += second * np.float32(weight)
    return result
