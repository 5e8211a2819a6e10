"""What a training run needs to know of its task: its network, a batch, its loss, its validation and its card."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from synthseg.errors import ConfigError
from synthseg.generation.bank import LabelBank
from synthseg.generation.model import GenerativeModel, Pair, PairDraw
from synthseg.labels.protocol import LabelProtocol
from synthseg.networks import UNet
from synthseg.training.export import target_protocol
from synthseg.training.losses import loss_function
from synthseg.training.recipe import Recipe
from synthseg.training.validation import ValidationSet, load_validation, validate
from synthseg.weights.card import make_card


class Task(Protocol):
    """One training task; the loop knows nothing else about it."""

    def build_network(self) -> nn.Module:
        """A freshly initialised network."""

    def batch(self, step: int, elements: Sequence[int]) -> Any:
        """The elements (numbered over all processes and micro-steps) of a step; the same for the same numbers."""

    def loss(self, network: nn.Module, batch: Any, step: int) -> Tensor:
        """Scalar loss of a batch, averaged over its elements."""

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Scores on real scans (empty without any); key ``dice`` chooses the best weights."""

    @property
    def output_protocol(self) -> LabelProtocol:
        """What the output channels mean."""

    def card(self, facts: dict[str, Any]) -> dict[str, Any]:
        """A weights' card: the task's protocol, architecture and data, with the run's own facts."""


def element_generator(seed: int, step: int, element: int, device: torch.device) -> torch.Generator:
    """The random stream of one element of one step: independent of batch size, process count and resumption."""
    digest = hashlib.blake2b(f"{seed}/{step}/{element}".encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big") >> 1)


class SegmentationTask:
    """Label maps to a segmentation network, by the generative model."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.recipe = recipe
        self.device = device
        self.bank = LabelBank.load(recipe.path(recipe.data.bank), device)
        self.model = GenerativeModel(recipe.generation, self.bank, recipe.data.map_weights)
        self._check()
        self.validation: ValidationSet | None = None
        if recipe.data.validation is not None:
            self.validation = load_validation(
                recipe.path(recipe.data.validation), self.bank.protocol, recipe.generation.grid.spacing_mm
            )

    def _check(self) -> None:
        channels, network = len(self.bank.protocol.target_values), self.recipe.network
        if network.out_channels != channels or network.in_channels != 1:
            raise ConfigError(
                "network.out_channels",
                found=f"{network.in_channels} inputs and {network.out_channels} outputs",
                fix=f"the bank's protocol {self.bank.protocol.name} needs 1 input and {channels} outputs",
            )
        if any(side % network.multiple for side in self.recipe.generation.grid.shape):
            raise ConfigError(
                "generation.grid.shape",
                found=f"{list(self.recipe.generation.grid.shape)}",
                fix=f"a network of {network.levels} levels needs multiples of {network.multiple}",
            )

    def build_network(self) -> nn.Module:
        """A freshly initialised UNet."""
        return UNet(self.recipe.network)

    def batch(self, step: int, elements: Sequence[int]) -> Pair:
        """Pairs of the given elements: drawn one by one, made together."""
        seed = self.recipe.optimizer.seed
        draws = [self.model.draw(1, rng=element_generator(seed, step, e, self.device)) for e in elements]
        return self.model.apply(PairDraw.join(draws))

    def loss(self, network: nn.Module, batch: Pair, step: int) -> Tensor:
        """The recipe's loss; the warm-up loss during its first steps."""
        config = self.recipe.optimizer
        image = batch.image.to(memory_format=torch.channels_last_3d)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            logits = network(image)
        name = "wl2" if step < config.wl2_steps else config.loss
        return loss_function(name, logits, batch.target, absent=config.absent)

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Mean Dice on the real scans of the recipe."""
        if self.validation is None:
            return {}
        return validate(network, self.validation, self.device, self.recipe.network.multiple)

    @property
    def output_protocol(self) -> LabelProtocol:
        """What the output channels mean."""
        return target_protocol(self.bank.protocol)

    def card(self, facts: dict[str, Any]) -> dict[str, Any]:
        """The card of weights of this task, with the run's own facts (steps, scores, recipe)."""
        output, grid = self.recipe.output, self.recipe.generation.grid
        own: dict[str, Any] = {
            "data": f"{len(self.bank)} label maps ({self.bank.names[0]} ... {self.bank.names[-1]}), no real scan",
            "licence": output.licence,
            "description": output.description,
        }
        if self.recipe.network.norm == "instance":  # its statistics are those of such images (decision 0004)
            own["field_of_view_mm"] = [side * grid.spacing_mm for side in grid.shape]
        return make_card(
            output.name,
            self.recipe.network.to_dict(),
            self.output_protocol,
            spacing_mm=self.recipe.generation.grid.spacing_mm,
            facts={**own, **facts},
        )
