"""Damage to label maps, so that they look like a network's output on a poor scan. Pure functions of a generator.

Sources: the guide of S2 in reference 5.5, the input of D in reference 5.6; blobs are ours.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from synthseg.generation.config import DeformationPrior, GridPrior
from synthseg.generation.deformation import coin, draw_deformation, place, positions_mm, uniform
from synthseg.generation.separable import apply_separable, centered_positions, interpolation_matrix
from synthseg.networks.hierarchy import one_hot
from synthseg.training.task_config import DamagePrior
from synthseg.volumes.grid import sample_nearest


def damaged_guide(groups: Tensor, n_groups: int, prior: DamagePrior, grid: GridPrior, rng: torch.Generator) -> Tensor:
    """One element's guide for S2 (reference 5.5): moved a little, then each group grown or shrunk by one voxel.

    Args:
        groups: [X, Y, Z] int64.
    Returns: [n_groups, X, Y, Z] float32; groups may overlap and leave holes, as in the original.
    """
    if bool(coin(1, prior.move_probability, rng=rng)):
        groups = moved(groups, prior, grid, rng)
    channels = one_hot(groups[None], n_groups)[0]
    choice = uniform((n_groups,), 0.0, 1.0, rng=rng)
    half = prior.morphology_probability / 2
    for group in range(n_groups):
        if choice[group] < half:
            channels[group] = dilated(channels[group])
        elif choice[group] < 2 * half:
            channels[group] = 1 - dilated(1 - channels[group])
    return channels


def damaged_groups(groups: Tensor, n_groups: int, prior: DamagePrior, grid: GridPrior, rng: torch.Generator) -> Tensor:
    """One element's input for D: blobs of other groups, and sometimes the whole foreground eroded.

    Args:
        groups: [X, Y, Z] int64: the truth, or a network's output.
    Returns: [X, Y, Z] int64.
    Source: erosion from reference 5.6, whose dilation has no effect there and is left out.
    """
    if bool(coin(1, prior.blob_probability, rng=rng)):
        groups = with_blobs(groups, n_groups, prior, grid, rng)
    if bool(coin(1, prior.erosion_probability, rng=rng)):
        groups = groups * eroded(groups > 0, prior.erosion_mm / grid.spacing_mm)
    return groups


def moved(groups: Tensor, prior: DamagePrior, grid: GridPrior, rng: torch.Generator) -> Tensor:
    """A small random affine and diffeomorphic deformation, nearest neighbour: [X, Y, Z] -> the same."""
    deformation = DeformationPrior(
        scaling=prior.scaling,
        rotation_deg=prior.rotation_deg,
        shearing=prior.shearing,
        translation_mm=prior.translation_mm,
        svf_max_std_mm=prior.svf_max_std_mm,
    )
    draw = draw_deformation(deformation, grid, 1, rng=rng)
    middle = torch.tensor([(n - 1) / 2 for n in grid.shape], device=groups.device)
    where = place(draw, deformation, (-middle * grid.spacing_mm)[None], grid)
    voxels = positions_mm(where).movedim(1, -1) / grid.spacing_mm + middle
    return sample_nearest(groups[None], voxels)[0]


def dilated(mask: Tensor) -> Tensor:
    """A mask [X, Y, Z] of 0 and 1, grown by its six face neighbours (the cross that reference 5.5 ends up with)."""
    grown = mask[None, None]
    along = [functional.max_pool3d(grown, k, 1, tuple(n // 2 for n in k)) for k in ((3, 1, 1), (1, 3, 1), (1, 1, 3))]
    return torch.stack(along).amax(0)[0, 0]


def eroded(mask: Tensor, radius_vox: float) -> Tensor:
    """A boolean mask [X, Y, Z] without the voxels closer than about ``radius_vox`` to its outside (a ball)."""
    reach = math.floor(radius_vox)
    if reach < 1:
        return mask
    axis = torch.arange(-reach, reach + 1, device=mask.device)
    ball = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2) <= radius_vox**2
    # A convolution counts the outside voxels within the ball; beyond the array is outside too.
    outside = functional.pad((~mask).float()[None, None], (reach,) * 6, value=1.0)
    return functional.conv3d(outside, ball.float()[None, None])[0, 0] < 0.5


def with_blobs(groups: Tensor, n_groups: int, prior: DamagePrior, grid: GridPrior, rng: torch.Generator) -> Tensor:
    """Smooth regions, at the peaks of a random field, each take a group (background included): [X, Y, Z] int64."""
    device = groups.device
    nodes = [math.ceil(n * grid.spacing_mm / prior.blob_node_mm) + 1 for n in grid.shape]
    noise = torch.randn(1, 2, *nodes, generator=rng, device=device)
    matrices = [
        interpolation_matrix(centered_positions(n, grid.spacing_mm, m, prior.blob_node_mm, device=device), m)[None]
        for n, m in zip(grid.shape, nodes, strict=True)
    ]
    field, kind = apply_separable(noise, (matrices[0], matrices[1], matrices[2]))[0]
    share = float(uniform((1,), 0.0, prior.blob_share, rng=rng))
    level = torch.quantile(field.flatten()[:: max(1, field.numel() // 100_000)], 1 - share)
    # Which group: a second smooth field, cut into bands of equal probability, in an order of its own each time.
    order = torch.randperm(n_groups, generator=rng, device=device)
    band = (torch.special.ndtr(kind / kind.std().clamp(min=1e-6)) * n_groups).long().clamp_(0, n_groups - 1)
    return torch.where(field > level, order[band], groups)
