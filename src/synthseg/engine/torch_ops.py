"""The operations of a program by torch, eagerly, on any device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from synthseg.engine.program import up_kernel
from synthseg.networks.moments import instance_norm


class TorchOps:
    """Operations on torch tensors [1, C, X, Y, Z], channels last in memory. Prepared weights are kept by name.

    Args:
        dtype: of weights and tensors.
        transposed: whether to upsample by a transposed convolution; False upsamples and then convolves, the same
            numbers for 27/8 of the products, where a device has no transposed convolution.
    """

    def __init__(self, dtype: torch.dtype = torch.float32, *, transposed: bool = True) -> None:
        self.dtype, self.transposed = dtype, transposed
        self._kept: dict[str, tuple[Tensor, Tensor | None]] = {}

    def conv(self, x: Tensor, weight: Tensor, bias: Tensor | None, *, name: str) -> Tensor:
        weight, bias = self._prepared(name, weight, bias, x.device, up=False)
        return _conv(x, weight, bias)

    def up_conv(self, x: Tensor, weight: Tensor, bias: Tensor | None, *, name: str) -> Tensor:
        weight, bias = self._prepared(name, weight, bias, x.device, up=self.transposed)
        if not self.transposed:
            return _conv(functional.interpolate(x, scale_factor=2, mode="nearest"), weight, bias)
        return functional.conv_transpose3d(x, weight, bias, stride=2, padding=(weight.shape[-1] - 1) // 2)

    def add_conv(self, onto: Tensor, x: Tensor, weight: Tensor, *, name: str) -> Tensor:
        kernel, _ = self._prepared(name, weight, None, x.device, up=False)
        if not (_by_mkldnn(x) and _ACCUMULATES):
            return self.add(onto, _conv(x, kernel, None))
        padding = [kernel.shape[-1] // 2] * 3
        summed: Tensor = torch.ops.mkldnn._convolution_pointwise_.binary(
            onto, x, kernel, None, padding, [1] * 3, [1] * 3, 1, "add", 1.0, None, [], None
        )
        return summed

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        x += y
        return x

    def elu(self, x: Tensor) -> Tensor:
        return functional.elu(x, inplace=True)

    def affine(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        scale, shift = (_as_channels(v, x) for v in (scale, shift))
        return torch.addcmul(shift, x, scale)

    def instance_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        return instance_norm(x, weight.to(x.device, torch.float32), bias.to(x.device, torch.float32), eps)

    def max_pool(self, x: Tensor) -> Tensor:
        return functional.max_pool3d(x, 2)

    def _prepared(
        self, name: str, weight: Tensor, bias: Tensor | None, device: torch.device, *, up: bool
    ) -> tuple[Tensor, Tensor | None]:
        if name in self._kept:
            return self._kept[name]
        kernel = _channels_last((up_kernel(weight) if up else weight).to(device, self.dtype))
        prepared = kernel, None if bias is None else bias.to(device, self.dtype)
        if name != "head":  # its weight has a norm in it, which may be this image's own
            self._kept[name] = prepared
        return prepared


def _channels_last(weight: Tensor) -> Tensor:
    """In strides too, which torch leaves ambiguous for one input channel: convolutions take their layout from them."""
    c_out, c_in, *sides = weight.shape
    dense = torch.empty(c_out, *sides, c_in, dtype=weight.dtype, device=weight.device).permute(0, 4, 1, 2, 3)
    return dense.copy_(weight)


def _as_channels(values: Tensor, x: Tensor) -> Tensor:
    return values.to(x.device, x.dtype).view(1, -1, 1, 1, 1)


def _by_mkldnn(x: Tensor) -> bool:
    if torch.compiler.is_compiling():  # asked first: what follows would break a graph into pieces
        return False
    return x.device.type == "cpu" and torch.backends.mkldnn.is_available()


# Torch's compiler calls it; not part of the public interface, so that a later release may lack it.
_ACCUMULATES = hasattr(torch.ops.mkldnn, "_convolution_pointwise_")


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if _by_mkldnn(x):
        # conv3d itself goes another, slower way for small images or few channels, and leaves channels-last memory
        return torch.mkldnn_convolution(x, weight, bias, [weight.shape[-1] // 2] * 3, [1] * 3, [1] * 3, 1)
    return functional.conv3d(x, weight, bias, padding=weight.shape[-1] // 2)
