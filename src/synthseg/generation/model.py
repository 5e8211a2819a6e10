"""The generative model: a label bank in, (image, target) pairs out (Billot et al. 2023, section 3.1).

``draw`` decides everything random; ``apply`` is a pure function of the draw. A draw is data: it can be saved, replayed,
cut into its elements and joined.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from synthseg.errors import ConfigError, TrainingError
from synthseg.files import atomic_file
from synthseg.generation.acquisition import AcquisitionDraw, apply_acquisition, draw_acquisition
from synthseg.generation.anatomy import (
    AnatomyDraw,
    AnatomyTables,
    draw_anatomy,
    edit_labels,
    map_center,
    sample_labels,
)
from synthseg.generation.bank import LabelBank
from synthseg.generation.config import GenerationConfig
from synthseg.generation.deformation import DeformationDraw, displacement_field, draw_deformation, pull_back
from synthseg.generation.intensity import (
    BiasDraw,
    GammaDraw,
    MixtureDraw,
    apply_bias,
    apply_gamma,
    check_classes,
    draw_bias,
    draw_gamma,
    draw_mixture,
    sample_mixture,
    stretch_percentiles,
)
from synthseg.generation.replay import origin_of, require_fit


class Pair(NamedTuple):
    """A batch of training pairs."""

    image: Tensor  # [B, 1, X, Y, Z] float32 in [0, 1]
    target: Tensor  # [B, X, Y, Z] int64 channel index


class PairDraw(NamedTuple):
    """Everything random about a batch."""

    anatomy: AnatomyDraw
    deformation: DeformationDraw
    mixture: MixtureDraw
    bias: BiasDraw
    gamma: GammaDraw
    acquisition: AcquisitionDraw

    def element(self, index: int) -> PairDraw:
        """The draw of one element (negative counts from the end), as a batch of one.

        Raises: IndexError beyond the batch.
        """
        return self._map(lambda tensor: tensor[[index]])

    @classmethod
    def join(cls, draws: Sequence[PairDraw]) -> PairDraw:
        """One batch of several; the inverse of :meth:`element`."""
        stages: list[Any] = [
            type(stages[0])(*(torch.cat(tensors) for tensors in zip(*stages, strict=True)))
            for stages in zip(*draws, strict=True)
        ]
        return cls(*stages)

    def to(self, device: torch.device | str) -> PairDraw:
        """The same draw on another device."""
        return self._map(lambda tensor: tensor.to(device))

    def _map(self, function: Callable[[Tensor], Tensor]) -> PairDraw:
        stages: list[Any] = [type(stage)(*map(function, stage)) for stage in self]
        return PairDraw(*stages)

    def save(self, path: str | Path, *, origin: Mapping[str, Any] | None = None) -> None:
        """Write as safetensors, one tensor a parameter, named ``stage.parameter``.

        Args:
            origin: the bank and config it was made with (:attr:`GenerativeModel.origin`), checked when it is replayed.
        """
        tensors = {
            f"{name}.{key}": tensor.contiguous().cpu()
            for name, stage in self._asdict().items()
            for key, tensor in stage._asdict().items()
        }
        with atomic_file(path) as file:
            header = {"format": "synthseg-draw-1", "origin": None if origin is None else dict(origin)}
            file.write(save(tensors, metadata={"draw": json.dumps(header)}))

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> PairDraw:
        """Read what :meth:`save` wrote.

        Raises: TrainingError naming the file when it is missing, damaged or no draw.
        """
        try:
            tensors = load_file(path, device=str(device))
            return cls(*(kind(*(tensors[f"{name}.{key}"] for key in kind._fields)) for name, kind in _STAGES.items()))
        except (SafetensorError, OSError) as error:
            found = f"no readable file ({error})"
        except KeyError as error:
            found = f"no tensor {error}: not a draw of this version"
        raise TrainingError(path, found=found, fix="give a file that PairDraw.save wrote")


_STAGES: dict[str, Any] = {
    "anatomy": AnatomyDraw,
    "deformation": DeformationDraw,
    "mixture": MixtureDraw,
    "bias": BiasDraw,
    "gamma": GammaDraw,
    "acquisition": AcquisitionDraw,
}


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
        column = bank.protocol.generation_classes
        if config.mixture.classes == "contrast":
            column = bank.protocol.contrast_classes
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

    def draw(self, batch: int, *, rng: torch.Generator) -> PairDraw:
        """Decide everything random about ``batch`` pairs; ``rng`` must be on the bank's device."""
        config, grid = self.config, self.config.grid
        anatomy = draw_anatomy(config.anatomy, grid, self.bank, self.map_weights, batch, rng=rng)
        return PairDraw(
            anatomy=anatomy,
            deformation=draw_deformation(config.deformation, grid, batch, rng=rng),
            mixture=draw_mixture(config.mixture, self.left_class, grid, anatomy.strip, rng=rng),
            bias=draw_bias(config.bias, grid, batch, rng=rng),
            gamma=draw_gamma(config.intensity, batch, rng=rng),
            acquisition=draw_acquisition(config.acquisition, grid, batch, rng=rng),
        )

    def labels(self, draw: PairDraw) -> Tensor:
        """The deformed, edited label map of a draw: [B, X, Y, Z] int64 label indices."""
        grid = self.config.grid
        field = displacement_field(draw.deformation, self.config.deformation, grid)
        where = pull_back(draw.deformation, field, draw.anatomy.corner_mm, grid)
        own = sample_labels(
            self.bank, draw.anatomy.map_index, where, map_center(self.bank, draw.anatomy.map_index, grid)
        )
        donor_center = map_center(self.bank, draw.anatomy.donor_index, grid)
        if self.config.anatomy.lesion_probability and self.config.anatomy.lesion_paste_probability:
            donor = sample_labels(self.bank, draw.anatomy.donor_index, where, donor_center)
            lesions = self.tables.lesion[donor.long()]
        else:
            lesions = torch.zeros_like(own, dtype=torch.bool)
        return edit_labels(own, lesions, draw.anatomy, self.tables)

    def image(self, labels: Tensor, draw: PairDraw) -> Tensor:
        """The image of a label map [B, X, Y, Z]: [B, 1, X, Y, Z] in [0, 1]."""
        config = self.config
        image = sample_mixture(self.classes[labels], draw.mixture.means, draw.mixture.stds, draw.mixture.noise)
        image = apply_bias(image, draw.bias)
        image = apply_gamma(image, draw.gamma, clip_max=config.intensity.clip_max)
        image = apply_acquisition(image, draw.acquisition, config.acquisition, config.grid)
        if config.intensity.final_percentiles is not None:
            image = stretch_percentiles(image, config.intensity.final_percentiles)
        return image

    @torch.no_grad()
    def apply(self, draw: PairDraw) -> Pair:
        """Turn a draw into images and targets; deterministic.

        Raises: TrainingError for a draw of another grid, protocol, device or (seen on the CPU only, so that training
            need not wait for its GPU) a larger bank.
        """
        require_fit(self, draw, indices=self.bank.device.type == "cpu")
        labels = self.labels(draw)
        return Pair(self.image(labels, draw), self.tables.target_channel[labels])

    def sample(self, batch: int, *, rng: torch.Generator) -> Pair:
        """Draw and apply."""
        return self.apply(self.draw(batch, rng=rng))
