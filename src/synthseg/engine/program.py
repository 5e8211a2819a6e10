"""The UNet as a program of few operations, exact but cheaper than the plain module; any backend can carry it out.

What is saved, exactly (up to rounding):

- A convolution of [skip, upsampled] is the sum of one of the skip connection and one of what was upsampled; the
  concatenation is never built. The second is a transposed convolution of the small tensor (:func:`up_kernel`): 8
  products where the plain one has 27.
- Batch norm before pooling is an affine map of each channel, so that it is applied after pooling, to an eighth of the
  voxels; the last one is folded into the head.

The program has three parts, because only level 0 is large: ``enter`` and ``leave`` work on slabs with a halo, ``core``
on the whole of the half-size tensor between them. Layer order as in :mod:`synthseg.networks.unet` (reference 4.1).
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from synthseg.networks.unet import InstanceNorm, UNet

T = TypeVar("T")


class Ops(Protocol[T]):
    """What a backend can do with its own kind of tensor, logically [1, C, X, Y, Z] (in memory channels last).

    ``name`` tells convolutions apart: ``down.L.I`` and ``up.D.I`` are convolution I of a level, of which the first of a
    decoder level comes in two parts, ``up.D.0.skip`` and ``up.D.0.low``; ``head`` is the last one.
    """

    def conv(self, x: T, weight: Tensor, bias: Tensor | None, *, name: str) -> T:
        """Convolution with an odd kernel [C_out, C_in, k, k, k], zeros around, as many voxels as before."""

    def up_conv(self, x: T, weight: Tensor, bias: Tensor | None, *, name: str) -> T:
        """Convolution as above of ``x`` upsampled twofold to the nearest voxel: [1, C, 2X, 2Y, 2Z]."""

    def add(self, x: T, y: T) -> T:
        """Sum; ``x`` may be overwritten."""

    def elu(self, x: T) -> T:
        """ELU with alpha 1; ``x`` may be overwritten."""

    def affine(self, x: T, scale: Tensor, shift: Tensor) -> T:
        """Each channel times ``scale`` [C] plus ``shift`` [C]; ``x`` stays as it is."""

    def instance_norm(self, x: T, weight: Tensor, bias: Tensor, eps: float) -> T:
        """Each channel to mean 0 and variance 1 over all voxels, then scale and shift; ``x`` stays as it is."""

    def max_pool(self, x: T) -> T:
        """Maximum over blocks of 2 x 2 x 2 voxels."""


@runtime_checkable
class AddsConvolutions(Protocol[T]):
    """What some ``Ops`` can do besides: one tensor less in memory, and one pass over it."""

    def add_conv(self, onto: T, x: T, weight: Tensor, *, name: str) -> T:
        """``onto``, which may be overwritten, plus the convolution of ``x``."""


def can_run(network: nn.Module) -> bool:
    """Whether there is a program for this network: a UNet of at least two levels."""
    return isinstance(network, UNet) and network.config.levels > 1


def enter(ops: Ops[T], net: UNet, x: T) -> tuple[T, T]:
    """Level 0 of the encoder.

    Args:
        x: [1, C_in, X, Y, Z], blocks gathered (:func:`synthseg.networks.unet.gather_blocks`); even sides.
    Returns: features [1, F, X, Y, Z], which are the skip connection, and the same pooled [1, F, X/2, Y/2, Z/2], before
        the norm.
    """
    features = _convs(ops, net.down[0], x, "down.0")
    return features, _pool_before_norm(ops, features, net.down[0].norm)


def core(ops: Ops[T], net: UNet, x: T) -> T:
    """All levels below level 0.

    Args:
        x: [1, F, X/2, Y/2, Z/2]: what ``enter`` pooled, with level 0's norm applied.
    Returns: what the last decoder level upsamples, [1, 2F, X/2, Y/2, Z/2], normed.
    """
    levels = net.config.levels
    skips: dict[int, T] = {}
    for level in range(1, levels):
        block = net.down[level]
        x = _convs(ops, block, x, f"down.{level}")
        if level == levels - 1:
            x = _norm(ops, x, block.norm)
        else:
            if net._has_skip(levels - 2 - level):
                skips[level] = x
            x = _pooled_and_normed(ops, x, block.norm)
    for depth in range(levels - 2):
        x = _norm(ops, _decode(ops, net, depth, skips.pop(levels - 2 - depth, None), x), net.up[depth].norm)
    return x


def leave(ops: Ops[T], net: UNet, skip: T | None, x: T) -> T:
    """The last decoder level up to its norm.

    Args:
        skip: features of ``enter``; None for a network without a skip connection there (:func:`keeps_features`).
        x: what ``core`` returned, or a part of it.
    Returns: [1, F, X, Y, Z] before the norm.
    """
    return _decode(ops, net, net.config.levels - 2, skip, x)


def head(ops: Ops[T], net: UNet, x: T, scale: Tensor, shift: Tensor) -> T:
    """Logits [1, C_out * patch^3, X, Y, Z] of what ``leave`` returned, the last norm given as scale and shift [F]."""
    weight, bias = head_parameters(net, scale, shift)
    return ops.conv(x, weight, bias, name="head")


def head_parameters(net: UNet, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Weight [C, F, 1, 1, 1] and bias [C] of the head, an affine map of its inputs folded in: exact, as it is 1^3."""
    own: Any = net.head
    weight: Tensor = own.weight.detach().cpu().double()  # not every device has float64
    bias = weight.flatten(1) @ shift.cpu().double()
    if own.bias is not None:
        bias = bias + own.bias.detach().cpu().double()
    return (weight * scale.cpu().double().view(1, -1, 1, 1, 1)).float(), bias.float()


