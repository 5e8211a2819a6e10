"""Spatial deformation: random affine and diffeomorphic stationary velocity field (Billot et al. 2023, Eqs. 1-10)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from synthseg.generation.config import DeformationPrior, GridPrior
from synthseg.generation.separable import apply_separable, centered_positions, interpolation_matrix
from synthseg.volumes.grid import sample_linear


class DeformationDraw(NamedTuple):
    """Parameters of the pull-back ``x -> affine @ (x + u(x)) + translation`` in mm from the map's centre."""

    affine: Tensor  # [B, 3, 3]
    translation_mm: Tensor  # [B, 3]
    velocity_mm: Tensor  # [B, 3, x, y, z] nodes of the stationary velocity field


def uniform(shape: tuple[int, ...], low: float | Tensor, high: float | Tensor, *, rng: torch.Generator) -> Tensor:
    """U(low, high) of a shape, on the generator's device."""
    return low + (high - low) * torch.rand(shape, generator=rng, device=rng.device)


def coin(batch: int, probability: float, *, rng: torch.Generator) -> Tensor:
    """[batch] bool, true with a probability."""
    return torch.rand(batch, generator=rng, device=rng.device) < probability


def velocity_nodes(prior: DeformationPrior, grid: GridPrior) -> tuple[int, ...]:
    """Nodes of the velocity field along each axis."""
    return tuple(math.ceil(n * grid.spacing_mm / prior.svf_node_mm) + 1 for n in grid.shape)


def draw_deformation(prior: DeformationPrior, grid: GridPrior, batch: int, *, rng: torch.Generator) -> DeformationDraw:
    """Draw ``batch`` deformations; every element has its own parameters (the original shares sigma in a batch)."""
    scaling = uniform((batch, 3), 1 - prior.scaling, 1 + prior.scaling, rng=rng)
    rotation = uniform((batch, 3), -prior.rotation_deg, prior.rotation_deg, rng=rng)
    shearing = uniform((batch, 6), -prior.shearing, prior.shearing, rng=rng)
    nodes = velocity_nodes(prior, grid)
    sigma = uniform((batch, 1, 1, 1, 1), 0.0, prior.svf_max_std_mm, rng=rng)
    return DeformationDraw(
        affine=compose_affine(scaling, shearing, rotation),
        translation_mm=uniform((batch, 3), -prior.translation_mm, prior.translation_mm, rng=rng),
        velocity_mm=sigma * torch.randn(batch, 3, *nodes, generator=rng, device=rng.device),
    )


def compose_affine(scaling: Tensor, shearing: Tensor, rotation_deg: Tensor) -> Tensor:
    """Scale @ Shear @ Rx @ Ry @ Rz.

    Args:
        scaling: [B, 3] factors. shearing: [B, 6] off-diagonal entries, row by row. rotation_deg: [B, 3].
    Returns: [B, 3, 3].
    Source: reference 2.3 step 1; test vectors in 11.5.
    """
    batch = len(scaling)
    shear = torch.eye(3, device=scaling.device, dtype=scaling.dtype).repeat(batch, 1, 1)
    rows, columns = [0, 0, 1, 1, 2, 2], [1, 2, 0, 2, 0, 1]
    shear[:, rows, columns] = shearing
    cos, sin = torch.deg2rad(rotation_deg).cos().unbind(1), torch.deg2rad(rotation_deg).sin().unbind(1)
    turns = []
    for axis, (i, j) in enumerate([(1, 2), (2, 0), (0, 1)]):
        turn = torch.eye(3, device=scaling.device, dtype=scaling.dtype).repeat(batch, 1, 1)
        turn[:, i, i] = turn[:, j, j] = cos[axis]
        turn[:, i, j], turn[:, j, i] = -sin[axis], sin[axis]
        turns.append(turn)
    return torch.diag_embed(scaling) @ shear @ turns[0] @ turns[1] @ turns[2]


def integrate_velocity(velocity: Tensor, *, squarings: int, gain: float = 1.0) -> Tensor:
    """Scaling and squaring: the displacement of a diffeomorphism.

    Args:
        velocity: [B, 3, x, y, z] in voxels of its own grid.
        squarings: 2^squarings steps.
        gain: factor on displacements while they are composed (1; the original's half-size grid amounts to 2).
    Returns: [B, 3, x, y, z] displacement in voxels, borders clamped.
    Source: Eqs. 8-9 (Arsigny et al. 2006); reference 2.3 step 1.
    """
    displacement = velocity / 2**squarings
    axes = [torch.arange(n, device=velocity.device, dtype=velocity.dtype) for n in velocity.shape[2:]]
    identity = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    for _ in range(squarings):
        where = identity + gain * displacement.permute(0, 2, 3, 4, 1)
        displacement = displacement + sample_linear(displacement, where)
    return displacement


def displacement_field(draw: DeformationDraw, prior: DeformationPrior, grid: GridPrior) -> Tensor:
    """The drawn velocity, integrated, on the pair's grid: [B, 3, X, Y, Z] in mm."""
    device = draw.velocity_mm.device
    coarse = [max(math.ceil(n * grid.spacing_mm / prior.svf_step_mm), 2) for n in grid.shape]
    to_coarse = tuple(
        interpolation_matrix(
            centered_positions(n, prior.svf_step_mm, n_nodes, prior.svf_node_mm, device=device), n_nodes
        )[None]
        for n, n_nodes in zip(coarse, draw.velocity_mm.shape[2:], strict=True)
    )
    velocity = apply_separable(draw.velocity_mm / prior.svf_step_mm, to_coarse)  # type: ignore[arg-type]
    displacement = integrate_velocity(velocity, squarings=prior.squarings, gain=prior.svf_gain)
    to_fine = tuple(
        interpolation_matrix(
            centered_positions(n, grid.spacing_mm, n_coarse, prior.svf_step_mm, device=device), n_coarse
        )[None]
        for n, n_coarse in zip(grid.shape, coarse, strict=True)
    )
    return apply_separable(displacement, to_fine) * prior.svf_step_mm  # type: ignore[arg-type]


def pull_back(draw: DeformationDraw, displacement_mm: Tensor, corner_mm: Tensor, grid: GridPrior) -> list[Tensor]:
    """Where each voxel of the pair comes from.

    Args:
        draw: the affine part.
        displacement_mm: [B, 3, X, Y, Z], added first.
        corner_mm: [B, 3] position of voxel (0, 0, 0) relative to the map's centre, before deformation.
        grid: shape and spacing.
    Returns: three [B, X, Y, Z] tensors, in mm from the map's centre.
    Source: Eq. 10: displacement first, affine second; reference 2.3 step 1.
    """
    device = corner_mm.device
    steps = [torch.arange(n, device=device, dtype=torch.float32) * grid.spacing_mm for n in grid.shape]
    lines = [
        (corner_mm[:, axis, None] + step).reshape(len(corner_mm), *[len(step) if a == axis else 1 for a in range(3)])
        for axis, step in enumerate(steps)
    ]
    moved = [line + displacement_mm[:, axis] for axis, line in enumerate(lines)]
    matrix = draw.affine[..., None, None, None]
    shift = draw.translation_mm[..., None, None, None]
    return [
        shift[:, row] + matrix[:, row, 0] * moved[0] + matrix[:, row, 1] * moved[1] + matrix[:, row, 2] * moved[2]
        for row in range(3)
    ]
