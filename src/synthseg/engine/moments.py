"""Mean and variance of each channel over voxels that come slab by slab."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Moments:
    """Running count, mean and sum of squared deviations [C], in float64 on the CPU.

    Each plane's own moments are taken about its own mean, then merged: nothing cancels, however far means are from 0,
    and no float32 sum runs over more than a plane. Torch's own for channels-last memory does both: 5e-5 of the variance
    of 400,000 normal numbers.
    Source: Chan, Golub and LeVeque 1979, the update for several samples.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros((), dtype=torch.float64)
        self.squares = torch.zeros((), dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        """Take in the voxels of [1, C, X, Y, Z]."""
        planes = x[0].permute(1, 2, 3, 0).flatten(1, 2)  # [X, Y * Z, C], no copy
        ones = torch.ones(planes.shape[1], device=x.device)
        sums = [torch.stack(_moments(plane.float(), ones)) for plane in planes]
        near, rest, squares = torch.stack(sums, 1).cpu().double()  # [X, C] each
        count = planes.shape[1]
        means = near + rest
        mean = means.mean(0)
        self._merge(len(planes) * count, mean, squares.sum(0) + count * ((means - mean) ** 2).sum(0))

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


def _moments(plane: Tensor, ones: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The mean of [N, C] as a float32 number and what that lacks; the sum of squared deviations from their sum.

    By products with ones, which are several times faster than torch's sums along this axis.
    """
    count = plane.shape[0]
    near = ones @ plane / count
    off = plane - near
    rest = ones @ off / count
    return near, rest, ones @ off.square_() - count * rest**2
