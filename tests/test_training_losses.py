"""Losses against plain autograd formulas and the reference's test vectors (section 11.6)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from synthseg.errors import ShapeError
from synthseg.training.losses import EPSILON, dice_cross_entropy_loss, soft_dice_loss, weighted_l2_loss


def plain(logits: Tensor, target: Tensor, *, skip: bool, weight: float) -> Tensor:
    p = logits.softmax(1).flatten(2)
    g = functional.one_hot(target, logits.shape[1]).movedim(-1, 1).to(p).flatten(2)
    loss = 1 - (2 * (p * g).sum(2) + EPSILON) / ((p.square() + g.square()).sum(2) + EPSILON)
    present = (g.sum(2) > 0).to(p) if skip else torch.ones_like(loss)
    dice = ((loss * present).sum(1) / present.sum(1)).mean()
    return dice + weight * functional.cross_entropy(logits, target)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("weight", [0.0, 1.0])
@pytest.mark.parametrize("channels_last", [False, True])
def test_value_and_gradient_are_those_of_the_formula(skip: bool, weight: float, channels_last: bool) -> None:
    rng = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(2, 5, 3, 4, 6, generator=rng)
    target = torch.randint(0, 4, (2, 3, 4, 6), generator=rng)  # channel 4 is absent from both
    target[1][target[1] == 2] = 0  # and 2 from one
    if channels_last:
        logits = logits.to(memory_format=torch.channels_last_3d)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    function = dice_cross_entropy_loss if weight else soft_dice_loss
    loss = function(ours, target, absent="skip" if skip else "count")
    expected = plain(theirs, target, skip=skip, weight=weight)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    (2 * loss).backward()
    (2 * expected).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-7)


def test_cross_entropy_stays_finite_where_a_posterior_underflows() -> None:
    logits = torch.tensor([[[200.0], [-200.0]]]).requires_grad_()
    loss = dice_cross_entropy_loss(logits, torch.tensor([[1]]))
    loss.backward()
    assert loss.item() == pytest.approx(400 + 1, abs=0.01)
    assert torch.isfinite(logits.grad).all()


def vectors() -> tuple[Tensor, Tensor]:
    predictions = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.6, 0.2], [0.3, 0.3, 0.4]])
    return predictions.T.reshape(1, 3, 4), torch.tensor([[0, 1, 1, 1]])


def test_soft_dice_gives_the_reference_vector() -> None:
    predictions, target = vectors()
    assert soft_dice_loss(predictions.log(), target).item() == pytest.approx(0.439286, abs=1e-6)


def test_weighted_l2_gives_the_reference_vectors() -> None:
    predictions, target = vectors()
    assert weighted_l2_loss(predictions, target).item() == pytest.approx(24.71555, abs=1e-4)
    assert weighted_l2_loss(torch.zeros(1, 3, 4), target).item() == pytest.approx(25.0, abs=1e-4)


def test_the_sum_over_a_volume_at_1_mm_is_exact() -> None:
    # 160^3 voxels of posterior 0.9 and 0.1: added up in float32 one by one, the overlap comes out 3.5 % too large.
    voxels = 4_096_000
    logits = torch.tensor([0.9, 0.1]).log().view(1, 2, 1).expand(1, 2, voxels)
    loss = soft_dice_loss(logits, torch.zeros(1, voxels, dtype=torch.long), absent="skip")
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(1 - 2 * 0.9 / (0.9**2 + 1), abs=1e-6)


def test_weighted_l2_of_a_batch_is_the_mean_of_its_elements() -> None:
    rng = torch.Generator().manual_seed(4)
    logits = 3 * torch.randn(3, 4, 5, 5, 5, generator=rng)
    target = torch.randint(0, 4, (3, 5, 5, 5), generator=rng)
    target[1, 1:] = 0  # little foreground
    target[2] = 0  # none: every voxel counts, by its 1e-8
    alone = [weighted_l2_loss(logits[n : n + 1], target[n : n + 1]) for n in range(3)]
    torch.testing.assert_close(weighted_l2_loss(logits, target), torch.stack(alone).mean())
    assert max(alone) - min(alone) > 0.1


def test_a_target_of_another_shape_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"logits \(1, 3, 4\), target \(1, 5\)"):
        soft_dice_loss(torch.zeros(1, 3, 4), torch.zeros(1, 5, dtype=torch.long))
