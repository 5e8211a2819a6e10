"""The operations of a program as nodes of an OpenVINO graph, in float32 or with 8-bit convolutions.

A convolution with a range for its input (:mod:`synthseg.engine.ranges`) is written as OpenVINO expects of quantised
models: the input through a FakeQuantize node of 256 levels, the weights as 8-bit constants with a scale a channel. Its
own low-precision passes then choose 8-bit kernels (VNNI or AMX where the processor has them).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from synthseg.engine.program import up_kernel
from synthseg.engine.ranges import Range
from synthseg.engine.signal_stack import same_signal_stack
from synthseg.errors import SynthsegError

AXES = 5  # of [1, C, X, Y, Z]
TO_CHANNELS_FIRST = (0, 4, 1, 2, 3)
TO_CHANNELS_LAST = (0, 2, 3, 4, 1)
HUGE = np.finfo(np.float32).max
LEVELS = 256  # of an activation
LARGEST = 127  # of a weight; symmetric, so that zero is exact


def load_openvino() -> ModuleType:
    """The package, without its telemetry. Raises: SynthsegError where it is not installed or does not load here."""
    try:
        with _no_telemetry():
            import openvino
    except ImportError as error:
        found = f"no usable OpenVINO ({error})"
        raise SynthsegError("backend openvino", found=found, fix="pip install 'synthseg[cpu]'") from error
    return openvino


@contextmanager
def _no_telemetry() -> Iterator[None]:
    """Let OpenVINO load as where its telemetry is not installed: it would tell a server of every import.

    Its import sends an event with an identifier of this computer to google-analytics.com, and keeps that identifier in
    ``~/intel``, unless the user has opted out (openvino 2026.4, ``tools/ovc/__init__.py``). Where the package is
    missing it takes a stub, for good. One that another part of the process has loaded is not ours, and stays.
    """
    name = "openvino_telemetry"
    if name in sys.modules or "openvino" in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # the documented way to make an import fail
    try:
        yield
    finally:
        del sys.modules[name]


def compile_model(model: Any, properties: Mapping[str, Any]) -> Any:
    """A graph made ready for the CPU. Raises: SynthsegError where OpenVINO cannot compile it on this machine."""
    core = load_openvino().Core()
    try:
        with same_signal_stack():
            return core.compile_model(model, "CPU", dict(properties))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        fix = "use --backend torch on this machine"
        raise SynthsegError("backend openvino", found=f"no way to compile the network ({reason})", fix=fix) from error


class OpenVinoOps:
    """Operations on the outputs of graph nodes, logically [1, C, X, Y, Z].

    Args:
        ranges: the input range of each convolution to be carried out in 8 bits, by name; the others stay in float.
    """

    def __init__(self, ranges: Mapping[str, Range] | None = None) -> None:
        load_openvino()
        from openvino import opset13

        self._op: Any = opset13
        self._ranges = dict(ranges or {})

    def conv(self, x: Any, weight: Tensor, bias: Tensor | None, *, name: str) -> Any:
        half = [weight.shape[-1] // 2] * 3
        x, kernel = self._operands(x, _array(weight), name, axis=0)
        y = self._op.convolution(x, kernel, [1] * 3, half, half, [1] * 3)
        return self._with_bias(y, bias)

    def up_conv(self, x: Any, weight: Tensor, bias: Tensor | None, *, name: str) -> Any:
        half = [weight.shape[-1] // 2] * 3
        x, kernel = self._operands(x, _array(up_kernel(weight)), name, axis=1)
        y = self._op.convolution_backprop_data(x, kernel, [2] * 3, pads_begin=half, pads_end=half)
        return self._with_bias(y, bias)

    def add(self, x: Any, y: Any) -> Any:
        return self._op.add(x, y).output(0)

    def elu(self, x: Any) -> Any:
        return self._op.elu(x, 1.0).output(0)

    def affine(self, x: Any, scale: Tensor, shift: Tensor) -> Any:
        scaled = self._op.multiply(x, self._a_channel(scale))
        return self._op.add(scaled, self._a_channel(shift)).output(0)

    def instance_norm(self, x: Any, weight: Tensor, bias: Tensor, eps: float) -> Any:
        off = self._op.subtract(x, self._mean(x))
        off = self._op.subtract(off, self._mean(off))  # a mean far from 0 is only as exact as its last digit
        variance = self._mean(self._op.multiply(off, off))
        deviation = self._op.sqrt(self._op.add(variance, self._op.constant(np.float32(eps))))
        scale = self._op.divide(self._a_channel(weight), deviation)
        return self._op.add(self._op.multiply(off, scale), self._a_channel(bias)).output(0)

    def max_pool(self, x: Any) -> Any:
        return self._op.max_pool(x, [2] * 3, [1] * 3, [0] * 3, [0] * 3, [2] * 3).output(0)

    def softmax(self, x: Any) -> Any:
        """Over the channels."""
        return self._op.softmax(x, 1).output(0)

    def channels_first(self, x: Any) -> Any:
        """[1, X, Y, Z, C] -> [1, C, X, Y, Z]."""
        return self._op.transpose(x, self._op.constant(np.array(TO_CHANNELS_FIRST))).output(0)

    def channels_last(self, x: Any) -> Any:
        """[1, C, X, Y, Z] -> [1, X, Y, Z, C]."""
        return self._op.transpose(x, self._op.constant(np.array(TO_CHANNELS_LAST))).output(0)

    def settled(self, x: Any) -> Any:
        """The same values, across which the low-precision passes move nothing.

        Without it they move a last norm behind the change to channels last, which then costs two copies.
        """
        return self._op.minimum(x, self._op.constant(HUGE)).output(0) if self._ranges else x

    def _operands(self, x: Any, kernel: np.ndarray, name: str, *, axis: int) -> tuple[Any, Any]:
        """Input and kernel (output channels along ``axis``, 0 or 1), both quantised where the name has a range."""
        if name not in self._ranges:
            return x, self._op.constant(kernel)
        limits = self._ranges[name]
        a_channel = np.array(limits.scale, np.float32)
        whole, scale = quantised_weights(
            kernel * a_channel.reshape([-1 if i == 1 - axis else 1 for i in range(AXES)]), axis
        )
        # From each channel's own range to the one that all share: the kernels see that one step size.
        own = [limits.low * a_channel.reshape(1, -1, 1, 1, 1), limits.high * a_channel.reshape(1, -1, 1, 1, 1)]
        shared = [np.full((1,) * AXES, end, np.float32) for end in limits[:2]]
        x = self._op.fake_quantize(x, *map(self._op.constant, [*own, *shared]), LEVELS)
        wide = self._op.convert(self._op.constant(whole), np.float32)
        return x, self._op.multiply(wide, self._op.constant(scale))

    def _mean(self, x: Any) -> Any:
        """Over the voxels of each channel, along one axis after the other: no sum runs over more than a side.

        MVN and ReduceMean over all axes sum in float32 along the whole of memory: up to 0.1 off. Doubling and halving,
        which are exact, keep OpenVINO from making one ReduceMean of three.
        """
        for axis, factor in ((4, 2.0), (3, 0.5), (2, None)):
            x = self._op.reduce_mean(x, self._op.constant(np.array([axis])), keep_dims=True)
            if factor is not None:
                x = self._op.multiply(x, self._op.constant(np.float32(factor)))
        return x

    def _with_bias(self, y: Any, bias: Tensor | None) -> Any:
        return y.output(0) if bias is None else self._op.add(y, self._a_channel(bias)).output(0)

    def _a_channel(self, values: Tensor) -> Any:
        return self._op.constant(_array(values).reshape(1, -1, 1, 1, 1))


def quantised_weights(kernel: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers -127..127 (int8) and their scale for each slice along ``axis`` (broadcastable float32)."""
    others = tuple(i for i in range(kernel.ndim) if i != axis)
    largest = np.abs(kernel).max(axis=others, keepdims=True)
    scale = np.where(largest > 0, largest, 1).astype(np.float32) / LARGEST
    return np.clip(np.rint(kernel / scale), -LARGEST, LARGEST).astype(np.int8), scale


def _array(values: Tensor) -> np.ndarray:
    return values.detach().to("cpu", torch.float32).contiguous().numpy()
