"""What a pass of a UNet through a runner costs: bytes at its peak, multiplications.

Derived from what :mod:`synthseg.engine.program` and :mod:`synthseg.engine.runner` hold at a time; all tensors float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from synthseg.engine.planes import halo_of
from synthseg.networks.unet import UNetConfig

_FLOAT = 4  # bytes
# Freed pieces that fit no later request, buffers of the convolution library; measured against peaks of processes.
_OVERHEAD = 1.25
# What the libraries load and compile on first use, pages of code included.
_FIRST_USE = 64 * 2**20


@dataclass(frozen=True)
class Sizes:
    """Bytes, by what they are for. ``slab`` is in planes of blocks."""

    config: UNetConfig
    shape: tuple[int, int, int]  # voxels
    slab: int
    recompute: bool

    @property
    def planes(self) -> int:
        return self.shape[0] // self.config.patch

    @property
    def whole(self) -> bool:
        return self.slab >= self.planes

    def level(self, level: int) -> int:
        """One tensor of as many channels as a level has features, all planes."""
        config = self.config
        voxels = math.prod(self.shape) // config.patch**3 // 8**level
        return _FLOAT * config.features * 2**level * voxels

    @property
    def weights(self) -> int:
        """The copies that a backend prepares: kernels of transposed convolutions are larger than the module's."""
        config = self.config
        k = config.kernel
        widths = [config.features * 2**level for level in range(config.levels)]
        total = 0
        for level, wide in enumerate(widths):
            first = widths[level - 1] if level else config.in_channels * config.patch**3
            total += k**3 * wide * (first + (config.convs_per_level - 1) * wide)
            if level < config.levels - 1:
                total += k**3 * config.convs_per_level * wide**2 + (k + 1) ** 3 * 2 * wide**2
        return _FLOAT * total

    @property
    def inputs(self) -> int:
        """The image, its blocks, and one copy that a caller mirrors."""
        copies = 2 if self.config.patch == 1 else 3
        return _FLOAT * self.config.in_channels * math.prod(self.shape) * copies

    @property
    def features(self) -> int:
        """Level 0's features, which the decoder needs again."""
        skips = self.config.dropped_skips < self.config.levels - 1
        return self.level(0) if skips and not self.recompute else 0

    @property
    def low(self) -> int:
        """What core returns; and, half of it, what it is given."""
        return self.level(0) // 4

    @property
    def core(self) -> int:
        """Core at its peak: what it is given, two tensors of level 1 (a convolution's, or sum and skip), level 2's."""
        return self.low // 2 + 2 * self.level(1) + 2 * self.level(2)

    @property
    def window(self) -> int:
        """One tensor of level 0's features for a slab with its halo."""
        return self.level(0) * min(self.planes, self.slab + 2 * halo_of(self.config)) // self.planes

    @property
    def enter(self) -> int:
        """A slab through the encoder: input and output of a convolution."""
        return 2 * self.window + (self.window // 2 if self.config.norm == "instance" else 0)

    @property
    def leave(self) -> int:
        """A slab through the decoder: features of its planes, what was upsampled, and a convolution's output."""
        again = self.window * self.halo_again if self.recompute else 0
        return int(3 * self.window + again)

    @property
    def halo_again(self) -> float:
        """Features computed again need a halo of their own."""
        return 4 * halo_of(self.config) / max(1, self.slab)

    @property
    def posteriors(self) -> int:
        """A slab of posteriors."""
        return _FLOAT * self.config.out_channels * math.prod(self.shape) * min(self.slab, self.planes) // self.planes


def peak_bytes(sizes: Sizes, passes: int) -> int:
    """What running ``passes`` passes side by side takes at most, the caller's slabs of posteriors included."""
    collected = sizes.whole or sizes.config.norm == "instance"  # the last decoder level is kept before the head
    kept = sizes.level(0) if collected else sizes.features
    held = sizes.inputs + sizes.low + kept
    begin = sizes.inputs + max(
        sizes.features + sizes.enter + sizes.low // 2,
        sizes.features + sizes.core,
        max(sizes.features, kept) + sizes.low + sizes.leave if collected else 0,
    )
    # the caller's: a slab of each pass, the logits of the next, and if there is one, what the last is smoothed into
    slabs = passes + (1 if sizes.config.patch == 1 else 2) + (0 if sizes.whole else 1)
    take = passes * held + max(0 if collected else sizes.leave, sizes.window) + slabs * sizes.posteriors
    return int(_FIRST_USE + sizes.weights + _OVERHEAD * max((passes - 1) * held + begin, take))


def relative_work(sizes: Sizes) -> float:
    """Multiplications a voxel of level 0, what is computed twice included: 1 is what one slab without a halo takes."""
    config = sizes.config
    k, f = config.kernel**3, config.features
    enter = k * f * (config.in_channels * config.patch**3 + (config.convs_per_level - 1) * f)
    leave = k * f * f * config.convs_per_level + (config.kernel + 1) ** 3 / 8 * 2 * f * f
    margin = 0.0 if sizes.whole else 2 * halo_of(config) / sizes.slab
    again = enter * (1 + 2 * margin) if sizes.recompute and config.dropped_skips < config.levels - 1 else 0.0
    return ((enter + leave) * (1 + margin) + again) / (enter + leave)
