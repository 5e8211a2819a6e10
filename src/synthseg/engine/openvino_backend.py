"""OpenVINO as a backend: compiled for the shapes it meets, on the CPU, sharing memory with torch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from synthseg.engine import program
from synthseg.engine.openvino_ops import OpenVinoOps, compile_model, load_openvino
from synthseg.engine.ranges import Range, require_ranges
from synthseg.engine.torch_backend import run_head
from synthseg.errors import SynthsegError, UsageError
from synthseg.networks.unet import UNet

PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}  # int8: of whatever is not quantised
KEPT = 4  # compiled shapes a part: first, middle and last slab, and one more


@dataclass(frozen=True)
class OpenVinoBackend:
    """Runs parts by OpenVINO on the CPU.

    Args:
        precision: "float32"; "bfloat16", which processors without such instructions carry out in float32; or "int8".
        ranges: for int8, the input range of each convolution by name (a card's ``int8``); the others stay in float32.
        threads: CPU threads; None takes torch's number when a network is prepared.

    Raises: UsageError for another precision, SynthsegError without OpenVINO, and for int8 without ranges.
    """

    precision: str = "float32"
    ranges: Mapping[str, Range] | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            fix = f"use one of {', '.join(PRECISIONS)}"
            raise UsageError(f"precision {self.precision!r}", found="an unknown name", fix=fix)
        if self.precision == "int8" and not self.ranges:
            raise SynthsegError(
                "precision int8",
                found="weights without calibrated ranges",
                fix="make them: `synthseg weights calibrate NAME --bank BANK -o FILE`, or use float32",
            )
        load_openvino()

    @property
    def name(self) -> str:
        return "openvino"

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def prepare(self, net: nn.Module) -> OpenVinoParts:
        """The parts of a UNet that ``program.can_run`` says yes to.

        Raises: SynthsegError for ranges of convolutions that the network does not have.
        """
        ranges = dict(self.ranges or {}) if self.precision == "int8" else {}
        require_ranges(cast(UNet, net), ranges)
        return OpenVinoParts(cast(UNet, net), OpenVinoOps(ranges), _properties(self.precision, self.threads))


class OpenVinoParts:
    """The parts of one network (:class:`synthseg.engine.backend.Parts`)."""

    def __init__(self, net: UNet, ops: OpenVinoOps, properties: Mapping[str, Any]) -> None:
        self._net = net
        self._enter = _Part(lambda x: program.enter(ops, net, x), ops, properties)
        self._core = _Part(lambda x: (ops.settled(program.core(ops, net, x)),), ops, properties)
        self._leave = _Part(lambda x, s=None: (program.leave(ops, net, s, x),), ops, properties)

    def enter(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self._core.rest()
        self._leave.rest()
        features, pooled = self._enter(x)
        return features, pooled

    def core(self, x: Tensor) -> Tensor:
        self._enter.rest()
        self._leave.rest()
        return self._core(x)[0]

    def leave(self, skip: Tensor | None, x: Tensor) -> Tensor:
        self._core.rest()
        self._enter.rest()
        return self._leave(*((x,) if skip is None else (x, skip)))[0]

    def head(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return run_head(self._net, x, scale, shift)  # no graph for each image's own scale


class _Part:
    """A function of graph nodes, compiled once a shape, called with torch tensors."""

    def __init__(self, build: Callable[..., tuple[Any, ...]], ops: OpenVinoOps, properties: Mapping[str, Any]) -> None:
        self._build = build
        self._ops = ops
        self._properties = dict(properties)
        self._compiled: OrderedDict[tuple[tuple[int, ...], ...], Any] = OrderedDict()
        self._awake: Any = None  # the one compiled shape that holds intermediate results

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """[1, C, X, Y, Z] tensors in and out. Results are new memory, which nothing else writes to."""
        ov = load_openvino()
        voxels = [_channels_last(x.float()) for x in inputs]
        compiled = self._for_shapes(tuple(tuple(v.shape) for v in voxels))
        if self._awake is not compiled:
            self.rest()  # first, middle and last slabs one after another: one set of intermediate results at a time
        request = compiled.create_infer_request()  # a new one each time: it would keep the tensors it has seen
        results = [torch.empty(tuple(port.shape)) for port in compiled.outputs]
        for index, values in enumerate(voxels):
            request.set_input_tensor(index, ov.Tensor(values.numpy(), shared_memory=True))
        for index, values in enumerate(results):
            request.set_output_tensor(index, ov.Tensor(values.numpy(), shared_memory=True))
        self._awake = compiled
        request.infer()
        return [result.permute(0, 4, 1, 2, 3) for result in results]

    def rest(self) -> None:
        """Give the memory of intermediate results back, if there is any; the next call takes it again."""
        if self._awake is not None:
            self._awake.release_memory()
            self._awake = None

    def _for_shapes(self, shapes: tuple[tuple[int, ...], ...]) -> Any:
        if shapes not in self._compiled:
            if len(self._compiled) == KEPT:
                self._compiled.popitem(last=False)
            self._compiled[shapes] = compile_model(self._model(shapes), self._properties)
        self._compiled.move_to_end(shapes)
        return self._compiled[shapes]

    def _model(self, shapes: tuple[tuple[int, ...], ...]) -> Any:
        from openvino import Model, opset13

        parameters = [opset13.parameter(list(shape), np.float32) for shape in shapes]
        outputs = self._build(*(self._ops.channels_first(p) for p in parameters))
        return Model([self._ops.channels_last(output) for output in outputs], parameters)


def _properties(precision: str, threads: int | None) -> dict[str, Any]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads or torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
        "ENABLE_CPU_PINNING": False,  # several processes side by side would share the first cores
    }


def _channels_last(x: Tensor) -> Tensor:
    """[1, C, X, Y, Z] -> [1, X, Y, Z, C] in memory order; without a copy if it is channels last already."""
    return x.permute(0, 2, 3, 4, 1).contiguous()
