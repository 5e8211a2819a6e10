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


def coarse_displacement(draw: DeformationDraw, prior: DeformationPrior, grid: GridPrior) -> Tensor:
    """The drawn velocity, integrated, on the grid it is integrated on: [B, 3, x, y, z] in mm."""
    device = draw.velocity_mm.device
    to_coarse = tuple(
        interpolation_matrix(
            centered_positions(n, prior.svf_step_mm, n_nodes, prior.svf_node_mm, device=device), n_nodes
        )[None]
        for n, n_nodes in zip(_coarse_shape(prior, grid), draw.velocity_mm.shape[2:], strict=True)
    )
    velocity = apply_separable(draw.velocity_mm / prior.svf_step_mm, to_coarse)  # type: ignore[arg-type]
    return integrate_velocity(velocity, squarings=prior.squarings, gain=prior.svf_gain) * prior.svf_step_mm


def refining_matrices(
    prior: DeformationPrior, grid: GridPrior, *, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """From the integration grid to the pair's, for :func:`apply_separable`: [1, n, n_coarse] an axis."""
    along_x, along_y, along_z = (
        interpolation_matrix(
            centered_positions(n, grid.spacing_mm, n_coarse, prior.svf_step_mm, device=device), n_coarse
        )[None]
        for n, n_coarse in zip(grid.shape, _coarse_shape(prior, grid), strict=True)
    )
    return along_x, along_y, along_z


def _coarse_shape(prior: DeformationPrior, grid: GridPrior) -> list[int]:
    return [max(math.ceil(n * grid.spacing_mm / prior.svf_step_mm), 2) for n in grid.shape]


def displacement_field(draw: DeformationDraw, prior: DeformationPrior, grid: GridPrior) -> Tensor:
    """The drawn velocity, integrated, on the pair's grid: [B, 3, X, Y, Z] in mm."""
    coarse = coarse_displacement(draw, prior, grid)
    return apply_separable(coarse, refining_matrices(prior, grid, device=coarse.device))


class Placement(NamedTuple):
    """Where the voxels of a pair come from, as sums of small parts in mm from the map's centre."""

    coarse: Tensor  # [B, 3, x, y, z] displacement after the affine, on the integration grid
    refine: tuple[Tensor, Tensor, Tensor]  # [B, X, x], [1, Y, y], [1, Z, z]
    origin: Tensor  # [B, 3] of voxel (0, 0, 0)
    lines: tuple[Tensor, Tensor, Tensor]  # [B, 3, n] each: what the affine adds along an axis


def place(
    draw: DeformationDraw,
    prior: DeformationPrior,
    corner_mm: Tensor,
    grid: GridPrior,
    *,
    flip: Tensor | None = None,
) -> Placement:
    """The pull-back of a draw, ready to be evaluated anywhere.

    An affine of an interpolated field is the interpolation of the affine field: the affine is applied on the coarse
    grid, and each voxel adds a constant and a term an axis.

    Args:
        corner_mm: [B, 3] position of voxel (0, 0, 0) relative to the map's centre, before deformation.
        flip: [B] bool, elements whose x axis is read backwards.
    Source: Eq. 10: displacement first, affine second; reference 2.3 step 1.
    """
    coarse = coarse_displacement(draw, prior, grid)
    matrix = draw.affine
    along_x, along_y, along_z = refining_matrices(prior, grid, device=coarse.device)
    steps = [torch.arange(n, device=coarse.device, dtype=torch.float32) * grid.spacing_mm for n in grid.shape]
    turned = torch.zeros(len(corner_mm), 1, dtype=torch.bool, device=coarse.device) if flip is None else flip[:, None]
    first = torch.where(turned, steps[0].flip(0), steps[0])
    lines = [first, steps[1].expand(len(first), -1), steps[2].expand(len(first), -1)]
    return Placement(
        # elementwise, not a matrix product: the few terms need full precision whatever the products' setting is
        coarse=(matrix[..., None, None, None] * coarse[:, None]).sum(2),
        refine=(torch.where(turned[..., None], along_x.flip(1), along_x), along_y, along_z),
        origin=draw.translation_mm + (matrix * corner_mm[:, None]).sum(2),
        lines=(
            matrix[:, :, 0, None] * lines[0][:, None],
            matrix[:, :, 1, None] * lines[1][:, None],
            matrix[:, :, 2, None] * lines[2][:, None],
        ),
    )


def positions_mm(where: Placement, planes: slice = slice(None)) -> Tensor:
    """Positions of some x planes: [B, 3, x, Y, Z] in mm from the map's centre."""
    batch, _, n_x, n_y, n_z = where.coarse.shape
    with torch.autocast(where.coarse.device.type, enabled=False):
        along_x = where.refine[0][:, planes]
        slab = torch.matmul(along_x[:, None], where.coarse.reshape(batch, 3, n_x, n_y * n_z))
        slab = torch.matmul(where.refine[1][:, None, None], slab.view(batch, 3, -1, n_y, n_z))
        slab = torch.matmul(slab, where.refine[2][:, None, None].transpose(-1, -2))
    start = where.origin[:, :, None] + where.lines[0][:, :, planes]
    slab += (start[..., None] + where.lines[1][:, :, None])[..., None]
    slab += where.lines[2][:, :, None, None]
    return slab
