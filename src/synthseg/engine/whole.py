"""A UNet's program in one go: the whole image through any backend's operations, without slabs."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from synthseg.engine import program
from synthseg.engine.program import Ops
from synthseg.networks.unet import UNet

T = TypeVar("T")


def forward(ops: Ops[T], net: UNet, x: T) -> T:
    """Logits of the blocks of an image.

    Args:
        x: [1, C_in * patch^3, X, Y, Z], blocks gathered.
    Returns: [1, C_out * patch^3, X, Y, Z].
    """
    first, last = net.down[0], net.up[-1]
    features = program._convs(ops, first, x, "down.0")
    y = program.core(ops, net, program._pooled_and_normed(ops, features, first.norm))
    y = program.leave(ops, net, features if program.keeps_features(net) else None, y)
    fixed = program.fixed_norm(last.norm)
    if fixed is not None:
        return program.head(ops, net, y, *fixed)
    y = program._norm(ops, y, last.norm)
    bias = None if net.head.bias is None else net.head.bias.detach()
    return ops.conv(y, net.head.weight.detach(), bias, name="head")


def convolution_names(net: UNet) -> list[str]:
    """Names that a program gives to a network's convolutions, in the order of their use."""
    names = [f"down.{level}.{i}" for level, block in enumerate(net.down) for i in range(_convs(block))]
    for depth, block in enumerate(net.up):
        parts = ["low", "skip"] if net._has_skip(depth) else ["low"]
        names += [f"up.{depth}.0.{part}" for part in parts] + [f"up.{depth}.{i}" for i in range(1, _convs(block))]
    return [*names, "head"]


def _convs(block: nn.Module) -> int:
    return len(block.convs)  # type: ignore[arg-type]
