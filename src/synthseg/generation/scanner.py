"""What a scanner adds: the end of its field of view, its noise, ghosts of motion (not in the paper)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from synthseg.generation.config import FieldOfViewPrior, GhostsPrior, GridPrior, NoisePrior
from synthseg.generation.deformation import coin, uniform


class FieldOfViewDraw(NamedTuple):
    """What is cut off at each side, as a share of the axis."""

    cut: Tensor  # [B, 3, 2] low and high end, in 0..0.4


class NoiseDraw(NamedTuple):
    """White noise on the slices."""

    std: Tensor  # [B] of images in [0, 1]
    noise: Tensor  # [B, 1, X, Y, Z] standard normal; as many as there are slices are used along each axis


class GhostsDraw(NamedTuple):
    """Shifted copies along an axis."""

    axis: Tensor  # [B] int64
    copies: Tensor  # [B] int64: they lie n / copies voxels away
    strength: Tensor  # [B] share of the signal in them


def draw_field_of_view(prior: FieldOfViewPrior, batch: int, *, rng: torch.Generator) -> FieldOfViewDraw:
    """Each side is cut with the prior's probability, by U(0, max_share) of the axis."""
    cut = uniform((batch, 3, 2), 0.0, prior.max_share, rng=rng)
    cut = cut * (torch.rand(batch, 3, 2, generator=rng, device=rng.device) < prior.side_probability)
    return FieldOfViewDraw(cut * coin(batch, prior.probability, rng=rng).view(-1, 1, 1))


def field_of_view(draw: FieldOfViewDraw, shape: tuple[int, ...]) -> Tensor:
    """What the scanner has seen: [B, X, Y, Z] bool."""
    seen: Tensor | None = None
    for axis, n in enumerate(shape):
        center = (torch.arange(n, device=draw.cut.device) + 0.5) / n
        low, high = draw.cut[:, axis].unbind(1)
        inside = (center > low[:, None]) & (center < 1 - high[:, None])
        side = [-1, 1, 1, 1]
        side[axis + 1] = n
        seen = inside.view(side) if seen is None else seen & inside.view(side)
    assert seen is not None
    return seen


def draw_noise(prior: NoisePrior, grid: GridPrior, batch: int, *, rng: torch.Generator) -> NoiseDraw:
    """s ~ U(0, max_std) for the pairs that have it."""
    std = uniform((batch,), 0.0, prior.max_std, rng=rng) * coin(batch, prior.probability, rng=rng)
    return NoiseDraw(std, torch.randn(batch, 1, *grid.shape, generator=rng, device=rng.device))


def draw_ghosts(prior: GhostsPrior, batch: int, *, rng: torch.Generator) -> GhostsDraw:
    """Any axis, any number of copies, U(0, max_strength) for the pairs that have them."""
    return GhostsDraw(
        axis=torch.randint(3, (batch,), generator=rng, device=rng.device),
        copies=torch.randint(2, prior.max_copies + 1, (batch,), generator=rng, device=rng.device),
        strength=uniform((batch,), 0.0, prior.max_strength, rng=rng) * coin(batch, prior.probability, rng=rng),
    )


def ghost_matrix(draw: GhostsDraw, axis: int, n: int) -> Tensor:
    """Ghosts along one axis of n voxels: [B, n, n], the identity on the others.

    A circulant matrix whose rows and columns sum to 1: the signal is moved, not made, and a constant stays one.
    """
    nodes = torch.arange(n, device=draw.axis.device)
    distance = (nodes[:, None] - nodes) % n
    shift = (n / draw.copies).round().long()[:, None, None]
    share = (draw.strength * (draw.axis == axis))[:, None, None]
    copies = (distance == shift).float() + (distance == n - shift).float()
    return (1 - share) * (distance == 0).float() + share / 2 * copies
