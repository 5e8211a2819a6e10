"""Label maps read through tables: what each voxel of a pair is, and which Gaussian it has, a slab of planes at a time.

The edits of a label (lesions, stripping, partners) depend on the label, on whether a donor's lesion lies there, and on
a region number that optional stages give a voxel. They are therefore one table an element, whose values may be labels
as well as means and standard deviations; averaging the latter over positions within a voxel gives partial volume.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from synthseg.generation.anatomy import AnatomyDraw, map_center, sample_labels
from synthseg.generation.bank import LabelBank
from synthseg.generation.config import GridPrior
from synthseg.generation.deformation import Placement, positions_mm
from synthseg.generation.intensity import MixtureDraw

SLAB_VOXELS = 2**18  # on a CPU: positions and labels of a slab stay in the cache


class Scene(NamedTuple):
    """What is read, and where."""

    bank: LabelBank
    grid: GridPrior
    anatomy: AnatomyDraw
    where: Sequence[Placement]  # their sum is where voxels come from; mirrored elements read mirrored positions
    lesion: Tensor | None  # [K] bool: labels of the donor map that are pasted; None where the prior never pastes


def read_tables(
    scene: Scene,
    tables: Sequence[Tensor],
    *,
    offsets_mm: Tensor | None = None,
    regions: Tensor | None = None,
) -> list[Tensor]:
    """Table values at every voxel, averaged over positions within it.

    Args:
        tables: [B, R 2 K] each: by region, donor's lesion or not, and label.
        offsets_mm: [B, P, 3] positions relative to the voxel's, in the map's frame; only its centre without.
        regions: [B, X, Y, Z] int32 in 0..R-1; 0 everywhere without.
    Returns: [B, X, Y, Z] each, in the tables' dtype (floating point with ``offsets_mm``).
    """
    bank, grid, anatomy, where, lesion = scene
    batch, size = tables[0].shape
    labels = len(bank.protocol.labels)
    if lesion is not None and bank.device.type == "cpu" and not bool((anatomy.lesions & anatomy.paste).any()):
        lesion = None  # no element takes lesions; a GPU looks for them rather than wait for the answer
    shifts = [None] if offsets_mm is None else list(offsets_mm.unbind(1))
    first = torch.arange(batch, device=bank.device, dtype=torch.int32).view(-1, 1, 1, 1) * size
    results = [torch.empty(batch, *grid.shape, dtype=table.dtype, device=bank.device) for table in tables]
    for planes in _slabs(grid, batch, bank.device):
        position = sum_positions(where, planes)
        start = first if regions is None else first + regions[:, planes] * (2 * labels)
        slabs = [result[:, planes] for result in results]
        for number, shift in enumerate(shifts):
            entry = start + _look(scene, anatomy.map_index, position, shift)
            if lesion is not None:
                donor = _look(scene, anatomy.donor_index, position, shift)
                entry += (lesion.int() * labels).index_select(0, donor.flatten().int()).view_as(entry)
            for slab, table in zip(slabs, tables, strict=True):
                values = table.flatten().index_select(0, entry.flatten()).view_as(entry)
                _ = slab.add_(values) if number else slab.copy_(values)
        if len(shifts) > 1:
            for slab in slabs:
                slab.div_(len(shifts))
    return results


def sum_positions(where: Sequence[Placement], planes: slice = slice(None)) -> list[Tensor]:
    """Positions of some x planes, in mm from the map's centre: three [B, x, Y, Z]."""
    position = positions_mm(where[0], planes)
    for part in where[1:]:
        position += positions_mm(part, planes)
    return list(position.unbind(1))


def gaussian_tables(
    entries: Tensor, classes: Tensor, mixture: MixtureDraw, offsets: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every entry of a table of labels.

    Args:
        entries: [B, R 2 K] label indices.
        classes: [K] int64, each label's class.
        offsets: [B, C, K] what the means gain in each of C clusters.
    Returns: two [B, C R 2 K] (C = 1 without offsets), cluster by cluster.
    """
    means, stds = (values.gather(1, classes[entries]) for values in (mixture.means, mixture.stds))
    if offsets is None:
        return means, stds
    clusters = offsets.shape[1]
    gained = offsets.gather(2, entries[:, None].expand(-1, clusters, -1))
    return (means[:, None] + gained).flatten(1), stds.repeat(1, clusters)


def _look(scene: Scene, chosen: Tensor, position: list[Tensor], shift_mm: Tensor | None) -> Tensor:
    center = map_center(scene.bank, chosen, scene.grid)
    if shift_mm is not None:
        center = center + shift_mm / scene.bank.spacing_mm[chosen]
    return sample_labels(scene.bank, chosen, position, center)


def _slabs(grid: GridPrior, batch: int, device: torch.device) -> Iterator[slice]:
    """All x planes, on a CPU some at a time; a GPU gets all at once, in few launches."""
    planes = grid.shape[0]
    if device.type == "cpu":
        planes = max(SLAB_VOXELS // (batch * grid.shape[1] * grid.shape[2]), 1)
    for first in range(0, grid.shape[0], planes):
        yield slice(first, min(first + planes, grid.shape[0]))
