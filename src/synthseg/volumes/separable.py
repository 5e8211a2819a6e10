"""Linear maps of a volume, one axis after the other, each a product with a small banded matrix.

Blur and interpolation become one matrix an axis, so that a scan on its way to coarser voxels is read once and what is
between the passes is already smaller.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d

_ROWS = 32  # of a matrix at a time: of most scans these read a quarter of an axis, and the product skips the rest


def spacing_matrix(n: int, factor: float) -> np.ndarray:
    """[count, n] float64: from ``n`` voxels to those of another size, blurred first where they are coarser.

    Args:
        factor: old / new voxel size.
    Source: the rule of :func:`synthseg.volumes.resample_to_spacing`.
    """
    count = resampled_count(n, factor)
    position = ((np.arange(count) + 0.5) / factor - 0.5).clip(0, n - 1)
    low = np.minimum(np.floor(position), max(n - 2, 0)).astype(np.int64)
    rows, weight = np.arange(count), position - low
    matrix = np.zeros((count, n))
    matrix[rows, low] += 1 - weight
    matrix[rows, np.minimum(low + 1, n - 1)] += weight
    if factor > 1:
        return matrix
    blur = gaussian_filter1d(np.eye(n), 0.25 / factor, axis=0, mode="reflect")
    blurred: np.ndarray = matrix @ blur
    return blurred


def resampled_count(n: int, factor: float) -> int:
    """How many voxels cover ``n`` of another size, ``factor`` = old / new."""
    # 1e-4 of a voxel: voxel sizes come as float32, and 181 * 0.7f is a little more or less than 126.7
    return max(1, int(np.ceil(n * factor - 1e-4)))


def apply_along_axes(data: np.ndarray, matrices: Sequence[np.ndarray]) -> np.ndarray:
    """Multiply [X, Y, Z] by one matrix an axis, [X', X], [Y', Y], [Z', Z]: float32 [X', Y', Z'], in any memory order.

    The result depends on the values alone, to the last bit: sums are taken in the order of the axes, however the array
    lies in memory. So a scan stored in another orientation has the same labels. The data is copied as a whole unless it
    is float32 with its first axis running fastest, as NIfTI files in RAS order have it.
    """
    block = np.ascontiguousarray(data.transpose(2, 1, 0), dtype=np.float32)
    tensor = torch.from_numpy(block)
    small = {2 - axis: torch.from_numpy(np.ascontiguousarray(m, dtype=np.float32)) for axis, m in enumerate(matrices)}
    # The axis that shrinks most goes first and the one that grows most last: what is between the passes stays small.
    for at in sorted(small, key=lambda at: (len(small[at]) / small[at].shape[1], at)):
        tensor = _apply(small[at], tensor, at)
    result: np.ndarray = tensor.numpy().transpose(2, 1, 0)
    return result


def _apply(matrix: torch.Tensor, data: torch.Tensor, axis: int) -> torch.Tensor:
    """Product along one axis of a contiguous tensor, a few rows of the matrix and the voxels they read at a time."""
    before, n, after = data.shape[:axis].numel(), data.shape[axis], data.shape[axis + 1 :].numel()
    count = len(matrix)
    source = data.view(before, n, after)
    result = data.new_empty(before, count, after)
    for begin in range(0, count, _ROWS):
        rows = matrix[begin : begin + _ROWS]
        read = rows.any(0).nonzero()
        low, high = (int(read[0]), int(read[-1]) + 1) if len(read) else (0, 1)
        part, target = rows[:, low:high], result[:, begin : begin + len(rows)]
        if after == 1:  # the last axis: one product of two matrices
            target[..., 0] = source[:, low:high, 0] @ part.T
        else:
            target.copy_(torch.matmul(part, source[:, low:high]))
    return result.view(*data.shape[:axis], count, *data.shape[axis + 1 :])
