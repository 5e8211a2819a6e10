"""Backends that need nothing but torch: the module as it is, the lean program eagerly, the same compiled."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from synthseg.engine import program
from synthseg.engine.backend import Parts
from synthseg.engine.torch_ops import TorchOps
from synthseg.errors import SynthsegError, UsageError
from synthseg.networks.unet import UNet

_COMPILED = 4096  # versions of one function
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class TorchParts:
    """The parts of one UNet by torch. ``net`` stays where it is: prepared weights are copies on the device."""

    def __init__(self, net: UNet, ops: TorchOps) -> None:
        self._net, self._ops = net, ops

    def enter(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features, pooled = program.enter(self._ops, self._net, x.to(self._ops.dtype))
        return features, pooled.float()

    def core(self, x: Tensor) -> Tensor:
        return program.core(self._ops, self._net, x.to(self._ops.dtype))

    def leave(self, skip: Tensor | None, x: Tensor) -> Tensor:
        return program.leave(self._ops, self._net, skip, x)

    def head(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return run_head(self._net, x, scale, shift)


def run_head(net: UNet, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """The head by torch, in float32 whatever ``x`` is: a matrix product over channels-last memory (see ``Parts``)."""
    weight, bias = (value.to(x.device) for value in program.head_parameters(net, scale, shift))
    voxels = x.float().permute(0, 2, 3, 4, 1)
    return functional.linear(voxels, weight.flatten(1), bias).permute(0, 4, 1, 2, 3)


class CompiledParts(TorchParts):
    """The same, each part compiled for the shapes it meets."""

    def __init__(self, net: UNet, ops: TorchOps, device: torch.device) -> None:
        super().__init__(net, ops)
        self._prepare_weights(device)
        parts: dict[str, Any] = {"enter": super().enter, "core": super().core, "leave": super().leave}
        self._compiled = {name: torch.compile(part, dynamic=False) for name, part in parts.items()}

    def _prepare_weights(self, device: torch.device) -> None:
        """Run the parts on as little as they take, so that preparing weights is no part of what is compiled."""
        config = self._net.config
        side = 2 ** (config.levels - 1)
        blocks = torch.zeros(1, config.in_channels * config.patch**3, side, side, side, device=device)
        features, pooled = super().enter(blocks)
        super().leave(features if program.keeps_features(self._net) else None, super().core(pooled))

    def enter(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with _compiling():
            features, pooled = self._compiled["enter"](x)
        return features, pooled

    def core(self, x: Tensor) -> Tensor:
        with _compiling():
            y: Tensor = self._compiled["core"](x)
        return y

    def leave(self, skip: Tensor | None, x: Tensor) -> Tensor:
        with _compiling():
            z: Tensor = self._compiled["leave"](skip, x)
        return z


@contextlib.contextmanager
def _compiling() -> Iterator[None]:
    """Let one function be compiled for as many networks and shapes as there are, and say nothing of it.

    Torch counts by the source of a function, which all networks and all levels of a decoder share, and stops compiling
    after eight. Its own warnings are for those who write such functions.
    """
    limits = ("recompile_limit", "cache_size_limit", "accumulated_recompile_limit", "accumulated_cache_size_limit")
    config = torch._dynamo.config  # newer and older names, of which one is an alias or missing
    raised = {name: _COMPILED for name in limits if hasattr(config, name)}
    loggers = [logging.getLogger(name) for name in ("torch._dynamo", "torch._inductor")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with config.patch(raised):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@dataclass(frozen=True)
class TorchBackend:
    """The lean program, eagerly (protocol ``Backend``).

    Args:
        device: cpu, cuda, cuda:N or mps.
        precision: float32 or bfloat16, of weights and activations; logits are float32 in any case.
    Raises: UsageError for another precision.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: str = "float32"
    name = "torch"

    def __post_init__(self) -> None:
        if self.precision not in _DTYPES:
            fix = f"use one of {', '.join(_DTYPES)}"
            raise UsageError("precision", found=f"'{self.precision}' with backend {self.name}", fix=fix)

    def prepare(self, net: nn.Module) -> Parts:
        return TorchParts(cast(UNet, net), self._ops())

    def _ops(self) -> TorchOps:
        # Metal: for long, torch has had no transposed convolution of volumes there
        return TorchOps(_DTYPES[self.precision], transposed=self.device.type != "mps")


class CompileBackend(TorchBackend):
    """The lean program compiled by torch, once for each shape of a slab. ``prepare`` raises where no compiler works."""

    name = "compile"

    def prepare(self, net: nn.Module) -> Parts:
        require_compiler(self.device)
        return CompiledParts(cast(UNet, net), self._ops(), self.device)


class PlainBackend(TorchBackend):
    """The module as it is, whole: what the other backends are compared with. Runners never call ``prepare``."""

    name = "plain"


def require_compiler(device: torch.device) -> None:
    """Compile a toy. Raises: SynthsegError where torch.compile does not work, with the compiler's own first line."""
    try:
        torch.compile(lambda x: x.sin() + 1, dynamic=False)(torch.zeros(8, device=device))
    except Exception as error:  # dynamo, inductor, triton and compilers have one class each
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        found = f"torch.compile does not work on {device}: {lines[0].strip()}"
        raise SynthsegError(
            "backend compile", found=found, fix="install a C++ compiler, or use --backend torch"
        ) from error
