"""Recovery from leaps of the loss, and steps whose gradient is out of all proportion.

Two rules, both off with ``spike_factor = 0``:

- A step whose gradient norm is more than :data:`NORM_FACTOR` times the running one is left out. Adam would survive the
  step itself, but its second moments remember the gradient for thousands of steps, in which nothing is learnt.
- The mean loss of every ``spike_window`` steps is compared with a smoothed mean of those before. Where it is more than
  ``spike_factor`` times that, or no step of the window was finite, network, optimiser and average go back to the last
  good state. Steps go on counting, so that what follows has random numbers, and a rate, of its own.

The last good state is that of the end of a good window, once the steps just after it were good as well: what the last
steps of a window spoilt shows only in the losses that follow. Everything here depends on steps and losses alone, never
on the clock, and travels in checkpoints: a resumed run goes back where the uninterrupted one does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn, optim

from synthseg.training.distributed import World
from synthseg.training.recipe import OptimizerConfig
from synthseg.training.schedule import WeightAverage

NORM_FACTOR = 100.0  # leaps of gradient norms in healthy runs stay below about ten
_NORM_SHARE = 0.01  # of the newest norm in the running one
_NORM_STEPS = 100  # norms seen before any is called too large
_LOSS_SHARE = 0.3  # of the newest good window in the smoothed mean
_TRIAL_SHARE = 0.1  # of a window: the steps after its end by which the state there is judged
MOST_RETURNS = 3  # in a row, without a good window between


@dataclass
class Kept:
    """What is remembered between windows, as plain numbers."""

    loss: float | None = None  # smoothed mean of good windows
    good: int | None = None  # step of the last good state
    trial: int | None = None  # step of the state under trial
    row: int = 0  # returns without a good window between
    updates: dict[str, int] | None = None  # of the average, by state: "good" and "trial"
    since: int = 0  # step at which the present window began


class SpikeWatch:
    """Watches one run's losses and gradient norms, and holds its last good state.

    Args:
        world: every process comes to the same verdict.
    """

    def __init__(
        self, config: OptimizerConfig, network: nn.Module, average: WeightAverage | None, world: World
    ) -> None:
        self.factor, self.window = config.spike_factor, config.spike_window
        self._network, self._average, self._world = network, average, world
        self._trial = max(round(self.window * _TRIAL_SHARE), 1)
        self._states: dict[str, dict[str, Tensor]] = {}  # "good" and "trial"
        self.kept = Kept()
        zeros = torch.zeros(4, dtype=torch.float64, device=world.device)
        self._loss, self._count, self._norm, self._norms = zeros.unbind()

    @property
    def gives_up(self) -> bool:
        """Whether going back has not helped, several times in a row."""
        return self.kept.row > MOST_RETURNS

    def restart(self, step: int) -> None:
        """Forget everything: from this step on losses mean something else."""
        self._states.clear()
        self.kept = Kept(since=step)
        for tensor in (self._loss, self._count, self._norm, self._norms):
            tensor.zero_()

    @torch.no_grad()
    def too_large(self, norm: Tensor) -> Tensor:
        """Whether a gradient norm is out of proportion: scalar bool on the device, false for one that is not finite.

        The running norm takes in what is too large as the largest that would not be: one such gradient moves it little,
        and a lasting change is followed within a few steps.
        """
        value = norm.detach().double()
        limit = NORM_FACTOR * self._norm
        known = self._norms >= _NORM_STEPS
        large = known & (value > limit) & value.isfinite()
        taken = torch.where(large, limit, value)
        share = torch.clamp(1 / (self._norms + 1), min=_NORM_SHARE)  # the plain mean at first
        moved = self._norm + share * (taken - self._norm)
        finite = value.isfinite()
        self._norm.copy_(torch.where(finite, moved, self._norm))
        self._norms += finite
        return large & (self.factor > 0)

    @torch.no_grad()
    def add(self, loss: Tensor, bad: Tensor) -> None:
        """Take in the loss of a step, which counts if the step was taken."""
        self._loss += torch.where(bad, 0.0, loss.double())
        self._count += ~bad

    def judge(self, step: int, optimizer: optim.Optimizer) -> str | None:
        """After ``step`` steps: see whether the loss has leapt, and remember or restore the state. Call it every step.

        Returns: a sentence if the state was restored.
        """
        if self.factor == 0:
            return None
        length = step - self.kept.since
        at_trial, at_end = self.kept.trial is not None and length == self._trial, length == self.window
        if not (at_trial or at_end):
            return None
        mean = self._mean()
        if self._leapt(mean):
            return self.go_back(step, optimizer, f"a mean loss of {mean:.4g} after {self.kept.loss:.4g}")
        if at_trial:
            self._promote()
        if at_end:
            self._accept(step, mean, optimizer)
        return None

    def go_back(self, step: int, optimizer: optim.Optimizer, why: str) -> str | None:
        """Restore the last good state, and say so; where there is none, begin to watch anew and return None."""
        if "good" not in self._states:
            self.restart(step)
            return None
        assert self.kept.updates is not None
        _restore(self._states["good"], self._network, optimizer, self._average)
        if self._average is not None:
            self._average.updates = self.kept.updates["good"]
        self._states.pop("trial", None)
        self.kept.updates.pop("trial", None)
        self.kept.trial, self.kept.row = None, self.kept.row + 1
        self._begin(step)
        return f"step {step}: {why}: back to the state of step {self.kept.good}, with new random numbers"

    def _begin(self, step: int) -> None:
        """A window."""
        self.kept.since = step
        self._loss.zero_()
        self._count.zero_()

    def _mean(self) -> float:
        sums = torch.stack([self._loss, self._count])
        loss, count = (float(value) for value in self._world.mean(sums))
        return loss / count if count else math.nan

    def _leapt(self, mean: float) -> bool:
        return self.kept.loss is not None and not mean <= self.factor * self.kept.loss  # NaN has leapt, too

    def _promote(self) -> None:
        """The state under trial is good."""
        assert self.kept.updates is not None
        self._states["good"] = self._states.pop("trial")
        self.kept.updates["good"] = self.kept.updates.pop("trial")
        self.kept.good, self.kept.trial = self.kept.trial, None

    def _accept(self, step: int, mean: float, optimizer: optim.Optimizer) -> None:
        """The window was good: its mean counts, and the state at its end is tried."""
        if not math.isnan(mean):
            before = self.kept.loss
            self.kept.loss = mean if before is None else before + _LOSS_SHARE * (mean - before)
            self._states["trial"] = _copied(self._network, optimizer, self._average)
            self.kept.updates = {**(self.kept.updates or {}), "trial": self._average.updates if self._average else 0}
            self.kept.trial, self.kept.row = step, 0
        self._begin(step)

    @torch.no_grad()
    def share(self) -> None:
        """Give every process the mean of the window's sums: only the leader's are kept. All processes call it."""
        loss, count = self._world.mean(torch.stack([self._loss, self._count]))
        self._loss.copy_(loss)
        self._count.copy_(count)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain values for a checkpoint."""
        tensors = {f"{kind}.{name}": tensor for kind, held in self._states.items() for name, tensor in held.items()}
        sums = [float(value) for value in (self._loss, self._count, self._norm, self._norms)]
        return tensors, {**asdict(self.kept), "sums": sums}

    def load(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Take over what :meth:`state` gave: tensors under their names there."""
        device = self._world.device
        values = dict(facts)
        for tensor, value in zip((self._loss, self._count, self._norm, self._norms), values.pop("sums"), strict=True):
            tensor.fill_(value)
        self.kept = Kept(**values)
        self._states = {}
        for name, tensor in tensors.items():
            kind, rest = name.split(".", 1)
            self._states.setdefault(kind, {})[rest] = tensor.to(device) if tensor.ndim else tensor


def _named(network: nn.Module, optimizer: optim.Optimizer, average: WeightAverage | None) -> dict[str, Tensor]:
    """Every tensor of a run's state, by name."""
    named = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    for number, values in optimizer.state_dict()["state"].items():
        named |= {f"optimizer.{number}.{key}": value for key, value in values.items() if isinstance(value, Tensor)}
    return named | {f"average.{name}": tensor for name, tensor in (average.state if average else {}).items()}


def _copied(network: nn.Module, optimizer: optim.Optimizer, average: WeightAverage | None) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in _named(network, optimizer, average).items()}


@torch.no_grad()
def _restore(
    held: Mapping[str, Tensor], network: nn.Module, optimizer: optim.Optimizer, average: WeightAverage | None
) -> None:
    for name, tensor in _named(network, optimizer, average).items():
        if name in held:
            tensor.copy_(held[name])
        else:  # an optimiser's state that has only appeared since began as zeros
            tensor.zero_()


def all_finite(network: nn.Module, average: WeightAverage | None) -> bool:
    """Whether weights, statistics and their average are numbers; waits for the device."""
    states = [network.state_dict(), average.state if average else {}]
    floats = [tensor for state in states for tensor in state.values() if tensor.is_floating_point()]
    return bool(torch.stack([tensor.isfinite().all() for tensor in floats]).all())
