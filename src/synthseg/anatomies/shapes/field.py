"""Displacements on a coarse grid, composed step by step, and label maps read where they lead."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

_CORNERS = tuple(product((0, 1), repeat=3))


class CoarseGrid:
    """Cells of whole voxels over a label map; a map whose sides are no multiple ends in cells that reach beyond it."""

    def __init__(self, shape: Sequence[int], spacing_mm: Sequence[float], cell_mm: float) -> None:
        self.fine = tuple(int(n) for n in shape)
        self.factor = tuple(
            max(1, min(round(cell_mm / float(s)), n)) for s, n in zip(spacing_mm, self.fine, strict=True)
        )
        self.shape = tuple(-(-n // f) for n, f in zip(self.fine, self.factor, strict=True))
        self.spacing_mm = np.array([float(s) * f for s, f in zip(spacing_mm, self.factor, strict=True)])

    def means(self, values: np.ndarray) -> np.ndarray:
        """Mean of each cell; beyond the map a cell counts as 0."""
        pad = [(0, c * f - n) for c, f, n in zip(self.shape, self.factor, self.fine, strict=True)]
        padded = np.pad(values, pad).astype(np.float32) if any(p[1] for p in pad) else values.astype(np.float32)
        (x, y, z), (a, b, c) = self.shape, self.factor
        return np.asarray(padded.reshape(x, a, y, b, z, c).mean(axis=(1, 3, 5)))

    def refine(self, values: np.ndarray) -> np.ndarray:
        """Cell centres to voxels, linearly; constant beyond the outermost centres."""
        for axis in range(3):
            matrix = _matrix(self.fine[axis], self.shape[axis], self.factor[axis])
            values = np.moveaxis(np.tensordot(matrix, values, axes=(1, axis)), 0, axis)
        return values


def _matrix(fine: int, coarse: int, factor: int) -> np.ndarray:
    """[fine, coarse] float32: linear interpolation from cell centres."""
    at = np.clip((np.arange(fine) + 0.5) / factor - 0.5, 0, coarse - 1)
    low = np.minimum(np.floor(at).astype(int), max(coarse - 2, 0))
    share = at - low
    matrix = np.zeros((fine, coarse), dtype=np.float32)
    matrix[np.arange(fine), low] = 1 - share
    matrix[np.arange(fine), np.minimum(low + 1, coarse - 1)] += share
    return matrix


def largest_slope(step_mm: np.ndarray, spacing_mm: np.ndarray) -> float:
    """The largest sum over axes of a step's differences between neighbouring cells: below 1 no step folds.

    Args:
        step_mm: [3, X, Y, Z]. spacing_mm: [3].
    """
    largest = 0.0
    for component in step_mm:
        total = np.zeros(component.shape, dtype=np.float32)
        for axis, size in enumerate(component.shape):
            if size > 1:
                slope = np.abs(np.diff(component, axis=axis)) / float(spacing_mm[axis])
                low = tuple(slice(0, -1) if a == axis else slice(None) for a in range(3))
                high = tuple(slice(1, None) if a == axis else slice(None) for a in range(3))
                near = np.zeros(component.shape, dtype=np.float32)
                near[low] = slope
                near[high] = np.maximum(near[high], slope)
                total += near
        largest = max(largest, float(total.max()))
    return largest


def composed(displacement_mm: np.ndarray, step_mm: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """Where positions lead after one more step of the tissue: all before, read one step further back.

    Args:
        displacement_mm: [3, X, Y, Z] from a place to where its label is read.
        step_mm: [3, X, Y, Z] by which tissue moves in this step.
    """
    axes = np.meshgrid(*[np.arange(n, dtype=np.float32) for n in step_mm.shape[1:]], indexing="ij")
    back = [axis - step / float(s) for axis, step, s in zip(axes, step_mm, spacing_mm, strict=True)]
    read = [map_coordinates(part, back, order=1, mode="nearest", output=np.float32) for part in displacement_mm]
    return np.stack(read) - step_mm


def smooth_noise(shape: Sequence[int], sigma: np.ndarray, rng: torch.Generator) -> np.ndarray:
    """A smooth random field of mean 0 and standard deviation 1; zeros where the shape is too small for it to differ.

    Args:
        sigma: [3] of the smoothing, in voxels.
    """
    noise = torch.randn(tuple(shape), generator=rng, device=rng.device).cpu().numpy().astype(np.float64)
    smooth = gaussian_filter(noise, sigma, mode="reflect")
    spread = float(smooth.std())
    # On a shape much smaller than sigma all that is left are the filter's rounding errors.
    return np.asarray((smooth - smooth.mean()) / spread if spread > 1e-9 else np.zeros(smooth.shape))


class LabelReader:
    """A label map to read between its voxels, many times."""

    def __init__(self, labels: np.ndarray) -> None:
        self.shape = labels.shape
        self._flat = np.ascontiguousarray(labels).ravel()
        strides = (labels.shape[1] * labels.shape[2], labels.shape[2], 1)
        self._strides = tuple(s if n > 1 else 0 for s, n in zip(strides, labels.shape, strict=True))
        self._offsets = [sum(s for s, bit in zip(self._strides, c, strict=True) if bit) for c in _CORNERS]
        # Where all eight voxels from here on are of one label nothing needs to be weighed.
        padded = np.pad(labels, [(0, 1)] * 3, mode="edge")
        even = np.ones(labels.shape, dtype=bool)
        for corner in _CORNERS[1:]:
            part = tuple(slice(bit, n + bit) for bit, n in zip(corner, labels.shape, strict=True))
            even &= padded[part] == labels
        self._even = even.ravel()

    def at(self, positions: Sequence[np.ndarray]) -> np.ndarray:
        """The label with the largest share of the eight voxels around each position (trilinear weights).

        Ties go to the nearest voxel's label; a voxel's own position gives its label.

        Args:
            positions: three arrays of the map's shape, in voxels; beyond the map its border goes on.
        """
        base = np.zeros(positions[0].shape, dtype=np.int64)
        shares = []
        for position, size, stride in zip(positions, self.shape, self._strides, strict=True):
            inside = np.clip(position, 0, size - 1)
            low = np.minimum(inside.astype(np.int32), max(size - 2, 0))
            base += low * np.int64(stride)
            shares.append(inside - low)
        result = self._flat[base]
        mixed = ~self._even[base]
        if mixed.any():
            result[mixed] = self._vote(base[mixed], [share[mixed] for share in shares])
        return np.asarray(result)

    def _vote(self, base: np.ndarray, shares: list[np.ndarray]) -> np.ndarray:
        nearest = base + sum((share > 0.5) * stride for share, stride in zip(shares, self._strides, strict=True))
        winner = self._flat[nearest]
        corners = np.stack([self._flat[base + offset] for offset in self._offsets])
        weights = np.stack(
            [np.prod([s if bit else 1 - s for s, bit in zip(shares, c, strict=True)], axis=0) for c in _CORNERS]
        )
        best = ((corners == winner) * weights).sum(axis=0) + 1e-4  # the nearest wins ties
        for candidate in corners:
            votes = ((corners == candidate) * weights).sum(axis=0)
            better = votes > best
            winner = np.where(better, candidate, winner)
            best = np.where(better, votes, best)
        return winner