def keeps_features(net: UNet) -> bool:
    """Whether the features of level 0 are needed again by ``leave``."""
    return net._has_skip(net.config.levels - 2)


def fixed_norm(norm: Any) -> tuple[Tensor, Tensor] | None:
    """Scale and shift [C] of a norm that does not depend on the image (batch norm); None for instance norm."""
    if isinstance(norm, InstanceNorm):
        return None
    weight, bias, mean, variance = (
        value.detach().cpu().double() for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    )
    scale = weight / (variance + norm.eps).sqrt()
    return scale.float(), (bias - mean * scale).float()


def up_kernel(weight: Tensor) -> Tensor:
    """Kernel of the transposed convolution that equals upsampling twofold to the nearest voxel and a convolution.

    Args:
        weight: [C_out, C_in, k, k, k], k odd, zeros around.
    Returns: [C_in, C_out, k + 1, k + 1, k + 1], to be used with stride 2 and padding k // 2.

    Output voxel o reads input voxel i through the taps d with (o + d - k // 2) // 2 == i. With t = o - 2i + k // 2
    these are d = k - 1 - t and d = k - t, where they exist: their weights add up.
    """
    k = weight.shape[-1]
    taps = torch.zeros(k + 1, k, dtype=torch.float64)
    for t in range(k + 1):
        for d in (k - 1 - t, k - t):
            if 0 <= d < k:
                taps[t, d] = 1
    double = weight.detach().double().cpu()
    return torch.einsum("ta,ub,vc,oiabc->iotuv", taps, taps, taps, double).to(weight.dtype).to(weight.device)


def _convs(ops: Ops[T], block: Any, x: T, name: str, first: int = 0) -> T:
    for index, conv in list(enumerate(block.convs))[first:]:
        x = ops.elu(ops.conv(x, conv.weight.detach(), conv.bias.detach(), name=f"{name}.{index}"))
    return x


def _decode(ops: Ops[T], net: UNet, depth: int, skip: T | None, x: T) -> T:
    block: Any = net.up[depth]
    name = f"up.{depth}"
    conv = block.convs[0]
    weight, bias = conv.weight.detach(), conv.bias.detach()
    if skip is None:
        x = ops.up_conv(x, weight, bias, name=f"{name}.0.low")
    else:
        wide = net.config.features * 2 ** (net.config.levels - 2 - depth)  # channels of the skip connection come first
        x = ops.up_conv(x, weight[:, wide:], bias, name=f"{name}.0.low")
        if isinstance(ops, AddsConvolutions):
            x = ops.add_conv(x, skip, weight[:, :wide], name=f"{name}.0.skip")
        else:
            x = ops.add(x, ops.conv(skip, weight[:, :wide], None, name=f"{name}.0.skip"))
        del skip  # before the next convolution's output is made
    return _convs(ops, block, ops.elu(x), name, first=1)


def _norm(ops: Ops[T], x: T, norm: Any) -> T:
    fixed = fixed_norm(norm)
    if fixed is None:
        return ops.instance_norm(x, norm.weight.detach(), norm.bias.detach(), norm.eps)
    return ops.affine(x, *fixed)


def _pooled_and_normed(ops: Ops[T], x: T, norm: Any) -> T:
    fixed = fixed_norm(norm)
    if fixed is None:  # its statistics are those of all voxels, not of the largest ones
        return ops.max_pool(_norm(ops, x, norm))
    return ops.affine(_pool_before_norm(ops, x, norm), *fixed)


def _pool_before_norm(ops: Ops[T], x: T, norm: Any) -> T:
    """Of each block the voxel that is largest after the norm: where its scale is negative, the smallest one."""
    sign = torch.where(norm.weight.detach() < 0, -1.0, 1.0)
    if bool((sign > 0).all()):
        return ops.max_pool(x)
    zero = torch.zeros_like(sign)
    return ops.affine(ops.max_pool(ops.affine(x, sign, zero)), sign, zero)
