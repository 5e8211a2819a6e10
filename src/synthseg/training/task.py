"""What a training run needs to know of its task: its network, a batch, its loss, its validation and its card."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from synthseg.errors import ConfigError
from synthseg.generation.bank import LabelBank
from synthseg.generation.map_weights import stratified_map
from synthseg.generation.model import GenerativeModel, Pair, PairDraw
from synthseg.labels.protocol import LabelProtocol
from synthseg.networks import UNet
from synthseg.training.export import target_protocol
from synthseg.training.losses import LossName, loss_function
from synthseg.training.recipe import Recipe
from synthseg.training.validation import ValidationSet, load_validation, validate
from synthseg.weights.card import BRAIN, make_card


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


class Batch(NamedTuple):
    """What a step trains on."""

    input: Tensor  # [B, C, X, Y, Z] of the network
    target: Tensor  # [B, X, Y, Z] int64 channel index (of other shapes where a task says so)


class SegmentationTask:
    """Label maps to a segmentation network, by the generative model. The other tasks differ in what goes in and out."""

    role = "structures"
    in_channels = 1

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.recipe = recipe
        self.device = device
        self.bank = LabelBank.load(recipe.path(recipe.data.bank), device)
        self.model = GenerativeModel(recipe.generation, self.bank, recipe.weights_of(self.bank.names))
        self._check()
        self.validation: ValidationSet | None = None
        if recipe.data.validation is not None:
            self.validation = load_validation(
                recipe.path(recipe.data.validation), self.bank.protocol, recipe.generation.grid.spacing_mm
            )

    @property
    def reduced(self) -> bool:
        """Whether networks run in bfloat16."""
        return self.recipe.optimizer.precision == "bfloat16"

    def _check(self) -> None:
        self._check_channels(self.recipe.network.in_channels, self.recipe.network.out_channels)
        network = self.recipe.network
        if any(side % network.multiple for side in self.recipe.generation.grid.shape):
            raise ConfigError(
                "generation.grid.shape",
                found=f"{list(self.recipe.generation.grid.shape)}",
                fix=f"a network of {network.levels} levels needs multiples of {network.multiple}",
            )

    def _check_channels(self, inputs: int, outputs: int) -> None:
        protocol = self.output_protocol
        wanted = len(protocol.target_values)
        if (inputs, outputs) != (self.in_channels, wanted):
            raise ConfigError(
                "network.out_channels",
                found=f"{inputs} inputs and {outputs} outputs",
                fix=f"the protocol {protocol.name} needs {self.in_channels} input(s) and {wanted} outputs",
            )

    def build_network(self) -> nn.Module:
        """A freshly initialised network."""
        return UNet(self.recipe.network)

    def batch(self, step: int, elements: Sequence[int]) -> Batch:
        """Inputs and targets of the given elements: drawn one by one, made together."""
        seed = self.recipe.optimizer.seed
        rngs = [element_generator(seed, step, e, self.device) for e in elements]
        draws = [self._draw(step, e, rng) for e, rng in zip(elements, rngs, strict=True)]
        return self.prepare(self.model.apply(PairDraw.join(draws)), rngs)

    def _draw(self, step: int, element: int, rng: torch.Generator) -> PairDraw:
        if self.recipe.data.map_choice == "independent":
            return self.model.draw(1, rng=rng)
        seed = self.recipe.optimizer.seed
        chosen = stratified_map(self.model.map_weights, seed=seed, step=step, element=element)
        return self.model.draw(1, rng=rng, maps=torch.tensor([chosen], device=self.device))

    def prepare(self, pair: Pair, rngs: Sequence[torch.Generator]) -> Batch:  # noqa: ARG002
        """From pairs to what the network sees and should answer.

        Args:
            rngs: the random stream of each element, where the generative model has left it.
        """
        return Batch(pair.image, pair.target)

    def loss(self, network: nn.Module, batch: Batch, step: int) -> Tensor:
        """The recipe's loss; the warm-up loss during its first steps."""
        logits = self.logits(network, batch)
        return loss_function(self._loss_name(step), logits, batch.target, absent=self.recipe.optimizer.absent)

    def logits(self, network: nn.Module, batch: Batch) -> Tensor:
        """The network's answer, in the recipe's precision."""
        inputs = batch.input.to(memory_format=torch.channels_last_3d)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.reduced):
            answer: Tensor = network(inputs)
        return answer

    def _loss_name(self, step: int) -> LossName:
        config = self.recipe.optimizer
        return "wl2" if step < config.wl2_steps else config.loss

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Mean Dice on the real scans of the recipe."""
        if self.validation is None:
            return {}
        return validate(network, self.validation, self.device, self.recipe.network.multiple)

    @property
    def output_protocol(self) -> LabelProtocol:
        """What the output channels mean."""
        return target_protocol(self.bank.protocol)

    def architecture(self) -> dict[str, Any]:
        """The network for the card."""
        return {"kind": "unet", **self.recipe.network.to_dict()}

    def card(self, facts: dict[str, Any]) -> dict[str, Any]:
        """The card of weights of this task, with the run's own facts (steps, scores, recipe)."""
        output, grid = self.recipe.output, self.recipe.generation.grid
        own: dict[str, Any] = {
            "data": f"{len(self.bank)} label maps ({self.bank.names[0]} ... {self.bank.names[-1]}), no real scan",
            "licence": output.licence,
            "description": output.description,
            "role": self.role,
        }
        if output.organ != BRAIN:
            own["organ"] = output.organ
        if output.ct_window is not None:
            own["ct_window"] = list(output.ct_window)
        # A mirror image that training never showed, of what has no sides to swap, is none to average with.
        if not self.recipe.generation.anatomy.flip_probability and set(self.output_protocol.sides) == {"neutral"}:
            own["flip"] = False
        # Instance norm's statistics are those of such images (decision 0004); a quality network reads such a window.
        if self.recipe.network.norm == "instance" or self.role == "quality":
            own["field_of_view_mm"] = [side * grid.spacing_mm for side in grid.shape]
        return make_card(
            output.name,
            self.architecture(),
            self.output_protocol,
            spacing_mm=self.recipe.generation.grid.spacing_mm,
            facts={**own, **facts},
        )
