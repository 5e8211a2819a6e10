"""Sampling tensors on grids. Imports torch only, so that training runs without nibabel or scipy.

Coordinates are voxel indices, in the order of the tensor's own axes ``(x, y, z)``: 0 is the centre of the first voxel.
This file holds the package's one call of ``torch.nn.functional.grid_sample``; its reversed axis order and its
``align_corners`` are dealt with here and nowhere else.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from synthseg.errors import ShapeError

Outside = Literal["border", "zeros"]


def sample_linear(data: Tensor, coordinates: Tensor, *, outside: Outside = "border") -> Tensor:
    """Trilinear interpolation at any positions.

    Args:
        data: [B, C, X, Y, Z] floating point.
        coordinates: [B, x, y, z, 3] in voxels of ``data``, last axis in the order (x, y, z).
        outside: beyond the outermost voxel centres, ``"border"`` repeats the nearest voxel and ``"zeros"`` fades to 0
            over one voxel.
    Returns: [B, C, x, y, z] in the dtype of ``data``. Half precision is interpolated in float32: bfloat16 has 8 bits of
        mantissa, too few for the position in an axis of 256 voxels.
    Raises: ShapeError if the shapes do not fit each other.
    """
    _require(data.ndim == 5 and data.is_floating_point(), "data", data, "pass a floating-point [B, C, X, Y, Z] tensor")
    _require_coordinates(coordinates, data.shape[0])
    dtype = data.dtype if data.dtype in (torch.float32, torch.float64) else torch.float32
    # grid_sample wants (z, y, x), and its align_corners=False puts voxel i of n at (2 i + 1) / n - 1: defined for n = 1
    # too, where align_corners=True is not.
    sizes = torch.tensor(data.shape[:1:-1], dtype=dtype, device=data.device)
    normalized = torch.addcmul(1 / sizes - 1, coordinates.to(dtype).flip(-1), 2 / sizes)
    sampled = functional.grid_sample(
        data.to(dtype), normalized, mode="bilinear", padding_mode=outside, align_corners=False
    )
    return sampled.to(data.dtype)


def sample_nearest(data: Tensor, coordinates: Tensor) -> Tensor:
    """Nearest voxel at any positions, for label indices.

    Args:
        data: [B, X, Y, Z], any integer dtype (kept). Floating point and bool work too.
        coordinates: [B, x, y, z, 3] in voxels, order (x, y, z), finite. Halves round to even; positions outside take
            the border's value.
    Returns: [B, x, y, z] in the dtype of ``data``.
    Raises: ShapeError if the shapes do not fit each other.
    Source: reference 2.3, step 1 (the original's label sampling).
    """
    _require(data.ndim == 4, "data", data, "pass a [B, X, Y, Z] tensor")
    _require_coordinates(coordinates, data.shape[0])
    # bfloat16 and float16 cannot hold every index below 2048 exactly, float32 can.
    precise = coordinates if coordinates.dtype == torch.float64 else coordinates.float()
    flat: Tensor | None = None  # built axis by axis: one int64 tensor, never a [..., 3] one
    for axis, size in enumerate(data.shape[1:]):
        index = precise[..., axis].round().clamp_(0, size - 1).long()
        flat = index if flat is None else flat.mul_(size).add_(index)
    assert flat is not None  # there are always three axes
    shape = coordinates.shape[:-1]
    return data.flatten(1).gather(1, flat.flatten(1)).reshape(shape)


def _require_coordinates(coordinates: Tensor, batch: int) -> None:
    fits = coordinates.ndim == 5 and coordinates.shape[-1] == 3 and coordinates.shape[0] == batch
    _require(fits, "coordinates", coordinates, f"pass [B, x, y, z, 3] voxel positions with B = {batch}")


def _require(condition: bool, name: str, tensor: Tensor, fix: str) -> None:
    if not condition:
        raise ShapeError(name, found=f"a {tensor.dtype} tensor of shape {tuple(tensor.shape)}", fix=fix)
