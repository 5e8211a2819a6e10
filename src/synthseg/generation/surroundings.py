"""What lies outside the brain: missing labels, cuts, voids, patches in the background (not in the paper).

The original's label maps once came with random patches in the air around the head, which made its networks robust to
odd backgrounds (reference 10.2); here they are smooth random fields, drawn anew for each pair.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from synthseg.generation.anatomy import AnatomyDraw, AnatomyTables
from synthseg.generation.bank import LabelBank
from synthseg.generation.config import GridPrior, MixturePrior, SurroundingsPrior
from synthseg.generation.deformation import coin, uniform
from synthseg.generation.separable import apply_separable, centered_positions, interpolation_matrix

_NOWHERE = 1e6  # mm or standard deviations: a plane or level that nothing lies beyond
_SOFTNESS = 0.2  # of a patch's edge, in standard deviations of its field


class SurroundingsDraw(NamedTuple):
    """What is missing or added."""

    dropped: Tensor  # [B, K] bool, by label index; labels of the brain are kept whatever it says
    normal: Tensor  # [B, 3] unit vector towards what is cut
    distance_mm: Tensor  # [B] of the plane from the brain's centre
    fields: Tensor  # [B, 2, x, y, z] of voids and of patches, on their nodes
    levels: Tensor  # [B, 2] above which there is a void, or a patch
    patch: Tensor  # [B, 2] mean and standard deviation, intensity units


def surroundings_nodes(prior: SurroundingsPrior, grid: GridPrior) -> tuple[int, ...]:
    """Nodes of the fields along each axis."""
    return tuple(max(math.ceil(n * grid.spacing_mm / prior.node_mm) + 1, 2) for n in grid.shape)


def draw_surroundings(
    prior: SurroundingsPrior, mixture: MixturePrior, grid: GridPrior, labels: int, batch: int, *, rng: torch.Generator
) -> SurroundingsDraw:
    """Draw all four effects, each for its share of the pairs.

    Cuts face downwards (the neck), forwards (the face) or between, and lean a little to a side.
    """
    device = rng.device
    dropped = torch.rand(batch, labels, generator=rng, device=device) < prior.drop_share
    dropped &= coin(batch, prior.drop_probability, rng=rng)[:, None]
    angle = uniform((batch,), 0.0, math.pi / 2, rng=rng)
    lean = 0.2 * torch.randn(batch, generator=rng, device=device)
    normal = torch.stack([lean, angle.sin(), -angle.cos()], 1)
    distance = uniform((batch,), *prior.cut_mm, rng=rng)
    levels = torch.stack([uniform((batch,), 0.6, 1.4, rng=rng), uniform((batch,), 0.0, 1.2, rng=rng)], 1)
    shown = torch.stack(
        [coin(batch, prior.void_probability, rng=rng), coin(batch, prior.patch_probability, rng=rng)], 1
    )
    patch = [uniform((batch,), *mixture.mean_range, rng=rng), uniform((batch,), *mixture.std_range, rng=rng)]
    return SurroundingsDraw(
        dropped=dropped,
        normal=normal / normal.norm(dim=1, keepdim=True),
        distance_mm=distance.masked_fill(~coin(batch, prior.cut_probability, rng=rng), _NOWHERE),
        fields=torch.randn(batch, 2, *surroundings_nodes(prior, grid), generator=rng, device=device),
        levels=levels.masked_fill(~shown, _NOWHERE),
        patch=torch.stack(patch, 1),
    )


def upsampled_fields(draw: SurroundingsDraw, grid: GridPrior) -> Tensor:
    """Fields of voids and patches on the pair's grid: [B, 2, X, Y, Z]."""
    x, y, z = (
        interpolation_matrix(centered_positions(n, (m - 1) / max(n - 1, 1), m, 1.0, device=draw.fields.device), m)[None]
        for n, m in zip(grid.shape, draw.fields.shape[2:], strict=True)
    )
    return apply_separable(draw.fields, (x, y, z))


def missing_places(
    draw: SurroundingsDraw, void: Tensor, anatomy: AnatomyDraw, bank: LabelBank, grid: GridPrior
) -> Tensor:
    """Where labels outside the brain are gone: [B, X, Y, Z] bool, of the finished (mirrored) pair.

    Args:
        void: [B, X, Y, Z], the voids' field.
    """
    center_mm = torch.zeros_like(anatomy.corner_mm)
    if grid.focus != "brain":  # positions count from the map's centre, not the brain's
        chosen = anatomy.map_index
        center_mm = (bank.center_vox[chosen] - (bank.shapes[chosen] - 1) / 2) * bank.spacing_mm[chosen]
    depth = -draw.distance_mm.view(-1, 1, 1, 1)
    for axis, n in enumerate(grid.shape):
        steps = torch.arange(n, device=void.device, dtype=torch.float32) * grid.spacing_mm
        line = (anatomy.corner_mm - center_mm)[:, axis, None] + steps
        if axis == 0:
            line = torch.where(anatomy.flip[:, None], line.flip(1), line)
        side = [-1, 1, 1, 1]
        side[axis + 1] = n
        depth = depth + (draw.normal[:, axis, None] * line).view(side)
    return (depth > 0) | (void > draw.levels[:, 0].view(-1, 1, 1, 1))


def entries_with_gaps(entries: Tensor, draw: SurroundingsDraw, tables: AnatomyTables) -> Tensor:
    """Two regions of a table of edited labels: outside what is missing, and within.

    Args:
        entries: [B, 2 K] label indices, of every label without and with a donor's lesion.
    Returns: [B, 2 * 2 K]; dropped labels are background in both, all labels outside the brain in the second.
    """
    outside = tables.extra_cerebral[entries]
    kept = entries.masked_fill(outside & draw.dropped.gather(1, entries), 0)
    return torch.cat([kept, entries.masked_fill(outside, 0)], 1)


def add_patches(
    means: Tensor, stds: Tensor, background: Tensor, field: Tensor, draw: SurroundingsDraw
) -> tuple[Tensor, Tensor]:
    """Lead the background's Gaussian over to the patches'.

    Args:
        means, stds: [B, 1, X, Y, Z]. background: [B, X, Y, Z] bool. field: [B, X, Y, Z].
    """
    level = draw.levels[:, 1].view(-1, 1, 1, 1)
    weight = (((field - level) / _SOFTNESS).sigmoid() * background)[:, None]
    mean, std = (value.view(-1, 1, 1, 1, 1) for value in draw.patch.unbind(1))
    return torch.lerp(means, mean, weight), torch.lerp(stds, std, weight)
