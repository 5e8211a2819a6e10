"""Steps whose loss or gradient is not finite, or out of proportion, are left out, without asking the GPU about them.

Asking would make Python wait for every step's end, and the GPU then for Python to launch the next. Instead the step is
taken and undone on the device where it must be, and the counts are read when the log is written.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn, optim


class Counts(NamedTuple):
    """What happened since the counts were last read."""

    loss_sum: float  # of the steps taken
    taken: int
    skipped: int  # steps left out
    worst_row: int  # longest row of steps left out, one that began earlier included


class StepGuard:
    """Takes optimiser steps, or leaves them out, on the device.

    Args:
        network: its parameters and buffers are as before after a step that is left out, and so is the optimiser.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self._network = network
        self._statistics: list[tuple[Tensor, Tensor]] = []
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._taken, self._skipped, self._row, self._worst = torch.zeros(4, dtype=torch.int64, device=device).unbind()

    def remember(self) -> None:
        """Before the forward pass: it moves batch norm's statistics, perhaps to NaN."""
        self._statistics = [(buffer, buffer.clone()) for buffer in self._network.buffers()]

    @torch.no_grad()
    def step(self, optimizer: optim.Optimizer, loss: Tensor, bad: Tensor) -> None:
        """Take the step, or leave it out and put batch norm's statistics back.

        Args:
            loss: scalar of the step.
            bad: scalar bool on the device, whether any process's loss or gradient is not finite or out of proportion.
        """
        if getattr(optimizer, "_step_supports_amp_scaling", False):  # fused: its kernels look at the flag themselves
            optimizer.grad_scale, optimizer.found_inf = None, bad.float()  # type: ignore[attr-defined]
            optimizer.step()
            optimizer.found_inf = None  # type: ignore[attr-defined]
        elif bad.device.type == "cpu":  # nobody waits there: no copies
            if not bad:
                optimizer.step()
        else:
            self._undoable(optimizer, bad)
        for buffer, before in self._statistics:
            buffer.copy_(torch.where(bad, before, buffer))
        self._loss += torch.where(bad, 0.0, loss.double())
        self._taken += ~bad
        self._skipped += bad
        self._row.add_(1).mul_(bad)
        torch.maximum(self._worst, self._row, out=self._worst)

    def _undoable(self, optimizer: optim.Optimizer, bad: Tensor) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        held = {id(tensor): tensor.clone() for tensor in _state_tensors(optimizer, parameters)}
        values = [parameter.clone() for parameter in parameters]
        optimizer.step()
        for parameter, before in zip(parameters, values, strict=True):
            parameter.copy_(torch.where(bad, before, parameter))
        for tensor in _state_tensors(optimizer, parameters):  # state that has only now appeared began as zeros
            before = held.get(id(tensor), torch.zeros_like(tensor))
            flag = bad.to(tensor.device)  # step counts may live on the CPU
            tensor.copy_(torch.where(flag, before, tensor))

    def end_row(self) -> None:
        """A row of steps left out ends here: the network is no longer the one that they were left out of."""
        self._row.zero_()
        self._worst.zero_()

    def read(self) -> Counts:
        """The counts since the last reading; waits for the device."""
        loss, taken, skipped, worst = (float(x) for x in (self._loss, self._taken, self._skipped, self._worst))
        for tensor in (self._loss, self._taken, self._skipped):
            tensor.zero_()
        self._worst.copy_(self._row)
        return Counts(loss, int(taken), int(skipped), int(worst))


def _state_tensors(optimizer: optim.Optimizer, parameters: list[Tensor]) -> list[Tensor]:
    states = [optimizer.state[parameter] for parameter in parameters if parameter in optimizer.state]
    return [value for state in states for value in state.values() if isinstance(value, Tensor)]
