"""Losses of the segmentation networks (Billot et al. 2023, Eq. 27; reference 5.1). All return a scalar in float32."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from synthseg.errors import ShapeError

EPSILON = 1e-7
LossName = Literal["dice", "dice_ce", "wl2"]


def _check(logits: Tensor, target: Tensor) -> None:
    if logits.ndim < 3 or target.shape != logits.shape[:1] + logits.shape[2:]:
        raise ShapeError(
            "loss",
            found=f"logits {tuple(logits.shape)}, target {tuple(target.shape)}",
            fix="give logits [B, C, ...] and a target of channel indices [B, ...]",
        )


def soft_dice_loss(logits: Tensor, target: Tensor, *, absent: Literal["count", "skip"] = "count") -> Tensor:
    """1 - soft Dice, averaged over elements and labels, background included.

    Args:
        logits: [B, C, ...]. target: [B, ...] int64 channel indices.
        absent: labels that are not in an element's target count fully (the original) or are left out of its average.
    Source: Eq. 27 with the average its text speaks of; D_k = (2 sum gp + eps) / (sum (g^2 + p^2) + eps).
    """
    _check(logits, target)
    return _dice_from_probabilities(logits.float().softmax(1), target, absent)


def _dice_from_probabilities(probability: Tensor, target: Tensor, absent: str) -> Tensor:
    batch, channels = probability.shape[:2]
    flat_target = target.reshape(batch, -1)
    flat = probability.flatten(2)
    # The one-hot target is never built: its products with the posteriors are those of each voxel's own label.
    own = flat.gather(1, flat_target[:, None]).squeeze(1)
    overlap = own.new_zeros(batch, channels).scatter_add(1, flat_target, own)
    count = own.new_zeros(batch, channels).scatter_add(1, flat_target, torch.ones_like(own))
    energy = flat.square().sum(-1)
    loss = 1 - (2 * overlap + EPSILON) / (energy + count + EPSILON)
    if absent == "skip":
        present = count > 0
        return (loss * present).sum(1).div(present.sum(1)).mean()
    return loss.mean()


def dice_cross_entropy_loss(logits: Tensor, target: Tensor, *, absent: Literal["count", "skip"] = "skip") -> Tensor:
    """Soft Dice plus voxel-wise cross-entropy, equally weighted: learns faster from few steps than Dice alone."""
    _check(logits, target)
    log_probability = logits.float().log_softmax(1)
    dice = _dice_from_probabilities(log_probability.exp(), target, absent)
    return dice + functional.nll_loss(log_probability, target)


def weighted_l2_loss(logits: Tensor, target: Tensor) -> Tensor:
    """The original's warm-up: logits drawn to +5 for the true label and -5 elsewhere, background voxels ignored.

    Loss = sum w (l - 5 (2g - 1))^2 / (C sum w) with w = 1 - g_background + 1e-8; near 25 at the start.
    Source: reference 5.1 ("wl2"); test vector 11.6.
    """
    _check(logits, target)
    values = logits.float().flatten(2)
    index = target.flatten(1)
    weight = (index != 0).float() + 1e-8
    # (l + 5)^2 summed over channels, corrected at the true label: (l - 5)^2 - (l + 5)^2 = -20 l.
    own = values.gather(1, index[:, None]).squeeze(1)
    error = (values + 5).square().sum(1) - 20 * own
    return (weight * error).sum() / (logits.shape[1] * weight.sum())


def loss_function(name: LossName, logits: Tensor, target: Tensor, *, absent: Literal["count", "skip"]) -> Tensor:
    """The loss a recipe names."""
    if name == "wl2":
        return weighted_l2_loss(logits, target)
    if name == "dice":
        return soft_dice_loss(logits, target, absent=absent)
    return dice_cross_entropy_loss(logits, target, absent=absent)
