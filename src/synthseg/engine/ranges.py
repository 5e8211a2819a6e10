"""Which values go into each convolution: what 8-bit arithmetic needs to know before it can begin.

Channels of one tensor differ in size by orders of magnitude, but 8-bit products need one step for all of them. Each
channel is therefore divided by a scale of its own, which its weights are multiplied by: the same convolution, of inputs
that resemble each other (the idea of SmoothQuant, Xiao et al. 2023). It costs nothing, as it is part of rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from synthseg.engine.program import up_kernel
from synthseg.engine.torch_ops import TorchOps
from synthseg.engine.whole import convolution_names, forward
from synthseg.errors import SynthsegError, WeightsError
from synthseg.networks.unet import UNet, gather_blocks

STEPS = 255  # between the two ends of a range
SAMPLED = 4096  # voxels kept of an image's input to a convolution
# How far a channel's scale follows its inputs (1) rather than its weights (0). Agreement with float32 of two scans at
# 0.5, 0.75 and 1: 98.2, 98.4, 98.2 % and 97.4, 97.3, 97.6 %; without scales 97.4 and 96.4 %.
BALANCE = 0.75
FAINT = 1e-3  # a channel is scaled as if its inputs and weights were at least this share of the largest
SHARES = torch.linspace(0.3, 1.0, 36).tolist()  # of the furthest value: the candidates for an end of a range
ROUNDS = 2  # both ends in turn
UPSAMPLED = ".low"  # of transposed convolutions, which OpenVINO carries out in 8 bits for signed inputs only
IN_FLOAT = ("down.0.0", "head")  # few channels or few operations: nothing to win in 8 bits


class Range(NamedTuple):
    """Lowest and highest value that is told from those beyond it, after division by the channel's ``scale``."""

    low: float
    high: float
    scale: tuple[float, ...]


