"""The 3D UNet of SynthSeg, level by level.

Source: Billot et al. 2023, section 3.2; layer order, concatenation order and constants from the reference, section 4.1.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from synthseg.errors import ConfigError, ShapeError


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Shape of a UNet; the defaults are the published network (13,242,849 parameters with 33 outputs)."""

    in_channels: int = 1
    out_channels: int = 33
    features: int = 24  # of level 0; doubled at each level below
    levels: int = 5
    convs_per_level: int = 2
    kernel: int = 3  # voxels, odd
    dropped_skips: int = 0  # shallowest decoder levels without skip connection (2 for the published denoiser)
    batch_norm_eps: float = 1e-3  # Keras' default, which the published weights assume; torch's is 1e-5
    batch_norm_momentum: float = 0.01  # torch's convention: weight of the new batch (Keras writes 0.99)

    def __post_init__(self) -> None:
        for name in ("in_channels", "out_channels", "features", "levels", "convs_per_level"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"network.{name}", found=repr(value), fix="give a whole number of at least 1")
        if not isinstance(self.kernel, int) or self.kernel < 1 or self.kernel % 2 == 0:
            raise ConfigError("network.kernel", found=repr(self.kernel), fix="give an odd number of voxels, e.g. 3")
        if not 0 <= self.dropped_skips <= self.levels - 1:
            raise ConfigError("network.dropped_skips", found=repr(self.dropped_skips), fix="at most levels - 1")

    @property
    def multiple(self) -> int:
        """Each side of the input must be a multiple of this many voxels."""
        return int(2 ** (self.levels - 1))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a weights' card."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> UNetConfig:
        """Rebuild from a card. Raises ConfigError for unknown keys; the key ``kind`` of cards is ignored."""
        known = {field.name for field in dataclasses.fields(cls)}
        given = {key: value for key, value in values.items() if key != "kind"}
        unknown = sorted(set(given) - known)
        if unknown:
            raise ConfigError("network", found=f"unknown keys {unknown}", fix=f"use only {sorted(known)}")
        return cls(**given)


class _Level(nn.Module):
    """Convolutions with ELU, then batch norm; both the value before and after the norm are used by the UNet."""

    def __init__(self, config: UNetConfig, n_in: int, n_out: int) -> None:
        super().__init__()
        widths = [n_in] + [n_out] * config.convs_per_level
        self.convs = nn.ModuleList(
            nn.Conv3d(a, b, config.kernel, padding=config.kernel // 2) for a, b in itertools.pairwise(widths)
        )
        self.norm = nn.BatchNorm3d(n_out, eps=config.batch_norm_eps, momentum=config.batch_norm_momentum)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = functional.elu(conv(x), inplace=True)
        return x


class UNet(nn.Module):
    """Encoder and decoder with skip connections taken *before* batch norm and concatenated [skip, upsampled].

    Convolutions start Glorot-uniform with zero bias, as in Keras.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.features * 2**level for level in range(config.levels)]
        self.down = nn.ModuleList(
            _Level(config, n_in, n_out) for n_in, n_out in zip([config.in_channels, *widths], widths, strict=False)
        )
        self.up = nn.ModuleList()
        for depth, level in enumerate(reversed(range(config.levels - 1))):
            skip = widths[level] if self._has_skip(depth) else 0
            self.up.append(_Level(config, widths[level + 1] + skip, widths[level]))
        self.head = nn.Conv3d(widths[0], config.out_channels, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.xavier_uniform_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def _has_skip(self, depth: int) -> bool:
        return depth < self.config.levels - 1 - self.config.dropped_skips

    def forward(self, x: Tensor) -> Tensor:
        """Logits for an image.

        Args:
            x: [B, in_channels, X, Y, Z]; sides multiples of ``config.multiple``.
        Returns: [B, out_channels, X, Y, Z] logits (no softmax).
        Raises: ShapeError for a wrong number of axes, channels or an indivisible side.
        """
        self._check(x)
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            if level:
                x = functional.max_pool3d(x, 2)
            x = block(x)
            skips.append(x)
            x = block.norm(x)  # type: ignore[operator]
        for depth, block in enumerate(self.up):
            x = functional.interpolate(x, scale_factor=2, mode="nearest")
            if self._has_skip(depth):
                x = torch.cat([skips[self.config.levels - 2 - depth], x], dim=1)
            x = block.norm(block(x))  # type: ignore[operator]
        logits: Tensor = self.head(x)
        return logits

    def _check(self, x: Tensor) -> None:
        multiple = self.config.multiple
        if x.ndim != 5 or x.shape[1] != self.config.in_channels or any(n % multiple for n in x.shape[2:]):
            raise ShapeError(
                "network input",
                found=f"shape {tuple(x.shape)}",
                fix=f"give [B, {self.config.in_channels}, X, Y, Z] with sides that are multiples of {multiple}",
            )
