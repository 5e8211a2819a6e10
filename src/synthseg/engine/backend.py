"""What a backend is: one way of carrying out the parts of a UNet's program (:mod:`synthseg.engine.program`)."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn


class Parts(Protocol):
    """The parts of one network's program, ready to run.

    All tensors are torch's, [1, C, X, Y, Z] on the backend's device, channels last in memory; any number of planes
    along X, whatever lies beyond a tensor's ends is zero. Features, what ``core`` and ``leave`` return may be of the
    backend's own floating point type; ``pooled``, what ``core`` is given and logits are float32. Called under
    ``torch.inference_mode``. No part keeps what it is given or returned.
    """

    def enter(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Blocks [1, C_in * patch^3, S, Y, Z] -> features [1, F, S, Y, Z], pooled [1, F, S/2, Y/2, Z/2], not normed."""

    def core(self, x: Tensor) -> Tensor:
        """Pooled and normed [1, F, X/2, Y/2, Z/2] -> [1, 2F, X/2, Y/2, Z/2], normed."""

    def leave(self, skip: Tensor | None, x: Tensor) -> Tensor:
        """Features [1, F, S, Y, Z] (None without that skip connection) and part of core's [1, 2F, S/2, Y/2, Z/2]
        -> [1, F, S, Y, Z], not normed."""

    def head(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """What ``leave`` returned [1, F, S, Y, Z] and the last norm's scale and shift, float32 [F]
        -> logits [1, C_out * patch^3, S, Y, Z] float32."""


class Backend(Protocol):
    """Prepares networks to run.

    ``device`` is where the tensors of its parts lie; ``precision`` is float32, bfloat16 or int8.
    """

    @property
    def name(self) -> str:
        """plain, torch, compile or openvino. A runner calls ``prepare`` of all but plain."""

    @property
    def precision(self) -> str: ...

    @property
    def device(self) -> torch.device: ...

    def prepare(self, net: nn.Module) -> Parts:
        """The parts of a UNet that ``program.can_run`` says yes to, on the device; once a network (weights are copied).

        Raises: SynthsegError where this machine cannot run them.
        """