class ObservingOps(TorchOps):
    """Torch's operations, which keep some voxels of each convolution's input, and how large its weights are."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, list[Tensor]] = {}  # [n, C_in] an image
        self.weights: dict[str, Tensor] = {}  # [C_in], largest of each channel

    def conv(self, x: Tensor, weight: Tensor, bias: Tensor | None, *, name: str) -> Tensor:
        self._look(x, name, weight)
        return super().conv(x, weight, bias, name=name)

    def up_conv(self, x: Tensor, weight: Tensor, bias: Tensor | None, *, name: str) -> Tensor:
        self._look(x, name, up_kernel(weight).transpose(0, 1))
        return super().up_conv(x, weight, bias, name=name)

    def add_conv(self, onto: Tensor, x: Tensor, weight: Tensor, *, name: str) -> Tensor:
        self._look(x, name, weight)
        return super().add_conv(onto, x, weight, name=name)

    def _look(self, x: Tensor, name: str, weight: Tensor) -> None:
        voxels = x.permute(0, 2, 3, 4, 1).reshape(-1, x.shape[1])
        stride = max(1, len(voxels) // SAMPLED)
        self.seen.setdefault(name, []).append(voxels[::stride].float().clone())
        self.weights[name] = weight.abs().amax((0, 2, 3, 4))


@torch.inference_mode()
def observe(net: UNet, inputs: Iterable[Tensor]) -> dict[str, Range]:
    """Ranges of the inputs of all convolutions that 8 bits make faster, by name (:class:`synthseg.engine.program.Ops`).

    Args:
        net: in evaluation mode, on the CPU.
        inputs: [1, C_in, X, Y, Z] each, as the network is to see them; sides multiples of ``net.config.multiple``.
    Raises: SynthsegError without any.
    """
    ops = ObservingOps()
    for x in inputs:
        forward(ops, net, gather_blocks(x, net.config.patch))
    if not ops.seen:
        raise SynthsegError("calibration", found="no images", fix="give at least one")
    return {
        name: scaled_range(torch.cat(seen), ops.weights[name], symmetric=name.endswith(UPSAMPLED))
        for name, seen in ops.seen.items()
        if name not in IN_FLOAT
    }


def scaled_range(voxels: Tensor, weights: Tensor, *, symmetric: bool) -> Range:
    """Scales of the channels and the range of all of them together.

    Args:
        voxels: [n, C], what the convolution is given.
        weights: [C], largest weight of each input channel.
    """
    largest = [v.clamp(min=max(FAINT * float(v.max()), 1e-9)).double() for v in (voxels.abs().amax(0), weights)]
    scale = largest[0] ** BALANCE / largest[1] ** (1 - BALANCE)
    scale = (scale / scale.log().mean().exp()).float()
    low, high = best_range((voxels / scale).flatten(), symmetric=symmetric)
    return Range(low, high, tuple(float(f"{v:.5g}") for v in scale.tolist()))


def best_range(values: Tensor, *, symmetric: bool = False) -> tuple[float, float]:
    """The range of 256 levels, zero among them, that loses least of ``values`` in the mean square.

    A few far values are worth less than finer steps for all others: they are clipped. Zero must stay exactly zero,
    because convolutions pad with it.

    Args:
        symmetric: 128 levels below zero and 127 above.
    """
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    if low == high:
        return around_zero(1.0) if symmetric else with_zero(low, high + 1)
    if symmetric:
        furthest = max(-low, high)
        return min((around_zero(furthest * share) for share in SHARES), key=lambda r: _loss(values, r))
    best = with_zero(low, high)
    ends = list(best)
    for _ in range(ROUNDS):
        for end in (0, 1):
            whole = (low, high)[end]
            tried = [with_zero(*(whole * share if i == end else ends[i] for i in (0, 1))) for share in SHARES]
            best = min([best, *tried], key=lambda r: _loss(values, r))
            ends[end] = best[end]
    return best


def around_zero(furthest: float) -> tuple[float, float]:
    """A range about zero that ends at ``furthest``."""
    return -furthest * (STEPS + 1) / (STEPS - 1), furthest


def with_zero(low: float, high: float) -> tuple[float, float]:
    """The range moved by less than a step, so that one of its 256 levels is zero."""
    step = (high - low) / STEPS
    first = round(low / step)
    return first * step, (first + STEPS) * step


def quantised(values: Tensor, low: float, high: float) -> Tensor:
    """Values as 8 bits keep them."""
    step = (high - low) / STEPS
    return ((values - low) / step).round_().clamp_(0, STEPS).mul_(step).add_(low)


def to_card(ranges: Mapping[str, Range]) -> dict[str, dict[str, Any]]:
    """Ranges as plain values, the form of a card's ``int8.ranges``."""
    return {name: {"low": r.low, "high": r.high, "scale": list(r.scale)} for name, r in ranges.items()}


def ranges_of_card(card: Mapping[str, Any], subject: str | Path = "weights card") -> dict[str, Range] | None:
    """Ranges in a weights' card (its key ``int8``); None without any. Raises: WeightsError for malformed ones."""
    entry = card.get("int8")
    if entry is None:
        return None
    try:
        read = {str(k): Range(float(v["low"]), float(v["high"]), tuple(map(float, v["scale"])))
                for k, v in entry["ranges"].items()}  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError):
        read = {}
    if not read or not all(_is_range(limits) for limits in read.values()):
        fix = "make them again: `synthseg weights calibrate NAME --bank BANK -o FILE`"
        raise WeightsError(subject, found="a card whose int8.ranges cannot be read", fix=fix)
    return read


def require_ranges(net: UNet, ranges: Mapping[str, Range]) -> None:
    """Raises: SynthsegError for ranges of convolutions that the network does not have."""
    unknown = sorted(set(ranges) - set(convolution_names(net)))
    if unknown:
        fix = "calibrate the weights that are used: `synthseg weights calibrate NAME --bank BANK -o FILE`"
        raise SynthsegError("int8 ranges", found=f"names of another network ({', '.join(unknown[:3])})", fix=fix)


def _loss(values: Tensor, limits: tuple[float, float]) -> float:
    return float((quantised(values, *limits) - values).square().mean())


def _is_range(limits: Range) -> bool:
    finite = all(math.isfinite(v) for v in (limits.low, limits.high, *limits.scale))
    return finite and limits.low <= 0 <= limits.high and limits.low < limits.high and min(limits.scale, default=0) > 0
