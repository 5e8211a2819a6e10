"""Learning-rate schedules and the average of weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from synthseg.training.recipe import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int) -> float:
    """Rate of a step (0-based): linear warm-up, then constant, cosine to 0, or constant with a linear end."""
    rate = config.learning_rate
    if step < config.warmup_steps:
        return rate * (step + 1) / config.warmup_steps
    if config.schedule == "cosine":
        share = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
        return rate * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
    if config.schedule == "decay":
        return rate * min(1.0, max(config.steps - step, 0) / config.decay_steps)
    return rate


class WeightAverage:
    """Exponential moving average of parameters and batch-norm statistics.

    Early on the decay is (1 + n) / (10 + n), so that the random start is forgotten.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.begin(network)

    def begin(self, network: nn.Module) -> None:
        """Start from the network's present state."""
        self.updates = 0
        self.state = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move towards the network's present state; integer buffers are copied."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        averaged: list[Tensor] = []
        current: list[Tensor] = []
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                averaged.append(self.state[name])
                current.append(tensor.detach())
            else:
                self.state[name].copy_(tensor)
        torch._foreach_lerp_(averaged, current, 1 - decay)
