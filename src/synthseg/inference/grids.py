"""Grids a scan passes through: its own (in RAS order), the network's working grid and the 1 mm grid of the results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from synthseg.volumes import Window


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
        (x, y, z), (i, j, k) = (int(n) for n in shape), (int(n) for n in start)
        return Grid((x, y, z), Window((i, j, k), (x, y, z), self.shape).affine(self.affine))

    def start_of(self, part: Grid) -> tuple[int, int, int] | None:
        """The voxel at which ``part`` begins, if it is a window of this grid: voxels coincide and all lie within."""
        move = np.linalg.inv(self.affine) @ part.affine
        start = move[:3, 3].round()
        aligned = np.allclose(move[:3, :3], np.eye(3), rtol=0, atol=1e-6) and np.allclose(move[:3, 3], start, atol=1e-4)
        if not aligned or np.any(start < 0) or np.any(start + part.shape > self.shape):
            return None
        x, y, z = (int(s) for s in start)
        return x, y, z
