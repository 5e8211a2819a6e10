"""Grids a scan passes through: its own (in RAS order), the network's working grid and the 1 mm grid of the results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Grid:
    """Voxels in space: ``shape`` (X, Y, Z) and ``affine`` [4, 4] float64, voxel indices -> mm RAS+."""

    shape: tuple[int, int, int]
    affine: np.ndarray

    @property
    def spacing_mm(self) -> np.ndarray:
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def voxel_volume_mm3(self) -> float:
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    def same_as(self, other: Grid) -> bool:
        return self.shape == other.shape and np.allclose(self.affine, other.affine, rtol=0, atol=1e-6)

    def window(self, start: Sequence[int], shape: Sequence[int]) -> Grid:
        """The part that begins at voxel ``start`` (may be negative: the grid then grows)."""
        affine = self.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ np.asarray(start, dtype=np.float64)
        return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)


def close_to_spacing(spacing_mm: np.ndarray, target_mm: float, tolerance: float) -> bool:
    """Whether every axis lies within the relative ``tolerance`` of ``target_mm`` (reference 6.3, step 2: 5 %)."""
    return bool(np.all(np.abs(np.asarray(spacing_mm) / target_mm - 1) <= tolerance + 1e-9))


def box_of(mask: np.ndarray, margin: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Start and shape of the smallest box around the True voxels of a non-empty ``mask``, ``margin`` voxels wider."""
    starts, sizes = [], []
    for axis in range(3):
        found = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        low, high = max(int(found[0]) - margin, 0), min(int(found[-1]) + 1 + margin, mask.shape[axis])
        starts.append(low)
        sizes.append(high - low)
    return (starts[0], starts[1], starts[2]), (sizes[0], sizes[1], sizes[2])
