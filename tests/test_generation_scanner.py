"""Field of view, noise of the slices and ghosts: what the image loses and gains, to the voxel."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from generation_helpers import seeded, small_bank, still
from synthseg.errors import ConfigError
from synthseg.generation import GenerativeModel
from synthseg.generation.acquisition import AcquisitionDraw, apply_acquisition
from synthseg.generation.config import AcquisitionPrior, FieldOfViewPrior, GhostsPrior, GridPrior, NoisePrior
from synthseg.generation.scanner import (
    FieldOfViewDraw,
    GhostsDraw,
    NoiseDraw,
    draw_field_of_view,
    draw_ghosts,
    draw_noise,
    field_of_view,
    ghost_matrix,
)

BANK = small_bank()


# Field of view


def test_cut_sides_are_zero_in_image_and_target_and_the_rest_is_untouched() -> None:
    config = still((12, 16, 20), field_of_view=FieldOfViewPrior(probability=1))
    model, plain = GenerativeModel(config, BANK), GenerativeModel(still((12, 16, 20)), BANK)
    draw = model.draw(1, rng=seeded(1))
    cut = torch.tensor([[[0.25, 0.0], [0.0, 0.25], [0.1, 0.3]]])
    pair = model.apply(draw._replace(field_of_view=FieldOfViewDraw(cut)))
    before = plain.apply(plain.draw(1, rng=seeded(1)))
    inside = (slice(3, 12), slice(0, 12), slice(2, 14))
    assert torch.equal(pair.image[0, 0][inside], before.image[0, 0][inside])
    assert torch.equal(pair.target[0][inside], before.target[0][inside])
    outside = torch.ones(12, 16, 20, dtype=torch.bool)
    outside[inside] = False
    assert not pair.image[0, 0][outside].any()
    assert not pair.target[0][outside].any()
    assert before.target[0][outside].any(), "nothing was cut: this would prove nothing"


@given(seed=st.integers(0, 2**31), share=st.floats(0.01, 0.4))
def test_something_is_always_seen(seed: int, share: float) -> None:
    draw = draw_field_of_view(FieldOfViewPrior(probability=1, side_probability=1, max_share=share), 4, rng=seeded(seed))
    assert 0 <= draw.cut.min() <= draw.cut.max() <= share
    assert field_of_view(draw, (8, 9, 10)).flatten(1).any(1).all()


def test_sides_are_cut_as_often_as_asked() -> None:
    draw = draw_field_of_view(FieldOfViewPrior(probability=0.5, side_probability=0.3), 4000, rng=seeded(2))
    cut = draw.cut > 0
    np.testing.assert_allclose(cut.float().mean(0), 0.15, atol=0.03)


# Noise


def acquired(noise: NoiseDraw | None, spacing_mm: float, value: float = 0.5) -> torch.Tensor:
    """A constant image with slices along z, and noise on them."""
    spacing = torch.tensor([[1.0, 1.0, spacing_mm]])
    draw = AcquisitionDraw(spacing, torch.ones(1, 3), torch.ones(1, 3))
    image = torch.full((1, 1, 24, 24, 24), value)
    return apply_acquisition(image, draw, AcquisitionPrior(), GridPrior(shape=(24, 24, 24)), noise=noise)


def test_noise_is_each_slices_own_and_interpolated_between_them() -> None:
    noise = torch.randn(1, 1, 24, 24, 24, generator=seeded(0))
    added = acquired(NoiseDraw(torch.tensor([0.02]), noise), 4.0) - acquired(None, 4.0)
    # Slices 4 voxels apart lie on voxels 0, 4, ... 20: there the noise is that of slices 0 to 5, whole.
    torch.testing.assert_close(added[..., ::4], 0.02 * noise[..., :6], rtol=0, atol=1e-6)
    torch.testing.assert_close(added[..., 2], (added[..., 0] + added[..., 4]) / 2, rtol=0, atol=1e-6)


def test_noise_survives_thick_slices_and_the_image_stays_in_0_to_1() -> None:
    noise = draw_noise(NoisePrior(probability=1, max_std=0.05), GridPrior(shape=(24, 24, 24)), 1, rng=seeded(3))
    noise = noise._replace(std=torch.tensor([0.05]))
    for spacing_mm in (1.0, 6.0):
        added = acquired(noise, spacing_mm)[..., 0] - 0.5
        assert added.std() == pytest.approx(0.05, rel=0.1)
    dark = acquired(noise, 1.0, value=0.0)
    assert dark.min() == 0
    assert acquired(noise, 1.0, value=1.0).max() == 1


def test_noise_of_zero_is_no_noise() -> None:
    none = NoiseDraw(torch.zeros(1), torch.randn(1, 1, 24, 24, 24, generator=seeded(0)))
    assert torch.equal(acquired(none, 3.0), acquired(None, 3.0).clamp(0, 1))


# Ghosts


@given(n=st.integers(8, 40), copies=st.integers(2, 8), strength=st.floats(0, 0.99), axis=st.integers(0, 2))
def test_ghosts_move_signal_and_make_none(n: int, copies: int, strength: float, axis: int) -> None:
    draw = GhostsDraw(torch.tensor([axis]), torch.tensor([copies]), torch.tensor([strength]))
    for other in range(3):
        matrix = ghost_matrix(draw, other, n)[0].double()
        torch.testing.assert_close(matrix.sum(0), torch.ones(n).double(), rtol=0, atol=1e-6)
        torch.testing.assert_close(matrix.sum(1), torch.ones(n).double(), rtol=0, atol=1e-6)
        if other != axis:
            torch.testing.assert_close(matrix, torch.eye(n).double())


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("copies", [2, 3, 4])
def test_a_ghost_is_the_image_rolled_around(axis: int, copies: int) -> None:
    image = torch.rand(1, 1, 12, 24, 36, generator=seeded(1))
    ghosts = GhostsDraw(torch.tensor([axis]), torch.tensor([copies]), torch.tensor([0.4]))
    native = AcquisitionDraw(torch.ones(1, 3), torch.ones(1, 3), torch.ones(1, 3))
    found = apply_acquisition(image, native, AcquisitionPrior(), GridPrior(shape=(12, 24, 36)), ghosts=ghosts)
    shift = image.shape[axis + 2] // copies
    rolled = (image.roll(shift, axis + 2) + image.roll(-shift, axis + 2)) / 2
    torch.testing.assert_close(found, 0.6 * image + 0.4 * rolled, rtol=0, atol=1e-5)
    assert found.mean() == pytest.approx(float(image.mean()), abs=1e-5)


def test_ghosts_are_drawn_on_every_axis_for_a_share_of_the_pairs() -> None:
    draw = draw_ghosts(GhostsPrior(probability=0.5, max_strength=0.2, max_copies=4), 3000, rng=seeded(4))
    assert set(draw.axis.tolist()) == {0, 1, 2}
    assert set(draw.copies.tolist()) == {2, 3, 4}
    assert 0.45 < (draw.strength > 0).float().mean() < 0.55
    assert draw.strength.max() <= 0.2


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        (FieldOfViewPrior, "probability", -0.1),
        (FieldOfViewPrior, "side_probability", 2.0),
        (FieldOfViewPrior, "max_share", 0.41),
        (NoisePrior, "probability", 2.0),
        (NoisePrior, "max_std", -1.0),
        (GhostsPrior, "probability", 2.0),
        (GhostsPrior, "max_strength", 1.0),
        (GhostsPrior, "max_copies", 1),
    ],
)
def test_values_out_of_range_name_their_key(kind: Any, key: str, value: Any) -> None:
    stage = {FieldOfViewPrior: "field_of_view", NoisePrior: "noise", GhostsPrior: "ghosts"}[kind]
    with pytest.raises(ConfigError, match=rf"^generation\.{stage}\.{key}: found"):
        dataclasses.replace(kind(), **{key: value})
