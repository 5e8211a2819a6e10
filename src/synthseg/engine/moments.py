"""Mean and variance of each channel over voxels that come slab by slab."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from synthseg.networks.moments import moments_of


class Moments:
    """Running count, mean and sum of squared deviations [C], in float64 on the CPU.

    Source: Chan, Golub and LeVeque 1979, the update for several samples.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros((), dtype=torch.float64)
        self.squares = torch.zeros((), dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        """Take in the voxels of [1, C, X, Y, Z]."""
        count = x[0, 0].numel()
        mean, variance = moments_of(x)
        self._merge(count, mean, variance * count)

    def _merge(self, count: int, mean: Tensor, squares: Tensor) -> None:
        total = self.count + count
        difference = mean - self.mean
        self.squares = self.squares + squares + difference**2 * (self.count * count / total)
        self.mean = self.mean + difference * (count / total)
        self.count = total

    def scale_and_shift(self, norm: Any) -> tuple[Tensor, Tensor]:
        """The affine map [C], float32, that an instance norm is for an image of these moments."""
        scale = norm.weight.detach().cpu().double() / (self.squares / self.count + norm.eps).sqrt()
        return scale.float(), (norm.bias.detach().cpu().double() - self.mean * scale).float()
