"""A probabilistic atlas of label maps: where each structure is, after the maps were brought onto each other.

Source: the prior of Bayesian brain segmentation (Ashburner & Friston 2005; Puonti et al. 2016), here on a plain voxel
grid in the place of a deformable mesh.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from synthseg.generation.bank import LabelBank
from synthseg.labels.protocol import LabelProtocol
from synthseg.volumes.grid import sample_linear, sample_nearest

HALF_MM = (92.0, 112.0, 100.0)  # of the atlas' box, around the brain's centre
_TISSUES = ({1, 12}, {2, 4, 9, 13}, {3, 5}, {6}, {7}, {8})  # contrast classes whose intensities are one
_BONE = (515, 516)
_OPEN_ENDED = (0, 16, 24)  # brain-stem and fluid go on down the neck: no part of the brain's box


class Kinds(NamedTuple):
    """What the atlas' channels are: structures first, then air, bone and soft tissue outside the brain."""

    channel_of_label: Tensor  # [K] int64
    value_of_channel: Tensor  # [C] int64; 0 outside the brain
    tissue_of_channel: Tensor  # [C] int64: which intensity distribution
    components: tuple[int, ...]  # Gaussians of each tissue

    @property
    def n_channels(self) -> int:
        return len(self.value_of_channel)


@dataclass(frozen=True)
class Atlas:
    """Probabilities [C, X, Y, Z] at ``spacing_mm``; the voxel in the middle is the brain's centre."""

    probabilities: Tensor
    spacing_mm: float
    kinds: Kinds

    @property
    def center_vox(self) -> Tensor:
        """[3] of the brain's centre."""
        return (torch.tensor(self.probabilities.shape[1:]) - 1) / 2

    def tissues(self) -> Tensor:
        """Probabilities of the tissues, whatever the structure: [T, X, Y, Z]."""
        count = len(self.kinds.components)
        summed = torch.zeros(count, *self.probabilities.shape[1:])
        return summed.index_add_(0, self.kinds.tissue_of_channel, self.probabilities)

    def extent_mm(self, *, head: bool) -> tuple[Tensor, Tensor]:
        """Lowest and highest corner [3] of the average brain, or of the head, in mm from the brain's centre."""
        n = self.kinds.n_channels
        inner = [c for c, v in enumerate(self.kinds.value_of_channel.tolist()) if v not in _OPEN_ENDED]
        kept = self.probabilities[n - 3] < 0.5 if head else self.probabilities[inner].sum(0) > 0.5
        places = kept.nonzero().float()
        low, high = places.amin(0), places.amax(0)
        return (low - self.center_vox) * self.spacing_mm, (high - self.center_vox) * self.spacing_mm


def kinds_of(protocol: LabelProtocol) -> Kinds:
    """The atlas' channels for a protocol of whole heads."""
    values = [int(v) for v in protocol.target_values if v != 0]
    rows = {label.value: label for label in protocol.labels}
    air, bone, soft = len(values), len(values) + 1, len(values) + 2
    channel = []
    for label in protocol.labels:
        if label.target != 0:
            channel.append(values.index(label.target))
        else:
            channel.append(air if label.value == 0 else bone if label.value in _BONE else soft)
    tissue = [next((n for n, g in enumerate(_TISSUES) if rows[v].contrast_class in g), 2) for v in values]
    count = len(_TISSUES)
    return Kinds(
        channel_of_label=torch.tensor(channel),
        value_of_channel=torch.tensor([*values, 0, 0, 0]),
        tissue_of_channel=torch.tensor([*tissue, count, count + 1, count + 2]),
        components=(2, 2, 2, 1, 1, 1, 1, 1, 3),
    )


def build_atlas(bank: LabelBank, spacing_mm: float = 2.0, *, steps: int = 40) -> Atlas:
    """Average the bank's maps, each brought onto their average by its box, then by an affine onto the first average.

    Args:
        steps: of the affine's gradient ascent on the probability of the map's labels; 0 leaves the boxes.
    """
    kinds = kinds_of(bank.protocol)
    boxes = [_brain_box_mm(bank, n) for n in range(len(bank))]
    mean = torch.stack([half for half, _ in boxes]).mean(0)
    moves = [torch.diag(half / mean) for half, _ in boxes]  # from atlas mm to the map's mm
    shifts = [middle for _, middle in boxes]
    first = _average(bank, kinds, moves, shifts, spacing_mm if steps == 0 else max(spacing_mm, 4.0))
    if steps == 0:
        return first
    fitted = [_fit(first, bank, n, (moves[n], shifts[n]), steps) for n in range(len(bank))]
    return _average(bank, kinds, [f[0] for f in fitted], [f[1] for f in fitted], spacing_mm)


