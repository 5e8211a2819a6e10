"""The 3D UNet of SynthSeg, level by level.

Source: Billot et al. 2023, section 3.2; layer order, concatenation order and constants from the reference, section 4.1.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from synthseg.errors import ConfigError, ShapeError
from synthseg.networks.moments import instance_norm

Norm = Literal["batch", "instance"]


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Shape of a UNet; the defaults are the published network (13,242,849 parameters with 33 outputs)."""

    in_channels: int = 1
    out_channels: int = 33
    # Voxels along each side of the blocks the network works on: 2 takes the eight voxels of each block as channels and
    # gives eight voxels of posteriors back: an eighth of the operations at the image's detail. 1 is the published one.
    patch: int = 1
    features: int = 24  # of level 0; doubled at each level below
    levels: int = 5
    convs_per_level: int = 2
    kernel: int = 3  # voxels, odd
    dropped_skips: int = 0  # shallowest decoder levels without skip connection (2 for the published denoiser)
    # "batch": the published network. "instance": every image is normalised by its own statistics, in training and at
    # inference alike; with one pair a batch, that is what training sees of batch norm anyway (docs/decisions/0004).
    norm: Norm = "batch"
    batch_norm_eps: float = 1e-3  # Keras' default, which the published weights assume; torch's is 1e-5
    batch_norm_momentum: float = 0.01  # torch's convention: weight of the new batch (Keras writes 0.99)

    def __post_init__(self) -> None:
        for name in ("in_channels", "out_channels", "patch", "features", "levels", "convs_per_level"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"network.{name}", found=repr(value), fix="give a whole number of at least 1")
        if not isinstance(self.kernel, int) or self.kernel < 1 or self.kernel % 2 == 0:
            raise ConfigError("network.kernel", found=repr(self.kernel), fix="give an odd number of voxels, e.g. 3")
        if self.norm not in get_args(Norm):
            raise ConfigError("network.norm", found=repr(self.norm), fix=f"use one of {', '.join(get_args(Norm))}")
        if not 0 <= self.dropped_skips <= self.levels - 1:
            raise ConfigError("network.dropped_skips", found=repr(self.dropped_skips), fix="at most levels - 1")

    @property
    def multiple(self) -> int:
        """Each side of the input must be a multiple of this many voxels."""
        return int(self.patch * 2 ** (self.levels - 1))

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


class InstanceNorm(nn.Module):
    """Each channel of each image to mean 0 and variance 1 over its voxels, then a learned scale and shift.

    Parameters are named as batch norm's, so that weights pass from one to the other. Unlike torch's own, memory in
    channels-last order is neither copied nor left. In evaluation the statistics are accurate to rounding
    (:mod:`synthseg.networks.moments`); in training they are those of torch's fused kernel.
    """

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, X, Y, Z] -> the same."""
        if x[0, 0].numel() == 1:  # a single voxel is its own mean
            return self.bias.to(x.dtype).view(1, -1, 1, 1, 1).expand_as(x)
        normed = [self._normed(image) for image in x.split(1)]  # image by image: the same numbers for any batch
        return normed[0] if len(normed) == 1 else torch.cat(normed)

    def _normed(self, image: Tensor) -> Tensor:
        if self.training:
            return self._fused(image)
        exact = instance_norm(image.detach(), self.weight.detach(), self.bias.detach(), self.eps)
        if not torch.is_grad_enabled() or not (image.requires_grad or self.weight.requires_grad):
            return exact
        fused = self._fused(image)  # for its gradient
        return fused + (exact - fused.detach())

    def _fused(self, image: Tensor) -> Tensor:
        """Batch norm's kernel without its memory of the past: fast and with a gradient, accurate to about 1e-4."""
        return functional.batch_norm(image, None, None, self.weight, self.bias, training=True, eps=self.eps)


class _Level(nn.Module):
    """Convolutions with ELU, then batch norm; both the value before and after the norm are used by the UNet."""

    def __init__(self, config: UNetConfig, n_in: int, n_out: int) -> None:
        super().__init__()
        widths = [n_in] + [n_out] * config.convs_per_level
        self.convs = nn.ModuleList(
            nn.Conv3d(a, b, config.kernel, padding=config.kernel // 2) for a, b in itertools.pairwise(widths)
        )
        self.norm = _norm(config, n_out)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = functional.elu(conv(x), inplace=True)
        return x


def _norm(config: UNetConfig, channels: int) -> nn.Module:
    if config.norm == "instance":
        return InstanceNorm(channels, config.batch_norm_eps)
    return nn.BatchNorm3d(channels, eps=config.batch_norm_eps, momentum=config.batch_norm_momentum)


class UNet(nn.Module):
    """Encoder and decoder with skip connections taken *before* batch norm and concatenated [skip, upsampled].

    Convolutions start Glorot-uniform with zero bias, as in Keras.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.features * 2**level for level in range(config.levels)]
        block = config.patch**3  # voxels
        inputs = [config.in_channels * block, *widths]
        self.down = nn.ModuleList(_Level(config, n_in, n_out) for n_in, n_out in zip(inputs, widths, strict=False))
        self.up = nn.ModuleList()
        for depth, level in enumerate(reversed(range(config.levels - 1))):
            skip = widths[level] if self._has_skip(depth) else 0
            self.up.append(_Level(config, widths[level + 1] + skip, widths[level]))
        self.head = nn.Conv3d(widths[0], config.out_channels * block, 1)
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
        x = gather_blocks(x, self.config.patch)
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
        return spread_blocks(self.head(x), self.config.patch)

    def _check(self, x: Tensor) -> None:
        multiple = self.config.multiple
        if x.ndim != 5 or x.shape[1] != self.config.in_channels or any(n % multiple for n in x.shape[2:]):
            raise ShapeError(
                "network input",
                found=f"shape {tuple(x.shape)}",
                fix=f"give [B, {self.config.in_channels}, X, Y, Z] with sides that are multiples of {multiple}",
            )


def gather_blocks(x: Tensor, patch: int) -> Tensor:
    """Voxels of each block side by side as channels: [B, C, X, Y, Z] -> [B, C * patch^3, X/patch, Y/patch, Z/patch].

    Channel c's voxel (i, j, k) of a block becomes channel c * patch^3 + (i * patch + j) * patch + k.
    """
    if patch == 1:
        return x
    b, c, *sides = x.shape
    nx, ny, nz = (n // patch for n in sides)
    blocks = x.reshape(b, c, nx, patch, ny, patch, nz, patch).permute(0, 1, 3, 5, 7, 2, 4, 6)
    gathered = blocks.reshape(b, c * patch**3, nx, ny, nz)
    return gathered.contiguous(memory_format=torch.channels_last_3d)


def spread_blocks(x: Tensor, patch: int) -> Tensor:
    """The inverse of :func:`gather_blocks`, channels innermost in memory."""
    if patch == 1:
        return x
    b, channels, nx, ny, nz = x.shape
    blocks = x.reshape(b, channels // patch**3, patch, patch, patch, nx, ny, nz)
    # one copy, straight to channels-last: [B, X, Y, Z, C]
    voxels = blocks.permute(0, 5, 2, 6, 3, 7, 4, 1).reshape(b, nx * patch, ny * patch, nz * patch, -1)
    return voxels.permute(0, 4, 1, 2, 3)
