"""Partial volume: what a voxel shows where several tissues meet in it (not in the paper)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from synthseg.generation.config import PartialVolumePrior
from synthseg.generation.deformation import Placement, coin, uniform

# The eight octants of a voxel are four pairs of opposite ones; these are one of each.
_OCTANTS = ((1.0, 1.0, 1.0), (1.0, 1.0, -1.0), (1.0, -1.0, 1.0), (-1.0, 1.0, 1.0))


class PartialVolumeDraw(NamedTuple):
    """Where in a voxel labels are looked up, the same for all voxels of an element."""

    offsets_vox: Tensor  # [B, P, 3] from the voxel's centre, in -0.5..0.5; all 0 where the stage is off


def draw_partial_volume(prior: PartialVolumePrior, batch: int, *, rng: torch.Generator) -> PartialVolumeDraw:
    """Draw positions: each in another octant of the voxel, each with its mirror image through the centre.

    Mirrored, they leave borders where the target has them; over many draws they fill the voxel evenly.
    """
    pairs = prior.positions // 2
    chosen = torch.rand(batch, 4, generator=rng, device=rng.device).argsort(1)[:, :pairs]
    half = torch.tensor(_OCTANTS, device=rng.device)[chosen] * uniform((batch, pairs, 3), 0.0, 0.5, rng=rng)
    half = half * coin(batch, prior.probability, rng=rng).view(-1, 1, 1)
    return PartialVolumeDraw(torch.cat([half, -half], 1))


def offsets_mm(draw: PartialVolumeDraw, where: Placement) -> Tensor:
    """The positions' offsets in the label map: [B, P, 3].

    Args:
        where: the affine part is used; the smooth displacement's own stretch within one voxel is left out.
    """
    steps = torch.stack([line[:, :, 1] - line[:, :, 0] for line in where.lines], 1)  # [B, 3, 3]: mm a voxel, by axis
    return (draw.offsets_vox[..., None] * steps[:, None]).sum(2)
