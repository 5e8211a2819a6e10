"""Losses of the segmentation networks (Billot et al. 2023, Eq. 27; reference 5.1). All return a scalar in float32.

Sums over a volume are kept in float64 where torch adds one value after the other: in float32, a sum that has grown to
millions no longer takes up values below one as they are. On a GPU the order of those additions changes from run to run,
in the last bits of the float64 sum; bits that repeat exactly are promised for the CPU only.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from synthseg.errors import ShapeError

EPSILON = 1e-7
LossName = Literal["dice", "dice_ce", "wl2"]
Absent = Literal["count", "skip"]


def _check(logits: Tensor, target: Tensor) -> None:
    if logits.ndim < 3 or target.shape != logits.shape[:1] + logits.shape[2:]:
        raise ShapeError(
            "loss",
            found=f"logits {tuple(logits.shape)}, target {tuple(target.shape)}",
            fix="give logits [B, C, ...] and a target of channel indices [B, ...]",
        )


def soft_dice_loss(logits: Tensor, target: Tensor, *, absent: Absent = "count") -> Tensor:
    """1 - soft Dice, averaged over elements and labels, background included.

    Args:
        logits: [B, C, ...]. target: [B, ...] int64 channel indices.
        absent: labels that are not in an element's target count fully (the original) or are left out of its average.
    Source: Eq. 27 with the average its text speaks of; D_k = (2 sum gp + eps) / (sum (g^2 + p^2) + eps).
    """
    _check(logits, target)
    loss: Tensor = _DiceCrossEntropy.apply(logits, target, absent == "skip", 0.0)
    return loss


def dice_cross_entropy_loss(logits: Tensor, target: Tensor, *, absent: Absent = "skip") -> Tensor:
    """Soft Dice plus voxel-wise cross-entropy, equally weighted: learns faster from few steps than Dice alone."""
    _check(logits, target)
    loss: Tensor = _DiceCrossEntropy.apply(logits, target, absent == "skip", 1.0)
    return loss


class _DiceCrossEntropy(torch.autograd.Function):
    """Soft Dice + weight * cross-entropy of logits, with its gradient in closed form.

    Autograd's chain of softmax, squares, products and sums passes some twenty times over B x C x voxels, a third
    of a step; this passes six times and never builds the one-hot target. Voxels are rows and channels columns,
    which is how channels-last logits lie in memory.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, skip_absent: bool, weight: float) -> Tensor:
        batch, channels = logits.shape[:2]
        rows = logits.detach().movedim(1, -1).reshape(batch, -1, channels)
        index = target.reshape(batch, -1, 1)
        p = torch.softmax(rows, -1, dtype=torch.float32)
        flat = index.squeeze(-1)
        own = (
            p.gather(-1, index).squeeze(-1).double()
        )  # scatter_add adds one by one: 160^3 times 0.9 is 3.5 % off in float
        overlap = own.new_zeros(batch, channels).scatter_add_(1, flat, own)
        count = own.new_zeros(batch, channels).scatter_add_(1, flat, torch.ones_like(own))
        denominator = p.square().sum(1) + count + EPSILON
        dice = (2 * overlap + EPSILON) / denominator
        share = (count > 0).double() if skip_absent else torch.ones_like(count)
        share = share / share.sum(1, keepdim=True) / batch  # of each label in the average
        loss = (share * (1 - dice)).sum()
        if weight:
            # from the logits: the logarithm of a posterior that underflowed would be infinite
            peak = rows.float().logsumexp(-1, keepdim=True)
            loss = loss + weight * (peak - rows.gather(-1, index).float()).mean()
        ctx.save_for_backward(p, index, share.float(), dice.float(), denominator.float())
        ctx.weight, ctx.shape, ctx.dtype = weight, logits.shape, logits.dtype
        return loss.float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        p, index, share, dice, denominator = ctx.saved_tensors
        # dD_k/dp_k(x) = (2 [x is k] - 2 D_k p_k(x)) / denominator_k
        slope = p * (2 * share * dice / denominator)[:, None]
        slope.scatter_add_(-1, index, (-2 * share / denominator).gather(1, index.squeeze(-1))[..., None])
        inner = (slope * p).sum(-1, keepdim=True)
        slope.sub_(inner).mul_(p)  # through the softmax
        if ctx.weight:
            each = ctx.weight / index.numel()
            slope.add_(p, alpha=each)
            slope.scatter_add_(-1, index, torch.full_like(inner, -each))
        shape = (ctx.shape[0], *ctx.shape[2:], ctx.shape[1])
        return slope.mul_(gradient).to(ctx.dtype).view(shape).movedim(-1, 1), None, None, None


def weighted_l2_loss(logits: Tensor, target: Tensor) -> Tensor:
    """The original's warm-up: logits drawn to +5 for the true label and -5 elsewhere, background voxels ignored.

    Loss of an element = sum w (l - 5 (2g - 1))^2 / (C sum w) with w = 1 - g_background + 1e-8, near 25 at the start;
    averaged over elements, however much foreground each has, so that processes and micro-steps can share a batch.
    Source: reference 5.1 ("wl2"), which has batches of one; test vector 11.6.
    """
    _check(logits, target)
    values = logits.float().flatten(2)
    index = target.flatten(1)
    weight = (index != 0).float() + 1e-8
    # (l + 5)^2 summed over channels, corrected at the true label: (l - 5)^2 - (l + 5)^2 = -20 l.
    own = values.gather(1, index[:, None]).squeeze(1)
    error = (values + 5).square().sum(1) - 20 * own
    return ((weight * error).sum(1) / (logits.shape[1] * weight.sum(1))).mean()


def loss_function(name: LossName, logits: Tensor, target: Tensor, *, absent: Absent) -> Tensor:
    """The loss a recipe names."""
    if name == "wl2":
        return weighted_l2_loss(logits, target)
    if name == "dice":
        return soft_dice_loss(logits, target, absent=absent)
    return dice_cross_entropy_loss(logits, target, absent=absent)
