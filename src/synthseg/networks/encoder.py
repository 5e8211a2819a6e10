"""The residual encoder that SynthSeg+ reads a segmentation's quality from.

Source: Billot et al. 2023 (SynthSeg+), the regressor R; layer order and constants from the reference, section 4.2.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from synthseg.configs import config_from_dict, config_to_dict
from synthseg.errors import ConfigError, ShapeError
from synthseg.networks.unet import InstanceNorm, gather_blocks

EncoderNorm = Literal["batch", "instance", "none"]

_NORM_EPS = 1e-3  # Keras' defaults, as in the UNet
_NORM_MOMENTUM = 0.01


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Shape of an encoder; the defaults are the published one (12,450,663 values with running statistics)."""

    in_channels: int = 9
    out_channels: int = 9
    features: int = 24  # of level 0; doubled at each level below
    levels: int = 4
    convs_per_level: int = 2
    kernel: int = 5  # voxels, odd
    patch: int = 1  # voxels along each side of the blocks whose voxels become channels, as in the UNet
    norm: EncoderNorm = "batch"
    # True: the outputs are corrections to the Dice that soft inputs expect of their own argmax (`expected_dice`).
    # Ours, not published: the network then starts from an estimate that calibrated posteriors already get right.
    expected_dice: bool = False

    def __post_init__(self) -> None:
        for name in ("in_channels", "out_channels", "features", "levels", "convs_per_level", "patch"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"network.{name}", found=repr(value), fix="give a whole number of at least 1")
        if not isinstance(self.kernel, int) or self.kernel < 1 or self.kernel % 2 == 0:
            raise ConfigError("network.kernel", found=repr(self.kernel), fix="give an odd number of voxels, e.g. 5")
        if self.norm not in get_args(EncoderNorm):
            choices = ", ".join(get_args(EncoderNorm))
            raise ConfigError("network.norm", found=repr(self.norm), fix=f"use one of {choices}")
        if self.expected_dice and self.in_channels != self.out_channels:
            raise ConfigError(
                "network.expected_dice",
                found=f"{self.in_channels} inputs and {self.out_channels} outputs",
                fix="give one output for each input group, or set expected_dice = false",
            )

    @property
    def multiple(self) -> int:
        """Each side of the input must be a multiple of this many voxels (pooling takes any side)."""
        return self.patch

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a weights' card, with its ``kind``."""
        return {"kind": "encoder", **config_to_dict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EncoderConfig:
        """Rebuild from a card. Raises ConfigError for unknown keys; the key ``kind`` of cards is ignored."""
        return config_from_dict(cls, {k: v for k, v in values.items() if k != "kind"}, where="network")


class _ResidualLevel(nn.Module):
    """Convolutions beside one wider 'expand' convolution of the level's input; their sum, ReLU, norm."""

    def __init__(self, config: EncoderConfig, n_in: int, n_out: int) -> None:
        super().__init__()
        widths = [n_in] + [n_out] * config.convs_per_level
        self.expand = _conv(config, n_in, n_out)
        self.convs = nn.ModuleList(_conv(config, a, b) for a, b in itertools.pairwise(widths))
        self.norm = _norm(config, n_out)

    def forward(self, x: Tensor) -> Tensor:
        residual = functional.relu(self.expand(x))
        *first, last = self.convs
        for conv in first:
            x = functional.relu(conv(x))
        normed: Tensor = self.norm(functional.relu(residual + last(x)))  # no activation between last and sum
        return normed


class Encoder(nn.Module):
    """Residual levels, max-pooling after each of them, two last convolutions and the mean over space.

    Convolutions start Glorot-uniform with zero bias, as in Keras; with ``expected_dice`` the last one starts at zero,
    so that training starts from the expected Dice itself.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.in_channels * config.patch**3, *(config.features * 2**level for level in range(config.levels))]
        self.down = nn.ModuleList(_ResidualLevel(config, a, b) for a, b in itertools.pairwise(widths))
        n_out = config.out_channels
        self.final = nn.ModuleList([_conv(config, widths[-1], n_out), _conv(config, n_out, n_out)])
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.xavier_uniform_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        if config.expected_dice:
            last = self.final[-1].weight
            assert isinstance(last, Tensor)
            nn.init.zeros_(last)

    def forward(self, x: Tensor) -> Tensor:
        """One number for each output, e.g. the predicted Dice of each group.

        Args:
            x: [B, in_channels, X, Y, Z], one-hot labels or posteriors that add up to 1; sides multiples of
                ``config.multiple``.
        Returns: [B, out_channels]; at least 0 without ``expected_dice``, else float32 and unbounded.
        Raises: ShapeError for a wrong number of axes, channels or an indivisible side.
        """
        self._check(x)
        features = gather_blocks(x, self.config.patch)
        for level in self.down:
            # ceil_mode: an odd side's last voxels are pooled too, and a side of one voxel stays one
            features = functional.max_pool3d(level(features), 2, ceil_mode=True)
        first, last = self.final
        values = last(functional.relu(first(features)))
        if self.config.expected_dice:
            return expected_dice(x) + values.float().mean(dim=(2, 3, 4))
        return functional.relu(values).mean(dim=(2, 3, 4))

    def _check(self, x: Tensor) -> None:
        multiple = self.config.multiple
        if x.ndim != 5 or x.shape[1] != self.config.in_channels or any(n == 0 or n % multiple for n in x.shape[2:]):
            raise ShapeError(
                "network input",
                found=f"shape {tuple(x.shape)}",
                fix=f"give [B, {self.config.in_channels}, X, Y, Z] with sides that are multiples of {multiple}",
            )


def expected_dice(posteriors: Tensor) -> Tensor:
    """The Dice that posteriors expect of their own argmax: 2 sum(p h) / (sum p + sum h), h = one-hot argmax of p.

    Were the posteriors the true probabilities of each voxel's label, this would be the ratio of the expected overlap
    to the expected sizes. For one-hot input it is 1 for every group that is there.

    Args:
        posteriors: [B, G, X, Y, Z], at least 0; a voxel's groups add up to 1. Ties go to the first group.
    Returns: [B, G] float32 in [0, 1]; 0 for a group of no mass at all, the limit of a vanishing one.
    """
    p = posteriors.float()
    groups = torch.arange(p.shape[1], device=p.device).view(1, -1, 1, 1, 1)
    chosen = p.argmax(dim=1, keepdim=True) == groups
    space = (2, 3, 4)
    overlap = torch.where(chosen, p, 0.0).sum(dim=space)
    sizes = p.sum(dim=space) + chosen.sum(dim=space)
    return torch.where(sizes > 0, 2 * overlap / sizes.clamp(min=torch.finfo(p.dtype).tiny), 0.0)


def _conv(config: EncoderConfig, n_in: int, n_out: int) -> nn.Conv3d:
    return nn.Conv3d(n_in, n_out, config.kernel, padding=config.kernel // 2)


def _norm(config: EncoderConfig, channels: int) -> nn.Module:
    if config.norm == "none":
        return nn.Identity()
    if config.norm == "instance":
        return InstanceNorm(channels, _NORM_EPS)
    return nn.BatchNorm3d(channels, eps=_NORM_EPS, momentum=_NORM_MOMENTUM)