def _grid_mm(spacing_mm: float) -> Tensor:
    """[X, Y, Z, 3] positions of the atlas' voxels."""
    axes = [(torch.arange(2 * round(h / spacing_mm) + 1) - round(h / spacing_mm)) * spacing_mm for h in HALF_MM]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).float()


def _average(bank: LabelBank, kinds: Kinds, moves: list[Tensor], shifts: list[Tensor], spacing_mm: float) -> Atlas:
    grid = _grid_mm(spacing_mm)
    total = torch.zeros(kinds.n_channels, *grid.shape[:3])
    for number, (move, shift) in enumerate(zip(moves, shifts, strict=True)):
        where = (grid @ move.T + shift) / bank.spacing_mm[number] + bank.center_vox[number]
        channel = kinds.channel_of_label[sample_nearest(bank.label_map(number)[None].long(), where[None])[0]]
        entry = channel.flatten() * channel.numel() + torch.arange(channel.numel())
        total.view(-1).index_add_(0, entry, torch.ones(len(entry)))
    smoothed = _smooth(total / len(bank), 0.75)
    floor = 1e-4  # no structure is impossible near where others have it; nor anywhere else, for the logarithm
    smoothed = smoothed.clamp_min(0) + floor / kinds.n_channels
    return Atlas(smoothed / smoothed.sum(0), spacing_mm, kinds)


def _smooth(maps: Tensor, sigma_vox: float) -> Tensor:
    taps = torch.arange(-2, 3).float()
    kernel = torch.exp(-0.5 * (taps / sigma_vox) ** 2)
    kernel = kernel / kernel.sum()
    blurred = maps[:, None]
    for axis in range(3):
        shape = [1, 1, 1, 1, 1]
        shape[2 + axis] = 5
        pad = [0] * 6
        pad[4 - 2 * axis] = pad[5 - 2 * axis] = 2
        blurred = functional.conv3d(functional.pad(blurred, pad, mode="replicate"), kernel.view(shape))
    return blurred[:, 0]


def _brain_box_mm(bank: LabelBank, number: int) -> tuple[Tensor, Tensor]:
    """[3] half the size of the brain's box, and [3] its middle, in mm from the bank's centre of the map."""
    target = torch.as_tensor(bank.protocol.targets)[bank.label_map(number).long()]
    places = (~torch.isin(target, torch.tensor(_OPEN_ENDED))).nonzero().float()
    low, high = places.amin(0), places.amax(0)
    spacing = bank.spacing_mm[number]
    return (high - low + 1) / 2 * spacing, ((low + high) / 2 - bank.center_vox[number]) * spacing


def _fit(atlas: Atlas, bank: LabelBank, number: int, start: tuple[Tensor, Tensor], steps: int) -> tuple[Tensor, Tensor]:
    """The affine from atlas to map mm under which the map's labels are most probable, from voxels of the map."""
    stride = max(round(6.0 / float(bank.spacing_mm[number].min())), 1)
    labels = bank.label_map(number)[::stride, ::stride, ::stride]
    places = torch.stack(torch.meshgrid(*(torch.arange(n) for n in labels.shape), indexing="ij"), -1) * stride
    where_mm = (places - bank.center_vox[number]) * bank.spacing_mm[number]
    half, middle = _brain_box_mm(bank, number)
    near = ((where_mm - middle).abs() < half + 12.0).all(-1)  # the brain and what borders on it
    where_mm, channel = where_mm[near], atlas.kinds.channel_of_label[labels.long()][near]
    log_p = atlas.probabilities.log()[None]
    back, offset = torch.linalg.inv(start[0]), -torch.linalg.inv(start[0]) @ start[1]
    change = torch.zeros(3, 4, requires_grad=True)  # of the map-to-atlas affine, per 100 mm; shift in units of 10 mm
    optimizer = torch.optim.Adam([change], lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        position = where_mm @ (back + change[:, :3]).T + offset + change[:, 3] * 10
        voxels = (position / atlas.spacing_mm + atlas.center_vox)[None, None, None]
        loss = -sample_linear(log_p, voxels)[0, :, 0, 0].gather(0, channel[None]).mean()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        forth = torch.linalg.inv(back + change[:, :3])
        return forth, -forth @ (offset + change[:, 3] * 10)
