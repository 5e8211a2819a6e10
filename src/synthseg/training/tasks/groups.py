"""The networks of the robust hierarchy: S1 sees tissue groups, D mends them, S2 is guided by them (SynthSeg+).

Source: reference, fetal-and-plus C.3 to C.5; synthseg 5.5 to 5.7. There, D learns from real images with labels; here
its inputs are what S1 makes of synthetic images of poor quality, and damaged truths, so that labels suffice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from synthseg.errors import ConfigError
from synthseg.generation.deformation import coin
from synthseg.generation.model import Pair
from synthseg.labels.protocol import LabelProtocol, load_protocol
from synthseg.networks.hierarchy import GroupsFirst, one_hot
from synthseg.training.recipe import Recipe
from synthseg.training.task import Batch, SegmentationTask
from synthseg.training.tasks.corruption import damaged_groups, damaged_guide
from synthseg.training.tasks.frozen import forward, frozen_names, load_frozen, require_frozen
from synthseg.training.validation import IGNORED, validate

GROUPS = "tissue-groups"


def column_of_channels(protocol: LabelProtocol, column: np.ndarray, name: str) -> np.ndarray:
    """A column of the label table by target channel: [C] int64, each target's own row.

    Labels without a target (0) may differ: what they are made of is painted, but never asked for.

    Raises: ConfigError for a target that has no row of its own, and where labels of one other target differ in the
        column.
    """
    subject = f"protocol {protocol.name}"
    found = np.full(len(protocol.target_values), -1, dtype=np.int64)
    rows = {label.value: number for number, label in enumerate(protocol.labels)}
    for channel, value in enumerate(protocol.target_values.tolist()):
        if value not in rows:
            fix = f"give the label table a row for {value}, with its {name} group"
            raise ConfigError(subject, found=f"the target {value} without a row", fix=fix)
        found[channel] = column[rows[value]]
        others = protocol.values[(protocol.targets == value) & (column != found[channel])].tolist()
        if value != 0 and others:
            told = f"the target {value} in {name} group {found[channel]}, but {', '.join(map(str, others))} in others"
            raise ConfigError(subject, found=told, fix=f"give all labels of the target {value} one {name} group")
    return found


class TissuesTask(SegmentationTask):
    """S1: an image to tissue groups. The groups are the label table's column ``tissue``."""

    role = "tissues"

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        super().__init__(recipe, device)
        protocol = self.bank.protocol
        table = column_of_channels(protocol, protocol.tissue_groups, "tissue")
        self.group_of_channel = torch.as_tensor(table, device=device)
        self.n_groups = len(self.output_protocol.target_values)
        self._require_groups(table)
        if self.validation is not None:
            self.validation = replace(self.validation, targets=tuple(map(self._grouped, self.validation.targets)))

    def _require_groups(self, table: np.ndarray) -> None:
        if len(np.unique(table)) < 2 or table.max() >= self.n_groups:
            found = f"tissue groups {np.unique(table).tolist()} in the protocol {self.bank.protocol.name}"
            fix = f"fill its column 'tissue' with 0 to {self.n_groups - 1} (see `synthseg labels show {GROUPS}`)"
            raise ConfigError("data.bank", found=found, fix=fix)

    def _grouped(self, target: Tensor) -> Tensor:
        """Channels of a validation map as groups; what is not scored stays so."""
        known = target != IGNORED
        groups = self.group_of_channel.cpu()[torch.where(known, target, 0).long()]
        return torch.where(known, groups, IGNORED).to(target.dtype)

    def groups(self, pair: Pair) -> Tensor:
        """The true groups: [B, X, Y, Z] int64."""
        return self.group_of_channel[pair.target]

    def prepare(self, pair: Pair, rngs: Sequence[torch.Generator]) -> Batch:  # noqa: ARG002
        """Image in, groups out."""
        return Batch(pair.image, self.groups(pair))

    @property
    def output_protocol(self) -> LabelProtocol:
        """The tissue groups."""
        return load_protocol(GROUPS)


class DenoiserTask(TissuesTask):
    """D: groups as S1 sees them in poor images, or damaged truths, to the true groups."""

    role = "denoiser"
    in_channels = 5

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        super().__init__(recipe, device)
        self.tissues = require_frozen(recipe, "tissues", device)

    def prepare(self, pair: Pair, rngs: Sequence[torch.Generator]) -> Batch:
        """One-hot damaged groups in, true groups out."""
        config = self.recipe.task
        truth = self.groups(pair)
        given = truth.clone()
        for element, rng in enumerate(rngs):
            if bool(coin(1, config.predicted_probability, rng=rng)):
                scores = forward(self.tissues, pair.image[[element]], reduced=self.reduced)
                given[element] = scores.argmax(1)[0]
            given[element] = damaged_groups(
                given[element], self.n_groups, config.damage, self.recipe.generation.grid, rng
            )
        return Batch(one_hot(given, self.n_groups), truth)

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Dice of the groups after S1 and D on the real scans of the recipe."""
        if self.validation is None:
            return {}
        whole = GroupsFirst(self.tissues, network).eval()  # as it comes back: S1 must never be set to training
        return validate(whole, self.validation, self.device, self.recipe.network.multiple)

    def card(self, facts: dict[str, object]) -> dict[str, object]:
        """The task's card, with what made its inputs."""
        return super().card({"inputs_from": frozen_names(self.recipe), **facts})


class GuidedTask(SegmentationTask):
    """S2: an image and groups to structures. The groups are damaged truths, or what S1 and D make of the image."""

    role = "guided"

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.n_groups = len(load_protocol(GROUPS).target_values)
        self.in_channels = 1 + self.n_groups
        super().__init__(recipe, device)
        protocol = self.bank.protocol
        table = column_of_channels(protocol, protocol.tissue_groups, "tissue")
        self.group_of_channel = torch.as_tensor(table, device=device)
        self.first: GroupsFirst | None = None
        if recipe.task.weights.tissues is not None:
            tissues = require_frozen(recipe, "tissues", device)
            self.first = GroupsFirst(tissues, load_frozen(recipe, "denoiser", device)).eval()

    def prepare(self, pair: Pair, rngs: Sequence[torch.Generator]) -> Batch:
        """Image and guide in, structures out."""
        config, grid = self.recipe.task, self.recipe.generation.grid
        truth = self.group_of_channel[pair.target]
        guides = []
        for element, rng in enumerate(rngs):
            predicted = bool(coin(1, config.predicted_probability, rng=rng))
            if predicted and self.first is not None:
                scores = forward(self.first, pair.image[[element]], reduced=self.reduced)
                guides.append(one_hot(scores.argmax(1), self.n_groups)[0])
            else:
                guides.append(damaged_guide(truth[element], self.n_groups, config.damage, grid, rng))
        return Batch(torch.cat([pair.image, torch.stack(guides)], 1), pair.target)

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Mean Dice of the whole hierarchy on the real scans of the recipe; nothing without S1."""
        if self.validation is None or self.first is None:
            return {}
        whole = GroupsFirst(self.first.tissues, self.first.denoiser, network).eval()
        return validate(whole, self.validation, self.device, self.recipe.network.multiple)

    def card(self, facts: dict[str, object]) -> dict[str, object]:
        """The task's card, with what made its inputs."""
        return super().card({"inputs_from": frozen_names(self.recipe), **facts})
