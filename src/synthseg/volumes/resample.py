"""Changing grids: to another voxel size, and onto any other grid through both affines.

Grids that differ by sizes, shifts, permutations and flips only (every way between a scan and its resampled self) are
resampled one axis at a time; oblique pairs take the general way. Both give the same values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d

from synthseg.errors import ShapeError
from synthseg.volumes.grid import sample_linear, sample_nearest
from synthseg.volumes.separable import apply_along_axes, resampled_count, spacing_matrix
from synthseg.volumes.volume import Volume

_CHUNK = 2_000_000  # target voxels at a time on the general way: 24 MB of coordinates
_EDGE = 1e-3  # voxels: how far rounding in float32 affines may push a point over the edge of the field of view
# Subtracted before rounding to the nearest voxel, so that ties (every voxel, between 1 mm and 2 mm grids) all fall to
# the lower neighbour, and rounding errors do not decide.
_TIE = 1e-4


def resample_to_spacing(volume: Volume, spacing_mm: float | Sequence[float], *, order: int) -> Volume:
    """Resample a volume to another voxel size, in its own axis order.

    The outer *edges* of the first voxels coincide: with f = old / new voxel size, new voxel k lies at ``(k + 0.5) / f -
    0.5`` old voxels, clamped to the outermost voxel centres; there are ``ceil(n f)`` of them. Linear interpolation is
    preceded by a Gaussian blur along each axis, reflecting at the borders: sigma = 0.25 / f voxels where f <= 1, none
    where f > 1. It damps what the coarser grid cannot hold; on an axis that keeps its size it is nearly nothing.

    Args:
        spacing_mm: the new voxel size in mm, one for all axes or one each.
        order: 1 linear (images, float32), 0 nearest without blur (label maps, dtype kept).
    Returns: the resampled volume, its data in any memory order; the volume itself if all axes have that voxel size
        already (to 1e-6).
    Raises: ShapeError for a spacing that is not positive, or an order other than 0 and 1.
    Source: reference 6.3, step 2. Differs in the number of samples: the original's floating-point range sometimes had
        one more (181 voxels of 0.7 mm gave 128; here 127), and in that nothing is blurred where nothing is resampled.
    """
    target = np.broadcast_to(np.asarray(spacing_mm, dtype=np.float64), (3,))
    if not (np.isfinite(target).all() and (target > 0).all()):
        raise ShapeError("spacing_mm", found=f"{spacing_mm}", fix="pass voxel sizes in mm above 0")
    _require_order(order)
    factor = volume.spacing_mm / target
    if np.abs(factor - 1).max() < 1e-6:
        return volume
    data = volume.data
    if order == 1:
        data = apply_along_axes(data, [spacing_matrix(n, f) for n, f in zip(data.shape, factor, strict=True)])
    else:
        positions = [
            (np.arange(resampled_count(n, f)) + 0.5) / f - 0.5 for n, f in zip(data.shape, factor, strict=True)
        ]
        data = _sample_axes(data, positions, order)
    affine = volume.affine.copy()
    affine[:3, :3] /= factor
    affine[:3, 3] -= affine[:3, :3] @ (0.5 * (factor - 1))
    return replace(volume, data=data, affine=affine)


def blur_for_spacing(volume: Volume, spacing_mm: float | np.ndarray) -> Volume:
    """The volume, float32, without what voxels of ``spacing_mm`` cannot hold: the blur of :func:`resample_to_spacing`.

    For who samples on such voxels elsewhere than on that function's grid. ``spacing_mm`` is one voxel size in mm above
    0 for all axes, or [3].
    """
    data = volume.data.astype(np.float32)
    for axis, factor in enumerate(volume.spacing_mm / spacing_mm):
        if factor <= 1:
            data = gaussian_filter1d(data, 0.25 / factor, axis=axis, mode="reflect")
    return replace(volume, data=data)


def reslice(
    data: np.ndarray,
    affine: np.ndarray,
    to_shape: Sequence[int],
    to_affine: np.ndarray,
    *,
    order: int,
    outside: float = 0.0,
) -> np.ndarray:
    """Bring data onto another grid, through the two affines.

    Args:
        data: [X, Y, Z] or [C, X, Y, Z].
        affine, to_affine: [4, 4], voxel to mm RAS+, of the data and of the wanted grid.
        to_shape: the wanted grid's three sizes.
        order: 1 linear (result float32), 0 nearest (dtype kept; ties go to the lower index).
        outside: value of voxels whose centre lies outside the data's field of view, i.e. more than half a voxel beyond
            its outermost voxel centres. In that last half voxel the border value holds.
    Returns: [*to_shape] or [C, *to_shape]. No blur: to a much coarser grid, resample with
        :func:`resample_to_spacing` first.
    Raises: ShapeError for data of other dimensions, a bad ``to_shape``, or an order other than 0 and 1.
    """
    _require_order(order)
    if data.ndim not in (3, 4) or len(to_shape) != 3 or min(to_shape) < 1:
        found = f"data of shape {data.shape} to shape {tuple(to_shape)}"
        raise ShapeError(
            "reslice", found=found, fix="pass [X, Y, Z] or [C, X, Y, Z] data and three sizes of at least 1"
        )
    channels = data if data.ndim == 4 else data[None]
    # target voxel index -> source voxel index
    move = np.linalg.inv(np.asarray(affine, dtype=np.float64)) @ np.asarray(to_affine, dtype=np.float64)
    axes = _aligned_axes(move, to_shape)
    if axes is not None:
        result = _reslice_aligned(channels, move, axes, to_shape, order=order, outside=outside)
    else:
        result = _reslice_oblique(channels, move, to_shape, order=order, outside=outside)
    return result if data.ndim == 4 else result[0]


def _aligned_axes(move: np.ndarray, to_shape: Sequence[int]) -> list[int] | None:
    """For each source axis the target axis along it, if the rest never adds up to more than 1e-3 voxels; else None."""
    reach = np.abs(move[:3, :3]) * (np.asarray(to_shape) - 1).clip(min=1)
    axes = [int(axis) for axis in np.abs(move[:3, :3]).argmax(axis=1)]
    rest = reach.sum(axis=1) - reach[range(3), axes]
    return axes if sorted(axes) == [0, 1, 2] and rest.max() < 1e-3 else None


def _reslice_aligned(
    channels: np.ndarray, move: np.ndarray, axes: list[int], to_shape: Sequence[int], *, order: int, outside: float
) -> np.ndarray:
    positions = [move[s, t] * np.arange(to_shape[t]) + move[s, 3] for s, t in enumerate(axes)]
    inside = [_within(p, n) for p, n in zip(positions, channels.shape[1:], strict=True)]
    back = [axes.index(t) for t in range(3)]
    dtype = channels.dtype if order == 0 else np.dtype(np.float32)
    result = np.empty((len(channels), *to_shape), dtype=dtype)
    for source, target in zip(channels, result, strict=True):  # channel by channel: few large temporaries
        target[...] = _sample_axes(source, positions, order).transpose(back)
    for s, t in enumerate(axes):
        result[(slice(None),) * (t + 1) + (~inside[s],)] = outside
    return result


def _sample_axes(data: np.ndarray, positions: list[np.ndarray], order: int) -> np.ndarray:
    """Sample [X, Y, Z] at a grid of positions, one axis at a time, positions clamped to the outermost voxels."""
    if order == 0:
        for axis, position in enumerate(positions):
            data = data.take(_nearest(position, data.shape[axis]), axis=axis)
        return data
    tensor = torch.from_numpy(np.ascontiguousarray(data, dtype=np.float32))
    # The axis that shrinks most goes first and the one that grows most last: the passes between stay small.
    for axis in sorted(range(3), key=lambda a: len(positions[a]) / data.shape[a]):
        tensor = _sample_axis(tensor, positions[axis], axis)
    sampled: np.ndarray = tensor.numpy()
    return sampled


def _sample_axis(data: torch.Tensor, position: np.ndarray, axis: int) -> torch.Tensor:
    """Linear interpolation of a contiguous [X, Y, Z] along one axis."""
    n = data.shape[axis]
    position = position.clip(0, n - 1)
    low = np.minimum(np.floor(position), max(n - 2, 0)).astype(np.int64)
    high = np.minimum(low + 1, n - 1)
    weight = position - low
    # each rounded by itself, and summed as shares: small values beside large ones keep their precision
    shares = (1 - weight).astype(np.float32), weight.astype(np.float32)
    if axis == 2:  # gathers along the last axis are slow, a product with a small matrix is not
        matrix = np.zeros((n, len(position)), dtype=np.float32)
        columns = np.arange(len(position))
        matrix[low, columns] += shares[0]
        matrix[high, columns] += shares[1]
        return data @ torch.from_numpy(matrix)
    of_low, of_high = (torch.from_numpy(share).reshape(-1, *[1] * (2 - axis)) for share in shares)
    result = data.index_select(axis, torch.from_numpy(low)).mul_(of_low)
    return result.addcmul_(data.index_select(axis, torch.from_numpy(high)), of_high)


def _reslice_oblique(
    channels: np.ndarray, move: np.ndarray, to_shape: Sequence[int], *, order: int, outside: float
) -> np.ndarray:
    sizes = channels.shape[1:]
    x, y, z = to_shape
    dtype = channels.dtype if order == 0 else np.dtype(np.float32)
    result = np.empty((len(channels), x, y, z), dtype=dtype)
    plane = np.stack(np.meshgrid(np.arange(y), np.arange(z), indexing="ij"), -1) @ move[:3, 1:3].T + move[:3, 3]
    thickness = max(1, _CHUNK // (y * z))
    for begin in range(0, x, thickness):
        slab = slice(begin, min(x, begin + thickness))
        points = np.arange(slab.start, slab.stop)[:, None, None, None] * move[:3, 0] + plane
        inside = np.logical_and.reduce([_within(points[..., a], sizes[a]) for a in range(3)])
        if order == 0:
            points = np.stack([_nearest(points[..., a], sizes[a]) for a in range(3)], -1)
        coordinates = torch.from_numpy(points.astype(np.float32))[None]
        for source, target in zip(channels, result, strict=True):
            sampled = _sample(source, coordinates, order)
            target[slab] = np.where(inside, sampled, np.asarray(outside, dtype=dtype))
    return result


def _sample(source: np.ndarray, coordinates: torch.Tensor, order: int) -> np.ndarray:
    tensor = torch.from_numpy(np.ascontiguousarray(source))
    if order == 0:
        nearest: np.ndarray = sample_nearest(tensor[None], coordinates)[0].numpy()
        return nearest
    linear: np.ndarray = sample_linear(tensor.float()[None, None], coordinates)[0, 0].numpy()
    return linear


def _within(position: np.ndarray, n: int) -> np.ndarray:
    return (position >= -0.5 - _EDGE) & (position <= n - 0.5 + _EDGE)


def _nearest(position: np.ndarray, n: int) -> np.ndarray:
    return np.ceil(position - 0.5 - _TIE).astype(np.int64).clip(0, n - 1)


def _require_order(order: int) -> None:
    if order not in (0, 1):
        raise ShapeError("order", found=f"{order}", fix="pass 0 (nearest) or 1 (linear)")
