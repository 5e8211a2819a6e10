"""R: how good a segmentation is, group by group, from the segmentation alone (SynthSeg+).

Source: reference, fetal-and-plus C.7 and synthseg 5.8. The pairs are made on the way: synthetic images, some of them
cut off, are segmented by finished networks, and the Dice with the label map behind the image is the answer to learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from synthseg.errors import ConfigError
from synthseg.generation.deformation import coin
from synthseg.generation.model import Pair
from synthseg.labels.protocol import LabelProtocol, load_protocol
from synthseg.networks.encoder import Encoder
from synthseg.networks.hierarchy import one_hot_argmax
from synthseg.training.recipe import Recipe
from synthseg.training.task import Batch, SegmentationTask
from synthseg.training.tasks.frozen import forward, frozen_names, segmented_values, segmenters
from synthseg.training.tasks.groups import column_of_channels

GROUPS = "quality-groups"


class QualityTask(SegmentationTask):
    """Group posteriors (or their one-hot argmax) of a segmentation to its Dice a group.

    Which of the two the network reads is its own: ``expected_dice`` needs posteriors, the published form has one-hot
    maps.
    """

    role = "quality"

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.in_channels = len(load_protocol(GROUPS).target_values)
        super().__init__(recipe, device)
        protocol = self.bank.protocol
        table = column_of_channels(protocol, protocol.quality_groups, "quality")
        self.group_of_channel = torch.as_tensor(table, device=device)
        self.networks = segmenters(recipe, device)
        of_value = dict(zip(protocol.target_values.tolist(), table.tolist(), strict=True))
        self.groups_of_networks = [self._gathering(values, of_value) for values in segmented_values(recipe)]

    def _gathering(self, values: list[int], of_value: dict[int, int]) -> Tensor:
        """[G, C] of 0 and 1: which channels of a network make up each group."""
        unknown = sorted(set(values) - set(of_value))
        if unknown:
            found = f"weights that segment the labels {unknown}, which the bank's protocol does not"
            raise ConfigError("task.weights", found=found, fix="use weights and bank of the same targets")
        gathering = torch.zeros(self.in_channels, len(values), device=self.device)
        for channel, value in enumerate(values):
            gathering[of_value[value], channel] = 1
        return gathering

    @property
    def soft(self) -> bool:
        """Whether the network reads posteriors."""
        return self.recipe.encoder.expected_dice

    def _check(self) -> None:
        encoder = self.recipe.encoder
        self._check_channels(encoder.in_channels, encoder.out_channels)
        if any(side % encoder.multiple for side in self.recipe.generation.grid.shape):
            found, fix = f"{list(self.recipe.generation.grid.shape)}", f"give multiples of {encoder.multiple}"
            raise ConfigError("generation.grid.shape", found=found, fix=fix)

    def build_network(self) -> nn.Module:
        """A freshly initialised encoder."""
        return Encoder(self.recipe.encoder)

    def prepare(self, pair: Pair, rngs: Sequence[torch.Generator]) -> Batch:
        """Segmentations in, [B, G] Dice out."""
        truth = self.group_of_channel[pair.target]
        inputs, scores = [], []
        for element, rng in enumerate(rngs):
            image = self._cut(pair.image[[element]], rng)
            which = int(torch.randint(len(self.networks), (1,), generator=rng, device=rng.device))
            posteriors = forward(self.networks[which], image, reduced=self.reduced).softmax(1)
            groups = torch.einsum("gc,bcxyz->bgxyz", self.groups_of_networks[which], posteriors)
            scores.append(group_dice(groups.argmax(1), truth[[element]], self.in_channels))
            inputs.append(groups if self.soft else one_hot_argmax(groups))
        return Batch(torch.cat(inputs), torch.cat(scores))

    def _cut(self, image: Tensor, rng: torch.Generator) -> Tensor:
        """Sometimes everything outside a random box is 0: a scan that ends within the brain (reference 5.8)."""
        config, grid = self.recipe.task, self.recipe.generation.grid
        if not bool(coin(1, config.cut_probability, rng=rng)):
            return image
        u = torch.rand(2, 3, generator=rng, device=rng.device).tolist()
        box = []
        for axis, side in enumerate(grid.shape):
            least = min(round(config.cut_least_mm / grid.spacing_mm), side)
            length = least + int(u[0][axis] * (side - least + 1))
            start = int(u[1][axis] * (side - length + 1))
            box.append(slice(start, start + length))
        kept = torch.zeros_like(image)
        kept[:, :, box[0], box[1], box[2]] = image[:, :, box[0], box[1], box[2]]
        return kept

    def loss(self, network: nn.Module, batch: Batch, step: int) -> Tensor:  # noqa: ARG002
        """Squared error, summed over groups (background included), averaged over elements (reference 5.1)."""
        predicted = self.logits(network, batch).float()
        return (predicted - batch.target).square().sum(1).mean()

    def validate(self, network: nn.Module) -> dict[str, float]:  # noqa: ARG002
        """No scores while it trains: predicted against true Dice on degraded scans comes after (docs/scores.md)."""
        return {}

    @property
    def output_protocol(self) -> LabelProtocol:
        """The groups that are scored."""
        return load_protocol(GROUPS)

    def architecture(self) -> dict[str, Any]:
        """The network for the card."""
        return self.recipe.encoder.to_dict()

    def card(self, facts: dict[str, Any]) -> dict[str, Any]:
        """The task's card, with what made its inputs and whether they are posteriors."""
        return super().card({"inputs_from": frozen_names(self.recipe), "soft_inputs": self.soft, **facts})


def group_dice(predicted: Tensor, truth: Tensor, n_groups: int) -> Tensor:
    """Dice of each group: [B, X, Y, Z] int64 twice -> [B, n_groups]; 0 for a group that neither has (reference 5.8)."""
    rows = []
    for a, b in zip(predicted.flatten(1), truth.flatten(1), strict=True):
        in_a, in_b = (torch.bincount(each, minlength=n_groups).float() for each in (a, b))
        both = torch.bincount(a[a == b], minlength=n_groups).float()
        rows.append(2 * both / (in_a + in_b).clamp(min=1))
    return torch.stack(rows)
