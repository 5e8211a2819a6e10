"""Intensities by anatomical rule: the relations of the rules hold in every draw."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # experiments are no part of the installed package

from experiments.rules import LEAST_APART, draw_rules

from synthseg.labels import load_protocol


def _draw(batch: int = 400, seed: int = 0) -> tuple[dict[int, torch.Tensor], torch.Tensor, torch.Tensor]:
    protocol = load_protocol("synthseg-generation")
    classes = torch.arange(len(protocol))
    means, stds = draw_rules(protocol, classes, batch, rng=torch.Generator().manual_seed(seed))
    return {int(v): means[:, n] for n, v in enumerate(protocol.values)}, means, stds


def test_white_grey_and_fluid_are_always_told_apart():
    of, _, _ = _draw()
    fluid_low, fluid_high = of[24] / 1.05, of[24] / 0.95  # the fluid's own mean lies between
    assert ((of[2] - of[3]).abs() >= LEAST_APART).all()
    for tissue in (of[2], of[3]):
        nearest = torch.minimum((tissue - fluid_low).abs(), (tissue - fluid_high).abs())
        outside = (tissue < fluid_low) | (tissue > fluid_high)
        assert (~outside | (nearest <= 225)).all()
    assert of[2].min() >= 25
    assert of[2].max() <= 225


def test_structures_follow_the_tissue_they_are_made_of():
    of, _, _ = _draw()

    def ratio(value: int, tissue: int) -> tuple[float, float]:
        share = of[value] / of[tissue]
        return float(share.min()), float(share.max())

    for value, tissue, low, high in ((12, 3, 0.9, 1.1), (17, 3, 0.9, 1.1), (26, 11, 0.9, 1.1), (13, 2, 0.8, 1.2)):
        least, most = ratio(value, tissue)
        assert low - 1e-4 <= least < low + 0.02, value  # the whole range is used, and not more of it
        assert high - 0.02 < most <= high + 1e-4, value
    for value, low, high in ((10, 0.4, 0.9), (28, 0.1, 0.6)):
        share = (of[value] - of[2]) / (of[3] - of[2])
        assert float(share.min()) >= low - 1e-3, value
        assert float(share.max()) <= high + 1e-3, value


def test_both_sides_are_alike_and_spreads_are_in_range():
    protocol = load_protocol("synthseg-generation")
    _, means, stds = _draw()
    partner = torch.as_tensor(protocol.partner_index)
    assert torch.equal(means, means[:, partner])
    assert torch.equal(stds, stds[:, partner])
    assert 5 <= float(stds.min()) < 6
    assert 24 < float(stds.max()) <= 25


def test_tissues_without_a_rule_are_free():
    of, _, _ = _draw(2000)
    skin = of[511]
    assert 25 <= float(skin.min()) < 30
    assert 220 < float(skin.max()) <= 225
    assert abs(float(torch.corrcoef(torch.stack([skin, of[2]]))[0, 1])) < 0.1


def test_the_same_seed_draws_the_same():
    assert torch.equal(_draw(5, 3)[1], _draw(5, 3)[1])
    assert not torch.equal(_draw(5, 3)[1], _draw(5, 4)[1])
