"""What the label map shows: which map, which part, flips, skull stripping, lesions (Billot et al. 2023, 4.2)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from synthseg.generation.bank import LabelBank
from synthseg.generation.config import AnatomyPrior, GridPrior
from synthseg.generation.deformation import coin
from synthseg.generation.roles import csf_values, lesion_hosts, stripped_values
from synthseg.labels.protocol import LabelProtocol


class AnatomyDraw(NamedTuple):
    """Choices about the label map of each element."""

    map_index: Tensor  # [B] int64
    donor_index: Tensor  # [B] int64, whose lesions are pasted
    corner_mm: Tensor  # [B, 3] first voxel of the crop, from the map's centre
    flip: Tensor  # [B] bool, like the following
    strip: Tensor
    strip_csf: Tensor
    lesions: Tensor
    paste: Tensor


@dataclass(frozen=True)
class AnatomyTables:
    """Look-up tables of a protocol on a device, by label index: what the stages below need."""

    partner: Tensor  # [K] int64
    target_channel: Tensor  # [K] int64
    extra_cerebral: Tensor  # [K] bool
    csf: Tensor  # [K] bool
    lesion: Tensor  # [K] bool
    lesion_host: Tensor  # [K] int64: index a lesion becomes when lesions are off; itself otherwise
    paste_as: Tensor  # [K] int64: lesion index to paste over a host tissue; itself where none is pasted

    @classmethod
    def of(cls, protocol: LabelProtocol, prior: AnatomyPrior, device: torch.device) -> AnatomyTables:
        """Build the tables. Raises ConfigError for values of the prior that do not fit the protocol (``roles``)."""
        index = {int(value): i for i, value in enumerate(protocol.values)}
        hosts = lesion_hosts(prior, protocol)
        host, paste = list(range(len(index))), list(range(len(index)))
        for lesion, tissue in hosts.items():
            host[index[lesion]] = index[tissue]
            paste[index[tissue]] = index[lesion]

        def flags(values: Collection[int]) -> Tensor:
            return torch.tensor([int(v) in values for v in protocol.values], device=device)

        return cls(
            partner=torch.as_tensor(protocol.partner_index, device=device),
            target_channel=torch.as_tensor(protocol.target_channel, device=device),
            extra_cerebral=flags(stripped_values(prior, protocol)),
            csf=flags(csf_values(prior, protocol)),
            lesion=flags(hosts),
            lesion_host=torch.tensor(host, device=device),
            paste_as=torch.tensor(paste, device=device),
        )


def draw_anatomy(
    prior: AnatomyPrior,
    grid: GridPrior,
    bank: LabelBank,
    map_weights: Tensor,
    batch: int,
    *,
    rng: torch.Generator,
    maps: Tensor | None = None,
) -> AnatomyDraw:
    """Choose maps (with replacement, by weight), crops and switches.

    Args:
        map_weights: [N] non-negative, on the bank's device.
        maps: [B] int64, label maps chosen elsewhere. The stream gives what follows the same numbers either way.
    Source: reference 2.3 steps 0, 2 and 3. The last crop position is drawn too, which the original never does.
    """
    device = rng.device
    chosen = torch.multinomial(map_weights, batch, replacement=True, generator=rng)
    chosen = chosen if maps is None else maps
    donor = torch.multinomial(map_weights, batch, replacement=True, generator=rng)
    spacing = bank.spacing_mm[chosen]
    size = torch.tensor(grid.shape, device=device)
    half_mm = (size - 1) / 2 * grid.spacing_mm
    center = map_center(bank, chosen, grid)
    if grid.focus == "brain":
        low = -half_mm - grid.jitter_mm
        room = torch.full((batch, 3), 2 * grid.jitter_mm, device=device)
    else:
        low = -center * spacing
        room = (bank.shapes[chosen] - 1) * spacing - 2 * half_mm
        low = torch.where(room < 0, -half_mm.expand_as(low), low)
    # On whole voxels of the map, so that an undeformed crop copies the map exactly; each of them equally likely.
    steps = (room.clamp(min=0) / spacing + 1e-4).floor()
    chance = torch.rand(batch, 3, generator=rng, device=device)
    first = (low / spacing + center).round() + torch.minimum((chance * (steps + 1)).floor(), steps)
    corner = (first - center) * spacing
    return AnatomyDraw(
        map_index=chosen,
        donor_index=donor,
        corner_mm=corner,
        flip=coin(batch, prior.flip_probability, rng=rng),
        strip=coin(batch, prior.strip_probability, rng=rng),
        strip_csf=coin(batch, prior.strip_csf_probability, rng=rng),
        lesions=coin(batch, prior.lesion_probability, rng=rng),
        paste=coin(batch, prior.lesion_paste_probability, rng=rng),
    )


def map_center(bank: LabelBank, chosen: Tensor, grid: GridPrior) -> Tensor:
    """[B, 3] in voxels: what deformations turn around, the brain's or the map's centre by ``grid.focus``."""
    if grid.focus == "brain":
        return bank.center_vox[chosen]
    return (bank.shapes[chosen] - 1) / 2


def sample_labels(bank: LabelBank, chosen: Tensor, where_mm: list[Tensor], center_vox: Tensor) -> Tensor:
    """Nearest label at positions in mm from each map's centre; beyond the border, the border's label.

    Args:
        chosen: [B] map indices.
        where_mm: three [B, X, Y, Z].
        center_vox: [B, 3].
    Returns: [B, X, Y, Z] uint8 label indices.
    Source: reference 2.3 step 1 (nearest, half to even, edge replication). One gather reads maps of any shapes.
    """
    shapes, spacing = bank.shapes[chosen].int(), bank.spacing_mm[chosen]
    flat: Tensor | None = None
    for axis in range(3):
        size = shapes[:, axis].view(-1, 1, 1, 1)
        position = where_mm[axis] / spacing[:, axis].view(-1, 1, 1, 1)
        position = position.add_(center_vox[:, axis].view(-1, 1, 1, 1)).round_().clamp_(min=0)
        # int32 holds every index of a map (2^30 voxels at most) in half the bytes of int64
        index = torch.minimum(position, (size - 1).float()).int()
        flat = index if flat is None else flat.mul_(size).add_(index)
    assert flat is not None
    if bank.device.type != "cpu":
        return bank.voxels[flat + bank.offsets[chosen].view(-1, 1, 1, 1)]
    maps = [bank.label_map(n).flatten() for n in chosen.tolist()]
    return torch.stack([m.index_select(0, one.flatten()).view(one.shape) for m, one in zip(maps, flat, strict=True)])


def edit_labels(labels: Tensor, donor_lesions: Tensor, draw: AnatomyDraw, tables: AnatomyTables) -> Tensor:
    """Paste or hide lesions, strip the skull, flip.

    Args:
        labels: [B, X, Y, Z] label indices.
        donor_lesions: [B, X, Y, Z] bool, the donor map's lesions at the same places.
    Returns: [B, X, Y, Z] int64 label indices.
    """
    index = labels.long()
    shown = draw.lesions.view(-1, 1, 1, 1)
    index = torch.where(shown, index, tables.lesion_host[index])
    pasted = donor_lesions & (draw.lesions & draw.paste).view(-1, 1, 1, 1)
    index = torch.where(pasted, tables.paste_as[index], index)
    gone = tables.extra_cerebral[index] & draw.strip.view(-1, 1, 1, 1)
    gone |= tables.csf[index] & (draw.strip & draw.strip_csf).view(-1, 1, 1, 1)
    index = index.masked_fill(gone, 0)
    return flip_labels(index, draw.flip, tables.partner)


def entry_labels(draw: AnatomyDraw, tables: AnatomyTables) -> Tensor:
    """What :func:`edit_labels` makes of every label, without and with a donor's lesion: [B, 2 K] label indices.

    The mirroring of places, the one edit that a table cannot hold, is the caller's part.
    """
    batch, labels = len(draw.flip), len(tables.partner)
    index = torch.arange(labels, device=draw.flip.device).expand(batch, 1, 2, -1)  # one plane: nothing to mirror
    lesion = torch.tensor([False, True], device=draw.flip.device).view(1, 1, 2, 1).expand_as(index)
    return edit_labels(index, lesion, draw, tables).flatten(1)


def flip_labels(index: Tensor, flip: Tensor, partner: Tensor) -> Tensor:
    """Mirror left and right where ``flip`` [B] says so, and swap partners: an involution."""
    mirrored = partner[index.flip(1)]
    return torch.where(flip.view(-1, 1, 1, 1), mirrored, index)
