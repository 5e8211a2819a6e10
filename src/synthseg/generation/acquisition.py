"""Slice direction, spacing and thickness (Billot et al. 2023, Eqs. 20-26)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from synthseg.generation.config import AcquisitionPrior, GridPrior
from synthseg.generation.deformation import uniform
from synthseg.generation.scanner import GhostsDraw, NoiseDraw, ghost_matrix
from synthseg.generation.separable import apply_separable, gaussian_matrix, interpolation_matrix


class AcquisitionDraw(NamedTuple):
    """Resolution of each element and axis."""

    spacing_mm: Tensor  # [B, 3]
    thickness_mm: Tensor  # [B, 3]
    jitter: Tensor  # [B, 3], factor on the blur


def draw_acquisition(prior: AcquisitionPrior, grid: GridPrior, batch: int, *, rng: torch.Generator) -> AcquisitionDraw:
    """One thick axis, three coarse axes, or none, by the prior's shares (Eqs. 20-22; reference 2.3 step 7).

    Where the prior lists voxel sizes, one of its rows instead (reference 2.5).
    """
    native = grid.spacing_mm
    axis = torch.randint(3, (batch, 1), generator=rng, device=rng.device)
    thick = torch.zeros(batch, 3, dtype=torch.bool, device=rng.device).scatter_(1, axis, True)
    anisotropic = torch.where(thick, uniform((batch, 3), native, max(prior.max_spacing_mm, native), rng=rng), native)
    isotropic = uniform((batch, 3), native, max(prior.max_isotropic_mm, native), rng=rng)
    u = torch.rand(batch, 1, generator=rng, device=rng.device)
    spacing = torch.where(u < prior.isotropic_probability, isotropic, anisotropic)
    spacing = torch.where(u >= 1 - prior.native_probability, native, spacing)
    drawn = AcquisitionDraw(
        spacing_mm=spacing,
        thickness_mm=uniform((batch, 3), torch.full_like(spacing, native), spacing, rng=rng),
        jitter=uniform((batch, 3), 1 / (1 + prior.jitter), 1 + prior.jitter, rng=rng),
    )
    if not prior.spacings_mm:
        return drawn
    row = torch.randint(len(prior.spacings_mm), (batch,), generator=rng, device=rng.device)
    given = (prior.spacings_mm, prior.thicknesses_mm or prior.spacings_mm)
    spacing, thickness = (torch.tensor(rows, device=rng.device)[row].clamp(min=native) for rows in given)
    return drawn._replace(spacing_mm=spacing, thickness_mm=thickness)


def blur_sigma_vox(draw: AcquisitionDraw, prior: AcquisitionPrior, grid: GridPrior) -> Tensor:
    """[B, 3]: Eq. 23, sigma = 2 alpha log(10) / (2 pi) r_thick / r_HR on coarse axes; the native blur on the others."""
    coarse = draw.spacing_mm > grid.spacing_mm * (1 + 1e-6)
    sigma = prior.sigma_factor * draw.thickness_mm / grid.spacing_mm
    return torch.where(coarse, sigma, prior.native_sigma_vox) * draw.jitter


def apply_acquisition(
    image: Tensor,
    draw: AcquisitionDraw,
    prior: AcquisitionPrior,
    grid: GridPrior,
    *,
    ghosts: GhostsDraw | None = None,
    noise: NoiseDraw | None = None,
) -> Tensor:
    """Blur, down-sample to the slices' spacing and interpolate back (Eqs. 24-26), all in one matrix an axis.

    Args:
        image: [B, C, X, Y, Z].
        ghosts: of motion, added to the blurred image's slices.
        noise: added to the slices before they are interpolated; the result is then clipped to [0, 1].
    Returns: the same shape. Anchored at voxel 0 as in the original, so that image and labels stay registered; beyond
        the last slice its value is repeated.
    """
    sigma = blur_sigma_vox(draw, prior, grid)
    matrices, up_matrices = [], []
    for axis, n in enumerate(image.shape[2:]):
        blur = gaussian_matrix(sigma[:, axis], n)
        up, down = _slices(draw.spacing_mm[:, axis] / grid.spacing_mm, n, prior.downsampling)
        matrix = up @ down @ blur
        matrices.append(matrix if ghosts is None else ghost_matrix(ghosts, axis, n) @ matrix)
        up_matrices.append(up)
    acquired = apply_separable(image, (matrices[0], matrices[1], matrices[2]))
    if noise is None:
        return acquired
    added = apply_separable(noise.noise, (up_matrices[0], up_matrices[1], up_matrices[2]))
    return torch.addcmul(acquired, noise.std.view(-1, 1, 1, 1, 1), added).clamp_(0, 1)


def _slices(factor: Tensor, n: int, downsampling: str) -> tuple[Tensor, Tensor]:
    """Up- and down-sampling of an axis of n voxels as [B, n, n]; slices ``factor`` voxels apart.

    The number of slices is n / factor, rounded down (reference 2.3 step 7), and differs between elements: the matrices
    are n x n with the unused slices never read.
    """
    count = (n / factor + 1e-4).floor().clamp(min=1)
    step = n / count
    nodes = torch.arange(n, device=factor.device, dtype=factor.dtype)
    down = nodes * step[:, None]
    if downsampling == "nearest":
        down = down.round()
    up = torch.minimum(nodes / step[:, None], count[:, None] - 1)
    return interpolation_matrix(up, n), interpolation_matrix(down, n)
