"""Softmax over classes that lie innermost in memory, in place, a few planes at a time."""

from __future__ import annotations

import torch
from torch import Tensor

_SAFE = 80.0  # exp of at most this stays finite in float32, and so does the sum of thousands of them
_VALUES = 2**20  # values worked on at a time: they stay in the processor's cache between the steps


def softmax_planes(logits: Tensor) -> Tensor:
    """Posteriors [X, Y, Z, C] of logits [1, C, X, Y, Z], float32. Logits in channels-last memory are overwritten."""
    values = logits[0].permute(1, 2, 3, 0).contiguous()
    if values.device.type != "cpu":
        return torch.softmax(values, -1)
    step = max(1, _VALUES // max(1, values[0].numel()))
    ones = torch.ones(values.shape[-1])
    for start in range(0, len(values), step):
        _softmax_in_place(values[start : start + step], ones)
    return values


def _softmax_in_place(values: Tensor, ones: Tensor) -> None:
    """Over the last axis. Where none is large, without subtracting each voxel's largest logit: a third of the time."""
    low, high = (float(extreme) for extreme in values.aminmax())
    if low > -_SAFE and high < _SAFE:  # False for NaN too
        values.exp_()
        values.div_((values @ ones).unsqueeze(-1))
    else:
        torch.softmax(values, -1, out=values)
