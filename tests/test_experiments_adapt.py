"""Test-time adaptation: it starts as the network itself, tunes towards the auto-encoder, also in inference mode."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # experiments are no part of the installed package

from experiments.adapt import Adapting, Normaliser, soft_dice_loss


class Threshold(nn.Module):
    """Bright voxels are channel 1: a network that only knows images whose foreground is above one half."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        score = 20 * (image - 0.5)
        return torch.cat([-score, score], 1)


class Known(nn.Module):
    """An auto-encoder that knows what label maps look like: always this one."""

    def __init__(self, truth: torch.Tensor) -> None:
        super().__init__()
        self.truth = truth

    def forward(self, posterior: torch.Tensor) -> torch.Tensor:
        score = 20 * (self.truth - 0.5).expand_as(posterior[:, :1])
        return torch.cat([-score, score], 1)


def _dim_scan() -> tuple[torch.Tensor, torch.Tensor]:
    truth = torch.zeros(1, 1, 8, 8, 8)
    truth[..., 2:6, 2:6, 2:6] = 1.0
    return 0.35 * truth + 0.1, truth  # the foreground is darker than the network ever saw it


def test_a_fresh_normaliser_changes_nothing():
    image = torch.rand(1, 1, 6, 7, 8)
    assert torch.equal(Normaliser()(image), image)


def test_without_steps_it_is_the_network():
    image, truth = _dim_scan()
    assert torch.equal(Adapting(Threshold(), Known(truth), 0)(image), Threshold()(image))


def test_it_tunes_the_image_until_the_network_answers_plausibly():
    image, truth = _dim_scan()
    adapting = Adapting(Threshold(), Known(truth), 150)
    assert int(Threshold()(image).argmax(1).sum()) == 0  # unadapted, nothing is found
    with torch.inference_mode():
        answer = adapting(image).argmax(1)
    assert adapting.losses[-1] < 0.25 * adapting.losses[0]
    assert torch.equal(answer, truth[:, 0].long())
    assert image.min() == truth.min() + 0.1  # the scan itself is left as it was


def test_every_scan_begins_afresh():
    image, truth = _dim_scan()
    adapting = Adapting(Threshold(), Known(truth), 20)
    first = adapting(image)
    adapting(1 - image)
    assert torch.equal(adapting(image), first)


def test_the_loss_is_one_minus_dice_where_posteriors_are_certain():
    one = torch.zeros(1, 2, 2, 2, 2)
    one[:, 0] = 1
    other = one.clone()
    other[0, :, 0, 0, 0] = torch.tensor([0.0, 1.0])
    dice = (2 * 7 / (8 + 7), 0.0)
    assert abs(float(soft_dice_loss(one, other)) - (1 - sum(dice) / 2)) < 2e-3
    assert float(soft_dice_loss(one, one)) < 1e-6
