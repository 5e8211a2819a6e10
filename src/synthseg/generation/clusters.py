"""Sub-regions of slightly different intensity within each label (not in the paper)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from synthseg.generation.config import ClustersPrior, GridPrior
from synthseg.generation.deformation import coin, uniform
from synthseg.generation.separable import apply_separable, centered_positions, interpolation_matrix

REGIONS = 4  # sign patterns of two fields
# How a label's clusters lie in the four: split by one field, by the other, by both into three, by their product.
_SPLITS = ((0, 1, 0, 1), (0, 0, 1, 1), (0, 1, 2, 2), (0, 1, 1, 0))


class ClustersDraw(NamedTuple):
    """Two random fields that cut space into regions, and what each label's mean gains in each region."""

    fields: Tensor  # [B, 2, x, y, z] on their nodes
    offsets: Tensor  # [B, 4, K] intensity units, by region and label index; 0 for the background


def cluster_nodes(prior: ClustersPrior, grid: GridPrior) -> tuple[int, ...]:
    """Nodes of the fields along each axis."""
    return tuple(max(math.ceil(n * grid.spacing_mm / prior.node_mm) + 1, 2) for n in grid.shape)


def draw_clusters(
    prior: ClustersPrior, grid: GridPrior, labels: int, batch: int, *, rng: torch.Generator
) -> ClustersDraw:
    """Draw fields, each label's way to be split by them, and its clusters' offsets ~ N(0, s^2).

    Two fields and four ways to combine them let neighbouring labels change at different places.
    """
    device = rng.device
    fields = torch.randn(batch, 2, *cluster_nodes(prior, grid), generator=rng, device=device)
    split = torch.tensor(_SPLITS, device=device)[
        torch.randint(len(_SPLITS), (batch, labels), generator=rng, device=device)
    ]
    std = uniform((batch, 1, 1), 0.0, prior.max_std, rng=rng) * coin(batch, prior.probability, rng=rng).view(-1, 1, 1)
    offsets = (std * torch.randn(batch, labels, 3, generator=rng, device=device)).gather(2, split)
    offsets[:, 0] = 0
    return ClustersDraw(fields, offsets.transpose(1, 2).contiguous())


def cluster_regions(draw: ClustersDraw, grid: GridPrior) -> Tensor:
    """Which region each voxel lies in: [B, X, Y, Z] int32, 0 to 3."""
    matrices = tuple(
        interpolation_matrix(centered_positions(n, (m - 1) / max(n - 1, 1), m, 1.0, device=draw.fields.device), m)[None]
        for n, m in zip(grid.shape, draw.fields.shape[2:], strict=True)
    )
    signs = (apply_separable(draw.fields, matrices) > 0).int()  # type: ignore[arg-type]
    return signs[:, 0] + 2 * signs[:, 1]
