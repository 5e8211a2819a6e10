"""S3: the parcels of the cerebral cortex, from the image and where the cortex is (SynthSeg+).

How the original trained it is not published (reference, fetal-and-plus C.6). Here: label maps whose cortex carries
parcels, the loss on the voxels of the true cortex alone (elsewhere the answer is never used), and a cortex in the input
that is as imperfect as a network's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from synthseg.errors import ConfigError
from synthseg.generation.deformation import coin
from synthseg.generation.model import Pair
from synthseg.labels.protocol import LabelProtocol, load_protocol
from synthseg.training.losses import loss_function
from synthseg.training.recipe import Recipe
from synthseg.training.task import Batch, SegmentationTask
from synthseg.training.tasks.corruption import dilated

PARCELS = "desikan-killiany"
CORTEX = (3, 42)  # whole cortex, left and right, in a map without parcels there
NO_PARCEL = -1


class ParcelsTask(SegmentationTask):
    """Image and [not cortex, cortex] to parcels; background is never asked for."""

    role = "parcels"
    in_channels = 3

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        super().__init__(recipe, device)
        values = self.bank.protocol.target_values.tolist()
        channel = {value: number for number, value in enumerate(self.output_protocol.target_values.tolist()) if value}
        parcels = torch.tensor([channel.get(value, NO_PARCEL) for value in values], device=device)
        cortex = torch.tensor([value in CORTEX or value in channel for value in values], device=device)
        if not bool((parcels > 0).any()):
            found = f"the protocol {self.bank.protocol.name}, none of whose targets is a parcel"
            fix = "pack maps with parcels: synthseg bank MAPS -o bank.safetensors --protocol synthseg-generation-dk"
            raise ConfigError("data.bank", found=found, fix=fix)
        self.parcel_of_channel, self.is_cortex = parcels, cortex

    def prepare(self, pair: Pair, rngs: Sequence[torch.Generator]) -> Batch:
        """Image and cortex in; parcels out, :data:`NO_PARCEL` where there is none."""
        masks = []
        for element, rng in enumerate(rngs):
            mask = self.is_cortex[pair.target[element]].float()
            masks.append(self._damaged(mask, rng))
        cortex = torch.stack(masks)[:, None]
        return Batch(torch.cat([pair.image, 1 - cortex, cortex], 1), self.parcel_of_channel[pair.target])

    def _damaged(self, mask: Tensor, rng: torch.Generator) -> Tensor:
        """The cortex as a network might see it: voxels of its rim, inside and outside, changed at random."""
        prior = self.recipe.task.damage
        if not bool(coin(1, prior.morphology_probability, rng=rng)):
            return mask
        grown, shrunk = dilated(mask), 1 - dilated(1 - mask)
        amount = float(torch.rand(1, generator=rng, device=rng.device)) * 0.5
        chosen = torch.rand(mask.shape, generator=rng, device=rng.device) < amount
        rim = (grown - shrunk).bool() & chosen
        return torch.where(rim, 1 - mask, mask)

    def loss(self, network: nn.Module, batch: Batch, step: int) -> Tensor:
        """The recipe's loss on the voxels that have a parcel, averaged over elements."""
        logits = self.logits(network, batch)
        losses = []
        for scores, target in zip(logits.movedim(1, -1), batch.target, strict=True):
            known = target != NO_PARCEL
            if bool(known.any()):
                rows = scores[known].T[None]  # [1, C, voxels]
                name = self._loss_name(step)
                losses.append(loss_function(name, rows, target[known][None], absent=self.recipe.optimizer.absent))
        if not losses:  # crops without cortex teach nothing
            return logits.sum() * 0
        return torch.stack(losses).sum() / len(batch.target)

    def validate(self, network: nn.Module) -> dict[str, float]:  # noqa: ARG002
        """No scores: scans with parcels to validate on are not packed."""
        return {}

    @property
    def output_protocol(self) -> LabelProtocol:
        """Background and the 68 parcels."""
        return load_protocol(PARCELS)
