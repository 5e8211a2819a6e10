"""Separable linear operators: every smooth field and every slice profile of the model is three small matrices.

One matrix per sample and axis, applied as batched products, replaces upsampling, blurring and resampling loops.
"""

from __future__ import annotations

import torch
from torch import Tensor


def interpolation_matrix(positions: Tensor, n_in: int) -> Tensor:
    """Linear interpolation at given positions, clamped to the ends.

    Args:
        positions: [..., n_out] in voxels of the input.
        n_in: input size.
    Returns: [..., n_out, n_in]; rows sum to 1.
    """
    clamped = positions.clamp(0, n_in - 1)
    nodes = torch.arange(n_in, device=positions.device, dtype=positions.dtype)
    return (1 - (clamped[..., None] - nodes).abs()).clamp_(min=0)


def gaussian_matrix(sigma_vox: Tensor, n: int) -> Tensor:
    """Gaussian smoothing with the border voxel repeated outwards; sigma 0 is the identity.

    Args:
        sigma_vox: [...] standard deviations in voxels, each its own.
        n: size of the axis.
    Returns: [..., n, n]; rows sum to 1 (normalised over its full support, unlike the original's truncated window).
    """
    nodes = torch.arange(n, device=sigma_vox.device, dtype=sigma_vox.dtype)
    distance = nodes[:, None] - nodes
    sigma = sigma_vox[..., None, None]
    weights = torch.exp(-0.5 * (distance / sigma.clamp(min=1e-3)) ** 2)
    # What would fall beyond an end is given to the end voxel. The sum over the voxels outside goes one more width of
    # the axis on either side: exact to 1e-4 while sigma is at most a quarter of the axis.
    outside = torch.arange(1, n + 1, device=sigma.device, dtype=sigma.dtype)
    before = torch.exp(-0.5 * ((nodes[:, None] + outside) / sigma.clamp(min=1e-3)) ** 2).sum(-1)
    after = torch.exp(-0.5 * ((n - 1 - nodes[:, None] + outside) / sigma.clamp(min=1e-3)) ** 2).sum(-1)
    weights[..., 0] += before
    weights[..., -1] += after
    return weights / weights.sum(-1, keepdim=True)


def apply_separable(data: Tensor, matrices: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Apply one matrix per sample along each axis.

    Args:
        data: [B, C, X, Y, Z].
        matrices: [B, x, X], [B, y, Y], [B, z, Z] (B may be 1).
    Returns: [B, C, x, y, z] in the dtype of ``data``.
    """
    with torch.autocast(data.device.type, enabled=False):  # bfloat16 products would round the fields to 8 bits
        b, c, n_x, n_y, n_z = data.shape
        along_x, along_y, along_z = (m.to(data.dtype) for m in matrices)
        # Each pass multiplies whole rows or slabs where they lie; no axis is moved in memory.
        x = torch.matmul(along_x[:, None], data.reshape(b, c, n_x, n_y * n_z)).view(b, c, -1, n_y, n_z)
        x = torch.matmul(along_y[:, None, None], x)
        return torch.matmul(x, along_z[:, None, None].transpose(-1, -2))


def centered_positions(n_out: int, step_out: float, n_in: int, step_in: float, *, device: torch.device) -> Tensor:
    """Where ``n_out`` samples ``step_out`` apart fall on ``n_in`` nodes ``step_in`` apart, centres aligned: [n_out]."""
    offsets = (torch.arange(n_out, device=device, dtype=torch.float32) - (n_out - 1) / 2) * step_out
    return offsets / step_in + (n_in - 1) / 2
