"""The generative model: a label bank in, (image, target) pairs out (Billot et al. 2023, section 3.1).

``draw`` decides everything random; ``apply`` is a pure function of the draw. A draw is data: it can be saved, replayed,
cut into its elements and joined.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from synthseg.errors import ConfigError
from synthseg.generation.acquisition import apply_acquisition, draw_acquisition
from synthseg.generation.anatomy import AnatomyTables, draw_anatomy
from synthseg.generation.bank import LabelBank
from synthseg.generation.config import GenerationConfig, MixturePrior
from synthseg.generation.deformation import draw_deformation
from synthseg.generation.draws import Off, PairDraw, drawn
from synthseg.generation.inflation import inflated_values
from synthseg.generation.intensity import (
    apply_bias,
    apply_gamma,
    check_classes,
    draw_bias,
    draw_gamma,
    draw_mixture,
    stretch_percentiles,
)
from synthseg.generation.options import draw_options, read_with_options
from synthseg.generation.replay import origin_of, require_fit
from synthseg.generation.roles import TissueTables
from synthseg.generation.scanner import field_of_view
from synthseg.labels.protocol import LabelProtocol

__all__ = ["GenerativeModel", "Pair", "PairDraw"]


class Pair(NamedTuple):
    """A batch of training pairs."""

    image: Tensor  # [B, 1, X, Y, Z] float32 in [0, 1]
    target: Tensor  # [B, X, Y, Z] int64 channel index


class GenerativeModel:
    """Label maps to pairs, on the bank's device, batched and seeded.

    Args:
        config: the priors.
        bank: label maps; its protocol gives classes, partners and targets.
        map_weights: relative probability of each map; uniform by default.
    Raises: ConfigError for weights that do not fit the bank or a prior that does not fit the protocol.
    """

    def __init__(self, config: GenerationConfig, bank: LabelBank, map_weights: Sequence[float] | None = None) -> None:
        self.config = config
        self.bank = bank
        self.tables = AnatomyTables.of(bank.protocol, config.anatomy, bank.device)
        self.tissues = TissueTables.of_protocol(bank.protocol, bank.device)
        inflated_values(config.inflation, bank.protocol)  # wrong ones are told here, not after a first pair
        column = _class_column(config.mixture, bank.protocol)
        self.classes = torch.as_tensor(column, device=bank.device)
        self.left_class = self._left_classes(column)
        check_classes(config.mixture, len(self.left_class))
        self.map_weights = self._weights(map_weights)

    @property
    def origin(self) -> dict[str, Any]:
        """Bank and config as plain values, for :meth:`PairDraw.save`."""
        return origin_of(self.config, self.bank)

    def _left_classes(self, column: np.ndarray) -> Tensor:
        """[G] int64: each right-sided class's partner on the left; every other class itself."""
        left = np.arange(int(column.max()) + 1)
        for label, own, partner in zip(
            self.bank.protocol.labels, column, column[self.bank.protocol.partner_index], strict=True
        ):
            if label.side == "right":
                left[own] = partner
        return torch.as_tensor(left, device=self.bank.device)

    def _weights(self, weights: Sequence[float] | None) -> Tensor:
        given = torch.tensor([1.0] * len(self.bank) if weights is None else list(weights), dtype=torch.float32)
        if len(given) != len(self.bank) or bool((given < 0).any()) or not 0 < float(given.sum()) < math.inf:
            raise ConfigError(
                "map_weights",
                found=f"{len(given)} weights for {len(self.bank)} maps, sum {float(given.sum()):g}",
                fix="give one non-negative, finite weight per map, not all zero",
            )
        return given.to(self.bank.device)

    def draw(self, batch: int, *, rng: torch.Generator, maps: Tensor | None = None) -> PairDraw:
        """Decide everything random about ``batch`` pairs; ``rng`` must be on the bank's device.

        ``maps`` ([B] int64) are label maps chosen elsewhere; ``rng`` gives everything else what it gave without.
        Optional stages come last: switching one on leaves what a seed gives the others as it was.
        """
        config, grid = self.config, self.config.grid
        anatomy = draw_anatomy(config.anatomy, grid, self.bank, self.map_weights, batch, rng=rng, maps=maps)
        draw = PairDraw(
            anatomy=anatomy,
            deformation=draw_deformation(config.deformation, grid, batch, rng=rng),
            mixture=draw_mixture(config.mixture, self.left_class, grid, anatomy.strip, rng=rng),
            bias=draw_bias(config.bias, grid, batch, rng=rng),
            gamma=draw_gamma(config.intensity, batch, rng=rng),
            acquisition=draw_acquisition(config.acquisition, grid, batch, rng=rng),
        )
        return draw._replace(**draw_options(self, batch, rng=rng))

    def labels(self, draw: PairDraw) -> Tensor:
        """The deformed, edited label map of a draw: [B, X, Y, Z] int64 label indices."""
        return read_with_options(self, draw).labels

    def mixture(self, draw: PairDraw) -> tuple[Tensor, Tensor]:
        """Labels and the image before bias field and rescaling: [B, X, Y, Z] and [B, 1, X, Y, Z]."""
        labels, means, stds = read_with_options(self, draw)
        return labels, torch.addcmul(means, stds, draw.mixture.noise)

    @torch.no_grad()
    def apply(self, draw: PairDraw) -> Pair:
        """Turn a draw into images and targets; deterministic.

        Raises: TrainingError for a draw of another grid, protocol, device or (seen on the CPU only, so that training
            need not wait for its GPU) a larger bank.
        """
        require_fit(self, draw, indices=self.bank.device.type == "cpu")
        config = self.config
        labels, image = self.mixture(draw)
        target = self.tables.target_channel[labels]
        image = apply_bias(image, draw.bias)
        image = apply_gamma(image, draw.gamma, clip_max=config.intensity.clip_max)
        ghosts, noise = drawn(draw.ghosts), drawn(draw.noise)
        image = apply_acquisition(image, draw.acquisition, config.acquisition, config.grid, ghosts=ghosts, noise=noise)
        if config.intensity.final_percentiles is not None:
            image = stretch_percentiles(image, config.intensity.final_percentiles)
        if not isinstance(draw.field_of_view, Off):
            seen = field_of_view(draw.field_of_view, config.grid.shape)
            image, target = image * seen[:, None], target * seen
        return Pair(image, target)

    def sample(self, batch: int, *, rng: torch.Generator) -> Pair:
        """Draw and apply."""
        return self.apply(self.draw(batch, rng=rng))


def _class_column(prior: MixturePrior, protocol: LabelProtocol) -> np.ndarray:
    """[K] int64: each label's class, from the prior itself or from the column of the label table that it names."""
    if prior.label_classes and len(prior.label_classes) != len(protocol):
        raise ConfigError(
            "generation.mixture.label_classes",
            found=f"{len(prior.label_classes)} classes for the {len(protocol)} labels of {protocol.name}",
            fix="give one class for each label, in the order of the label table",
        )
    if prior.label_classes:
        return np.array(prior.label_classes, dtype=np.int64)
    return protocol.contrast_classes if prior.classes == "contrast" else protocol.generation_classes
