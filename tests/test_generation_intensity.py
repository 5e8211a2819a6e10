"""Gaussian mixture, bias field, gamma and percentile stretch (Billot et al. 2023, Eqs. 11-19)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import RegularGridInterpolator

from generation_helpers import seeded
from synthseg.errors import ShapeError
from synthseg.generation.intensity import (
    BiasDraw,
    GammaDraw,
    apply_bias,
    apply_gamma,
    sample_mixture,
    stretch_percentiles,
)


@given(seed=st.integers(0, 2**31))
@settings(max_examples=10)
def test_every_class_has_the_mean_and_deviation_that_were_drawn(seed: int) -> None:
    rng = seeded(seed)
    classes = torch.randint(5, (2, 24, 25, 26), generator=rng)
    means, stds = 255 * torch.rand(2, 5, generator=rng), 35 * torch.rand(2, 5, generator=rng)
    noise = torch.randn(2, 1, 24, 25, 26, generator=rng)
    image = sample_mixture(classes, means, stds, noise)
    assert image.shape == (2, 1, 24, 25, 26)
    for element in range(2):
        for index in range(5):
            voxels = image[element, 0][classes[element] == index]
            mean, std = float(means[element, index]), float(stds[element, index])
            error = std / math.sqrt(len(voxels))  # standard error, of about 3,100 voxels
            assert abs(float(voxels.mean()) - mean) <= 5 * error + 1e-3
            assert abs(float(voxels.std()) - std) <= 5 * error / math.sqrt(2) + 1e-3


def test_a_class_of_zero_deviation_is_exactly_its_mean() -> None:
    classes = torch.tensor([[[[0, 1]]]])
    image = sample_mixture(
        classes, torch.tensor([[3.0, 7.0]]), torch.zeros(1, 2), torch.randn(1, 1, 1, 1, 2, generator=seeded(0))
    )
    assert image.flatten().tolist() == [3.0, 7.0]


def test_a_mixture_of_unequal_tables_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"mixture: found means \(1, 3\), stds \(1, 2\)"):
        sample_mixture(torch.zeros(1, 2, 2, 2).long(), torch.zeros(1, 3), torch.zeros(1, 2), torch.zeros(1, 1, 2, 2, 2))


def test_the_bias_field_is_the_exponential_of_trilinear_interpolation_between_the_borders() -> None:
    log_gain = torch.randn(2, 1, 4, 3, 2, generator=seeded(1), dtype=torch.float64)
    image = 1 + torch.rand(2, 1, 13, 12, 11, generator=seeded(2), dtype=torch.float64)
    biased = apply_bias(image, BiasDraw(log_gain))
    places = [np.linspace(0, m - 1, n) for n, m in zip((13, 12, 11), (4, 3, 2), strict=True)]
    for element in range(2):
        field = RegularGridInterpolator([range(4), range(3), range(2)], log_gain[element, 0].numpy())
        expected = image[element, 0].numpy() * np.exp(field(tuple(np.meshgrid(*places, indexing="ij"))))
        # Positions are float32 (1e-7), the products float64.
        np.testing.assert_allclose(biased[element, 0].numpy(), expected, rtol=1e-5)
    corners = biased[:, 0, [0, -1], [0, -1], [0, -1]] / image[:, 0, [0, -1], [0, -1], [0, -1]]
    torch.testing.assert_close(corners, log_gain[:, 0, [0, -1], [0, -1], [0, -1]].exp(), rtol=1e-5, atol=0)


def test_the_opposite_bias_divides_by_the_same_gain() -> None:
    image = torch.rand(1, 1, 9, 10, 11, generator=seeded(3))
    log_gain = torch.randn(1, 1, 3, 3, 3, generator=seeded(4))
    there_and_back = apply_bias(apply_bias(image, BiasDraw(log_gain)), BiasDraw(-log_gain))
    torch.testing.assert_close(there_and_back, image)


def test_no_bias_is_the_identity() -> None:
    image = torch.randn(1, 1, 9, 10, 11, generator=seeded(5))
    assert torch.equal(apply_bias(image, BiasDraw(torch.zeros(1, 1, 2, 3, 4))), image)


def test_clipping_and_rescaling_match_the_originals_vector() -> None:
    image = torch.tensor([-10.0, 0, 150, 310, 400]).view(1, 1, 5, 1, 1)  # reference 11.6
    unit = apply_gamma(image, GammaDraw(torch.zeros(1)), clip_max=300.0)
    torch.testing.assert_close(unit.flatten(), torch.tensor([0, 0, 0.5, 1, 1]))


def test_without_a_clip_only_negatives_are_cut() -> None:
    image = torch.tensor([-10.0, 0, 100, 400]).view(1, 1, 4, 1, 1)
    unit = apply_gamma(image, GammaDraw(torch.zeros(1)), clip_max=None)
    torch.testing.assert_close(unit.flatten(), torch.tensor([0, 0, 0.25, 1]))


@given(seed=st.integers(0, 2**31))
@settings(max_examples=20)
def test_gamma_raises_the_rescaled_image_of_each_element_to_its_own_power(seed: int) -> None:
    rng = seeded(seed)
    image = 20 + 200 * torch.rand(3, 1, 4, 5, 6, generator=rng, dtype=torch.float64)
    log_gamma = 0.5 * torch.randn(3, generator=rng, dtype=torch.float64)
    produced = apply_gamma(image, GammaDraw(log_gamma), clip_max=None)
    for element in range(3):
        values = image[element].numpy()
        unit = (values - values.min()) / (values.max() - values.min())
        np.testing.assert_allclose(produced[element].numpy(), unit ** np.exp(float(log_gamma[element])), atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 5.0, -5.0, 255.0])
def test_a_constant_image_becomes_zero_and_stays_finite(value: float) -> None:
    image = torch.full((1, 1, 4, 4, 4), value)
    for log_gamma in (-2.0, 0.0, 2.0):
        assert apply_gamma(image, GammaDraw(torch.tensor([log_gamma])), clip_max=None).count_nonzero() == 0
    assert stretch_percentiles(image, (1.0, 99.0)).isfinite().all()
    assert stretch_percentiles(image, (1.0, 99.0)).count_nonzero() == 0


@pytest.mark.parametrize("percentiles", [(0.0, 100.0), (1.0, 99.0), (0.5, 99.5), (10.0, 60.0)])
def test_a_stretch_maps_numpys_percentiles_to_0_and_1(percentiles: tuple[float, float]) -> None:
    image = 40 * torch.rand(2, 1, 20, 21, 22, generator=seeded(6), dtype=torch.float64) ** 2 - 5
    stretched = stretch_percentiles(image, percentiles)
    for element in range(2):
        values = image[element].numpy()
        low, high = np.percentile(values, percentiles)
        expected = np.clip((values - low) / (high - low), 0, 1)
        np.testing.assert_allclose(stretched[element].numpy(), expected, atol=2e-3)


@pytest.mark.parametrize("shape", [(64, 64, 64), (128, 64, 64), (48, 96, 64)])
def test_a_sampled_percentile_sees_all_planes_of_each_axis(shape: tuple[int, int, int]) -> None:
    # A fixed step through memory that divides a side would read the same few planes only: one in four of 64.
    for axis in range(3):
        ramp = torch.arange(shape[axis], dtype=torch.float32).view([-1 if a == axis else 1 for a in range(3)])
        image = ((ramp % 4 == 1) * 100 + ramp).expand(shape)[None, None]
        low, high = np.percentile(image.numpy(), (1, 99))
        expected = ((image - low) / (high - low)).clamp(0, 1)
        torch.testing.assert_close(stretch_percentiles(image, (1.0, 99.0)), expected, rtol=0, atol=0.02)
