"""Wider or narrower ventricles and sulci, larger or smaller heads (not in the paper).

Displacements that follow the labels. The gradient of a smoothed mask points into its structure, across its border;
reading labels a little further along it shows the structure wider, against it narrower. For a mask smoothed with a
Gaussian of standard deviation s, the field a s sqrt(2 pi) grad moves a flat border by a, and none of its derivatives
exceeds 1.22 a / s, whatever the mask (a Gaussian's second derivative has that much on either side of zero).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from synthseg.generation.anatomy import AnatomyDraw, map_center, sample_labels
from synthseg.generation.bank import LabelBank
from synthseg.generation.config import GridPrior, MorphologyPrior
from synthseg.generation.deformation import Placement, coin, integrate_velocity, positions_mm, uniform
from synthseg.generation.roles import TissueTables
from synthseg.generation.separable import apply_separable, gaussian_matrix, interpolation_matrix
from synthseg.volumes.grid import sample_linear

_FINE_MM, _COARSE_MM = 2.0, 4.0  # grids of the sulci's and the ventricles' fields, in whole voxels of the pair's
_SQUARINGS = 3  # 8 steps of an eighth of at most 1.5 standard deviations each: none folds, nor all together
_PEAK = math.sqrt(2 * math.pi)


class MorphologyDraw(NamedTuple):
    """By how much; 0, 0 and 1 leave an element as it is."""

    ventricles_mm: Tensor  # [B] outward movement of a ventricle's wall; negative narrows
    sulci_mm: Tensor  # [B] inward movement of the cortex's outer border; negative narrows the sulci
    size: Tensor  # [B] factor on the head's size


def draw_morphology(prior: MorphologyPrior, batch: int, *, rng: torch.Generator) -> MorphologyDraw:
    """Uniform amounts for the pairs that are changed; a size for all of them."""
    chosen = coin(batch, prior.probability, rng=rng)
    return MorphologyDraw(
        ventricles_mm=uniform((batch,), *prior.ventricles_mm, rng=rng) * chosen,
        sulci_mm=uniform((batch,), *prior.sulci_mm, rng=rng) * chosen,
        size=uniform((batch,), *prior.size_range, rng=rng),
    )


def morphology_placement(
    draw: MorphologyDraw,
    prior: MorphologyPrior,
    where: Placement,
    bank: LabelBank,
    anatomy: AnatomyDraw,
    tissues: TissueTables,
    grid: GridPrior,
) -> Placement:
    """What is to be added to a pair's positions, in mm of the label map.

    Args:
        where: the pair's positions before, mirrored as the pair is.
        tissues: which labels are ventricles, CSF and brain.
    """
    fine = max(min(round(_FINE_MM / grid.spacing_mm), min(grid.shape) // 4), 1)
    nodes = Placement(where.coarse, _every(where.refine, fine, 1), where.origin, _every(where.lines, fine, 2))
    position = positions_mm(nodes)
    center = map_center(bank, anatomy.map_index, grid)
    labels = sample_labels(bank, anatomy.map_index, list(position.unbind(1)), center)
    step_mm = fine * grid.spacing_mm
    # The positions' derivatives, a millimetre of each axis: of the affine part alone.
    slopes = [(line[:, :, 1] - line[:, :, 0])[..., None, None, None] / grid.spacing_mm for line in where.lines]
    flow_mm = ventricle_flow(draw.ventricles_mm, tissues.of(labels, "ventricle"), prior, step_mm)
    moved = _followed(flow_mm, position, nodes, slopes, step_mm)
    moved = moved * (draw.ventricles_mm != 0).view(-1, 1, 1, 1, 1)  # exactly as it was, not within rounding
    if prior.sulci_mm != (0, 0):
        field = sulcal_field(draw.sulci_mm, tissues.of(labels, "csf"), tissues.of(labels, "brain"), prior, step_mm)
        for axis, slope in enumerate(slopes):  # without the smooth displacement's stretch: it is a millimetre at most
            moved = torch.addcmul(moved, field[:, axis : axis + 1], slope)
    refine = [
        interpolation_matrix(torch.arange(n, device=position.device) / fine, m)[None]
        for n, m in zip(grid.shape, position.shape[2:], strict=True)
    ]
    return Placement(
        coarse=moved,
        refine=(refine[0], refine[1], refine[2]),
        origin=torch.zeros_like(where.origin),
        lines=tuple(torch.zeros_like(line) for line in where.lines),  # type: ignore[arg-type]
    )


def ventricle_flow(amount_mm: Tensor, mask: Tensor, prior: MorphologyPrior, step_mm: float) -> Tensor:
    """Displacement of the pair's voxels that widens the ventricles: a stationary velocity field's, integrated.

    Args:
        amount_mm: [B]. mask: [B, 1, x, y, z] share of ventricle at nodes ``step_mm`` apart.
    Returns: [B, 3, x', y', z'] mm, at every n-th of these nodes.
    """
    sizes = mask.shape[2:]
    stride = _stride(sizes, step_mm)
    sigma = mask.new_tensor([prior.ventricles_sigma_mm / step_mm])
    smooth = [gaussian_matrix(sigma, n)[:, ::stride] for n in sizes]
    share = apply_separable(mask, (smooth[0], smooth[1], smooth[2]))
    coarse_mm = stride * step_mm
    scale = amount_mm.view(-1, 1, 1, 1, 1) * (prior.ventricles_sigma_mm * _PEAK / coarse_mm**2)
    return integrate_velocity(scale * _gradient(share), squarings=_SQUARINGS) * coarse_mm


def _followed(flow_mm: Tensor, position: Tensor, nodes: Placement, slopes: list[Tensor], step_mm: float) -> Tensor:
    """How positions [B, 3, x, y, z] change when each is read where a coarser flow leads: in mm of the label map.

    The affine part of the positions goes on beyond the borders; the smooth rest is interpolated, and ends there.
    """
    sizes, coarse = position.shape[2:], flow_mm.shape[2:]
    stride = _stride(sizes, step_mm)
    lines = _every(nodes.lines, stride, 2)
    straight = nodes.origin[:, :, None, None, None] + lines[0][..., None, None]
    straight = straight + lines[1][:, :, None, :, None] + lines[2][:, :, None, None]
    bend = position[..., ::stride, ::stride, ::stride] - straight
    axes = [torch.arange(n, device=bend.device, dtype=bend.dtype) for n in coarse]
    there = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1) + flow_mm.permute(0, 2, 3, 4, 1) / (stride * step_mm)
    change = sample_linear(bend, there) - bend
    for axis, slope in enumerate(slopes):
        change = torch.addcmul(change, flow_mm[:, axis : axis + 1], slope)
    back = [
        interpolation_matrix(torch.arange(n, device=bend.device) / stride, m)[None]
        for n, m in zip(sizes, coarse, strict=True)
    ]
    return apply_separable(change, (back[0], back[1], back[2]))


def _stride(sizes: Sequence[int], step_mm: float) -> int:
    """Nodes of the sulci's grid for one of the ventricles'."""
    return max(min(round(_COARSE_MM / step_mm), min(sizes) // 2), 1)


def sulcal_field(amount_mm: Tensor, csf: Tensor, brain: Tensor, prior: MorphologyPrior, step_mm: float) -> Tensor:
    """Displacement that widens the CSF around the brain at the brain's expense.

    Args:
        amount_mm: [B]. csf, brain: [B, 1, x, y, z] share of each at nodes ``step_mm`` apart.
    Returns: [B, 3, x, y, z] mm. It fades out across the CSF, so that the skull stays.
    """
    sigma = csf.new_tensor([prior.sulci_sigma_mm / step_mm])
    smooth = [gaussian_matrix(sigma, n) for n in csf.shape[2:]]
    shares = apply_separable(torch.cat([csf, brain], 1), (smooth[0], smooth[1], smooth[2]))
    scale = amount_mm.view(-1, 1, 1, 1, 1) * (prior.sulci_sigma_mm * _PEAK / step_mm)
    return scale * _gradient(shares[:, :1]) * (2 * shares[:, 1:]).clamp_(max=1)


def _gradient(field: Tensor) -> Tensor:
    """[B, 1, x, y, z] to [B, 3, x, y, z], a node: central differences, one-sided at the ends."""
    return torch.cat(torch.gradient(field, dim=(2, 3, 4)), 1)


def _every(parts: tuple[Tensor, Tensor, Tensor], step: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Each ``step``-th row along a dimension."""
    x, y, z = (part[(slice(None),) * dim + (slice(None, None, step),)] for part in parts)
    return x, y, z
