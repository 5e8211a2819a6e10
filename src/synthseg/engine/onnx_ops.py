"""The operations of a program as nodes of an ONNX graph, any size of volume."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from synthseg.engine.program import up_kernel
from synthseg.errors import SynthsegError

OPSET = 17  # 2022; every runtime in use reads it


def load_onnx() -> ModuleType:
    """The package. Raises: SynthsegError where it is not installed."""
    try:
        import onnx
        import onnx.helper
        import onnx.numpy_helper
    except ImportError as error:
        found = f"no usable onnx ({error})"
        raise SynthsegError("export to ONNX", found=found, fix="pip install 'synthseg[export]'") from error
    return onnx


class OnnxOps:
    """Operations on the names of values in a graph; ``nodes`` and ``initializers`` collect what they need."""

    def __init__(self) -> None:
        self._onnx: Any = load_onnx()
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def conv(self, x: str, weight: Tensor, bias: Tensor | None, *, name: str) -> str:
        inputs = [x, *self._parameters(name, weight, bias)]
        return self._node("Conv", inputs, name, pads=[weight.shape[-1] // 2] * 6)

    def up_conv(self, x: str, weight: Tensor, bias: Tensor | None, *, name: str) -> str:
        inputs = [x, *self._parameters(name, up_kernel(weight), bias)]
        pads = [weight.shape[-1] // 2] * 6
        return self._node("ConvTranspose", inputs, name, pads=pads, strides=[2] * 3)

    def add(self, x: str, y: str) -> str:
        return self._node("Add", [x, y])

    def elu(self, x: str) -> str:
        return self._node("Elu", [x], alpha=1.0)

    def affine(self, x: str, scale: Tensor, shift: Tensor) -> str:
        a_channel = (self._constant("scale", _array(scale), 5), self._constant("shift", _array(shift), 5))
        return self._node("Add", [self._node("Mul", [x, a_channel[0]]), a_channel[1]])

    def instance_norm(self, x: str, weight: Tensor, bias: Tensor, eps: float) -> str:
        off = self._node("Sub", [x, self._mean(x)])
        off = self._node("Sub", [off, self._mean(off)])  # a mean far from 0 is only as exact as its last digit
        small = self._constant("eps", np.array(eps, np.float32))
        variance = self._node("Add", [self._mean(self._node("Mul", [off, off])), small])
        scale = self._node("Div", [self._constant("scale", _array(weight), 5), self._node("Sqrt", [variance])])
        return self._node("Add", [self._node("Mul", [off, scale]), self._constant("shift", _array(bias), 5)])

    def max_pool(self, x: str) -> str:
        return self._node("MaxPool", [x], kernel_shape=[2] * 3, strides=[2] * 3)

    def softmax(self, x: str) -> str:
        """Over the channels."""
        return self._node("Softmax", [x], axis=1)

    def gather(self, x: str, patch: int, channels: int) -> str:
        """:func:`synthseg.networks.unet.gather_blocks` of an image of that many channels."""
        if patch == 1:
            return x
        block = self._whole("block", [patch])
        counts = [self._node("Div", [side, block]) for side in self._sides(x)]
        split = [self._whole("lead", [1, channels]), *(part for count in counts for part in (count, block))]
        voxels = self._node("Reshape", [x, self._node("Concat", split, axis=0)])
        blocks = self._node("Transpose", [voxels], perm=[0, 1, 3, 5, 7, 2, 4, 6])
        joined = [self._whole("lead", [1, channels * patch**3]), *counts]
        return self._node("Reshape", [blocks, self._node("Concat", joined, axis=0)])

    def spread(self, x: str, patch: int, channels: int) -> str:
        """:func:`synthseg.networks.unet.spread_blocks` to an image of that many channels."""
        if patch == 1:
            return x
        counts, block = self._sides(x), self._whole("block", [patch])
        split = [self._whole("lead", [1, channels, patch, patch, patch]), *counts]
        blocks = self._node("Reshape", [x, self._node("Concat", split, axis=0)])
        voxels = self._node("Transpose", [blocks], perm=[0, 1, 5, 2, 6, 3, 7, 4])
        sides = [self._node("Mul", [count, block]) for count in counts]
        joined = [self._whole("lead", [1, channels]), *sides]
        return self._node("Reshape", [voxels, self._node("Concat", joined, axis=0)])

    def named(self, x: str, name: str) -> str:
        """The same value under a name of its own: an output."""
        self.nodes.append(self._onnx.helper.make_node("Identity", [x], [name], name=name))
        return name

    def _mean(self, x: str) -> str:
        """Over the voxels of each channel; runtimes' InstanceNormalization is up to 0.01 off (``OpenVinoOps``)."""
        for axis, factor in ((4, 2.0), (3, 0.5), (2, None)):
            x = self._node("ReduceMean", [x], axes=[axis], keepdims=1)
            if factor is not None:
                x = self._node("Mul", [x, self._constant("factor", np.array(factor, np.float32))])
        return x

    def _sides(self, x: str) -> list[str]:
        """Three vectors of one number each."""
        shape = self._node("Shape", [x])
        return [self._node("Gather", [shape, self._whole("axis", [axis])], axis=0) for axis in (2, 3, 4)]

    def _parameters(self, name: str, weight: Tensor, bias: Tensor | None) -> list[str]:
        kernel = self._constant(f"{name}.weight", _array(weight))
        return [kernel] if bias is None else [kernel, self._constant(f"{name}.bias", _array(bias))]

    def _whole(self, name: str, values: list[int]) -> str:
        return self._constant(name, np.array(values, np.int64))

    def _constant(self, name: str, values: np.ndarray, axes: int | None = None) -> str:
        """``values``, with ``axes`` as one a channel of a tensor with that many."""
        if axes is not None:
            values = values.reshape(1, -1, *[1] * (axes - 2))
        unique = f"{name}#{len(self.initializers)}"
        self.initializers.append(self._onnx.numpy_helper.from_array(values, unique))
        return unique

    def _node(self, kind: str, inputs: list[str], name: str = "", **attributes: Any) -> str:
        output = f"{name or kind}#{len(self.nodes)}"
        self.nodes.append(self._onnx.helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output


def _array(values: Tensor) -> np.ndarray:
    return values.detach().to("cpu", torch.float32).contiguous().numpy()
